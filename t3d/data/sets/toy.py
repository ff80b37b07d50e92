"""The `toy` source: posed RGBA views of the procedural scenes, as records."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from t3d.core.config import unknown
from t3d.core.errors import UsageError
from t3d.data.sets import shapes

RIGS = ('free', 'ring', 'canonical')
ELEVATION = (-0.2, 0.9)  # radians, of free cameras: low and high
WORDS = shapes.WORDS
light = shapes.light


def camera_arrays(azimuth: np.ndarray, elevation: np.ndarray, radius: float, fov: float):
    """(world_from_cam [V, 4, 4], intrinsics [V, 3, 3]) float32: geom.cameras.orbit for processes that never touch JAX."""
    cos = np.cos(elevation)
    back = np.stack([cos * np.sin(azimuth), np.sin(elevation), cos * np.cos(azimuth)], -1)  # from the origin to the camera
    right = np.stack([np.cos(azimuth), np.zeros_like(azimuth), -np.sin(azimuth)], -1)
    down = np.cross(-back, right)
    matrix = np.zeros((len(azimuth), 4, 4), np.float32)
    matrix[:, :3, 0], matrix[:, :3, 1], matrix[:, :3, 2], matrix[:, :3, 3] = right, down, -back, radius * back
    matrix[:, 3, 3] = 1.0
    focal = 0.5 / math.tan(0.5 * fov)
    intrinsics = np.array([[focal, 0.0, 0.5], [0.0, focal, 0.5], [0.0, 0.0, 1.0]], np.float32)
    return matrix, np.broadcast_to(intrinsics, (len(azimuth), 3, 3)).copy()


class Hits(NamedTuple):
    """What the rays of some views meet, R = V size^2 supersample^2 of them.

    Attributes:
      distance: [R] along the ray, inf where missed; cosine: [R] of the ray to the camera's axis.
      points: [R, 3] world, of no meaning where missed; normal: [R, 3] outward.
      which: [R] object index, -1 where missed.
      fine: (V, size, supersample, size, supersample), the shape of R.
    """

    distance: np.ndarray
    cosine: np.ndarray
    points: np.ndarray
    normal: np.ndarray
    which: np.ndarray
    fine: tuple[int, ...]


def trace(scene: shapes.Scene, world_from_cam: np.ndarray, intrinsics: np.ndarray, size: int, supersample: int = 1) -> Hits:
    """First hits of the rays of views [V], `supersample` x `supersample` of them (an odd number) through each pixel."""
    if supersample % 2 == 0:
        raise UsageError(f'supersample={supersample}: wanted an odd number, so that one ray goes through the pixel centre.')
    grid = (np.arange(size * supersample) + 0.5) / (size * supersample)
    u, v = np.meshgrid(grid, grid)
    pixels = np.stack([u, v, np.ones_like(u)], -1).reshape(-1, 3)
    local = pixels @ np.linalg.inv(intrinsics.astype(np.float64)).transpose(0, 2, 1)  # [V, H W, 3]
    cosine = 1.0 / np.linalg.norm(local, axis=-1)
    directions = (local * cosine[..., None]) @ world_from_cam[:, :3, :3].astype(np.float64).transpose(0, 2, 1)
    origins = np.broadcast_to(world_from_cam[:, None, :3, 3].astype(np.float64), directions.shape)
    origins, directions = origins.reshape(-1, 3), directions.reshape(-1, 3)
    distance, normal, which = shapes.cast(scene, origins, directions)
    points = origins + directions * np.where(which >= 0, distance, 0.0)[:, None]
    fine = (len(world_from_cam), size, supersample, size, supersample)
    return Hits(distance, cosine.reshape(-1), points, normal, which, fine)


def render(
    scene: shapes.Scene,
    world_from_cam: np.ndarray,
    intrinsics: np.ndarray,
    size: int,
    supersample: int = 1,
    albedo: Callable | None = None,
) -> dict[str, np.ndarray]:
    """Views of a scene: depth, normal and object by the ray through the pixel centre, colour and alpha by the mean of
    `supersample` x `supersample` rays (an odd number; 1 gives hard edges).

    Args:
      albedo: `(points [R, 3] world, object [R]) -> [R, 3]` in [0, 1], the unlit colour of surface points; object is -1 and the
        point of no meaning for rays that miss. None: each object has one colour.
    Returns:
      image uint8 [V, H, W, 4] straight-alpha RGBA, depth float32 [V, H, W] planar z with 0 for background,
      normal float32 [V, H, W, 3], object int8 [V, H, W] with -1 for background.
    """
    hits = trace(scene, world_from_cam, intrinsics, size, supersample)
    hit, fine = hits.which >= 0, hits.fine
    surface = shapes.palette(scene)[hits.which] if albedo is None else albedo(hits.points, hits.which)
    colour = np.where(hit[:, None], shapes.shade(surface, hits.normal), 0.0)
    alpha = hit.reshape(*fine, 1).mean((2, 4))
    colour = colour.reshape(*fine, 3).mean((2, 4)) / np.maximum(alpha, 1e-9)

    def central(values):
        return values.reshape(*fine, *values.shape[1:])[:, :, supersample // 2, :, supersample // 2]

    return {
        'image': np.round(255.0 * np.concatenate([colour, alpha], -1)).astype(np.uint8),
        'depth': central(np.where(hit, hits.distance * hits.cosine, 0.0)).astype(np.float32),
        'normal': central(np.where(hit[:, None], hits.normal, 0.0)).astype(np.float32),
        'object': central(hits.which).astype(np.int8),
    }


class ToySource:
    """Random access to views of the scenes of a split; `source[i]` is a pure function of the arguments and i.

    Args:
      split: 'train', 'test' (held-out shape-colour pairs) or 'all'.
      scenes: 'singles', 'pairs', or 'both' (every third index is a single object).
      size: pixels of the square views.
      views: views a record holds, at azimuths drawn uniformly and elevations in `elevation`.
      supersample: rays per side of a pixel for colour and alpha, an odd number.
      poses: records a scene gives before the source ends; every one has views of its own.
      rig: 'free', or 'ring': the views of a record stand evenly around the object, from a random azimuth on, at one elevation;
        or 'canonical': the same with the first view at azimuth 0.
    """

    rig = 'free'

    def __init__(
        self,
        split: str,
        *,
        scenes: str = 'singles',
        size: int = 32,
        views: int = 1,
        poses: int = 64,
        seed: int = 0,
        elevation: tuple[float, float] = ELEVATION,
        supersample: int = 1,
        rig: str = 'free',
    ):
        if rig not in RIGS:
            raise UsageError(unknown(rig, RIGS, 'camera rig (data.rig)'))
        self.rig = rig
        choices = {
            'singles': lambda: (shapes.singles(split), []),
            'pairs': lambda: ([], shapes.pairs(split)),
            'both': lambda: (shapes.singles(split), shapes.pairs(split)),
        }
        if scenes not in choices:
            raise UsageError(unknown(scenes, choices, 'toy scenes (data.scenes)'))
        self.singles, self.pairs = choices[scenes]()
        self.size, self.views, self.seed, self.elevation, self.supersample = size, views, seed, elevation, supersample
        self.length = (len(self.singles) + len(self.pairs)) * poses

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> shapes.Scene:
        if not self.pairs:
            return self.singles[index % len(self.singles)]
        if not self.singles:
            return self.pairs[index % len(self.pairs)]
        if index % 3 == 0:
            return self.singles[index // 3 % len(self.singles)]
        return self.pairs[(index - index // 3 - 1) % len(self.pairs)]

    def __getitem__(self, index: int) -> dict:
        index = int(index)
        if not 0 <= index < self.length:
            raise IndexError(f'record {index} of a toy source with {self.length}')
        return self.record_of(self.scene(index), *self.angles(index))

    def record_of(self, scene: shapes.Scene, azimuth: np.ndarray, elevation: np.ndarray) -> dict:
        """The record of a scene of this source from given angles (radians)."""
        return record(scene, azimuth, elevation, self.size, self.supersample)

    def angles(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(azimuth, elevation) [views] in radians of record `index`, without rendering it."""
        random = np.random.default_rng((self.seed, index))
        if self.rig == 'free':
            azimuth = random.uniform(0.0, 2.0 * math.pi, self.views)
            return azimuth, random.uniform(*self.elevation, self.views)
        first, elevation = random.uniform(0.0, 2.0 * math.pi), random.uniform(*self.elevation)
        around = np.arange(self.views) * (2.0 * math.pi / self.views)
        return around + (first if self.rig == 'ring' else 0.0), np.full(self.views, elevation)


def record(
    scene: shapes.Scene,
    azimuth: np.ndarray,
    elevation: np.ndarray,
    size: int,
    supersample: int = 1,
    albedo: Callable | None = None,
) -> dict:
    """The record of a scene seen from given angles (radians); albedo as in `render`."""
    world_from_cam, intrinsics = camera_arrays(azimuth, elevation, shapes.RADIUS, shapes.FOV)
    views = render(scene, world_from_cam, intrinsics, size, supersample, albedo)
    return {
        'image': views['image'],
        'depth': views['depth'],
        'world_from_cam': world_from_cam,
        'intrinsics': intrinsics,
        'azimuth': azimuth.astype(np.float32),
        'elevation': elevation.astype(np.float32),
        'captions': scene.captions,
        'name': scene.captions[0],
        'attributes': scene.attributes,
    }


class SolidSource(ToySource):
    """The scenes of a `ToySource` as tables of solids, from the same cameras, with no picture made of them.

    A record holds solids float32 [2, 9] and lamp float32 [6] (t3d.geom.solids), world_from_cam [V, 4, 4], intrinsics
    [V, 3, 3], captions, name, attributes.
    """

    def record_of(self, scene: shapes.Scene, azimuth: np.ndarray, elevation: np.ndarray) -> dict:
        world_from_cam, intrinsics = camera_arrays(azimuth, elevation, shapes.RADIUS, shapes.FOV)
        return {
            'solids': shapes.table(scene),
            'lamp': shapes.LAMP,
            'world_from_cam': world_from_cam,
            'intrinsics': intrinsics,
            'captions': scene.captions,
            'name': scene.captions[0],
            'attributes': scene.attributes,
        }


OPTIONS = ('scenes', 'size', 'views', 'poses', 'seed', 'supersample')  # of a source, in a `data` section


def open_set(data, split: str) -> ToySource:
    """The source of a config's `data` section."""
    return ToySource(split, **{name: data[name] for name in OPTIONS}, **rig_options(data))


def open_solids(data, split: str) -> SolidSource:
    """The same scenes and cameras in closed form."""
    return SolidSource(split, **{name: data[name] for name in OPTIONS}, **rig_options(data))


def rig_options(data) -> dict:
    """How the cameras of a config's `data` section stand, where it says so: `rig` and `elevation` of ToySource."""
    return {name: data[name] for name in ('rig', 'elevation') if data.get(name)}


def around(views: int) -> tuple[np.ndarray, np.ndarray]:
    """(azimuth, elevation) [views] in radians of previews: evenly around, front first."""
    return np.arange(views) * (2.0 * np.pi / views), np.full(views, 0.4)


def preview_records(data, count: int, views: int) -> list[dict]:
    """Held-out scenes from `views` sides, singles and, where they were learned, pairs by turns."""
    azimuth, elevation = around(views)
    scenes = shapes.singles('test')[::2]
    if data.scenes != 'singles':
        scenes = [scene for both in zip(shapes.pairs('test')[5::211], scenes) for scene in both]
    return [record(scene, azimuth, elevation, data.size, data.supersample) for scene in scenes[:count]]
