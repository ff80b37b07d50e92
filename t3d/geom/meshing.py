"""From a density field to a closed triangle mesh: a grid in jitted chunks, a threshold from the render, marching cubes.

A grid has R^3 cells over [-bound, bound]^3; `grid[i, j, k]` is the density at the centre of cell (i, j, k) along x, y, z.
Outside the box the density counts as 0, so that every surface is closed. Host side, but for the field's own evaluation.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core.errors import UsageError

DIRECTIONS = np.float32(  # five, 37 degrees and more from each axis and 32 from each other
    [[0.80, 0.36, 0.48], [-0.44, 0.52, 0.73], [0.52, -0.70, 0.49], [-0.75, -0.44, 0.49], [0.33, 0.80, -0.50]]
)
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=-1, keepdims=True)
MOST = 128  # cells per side of the grid that is projected; of a finer one, means of its cells
DEEP = 0.1  # of the grid's side: cells so far from the outside are inside
HOLLOW = 0.1  # share of them that may be outside
THRESHOLDS = 64  # candidates of `choose_threshold`, spaced geometrically over the grid's density range
HALVINGS = 6  # of a cell's width, in the search for the place where a field crosses its threshold
APART = 0.01  # cells that a crossing keeps from the centres of cells, so that no triangle is without area
CLIP = 3.0  # log-odds either side of the threshold that marching cubes sees: densities 20 times more and less


def density_grid(field, scene, bound: float, resolution: int = 128, chunk: int = 2**16) -> np.ndarray:
    """Density at the R^3 cell centres of [-bound, bound]^3, evaluated `chunk` points at a time by one compiled program.

    Args:
      field: `(scene, points [N, 3]) -> (density [N], rgb [N, 3])`, as `Field.field`; colours are not computed.
      scene: pytree of arrays.
      bound: half the side of the cube, scene units.
      resolution: R.
      chunk: points per call; bounds the memory.

    Returns:
      float32 [R, R, R], axes x, y, z; density per scene unit.
    """
    total = resolution**3
    chunk = min(chunk, total)
    parts = []
    for start in range(0, total, chunk):
        parts.append(_densities(field, scene, jnp.int32(start), jnp.float32(bound), resolution, chunk))
    flat = np.concatenate([np.asarray(part) for part in parts])[:total]
    if not np.all(np.isfinite(flat)):
        raise UsageError(
            f'{np.count_nonzero(~np.isfinite(flat))} of {total} densities are not finite: the parameters have diverged. '
            'Choose another run, or delete the newest folder of its checkpoints/ to go back to the one before.'
        )
    return flat.reshape(resolution, resolution, resolution)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _densities(field, scene, start, bound, resolution: int, chunk: int):
    index = start + jnp.arange(chunk)
    cell = jnp.stack([index // resolution**2, index // resolution % resolution, index % resolution], -1)
    points = ((cell.astype(jnp.float32) + 0.5) * (2.0 / resolution) - 1.0) * bound
    return field(scene, points)[0].astype(jnp.float32)


def projections(grid: np.ndarray, bound: float) -> tuple[np.ndarray, np.ndarray]:
    """What parallel rays along DIRECTIONS meet: (largest density [V, S, S], opacity 1 - exp(-sum density dx) [V, S, S]).

    None of the directions is near an axis: there a ray along a flat side would gather the whole length of its soft edge, and
    the side seem to stand further out than from anywhere else.
    """
    while len(grid) > MOST and len(grid) % 2 == 0:
        grid = grid.reshape(len(grid) // 2, 2, len(grid) // 2, 2, len(grid) // 2, 2).mean((1, 3, 5))
    side = len(grid)
    cell = 2.0 * bound / side
    flat = np.append(grid.reshape(-1), np.float32(0.0))
    reach = np.arange(-math.sqrt(0.75) * side, math.sqrt(0.75) * side + 1.0)  # cells
    pixels = np.stack(np.meshgrid(reach[::2], reach[::2], indexing='ij'), -1)  # two cells apart
    peaks, opacity = [], []
    for direction in DIRECTIONS:
        across = np.linalg.svd(direction[None])[2][1:]  # two unit vectors at right angles to it
        start = (pixels @ across + 0.5 * side).astype(np.float32)
        peak, thickness = np.zeros(start.shape[:2], np.float32), np.zeros(start.shape[:2], np.float32)
        for step in reach:
            cells = np.floor(start + np.float32(step) * direction).astype(np.int32)
            within = ((cells >= 0) & (cells < side)).all(-1)
            index = np.where(within, (cells[..., 0] * side + cells[..., 1]) * side + cells[..., 2], len(flat) - 1)
            density = flat[index]
            np.maximum(peak, density, out=peak)
            thickness += density
        peaks.append(peak)
        opacity.append(-np.expm1(-thickness * cell))
    return np.stack(peaks), np.stack(opacity)


def choose_threshold(grid: np.ndarray, bound: float, log=print) -> float:
    """The density whose surface has the silhouettes of the render.

    Scans thresholds; at each, the surface's silhouette along a direction is where the largest density on the ray reaches it.
    The best mean IoU with the rendered silhouettes (opacity > 1/2) over DIRECTIONS wins, and of equals the middle, which for a
    sharp field puts the surface half way up the step. A grid that is nowhere half opaque is compared with half of its largest
    opacity. Silhouettes do not see a hole that opens a hollow inside: where there is one, less is taken.
    """
    if grid.max() <= 0.0:
        raise UsageError(f'no object to mesh: {_nothing(grid, bound)}')
    grid = np.maximum(grid, 0.0)
    top = float(grid.max())
    height, opacity = projections(grid, bound)
    level = 0.5
    if opacity.max() <= level:
        level = 0.5 * float(opacity.max())
        log(f'mesh: nothing is half opaque (largest opacity {opacity.max():.3f}); comparing with opacity > {level:.3g}')
    target = opacity > level
    low = max(float(height[target].min()) * 0.25, top * 1e-6)
    candidates = np.geomspace(low, top * 0.999, THRESHOLDS)
    scores = np.array([_iou(height >= value, target) for value in candidates])
    best = np.flatnonzero(scores >= scores.max() - 1e-3)
    best = best[: np.argmax(np.diff(best, append=best[-1] + 2) > 1) + 1]  # the first unbroken run
    threshold = _without_holes(grid, float(0.5 * (candidates[best[0]] + candidates[best[-1]])), log)
    log(
        f'mesh: density {grid.min():.3g} to {top:.3g}, threshold {threshold:.4g}, '
        f'silhouette IoU with the render {_iou(height >= threshold, target):.3f}'
    )
    return threshold


def _without_holes(grid: np.ndarray, threshold: float, log) -> float:
    """A threshold at which what lies deep inside is inside still: a thin wall may have opened to a hollow behind it."""
    from scipy import ndimage

    least = threshold / 8.0
    deep = ndimage.distance_transform_edt(fill_cavities(grid, least) >= least) > DEEP * len(grid)
    chosen = threshold
    while deep.any() and chosen > least and np.mean(fill_cavities(grid, chosen)[deep] < chosen) > HOLLOW:
        chosen /= 1.25
    if chosen < threshold:
        log(f'mesh: at threshold {threshold:.4g} a hollow inside is open')
    return chosen


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over the first axis of |a and b| / |a or b|."""
    both, either = np.sum(a & b, axis=(1, 2)), np.sum(a | b, axis=(1, 2))
    return float(np.mean(both / np.maximum(either, 1)))


def fill_cavities(grid: np.ndarray, threshold: float) -> np.ndarray:
    """The grid with every hollow that the solid encloses filled: no inner surface is left, the outer one is untouched."""
    from scipy import ndimage

    solid = grid >= threshold
    hollow = ndimage.binary_fill_holes(solid) & ~solid
    return np.where(hollow, np.maximum(grid.max(), threshold), grid) if hollow.any() else grid


def surface(grid: np.ndarray, threshold: float, bound: float) -> tuple[np.ndarray, np.ndarray]:
    """Marching cubes at `threshold`: (vertices float32 [N, 3] world, faces int32 [M, 3] wound outwards); closed.

    The cubes interpolate the log-odds of density / largest density, clipped to CLIP on either side of the threshold: fields
    fall off exponentially and saturate, and their log-odds are what is linear across the surface. Interpolating the density
    itself makes terraces at low thresholds; the clip puts the surface of a hard step half way.
    """
    from skimage import measure

    high = float(grid.max())
    if not 0.0 < threshold <= high:
        raise UsageError(empty_message(grid, threshold, bound))
    odds = _log_odds(grid, high) - _log_odds(min(threshold, 0.999 * high), high)
    padded = np.pad(np.clip(odds, -CLIP, CLIP), 1, constant_values=-CLIP)
    vertices, faces, _, _ = measure.marching_cubes(padded, level=0.0, gradient_direction='ascent')
    step = 2.0 * bound / grid.shape[0]
    vertices = (vertices - 0.5) * step - bound  # padded index 1 is the first cell centre, half a step inside the box
    return vertices.astype(np.float32), faces.astype(np.int32)


def refined(field, scene, vertices: np.ndarray, inside: np.ndarray, levels, bound: float, chunk: int = 2**14) -> np.ndarray:
    """The vertices of marching cubes moved along their edges of the grid to where the field itself crosses its threshold.

    Interpolated, a vertex is where the field would cross if it were smooth over a cell. A wall is not: its sides come out in
    terraces half a cell high. The crossing is found by HALVINGS bisections; the triangles stay as they are.

    Args:
      vertices: [N, 3] of `surface` of a grid with the same cells.
      inside: bool [R, R, R], the cells at or above the threshold, filled hollows among them.
      levels: [R, R, R] or a number: the threshold.
    """
    side = len(inside)
    places = (vertices.astype(np.float64) / bound + 1.0) * (0.5 * side) - 0.5  # in cells, whole at centres
    between = np.abs(places - np.round(places)) > 1e-3
    low = np.where(between, np.floor(places), np.round(places)).astype(np.int64)
    high = low + between
    known = np.flatnonzero((between.sum(1) == 1) & (low >= 0).all(1) & (high < side).all(1))  # others: at the box, or in a cell
    levels, inner, outer = np.broadcast_to(np.float32(levels), inside.shape), low[known], high[known]
    turned = ~inside[tuple(inner.T)]
    inner, outer = np.where(turned[:, None], outer, inner), np.where(turned[:, None], inner, outer)
    moved = np.array(vertices, np.float32)
    for start in range(0, len(known), chunk):
        ends = [np.resize(end[start : start + chunk], (chunk, 3)) for end in (inner, outer)]
        at = [levels[tuple(end.T)] for end in ends]
        ends = [np.float32(((end + 0.5) * (2.0 / side) - 1.0) * bound) for end in ends]
        some = known[start : start + chunk]
        moved[some] = np.asarray(_crossings(field, scene, *ends, *at))[: len(some)]
    return moved


@functools.partial(jax.jit, static_argnums=0)
def _crossings(field, scene, inner, outer, inner_level, outer_level):
    """[N, 3] where the field falls below its level between points within [N, 3] and points outside [N, 3]."""

    def at(share):
        return inner + share[:, None] * (outer - inner)

    def halve(_, ends):
        low, high = ends  # shares of the way: inside, outside
        middle = 0.5 * (low + high)
        within = field(scene, at(middle))[0] >= inner_level + middle * (outer_level - inner_level)
        return jnp.where(within, middle, low), jnp.where(within, high, middle)

    ends = jax.lax.fori_loop(0, HALVINGS, halve, (jnp.zeros(len(inner)), jnp.ones(len(inner))))
    return at(jnp.clip(0.5 * (ends[0] + ends[1]), APART, 1.0 - APART))


def _log_odds(density, high: float):
    """log(p / (1 - p)) of p = density / (1.001 high), so that the largest density stays finite."""
    share = np.clip(density / (1.001 * high), 1e-12, None)
    return np.log(share) - np.log1p(-share)


def empty_message(grid: np.ndarray, threshold: float, bound: float) -> str:
    """Why there is no surface at the threshold, and which threshold has one."""
    message = f'the mesh is empty at threshold {threshold:.4g}: '
    if grid.max() <= 0.0:
        return message + _nothing(grid, bound)
    return message + (
        f'the density ranges from {grid.min():.4g} to {grid.max():.4g}, wanted a threshold above 0 and within. '
        f'Give --threshold {choose_threshold(grid, bound, log=lambda _: None):.4g}, or leave it out.'
    )


def _nothing(grid: np.ndarray, bound: float) -> str:
    """What to do about a grid without any density."""
    return (
        f'the density is {grid.max():.4g} at most in the whole grid of {grid.shape[0]}^3 cells within +-{bound:.4g}, wanted '
        f'above 0. Give another prompt or other --seeds, or --grid {2 * grid.shape[0]} for thin things, or train longer: the '
        'same `t3d train` with a larger steps= goes on.'
    )
