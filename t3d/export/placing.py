"""Where the mesh of a file stands and how large it is: its origin, and its height in metres. All else stays in scene units."""

import math
from typing import NamedTuple

import numpy as np

from t3d.core.config import unknown
from t3d.core.errors import UsageError
from t3d.export.meshes import Mesh

ORIGINS = ('scene', 'floor')
FLAT = 1e-6  # scene units: a mesh that is lower has no height to scale


class Place(NamedTuple):
    """world = scale * scene + (0, lift, 0), y up."""

    scale: float = 1.0
    lift: float = 0.0


def check(origin: str, height: float | None) -> None:
    """Raises UsageError for an origin that is not one of `ORIGINS`, or a height in metres that is no positive number."""
    if origin not in ORIGINS:
        raise UsageError(unknown(origin, ORIGINS, 'origin'))
    if height is not None and not (isinstance(height, int | float) and math.isfinite(height) and height > 0.0):
        raise UsageError(f'height {height!r}: wanted metres above 0, or none for scene units.')


def of(mesh: Mesh, origin: str = 'scene', height: float | None = None) -> Place:
    """The place of a mesh in scene units.

    Args:
      origin: 'scene', the middle of the scene's cube, or 'floor', whose y = 0 is under the lowest point.
      height: metres from the lowest point to the highest; None leaves scene units, which glTF reads as metres.
    """
    check(origin, height)
    low, high = float(mesh.vertices[:, 1].min()), float(mesh.vertices[:, 1].max())
    if height is not None and high - low < FLAT:
        raise UsageError(f'height {height:g} m: the mesh is flat, {high - low:.2g} high in scene units. Leave it out.')
    scale = 1.0 if height is None else height / (high - low)
    return Place(scale, -scale * low if origin == 'floor' else 0.0)


def placed(mesh: Mesh, place: Place) -> Mesh:
    """The mesh moved to its place."""
    vertices = mesh.vertices.astype(np.float64) * place.scale + [0.0, place.lift, 0.0]
    return mesh._replace(vertices=vertices.astype(np.float32))
