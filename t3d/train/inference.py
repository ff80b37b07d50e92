"""From a run folder or a weights folder and prompts to assets."""

import os
import pathlib
from typing import NamedTuple

import jax

from t3d import systems
from t3d.core.system import Asset, System
from t3d.core.typing import PyTree

SHIPPED = pathlib.Path(__file__).resolve().parents[1] / 'assets'


class Loaded(NamedTuple):
    """A trained system, ready to generate."""

    config: object
    system: System
    params: PyTree  # EMA weights
    name: str  # the folder's name, for titles
    step: int


def shipped() -> dict[str, pathlib.Path]:
    """Weights that come with the package: name -> folder."""
    return {path.parent.name: path.parent for path in sorted(SHIPPED.glob('*/model.safetensors'))}


def load(folder: str | os.PathLike | None = None, system: str | None = None) -> Loaded:
    """Reads a run folder, or a weights folder (`model.safetensors` and `config.json`), or weights shipped under a name.

    Args:
      folder: the folder, or None for $T3D_WEIGHTS, else the shipped weights of `system` (the first ones if None).
    Raises:
      FileNotFoundError: neither weights nor checkpoints there; the message says what was looked for and what to do.
    """
    from t3d.checkpoint import store, weights
    from t3d.core import config as configs

    folder = folder or os.environ.get('T3D_WEIGHTS') or _choose_shipped(system)
    folder = shipped().get(str(folder), pathlib.Path(folder))
    if (folder / 'checkpoints').is_dir() and not (folder / 'model.safetensors').exists():
        config = configs.from_json((folder / 'config.json').read_text())
        reader = store.Store(folder / 'checkpoints', read_only=True)
        step = reader.latest()
        params = reader.restore_ema()
        reader.close()
    else:
        params, config = weights.load(folder)
        config, step = configs.from_dict(config) if isinstance(config, dict) else config, int(config['steps'])
    built = systems.make(config)
    abstract = jax.eval_shape(built.init, jax.random.key(0), built.batch_spec).params
    weights.check(params, abstract)
    return Loaded(config, built, jax.tree.map(jax.numpy.asarray, params), folder.name, step)


def _choose_shipped(system: str | None) -> str:
    names = shipped()
    for name in names:
        if system is None or name.startswith(system):
            return name
    raise FileNotFoundError(
        f'no weights for {system or "any system"} come with t3d (there are: {", ".join(names) or "none"}). '
        'Train some: `t3d train configs/instant3d.py:tiny`, then `t3d generate PROMPT --run runs/0001-...`; '
        'or give a folder with model.safetensors and config.json: --weights DIR, or T3D_WEIGHTS=DIR.'
    )


def generate(loaded: Loaded, prompts: list[str], seeds: list[int]) -> list[tuple[int, Asset]]:
    """(seed, asset) for every seed and prompt; the same seed gives the same asset whatever the other prompts are."""
    found = []
    for seed in seeds:
        for prompt in prompts:
            found += [(seed, asset) for asset in loaded.system.generate(loaded.params, [prompt], jax.random.key(seed))]
    return found


def save_weights(loaded: Loaded, folder: str | os.PathLike, dtype=None) -> None:
    """Writes `model.safetensors` and `config.json`: what `load` reads and what is shared."""
    from t3d.checkpoint import weights

    weights.save(folder, loaded.params, loaded.config, dtype)
