"""Bicubic resizing as PIL does it with 8-bit pictures, which is how the weights of CLIP and its kin have seen theirs.

PIL changes one axis after the other, with weights of 22 binary digits, and rounds and clips to 0..255 after *each* pass. At a
sharp edge the cubic overshoots, so clipping once at the end gives other pictures. The order of the axes is that of Pillow 13.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core.typing import Array, Float

A = -0.5  # of Keys' cubic, PIL's BICUBIC
SUPPORT = 2.0
BITS = 22  # PIL's PRECISION_BITS for 8-bit pictures


def bicubic(images: Float[Array, 'b h w c'], height: int, width: int) -> Float[Array, 'b h2 w2 c']:
    """Images in [0, 1] at height x width, in steps of 1/255, bit for bit PIL's `resize` of the rounded images; [0, 1].

    The gradient is that of the resizing without rounding or clipping. Images of that size come back as they are.
    """
    if images.shape[1:3] == (height, width):
        return images
    exact = images
    for axis, size in _passes(images.shape, height, width):
        exact = jnp.moveaxis(jnp.tensordot(exact, _weights(images.shape[axis], size)[0], (axis, 1)), -1, axis)
    return exact + jax.lax.stop_gradient(_rounded(images, height, width) - exact)


def _rounded(images, height: int, width: int):
    """What PIL makes of the images, as float multiples of 1/255."""
    levels = jnp.clip(jnp.round(255.0 * images), 0.0, 255.0).astype(jnp.int32)
    for axis, size in _passes(images.shape, height, width):
        _, taps, first = _weights(levels.shape[axis], size)
        total = jnp.full((*levels.shape[:axis], size, *levels.shape[axis + 1 :]), 1 << (BITS - 1), jnp.int32)
        for k in range(taps.shape[1]):
            place = np.minimum(first + k, levels.shape[axis] - 1)
            weight = taps[:, k].reshape((-1,) + (1,) * (levels.ndim - axis - 1))
            total = total + jnp.take(levels, place, axis) * weight
        levels = jnp.clip(total >> BITS, 0, 255)
    return levels.astype(jnp.float32) / 255.0


def _passes(shape: tuple[int, ...], height: int, width: int) -> list[tuple[int, int]]:
    """(axis, its new size) of each pass; the width goes first unless the height shrinks by more than twice as much."""
    less_high, less_wide = shape[1] - height, shape[2] - width
    both = [(1, height), (2, width)] if less_high > max(0, 2 * less_wide) else [(2, width), (1, height)]
    return [(axis, size) for axis, size in both if shape[axis] != size]


@functools.cache
def _weights(before: int, after: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(matrix [after, before] float32, taps [after, K] int32 of 22 binary digits, their first place [after]) along one axis."""
    scale = before / after
    reach = SUPPORT * max(scale, 1.0)
    centre = (np.arange(after) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(int), 0)
    last = np.minimum((centre + reach + 0.5).astype(int), before)
    place = first[:, None] + np.arange((last - first).max())
    taps = np.where(place < last[:, None], _cubic((place - centre[:, None] + 0.5) * (1.0 / max(scale, 1.0))), 0.0)
    taps *= 1.0 / np.cumsum(taps, 1)[:, -1:]  # added one after the other, as PIL does: the last digits decide some roundings
    matrix = np.zeros((after, before + place.shape[1]))
    np.put_along_axis(matrix, place, taps, 1)
    whole = np.trunc(taps * (1 << BITS) + np.where(taps < 0.0, -0.5, 0.5)).astype(np.int32)
    return matrix[:, :before].astype(np.float32), whole, first


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * A
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
