"""The `toy_patterns` source: the single objects of `toy` with stripes, checks or dots on their surface, or none.

A pattern is a second tone of the colour on part of the surface, decided by the surface point alone, so all views of an object
agree exactly. Points are relative to the object's centre, in scene units, and widths do not shrink with a small object: at
32 pixels a band is 3.4 pixels wide where it faces the camera.

| pattern | second tone where |
|---|---|
| `plain` | nowhere: the object of `toy`, to the bit |
| `stripes` | every other horizontal band of BAND units; y = 0 is the middle of a band of the own colour |
| `checks` | every other cell of CELL units: bands and sectors around y on round shapes, a cubic lattice on the cube |
| `dots` | within a radius of centres spread over the surface, in staggered rings; on the cube 2 x 2 a face |

`phase` moves a pattern by a part of its period: bands along y, rings of dots around y, a cube's dots along its faces. The set
has phase 0 only; the others are what an oracle takes for a pattern in the wrong place.
"""

import functools
import math

import numpy as np

from t3d.core.config import unknown
from t3d.core.errors import UsageError
from t3d.data.sets import shapes, toy

PATTERNS = ('plain', 'stripes', 'checks', 'dots')
NAMES = {'stripes': 'striped', 'checks': 'checked', 'dots': 'dotted'}  # in captions
WORDS = tuple(sorted({*toy.WORDS, *NAMES.values()}))
light = toy.light
BAND, CELL = 0.25, 0.35  # scene units: half a period of stripes and of checks
DOT, APART = 0.16, 0.52  # radius and distance of dots on a large object; both fall with the root of the scale
STRENGTH, GREY_STRENGTH = 0.75, 0.5  # how far the second tone is from a hue, or from black and white, towards the other end
MIDDLE = 0.5  # luma above which a colour is light, and its second tone dark
LUMA = np.array([0.299, 0.587, 0.114])


def second_tone(colour: np.ndarray) -> np.ndarray:
    """The other tone [3] of a colour [3] in [0, 1]: far towards white for dark colours, towards black for light ones.

    Black and white go half the way, since a black object with white bands is a white one with black bands.
    """
    colour = np.asarray(colour, np.float64)
    goal = 0.0 if colour @ LUMA > MIDDLE else 1.0
    return colour + (STRENGTH if np.ptp(colour) > 0.0 else GREY_STRENGTH) * (goal - colour)


def mask(pattern: str, shape: str, scale: float, points: np.ndarray, phase: float = 0.0) -> np.ndarray:
    """Where a pattern has its second tone: bool [R].

    Args:
      points: [R, 3] on the surface, relative to the object's centre, scene units.
      phase: parts of a period, in [0, 1).
    """
    if pattern == 'plain':
        return np.zeros(len(points), bool)
    if pattern == 'stripes':
        return np.floor(points[:, 1] / BAND + 0.5 + 2.0 * phase) % 2 == 1
    if pattern == 'checks':
        cells = np.floor(points / CELL + 0.5 + 2.0 * phase * np.array([0.0, 1.0, 0.0]))
        if shape == 'cube':
            return cells.sum(-1) % 2 == 1
        turn = np.arctan2(points[:, 0], points[:, 2]) / (2.0 * math.pi)
        return (cells[:, 1] + np.floor(turn * sectors(shape, scale) + 0.5)) % 2 == 1
    if pattern == 'dots':
        near = np.zeros(len(points), bool)
        for centre in dot_centres(shape, scale, phase):
            near |= np.sum((points - centre) ** 2, -1) < DOT**2 * scale
        return near
    raise UsageError(unknown(pattern, PATTERNS, 'pattern (data.patterns)'))


def sectors(shape: str, scale: float) -> int:
    """Sectors of the checks around a round shape, an even number: each about CELL wide, on a cone at two thirds of its base."""
    radius = {'sphere': shapes.SPHERE_RADIUS, 'cylinder': shapes.CYLINDER_RADIUS, 'cone': shapes.CONE_RADIUS * 2.0 / 3.0}[shape]
    return 2 * round(math.pi * radius * scale / CELL)


@functools.cache
def dot_centres(shape: str, scale: float, phase: float = 0.0) -> np.ndarray:
    """Centres [K, 3] of the dots on a shape, on its surface, relative to its centre, scene units."""
    if shape == 'cube':
        half, step = shapes.CUBE_HALF, shapes.CUBE_HALF
        u, v = np.meshgrid((np.array([-0.5, 0.5]) + phase) * step, np.array([-0.5, 0.5]) * step)
        u = np.concatenate([u.ravel(), u.ravel() - 2.0 * half])  # what leaves a face comes back on its other side
        v = np.concatenate([v.ravel()] * 2)
        kept = np.abs(u) <= half
        u, v, w = u[kept], v[kept], np.full(kept.sum(), half)
        faces = [(u, v, w), (u, v, -w), (w, v, u), (-w, v, u), (u, w, v), (u, -w, v)]
        return scale * np.concatenate([np.stack(face, -1) for face in faces])
    if shape == 'sphere':
        diagonal = shapes.SPHERE_RADIUS * math.sqrt(0.5)
        top = shapes.SPHERE_RADIUS
        rings = [(0.0, top), (diagonal, diagonal), (-diagonal, diagonal), (top, 0.0), (-top, 0.0)]
    elif shape == 'cylinder':
        radius, half = shapes.CYLINDER_RADIUS, shapes.CYLINDER_HALF
        rings = [(y, radius) for y in (-2.0 / 3.0 * half, 0.0, 2.0 / 3.0 * half)] + [(y, 0.5 * radius) for y in (half, -half)]
    else:
        radius, half = shapes.CONE_RADIUS, shapes.CONE_HALF
        rings = [(y * half, radius * (1.0 - y) / 2.0) for y in (-0.65, 0.0, 1.0)] + [(-half, 0.5 * radius)]
    return scale * np.concatenate([_ring(*ring, k, scale, phase) for k, ring in enumerate(rings)])


def _ring(y: float, radius: float, k: int, scale: float, phase: float) -> np.ndarray:
    """Dots [n, 3] around the axis at height y, every other ring turned by half a step."""
    count = max(round(2.0 * math.pi * radius * math.sqrt(scale) / APART), 1)
    turn = (np.arange(count) + 0.5 * (k % 2) + phase) * (2.0 * math.pi / count)
    return np.stack([radius * np.sin(turn), np.full(count, y), radius * np.cos(turn)], -1)


def patterned(scene: shapes.Scene, pattern: str) -> shapes.Scene:
    """A single object of toy with a pattern, in its captions and attributes. Plain ones keep toy's captions."""
    if pattern not in PATTERNS:
        raise UsageError(unknown(pattern, PATTERNS, 'pattern (data.patterns)'))
    labels = {**scene.attributes, 'pattern': pattern}
    if pattern == 'plain':
        return scene._replace(attributes=labels)
    colour, shape, size = (scene.attributes[name] for name in ('colour', 'shape', 'size'))
    core = f'{NAMES[pattern]} {colour} {shape}'
    captions = (f'a {size} {core}', f'{size} {core}')
    if size == 'large':
        captions = (f'a {core}', core, *captions)
    return shapes.Scene(scene.objects, captions, labels)


def singles(split: str, names: tuple[str, ...] = PATTERNS) -> list[shapes.Scene]:
    """The single objects of a split of toy with each of the named patterns, in a fixed order."""
    return [patterned(scene, pattern) for scene in shapes.singles(split) for pattern in names]


def albedo(scene: shapes.Scene, phase: float = 0.0):
    """`(points [R, 3], object [R]) -> [R, 3]` for toy.render: the two tones of a patterned object."""
    thing = scene.objects[0]
    colour = np.array(shapes.COLOURS[thing.colour])
    tones = np.stack([colour, second_tone(colour)])
    pattern = scene.attributes['pattern']

    def of(points: np.ndarray, which: np.ndarray) -> np.ndarray:
        return tones[mask(pattern, thing.shape, thing.scale, points - np.asarray(thing.centre), phase).astype(int)]

    return of


def record(
    scene: shapes.Scene, azimuth: np.ndarray, elevation: np.ndarray, size: int, supersample: int = 1, phase: float = 0.0
) -> dict:
    """The record of a patterned object seen from given angles (radians), as toy.record."""
    return toy.record(scene, azimuth, elevation, size, supersample, albedo(scene, phase))


class PatternSource(toy.ToySource):
    """Views of the patterned objects of a split; as toy.ToySource, single objects only.

    Args:
      patterns: of PATTERNS, those that the objects wear in turn.
      options: of toy.ToySource.
    """

    def __init__(self, split: str, *, patterns: tuple[str, ...] = PATTERNS, poses: int = 64, **options):
        super().__init__(split, scenes='singles', poses=poses, **options)
        self.singles = singles(split, tuple(patterns))
        self.length = len(self.singles) * poses

    def record_of(self, scene: shapes.Scene, azimuth: np.ndarray, elevation: np.ndarray) -> dict:
        return record(scene, azimuth, elevation, self.size, self.supersample)


def open_set(data, split: str) -> PatternSource:
    """The source of a config's `data` section."""
    if data.get('scenes', 'singles') != 'singles':
        raise UsageError(f'data.scenes={data.scenes!r}: toy_patterns has single objects only, data.scenes=singles.')
    options = {name: data[name] for name in ('size', 'views', 'poses', 'seed', 'supersample')}
    return PatternSource(split, patterns=data.get('patterns', PATTERNS), **toy.rig_options(data), **options)


def preview_records(data, count: int, views: int) -> list[dict]:
    """Large held-out objects from `views` sides, each with the next pattern."""
    azimuth, elevation = toy.around(views)
    names = tuple(data.get('patterns', PATTERNS))
    scenes = [patterned(scene, names[k % len(names)]) for k, scene in enumerate(shapes.singles('test')[::2])]
    return [record(scene, azimuth, elevation, data.size, data.supersample) for scene in scenes[:count]]
