"""Renders of Objaverse whose cameras are plain numbers: Zero-1-to-3, InstantMesh, MV-Adapter.

| layout | list of objects | pictures | cameras |
|---|---|---|---|
| `zero123` | valid_paths.json | `<uid>/000.png` | 000.npy: 3x4 camera-from-world in Blender's axes |
| `instantmesh` | the same, {good_objs: [...]} | `rendering_.../<uid>/000.png` | cameras.npz: cam_poses [V, 3, 4], the same |
| `mv_adapter` | `*list*.json` | `<xx>/<uid>/color_0000.webp`, or render_ | meta.json: locations, world_from_cam in them |

Without a list every folder counts.

All have z up. Zero-1-to-3: lens 35 mm, sensor 32 mm; the object's longest side is 1 (arXiv 2303.11328, its render script).
InstantMesh: field of view 50 degrees, the object in [-1, 1]^3 (its loader; issue 13 of TencentARC/InstantMesh). MV-Adapter: the
object's longest side is 1 (arXiv 2412.03632, its loader); its Ortho10View is orthographic and refused.
"""

import math
import pathlib

import numpy as np

from t3d.core.errors import UsageError
from t3d.data.layouts import scene
from t3d.data.layouts.scene import Damaged, Entry, Objects, Seen, View

LIST = 'valid_paths.json'
ZERO123_ANGLE = 2.0 * math.atan(0.5 * 32.0 / 35.0)  # 49.13 degrees
INSTANTMESH_ANGLE = math.radians(50.0)
UNIT_SIDE = 2.0  # brings an object of longest side 1 into [-1, 1]^3
VIEW_FOLDERS = 'rendering_*'  # of InstantMesh


def is_there(root: pathlib.Path, layout: str) -> bool:
    if layout == 'instantmesh':
        return scene.there(root, f'{VIEW_FOLDERS}/*/cameras.npz') or scene.there(root, '*/cameras.npz')
    if layout == 'zero123':
        return (root / LIST).is_file() or scene.there(root, '*/000.npy')
    return any(scene.there(root, f'{above}*/meta.json') for above in ('', '*/', '*/*/'))


def find(root: pathlib.Path, layout: str, split: str) -> Objects:
    """The objects of a folder."""
    chosen = {'zero123': _zero123, 'instantmesh': _instantmesh, 'mv_adapter': _mv_adapter}[layout]
    return scene.divided(chosen(root), split)


def listed(root: pathlib.Path) -> list[str] | None:
    """The objects that valid_paths.json names, in its order; None without it."""
    if not (root / LIST).is_file():
        return None
    try:
        tree = scene.load_json(root / LIST, (list, dict))
    except Damaged as error:
        raise UsageError(f'{error} Write it again, or remove it: then every folder counts.') from error
    if isinstance(tree, dict):  # InstantMesh has {'good_objs': [...]}, others lists by category
        tree = [name for names in tree.values() if isinstance(names, list) for name in names]
    if not tree or not all(isinstance(name, str) and name for name in tree):
        raise UsageError(f'{root / LIST} is no list of the names of folders.')
    return list(dict.fromkeys(name.rstrip('/') for name in tree))


def _folders(root: pathlib.Path, top: pathlib.Path, names: list[str] | None, pattern: str) -> list[tuple[str, pathlib.Path]]:
    if names is None:
        return [(path.parent.relative_to(top).as_posix(), path.parent) for path in sorted(top.glob(pattern))]
    return [(name, scene.inside(top, name, str(root / LIST))) for name in names]


# ---------------------------------------------------------------------------------------------------------- Zero-1-to-3


def _zero123(root: pathlib.Path) -> list[Entry]:
    top = root / 'views_release' if (root / 'views_release').is_dir() else root
    folders = _folders(root, top, listed(top) or listed(root), '*/000.npy')
    return [Entry(name, folder, lambda folder=folder: read_zero123(folder)) for name, folder in folders]


def read_zero123(folder: pathlib.Path) -> Seen:
    lens = scene.lens_of_angle(ZERO123_ANGLE, 'zero123')

    def attempt(picture: pathlib.Path):
        camera = picture.with_suffix('.npy')
        return lambda: View(picture, _from_blender(scene.load_array(camera), str(camera)), lens)

    return scene.collected(map(attempt, _pictures(folder)), scale=UNIT_SIDE)


def _from_blender(cam_from_world, where: str) -> np.ndarray:
    return scene.inverse(scene.pose(cam_from_world, where)) @ scene.GL


def _pictures(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        raise Damaged(f'{folder} is missing: {LIST} names it.')
    pictures = scene.numbered(folder)
    cameras = {path.stem for path in scene.numbered(folder, '.npy')}
    lost = sorted(cameras - {path.stem for path in pictures}, key=int)
    return sorted([*pictures, *(folder / f'{stem}.png' for stem in lost)], key=lambda path: int(path.stem))


# ---------------------------------------------------------------------------------------------------------- InstantMesh


def _instantmesh(root: pathlib.Path) -> list[Entry]:
    tops = sorted(path for path in root.glob(VIEW_FOLDERS) if any(path.glob('*/cameras.npz'))) or [root]
    folders = _folders(root, tops[0], listed(root), '*/cameras.npz')
    return [Entry(name, folder, lambda folder=folder: read_instantmesh(folder)) for name, folder in folders]


def read_instantmesh(folder: pathlib.Path) -> Seen:
    file = folder / 'cameras.npz'
    poses, lens = scene.load_array(file, 'cam_poses'), scene.lens_of_angle(INSTANTMESH_ANGLE, 'instantmesh')
    if poses.ndim != 3:
        raise Damaged(f'{file}: cam_poses has shape {list(poses.shape)}: wanted [views, 3, 4].')

    def attempt(number: int):
        picture, where = folder / f'{number:03d}.png', f'{file}, view {number}'
        return lambda: View(picture, _from_blender(poses[number], where), lens)

    return scene.collected(map(attempt, range(len(poses))), scale=1.0)


# ----------------------------------------------------------------------------------------------------------- MV-Adapter


def _mv_adapter(root: pathlib.Path) -> list[Entry]:
    files = sorted([*root.glob('*/meta.json'), *root.glob('*/*/meta.json'), *root.glob('*/*/*/meta.json')])
    random = [file for file in files if 'ortho' not in file.relative_to(root).parts[0]]  # beside the orthographic set
    folders = {file.parent.name: file.parent for file in random or files}
    names = next(iter(sorted(root.glob('*list*.json'))), None)
    order = [str(name).rpartition('/')[2] for name in scene.load_json(names, list)] if names else list(folders)
    return [Entry(name, folders[name], lambda name=name: read_mv_adapter(folders[name])) for name in order if name in folders]


def read_mv_adapter(folder: pathlib.Path) -> Seen:
    file = folder / 'meta.json'
    tree = scene.load_json(file)
    locations = tree.get('locations')
    if not isinstance(locations, list) or not all(isinstance(location, dict) for location in locations):
        raise Damaged(f'{file} has no "locations": wanted a list of {{"index", "transform_matrix"}}.')
    kind = next((kind for kind in ('color', 'render') if any(folder.glob(f'{kind}_*'))), 'color')

    def attempt(location: dict):
        return lambda: _located(folder, file, {**tree, **location}, kind)

    return scene.collected(map(attempt, locations), scale=UNIT_SIDE)


def _located(folder: pathlib.Path, file: pathlib.Path, keys: dict, kind: str) -> View:
    index = str(keys.get('index', ''))
    where = f'{file}, view {index[:20]!r}'
    if keys.get('projection_type', 'PERSP') == 'ORTHO' or 'camera_angle_x' not in keys and 'ortho_scale' in keys:
        raise Damaged(f'{where} is orthographic, which no pinhole camera is: use the set of random views (Rand6View) instead.')
    if not index.isdigit() or 'transform_matrix' not in keys or 'camera_angle_x' not in keys:
        raise Damaged(f'{where}: wanted index, transform_matrix and camera_angle_x.')
    beside = (folder / f'{kind}_{index}{suffix}' for suffix in scene.SUFFIXES)
    picture = next((path for path in beside if path.is_file()), folder / f'{kind}_{index}.webp')
    pose = scene.pose(keys['transform_matrix'], where) @ scene.GL
    return View(picture, pose, scene.lens_of_angle(keys['camera_angle_x'], where))
