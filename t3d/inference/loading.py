"""From a run folder or a weights folder to a model that generates."""

import contextlib
import difflib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from t3d import systems
from t3d.core import config as configs
from t3d.core import files, precision, prng, tables
from t3d.core.errors import UsageError
from t3d.core.outputs import Output, Request
from t3d.core.system import Given, System, params_of, weights_of
from t3d.core.typing import PyTree
from t3d.inference import given as givens

DEFAULT = 'instant3d-scenes'  # of the shipped weights, where none are asked for
COPIED_FILES = ('scores.json', 'metrics.jsonl', 'environment.json')
SHIPPED = pathlib.Path(__file__).resolve().parents[1] / 'assets'


class Loaded(NamedTuple):
    """A trained system, ready to generate.

    Attributes:
      weights: what the system's `weights` name.
      name: the folder's name, for titles.
      given: the other models it uses, by name.
    """

    config: object
    system: System
    weights: PyTree
    name: str
    step: int
    folder: os.PathLike | None = None
    given: Mapping[str, Given] = {}

    @property
    def run(self) -> os.PathLike | None:
        """The folder if it is that of a run, where sheets and scores may be left; None for weights."""
        return self.folder if self.folder is not None and (epath.Path(self.folder) / 'checkpoints').exists() else None

    def generate(self, requests: list[Request | str], keys) -> list[Output]:
        """One output for each request (a text stands for a prompt) and key [N]; it depends on these two alone."""
        requests = [Request(request) if isinstance(request, str) else request for request in requests]
        return self.system.generate(self.weights, requests, keys, params_of(self.given))


def shipped() -> dict[str, pathlib.Path]:
    """Weights that come with the package: name -> folder."""
    return {path.parent.name: path.parent for path in sorted(SHIPPED.glob('*/model.safetensors'))}


def load(
    folder: str | os.PathLike | None = None, system: str | None = None, *, given: Mapping[str, str] | None = None
) -> Loaded:
    """Reads a run folder, or a weights folder (`model.safetensors` and `config.json`), or weights shipped under a name.

    Args:
      folder: the folder, or None for the shipped weights of `system`, or without one $T3D_WEIGHTS, else `DEFAULT`.
      given: other models to use than those that the config names, by name.
    Raises:
      FileNotFoundError: neither weights nor checkpoints there; the message says what was looked for and what to do.
    """
    from t3d.checkpoint import weights

    folder = folder or (None if system else os.environ.get('T3D_WEIGHTS')) or _choose_shipped(system)
    folder = files.path(shipped().get(str(folder), folder))
    try:
        if (folder / weights.FILE).exists():
            weights.require(folder, 'A weights folder needs both files.')
            tree, config = weights.load(folder)
            step, recorded = int(config.steps), {}
        elif (folder / 'checkpoints').is_dir() and (folder / weights.CONFIG).exists():
            tree, config, step, recorded = _from_run(folder)
        else:
            raise FileNotFoundError(_nothing_there(folder))
        tables.refuse_inside([value for value in configs.flatten(config).values() if isinstance(value, str)], folder)
        others = open_given(config, folder, given)
        own = {name: one for name, one in others.items() if name not in (given or {})}
        givens.refuse_other(own, recorded, folder, 'copy the run again, or give that one with --given NAME=MODEL.')
        givens.require_weights(others)
        built = systems.make(config, others)
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # what a changed letter of the JSON can lead to
        why = f'{type(error).__name__}: {error}'.splitlines()[0]
        raise UsageError(
            f'{folder / weights.CONFIG} is damaged, or of another version of t3d ({why}): copy it again, or train anew.'
        ) from error
    state = jax.eval_shape(built.init, prng.key(0), built.batch_spec, params_of(others))
    tree = weights.check(tree, weights_of(state, built.weights), f'the weights in {folder}')  # half precision is float32 here
    return Loaded(config, built, jax.tree.map(jax.numpy.asarray, tree), folder.resolve().name, step, folder, others)


def open_given(
    config, folder=None, others: Mapping[str, str] | None = None, *, random: bool = False, kept_first: bool = True
) -> dict[str, Given]:
    """{name: Given} of a config's `given` section; names with an empty value are left out.

    Args:
      folder: of the run or weights that the config is of; what it keeps in given/ comes first, or, not `kept_first`, where
        the config's value is not there any more: a run that goes on is to meet what its command names (`refuse_other`).
      others: values that go before all, for example from the command line.
      random: a config's model gets random weights, for benchmarks; else abstract ones.
    """
    configured = dict(config.get('given', {}))
    unknown = sorted(set(others or {}) - set(configured))
    if unknown and not configured:
        raise UsageError(f'given.{unknown[0]}={others[unknown[0]]!r}: {config.system} uses no other model: leave it out.')
    if unknown:
        raise UsageError(configs.unknown(unknown[0], configured, f'given of {config.system}'))
    opened = {}
    for name, value in configured.items():
        kept = None if folder is None else epath.Path(folder) / givens.FOLDER / name
        if (others or {}).get(name):
            opened[name] = open_one(name, others[name], random=random, config=config)
        elif kept is not None and kept.exists() and (kept_first or not _is_there(value)):
            opened[name] = open_one(name, str(kept), random=random)
        elif value:
            opened[name] = open_one(name, value, random=random, config=config)
    return opened


def _is_there(value: str) -> bool:
    return bool(value) and not givens.is_config(value) and (value in shipped() or epath.Path(value).exists())


def open_one(name: str, value: str, *, random: bool = False, config=None) -> Given:
    """The model that one value names; `config`: of the system that it is given to.

    Raises:
      UsageError, FileNotFoundError: nothing there, or not a model; the message has the name of the given and the next step.
    """
    from t3d.inference import likenesses, offers, priors, shapes, toy_pictures

    if givens.is_config(value):
        return of_config(configs.load(value), value, random=random)
    try:
        if shapes.is_shapes(value):
            own = config or {}
            return shapes.open_shapes(value, own.get('text'), random=random, dtype=precision.policy(own).compute)
        if toy_pictures.is_toy(value):
            return toy_pictures.open_toy(value)
        if likenesses.is_likeness(value):
            return likenesses.open_likeness(value, config)
        if priors.is_pipeline(value):
            return priors.open_pipeline(value)._replace(digest=priors.digest_of_files(value))
        if _holds_no_model(value) and (meant := offers.meant(name, value, config, _systems_of_shipped())):
            raise FileNotFoundError(meant)
        loaded = load(value)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'given.{name}={value!r}: {error}') from error
    except UsageError as error:
        raise UsageError(f'given.{name}={value!r}: {error}') from error
    if loaded.given and loaded.system.functions is None:
        others = ', '.join(loaded.given)
        raise UsageError(f'given.{name}={value!r} needs other models itself ({others}): give one that does not.')
    functions = loaded.system if loaded.system.functions is None else loaded.system.functions
    sharding = loaded.system.sharding
    params = {'weights': loaded.weights, 'given': params_of(loaded.given)} if loaded.given else loaded.weights
    return Given(functions, params, loaded.config, loaded.name, givens.digest(params), sharding, loaded.given)


def _holds_no_model(value: str) -> bool:
    """Whether a value is neither a name of shipped weights nor a folder with something of a run or of weights."""
    from t3d.checkpoint import weights

    folder = files.path(shipped().get(value, value))
    return not any((folder / part).exists() for part in (weights.CONFIG, weights.FILE, 'checkpoints'))


def of_config(config, name: str, *, random: bool = False) -> Given:
    """The model that a config describes, of abstract weights, or of random ones."""
    system = systems.make(_with_words(config))
    init = lambda: system.init(
        prng.key(0), {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in system.batch_spec.items()}, {}
    )
    state = jax.jit(init)() if random else jax.eval_shape(init)
    functions = system if system.functions is None else system.functions
    return Given(functions, weights_of(state, system.weights), config, name, '', system.sharding)


def _with_words(config):
    """A config whose vocabulary comes from data that need not be here gets made-up words."""
    text = config.get('text')
    if text is not None and not text.get('folder') and not text.words:
        with config.unlocked():
            text.words = tuple(f'word{k}' for k in range(max(text.get('vocabulary_size', 0), 1000) - 3))
    return config


def untrained(config, given: Mapping[str, str] | None = None) -> Loaded:
    """A system that has no weights of its own, for example one that only samples two given models."""
    others = open_given(config, None, given)
    built = systems.make(config, others)
    if built.weights:
        raise UsageError(
            f'{config.system} is trained before it generates: `t3d train CONFIG`, then `t3d generate PROMPT --run RUN`.'
        )
    givens.require_weights(others)
    return Loaded(config, built, {}, config.get('name', config.system), 0, None, others)


def untrained_of(loaded: Loaded, seed: int) -> Loaded:
    """The same system with the weights it starts from: what scores are read against."""
    batch = {name: np.zeros(spec.shape, spec.dtype) for name, spec in loaded.system.batch_spec.items()}
    state = loaded.system.init(prng.key(seed), batch, params_of(loaded.given))
    return loaded._replace(weights=weights_of(state, loaded.system.weights))


def _from_run(folder):
    from t3d.checkpoint import run_configs, store

    config = run_configs.read(folder)
    reader = store.Store(folder / 'checkpoints', read_only=True)
    try:
        tree, recorded = reader.restore_weights(), {}
        with contextlib.suppress(store.CorruptCheckpoint):  # said where the weights were read
            recorded = reader.describe()[0].get('given', {})
        return tree, run_configs.as_saved(config, reader), reader.latest(), recorded
    finally:
        reader.close()


def _nothing_there(folder) -> str:
    """The message for a folder that holds no model: what it is, the nearest that does, and what to do."""
    if (folder / 'config.json').exists():
        again = f'the same `t3d train ... --workdir {files.quoted(folder)}` again goes on with it'
        return f'no checkpoint yet in {folder}: {again}.'
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
    systems_of = _systems_of_shipped()
    names = sorted(systems_of, key=lambda name: name != DEFAULT)
    matching = names if system is None else [name for name in names if name == system]
    matching = matching or [name for name in names if systems_of[name] == systems.SHORT.get(system, system)]
    if matching:
        return matching[0]
    near = difflib.get_close_matches(str(system), [*names, *systems_of.values()], 1)
    hint = f'Did you mean {near[0]}? ' if near else ''
    example = systems.SHORT.get(system, system)
    example = example if example in systems.SYSTEMS else DEFAULT.partition('-')[0]
    raise FileNotFoundError(
        f'no weights for {system or "any system"} come with t3d (there are: {", ".join(sorted(names)) or "none"}). {hint}'
        f'Train some: `t3d train configs/{example}.py:tiny`, then `t3d generate PROMPT --run runs/0001-...`; '
        'or give a folder with model.safetensors and config.json: --weights DIR, or T3D_WEIGHTS=DIR.'
    )


def _systems_of_shipped() -> dict[str, str]:
    """{name: system} of the shipped weights, without loading them."""
    return {name: json.loads((folder / 'config.json').read_text())['system'] for name, folder in shipped().items()}


def generate(loaded: Loaded, requests: list[Request | str], seeds: list[int]) -> list[tuple[int, Output]]:
    """(seed, output) for every seed and request; the same seed gives the same output whatever the other requests are."""
    requests = [Request(request) if isinstance(request, str) else request for request in requests]
    loaded.system.check(requests)
    made = []
    for seed in seeds:
        keys = prng.each(prng.key(seed), 1)
        for request in requests:
            made += [(seed, output) for output in loaded.generate([request], keys)]
    return made


def with_data(loaded: Loaded, path: str | None = None) -> Loaded:
    """The same model with the data set that it is to be scored on: `path`, else the one its config names.

    A relative `data.path` is looked for in the working directory, then in the folders above the run.

    Raises:
      UsageError: there is nothing at that path.
    """
    own = loaded.config.get('data', {}).get('path', '')
    named = path or own
    if path and 'data' not in loaded.config:
        raise UsageError(f'--data {path}: {loaded.config.system} learned from no data set: leave it out.')
    if not named or '://' in named:
        return loaded
    above = pathlib.Path(loaded.folder).resolve().parents if loaded.folder is not None and not path else ()
    places = [files.local(named), *(folder / named for folder in above)]
    place = next((place for place in places if place.exists()), None)
    if place is None and path:
        raise UsageError(f'--data {path} does not exist: give the folder or zip of the data set.')
    if place is None and not loaded.given:  # pairs of a given generator are scored on the set that this was trained on
        raise UsageError(f'data.path={own!r} of {loaded.name} is neither here nor above its folder: give it with --data DIR.')
    if place is None:
        return loaded
    tree = loaded.config.to_dict()
    return loaded._replace(config=configs.from_dict({**tree, 'data': {**tree['data'], 'path': str(place)}}))


def save_weights(loaded: Loaded, folder: str | os.PathLike, dtype=None) -> None:
    """Writes `model.safetensors` and `config.json`: what `load` reads and what is shared. Their `steps` is the step reached.

    What a run says of itself goes along where it is there: `scores.json`, `metrics.jsonl`, `environment.json`.
    """
    from t3d.checkpoint import weights

    weights.save(folder, loaded.weights, configs.from_dict({**loaded.config.to_dict(), 'steps': loaded.step}), dtype)
    givens.keep(folder, loaded.given)
    for name in COPIED_FILES if loaded.folder is not None else ():
        if (epath.Path(loaded.folder) / name).exists():
            (epath.Path(folder) / name).write_bytes((epath.Path(loaded.folder) / name).read_bytes())
