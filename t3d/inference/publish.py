"""From what a model generates to what people open: folders of assets, named by their prompts."""

import functools
import json
import pathlib
import re
import time
import unicodedata
from collections.abc import Mapping
from types import MappingProxyType

import jax
import numpy as np

from t3d.core import config as configs
from t3d.core import prng, waiting
from t3d.core.errors import UsageError
from t3d.core.outputs import Output, Request, Views
from t3d.core.system import Given
from t3d.data import sets
from t3d.export import writers
from t3d.geom import cameras
from t3d.inference import given as givens
from t3d.inference import loading

DEVICE_NAMES = {'con', 'prn', 'aux', 'nul', *(f'{kind}{n}' for kind in ('com', 'lpt') for n in range(10))}  # of Windows
LIGHTS = ('baked', 'removed')
OPENED = ('report.html', 'sheet.png', 'image.png')  # of an asset's folder, the first that is there


def check(config, light: str = 'baked', given: Mapping[str, Given] = MappingProxyType({})) -> None:
    """Raises UsageError for what a config's `export` section names and cannot be, a writer that nobody has or a lift that takes
    no views, and for a light that `light_of` refuses.
    """
    export = config.get('export', {})
    writers.own(export)
    light_of(config, light, given)
    spec = export.get('lift', '')
    if spec:
        posed = cameras.orbit(np.zeros(1), np.zeros(1), 3.0, 0.7)
        view = Views('', np.ones((1, 8, 8, 3), np.float32), posed.world_from_cam, posed.intrinsics)
        try:
            _lifting(spec).system.check([Request(views=view)])
        except (UsageError, FileNotFoundError) as error:
            raise UsageError(f'export.lift={spec!r}: {error}') from error


def light_of(config, light: str = 'baked', given: Mapping[str, Given] = MappingProxyType({})):
    """What divides the light out of colours, as of `texture.surface_colors`: None for 'baked', the set's light for 'removed'.

    Args:
      given: the models that the config's was given: the planes of a generator's have the light of the generator's set.
    Raises: UsageError for another word, and where nothing is known of the light of the pictures that a config's model learned.
    """
    if light not in LIGHTS:
        raise UsageError(configs.unknown(light, LIGHTS, 'light'))
    if light == 'baked':
        return None
    name = givens.pictures_config(config, given).get('data', {}).get('name', '')
    known = sets.light(name)
    if known is None:
        learned = f'the pictures of its data set {name}' if name else 'what it learned, for it has no data set'
        raise UsageError(f'--light removed: {config.system} does not know the light of {learned}. Leave it out: --light baked.')
    return known


def assets(
    loaded: loading.Loaded, requests: list[Request | str], out, *, seeds=(0,), log=print, metrics=None, **settings
) -> list[pathlib.Path]:
    """Writes what `generate` makes of every request and seed into `out` (a folder each if there are several).

    Args:
      metrics: path of a run's metrics.jsonl for the report, or None.
      settings: options of the writer; what is left out comes from the config's `export` section.
    Returns:
      the folders written.
    """
    variant, folders = loaded.config.get('variant', ''), []
    for request, output, seed, folder in _each(loaded, requests, out, seeds, log):
        subtitle = f'{loaded.config.system} {variant}, {loaded.name}, step {loaded.step}, seed {seed}'
        asset(loaded, request, output, folder, seed=seed, log=log, subtitle=subtitle, metrics=metrics, **settings)
        folders.append(folder)
    return folders


def asset(
    loaded: loading.Loaded,
    request: Request,
    output: Output,
    folder,
    *,
    seed=0,
    log=print,
    subtitle='',
    metrics=None,
    **settings,
) -> dict[str, pathlib.Path]:
    """Writes one output, and the object that is made of it if it is views and the config says so (`lifted`)."""
    made, views = lifted(loaded, request, output, seed, log)
    info = {'config': configs.flatten(loaded.config), 'metrics': metrics, 'subtitle': subtitle}
    info = {name: value for name, value in info.items() if value is not None}
    beside = {} if views is None else {'views': views}
    options = _lit(loaded, {**_lift_options(loaded, made is not output), **_options(loaded, settings)})
    return writers.write(made, folder, report_info=info, log=log, **{**options, **beside})


def lifted(loaded: loading.Loaded, request: Request, output: Output, seed: int, log=print) -> tuple[Output, Views | None]:
    """(the object, the views that it was made of) of an output.

    Views become an object by the system of the config that `export.lift` names. Other outputs stay as they are, beside the
    views of their request if it had some.
    """
    spec = loaded.config.get('export', {}).get('lift', '')
    if not spec or not isinstance(output, Views):
        return output, None if isinstance(output, Views) else request.views
    lifting = _lifting(spec)
    asked = [Request(output.prompt, views=output)]
    lifting.system.check(asked)
    log(f'lift: {len(output.images)} views to an object, by {spec} ...')
    started = time.perf_counter()
    with waiting.telling(log, 'lift'):
        (made,) = jax.block_until_ready(lifting.generate(asked, prng.each(prng.key(seed), 1)))
    log(f'lift: {time.perf_counter() - started:.1f} s')
    return made, output


@functools.lru_cache(4)
def _lifting(spec: str) -> loading.Loaded:
    return loading.untrained(configs.load(spec))


def _lift_options(loaded: loading.Loaded, is_lifted: bool) -> dict:
    return _options(_lifting(loaded.config.export.lift), {}) if is_lifted else {}


def to_open(folder: pathlib.Path) -> pathlib.Path:
    """The file of an asset's folder that people look at first."""
    return next((folder / name for name in OPENED if (folder / name).exists()), folder)


def mesh_files(
    loaded: loading.Loaded, requests: list[Request | str], out, *, seeds=(0,), log=print, **settings
) -> list[pathlib.Path]:
    """The 3D files alone, as `assets` places them; options of writers.meshes_of. Returns the files, but for mesh.json."""
    written = _part(writers.meshes_of, loaded, requests, out, seeds, log, settings)
    return [path for paths in written for name, path in paths.items() if name != 'facts']


def turntables(
    loaded: loading.Loaded, requests: list[Request | str], out, *, seeds=(0,), log=print, **settings
) -> list[pathlib.Path]:
    """The turntables alone, as `assets` places them; options of writers.turntable_of. Returns the files."""
    written = _part(writers.turntable_of, loaded, requests, out, seeds, log, settings)
    return [path for paths in written for name, path in paths.items() if name != 'cameras']


def _part(writer, loaded, requests, out, seeds, log, settings) -> list[dict[str, pathlib.Path]]:
    written = []
    for request, output, seed, folder in _each(loaded, requests, out, seeds, log):
        made, _ = lifted(loaded, request, output, seed, log)
        options = _lit(loaded, {**_lift_options(loaded, made is not output), **_options(loaded, settings)})
        written.append(writer(made, folder, log=log, **options))
    return written


def _each(loaded, requests, out, seeds, log):
    """(request, output, seed, its folder) of every seed and request."""
    out, requests, names = pathlib.Path(out), _once(requests), []
    with waiting.telling(log, f'generating with {loaded.config.system}'):
        made = loading.generate(loaded, requests, list(seeds))
    for (seed, output), request in zip(made, requests * len(seeds), strict=True):
        name = name_of(output.prompt, seed if len(seeds) > 1 else None)
        places = (name, *(f'{name}_{k}' for k in range(2, len(made) + 2)))  # prompts may differ only in signs
        names.append(next(place for place in places if place not in names))
        log(f'{json.dumps(output.prompt, ensure_ascii=False)}, seed {seed}')  # quoted, without control characters
        yield request, output, seed, out if len(made) == 1 else out / names[-1]


def _once(requests: list[Request | str]) -> list[Request]:
    """Requests without repetition: of one prompt and image, the first."""
    requests = [Request(request) if isinstance(request, str) else request for request in requests]
    first = {(request.prompt, id(request.image), id(request.views)): request for request in reversed(requests)}
    return [request for request in requests if first[request.prompt, id(request.image), id(request.views)] is request]


def _options(loaded: loading.Loaded, settings: dict) -> dict:
    """The config's `export` section, then what was given."""
    return {**{name: value for name, value in loaded.config.get('export', {}).items() if name != 'prompts'}, **settings}


def _lit(loaded: loading.Loaded, settings: dict) -> dict:
    """The options with the function that `light` names in its place, and without it where it is baked."""
    light = light_of(loaded.config, settings.get('light', 'baked'), loaded.given)
    others = {name: value for name, value in settings.items() if name != 'light'}
    return others if light is None else {**others, 'light': light}


def options(command: str, loaded: loading.Loaded, settings: dict) -> dict:
    """What a writer of `generate`, `export` or `render` would be told, of the kind of output that is most usual: a field."""
    return {name: value for name, value in _options(loaded, settings).items() if name in writers.options_of('field', command)}


def name_of(prompt: str, seed: int | None = None) -> str:
    """A folder name: 'a_red_cube' or 'a_red_cube-3'; letters and digits of every script, 60 of them or 120 bytes."""
    words = re.sub(r'[\W_]+', '_', unicodedata.normalize('NFC', prompt).lower()).strip('_')[:60]
    words = words.encode('utf-8', 'ignore')[:120].decode('utf-8', 'ignore').rstrip('_') or 'asset'
    words = f'{words}_' if words in DEVICE_NAMES else words
    return words if seed is None else f'{words}-{seed}'


def table(scores: dict) -> str:
    """Scores as lines, one each; those that are lists of rows {column: value} as tables, below the others."""
    numbers = {name: value for name, value in scores.items() if not isinstance(value, list)}
    width = max(map(len, numbers), default=0)
    lines = [f'  {name:<{width}}  {_told(value)}' for name, value in numbers.items()]
    for name, rows in scores.items():
        if name not in numbers and rows:
            lines += ['', f'  {name}', *_columns(rows)]
    return '\n'.join(lines)


def _columns(rows: list[dict]) -> list[str]:
    """Lines with the rows below the names of their columns: words flush left, numbers flush right."""
    cells = [list(rows[0]), *([_told(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = ['<' if isinstance(value, str) else '>' for value in rows[0].values()]
    return ['  ' + '  '.join(map('{:{}{}}'.format, row, aligned, widths)).rstrip() for row in cells]


def _told(value) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)
