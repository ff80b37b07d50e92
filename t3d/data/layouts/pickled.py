"""Renders of Objaverse whose cameras are pickles, read by t3d.data.layouts.pickles: SPAD and SyncDreamer.

| layout | pictures | cameras |
|---|---|---|
| `spad` | `<object>/images/<i>.png`, numbers without zeros before | `cameras/<i>.npy`: {camera_id, matrix_world: text, fov} |
| `syncdreamer` | `<object>/000.png`, of 256 pixels | `meta.pkl`: [K, azimuths, elevations, distances, cam_poses] |

Both have z up. SPAD (arXiv 2402.05235): `matrix_world` is the text of a 4x4 array, world_from_cam in Blender's axes, radius
3.5; a camera without a position gets that of its id, camera_<azimuth>_<polar angle> in degrees, if its rotation agrees.
SyncDreamer (arXiv 2309.03453, its render script): camera-from-world [V, 3, 4] in OpenCV axes, the object's longest side is 1;
the `target` folder has no cameras: 16 views around at an elevation of 30 degrees and a distance of 1.5.
"""

import math
import pathlib
import re

import numpy as np

from t3d.data.layouts import pickles, renders, scene
from t3d.data.layouts.scene import Damaged, Entry, Objects, Seen, View

SPAD_RADIUS = 3.5
AGREES = 0.02  # largest difference of a rotation from that of the camera's id
SYNC_SIZE, SYNC_VIEWS, SYNC_RADIUS, SYNC_ELEVATION = 256, 16, 1.5, math.radians(30.0)


def is_there(root: pathlib.Path, layout: str) -> bool:
    if layout == 'spad':
        return scene.there(root, '*/cameras/*.npy')
    return scene.there(root, '*/meta.pkl') or scene.there(root, 'input/*/meta.pkl')


def find(root: pathlib.Path, layout: str, split: str) -> Objects:
    """The objects of a folder."""
    if layout == 'spad':
        names = renders.listed(root)
        folders = sorted({path.parent.parent for path in root.glob('*/cameras/*.npy')})
        folders = folders if names is None else [scene.inside(root, name, str(root / renders.LIST)) for name in names]
        read = read_spad
    else:
        folders = sorted(path.parent for path in [*root.glob('*/meta.pkl'), *root.glob('input/*/meta.pkl')])
        folders += sorted(path.parent for path in root.glob('target/*/000.png'))
        read = read_syncdreamer
    entries = [Entry(folder.relative_to(root).as_posix(), folder, lambda folder=folder: read(folder)) for folder in folders]
    return scene.divided(entries, split)


# ---------------------------------------------------------------------------------------------------------------- SPAD


def read_spad(folder: pathlib.Path) -> Seen:
    if not (folder / 'images').is_dir():
        raise Damaged(f'{folder} has no folder images.')
    cameras = scene.numbered(folder / 'cameras', '.npy') if (folder / 'cameras').is_dir() else []
    stems = {path.stem for path in [*scene.numbered(folder / 'images'), *cameras]}

    def attempt(stem: str):
        return lambda: _spad_view(folder / 'images' / f'{stem}.png', folder / 'cameras' / f'{stem}.npy')

    return scene.collected(map(attempt, sorted(stems, key=int)), scale=1.0)


def _spad_view(picture: pathlib.Path, file: pathlib.Path) -> View:
    camera = pickles.load(file)
    camera = camera.item() if isinstance(camera, np.ndarray) and camera.shape == () else camera
    if not isinstance(camera, dict) or not isinstance(camera.get('matrix_world'), str):
        raise Damaged(f'{file} holds no {{camera_id, matrix_world, fov}}.')
    lens = scene.lens_of_angle(_plain(camera.get('fov')), str(file))
    matrix = scene.pose(_numbers(camera['matrix_world'], file), str(file))
    if np.linalg.norm(matrix[:3, 3]) < 1e-6:
        matrix = _of_id(str(camera.get('camera_id')), matrix, file)
    return View(picture, matrix @ scene.GL, lens)


def _plain(value):
    return float(value) if isinstance(value, np.generic) else value


def _numbers(text: str, file: pathlib.Path) -> np.ndarray:
    """The numbers of the printed array [[a b c d] [...] ...]."""
    words = re.sub(r'[\[\],]|array\(|\)|<Matrix 4x4|>|\(', ' ', text[:4096]).split()
    try:
        return np.array([float(word) for word in words]).reshape(4, 4)
    except ValueError:
        raise Damaged(f'{file}: matrix_world is no 4 x 4 numbers: {text[:60]!r}.') from None


def _of_id(camera_id: str, matrix: np.ndarray, file: pathlib.Path) -> np.ndarray:
    """The pose of camera_<azimuth>_<elevation>, if it turns as the given one, which stands at the origin."""
    angles = re.fullmatch(r'camera_(-?[\d.]+)_(-?[\d.]+)', camera_id)
    back = matrix[:3, 2]  # a camera that looks at the origin stands where its z axis points
    if angles and re.fullmatch(r'(-?\d+(\.\d+)?_?){2}', f'{angles[1]}_{angles[2]}'):
        azimuth, elevation = (math.radians(float(angle)) for angle in angles.groups())
        for polar in (elevation, 0.5 * math.pi - elevation):
            away = _toward(azimuth, polar)
            if np.abs(away - back).max() < AGREES:
                fixed = matrix.copy()
                fixed[:3, 3] = SPAD_RADIUS * back
                return fixed
    raise Damaged(f'{file}: the camera has no position, and its id {camera_id[:40]!r} does not agree with its rotation.')


def _toward(azimuth: float, elevation: float) -> np.ndarray:
    """The direction from the origin of a z-up world, azimuth from +x."""
    flat = math.cos(elevation)
    return np.array([flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation)])


# ---------------------------------------------------------------------------------------------------------- SyncDreamer


def read_syncdreamer(folder: pathlib.Path) -> Seen:
    file = folder / 'meta.pkl'
    if not file.is_file():
        return _target(folder)
    meta = pickles.load(file)
    if not isinstance(meta, list | tuple) or len(meta) != 5:
        raise Damaged(f'{file} holds no [K, azimuths, elevations, distances, cam_poses].')
    try:
        matrix, poses = np.asarray(meta[0], np.float64), np.asarray(meta[4], np.float64)
    except (ValueError, TypeError) as error:
        raise Damaged(f'{file}: K and cam_poses are no arrays of numbers.') from error
    if matrix.shape != (3, 3) or poses.ndim != 3:
        raise Damaged(f'{file}: K has shape {list(matrix.shape)}, cam_poses {list(poses.shape)}: wanted 3 x 3, [views, 3, 4].')
    size = 2.0 * matrix[0, 2]  # a centred principal point
    lens = scene.lens_of_pixels(matrix, size, 2.0 * matrix[1, 2], str(file))

    def attempt(number: int):
        where = f'{file}, view {number}'
        return lambda: View(folder / f'{number:03d}.png', scene.inverse(scene.pose(poses[number], where)), lens)

    return scene.collected(map(attempt, range(len(poses))), scale=renders.UNIT_SIDE)


def _target(folder: pathlib.Path) -> Seen:
    """The 16 fixed views of a target folder."""
    lens = scene.lens_of_angle(renders.ZERO123_ANGLE, str(folder))

    def attempt(number: int):
        back = _toward(2.0 * math.pi * number / SYNC_VIEWS, SYNC_ELEVATION)
        right = np.cross([0.0, 0.0, 1.0], back)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3] = np.stack([right, np.cross(back, right), back, SYNC_RADIUS * back], 1)
        return lambda: View(folder / f'{number:03d}.png', pose @ scene.GL, lens)

    return scene.collected(map(attempt, range(SYNC_VIEWS)), scale=renders.UNIT_SIDE)
