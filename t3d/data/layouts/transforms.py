"""Scenes described by a JSON list of frames: NeRF-synthetic, Instant-NGP, nerfstudio, and the simple folder of t3d.

| layout | file | pictures | camera |
|---|---|---|---|
| `nerf_synthetic` | transforms_{train,val,test}.json | `./train/r_0`, the suffix .png left out | `camera_angle_x` |
| `nerfstudio` | transforms.json | with suffix, `mask_path` beside | fl_x fl_y cx cy w h, of all or of each frame |
| `ours` | cameras.json | with suffix, or 000.png ... in order | the same, and `convention` opengl or opencv, `up` |

`transform_matrix` is world_from_cam with the camera's axes of OpenGL and a world with z up. A folder is a scene, or holds
folders that are. `applied_transform` says how the poses were made and changes nothing: they are written after it.
Sources: the loaders of NeRF (arXiv 2003.08934) and nerfstudio (arXiv 2302.04264).
"""

import pathlib

from t3d.data.layouts import scene
from t3d.data.layouts.scene import Damaged, Entry, Objects, Seen, View

DISTORTION = ('k1', 'k2', 'k3', 'k4', 'p1', 'p2')
MODELS = ('PINHOLE', 'SIMPLE_PINHOLE', 'OPENCV', 'SIMPLE_RADIAL', 'RADIAL')  # pinholes, once their distortion is zero
NAMES = ('nerf_synthetic', 'nerfstudio', 'ours')
FILES = {'nerf_synthetic': 'transforms_train.json', 'nerfstudio': 'transforms.json', 'ours': 'cameras.json'}


def is_there(root: pathlib.Path, layout: str) -> bool:
    return (root / FILES[layout]).is_file() or scene.there(root, f'*/{FILES[layout]}')


def find(root: pathlib.Path, layout: str, split: str) -> Objects:
    """The scenes of a folder."""
    scene.check_split(split)
    folders = _scenes(root, layout)
    if layout != 'nerf_synthetic':
        file = FILES[layout]
        entries = [Entry(_name(root, folder), folder, lambda folder=folder: read(folder / file, layout)) for folder in folders]
        return scene.divided(entries, split)
    parts = [name for name in scene.SPLITS[:3] if split in (name, 'all')]
    entries = []
    for folder in folders:
        files = [path for name in parts if (path := folder / f'transforms_{name}.json').is_file()]
        if files:
            entries.append(Entry(_name(root, folder), folder, lambda files=files: _joined(files)))
    return Objects(entries, 'the views of transforms_{train,val,test}.json')


def _scenes(root: pathlib.Path, layout: str) -> list[pathlib.Path]:
    file = FILES[layout]
    if (root / file).is_file():
        return [root]
    return sorted(path.parent for path in root.glob(f'*/{file}'))


def _name(root: pathlib.Path, folder: pathlib.Path) -> str:
    return folder.relative_to(root).as_posix() if folder != root else folder.resolve().name


def _joined(files: list[pathlib.Path]) -> Seen:
    parts = [read(file, 'nerf_synthetic') for file in files]
    return parts[0]._replace(views=sum((part.views for part in parts), []), faults=sum((part.faults for part in parts), []))


def read(file: pathlib.Path, layout: str) -> Seen:
    """The views that one JSON file describes."""
    tree = scene.load_json(file)
    frames = tree.get('frames')
    if not isinstance(frames, list) or not frames:
        raise Damaged(f'{file} has no "frames": wanted a list of {{"file_path", "transform_matrix"}}.')
    opencv = _convention(tree, file)
    pictures = None
    if all(isinstance(frame, dict) and 'file_path' not in frame for frame in frames):  # ours: 000.png, 001.png, ... in order
        pictures = scene.numbered(file.parent)
        if len(pictures) != len(frames):  # one is missing: the numbers tell which
            pictures = [file.parent / f'{number:03d}.png' for number in range(len(frames))]

    def attempt(number: int):
        return lambda: _view(file, tree, frames[number], number, opencv, pictures and pictures[number])

    up = tree.get('up', '+z?' if layout == 'nerfstudio' else '+z')  # structure from motion knows no up: its cameras decide
    # a file that names its convention is written for t3d, whose objects lie inside [-1, 1]^3
    known = {'up': _up(up, file), 'scale': 1.0 if 'convention' in tree else None}
    return scene.collected(map(attempt, range(len(frames))), **known)


def _convention(tree: dict, file: pathlib.Path) -> bool:
    """Whether the camera's axes are OpenCV's; Damaged for a camera that is no pinhole."""
    convention = tree.get('convention', 'opengl')
    if convention not in ('opengl', 'opencv'):
        raise Damaged(f'{file}: convention {str(convention)[:40]!r}: wanted opengl or opencv.')
    return convention == 'opencv'


def _up(up, file: pathlib.Path) -> str:
    axis = f'+{up}' if up in ('x', 'y', 'z') else up
    if axis not in (*scene.AXES, '+z?'):
        raise Damaged(f'{file}: up {str(up)[:40]!r}: wanted one of +x, -x, +y, -y, +z, -z.')
    return axis


def _view(file: pathlib.Path, tree: dict, frame, number: int, opencv: bool, picture: pathlib.Path | None) -> View:
    where = f'{file}, frame {number}'
    if not isinstance(frame, dict):
        raise Damaged(f'{where} is a {type(frame).__name__}: wanted {{"file_path", "transform_matrix"}}.')
    if picture is None:
        if not isinstance(name := frame.get('file_path'), str) or not name:
            raise Damaged(f'{where} has no file_path.')
        picture = _picture(scene.inside(file.parent, name, where))
    if 'transform_matrix' not in frame:
        raise Damaged(f'{where} ({picture.name}) has no transform_matrix.')
    matrix = scene.pose(frame['transform_matrix'], f'{where} ({picture.name})')
    mask = frame.get('mask_path')
    return View(
        picture,
        matrix if opencv else matrix @ scene.GL,
        _lens({**tree, **frame}, where),
        scene.inside(file.parent, mask, where) if isinstance(mask, str) and mask else None,
    )


def _picture(path: pathlib.Path) -> pathlib.Path:
    """NeRF-synthetic leaves the suffix out; a name like `r_0.1` has none either."""
    if path.suffix.lower() in scene.SUFFIXES or path.is_file():
        return path
    beside = (path.with_name(path.name + suffix) for suffix in scene.SUFFIXES)
    return next((candidate for candidate in beside if candidate.is_file()), path.with_name(path.name + '.png'))


def _lens(keys: dict, where: str) -> scene.Lens:
    """fl_x ... of a frame or of the whole, else camera_angle_x."""
    bent = [key for key in DISTORTION if key in keys and scene.number(keys[key], where) != 0.0]
    model = keys.get('camera_model', 'PINHOLE')
    if bent or model not in MODELS:
        what = f'{bent[0]}={keys[bent[0]]}' if bent else f'camera_model {str(model)[:40]!r}'
        raise Damaged(f'{where} has {what}: lenses that bend straight lines are not read; undistort the pictures first.')
    if 'fl_x' in keys:
        missing = [key for key in ('w', 'h') if key not in keys]
        if missing:
            raise Damaged(f'{where} has fl_x and no {missing[0]}: give the size in pixels that the focal length is for.')
        width, height, focal = (scene.number(keys[key], where) for key in ('w', 'h', 'fl_x'))
        other, x, y = (
            scene.number(keys.get(key, other), where)
            for key, other in (('fl_y', focal), ('cx', 0.5 * width), ('cy', 0.5 * height))
        )
        return scene.lens_of_pixels([[focal, 0.0, x], [0.0, other, y], [0.0, 0.0, 1.0]], width, height, where)
    if 'camera_angle_x' in keys:
        return scene.lens_of_angle(keys['camera_angle_x'], where)
    raise Damaged(f'{where} has no intrinsics: wanted fl_x, w and h (cx, cy, fl_y), or camera_angle_x in radians.')
