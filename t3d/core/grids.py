"""Linear lookup in regular grids: weighted sums of table rows, with a gradient written by hand.

Every interpolation here is one primitive: output n is the sum over K corners of weight[k, n] * table[index[k, n]]. The
forward pass is one gather of whole rows for each corner (rows are contiguous, the C channels come last), which XLA fuses
with the sum; the backward pass is one scatter-add of rows for each corner. No corner is clipped or masked, because the
callers pad the grid by one texel and clip the coordinate once.
"""

import functools

import jax
import jax.numpy as jnp

from t3d.core.typing import Array, Float, Int, typechecked


@jax.custom_vjp
def weighted_rows(table: Float[Array, 'm c'], index: Int[Array, 'k n'], weight: Float[Array, 'k n']) -> Float[Array, 'n c']:
    """sum_k weight[k, n] * table[index[k, n]]; the indices are trusted to lie in [0, M).

    Differentiable in `table` and `weight`, to any order in reverse mode. Work and traffic: K * N rows of C.
    """
    return functools.reduce(jnp.add, (w[:, None] * _rows(table, i) for i, w in zip(index, weight, strict=True)))


def _rows(table, index):
    return table.at[index].get(mode='promise_in_bounds')


def _forward(table, index, weight):
    return weighted_rows(table, index, weight), (table, index, weight)


def _backward(saved, gradient):
    table, index, weight = saved
    to_table = jnp.zeros_like(table)
    for i, w in zip(index, weight, strict=True):
        to_table = to_table.at[i].add((w[:, None] * gradient).astype(table.dtype), mode='promise_in_bounds')
    to_weight = jnp.stack([jnp.sum(_rows(table, i) * gradient, axis=-1) for i in index]).astype(weight.dtype)
    return to_table, None, to_weight


weighted_rows.defvjp(_forward, _backward)


def _cell(coordinate, size: int, border: int = 0):
    """Index of the lower texel in [0, size - 2] and the fraction beyond it; outside [-border, size - 1 - border] is the edge."""
    clipped = jnp.clip(coordinate, -border, size - 1.0 - border)
    low = jnp.floor(clipped)
    low = jnp.minimum(low, size - 2.0 - border)
    place = jnp.clip(low.astype(jnp.int32) + border, 0, size - 2)  # the clip keeps even a NaN inside the table
    return place, clipped - low


def bilinear_corners(
    x: Float[Array, '*b'], y: Float[Array, '*b'], height: int, width: int, border: int = 0,
) -> tuple[Int[Array, '4 *b'], Float[Array, '4 *b']]:
    """Row-major indices and weights of the four texels about (x, y), in texels with centres at the integers.

    `height` and `width` count a border of `border` texels on each side, at the coordinates -border ... -1 and likewise beyond.
    """
    x, fx = _cell(x, width, border)
    y, fy = _cell(y, height, border)
    corner = y * width + x
    index = jnp.stack([corner, corner + 1, corner + width, corner + width + 1])
    return index, jnp.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy])


@typechecked
def bilinear(grid: Float[Array, 'h w c'], xy: Float[Array, '*b 2']) -> Float[Array, '*b c']:
    """Values of an image at `xy` (x to the right, y down, in texels: centres at the integers), clamped at its border.

    A grid of one texel in height or width is refused; pad it first.
    """
    height, width, channels = grid.shape
    if min(height, width) < 2:
        raise ValueError(f'bilinear lookup in a {height} x {width} grid: it takes at least 2 x 2. Pad the grid by one texel.')
    index, weight = bilinear_corners(xy[..., 0].reshape(-1), xy[..., 1].reshape(-1), height, width)
    return weighted_rows(grid.reshape(-1, channels), index, weight).reshape(*xy.shape[:-1], channels)


@typechecked
def trilinear(volume: Float[Array, 'd h w c'], xyz: Float[Array, '*b 3']) -> Float[Array, '*b c']:
    """Values of a volume at `xyz` (x along w, y along h, z along d, in voxels: centres at the integers), clamped at its border."""
    depth, height, width, channels = volume.shape
    if min(depth, height, width) < 2:
        raise ValueError(f'trilinear lookup in a {depth} x {height} x {width} volume: it takes at least 2 along each axis.')
    flat = xyz.reshape(-1, 3)
    index, weight = bilinear_corners(flat[:, 0], flat[:, 1], height, width)
    z, fz = _cell(flat[:, 2], depth)
    below = index + z * (height * width)
    corners = jnp.concatenate([below, below + height * width])
    weights = jnp.concatenate([weight * (1 - fz), weight * fz])
    return weighted_rows(volume.reshape(-1, channels), corners, weights).reshape(*xyz.shape[:-1], channels)
