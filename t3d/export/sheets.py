"""Labelled contact sheets."""

import math
from collections.abc import Sequence

import numpy as np

from t3d.core import files

MIN_SIDE = 96  # px; smaller images are enlarged by a whole factor, so that a pixel stays a pixel
LINE = 14  # px, height of a line of text
MARGIN = 4  # px


def sheet(rows, labels: Sequence[str] | None = None, background: int = 255, *, title: str = '') -> np.ndarray:
    """One image per row of the sheet, each under its label.

    Args:
      rows: [N, H, W, 3] or [N, V, H, W, 3] (V images side by side), uint8, or float in [0, 1].
      labels: N texts, wrapped to the width.
      title: a line above everything, for what the columns are.
    Returns:
      uint8 [height, width, 3].
    """
    from PIL import Image, ImageDraw

    images = to_uint8(rows)
    if images.ndim == 5:
        images = np.concatenate(list(np.moveaxis(images, 1, 0)), axis=2)  # [N, H, V W, 3]
    count, height, width, _ = images.shape
    factor = max(1, math.ceil(MIN_SIDE / min(height, width)))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = height * factor, width * factor
    texts = [_wrap(str(label), width) for label in labels] if labels is not None else [[]] * count
    if len(texts) != count:
        raise ValueError(f'sheet: {count} images and {len(texts)} labels.')
    heights = [len(lines) * LINE + height + 2 * MARGIN for lines in texts]
    head = _wrap(title, width) if title else []
    canvas = Image.new('RGB', (width + 2 * MARGIN, sum(heights) + MARGIN + LINE * len(head)), (background,) * 3)
    draw = ImageDraw.Draw(canvas)
    ink, y = (0, 0, 0) if background > 127 else (255, 255, 255), MARGIN
    for line in head:
        draw.text((MARGIN, y), line, fill=ink)
        y += LINE
    for image, lines, step in zip(images, texts, heights, strict=True):
        for n, line in enumerate(lines):
            draw.text((MARGIN, y + n * LINE), line, fill=ink)
        canvas.paste(Image.fromarray(image), (MARGIN, y + len(lines) * LINE))
        y += step
    return np.asarray(canvas)


def to_uint8(images) -> np.ndarray:
    """Float images in [0, 1] as uint8; uint8 passes. NaN becomes 0."""
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    return (np.clip(np.nan_to_num(images.astype(np.float32)), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def write(path, image: np.ndarray) -> None:
    """A uint8 image [H, W, 3] as PNG; the path may be a bucket's."""
    import io

    from etils import epath
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'png')
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, buffer.getvalue())


def _wrap(text: str, width: int, character: int = 6) -> list[str]:
    """Lines of at most width px at ~6 px a character of the default font; at most 4 of them."""
    room, lines = max(width // character, 8), ['']
    for word in text.split():
        joined = f'{lines[-1]} {word}'.strip()
        if len(joined) <= room or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(word)
    lines = [line if len(line) <= room else line[: room - 1] + '…' for line in lines]
    return lines if len(lines) <= 4 else [*lines[:3], lines[3][: room - 1] + '…']
