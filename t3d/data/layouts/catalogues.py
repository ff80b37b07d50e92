"""Public sets with a layout of their own: ShapeNet-SRN and CO3D.

`srn`: `<split>/<id>/{rgb/000000.png, pose/000000.txt, intrinsics.txt}`, the chairs of train one folder deeper. A pose is 16
numbers, world_from_cam in OpenCV axes, z up. intrinsics.txt: first line `f cx cy 0`, last line `H W`, the size that these are
for, which need not be the pictures'. Pure white is background (arXiv 1906.01618; pixelNeRF's loader, arXiv 2012.02190).

`co3d` (version 2): `<category>/{frame_annotations.jgz, set_lists/*.json, <sequence>/{images, masks}}`, paths relative to the
folder of the categories. X_cam = X R + T in PyTorch3D's axes (x left, y up); focal length and principal point in halves of each
side, or of the shorter one (`ndc_isotropic`). A sequence is an object; set_lists say which of its frames train. Each world is
that of a structure from motion, so up is where the cameras stand (arXiv 2109.00512, its annotations).
"""

import functools
import gzip
import pathlib

import numpy as np

from t3d.core import strict_json, text
from t3d.core.errors import UsageError
from t3d.data.layouts import scene
from t3d.data.layouts.scene import Damaged, Entry, Objects, Seen, View

FRAMES = 'frame_annotations.jgz'
MOST_BYTES = 4 << 30
PYTORCH3D = np.diag([-1.0, -1.0, 1.0])


def is_there(root: pathlib.Path, layout: str) -> bool:
    if layout == 'co3d':
        return bool(_categories(root))
    return any(scene.there(root, f'{above}*/intrinsics.txt') for above in ('', '*/', '*/*/'))


def find(root: pathlib.Path, layout: str, split: str) -> Objects:
    """The objects of a folder."""
    scene.check_split(split)
    return _co3d(root, split) if layout == 'co3d' else _srn(root, split)


# --------------------------------------------------------------------------------------------------------- ShapeNet-SRN


def _srn(root: pathlib.Path, split: str) -> Objects:
    folders = sorted(path.parent for above in ('', '*/', '*/*/') for path in root.glob(f'{above}*/intrinsics.txt'))
    entries = [Entry(path.relative_to(root).as_posix(), path, lambda path=path: read_srn(path)) for path in folders]
    named = [entry for entry in entries if _split_of(root, entry.folder)]
    if not named:
        return scene.divided(entries, split)
    chosen = [entry for entry in named if split in ('all', _split_of(root, entry.folder))]
    return Objects(chosen, 'the folders ..._train, ..._val, ..._test')


def _split_of(root: pathlib.Path, folder: pathlib.Path) -> str:
    first = folder.relative_to(root).parts[0] if folder.parent != root else ''
    return next((name for name in scene.SPLITS[:3] if first == name or first.endswith(f'_{name}')), '')


def read_srn(folder: pathlib.Path) -> Seen:
    file = folder / 'intrinsics.txt'
    lines = [line.split() for line in text.lines(_text(file)) if line.split()]
    try:
        focal, x, y = (float(word) for word in lines[0][:3])
        height, width = (float(word) for word in lines[-1])
    except (ValueError, IndexError):
        raise Damaged(f'{file}: wanted `f cx cy 0` in the first line and `H W` in the last.') from None
    lens = scene.lens_of_pixels([[focal, 0.0, x], [0.0, focal, y], [0.0, 0.0, 1.0]], width, height, str(file))

    def attempt(picture: pathlib.Path):
        camera = folder / 'pose' / f'{picture.stem}.txt'
        return lambda: View(picture, scene.pose(_sixteen(camera), str(camera)), lens, white=True)

    pictures = scene.numbered(folder / 'rgb') if (folder / 'rgb').is_dir() else []
    return scene.collected(map(attempt, pictures))


def _sixteen(file: pathlib.Path) -> np.ndarray:
    try:
        return np.array([float(word) for word in _text(file).split()]).reshape(4, 4)
    except ValueError:
        raise Damaged(f'{file} holds no 16 numbers.') from None


def _text(file: pathlib.Path) -> str:
    try:
        return text.decode(file.read_bytes())
    except OSError as error:
        raise Damaged(f'{file} cannot be read ({error.strerror}).') from error


# ----------------------------------------------------------------------------------------------------------------- CO3D


def _categories(root: pathlib.Path) -> list[pathlib.Path]:
    return [root] if (root / FRAMES).is_file() else sorted(path.parent for path in root.glob(f'*/{FRAMES}'))


def _co3d(root: pathlib.Path, split: str) -> Objects:
    entries, rules = [], set()
    for folder in _categories(root):
        name = folder.resolve().name
        sequences = _sequences(folder / FRAMES, (folder / FRAMES).stat().st_mtime_ns)
        lists = sorted((folder / 'set_lists').glob('*.json'))
        listed = _listed(lists[0], split) if lists else None
        rules.add(lists[0].name if lists else '')
        for sequence, frames in sequences.items():
            chosen = frames if listed is None else [frame for frame in frames if (sequence, frame['frame_number']) in listed]
            if chosen:
                read = functools.partial(read_co3d, folder.resolve().parent, chosen)
                entries.append(Entry(f'{name}/{sequence}', folder / sequence, read, f'a {name}'))
    if rules == {''}:
        return scene.divided(entries, split)
    return Objects(entries, f'the frames that set_lists/{sorted(rules)[-1]} names')


@functools.lru_cache(4)
def _sequences(file: pathlib.Path, changed: int) -> dict[str, list[dict]]:
    """Frames by sequence, in the order of their numbers."""
    try:
        with gzip.open(file) as stream:
            data = stream.read(MOST_BYTES + 1)
    except (OSError, EOFError, ValueError) as error:  # zlib.error is a ValueError
        raise UsageError(f'{file} is no whole gzip file ({error}): copy it again.') from error
    except Exception as error:
        raise UsageError(f'{file} is damaged ({error}): copy it again.') from error
    if len(data) > MOST_BYTES:
        raise UsageError(f'{file} expands to more than {MOST_BYTES} bytes.')
    frames = strict_json.loads(data, str(file))
    if not isinstance(frames, list):
        raise UsageError(f'{file} holds a {type(frames).__name__}: wanted a list of frames.')
    table = {}
    for number, frame in enumerate(frames):
        good = isinstance(frame, dict) and isinstance(frame.get('sequence_name'), str)
        if not good or type(frame.get('frame_number')) is not int:
            raise UsageError(f'{file}, frame {number}: wanted sequence_name and frame_number.')
        table.setdefault(frame['sequence_name'], []).append(frame)
    return {name: sorted(table[name], key=lambda frame: frame['frame_number']) for name in sorted(table)}


def _listed(file: pathlib.Path, split: str) -> set[tuple] | None:
    """(sequence, frame number) of a split; None for all."""
    if split == 'all':
        return None
    tree = strict_json.loads(file.read_bytes(), str(file))
    rows = tree.get(split) if isinstance(tree, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) >= 2 for row in rows):
        raise UsageError(f'{file} has no split {split!r}: wanted {{{split}: [[sequence, frame number, path], ...]}}.')
    return {(row[0], row[1]) for row in rows if isinstance(row[0], str) and isinstance(row[1], int)}


def read_co3d(base: pathlib.Path, frames: list[dict]) -> Seen:
    """A sequence; `base` is the folder of the categories."""

    def attempt(frame: dict):
        return lambda: _frame(base, frame)

    return scene.collected(map(attempt, frames), up='')


def _frame(base: pathlib.Path, frame: dict) -> View:
    where = f'{frame["sequence_name"]}, frame {frame["frame_number"]} of {FRAMES}'
    image, camera, mask = (frame.get(key) for key in ('image', 'viewpoint', 'mask'))
    if not isinstance(image, dict) or not isinstance(image.get('path'), str) or not isinstance(camera, dict):
        raise Damaged(f'{where} has no image.path and viewpoint.')
    height, width = (scene.number(value, where) for value in _several(image.get('size'), 2, f'{where}, image.size'))
    rotation = [_several(row, 3, f'{where}, R') for row in _several(camera.get('R'), 3, f'{where}, R')]
    position = _several(camera.get('T'), 3, f'{where}, T')
    row_vectors = scene.pose(np.concatenate([rotation, np.reshape(position, (3, 1))], 1), where)  # [R | T], checked as a pose
    cam_from_world = np.eye(4)
    cam_from_world[:3, :3] = PYTORCH3D @ row_vectors[:3, :3].T
    cam_from_world[:3, 3] = PYTORCH3D @ row_vectors[:3, 3]
    units = camera.get('intrinsics_format', 'ndc_norm_image_bounds')
    if units not in ('ndc_isotropic', 'ndc_norm_image_bounds'):
        raise Damaged(f'{where}: intrinsics_format {str(units)[:40]!r}: wanted ndc_isotropic or ndc_norm_image_bounds.')
    half = np.array([width, height]) / 2.0
    scale = np.full(2, half.min()) if units == 'ndc_isotropic' else half
    numbers = (np.array(_several(camera.get(key), 2, f'{where}, {key}')) for key in ('focal_length', 'principal_point'))
    focal, point = (values * scale for values in numbers)
    matrix = [[focal[0], 0.0, half[0] - point[0]], [0.0, focal[1], half[1] - point[1]], [0.0, 0.0, 1.0]]
    masked = scene.inside(base, mask['path'], where) if isinstance(mask, dict) and isinstance(mask.get('path'), str) else None
    lens = scene.lens_of_pixels(matrix, width, height, where)
    return View(scene.inside(base, image['path'], where), scene.inverse(cam_from_world), lens, masked)


def _several(values, count: int, where: str) -> list:
    """A list of `count` numbers, or of lists of numbers."""
    if not isinstance(values, list) or len(values) != count:
        raise Damaged(f'{where}: wanted {count} numbers, there is {str(values)[:60]!r}.')
    for value in values:
        if not isinstance(value, list):
            scene.number(value, where)
    return values
