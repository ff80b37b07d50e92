"""Thin half-transparent parts of a density grid: where a lower threshold of their own joins them to the body. Host side.

One threshold cannot serve a table top of density 40 and legs of density 4: it loses the legs, or swells the top by the fog
around it. So the threshold becomes a function of place. What tells a leg from fog:

- **It is thin.** Along an axis through it the density is at least half of the largest within WIDTH, and falls to less than half
  of its own on both sides. Fog that fades from a body falls on one side only; fog that fills a space is as wide as WIDTH.
- **It is seen.** Rays along each axis gather an opacity of at least SEEN within WIDTH around it.
- **It is joined.** The cells above its threshold, half of its own largest density, touch the body (hysteresis), and reach out
  of it by more than its soft edge.

Axes of a grid are x, y, z, as in t3d.geom.meshing.
"""

import math

import numpy as np

WIDTH = 0.3  # half sides of the grid's cube
CONTRAST = 2.0
SEEN = 0.25  # opacity
REACH = 0.1  # half sides of the cube
NEAR, FAR = 2.0, 5.0  # cells around a thin part: within NEAR its threshold holds, beyond FAR the body's
MOST = 128  # cells per side of the grid that is searched; of a finer one, means of its cells


def thresholds(grid: np.ndarray, threshold: float, bound: float) -> np.ndarray | None:
    """The threshold of each cell.

    Args:
      grid: [R, R, R] densities over [-bound, bound]^3.
      threshold: of the body; the cells above it are the body, with what it encloses.

    Returns:
      float32 [R, R, R], smooth: `threshold`, and less around thin parts; None where there are none.
    """
    from scipy import ndimage

    factor = -(-len(grid) // MOST)
    if factor > 1 and len(grid) % factor == 0:
        side = len(grid) // factor
        coarse = thresholds(grid.reshape(side, factor, side, factor, side, factor).mean((1, 3, 5)), threshold, bound)
        return None if coarse is None else ndimage.zoom(coarse, factor, order=1, mode='nearest', grid_mode=True)
    cell = 2.0 * bound / len(grid)
    width = round(WIDTH * bound / cell) | 1  # odd: cells on both sides alike
    least = -math.log1p(-SEEN) / (width * cell)  # a thinner density shows nothing
    places = np.argwhere(grid >= min(least, threshold))
    if len(places) == 0:
        return None
    box = tuple(slice(max(low - width, 0), high + width + 1) for low, high in zip(places.min(0), places.max(0)))
    part = grid[box]
    body = ndimage.binary_fill_holes(part >= threshold)
    peaks = ridges(part, width, cell)
    chosen = ~body & (peaks > 0.0) & (0.5 * peaks < threshold)
    if not chosen.any():
        return None
    peaks = ndimage.maximum_filter(np.where(chosen, peaks, 0.0), 3)  # a cell at the edge goes by its neighbour's
    chosen &= _kept(part >= _blended(chosen, peaks, threshold), body, REACH * bound / cell)
    if not chosen.any():
        return None
    local = np.full(grid.shape, threshold, np.float32)
    local[box] = _blended(chosen, peaks, threshold)
    return local


def ridges(grid: np.ndarray, width: int, cell: float) -> np.ndarray:
    """[X, Y, Z] the largest density across the thin part in which a cell lies; 0 where it lies in none that is seen.

    Args:
      grid: [X, Y, Z] densities; 0 outside.
      width: cells, odd: what is wider is not thin.
      cell: side of a cell, scene units.
    """
    from scipy import ndimage

    peaks, thickness = np.zeros(grid.shape, np.float32), np.full(grid.shape, np.inf, np.float32)
    for axis in range(3):
        largest = ndimage.maximum_filter1d(grid, width, axis, mode='constant')
        least = ndimage.minimum_filter1d(grid, width, axis, mode='constant')
        opened = ndimage.maximum_filter1d(least, width, axis, mode='constant')
        thin = (grid >= 0.5 * largest) & (grid >= CONTRAST * opened)
        peaks = np.where(thin, np.maximum(peaks, largest), peaks)
        mean = ndimage.uniform_filter1d(grid, width, axis, mode='constant')
        thickness = np.minimum(thickness, mean * (width * cell))
    return np.where(thickness >= -math.log1p(-SEEN), peaks, 0.0)


def _kept(solid: np.ndarray, body: np.ndarray, reach: float) -> np.ndarray:
    """bool: cells in or beside parts of `solid` that touch the body and lie `reach` cells away from it somewhere."""
    from scipy import ndimage

    labels, count = ndimage.label(solid)
    joined = np.zeros(count + 1, bool)
    joined[labels[body & solid]] = True
    away = ndimage.distance_transform_edt(~body)
    parts, count = ndimage.label(solid & joined[labels] & (away > 1.0), np.ones((3, 3, 3)))
    outstanding = np.zeros(count + 1, bool)
    outstanding[parts[away >= reach]] = True
    outstanding[0] = False
    return ndimage.binary_dilation(outstanding[parts], np.ones((3, 3, 3)))


def _blended(chosen: np.ndarray, peaks: np.ndarray, threshold: float) -> np.ndarray:
    """float32: half of the nearest chosen cell's peak, and `threshold` away from it; smooth in its logarithm."""
    from scipy import ndimage

    distance, nearest = ndimage.distance_transform_edt(~chosen, return_indices=True)
    low = np.log(np.minimum(0.5 * peaks[tuple(nearest)], threshold))
    share = np.clip((FAR - distance) / (FAR - NEAR), 0.0, 1.0)
    blended = ndimage.gaussian_filter((1.0 - share) * math.log(threshold) + share * low, 1.0)
    return np.exp(blended).astype(np.float32)
