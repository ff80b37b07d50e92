"""What people ask for, as requests: prompts, and the image file that some systems read."""

import pathlib

import numpy as np

from t3d.core import files
from t3d.core.errors import UsageError
from t3d.core.outputs import Request


def make(prompts: list[str], image: str | np.ndarray | None = None) -> list[Request]:
    """One request for each prompt, all with the image if there is one; an image file alone is one, named after the file.

    `image`: a path, or float [H, W, 4] in [0, 1].
    """
    if image is None:
        return [Request(prompt) for prompt in prompts]
    if not isinstance(image, str):
        return [Request(prompt, image) for prompt in prompts or ['image']]
    pixels = read_image(image)
    return [Request(prompt, pixels) for prompt in prompts or [pathlib.Path(image).stem]]


def read_image(path: str) -> np.ndarray:
    """float32 [H, W, 4] in [0, 1], straight alpha, of a picture of any common format; turned as its EXIF says.

    Raises:
      UsageError: no picture there, or not one that can be read.
    """
    from PIL import Image

    from t3d.data.sets import images

    place = pathlib.Path(path)
    if place.is_dir():
        inside = sorted(file.name for file in place.iterdir() if file.suffix.lower() in images.SUFFIXES)
        near = f' Nearest: --image {files.quoted(place / inside[0])}.' if inside else ''
        raise UsageError(f'--image {path} is a folder: give one picture file.{near}')
    if not place.is_file():
        raise UsageError(f'--image {path}: no such file.')
    try:
        with Image.open(place) as opened:
            picture = images.upright(opened)
            if picture.mode[0] in 'IF':
                raise UsageError(f'--image {path} has pixels of kind {picture.mode}: wanted 8 bits a channel.')
            return np.asarray(picture.convert('RGBA'), np.float32) / 255.0
    except UsageError:
        raise
    except Exception as error:  # Pillow lets through what its decoders meet: OSError, SyntaxError, struct.error, ...
        raise UsageError(f'--image {path}: not a picture that can be read ({error}): give a PNG or JPEG.') from error
