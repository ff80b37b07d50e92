"""Triplanes: three feature images on the coordinate planes; a point's feature comes from its three projections.

Planes are `[..., 3, R, R, C]`, channels last. A point p of the box [-bound, bound]^3 has q = p / bound in [-1, 1]^3; on each plane
the first coordinate runs along the width, the second along the height:

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

from t3d.core import grids
from t3d.core.typing import Array, Float, typechecked

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
        raise ValueError(f'plane_axes {plane_axes!r}: choose one of {sorted(PLANE_AXES)} ("legacy" is for released EG3D weights).')
    q = points * (1.0 / bound)
    return jnp.stack([jnp.stack([q[..., i], q[..., j]], -1) for i, j in PLANE_AXES[plane_axes]], -3)


def _corners(padded, points, bound, plane_axes):
    """(table [B * 3 * T * T, C], index [4, B, 3, N], weight [4, B, 3, N]) of all planes flattened into one table of rows."""
    *lead, planes, size, _, channels = padded.shape
    table = padded.reshape(-1, channels)
    batch = table.shape[0] // (planes * size * size)
    uv = project(points.reshape(batch, -1, 3), bound, plane_axes)
    x, y = (0.5 * ((uv[..., axis] + 1.0) * (size - 2) - 1.0) for axis in (0, 1))
    index, weight = grids.bilinear_corners(x, y, size, size, border=1)
    first = jnp.arange(batch * planes, dtype=jnp.int32).reshape(batch, planes, 1) * (size * size)
    return table, index + first, weight


@typechecked
def sample(
    padded: Float[Array, '*b 3 r r c'], points: Float[Array, '*b n 3'], bound: float, plane_axes: str = 'orthogonal',
) -> Float[Array, '*b 3 n c']:
    """The feature of each plane at each point, zero outside the box."""
    table, index, weight = _corners(padded, points, bound, plane_axes)
    values = grids.weighted_rows(table, index.reshape(4, -1), weight.reshape(4, -1))
    return values.reshape(*points.shape[:-2], 3, points.shape[-2], table.shape[-1])


@typechecked
def sample_sum(
    padded: Float[Array, '*b 3 r r c'], points: Float[Array, '*b n 3'], bound: float, plane_axes: str = 'orthogonal',
) -> Float[Array, '*b n c']:
    """The sum over the three planes of the features at each point: one pass of 12 rows a point, without [3, N, C] in memory."""
    table, index, weight = _corners(padded, points, bound, plane_axes)
    index, weight = (jnp.moveaxis(value, 2, 1).reshape(12, -1) for value in (index, weight))  # [4, 3, B, N] -> [12, B N]
    return grids.weighted_rows(table, index, weight).reshape(*points.shape[:-1], table.shape[-1])


def aggregate(padded: jax.Array, points: jax.Array, bound: float, plane_axes: str = 'orthogonal') -> jax.Array:
    """The mean over the three planes (EG3D's code; its paper says sum). The field folds the 1/3 into its first weights instead."""
    return sample_sum(padded, points, bound, plane_axes) * (1.0 / 3.0)
