"""From a trained run or weights to what people open: assets, scores, weights to share."""

import inspect
import json
import pathlib
import re
import unicodedata

from t3d.core import files
from t3d.core.errors import UsageError
from t3d.core.system import Picture
from t3d.train import evaluate, inference, preview

REPORT, PICTURE = 'report.html', 'image.png'
DEVICE_NAMES = {'con', 'prn', 'aux', 'nul', *(f'{kind}{n}' for kind in ('com', 'lpt') for n in range(10))}  # of Windows


def assets(
    loaded: inference.Loaded, prompts: list[str], out, *, seeds=(0,), log=print, metrics=None, **given
) -> list[pathlib.Path]:
    """Writes mesh, turntable, sheet and report of every prompt and seed into `out` (a folder each if there are several).

    A system that makes pictures gets one PNG in their place.

    Args:
      metrics: path of a run's metrics.jsonl for the report, or None.
      given: options of export.assets.write; what is left out comes from the config's `export` section.
    Returns:
      the folders written.
    """
    from t3d.core import config as configs
    from t3d.export import assets as exporter

    variant, folders = loaded.config.get('variant', ''), []
    for asset, seed, folder in _each(loaded, prompts, out, seeds, log):
        folders.append(folder)
        if isinstance(asset, Picture):
            preview.write(folder / PICTURE, preview.to_uint8(asset.image))
            continue
        info = {
            'config': configs.flatten(loaded.config),
            'metrics': metrics,
            'subtitle': f'{loaded.config.system} {variant}, {loaded.name}, step {loaded.step}, seed {seed}',
        }
        info = {name: value for name, value in info.items() if value is not None}
        exporter.write(asset, folder, report_info=info, log=log, **options('generate', loaded, given))
    return folders


def to_open(folder: pathlib.Path) -> pathlib.Path:
    """The file of an asset's folder that people look at first."""
    return folder / (REPORT if (folder / REPORT).exists() else PICTURE)


def mesh_files(loaded: inference.Loaded, prompts: list[str], out, *, seeds=(0,), log=print, **given) -> list[pathlib.Path]:
    """The meshes alone, as `assets` places them; options of export.assets.write_meshes. Returns the files."""
    from t3d.export import assets as exporter

    made = _solid(_each(loaded, prompts, out, seeds, log), loaded)
    written = [exporter.write_meshes(asset, folder, log=log, **options('export', loaded, given)) for asset, _, folder in made]
    return [path for paths in written for path in paths.values()]


def turntables(loaded: inference.Loaded, prompts: list[str], out, *, seeds=(0,), log=print, **given) -> list[pathlib.Path]:
    """The turntables alone, as `assets` places them; options of export.assets.write_views. Returns the files."""
    from t3d.export import assets as exporter

    made = _solid(_each(loaded, prompts, out, seeds, log), loaded)
    written = [exporter.write_views(asset, folder, log=log, **options('render', loaded, given)) for asset, _, folder in made]
    return [path for paths in written for name, path in paths.items() if name != 'cameras']


def _each(loaded, prompts, out, seeds, log):
    """(asset, seed, folder) of every seed and prompt."""
    out, prompts, names = pathlib.Path(out), list(dict.fromkeys(prompts)), []
    made = inference.generate(loaded, prompts, list(seeds))
    for seed, asset in made:
        name = name_of(asset.prompt, seed if len(seeds) > 1 else None)
        places = (name, *(f'{name}_{k}' for k in range(2, len(made) + 2)))  # prompts may differ only in signs
        names.append(next(place for place in places if place not in names))
        log(f'{json.dumps(asset.prompt, ensure_ascii=False)}, seed {seed}')  # quoted, without control characters
        yield asset, seed, out if len(made) == 1 else out / names[-1]


def _solid(made, loaded):
    for asset, seed, folder in made:
        if isinstance(asset, Picture):
            raise UsageError(f'{loaded.name} ({loaded.config.system}) makes pictures, which have no mesh: use `t3d generate`.')
        yield asset, seed, folder


def options(command: str, loaded: inference.Loaded, given: dict) -> dict:
    """What the writer of `generate`, `export` or `render` is told: the config's `export` section, then `given`."""
    from t3d.export import assets as exporter

    writer = {'generate': exporter.write, 'export': exporter.write_meshes, 'render': exporter.write_views}[command]
    takes = inspect.signature(writer).parameters
    return {**{name: value for name, value in loaded.config.export.items() if name in takes}, **given}


def name_of(prompt: str, seed: int | None = None) -> str:
    """A folder name: 'a_red_cube' or 'a_red_cube-3'; letters and digits of every script, 60 of them or 120 bytes."""
    words = re.sub(r'[\W_]+', '_', unicodedata.normalize('NFC', prompt).lower()).strip('_')[:60]
    words = words.encode('utf-8', 'ignore')[:120].decode('utf-8', 'ignore').rstrip('_') or 'asset'
    words = f'{words}_' if words in DEVICE_NAMES else words
    return words if seed is None else f'{words}-{seed}'


def finish(workdir, prompts: list[str], *, log=print, score: bool = True) -> None:
    """After the last step: scores into `scores.json`, then the assets of the prompts into `assets/`. Before it: nothing."""
    if '://' in str(workdir):  # assets are files that programs open
        run = files.quoted(workdir)
        log(f'scores of a remote run: `t3d eval {run}`; assets: `t3d generate PROMPT --run {run}`')
        return
    workdir = pathlib.Path(workdir)
    loaded = inference.load(workdir)
    if loaded.step < loaded.config.steps:
        return
    if score:
        try:
            scores = evaluate.evaluate(loaded, log)
        except UsageError as reason:  # data without the labels that a score needs: the assets are made all the same
            log(f'no scores: {reason}')
        else:
            files.write(workdir / 'scores.json', json.dumps({'step': loaded.step, **scores}, indent=1))
            log(table(scores))
    if prompts:
        folders = assets(loaded, prompts, workdir / 'assets', log=log, metrics=workdir / 'metrics.jsonl')
        for folder in folders:
            log(f'open {to_open(folder)}')


def table(scores: dict) -> str:
    """Scores as lines, one each."""
    width = max(len(name) for name in scores)
    return '\n'.join(
        f'  {name:<{width}}  {value:.4g}' if isinstance(value, float) else f'  {name:<{width}}  {value}'
        for name, value in scores.items()
    )
