"""Where something is: a grid over [-1, 1]^3 of what is occupied, and the limits of rays between its cells.

Two ways to fill it. `fields/fitting.py` looks at a whole field now and then; here a field that is being optimised keeps the
largest recent optical thickness of each cell, which fades (instant-ngp, arXiv 2201.05989, App. E, in nerfacc's form):

    cells <- max(0.95 cells, density(a random point of the cell) * step length)
    occupied: cells > min(mean(cells), 0.01)

Axes of a grid are x, y, z. Shapes are static: a ray keeps its number of samples and spreads them over a shorter way.
"""

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core.typing import Array, Bool, Float, Key, Shaped, typechecked
from t3d.geom.rays import Rays, ray_box

MARCH = 64  # places on a ray at which the grid of what is occupied is asked
WARMUP = 256  # steps in which nothing is left out: what is not there yet may still appear
THRESHOLD = 1e-2  # optical thickness of a cell


def centres(cells: int) -> jax.Array:
    """[G^3, 3] the middles of the cells, z fastest."""
    middle = (jnp.arange(cells, dtype=jnp.float32) + 0.5) * (2.0 / cells) - 1.0
    return jnp.stack(jnp.meshgrid(middle, middle, middle, indexing='ij'), -1).reshape(-1, 3)


def grow(occupied: Bool[Array, 'g g g']) -> jax.Array:
    """Occupied cells and their 26 neighbours."""
    full = occupied.astype(jnp.float32)
    return jax.lax.reduce_window(full, np.float32(0.0), jax.lax.max, (3, 3, 3), (1, 1, 1), 'SAME') > 0.0


@typechecked
def update(
    cells: Float[Array, '*p g g g'], density, key: Key | None, *, length: float, decay: float = 0.95
) -> Float[Array, '*p g g g']:
    """The grids after one look at a density, at a random point of each cell, the same points in each grid.

    Args:
      cells: of one scene, or with a leading axis of several; zeros at first.
      density: `(points [..., G^3, 3]) -> [..., G^3]`, per unit of the cube; not differentiated.
      key: for the places; None: the middles.
      length: of a step along a ray, in units of the cube: cells hold density * length.
    """
    side = cells.shape[-1]
    points = centres(side)
    if key is not None:
        points = points + (jax.random.uniform(key, points.shape, jnp.float32) - 0.5) * (2.0 / side)
    points = jnp.broadcast_to(points, (*cells.shape[:-3], *points.shape))
    thickness = jax.lax.stop_gradient(density(points)).astype(jnp.float32) * length
    return jnp.maximum(decay * cells, thickness.reshape(cells.shape))


@typechecked
def occupied(
    cells: Float[Array, '*p g g g'], step, *, warmup: int = WARMUP, threshold: float = THRESHOLD
) -> Bool[Array, '*p g g g']:
    """Cells above min(mean of their grid, threshold); all of them while `step`, which may be traced, is below `warmup`."""
    mean = jnp.mean(cells, (-3, -2, -1), keepdims=True)
    return (cells > jnp.minimum(mean, threshold)) | (jnp.asarray(step) < warmup)


@typechecked
def lookup(cells: Shaped[Array, 'g g g'], points: Float[Array, '*b 3']) -> Shaped[Array, '*b']:
    """The cells in which points lie; points outside the cube take the nearest."""
    side = cells.shape[0]
    index = jnp.clip(((points + 1.0) * (0.5 * side)).astype(jnp.int32), 0, side - 1)
    return cells.reshape(-1)[(index[..., 0] * side + index[..., 1]) * side + index[..., 2]]


@typechecked
def limits(occupied: Bool[Array, 'g g g'], rays: Rays, march: int = MARCH) -> tuple[Float[Array, '*b'], Float[Array, '*b']]:
    """(near, far) [...] of rays [..., 3] between the first and the last occupied cell; near > far where there is none.

    The grid is asked at `march` places, each for a step around it, so the limits lie up to half a step outside the cells, and
    those of a full grid are exactly the cube's. A cell that a ray cuts for less than a step may be passed over at an end.
    Grids and rays of several scenes go through jax.vmap.
    """
    near, far = ray_box(rays, 2.0)
    near = jnp.maximum(near, 0.0)
    step = jnp.maximum(far - near, 0.0) / march

    def place(n, ends):
        at = near + (n + 0.5) * step
        full = lookup(occupied, rays.origins + at[..., None] * rays.directions) & (far > near)
        return jnp.where(full, jnp.minimum(ends[0], at - step), ends[0]), jnp.where(full, at + step, ends[1])

    first, last = jax.lax.fori_loop(0, march, place, (jnp.full_like(near, jnp.inf), jnp.full_like(far, -jnp.inf)))
    hit = first < last
    return jnp.where(hit, jnp.maximum(first, near), -1.0), jnp.where(hit, jnp.minimum(last, far), -2.0)
