"""Multiresolution hash grids: a point's features from L grids, of which the coarse are dense and the fine are hashed.

instant-ngp (arXiv 2201.05989, Sec. 3) in the convention of tiny-cuda-nn. Level l has

    scale_l = base * growth^l - 1,   resolution_l = ceil(scale_l) + 1,   position = scale_l x + 1/2,   x in [0, 1]^3

and the eight corners floor(position) + {0, 1}^3, whose rows are mixed by the fraction. The row of a corner is
x + y resolution + z resolution^2 where resolution^3 <= 2^log2_rows, else (x ^ y 2654435761 ^ z 805459861) in uint32; both
modulo the rows of the level. So a corner beyond the last grid point of a dense level wraps to another row, as there.

The rows of all levels are one table, and many tables are looked up as one: a gather that knows no batch is the cheapest. The
only derivative by hand is that of `grids.weighted_rows`, so that those of any order go through in reverse mode.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import grids
from t3d.core.errors import UsageError
from t3d.core.typing import Array, Float, Key, typechecked

PRIMES = (1, 2654435761, 805459861)
INIT = 1e-4  # entries of a new table are uniform in [-INIT, INIT] (Sec. 4)


class Layout(NamedTuple):
    """Where the levels lie in a table; numbers, so that it is static for the compiler.

    Attributes:
      scales: of each level, grid steps over the unit cube.
      resolutions: of each level, grid points per side.
      rows: of each level.
      offsets: of each level, its first row.
      hashed: of each level, whether its corners are hashed.
      total: rows of the table.
    """

    scales: tuple[float, ...]
    resolutions: tuple[int, ...]
    rows: tuple[int, ...]
    offsets: tuple[int, ...]
    hashed: tuple[bool, ...]
    total: int

    @property
    def levels(self) -> int:
        return len(self.rows)


def layout(levels: int = 16, log2_rows: int = 19, base: int = 16, growth: float = 1.4472692) -> Layout:
    """The layout of L levels of at most 2^log2_rows rows, the first of `base` grid points per side, each `growth` times finer.

    On the host in float64, once: in float32 a resolution at an integer edge (4096 of the default) would depend on rounding, and
    with it every row of a dense level.

    Raises: UsageError for sizes that no table has.
    """
    finest = base * growth ** (levels - 1)
    if levels < 1 or base < 2 or growth < 1.0 or not 3 <= log2_rows <= 24 or not finest < 2**20:
        raise UsageError(
            f'hash grid of {levels} levels from {base} points per side by {growth} each, 2^{log2_rows} rows: wanted '
            f'levels >= 1, base >= 2, growth >= 1, 3 <= log2_rows <= 24, and fewer than 2^20 points per side at the finest '
            f'level, here {finest:.4g}. Change the one that is out of range.'
        )
    scales = [base * growth**level - 1.0 for level in range(levels)]
    resolutions = [math.ceil(scale) + 1 for scale in scales]
    rows = [min(-(-(resolution**3) // 8) * 8, 2**log2_rows) for resolution in resolutions]
    offsets = np.concatenate([[0], np.cumsum(rows)])
    hashed = tuple(resolution**3 > 2**log2_rows for resolution in resolutions)
    return Layout(tuple(scales), tuple(resolutions), tuple(rows), tuple(map(int, offsets[:-1])), hashed, int(offsets[-1]))


def init(key: Key, layout: Layout, channels: int = 2) -> jax.Array:
    """A new table [rows, F]."""
    return jax.random.uniform(key, (layout.total, channels), jnp.float32, -INIT, INIT)


def corners(layout: Layout, level: int, points: Float[Array, 'n 3']) -> tuple[jax.Array, jax.Array]:
    """(index int32 [8, N], weight [8, N]) into the rows of one level; corner c has the bits x + 2 y + 4 z."""
    resolution, rows, hashed = layout.resolutions[level], np.uint32(layout.rows[level]), layout.hashed[level]
    position = np.float32(layout.scales[level]) * jnp.clip(points.T, 0.0, 1.0) + 0.5  # [3, N]
    low = jnp.floor(position)
    fraction, low = position - low, low.astype(jnp.uint32)
    steps = [np.uint32(step) for step in (PRIMES if hashed else (1, resolution, resolution**2))]
    words = [[low[axis] * step, (low[axis] + np.uint32(1)) * step] for axis, step in enumerate(steps)]
    shares = [[1.0 - fraction[axis], fraction[axis]] for axis in range(3)]
    index, weight = [], []
    for corner in range(8):
        x, y, z = corner & 1, corner >> 1 & 1, corner >> 2
        if hashed:
            row = (words[0][x] ^ words[1][y] ^ words[2][z]) & (rows - np.uint32(1))
        else:  # below twice the rows: the remainder without a division, and a NaN stays inside
            row = words[0][x] + words[1][y] + words[2][z]
            row = jnp.minimum(jnp.where(row >= rows, row - rows, row), rows - np.uint32(1))
        index.append(row.astype(jnp.int32))
        weight.append(shares[0][x] * shares[1][y] * shares[2][z])
    return jnp.stack(index), jnp.stack(weight)


@typechecked
def encode(
    layout: Layout,
    table: Float[Array, '*p rows f'],
    points: Float[Array, '*b 3'],
    level_mask: Float[Array, ' l'] | None = None,
) -> Float[Array, '*b lf']:
    """Features [..., L F] of points, level by level; points outside the unit cube are moved to its surface.

    Args:
      table: [rows, F] for points [..., 3], or [P, rows, F] for points [P, ..., 3]: P tables in one gather.
      points: in [0, 1]^3.
      level_mask: [L] factors of the levels, which may be traced (`progressive`); None: all 1.
    """
    rows, channels = table.shape[-2:]
    if rows != layout.total:
        raise ValueError(f'a table of {rows} rows for a layout of {layout.total}: make it by hashgrid.init(key, layout).')
    if table.ndim > 3 or (table.ndim == 3 and points.shape[0] != table.shape[0]):
        raise ValueError(f'tables {table.shape} and points {points.shape}: wanted [P, rows, F] and [P, ..., 3], or [rows, F].')
    if table.size // channels >= 2**31:
        raise UsageError(f'{table.shape[0]} tables of {rows} rows: wanted fewer than 2^31 rows in all. Take fewer at a time.')
    lead = table.shape[0] if table.ndim == 3 else 1
    flat = points.reshape(-1, 3)
    which = jnp.repeat(jnp.arange(lead, dtype=jnp.int32), flat.shape[0] // lead)
    out = []
    # One lookup a level: what is looked up is summed at once, and gradients of the levels lie side by side in one table.
    for level, part in enumerate(jax.lax.split(table.reshape(lead, rows, channels), layout.rows, 1)):
        index, weight = corners(layout, level, flat)
        if level_mask is not None:
            weight = weight * level_mask[level]
        out.append(grids.weighted_rows(part.reshape(-1, channels), index + which * layout.rows[level], weight))
    return jnp.concatenate(out, -1).reshape(*points.shape[:-1], layout.levels * channels)


def progressive(levels: int, step, *, first: int, start: int, every: int) -> jax.Array:
    """[L] mask of 0 and 1: the `first` coarse levels until `step` is `start`, one more after each further `every` steps."""
    shown = first + jnp.maximum(jnp.asarray(step) - start, 0) // every
    return (jnp.arange(levels) < shown).astype(jnp.float32)
