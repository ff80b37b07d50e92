"""Exact oracles of `toy` and `toy_patterns` pictures: shape, colour, size and pattern of the nearest true render.

A true render is linear in its colours: background (1 - alpha) + colour light + (second tone - colour) light in the pattern. So
three maps for each shape, size, pattern and camera stand for the renders of all eight colours, and the nearest of 256 objects
from 168 cameras is exact (least squared error) in 40 MB at 32 pixels and 0.1 GFLOP a picture. No network is involved.
"""

import itertools
from typing import NamedTuple

import numpy as np

from t3d.data.sets import patterns, shapes, toy

PHASES = (0.0, 0.25, 0.5, 0.75)  # parts of a period: 0 is the right place
LABELS = ('shape', 'colour', 'size')
ROWS = 32  # pictures compared at once


class Reading(NamedTuple):
    """What one picture shows.

    Attributes:
      labels: {'shape', 'colour', 'size', 'pattern'}.
      phase: of the pattern, one of PHASES; 0 for plain.
      camera: index of the nearest camera.
      distance: root mean square difference from the nearest true render, in [0, 1].
    """

    labels: dict[str, str]
    phase: float
    camera: int
    distance: float


class Reader:
    """The nearest true render of single objects from the given cameras.

    Args:
      world_from_cam, intrinsics: [V, 4, 4], [V, 3, 3] of the cameras to compare with, all of them for each picture.
      size, supersample: of the true renders, as in toy.record.
      background: grey level in [0, 1] behind the objects.
      names: patterns to tell apart, of patterns.PATTERNS; ('plain',) for toy.
      phases: of the patterns, parts of a period.
    """

    def __init__(self, world_from_cam, intrinsics, size, *, background=1.0, supersample=1, names=('plain',), phases=(0.0,)):
        self.things = list(itertools.product(shapes.SHAPES, shapes.SIZES))
        self.kinds = [(name, phase) for name in names for phase in (phases[:1] if name == 'plain' else phases)]
        self.colours = np.array(list(shapes.COLOURS.values()), np.float32)
        self.change = np.array([patterns.second_tone(colour) for colour in self.colours], np.float32) - self.colours
        self.background, self.cameras = background, len(world_from_cam)
        pieces = [
            self._maps(world_from_cam[k : k + 24], intrinsics[k : k + 24], size, supersample)
            for k in range(0, len(world_from_cam), 24)
        ]
        alpha, light, second = (np.concatenate(part, -2) for part in zip(*pieces, strict=True))  # [T, (K,) V, H W]
        self.whole, self.second = np.stack([alpha, light]), second
        a, b, (x, y) = self.colours, self.change, self.whole
        # Squares of background (1 - alpha) + ... less background, summed over pixels and channels: [C, T, (K,) V]
        aa, al, ll = _dot(x, x), _dot(x, y), _dot(y, y)
        a_sum, a_square = a.sum(1)[:, None, None], (a**2).sum(1)[:, None, None]
        self.square = 3.0 * background**2 * aa - 2.0 * background * a_sum * al + a_square * ll
        b_sum, b_square, ab = (v[:, None, None, None] for v in (b.sum(1), (b**2).sum(1), (a * b).sum(1)))
        self.more = b_square * _dot(second, second) + 2.0 * ab * _dot(y[:, None], second)
        self.more -= 2.0 * background * b_sum * _dot(x[:, None], second)

    def _maps(self, world_from_cam, intrinsics, size, supersample):
        """alpha, light [T, V, H W] and light in the second tone [T, K, V, H W]."""
        alphas, lights, seconds = [], [], []
        for shape, large in self.things:
            scene = shapes.single(shape, 'white', large)
            hits = toy.trace(scene, world_from_cam, intrinsics, size, supersample)
            hit, scale = hits.which >= 0, scene.objects[0].scale
            light = np.where(hit, shapes.shade(np.ones((1, 1)), hits.normal)[:, 0], 0.0)

            def pooled(values, fine=hits.fine):
                return values.reshape(fine).mean((2, 4)).reshape(fine[0], -1).astype(np.float32)

            alphas.append(pooled(hit))
            lights.append(pooled(light))
            seconds.append(np.stack([pooled(light * self._mask(kind, shape, scale, hits.points, hit)) for kind in self.kinds]))
        return np.stack(alphas), np.stack(lights), np.stack(seconds)

    @staticmethod
    def _mask(kind, shape, scale, points, hit):
        """patterns.mask of the points that were hit, False elsewhere."""
        second = np.zeros(len(points), bool)
        second[hit] = patterns.mask(kind[0], shape, scale, points[hit], kind[1])
        return second

    def read(self, images: np.ndarray) -> list[Reading]:
        """Readings of images [N, H, W, 3] in [0, 1]."""
        images = np.asarray(images, np.float32)
        return [one for start in range(0, len(images), ROWS) for one in self._read(images[start : start + ROWS])]

    def _read(self, images):
        count = len(images)
        rest = np.moveaxis(images.reshape(count, -1, 3) - np.float32(self.background), -1, 1)  # [N, 3, H W]
        flat = rest.reshape(3 * count, -1)
        whole = (flat @ self.whole.reshape(-1, flat.shape[1]).T).reshape(count, 3, *self.whole.shape[:-1])  # [N, 3, 2, T, V]
        second = (flat @ self.second.reshape(-1, flat.shape[1]).T).reshape(count, 3, *self.second.shape[:-1])
        error = self.square + 2.0 * self.background * whole[:, :, 0].sum(1)[:, None]
        error = error - 2.0 * np.einsum('qc,nctv->nqtv', self.colours, whole[:, :, 1])
        error = error[:, :, :, None] + self.more - 2.0 * np.einsum('qc,nctkv->nqtkv', self.change, second)
        nearest = error.reshape(count, -1).argmin(-1)
        least = np.take_along_axis(error.reshape(count, -1), nearest[:, None], -1)[:, 0] + np.sum(rest**2, (1, 2))
        distance = np.sqrt(np.maximum(least, 0.0) / rest[0].size)
        places = np.unravel_index(nearest, error.shape[1:])
        return [self._reading(*place) for place in zip(*places, distance, strict=True)]

    def _reading(self, colour, thing, kind, camera, distance) -> Reading:
        (shape, large), (pattern, phase) = self.things[thing], self.kinds[kind]
        labels = {'shape': shape, 'colour': list(shapes.COLOURS)[colour], 'size': large, 'pattern': pattern}
        return Reading(labels, phase, int(camera), float(distance))


class PatternPictureOracle:
    """Shape, colour, size and pattern of a picture from an unknown camera: the nearest of 256 objects from a grid of cameras.

    On true renders from other cameras it is right about shape, colour and pattern in at least 97 % of the pictures at 32 pixels
    (tests/test_pattern_oracle.py). Chance is 1/4 for a shape and a pattern, 1/8 for a colour.

    Args:
      azimuths, elevations: of the grid, over the source's range.
    """

    def __init__(self, size: int, background: float = 1.0, supersample: int = 1, azimuths: int = 24, elevations: int = 7):
        azimuth, elevation = np.meshgrid(np.arange(azimuths) * (2.0 * np.pi / azimuths), np.linspace(-0.2, 0.9, elevations))
        cameras = toy.camera_arrays(azimuth.ravel(), elevation.ravel(), shapes.RADIUS, shapes.FOV)
        self.reader = Reader(*cameras, size, background=background, supersample=supersample, names=patterns.PATTERNS)

    def read(self, images: np.ndarray) -> tuple[list[dict[str, str]], np.ndarray]:
        """(labels, root mean square distance to the nearest render [N]) of images [N, H, W, 3] in [0, 1]."""
        readings = self.reader.read(images)
        return [one.labels for one in readings], np.array([one.distance for one in readings])


class ViewsOracle:
    """What each of V views of known cameras shows: the nearest of all candidates from that same camera.

    Args:
      world_from_cam, intrinsics: [V, 4, 4], [V, 3, 3].
      size, supersample, background: of the views.
      names: ('plain',) for toy, patterns.PATTERNS for toy_patterns, whose patterns are candidates in the phases PHASES.
    """

    def __init__(self, world_from_cam, intrinsics, size, *, background=1.0, supersample=1, names=('plain',)):
        options = {'background': background, 'supersample': supersample, 'names': names, 'phases': PHASES}
        self.readers = [
            Reader(world_from_cam[v : v + 1], intrinsics[v : v + 1], size, **options) for v in range(len(world_from_cam))
        ]

    def read(self, images: np.ndarray) -> list[list[Reading]]:
        """Readings [N][V] of images [N, V, H, W, 3] in [0, 1]."""
        views = [reader.read(images[:, v]) for v, reader in enumerate(self.readers)]
        return [list(one) for one in zip(*views, strict=True)]


def agree(views: list[Reading], names: tuple[str, ...] = LABELS) -> bool:
    """Whether all views of an object have the same labels of these names."""
    return len({tuple(view.labels[name] for name in names) for view in views}) == 1


def same_pattern(views: list[Reading]) -> bool:
    """Whether all views show one and the same pattern, and a pattern at all."""
    return agree(views, ('pattern',)) and views[0].labels['pattern'] != 'plain'


def same_phase(views: list[Reading]) -> bool:
    """Whether all views show one pattern moved by the same part of its period: they fit each other, wherever the pattern is."""
    return same_pattern(views) and len({view.phase for view in views}) == 1


def in_place(views: list[Reading]) -> bool:
    """Whether all views show one pattern where the set has it: the unmoved candidate is the nearest in each view."""
    return same_phase(views) and views[0].phase == 0.0


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum('...p,...p->...', a, b)
