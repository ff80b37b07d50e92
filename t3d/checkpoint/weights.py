"""A folder of weights to share: `model.safetensors` and `config.json`. Never pickle."""

import jax
import numpy as np
from etils import epath

from t3d.checkpoint.torch_files import DTYPES
from t3d.core import config as configs
from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.core.typing import PyTree

FILE, CONFIG = 'model.safetensors', 'config.json'


class MissingWeights(UsageError, FileNotFoundError):
    """The folder lacks a file."""


def save(folder, params: PyTree, config, dtype=None) -> None:
    """Writes params (nested dictionaries) and config into a folder, floating leaves cast to `dtype` if given."""
    from safetensors.numpy import save as to_bytes

    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    params = trees.cast(params, dtype) if dtype is not None else params
    leaves = {name: np.asarray(leaf, order='C') for name, leaf in trees.flatten(jax.device_get(params)).items()}
    (folder / FILE).write_bytes(to_bytes(leaves, metadata={'format': 't3d 1'}))
    (folder / CONFIG).write_text(configs.to_json(config))


def load(folder) -> tuple[PyTree, object]:
    """(params as nested dictionaries of numpy arrays, config) of a folder."""
    from safetensors import SafetensorError, deserialize

    folder = epath.Path(folder)
    require(folder)
    try:
        stored = deserialize((folder / FILE).read_bytes())
    except SafetensorError as error:
        raise UsageError(f'{folder / FILE} is damaged ({error}): copy or download it again.') from error
    leaves = {name: np.frombuffer(leaf['data'], DTYPES[leaf['dtype']]).reshape(leaf['shape']) for name, leaf in stored}
    return trees.unflatten(leaves), configs.from_json((folder / CONFIG).read_text())


def check(params: PyTree, abstract: PyTree, where: str = 'weights') -> PyTree:
    """params in the dtypes of `abstract`; raises with a short list where names or shapes differ."""
    have, want = trees.flatten(params), trees.flatten(abstract)
    lines = trees.mismatch(have, want)
    if lines:
        raise UsageError(f'{where} do not fit the model of their config:\n' + '\n'.join(lines))
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
