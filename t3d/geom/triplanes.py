"""Triplanes: three feature images on the coordinate planes; a point's feature comes from its three projections.

Planes are `[..., 3, R, R, C]`, channels last. A point p of the box [-bound, bound]^3 has q = p / bound in [-1, 1]^3; on each
plane the first coordinate runs along the width, the second along the height:

| plane_axes | plane 0 | plane 1 | plane 2 |
|---|---|---|---|
| 'orthogonal' (default) | (x, y) | (x, z) | (z, y) |
| 'legacy' (released EG3D weights) | (x, y) | (x, z) | (z, x): plane 1 again, transposed |

Texel i has its centre at q = (2 i + 1) / R - 1, and everything outside the image is zero (torch's grid_sample with
align_corners=False and zero padding). `pad` adds that zero border once; the lookups take padded planes.
Source: EG3D, arXiv 2112.07945; the third plane: NVlabs/eg3d issue 67.
"""

import jax
import jax.numpy as jnp

from t3d.core import grids, platforms
from t3d.core.typing import Array, Float, typechecked

CPU_BLOCK = 8192  # points: rows and hidden layer of 64 fill 2.5 MiB, two cores' caches; smaller ones pay for the loop

PLANE_AXES = {
    'orthogonal': ((0, 1), (0, 2), (2, 1)),
    'legacy': ((0, 1), (0, 2), (2, 0)),
}


@typechecked
def unpack(image: Float[Array, '*b r r pc']) -> Float[Array, '*b 3 r r c']:
    """Planes from the backbone's image of 3 C channels, planes first: channel = plane * C + c."""
    *lead, height, width, channels = image.shape
    if channels % 3:
        raise ValueError(f'{channels} channels do not divide into 3 planes: the backbone must emit 3 * C channels.')
    return jnp.moveaxis(image.reshape(*lead, height, width, 3, channels // 3), -2, -4)


@typechecked
def pack(planes: Float[Array, '*b 3 r r c']) -> Float[Array, '*b r r pc']:
    """The inverse of `unpack`."""
    *lead, _, height, width, channels = planes.shape
    return jnp.moveaxis(planes, -4, -2).reshape(*lead, height, width, 3 * channels)


@typechecked
def pad(planes: Float[Array, '*b 3 r r c']) -> Float[Array, '*b 3 r2 r2 c']:
    """Planes with one texel of zeros around each: the form that the lookups take."""
    return jnp.pad(planes, [(0, 0)] * (planes.ndim - 3) + [(1, 1), (1, 1), (0, 0)])


@typechecked
def project(points: Float[Array, '*b n 3'], bound: float, plane_axes: str = 'orthogonal') -> Float[Array, '*b 3 n 2']:
    """Coordinates in [-1, 1]^2 (width, height) of points on the three planes."""
    if plane_axes not in PLANE_AXES:
        raise ValueError(f'plane_axes {plane_axes!r}: choose one of {sorted(PLANE_AXES)}; legacy is for released EG3D weights.')
    q = points * (1.0 / bound)
    return jnp.stack([jnp.stack([q[..., i], q[..., j]], -1) for i, j in PLANE_AXES[plane_axes]], -3)


def corners(points: Float[Array, 'n 3'], size: int, bound: float, plane_axes: str = 'orthogonal'):
    """(index [4, 3, N], weight [4, 3, N]) into the rows [3 * T * T, C] of padded planes of T = `size` texels."""
    uv = project(points, bound, plane_axes)
    x, y = (0.5 * ((uv[..., axis] + 1.0) * (size - 2) - 1.0) for axis in (0, 1))
    index, weight = grids.bilinear_corners(x, y, size, size, border=1)
    return index + jnp.arange(3, dtype=jnp.int32)[:, None] * (size * size), weight


def _batched(function, padded, points):
    """function(table [3 T T, C], points [N, 3]) for each example of the leading axes."""
    lead, (size, _, channels) = points.shape[:-2], padded.shape[-3:]
    tables = padded.reshape(-1, 3 * size * size, channels)
    out = jax.vmap(function)(tables, points.reshape(-1, *points.shape[-2:]))
    return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), out)


@typechecked
def sample(
    padded: Float[Array, '*b 3 t t c'],
    points: Float[Array, '*b n 3'],
    bound: float,
    plane_axes: str = 'orthogonal',
) -> Float[Array, '*b 3 n c']:
    """The feature of each plane at each point, zero outside the box."""

    def one(table, points):
        index, weight = corners(points, padded.shape[-2], bound, plane_axes)
        return grids.weighted_rows(table, index.reshape(4, -1), weight.reshape(4, -1)).reshape(3, -1, table.shape[-1])

    return _batched(one, padded, points)


@typechecked
def sample_sum(
    padded: Float[Array, '*b 3 t t c'],
    points: Float[Array, '*b n 3'],
    bound: float,
    plane_axes: str = 'orthogonal',
) -> Float[Array, '*b n c']:
    """The sum over the three planes of the features at each point: one pass of 12 rows a point, without [3, N, C] in memory."""

    def one(table, points):
        index, weight = corners(points, padded.shape[-2], bound, plane_axes)
        return grids.weighted_rows(table, index.reshape(12, -1), weight.reshape(12, -1))

    return _batched(one, padded, points)


def map_sum(
    function,
    params,
    padded: Float[Array, '*b 3 t t c'],
    points: Float[Array, '*b n 3'],
    bound: float,
    plane_axes: str = 'orthogonal',
    *,
    block: int | None = None,
):
    """function(params, sample_sum(...)) in blocks of points, forward and backward: `grids.lookup_map` on planes.

    Args:
      function: `(params, plane_sum [n, C]) -> pytree of [n, ...]`, each point by itself.
      block: points at a time over all examples together. None: what stays in the caches of a CPU, all at once elsewhere.
    """
    size, count = padded.shape[-2], points.shape[-2]
    examples = max(1, points.size // (3 * count))
    if block is None:
        block = CPU_BLOCK if platforms.name() == 'cpu' else count * examples

    def places(points):
        return jax.tree.map(lambda value: value.reshape(12, -1), corners(points, size, bound, plane_axes))

    def one(table, points):
        return grids.lookup_map(function, params, table, places, points, max(1, block // examples))

    return _batched(one, padded, points)


def aggregate(padded: jax.Array, points: jax.Array, bound: float, plane_axes: str = 'orthogonal') -> jax.Array:
    """The mean over the three planes (EG3D's code; its paper says sum). The field folds the 1/3 into its weights instead."""
    return sample_sum(padded, points, bound, plane_axes) * (1.0 / 3.0)
