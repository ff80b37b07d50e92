"""What people ask for, as requests: prompts, and the image file that some systems read."""

import pathlib

import numpy as np

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
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not pathlib.Path(path).is_file():
        raise UsageError(f'--image {path}: no such file.')
    try:
        with Image.open(path) as picture:
            return np.asarray(ImageOps.exif_transpose(picture).convert('RGBA'), np.float32) / 255.0
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f'--image {path}: not a picture that can be read ({error}).') from error
