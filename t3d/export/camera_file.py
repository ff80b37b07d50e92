"""`cameras.json`: the turntable's cameras as nerfstudio reads them, with the frames as PNG files where they are asked for.

World y up, front +z, scene units, as the meshes; OpenGL camera axes; lenses in pixels of the file that the frame is in.
"""

import json
import pathlib

import numpy as np

from t3d.core import files
from t3d.geom import cameras

PANELS = ('colour', 'normal', 'depth')  # of a video's frame, from left to right


def write_frames(images: np.ndarray, folder: pathlib.Path) -> list[str]:
    """uint8 [V, H, W, 3] as `0000.png` and so on in a folder; returns their paths relative to its parent, in order."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    names = [f'{index:04d}.png' for index in range(len(images))]
    for name, image in zip(names, images, strict=True):
        files.write_image(folder / name, Image.fromarray(image))
    return [f'{folder.name}/{name}' for name in names]


def video(path: pathlib.Path, height: int, panels: tuple[str, ...], fps: float) -> dict:
    """What `cameras.json` says of a turntable file: square panels side by side, one frame for each camera, in order."""
    return {'file_path': path.name, 'w': height * len(panels), 'h': height, 'fps': fps, 'panels': list(panels)}


def write(path: pathlib.Path, views: cameras.Cameras, size: int, *, names: list[str] | None, videos: list[dict]) -> None:
    """Writes the file.

    Args:
      views: V cameras.
      size: side, in pixels, of what the lenses are for: the named images, or else one panel of the first video.
      names: paths of the V images relative to the file; None where there are only videos, which no frame is named after.
      videos: each of `video`.
    """
    document = {**cameras.transforms_json(views, size, names), 'videos': videos}
    files.write(path, json.dumps(document))
