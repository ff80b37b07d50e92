"""The tensors of a `torch.save` file of PyTorch before 1.6, read as data: no unpickler runs, nothing is imported or called.

Such a file is five pickles (a magic number, a version, facts on the machine, the object, the list of storages), then the bytes
of each storage. We walk the opcodes of the object ourselves and understand only what a state dictionary of tensors needs;
everything else is refused by name. It serves the judges' files, whose SHA-256 is known (checkpoint/judges.py), and dictionaries
of EG3D's arrays (checkpoint/convert_eg3d.py); a pickle for any other network is refused (checkpoint/torch_files.py).
"""

import io
import math
import pathlib
import pickletools
from typing import NamedTuple

import numpy as np

from t3d.checkpoint.torch_files import BadWeights

MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {'FloatStorage': '<f4', 'HalfStorage': '<f2', 'DoubleStorage': '<f8', 'LongStorage': '<i8', 'IntStorage': '<i4'}
DICT, REBUILD = 'collections OrderedDict', 'torch._utils _rebuild_tensor_v2'
PUSHED = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
LITERALS = ('BININT', 'BININT1', 'BININT2', 'LONG1', 'BINUNICODE')
EMPTY = {'EMPTY_TUPLE': tuple, 'EMPTY_DICT': dict, 'EMPTY_LIST': list}
_MARK = object()


class _Global(NamedTuple):
    """A name in the pickle; only ever compared."""

    name: str


class _Tensor(NamedTuple):
    """A view of a storage, counted in elements."""

    storage: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read(path) -> dict[str, np.ndarray]:
    """Tensors by name of a state dictionary saved by PyTorch before 1.6.

    Raises:
      BadWeights: another format (PyTorch's zip), anything in the pickle but tensors, or a file cut short.
    """
    path = pathlib.Path(path)
    file = io.BytesIO(path.read_bytes())
    try:
        if _walk(file) != MAGIC:
            raise ValueError('the first pickle is not the magic number')
        for _ in range(2):  # version; facts on the machine
            _walk(file)
        state, keys = _walk(file), _walk(file)
        if not isinstance(state, dict) or not all(isinstance(value, _Tensor) for value in state.values()):
            raise ValueError('the object is not a flat dictionary of tensors')
        storages = _read_storages(file, keys, {value.storage: value.dtype for value in state.values()})
        return {name: _view(value, storages[value.storage]) for name, value in state.items()}
    except BadWeights:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise BadWeights(
            f'{path} is not a state dictionary saved by PyTorch before 1.6, or it is damaged ({error}): install it again.'
        ) from error


def _read_storages(file, keys: list[str], dtypes: dict[str, str]) -> dict[str, np.ndarray]:
    storages = {}
    for key in keys:
        count = int.from_bytes(file.read(8), 'little')
        dtype = np.dtype(dtypes[key])
        data = file.read(count * dtype.itemsize)
        if len(data) != count * dtype.itemsize:
            raise ValueError(f'storage {key} is cut short')
        storages[key] = np.frombuffer(data, dtype)
    return storages


def _view(tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    """The tensor, copied out of its storage; weights that came from TensorFlow are stored transposed."""
    if len(tensor.shape) != len(tensor.stride) or min((tensor.offset, *tensor.shape, *tensor.stride)) < 0:
        raise ValueError(f'a tensor of shape {tensor.shape}, strides {tensor.stride} and offset {tensor.offset}')
    if math.prod(tensor.shape) == 0:
        return np.zeros(tensor.shape, storage.dtype)
    last = tensor.offset + sum((count - 1) * step for count, step in zip(tensor.shape, tensor.stride))
    if last >= storage.size or math.prod(tensor.shape) > storage.size:
        raise ValueError(f'a tensor of shape {tensor.shape} reaches past its storage')
    steps = [step * storage.itemsize for step in tensor.stride]
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, steps, writeable=False).copy()


def _walk(file):
    """The value of the next pickle in `file`: numbers, strings, containers, `_Global` and `_Tensor`."""
    stack, memo = [], {}
    for op, argument, _ in pickletools.genops(file):
        name = op.name
        if name == 'STOP':
            return stack.pop()
        if name in LITERALS:
            stack.append(argument)
        elif name in PUSHED:
            stack.append(PUSHED[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == 'MARK':
            stack.append(_MARK)
        elif name in ('BINPUT', 'LONG_BINPUT'):
            memo[argument] = stack[-1]
        elif name in ('BINGET', 'LONG_BINGET'):
            stack.append(memo[argument])
        elif name in ('TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3'):
            items = _since_mark(stack) if name == 'TUPLE' else [stack.pop() for _ in range(int(name[-1]))][::-1]
            stack.append(tuple(items))
        elif name == 'APPENDS':
            items = _since_mark(stack)
            stack[-1].extend(items)
        elif name == 'SETITEM':
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif name == 'SETITEMS':
            items = _since_mark(stack)
            stack[-1].update(zip(items[::2], items[1::2]))
        elif name == 'GLOBAL':
            stack.append(_Global(argument))
        elif name == 'BINPERSID':
            stack.append(_storage(stack.pop()))
        elif name == 'REDUCE':
            arguments, function = stack.pop(), stack.pop()
            stack.append(_reduce(function, arguments))
        elif name == 'BUILD':  # attributes of the dictionary (version numbers of modules)
            stack.pop()
        elif name != 'PROTO':
            raise ValueError(f'opcode {name}')
    raise ValueError('a pickle without an end')


def _since_mark(stack: list) -> list:
    items = []
    while stack[-1] is not _MARK:
        items.append(stack.pop())
    stack.pop()
    return items[::-1]


def _storage(persistent) -> tuple[str, str]:
    """(key, dtype) of ('storage', class, key, device, element count, view)."""
    kind, storage, key, _, _, view = persistent
    name = storage.name.removeprefix('torch ')
    if kind != 'storage' or view is not None or name not in STORAGES:
        raise ValueError(f'a persistent {kind} of class {storage.name}')
    return key, STORAGES[name]


def _reduce(function, arguments):
    if function == _Global(DICT) and not arguments:
        return {}
    if function == _Global(REBUILD):
        (key, dtype), offset, shape, stride, _, _ = arguments
        return _Tensor(key, dtype, offset, shape, stride)
    raise ValueError(f'a call of {getattr(function, "name", function)!r}, which is not run')
