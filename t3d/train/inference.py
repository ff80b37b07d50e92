"""From a run folder or a weights folder and prompts to assets."""

import difflib
import json
import os
import pathlib
import sys
from typing import NamedTuple

import jax
from etils import epath

from t3d import systems
from t3d.core import config as configs
from t3d.core import files, prng
from t3d.core.errors import UsageError
from t3d.core.system import Asset, System
from t3d.core.typing import PyTree

DEFAULT = 'instant3d-scenes'  # of the shipped weights, where none are asked for
SHORT = {'ganfusion': 'ganfusion_diffusion'}  # a system of two stages goes by its paper's name: the one that reads prompts
ALONG = ('scores.json', 'metrics.jsonl', 'environment.json')
SHIPPED = pathlib.Path(__file__).resolve().parents[1] / 'assets'


class Loaded(NamedTuple):
    """A trained system, ready to generate."""

    config: object
    system: System
    params: PyTree  # EMA weights
    name: str  # the folder's name, for titles
    step: int
    folder: os.PathLike | None = None

    @property
    def run(self) -> os.PathLike | None:
        """The folder if it is that of a run, where sheets and scores may be left; None for weights."""
        return self.folder if self.folder is not None and (epath.Path(self.folder) / 'checkpoints').exists() else None


def shipped() -> dict[str, pathlib.Path]:
    """Weights that come with the package: name -> folder."""
    return {path.parent.name: path.parent for path in sorted(SHIPPED.glob('*/model.safetensors'))}


def load(folder: str | os.PathLike | None = None, system: str | None = None) -> Loaded:
    """Reads a run folder, or a weights folder (`model.safetensors` and `config.json`), or weights shipped under a name.

    Args:
      folder: the folder, or None for the shipped weights of `system`, or without one $T3D_WEIGHTS, else `DEFAULT`.
    Raises:
      FileNotFoundError: neither weights nor checkpoints there; the message says what was looked for and what to do.
    """
    from t3d.checkpoint import weights

    folder = folder or (None if system else os.environ.get('T3D_WEIGHTS')) or _choose_shipped(system)
    folder = files.path(shipped().get(str(folder), folder))
    try:
        if (folder / weights.FILE).exists():
            weights.require(folder, 'A weights folder needs both files.')
            params, config = weights.load(folder)
            step = int(config.steps)
        elif (folder / 'checkpoints').is_dir() and (folder / weights.CONFIG).exists():
            params, config, step = _from_run(folder)
        else:
            raise FileNotFoundError(_nothing_there(folder))
        built = systems.make(config)
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # what a changed letter of the JSON can lead to
        why = f'{type(error).__name__}: {error}'.splitlines()[0]
        raise UsageError(f'{folder / weights.CONFIG} is damaged ({why}): copy it again.') from error
    state = jax.eval_shape(built.init, prng.key(0), built.batch_spec)
    wanted = state.ema if jax.tree.leaves(state.ema) else state.params  # a GAN's average has no discriminator
    params = weights.check(params, wanted, f'the weights in {folder}')  # half precision on disk is float32 here
    return Loaded(config, built, jax.tree.map(jax.numpy.asarray, params), folder.resolve().name, step, folder)


def _from_run(folder):
    from t3d.checkpoint import store
    from t3d.train import workdirs

    config = workdirs.stored_config(folder)
    reader = store.Store(folder / 'checkpoints', read_only=True)
    try:
        return reader.restore_ema(), workdirs.as_saved(config, reader), reader.latest()
    finally:
        reader.close()


def _nothing_there(folder) -> str:
    """The message for a folder that holds no model: what it is, the nearest that does, and what to do."""
    if (folder / 'config.json').exists():
        return (
            f'no checkpoint yet in {folder}: the same `t3d train ... --workdir {files.quoted(folder)}` again goes on with it.'
        )
    is_what = 'holds neither checkpoints nor model.safetensors' if folder.exists() else 'does not exist'
    runs = sorted(pathlib.Path('runs').glob('*/checkpoints'), key=lambda path: path.stat().st_mtime)
    runs = [str(path.parent) for path in runs]
    near = difflib.get_close_matches(str(folder), [*runs, *shipped()], 1, 0.75)
    hint = f'Did you mean {near[0]}? ' if near else f'The newest run here: {runs[-1]}. ' if runs else ''
    return (
        f'missing weights: {folder} {is_what}. {hint}Wanted a run folder, a folder with model.safetensors and config.json, '
        f'or a name of shipped weights ({", ".join(shipped()) or "none"}).'
    )


def _choose_shipped(system: str | None) -> str:
    """The name of the shipped weights that are called so, or of a system called so; None takes `DEFAULT` or the first."""
    systems_of = {name: _system_of(path) for name, path in shipped().items()}
    names = sorted(systems_of, key=lambda name: name != DEFAULT)
    found = names if system is None else [name for name in names if name == system]
    found = found or [name for name in names if systems_of[name] == SHORT.get(system, system)]
    if found:
        return found[0]
    near = difflib.get_close_matches(str(system), [*names, *systems_of.values()], 1)
    hint = f'Did you mean {near[0]}? ' if near else ''
    example = SHORT.get(system, system) if SHORT.get(system, system) in systems.SYSTEMS else 'instant3d'
    raise FileNotFoundError(
        f'no weights for {system or "any system"} come with t3d (there are: {", ".join(sorted(names)) or "none"}). {hint}'
        f'Train some: `t3d train configs/{example}.py:tiny`, then `t3d generate PROMPT --run runs/0001-...`; '
        'or give a folder with model.safetensors and config.json: --weights DIR, or T3D_WEIGHTS=DIR.'
    )


def _system_of(folder: pathlib.Path) -> str:
    """The system that shipped weights are of, without loading them."""
    return json.loads((folder / 'config.json').read_text())['system']


def with_data(loaded: Loaded, path: str | None = None) -> Loaded:
    """The same model with the data set that it is to be scored on: `path`, else the one its config names.

    A relative `data.path` is looked for in the working directory, then in the folders above the run.

    Raises:
      UsageError: there is nothing at that path.
    """
    own = loaded.config.data.get('path', '')
    given = path or own
    if not given or '://' in given:
        return loaded
    above = pathlib.Path(loaded.folder).resolve().parents if loaded.folder is not None and not path else ()
    places = [files.local(given), *(folder / given for folder in above)]
    place = next((place for place in places if place.exists()), None)
    if place is None and path:
        raise UsageError(f'--data {path} does not exist: give the folder or zip of the data set.')
    if place is None:
        raise UsageError(f'data.path={own!r} of {loaded.name} is neither here nor above its folder: give it with --data DIR.')
    tree = loaded.config.to_dict()
    return loaded._replace(config=configs.from_dict({**tree, 'data': {**tree['data'], 'path': str(place)}}))


def check_prompts(config, prompts: list[str]) -> None:
    """Raises UsageError for a prompt that is empty, too long, or has words the model of a config cannot read.

    A model with an open vocabulary reads every word; those it never met are named on stderr.
    """
    from t3d.core import tokens

    for prompt in prompts:
        if any('\ud800' <= character <= '\udfff' for character in prompt):  # bytes of the command line in another encoding
            raise UsageError(f'the prompt {ascii(prompt)} is no text in UTF-8: set the encoding of the terminal to UTF-8.')
        if not tokens.split_words(prompt):
            raise UsageError(f'empty prompt {tokens.quoted(prompt)!r}: give words, in quotes.')
    if 'text' not in config:  # a GAN: the prompt is a name
        return
    tokens.make(config.text)(list(prompts))
    if config.text.get('open_vocabulary', False):
        new = {word for prompt in prompts for word in tokens.split_words(prompt)} - set(config.text.words)
        if new:
            print(f'note: words that this model never read, all alike to it: {", ".join(sorted(new))}', file=sys.stderr)


def generate(loaded: Loaded, prompts: list[str], seeds: list[int]) -> list[tuple[int, Asset]]:
    """(seed, asset) for every seed and prompt; the same seed gives the same asset whatever the other prompts are."""
    check_prompts(loaded.config, prompts)
    found = []
    for seed in seeds:
        for prompt in prompts:
            found += [(seed, asset) for asset in loaded.system.generate(loaded.params, [prompt], prng.key(seed))]
    return found


def save_weights(loaded: Loaded, folder: str | os.PathLike, dtype=None) -> None:
    """Writes `model.safetensors` and `config.json`: what `load` reads and what is shared. Their `steps` is the step reached.

    What a run says of itself goes along where it is there: `scores.json`, `metrics.jsonl`, `environment.json`.
    """
    from t3d.checkpoint import weights

    weights.save(folder, loaded.params, configs.from_dict({**loaded.config.to_dict(), 'steps': loaded.step}), dtype)
    for name in ALONG if loaded.folder is not None else ():
        if (epath.Path(loaded.folder) / name).exists():
            (epath.Path(folder) / name).write_bytes((epath.Path(loaded.folder) / name).read_bytes())
