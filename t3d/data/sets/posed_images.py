"""Pictures of posed views: read, made square about their principal point, resampled; the intrinsics follow exactly.

Square pictures whose principal point is within `CENTRE` of the middle stay whole. Of others a square about the middle (about
the principal point, where that is further off) is taken: the smallest that holds all of the picture where the picture knows
its background (it has an alpha channel or a mask), with nothing behind the pixels added; the largest inside of it where not.
"""

import pathlib
from typing import NamedTuple

import numpy as np

from t3d.core.errors import UsageError
from t3d.data.layouts.scene import View
from t3d.data.sets.archives import Damaged
from t3d.data.sets.camera_labels import CENTRE
from t3d.data.sets.images import reason

MOST_PIXELS = 1 << 27  # of a picture


class Window(NamedTuple):
    """A square of a picture, in its pixels: left, top and side, which may lie partly outside."""

    left: float
    top: float
    side: float


class Geometry(NamedTuple):
    """What is known of a view before its pixels are read."""

    size: tuple[int, int]  # width, height of the file
    window: Window
    intrinsics: np.ndarray  # float64 [3, 3], divided by the side of the window
    transparent: bool  # the picture knows its background


def geometry(view: View) -> Geometry:
    """Size, window and intrinsics of a view, from the header of its file."""
    with _opened(view.image) as picture:
        width, height = picture.size
        alpha = _has_alpha(picture) or view.mask is not None or view.white
    k = np.asarray(view.lens(width, height), np.float64) * [[width], [height], [1.0]]
    window = square(width, height, k[0, 2], k[1, 2], alpha, str(view.image))
    k[0, 2], k[1, 2] = k[0, 2] - window.left, k[1, 2] - window.top
    return Geometry((width, height), window, k / [[window.side], [window.side], [1.0]], alpha)


def square(width: int, height: int, x: float, y: float, whole: bool, where: str) -> Window:
    """The window of a width x height picture whose principal point is (x, y) in pixels.

    Args:
      whole: the window holds all of the picture; else it lies inside of it.
    """
    centred = max(abs(x / width - 0.5), abs(y / height - 0.5)) <= CENTRE
    if centred and width == height:
        return Window(0.0, 0.0, float(width))
    if centred:
        x, y = 0.5 * width, 0.5 * height
    half = max(x, width - x, y, height - y) if whole else min(x, width - x, y, height - y)
    if half < 2.0 or half > 4.0 * max(width, height):
        raise Damaged(f'{where}: the principal point ({x:.4g}, {y:.4g}) lies outside of its {width} x {height} picture.')
    return Window(x - half, y - half, 2.0 * half)


def load(view: View, known: Geometry, size: int) -> np.ndarray:
    """uint8 [size, size, 4], straight alpha: the window of a view, resampled.

    Raises:
      Damaged: pictures and masks that cannot be read, that are of another size than the header or the picture.
    """
    from PIL import Image

    picture = decoded(view)
    left, top, side = known.window
    low_x, low_y = int(np.ceil(max(-left, 0.0))), int(np.ceil(max(-top, 0.0)))
    high_x = int(np.ceil(max(left + side - picture.width, 0.0)))
    high_y = int(np.ceil(max(top + side - picture.height, 0.0)))
    if low_x or low_y or high_x or high_y:
        canvas = Image.new('RGBA', (picture.width + low_x + high_x, picture.height + low_y + high_y))
        canvas.paste(picture, (low_x, low_y))
        picture = canvas
    box = (left + low_x, top + low_y, left + low_x + side, top + low_y + side)
    if box == tuple(map(round, box)) and side == size:
        return np.array(picture.crop(tuple(map(round, box))))
    method = Image.Resampling.BOX if side >= 2.0 * size and side % size == 0 else Image.Resampling.BILINEAR
    return np.array(picture.resize((size, size), method, box))  # of RGBA Pillow weighs colours by alpha


def decoded(view: View):
    """The whole picture as a PIL image of RGBA: its mask, if it has one, is the alpha."""
    from PIL import Image

    with _opened(view.image) as opened:
        if opened.mode[0] in 'IF':
            raise Damaged(f'{view.image} has pixels of kind {opened.mode}: wanted 8 bits a channel.')
        try:
            alpha = _has_alpha(opened)
            picture = opened.convert('RGBA')
        except Exception as error:  # what the decoders of Pillow meet
            raise Damaged(f'{view.image} cannot be read ({reason(error)}): copy it again.') from error
    if view.mask is not None:
        with _opened(view.mask) as opened:
            try:
                mask = opened.convert('L')
            except Exception as error:
                raise Damaged(f'{view.mask} cannot be read ({reason(error)}): copy it again.') from error
        if mask.size != picture.size:
            sizes = f'{mask.width} x {mask.height} pixels, its picture {picture.width} x {picture.height}'
            raise Damaged(f'{view.mask} has {sizes}.')
        picture.putalpha(mask)
    elif view.white and not (alpha and picture.getextrema()[3][0] < 255):
        pixels = np.array(picture)
        pixels[..., 3] = np.where((pixels[..., :3] == 255).all(-1), 0, 255)
        picture = Image.fromarray(pixels)
    return picture


def _opened(path: pathlib.Path):
    from PIL import Image

    try:
        picture = Image.open(path)
    except FileNotFoundError as error:
        raise Damaged(f'{path} is missing.') from error
    except UsageError:
        raise
    except Exception as error:
        raise Damaged(f'{path} is no whole picture ({reason(error)}): copy it again.') from error
    if picture.width * picture.height > MOST_PIXELS:
        raise Damaged(f'{path} has {picture.width} x {picture.height} pixels: wanted at most {MOST_PIXELS}.')
    return picture


def _has_alpha(picture) -> bool:
    return 'A' in picture.mode or 'a' in picture.mode or 'transparency' in picture.info
