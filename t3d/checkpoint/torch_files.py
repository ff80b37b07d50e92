"""Weight files of PyTorch projects, read without running anything in them: safetensors only, memory-mapped.

A component folder is one part of a diffusers or transformers pipeline (`unet/`, `vae/`, `text_encoder/`): `config.json`
beside `diffusion_pytorch_model.safetensors` or `model.safetensors`, or several files listed by `*.safetensors.index.json`,
possibly in a variant (`model.fp16.safetensors`). Pickles (.bin, .pt, .ckpt) can run any program when opened; they are
refused by name, with the way to convert them.
"""

import hashlib
import json
import math
import pathlib
import re
from typing import NamedTuple

import ml_dtypes
import numpy as np

from t3d.core import files as paths
from t3d.core import text as texts
from t3d.core.errors import UsageError

STEMS = ('diffusion_pytorch_model', 'model')  # diffusers, transformers
PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.pickle')
DTYPES = {  # of the safetensors format; its own numpy reader lacks bfloat16
    'BF16': ml_dtypes.bfloat16,
    'F16': np.float16,
    'F32': np.float32,
    'F64': np.float64,
    'BOOL': np.bool_,
    'I8': np.int8,
    'I16': np.int16,
    'I32': np.int32,
    'I64': np.int64,
    'U8': np.uint8,
    'U16': np.uint16,
    'U32': np.uint32,
    'U64': np.uint64,
}
TO_SAFETENSORS = (
    "python -c \"import torch, safetensors.torch as s; d = torch.load('{0}', map_location='cpu', weights_only=True); "
    "d = d.get('state_dict', d); s.save_file({{k: v.clone().contiguous() for k, v in d.items() if hasattr(v, 'shape')}}, "
    "'{1}')\""
)
_MOST_HEADER = 100_000_000  # bytes, the limit of the format's own library


class BadWeights(UsageError):
    """A weight file, or a folder of them, that cannot be read. The message names file and key."""


class Stored(NamedTuple):
    """Tensors as stored.

    Attributes:
      tensors: key -> array in the shape and dtype of the file, backed by the file: read when touched, not writable.
      sources: key -> the file that holds it.
      files: the weight files, in order.
    """

    tensors: dict[str, np.ndarray]
    sources: dict[str, pathlib.Path]
    files: tuple[pathlib.Path, ...]


def read(folder, *, variant: str | None = None) -> dict[str, np.ndarray]:
    """All tensors of a component folder, or of one .safetensors file, by key, in the dtypes of the file.

    Args:
      folder: a component folder or a file.
      variant: for example 'fp16'. None takes the files without a variant, or the one variant there is.
    Raises:
      BadWeights: nothing to read, a missing shard, a damaged file, or a pickle.
    """
    return open_stored(folder, variant=variant).tensors


def open_stored(folder, *, variant: str | None = None) -> Stored:
    """`read`, with the file of every key."""
    folder = pathlib.Path(folder)
    if folder.is_file():
        tensors = map_file(folder)
        return Stored(tensors, dict.fromkeys(tensors, folder), (folder,))
    index = _choose(folder, variant)
    if index.suffix != '.json':
        tensors = map_file(index)
        return Stored(tensors, dict.fromkeys(tensors, index), (index,))
    return _read_sharded(index)


def digest(path) -> str:
    """sha256 of a file, in hexadecimal."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def read_config(folder, name: str = 'config.json') -> dict:
    """A JSON file of a component folder."""
    path = pathlib.Path(folder) / name
    if not path.is_file():
        raise BadWeights(f'no {name} in {folder}. {_what_is_there(pathlib.Path(folder))}')
    try:
        config = json.loads(texts.decode(path.read_bytes()))
    except (ValueError, RecursionError) as error:
        raise BadWeights(f'{path} is damaged ({error}): copy it again.') from error
    if not isinstance(config, dict):
        raise BadWeights(f'{path} holds a {type(config).__name__}: wanted an object of settings.')
    return config


def map_file(path) -> dict[str, np.ndarray]:
    """Tensors of one safetensors file, memory-mapped.

    Raises:
      BadWeights: the name or the bytes are those of a pickle, or the header and the bytes disagree.
    """
    path = pathlib.Path(path)
    _refuse_pickle(path)
    data = np.memmap(path, np.uint8, mode='r') if path.stat().st_size else np.zeros(0, np.uint8)
    start, header = _header(path, data)
    tensors = {}
    for key, entry in header.items():
        if key != '__metadata__':
            tensors[key] = _tensor(path, data, start, key, entry)
    return tensors


def write(path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file that torch's readers take."""
    from safetensors.numpy import save_file

    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = paths.part_of(path)
    save_file({key: np.asarray(value, order='C') for key, value in tensors.items()}, partial, metadata={'format': 'pt'})
    partial.replace(path)


def _choose(folder: pathlib.Path, variant: str | None) -> pathlib.Path:
    """The index or the single file to read."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    files = {}  # variant or '' -> file; an index goes before the single file, which some tools leave behind
    for stem in STEMS:
        for name in names:
            single = re.fullmatch(rf'{stem}(?:\.([\w-]+))?\.safetensors', name)
            index = re.fullmatch(rf'{stem}(?:\.([\w-]+))?\.safetensors\.index(?:\.([\w-]+))?\.json', name)
            if single and not re.search(r'-\d+-of-\d+', name):
                files.setdefault(single[1] or '', folder / name)
            elif index:
                files[index[1] or index[2] or ''] = folder / name
    if variant is None and '' not in files and len(files) == 1:
        return next(iter(files.values()))
    if (variant or '') in files:
        return files[variant or '']
    if files:
        there = ', '.join(name or 'none' for name in files)
        raise BadWeights(f'no weights of variant {variant or "none"} in {folder}: choose variant from {there}.')
    for name in names:
        _refuse_pickle(folder / name)
    expected = ' or '.join(f'{stem}.safetensors' for stem in STEMS)
    raise BadWeights(f'no weights in {folder}: wanted {expected}. {_what_is_there(folder)}')


def _read_sharded(index: pathlib.Path) -> Stored:
    listed = read_config(index.parent, index.name).get('weight_map')
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise BadWeights(f'{index} has no weight_map of key to file name: copy it again.')
    names = sorted(set(listed.values()))
    for name in names:
        if pathlib.PurePath(name).name != name or not name.endswith('.safetensors'):
            raise BadWeights(f'{index} names the file {name!r}: wanted .safetensors files of the same folder.')
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise BadWeights(
            f'missing shard: {", ".join(missing)} of {len(names)} files listed in {index} '
            f'(holds {next(key for key, name in listed.items() if name == missing[0])} among others). Copy it into the folder.'
        )
    shards = {name: map_file(index.parent / name) for name in names}
    for key, name in listed.items():
        if key not in shards[name]:
            raise BadWeights(f'{index.parent / name} lacks {key}, which {index.name} places there: copy both again.')
    tensors = {key: shards[name][key] for key, name in listed.items()}
    tensors |= {key: value for shard in shards.values() for key, value in shard.items() if key not in tensors}
    places = {key: index.parent / name for name, shard in shards.items() for key in shard}
    return Stored(tensors, {key: places[key] for key in tensors}, tuple(index.parent / name for name in names))


def _header(path: pathlib.Path, data: np.ndarray) -> tuple[int, dict]:
    """(first byte of the tensors, the parsed header)."""
    start = bytes(data[:4])
    size = int.from_bytes(bytes(data[:8]), 'little') if len(data) >= 8 else -1
    if not 2 <= size <= min(_MOST_HEADER, len(data) - 8):
        if start[:1] == b'\x80' or start == b'PK\x03\x04':
            raise BadWeights(f'{path} holds a pickle under the name of a safetensors file: refused, nothing in it was run.')
        hint = ' It is a pointer of Git LFS: fetch the file itself.' if start == b'vers' else ''
        raise BadWeights(f'{path} is not a whole safetensors file ({len(data)} bytes): copy or download it again.{hint}')
    try:
        header = json.loads(bytes(data[8 : 8 + size]))
    except (ValueError, RecursionError) as error:
        raise BadWeights(f'{path} is damaged (its header: {error}): copy or download it again.') from error
    if not isinstance(header, dict):
        raise BadWeights(f'{path} is damaged (its header is no object): copy or download it again.')
    return 8 + size, header


def _tensor(path, data, start, key, entry) -> np.ndarray:
    try:
        name, shape, (first, last) = entry['dtype'], tuple(map(int, entry['shape'])), map(int, entry['data_offsets'])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadWeights(f'{path} is damaged (the entry of {key}): copy or download it again.') from error
    if not isinstance(name, str) or name not in DTYPES:
        raise BadWeights(f'{path}: {key} is stored as {name}; read here are {", ".join(DTYPES)}. Save it in one of them.')
    dtype = np.dtype(DTYPES[name])
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or first < 0 or last - first != size or start + last > len(data):
        raise BadWeights(f'{path} is damaged or cut short ({key}, {name} {shape}): copy or download it again.')
    if not size:
        return np.zeros(shape, dtype)
    return np.asarray(data[start + first : start + last]).view(dtype).reshape(shape)


def _refuse_pickle(path: pathlib.Path) -> None:
    if path.suffix.lower() in PICKLES:
        command = TO_SAFETENSORS.format(path.name, path.with_suffix('.safetensors').name)
        raise BadWeights(
            f'{path} is a pickle, which can run any program when opened: refused. Where you trust it, turn it into '
            f'safetensors with PyTorch, in its folder: {command}'
        )


def _what_is_there(folder: pathlib.Path) -> str:
    """What a wrong folder is, and the nearest right one."""
    if not folder.exists():
        return 'The folder does not exist.'
    parts = [path.parent.name for path in sorted(folder.glob('*/config.json'))]
    if (folder / 'model_index.json').is_file() or parts:
        return f'It is a folder of components: give one of them: {", ".join(parts) or "none is there"}.'
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else [f'{folder.name} itself is a file']
    return f'There: {", ".join(names[:8]) or "nothing"}.'
