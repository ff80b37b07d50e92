"""A folder of weights to share: `model.safetensors` and `config.json`. Never pickle."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from t3d.checkpoint.torch_files import DTYPES
from t3d.core import config as configs
from t3d.core import files
from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.core.typing import PyTree

FILE, CONFIG = 'model.safetensors', 'config.json'
LOST = 0.02  # share of an array's norm; rounding alone takes 2^-8 in bfloat16


class MissingWeights(UsageError, FileNotFoundError):
    """The folder lacks a file."""


def save(folder, params: PyTree, config, dtype=None) -> None:
    """Writes params (nested dictionaries) and config into a folder, floating leaves cast to `dtype` if given."""
    from safetensors.numpy import save as to_bytes

    leaves = {name: np.asarray(leaf, order='C') for name, leaf in trees.flatten(jax.device_get(params)).items()}
    leaves = {name: _cast(name, leaf, dtype) for name, leaf in leaves.items()}
    folder = files.path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / FILE, to_bytes(leaves, metadata={'format': 't3d 1'}))
    files.write(folder / CONFIG, configs.to_json(config))


def _cast(name: str, leaf: np.ndarray, dtype) -> np.ndarray:
    """The array in `dtype` if it is a floating one; UsageError where its values do not survive."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    if not np.isfinite(leaf).all():
        raise UsageError(f'not written: {name} holds NaN or infinity. Take the weights of an earlier checkpoint.')
    with np.errstate(over='ignore'):
        new = leaf if dtype is None else leaf.astype(jnp.dtype(dtype))
    wide, back = np.float64(leaf), np.float64(new)
    if not np.isfinite(back).all():
        largest = f'{np.abs(wide).max():.4g} is beyond {float(jnp.finfo(new.dtype).max):.5g}, the largest number of {new.dtype}'
        raise UsageError(f'not written: {name} would hold infinity: {largest}. Write float32.')
    if new.dtype.itemsize < leaf.dtype.itemsize and np.linalg.norm(back - wide) > LOST * np.linalg.norm(wide):
        what = f'its values (at most {np.abs(wide).max():.2g}) are too small for {new.dtype}'
        raise UsageError(f'not written: {name} would vanish: {what}. Write float32.')
    return new


def load(folder) -> tuple[PyTree, object]:
    """(params as nested dictionaries of numpy arrays, config) of a folder."""
    from safetensors import SafetensorError, deserialize

    folder = epath.Path(folder)
    require(folder)
    try:
        stored = deserialize((folder / FILE).read_bytes())
    except SafetensorError as error:
        raise UsageError(f'{folder / FILE} is damaged ({error}): copy or download it again.') from error
    unread = [f'{name} ({leaf["dtype"]})' for name, leaf in stored if leaf['dtype'] not in DTYPES]
    names = {name for name, _ in stored}
    unread += [name for name in sorted(names) if any(str(parent) in names for parent in pathlib.PurePosixPath(name).parents)]
    if unread:
        raise UsageError(f'{folder / FILE} holds {unread[0]}, which is no array of t3d: convert it, or copy the folder again.')
    leaves = {name: np.frombuffer(leaf['data'], DTYPES[leaf['dtype']]).reshape(leaf['shape']) for name, leaf in stored}
    spoilt = [name for name, leaf in leaves.items() if not np.isfinite(leaf).all()]
    if spoilt:
        more = f' and {len(spoilt) - 1} more' if len(spoilt) > 1 else ''
        raise UsageError(f'{folder / FILE} holds NaN or infinity in {spoilt[0]}{more}: copy it again, or take other weights.')
    return trees.unflatten(leaves), configs.read(folder / CONFIG)


def check(
    params: PyTree, abstract: PyTree, where: str = 'weights', model: str = 'the model of their config', advice: str = ''
) -> PyTree:
    """params in the dtypes of `abstract`; raises with a short list where names or shapes differ, and then the advice."""
    have, want = trees.flatten(params), trees.flatten(abstract)
    lines = trees.mismatch(have, want)
    if lines:
        raise UsageError(f'{where} do not fit {model}:\n' + '\n'.join([*lines, advice]).rstrip())
    return trees.unflatten({name: have[name].astype(want[name].dtype) for name in want})


def require(folder, hint: str = '') -> None:
    """Raises with the missing file names, the folder and the next step unless both files are there."""
    folder = epath.Path(folder)
    missing = [name for name in (FILE, CONFIG) if not (folder / name).exists()]
    if missing:
        hint = hint or (
            'Give a folder that holds them with --weights DIR or T3D_WEIGHTS=DIR, or make one from a run: '
            '`t3d weights RUN OUT`.'
        )
        raise MissingWeights(f'missing weights: {" and ".join(missing)} not found in {folder.resolve()}. {hint}')
