"""What a mesh lacks of its field: their silhouettes from nine sides, compared.

A field shows a pixel where its opacity is at least SHOWN: what one sees of it before a plain background. The mesh lacks such a
pixel if it covers nothing of it and of its neighbours: the soft outline of a field is no loss.
"""

import math
from typing import NamedTuple

import numpy as np

from t3d.core.outputs import Field
from t3d.export import mesh_pictures, renders
from t3d.export.meshes import Mesh
from t3d.geom import cameras, silhouettes

NAMES = ('front', 'front right', 'right', 'back right', 'back', 'back left', 'left', 'front left', 'top')
ELEVATIONS = (
    20.0,
    -10.0,
)  # degrees, in turn around the object, so that neither what lies under a top nor what lies on it hides
TOP = 80.0
SIZE = 96  # pixels
SHOWN = 0.25  # opacity
MARGIN = 1  # pixels around the mesh, and around what the field shows, that count as outline
WORTH = 0.01  # share below which nothing is said to be missing
BEYOND = 0.05  # share from which the mesh is said to cover what the field does not show
MOSTLY = 0.9  # share of what is missing that the threshold of the report would have
MIDDLE = 0.9  # share of what is missing that lies in the box of the report along each axis
STEPS = 2  # samples of a cell's width along rays through the grid
PLACES = (('left of', 'right of'), ('below', 'above'), ('behind', 'in front of'))  # the mesh, by axis


class Comparison(NamedTuple):
    """Silhouettes of a mesh and its field. Shares are of what the field shows.

    Attributes:
      missing: share that the mesh lacks, over all sides; added: what it covers beyond, where the field shows nothing.
      sides: {name: missing there}.
      iou: of what the mesh covers and what the field shows, mean over sides.
      low, high: corners of the box that holds what is missing, scene units; None where next to nothing is.
      place: where that is to the mesh: 'below', 'within', ...
      threshold: density of the surface at which most of it would be there.
    """

    missing: float
    added: float
    sides: dict[str, float]
    iou: float
    low: tuple[float, float, float] | None = None
    high: tuple[float, float, float] | None = None
    place: str = ''
    threshold: float | None = None


def views(asset: Field) -> cameras.Cameras:
    """The nine cameras, at the distance that the asset's system was trained for."""
    azimuth = np.append(np.arange(8) * (math.pi / 4.0), 0.0)
    elevation = np.radians([*(ELEVATIONS[k % 2] for k in range(8)), TOP])
    return cameras.orbit(azimuth, elevation, asset.camera['radius'], asset.camera['fov'])


def compare(asset: Field, mesh: Mesh, densities: np.ndarray) -> Comparison:
    """Renders the field and draws the mesh (in scene units) from the nine sides.

    Args:
      densities: the grid that the mesh was made of, [R, R, R].
    """
    from scipy import ndimage

    posed = views(asset)
    opacity = renders.render_views(asset._replace(picture=None), posed, SIZE, grid=densities).opacity
    covered = mesh_pictures.coverage(mesh, posed, SIZE)
    around = np.ones((1, 2 * MARGIN + 1, 2 * MARGIN + 1), bool)
    shown = opacity >= SHOWN
    missing = shown & ~ndimage.binary_dilation(covered > 0.0, around)
    added = (covered > 0.5) & ~ndimage.binary_dilation(shown, around)
    whole = max(int(shown.sum()), 1)
    sides = {name: float(lost.sum() / max(seen.sum(), 1)) for name, lost, seen in zip(NAMES, missing, shown, strict=True)}
    shares = float(missing.sum() / whole), float(added.sum() / whole), sides, silhouettes.iou(shown, covered)
    if shares[0] < WORTH:
        return Comparison(*shares)
    peaks, points = _peaks(densities, asset.bound, posed, missing)
    outer = 50.0 * (1.0 - MIDDLE)
    low, high = np.percentile(points, [outer, 100.0 - outer], axis=0)
    threshold = float(np.quantile(peaks, 1.0 - MOSTLY))
    corners = (tuple(float(number) for number in corner) for corner in (low, high))
    return Comparison(*shares, *corners, _place(low, high, mesh.vertices), threshold)


def sentence(result: Comparison) -> str:
    """The comparison in one sentence."""
    count = len(result.sides)
    more = f'; it covers {result.added:.0%} beyond that, where the field is thin: a higher --threshold has less of it'
    more = more if result.added >= BEYOND else ''
    if result.low is None:
        return f'the mesh has {1.0 - result.missing:.1%} of what the field shows from {count} sides{more}'
    side = max(result.sides, key=result.sides.get)
    ranges = zip('xyz', result.low, result.high, strict=True)
    box = ', '.join(f'{axis} {low:.2f} to {high:.2f}' for axis, low, high in ranges)
    return (
        f'the mesh lacks {result.missing:.0%} of what the field shows from {count} sides, most from the {side} '
        f'({result.sides[side]:.0%}), {result.place} it ({box}): --threshold {result.threshold:.2g} '
        f'would have most of that{more}'
    )


def _place(low, high, vertices) -> str:
    """Beside which side of the mesh's box the middle of another lies; 'within' it if beside none."""
    middle, bottom, top = 0.5 * (low + high), vertices.min(0), vertices.max(0)
    beyond = np.stack([bottom - middle, middle - top])  # [2, 3]
    end, axis = np.unravel_index(np.argmax(beyond), beyond.shape)
    return PLACES[axis][end] if beyond[end, axis] > 0.0 else 'within'


def _peaks(grid: np.ndarray, bound: float, posed: cameras.Cameras, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(largest density [K], where [K, 3]) on the rays through K pixels, of bool [V, H, W], that meet the grid's cube."""
    rays = renders.pixel_rays(
        np.asarray(posed.world_from_cam), np.asarray(posed.intrinsics), np.flatnonzero(pixels), pixels.shape[1:]
    )
    origins, directions = np.asarray(rays.origins, np.float64), np.asarray(rays.directions, np.float64)
    inverse = 1.0 / np.where(np.abs(directions) < 1e-12, 1e-12, directions)
    ends = (-bound - origins) * inverse, (bound - origins) * inverse
    near, far = np.minimum(*ends).max(-1), np.maximum(*ends).min(-1)
    side = len(grid)
    steps = np.arange(0.5, math.sqrt(3.0) * side * STEPS) * (2.0 * bound / side / STEPS)
    best, places = np.zeros(len(near)), origins + near[:, None] * directions
    for step in steps:
        points = origins + (near + step)[:, None] * directions
        cells = np.clip(((points + bound) * (0.5 * side / bound)).astype(int), 0, side - 1)
        density = np.where(near + step < far, grid[tuple(cells.T)], 0.0)
        better = density > best
        best[better], places[better] = density[better], points[better]
    return best, places
