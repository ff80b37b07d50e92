"""The `toy_marked` source: single objects of `toy` with a mark on their front, what a Janus score is read from.

The objects of `toy` look alike from all sides but for their light. Here the front is painted in a second tone, a quarter of the
way around, of a cube its front face. So a view shows from which side it is, and a prior that knows a side and not the angle
still says where the front is: an object with several fronts has been made by one that says "front" too often (the Janus
problem; Perp-Neg, arXiv 2304.04968, Sec. 1).
"""

import numpy as np

from t3d.core.errors import UsageError
from t3d.data.sets import patterns, shapes, toy

WORDS = toy.WORDS
light = toy.light


def mask(points: np.ndarray) -> np.ndarray:
    """Where the mark is: bool [R], of points [R, 3] on the surface, relative to the object's centre, scene units."""
    return points[:, 2] > np.abs(points[:, 0])  # azimuths within 45 degrees


def albedo(scene: shapes.Scene):
    """`(points [R, 3], object [R]) -> [R, 3]` for toy.render."""
    thing = scene.objects[0]
    colour = np.array(shapes.COLOURS[thing.colour])
    tones = np.stack([colour, patterns.second_tone(colour)])
    return lambda points, which: tones[mask(points - np.asarray(thing.centre)).astype(int)]


def record(scene: shapes.Scene, azimuth: np.ndarray, elevation: np.ndarray, size: int, supersample: int = 1) -> dict:
    """The record of a marked object seen from given angles (radians), as toy.record."""
    return toy.record(scene, azimuth, elevation, size, supersample, albedo(scene))


class MarkedSource(toy.ToySource):
    """Views of the marked objects of a split; as toy.ToySource, single objects only."""

    def record_of(self, scene: shapes.Scene, azimuth: np.ndarray, elevation: np.ndarray) -> dict:
        return record(scene, azimuth, elevation, self.size, self.supersample)


def open_set(data, split: str) -> MarkedSource:
    """The source of a config's `data` section."""
    if data.get('scenes', 'singles') != 'singles':
        raise UsageError(f'data.scenes={data.scenes!r}: toy_marked has single objects only, data.scenes=singles.')
    options = {name: data[name] for name in ('size', 'views', 'poses', 'seed', 'supersample')}
    return MarkedSource(split, scenes='singles', **toy.rig_options(data), **options)


def preview_records(data, count: int, views: int) -> list[dict]:
    """Large held-out objects from `views` sides, front first."""
    azimuth, elevation = toy.around(views)
    scenes = shapes.singles('test')[::2][:count]
    return [record(scene, azimuth, elevation, data.size, data.supersample) for scene in scenes]
