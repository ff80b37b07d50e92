"""What every reader of posed pictures gives: objects, read when asked for, and their views in the world of their set.

Nothing here opens a picture. A camera or a view that is wrong is a Damaged error, which names the file; a reader leaves such
a view out and says so in `Seen.faults`.
"""

import fnmatch
import itertools
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from t3d.core import strict_json
from t3d.core.errors import UsageError
from t3d.data.sets.archives import Damaged
from t3d.geom.cameras import OPENGL_AXES

SPLITS = ('train', 'val', 'test', 'all')
HELD_OUT = 8  # of the views of a single scene, every one at a multiple of this is for testing (as in LLFF and nerfstudio)
LOOKED_AT = 500  # entries of a folder in search of its layout
AXES = ('+x', '-x', '+y', '-y', '+z', '-z')
SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp')
ROUNDED = 1e-2  # largest |R^T R - 1| that counts as rounding: the nearest rotation stands in
ASPECT = 0.01  # relative difference of shapes of a picture and of the size that its intrinsics are for
GL = np.float64(OPENGL_AXES)  # OpenCV camera axes from OpenGL's and Blender's: y and z change sign

Lens = Callable[[int, int], np.ndarray]  # (width, height) of a picture -> its intrinsics [3, 3] divided by that size


class View(NamedTuple):
    """A picture and its camera."""

    image: pathlib.Path
    world_from_cam: np.ndarray  # float64 [4, 4], OpenCV axes, in the world of the set
    lens: Lens
    mask: pathlib.Path | None = None  # a grey picture of the same size: the share of the object in each pixel
    white: bool = False  # pure white is background, where the picture has no transparency


class Seen(NamedTuple):
    """An object as its cameras saw it."""

    views: list[View]
    faults: list[str]  # of views that were left out
    up: str = '+z'  # axis of the world that points up, of AXES; '+z?': if the cameras agree; '': the cameras alone know
    scale: float | None = None  # factor about the world's origin after which the object fits [-1, 1]^3; None: not known


class Entry(NamedTuple):
    """An object of a set, not yet read."""

    name: str  # of its folder, relative to the set
    folder: pathlib.Path
    read: Callable[[], Seen]
    caption: str = ''  # what the set itself says of it


class Objects(NamedTuple):
    """The objects of a split, and the rule by which they are those."""

    entries: list[Entry]
    rule: str


# ------------------------------------------------------------------------------------------------------------- splits


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise UsageError(f'data.split={split!r}: a folder of posed pictures has {", ".join(SPLITS)}.')


def divided(entries: list[Entry], split: str) -> Objects:
    """The objects of a split of a set that has none of its own: the first 99 % of the list train (as Zero-1-to-3 divides), the
    last 1 %, at least one, are val and test; of a single object every `HELD_OUT`-th view is held out, if it has so many.
    """
    check_split(split)
    if len(entries) == 1:
        [entry] = entries
        rule = f'one object: every {HELD_OUT}th view is val and test, the others train'
        return Objects([entry._replace(read=lambda: _some_views(entry.read(), split))], rule)
    first = max(1, len(entries) * 99 // 100)
    chosen = {'train': entries[:first], 'all': entries}.get(split, entries[first:])
    return Objects(chosen, 'the first 99 % of the objects train, the others are val and test')


def _some_views(seen: Seen, split: str) -> Seen:
    if split == 'all' or len(seen.views) < HELD_OUT:
        return seen
    return seen._replace(views=[view for k, view in enumerate(seen.views) if (k % HELD_OUT == 0) != (split == 'train')])


# ------------------------------------------------------------------------------------------------------------ cameras


def pose(values, where: str) -> np.ndarray:
    """float64 [4, 4] of 3x4 or 4x4 numbers; its rotation is the nearest one to what is written.

    Raises:
      Damaged: other shapes, numbers that are not finite, no rotation, a mirrored frame, another last row.
    """
    try:
        matrix = np.asarray(values, np.float64)
    except (ValueError, TypeError, OverflowError):
        raise Damaged(f'{where}: the pose is no table of numbers: {str(values)[:60]}.') from None
    if matrix.shape == (3, 4):
        matrix = np.concatenate([matrix, [[0.0, 0.0, 0.0, 1.0]]])
    if matrix.shape != (4, 4):
        raise Damaged(f'{where}: the pose has shape {list(matrix.shape)}: wanted 3 x 4 or 4 x 4 numbers.')
    if not (np.abs(matrix) < 1e12).all():
        raise Damaged(f'{where}: the pose has numbers that are not finite: {matrix[:3].ravel().tolist()}.')
    if np.abs(matrix[3] - [0.0, 0.0, 0.0, 1.0]).max() > 1e-4:
        raise Damaged(f'{where}: the last row of the pose is {matrix[3].tolist()}: wanted 0 0 0 1 (is it transposed?).')
    off = np.abs(matrix[:3, :3].T @ matrix[:3, :3] - np.eye(3)).max()
    if off > ROUNDED:
        raise Damaged(f'{where}: the rotation is not orthonormal, |R^T R - 1| is {off:.3g}: remove scale and shear.')
    if np.linalg.det(matrix[:3, :3]) < 0.0:
        raise Damaged(f'{where}: the rotation has determinant -1, a mirrored frame.')
    left, _, right = np.linalg.svd(matrix[:3, :3])
    return _assembled(left @ right, matrix[:3, 3])


def inverse(matrix: np.ndarray) -> np.ndarray:
    """world_from_cam of cam_from_world, and the other way round."""
    return _assembled(matrix[:3, :3].T, -matrix[:3, :3].T @ matrix[:3, 3])


def _assembled(rotation: np.ndarray, position: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, position
    return matrix


def lens_of_angle(angle: float, where: str) -> Lens:
    """Square pixels and a centred principal point; `angle` is the field of view across the width, radians."""
    if not 1e-3 < (angle := number(angle, where)) < math.pi - 1e-3:
        raise Damaged(f'{where}: a field of view of {angle} radians: wanted between 0 and pi.')
    focal = 0.5 / math.tan(0.5 * angle)
    return lambda width, height: np.array([[focal, 0.0, 0.5], [0.0, focal * width / height, 0.5], [0.0, 0.0, 1.0]])


def lens_of_pixels(matrix, width: float, height: float, where: str) -> Lens:
    """Intrinsics [3, 3] in pixels of a width x height picture, the centre of the first pixel at 1/2.

    A picture of another size has to have the same shape; the intrinsics go with the size.
    """
    k = np.asarray(matrix, np.float64)
    if not (np.abs(k) < 1e9).all() or not (k[0, 0] > 0.0 and k[1, 1] > 0.0 and width > 0.0 and height > 0.0):
        raise Damaged(f'{where}: the intrinsics {k[:2].ravel().tolist()} of a {width} x {height} picture are none of a camera.')
    normalized = k / np.array([[width], [height], [1.0]])

    def lens(other_width: int, other_height: int) -> np.ndarray:
        if abs(other_width * height / (other_height * width) - 1.0) > ASPECT:
            raise Damaged(
                f'{where}: the intrinsics are for {width:g} x {height:g} pixels, the picture has {other_width} x '
                f'{other_height}: another shape, so it was cropped or turned after its camera was written.'
            )
        return normalized

    return lens


def number(value, where: str) -> float:
    """A finite number of a JSON file, not true and not a text."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
        raise Damaged(f'{where}: {str(value)[:60]!r} is no finite number.')
    return float(value)


# -------------------------------------------------------------------------------------------------------------- files


def load_json(path: pathlib.Path, kind: type | tuple = dict):
    """The value of a JSON file; Damaged where it is missing, no JSON, or of another kind."""
    try:
        value = strict_json.loads(path.read_bytes(), str(path))
    except OSError as error:
        raise Damaged(f'{path} cannot be read ({error.strerror}).') from error
    except UsageError as error:
        raise Damaged(str(error)) from error
    if not isinstance(value, kind):
        names = kind.__name__ if isinstance(kind, type) else ' or '.join(each.__name__ for each in kind)
        raise Damaged(f'{path} holds a {type(value).__name__}: wanted a {names}.')
    return value


def load_array(path: pathlib.Path, key: str = '') -> np.ndarray:
    """The numbers of a .npy file, or of one array of a .npz; pickles inside are refused."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return np.asarray(stored[key], np.float64)
    except (AttributeError, TypeError):  # of a .npy: an array, which is no context
        pass
    except KeyError as error:
        raise Damaged(f'{path} has no array {key!r}.') from error
    except Exception as error:  # BadZipFile, zlib.error, OSError, EOFError, ValueError, ...
        raise Damaged(f'{path} holds no array of numbers ({error}).') from error
    try:
        return np.asarray(np.load(path, allow_pickle=False), np.float64)
    except Exception as error:
        raise Damaged(f'{path} holds no array of numbers ({error}).') from error


def there(folder: pathlib.Path, pattern: str) -> bool:
    """Whether a file like `*/000.npy` is in a folder; of each folder's entries the first `LOOKED_AT` are looked at."""
    head, _, rest = pattern.partition('/')
    names = [head]
    if '*' in head:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in itertools.islice(entries, LOOKED_AT) if fnmatch.fnmatch(entry.name, head)]
    if not rest:
        return any((folder / name).is_file() for name in names)
    return any((folder / name).is_dir() and there(folder / name, rest) for name in names)


def inside(folder: pathlib.Path, name: str, where: str) -> pathlib.Path:
    """A file that a set names relative to a folder of its own; Damaged where the name leads out of it."""
    parts = re.sub(r'^[A-Za-z]:', '', name).replace('\\', '/').split('/')
    if '..' in parts or '\0' in name or name.startswith(('/', '\\')):
        raise Damaged(f'{where}: {name[:200]!r} leads out of its folder: wanted a name relative to it.')
    return folder.joinpath(*[part for part in parts if part not in ('', '.')])


def numbered(folder: pathlib.Path, suffix: str = '', pattern: str = r'\d+') -> list[pathlib.Path]:
    """Files whose stem is a number, in the order of the numbers: 10 after 9, with or without zeros before."""
    suffixes = (suffix,) if suffix else SUFFIXES
    names = (path for path in folder.iterdir() if path.suffix.lower() in suffixes and re.fullmatch(pattern, path.stem))
    return sorted(names, key=lambda path: (int(re.search(r'\d+', path.stem)[0]), path.name))


def collected(attempts: Iterable[Callable[[], View]], **known) -> Seen:
    """The views that could be made, and why the others could not."""
    views, faults = [], []
    for attempt in attempts:
        try:
            view = attempt()
            if not view.image.is_file():
                raise Damaged(f'{view.image} is missing: a camera names it.')
            views.append(view)
        except UsageError as error:
            faults.append(str(error))
    return Seen(views, faults, **known)
