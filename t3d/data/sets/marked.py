"""Single objects of `toy` with a mark on their front: what a Janus score is read from.

The objects of `toy` look alike from all sides but for their light. Here a disc of a second tone lies about the middle of the
front, so that a view shows from which side it is: an object with several fronts has been made by a prior that says "front" too
often (the Janus problem; Perp-Neg, arXiv 2304.04968, Sec. 1).
"""

import numpy as np

from t3d.data.sets import patterns, shapes, toy

RADIUS = 0.38  # of the disc, scene units on a large object; the widest point of every shape is at least this far from the axis
HEIGHT = {'cone': -0.35}  # of its middle, on a large object; 0 for other shapes


def mask(shape: str, scale: float, points: np.ndarray) -> np.ndarray:
    """Where the mark is: bool [R], of points [R, 3] on the surface, relative to the object's centre, scene units."""
    up = points[:, 1] - HEIGHT.get(shape, 0.0) * scale
    return (points[:, 2] > 0.0) & (points[:, 0] ** 2 + up**2 < (RADIUS * scale) ** 2)


def albedo(scene: shapes.Scene):
    """`(points [R, 3], object [R]) -> [R, 3]` for toy.render."""
    thing = scene.objects[0]
    colour = np.array(shapes.COLOURS[thing.colour])
    tones = np.stack([colour, patterns.second_tone(colour)])
    return lambda points, which: tones[mask(thing.shape, thing.scale, points - np.asarray(thing.centre)).astype(int)]


def record(scene: shapes.Scene, azimuth: np.ndarray, elevation: np.ndarray, size: int, supersample: int = 1) -> dict:
    """The record of a marked object seen from given angles (radians), as toy.record."""
    return toy.record(scene, azimuth, elevation, size, supersample, albedo(scene))
