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


def corners(layout: Layout, points: Float[Array, 'n 3']) -> tuple[jax.Array, jax.Array]:
    """(index int32 [8, L, N], weight [8, L, N]) into the rows of a table; corner c has the bits x + 2 y + 4 z."""
    levels = {name: np.array(values)[:, None] for name, values in layout._asdict().items() if name != 'total'}
    scale = levels['scales'].astype(np.float32)[..., None]
    position = scale * jnp.clip(points, 0.0, 1.0) + 0.5  # [L, N, 3]
    low = jnp.floor(position)
    fraction, low = position - low, low.astype(jnp.uint32)
    dense = int(np.sum(~levels['hashed']))  # the coarse levels come first
    resolution = levels['resolutions'][:dense].astype(np.uint32)
    strides = [np.ones_like(resolution), resolution, resolution * resolution]
    # Per axis and side: what a corner adds to its row, and its share of the weight.
    parts = [[(low[:dense, :, axis] + np.uint32(side)) * strides[axis] for side in (0, 1)] for axis in range(3)]
    words = [[(low[dense:, :, axis] + np.uint32(side)) * np.uint32(PRIMES[axis]) for side in (0, 1)] for axis in range(3)]
    shares = [[1.0 - fraction[..., axis], fraction[..., axis]] for axis in range(3)]
    index, weight = [], []
    for corner in range(8):
        x, y, z = corner & 1, corner >> 1 & 1, corner >> 2
        flat = (parts[0][x] + parts[1][y] + parts[2][z]) % levels['rows'][:dense].astype(np.uint32)
        mixed = (words[0][x] ^ words[1][y] ^ words[2][z]) % levels['rows'][dense:].astype(np.uint32)
        index.append(jnp.concatenate([flat, mixed]).astype(jnp.int32) + levels['offsets'].astype(np.int32))
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
    flat = points.reshape(-1, 3)
    index, weight = corners(layout, flat)
    if table.ndim == 3:
        each = flat.shape[0] // table.shape[0]
        index = index + jnp.repeat(jnp.arange(table.shape[0], dtype=jnp.int32) * rows, each)
    out = grids.weighted_rows(table.reshape(-1, channels), index.reshape(8, -1), weight.reshape(8, -1))
    out = out.reshape(layout.levels, -1, channels)  # [L, N, F]
    if level_mask is not None:
        out = out * level_mask[:, None, None]
    return jnp.moveaxis(out, 0, 1).reshape(*points.shape[:-1], layout.levels * channels)


def progressive(levels: int, step, *, first: int, start: int, every: int) -> jax.Array:
    """[L] mask of 0 and 1: the `first` coarse levels until `step` is `start`, one more after each further `every` steps."""
    shown = first + jnp.maximum(jnp.asarray(step) - start, 0) // every
    return (jnp.arange(levels) < shown).astype(jnp.float32)
