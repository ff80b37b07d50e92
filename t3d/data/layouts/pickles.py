"""Pickles that cameras come in, read without running anything: numbers, texts, lists, dictionaries and NumPy arrays alone.

A pickle is a program that may name any function. Of those it names, only the makers of NumPy arrays and scalars are found
here; any other name ends the reading before it is imported. Objects of arrays (dtype object) are refused too.
"""

import io
import pathlib
import pickle
import pickletools
import re

import numpy as np

from t3d.data.sets.archives import Damaged

MOST_BYTES = 64 << 20
MOST_STEPS = 1 << 20  # instructions of the pickle
NPY = b'\x93NUMPY'
PNG = b'\x89PNG'
ALLOWED = {  # by the names of NumPy 1 and 2
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy', 'dtype'): np.dtype,
    **{
        (f'numpy.{core}.multiarray', name): getattr(np._core.multiarray, name)
        for core in ('core', '_core')
        for name in ('_reconstruct', 'scalar')
    },
    **{(f'numpy.{core}.numeric', '_frombuffer'): np._core.numeric._frombuffer for core in ('core', '_core')},
    ('_codecs', 'encode'): None,  # bytes of protocol 2, see below
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f'it names {module}.{name}, and only arrays, numbers and texts are read')
        return _latin if name == 'encode' else ALLOWED[module, name]

    def persistent_load(self, pid):
        raise pickle.UnpicklingError('it refers to objects outside of it')


def _latin(text: str, encoding: str) -> bytes:
    if not isinstance(text, str) or encoding not in ('latin1', 'latin-1', 'iso-8859-1'):
        raise pickle.UnpicklingError('bytes in another encoding than Latin-1')
    return text.encode('latin-1')


def load(path: pathlib.Path):
    """The value of a .pkl file, or of the object array that a .npy file holds.

    Raises:
      Damaged: missing, cut off, or holding anything but plain data and arrays of numbers.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise Damaged(f'{path} has {path.stat().st_size} bytes: no camera file is that long.')
        data = path.read_bytes()
    except OSError as error:
        raise Damaged(f'{path} cannot be read ({error.strerror}).') from error
    if data.startswith(PNG):
        raise Damaged(f'{path} is a PNG picture under the name of a camera file: copy the camera again.')
    if data.startswith(NPY):
        data = _body(data, path)
        if isinstance(data, np.ndarray):
            return data
    return loads(data, str(path))


def _body(data: bytes, path: pathlib.Path):
    """The pickle inside of a .npy file of dtype object; the array of one of numbers."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = read(stream)
        if not dtype.hasobject:
            return np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # ValueError, EOFError, struct.error, tokenize errors of the header
        raise Damaged(f'{path} is no whole .npy file ({error}).') from error
    return stream.read()


def loads(data: bytes, where: str):
    """The value of a pickle."""
    try:
        for steps, (operation, argument, _) in enumerate(pickletools.genops(data)):
            if steps > MOST_STEPS or operation.name in ('LONG', 'LONG1', 'LONG4') and abs(argument) > 2**64:
                raise Damaged(f'{where} is a pickle beyond all cameras: too long, or of numbers too large.')
        value = _Reader(io.BytesIO(data), encoding='latin1').load()
    except Damaged:
        raise
    except Exception as error:  # the machine of pickles raises what its instructions meet
        reason = re.sub(r'\s+', ' ', str(error))[:200] or type(error).__name__
        raise Damaged(f'{where} is no pickle of cameras ({reason}).') from error
    if _size(value, where, 0, {}) > MOST_STEPS:
        raise Damaged(f'{where} is a pickle beyond all cameras: it repeats itself into too many numbers.')
    return value


def _size(value, where: str, depth: int, known: dict[int, int]) -> int:
    """The number of plain values that a value holds; parts that are there several times are counted as often, visited once."""
    if depth > 16:
        raise Damaged(f'{where} is nested too deeply for cameras.')
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, dict):
        parts = [part for pair in value.items() for part in pair]
    elif isinstance(value, list | tuple):
        parts = value
    elif isinstance(value, np.ndarray) and value.dtype == object:
        parts = value.ravel().tolist()
    elif isinstance(value, str | bytes | int | float | np.ndarray | np.generic | None):
        return 1
    else:
        raise Damaged(f'{where} holds a {type(value).__name__}: wanted numbers, texts and arrays.')
    known[id(value)] = 1 + sum(_size(part, where, depth + 1, known) for part in parts)
    return known[id(value)]
