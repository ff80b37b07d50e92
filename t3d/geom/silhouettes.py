"""Which pixels of a picture on a plain background are the object: for pictures that have no alpha. Host side."""

import numpy as np


def plain_background(images: np.ndarray) -> tuple[np.ndarray, float]:
    """(colour [3], deviation) of the outermost pixels of pictures [V, H, W, 3]: medians, for some may show an object."""
    frame = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1).reshape(-1, 3)
    colour = np.median(frame, 0)
    return colour.astype(np.float32), float(1.4826 * np.median(np.abs(frame - colour).max(-1)))


def matte(images: np.ndarray, background, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, where it is sure) of pictures [V, H, W, 3] on a plain background; both float32 [V, H, W].

    Background is what is within `tolerance` of its colour (largest channel) and joined to the picture's frame, so that a white
    part of an object on white stays. The pixels at the outline are mixed and not sure: their alpha is their distance from the
    background over the largest of their neighbours'.
    """
    from scipy import ndimage

    far = np.abs(np.asarray(images, np.float32) - np.asarray(background, np.float32)).max(-1)
    near = far <= tolerance
    solid = np.ones(near.shape, bool)
    for one, out in zip(near, solid):
        places, _ = ndimage.label(np.pad(one, 1, constant_values=True))
        out[:] = (places != places[0, 0])[1:-1, 1:-1]
    cross = ndimage.generate_binary_structure(2, 1)[None]
    inner = ndimage.binary_erosion(solid, cross, border_value=1)
    mixed = far / np.maximum(ndimage.maximum_filter(far, (1, 3, 3)), 1e-6)
    alpha = np.where(inner, 1.0, np.where(solid, mixed, 0.0))
    return alpha.astype(np.float32), (inner | ~solid).astype(np.float32)


def alpha_of(images: np.ndarray, tolerance: float = 0.04):
    """(alpha [V, H, W], where it is sure [V, H, W], background [3]) of pictures [V, H, W, 3 or 4], float in [0, 1].

    That of RGBA is their own, over white. RGB is cut out from the colour of its frame, by `tolerance` or three times the
    frame's deviation.
    """
    images = np.asarray(images, np.float32)
    if images.shape[-1] == 4:
        return images[..., 3], np.ones(images.shape[:3], np.float32), np.ones(3, np.float32)
    background, deviation = plain_background(images)
    return *matte(images, background, max(tolerance, 3.0 * deviation)), background


def over(images: np.ndarray, background) -> np.ndarray:
    """RGB [V, H, W, 3] of pictures over a colour; those without alpha as they are."""
    images = np.asarray(images, np.float32)
    return images if images.shape[-1] == 3 else images[..., :3] * images[..., 3:] + background * (1.0 - images[..., 3:])


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Mean over views of |a and b| / |a or b| of opacities [V, H, W], cut at a half; 1 where both are empty."""
    one, other = np.asarray(one) > 0.5, np.asarray(other) > 0.5
    both, either = np.sum(one & other, (1, 2)), np.sum(one | other, (1, 2))
    return float(np.mean(np.where(either > 0, both / np.maximum(either, 1), 1.0)))


def colour_error(one: np.ndarray, other: np.ndarray, union: np.ndarray) -> float:
    """Mean absolute difference in [0, 1] of pictures [V, H, W, 3] over the pixels of `union` [V, H, W]; 0 of none."""
    off = np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean(-1)
    return float(off[union].mean()) if union.any() else 0.0
