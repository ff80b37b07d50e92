"""A captioned object with its views as the bytes of one record of a shard, and back.

| part | bytes |
|---|---|
| length of the head | 4, little endian |
| head | JSON in UTF-8: what is not an array, and the form of each array |
| arrays | one after the other, in the order of the head |

| form | for | kept as |
|---|---|---|
| `png` | uint8 [V, H, W, 4] | a PNG file for each view; straight alpha comes back exactly, colours under alpha 0 too |
| `raw` | any array | its bytes |
| `zlib` | arrays of more than `SMALL` bytes beside PNG | its bytes, packed |

The same record gives the same bytes (with the same Pillow and zlib). Damage inside of a shard is told by the checksums of
ArrayRecord before anything is decoded here.
"""

import io
import json
import zlib

import numpy as np

from t3d.data.sets.archives import Damaged

ENCODINGS = ('png', 'raw')  # of pictures
KINDS = ('|u1', '<u2', '<i4', '<i8', '<f2', '<f4', '<f8')  # of numbers
SMALL = 4096  # bytes
LENGTH = 4  # bytes


def encode(record: dict, encoding: str, **facts) -> bytes:
    """The bytes of a record {'image' uint8 [V, H, W, 4], other arrays, 'captions', 'name', 'attributes'}.

    Args:
      encoding: one of ENCODINGS.
      facts: what the head says beside the record, as JSON has it.
    """
    forms, parts, told = [], [], dict(facts)
    for name, value in record.items():
        if not isinstance(value, np.ndarray):
            told[name] = value
            continue
        value = np.ascontiguousarray(value, np.dtype(value.dtype).newbyteorder('<'))
        kind = value.dtype.str
        if kind not in KINDS:
            raise Damaged(
                f'{name} of {record.get("name", "a record")} is of {value.dtype}: wanted numbers of {", ".join(KINDS)}.'
            )
        if encoding == 'png' and name == 'image':
            form, pieces = 'png', [_png(view) for view in value]
        elif encoding == 'png' and value.nbytes > SMALL:
            form, pieces = 'zlib', [zlib.compress(value.tobytes(), 6)]
        else:
            form, pieces = 'raw', [value.tobytes()]
        forms.append([name, form, kind, list(value.shape), [len(piece) for piece in pieces]])
        parts += pieces
    head = json.dumps({**told, 'arrays': forms}, ensure_ascii=False, separators=(',', ':')).encode()
    return b''.join([len(head).to_bytes(LENGTH, 'little'), head, *parts])


def head(data: bytes, where: str) -> dict:
    """What a record holds beside its arrays, and their forms under 'arrays'; Damaged where it is none of ours."""
    end = LENGTH + int.from_bytes(data[:LENGTH], 'little')
    try:
        told = json.loads(data[LENGTH:end].decode())
        size = end + sum(length for _, _, _, _, lengths in told['arrays'] for length in lengths)
        told['captions'] = tuple(told['captions'])
        if not told['captions'] or not all(isinstance(text, str) for text in (*told['captions'], told['name'])):
            raise ValueError('captions and name are no texts')
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Damaged(f'{where} is no record of a captioned object ({type(error).__name__}: {str(error)[:80]}).') from error
    if size != len(data):
        raise Damaged(f'{where} has {len(data)} bytes, its head describes {size}.')
    return told


def decode(data: bytes, where: str, *, names=None, views=None) -> dict:
    """The record of some bytes, and the facts that `encode` was given.

    Args:
      where: what it is called in messages.
      names: arrays to decode, by name; None: all. The others are left out.
      views: places along the first axis of every array, in this order; None: all. Pictures of no other view are decoded.
    Raises:
      Damaged: bytes that `encode` did not write.
    """
    told = head(data, where)
    at = LENGTH + int.from_bytes(data[:LENGTH], 'little')
    arrays = {}
    for name, form, kind, shape, lengths in told.pop('arrays'):
        pieces = [data[at + sum(lengths[:k]) : at + sum(lengths[: k + 1])] for k in range(len(lengths))]
        at += sum(lengths)
        if names is not None and name not in names:
            continue
        try:
            arrays[name] = _array(form, kind, shape, pieces, views)
        except Exception as error:  # of zlib, of Pillow, of shapes that do not agree
            raise Damaged(f'{where}: its {name} cannot be read ({type(error).__name__}: {str(error)[:80]}).') from error
    return {**told, **arrays}


def _array(form: str, kind: str, shape: list[int], pieces: list[bytes], views) -> np.ndarray:
    if kind not in KINDS:
        raise ValueError(f'numbers of kind {kind!r}')
    if form == 'png':
        images = [_pixels(piece, shape) for piece in (pieces if views is None else [pieces[view] for view in views])]
        if [len(pieces), *images[0].shape] != shape:
            raise ValueError(f'{len(pieces)} pictures of shape {list(images[0].shape)}, announced {shape}')
        return np.stack(images)
    [piece] = pieces
    wanted = int(np.prod(shape)) * np.dtype(kind).itemsize
    if form == 'zlib':  # never more than was announced: a changed head must not fill the memory
        piece = zlib.decompressobj().decompress(piece, wanted + 1)
    if len(piece) != wanted:
        raise ValueError(f'{len(piece)} bytes, announced {wanted}')
    array = np.frombuffer(piece, kind).reshape(shape)
    return array if views is None else array[np.asarray(views)]


def _png(view: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(view).save(buffer, 'PNG')
    return buffer.getvalue()


def _pixels(piece: bytes, shape: list[int]) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(piece), formats=('PNG',)) as picture:
        if [picture.height, picture.width] != shape[1:3]:  # before anything is decoded
            raise ValueError(f'a picture of {picture.width} x {picture.height} pixels, announced {shape}')
        return np.asarray(picture)
