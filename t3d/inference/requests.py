"""What people ask for, as requests: prompts, and the image file or folder of posed pictures that some systems read."""

import pathlib
import sys

import numpy as np

from t3d.core import files
from t3d.core.errors import UsageError
from t3d.core.outputs import Request, Views

CAMERAS = ('cameras.json', 'transforms.json')  # of a folder of posed pictures, the first that is there
MOST = 4096  # pictures of one folder
SIDE = 256  # pixels of pictures that come in a layout of other people's data sets


def make(prompts: list[str], image: str | np.ndarray | None = None, views: str | Views | None = None) -> list[Request]:
    """One request for each prompt, all with the image or views if there are any; these alone are one, named after the file.

    Args:
      image: a path, or float [H, W, 4] in [0, 1].
      views: a folder (`read_views`), or what one holds.
    """
    name = next((pathlib.Path(path).resolve().stem for path in (image, views) if isinstance(path, str)), None)
    name = name or ('image' if image is not None else 'views' if views is not None else None)
    image = read_image(image) if isinstance(image, str) else image
    views = read_views(views) if isinstance(views, str) else views
    return [Request(prompt, image, views) for prompt in prompts or ([name] if name else [])]


def read_image(path: str, flag: str = '--image') -> np.ndarray:
    """float32 [H, W, 4] in [0, 1], straight alpha, of a picture of any common format; turned as its EXIF says.

    Raises:
      UsageError: no picture there, or not one that can be read.
    """
    from PIL import Image

    from t3d.data.sets import images

    place = pathlib.Path(path)
    if place.is_dir():
        inside = sorted(file.name for file in place.iterdir() if file.suffix.lower() in images.SUFFIXES)
        near = f' Nearest: {flag} {files.quoted(place / inside[0])}.' if inside else ''
        raise UsageError(f'{flag} {path} is a folder: give one picture file.{near}')
    if not place.is_file():
        raise UsageError(f'{flag} {path}: no such file.')
    try:
        with Image.open(place) as opened:
            picture = images.upright(opened)
            if picture.mode[0] in 'IF':
                raise UsageError(f'{flag} {path} has pixels of kind {picture.mode}: wanted 8 bits a channel.')
            return np.asarray(picture.convert('RGBA'), np.float32) / 255.0
    except UsageError:
        raise
    except Exception as error:  # Pillow lets through what its decoders meet: OSError, SyntaxError, struct.error, ...
        raise UsageError(f'{flag} {path}: not a picture that can be read ({error}): give a PNG or JPEG.') from error


def read_views(folder: str) -> Views:
    """The posed pictures of a folder: t3d's own (`cameras.json` and what it names), nerfstudio's `transforms.json`, or those of
    the first object of any layout of t3d.data.layouts, made square at SIDE px and in the set's world.

    Pictures that are opaque throughout come as RGB. A file that says nothing of its axes has nerfstudio's: z up.

    Raises:
      UsageError: nothing there, or not what is wanted; with what to do.
    """
    from t3d.data.layouts import scene, transforms, world
    from t3d.data.sets import posed_images

    place = pathlib.Path(folder)
    path = next((place / name for name in CAMERAS if (place / name).is_file()), None)
    if path is None:
        return _of_layout(place)
    frames = scene.load_json(path).get('frames')
    if not isinstance(frames, list) or not 0 < len(frames) <= MOST:
        raise UsageError(f'{path} names no pictures: wanted a list `frames` of 1 to {MOST}, each with file_path.')
    if not any(isinstance(frame, dict) and 'file_path' in frame for frame in frames) and not scene.numbered(place):
        raise UsageError(f'{path} names no pictures, as of a video: `t3d generate --images` writes frames that are named.')
    seen = transforms.read(path, 'nerfstudio' if path.name == CAMERAS[1] else 'ours')
    if seen.faults:
        raise UsageError(seen.faults[0])
    images, lenses = [], []
    for view in seen.views:
        picture = posed_images.decoded(view)
        images.append(np.asarray(picture, np.float32) / 255.0)
        lenses.append(view.lens(*picture.size))
        if images[-1].shape != images[0].shape:
            sizes = [f'{one.shape[1]} x {one.shape[0]}' for one in (images[0], images[-1])]
            raise UsageError(f'{view.image} is of {sizes[1]} pixels, the first of {sizes[0]}: scale them to one size.')
    poses = np.stack([view.world_from_cam for view in seen.views])
    poses[:, :3] = np.asarray(world.TURNS[seen.up.rstrip('?')], np.float64) @ poses[:, :3]
    images = np.stack(images)
    images = images if images[..., 3].min() < 1.0 else images[..., :3]
    return Views(place.resolve().name, images, poses.astype(np.float32), np.stack(lenses).astype(np.float32))


def _of_layout(place: pathlib.Path) -> Views:
    """The first object of a folder in one of the layouts of other people's posed pictures."""
    from t3d.data.sets import posed

    if not place.is_dir():
        raise UsageError(f'--views {place} is no folder: wanted one of pictures with their cameras.')
    try:
        source = posed.PosedSource(place, 'all', size=SIDE)
        record = source[0]
    except UsageError as error:
        raise UsageError(f'--views {place} has neither {CAMERAS[0]} nor {CAMERAS[1]}, and as a data set: {error}') from error
    if len(source) > 1:
        note = (
            f'note: {place} has {len(source)} objects; {record["name"]} is made. Give the folder of another alone for that one.'
        )
        print(note, file=sys.stderr)
    images = np.asarray(record['image'], np.float32) / 255.0
    images = images if images[..., 3].min() < 1.0 else images[..., :3]
    return Views(record['name'], images, record['world_from_cam'], record['intrinsics'])
