"""Random cameras around an object, for systems that learn from renders alone.

Azimuths are stratified over the views of an object and elevations are uniform in degrees for one half of the views and on the
sphere for the other, as in threestudio's sampler. Every view has a key of its own, made of its index, so that cameras do not
depend on how many devices draw them.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from t3d.core.errors import UsageError
from t3d.core.typing import Key
from t3d.geom import cameras
from t3d.geom.cameras import Cameras

Range = tuple[float, float]


class Ranges(NamedTuple):
    """Where cameras stand, low and high; radians and scene units. The config section `cameras` has these keys.

    Attributes:
      elevation, radius, fov: of the camera; azimuths go once around.
      even: share of the views whose elevation is uniform; that of the others has a uniform sine.
      shift: largest offset of the position along each axis.
      target, up: standard deviations of the point that is looked at and of the upright.
      turned: whether a ring starts anywhere; else at the front, as a multi-view model wants that has learned no other rings.
      sectors: shares of the single views that stand in the quarters around front, right, back and left, each with even azimuths
        (Instant3D's code has .4, .2, .2, .2); () for azimuths that are even all around.
    """

    elevation: Range = (-0.1745, 0.7854)
    radius: Range = (3.2, 3.2)
    fov: Range = (0.7027699, 0.7027699)
    even: float = 0.5
    shift: float = 0.0
    target: float = 0.0
    up: float = 0.0
    turned: bool = True
    sectors: tuple[float, ...] = ()


class Drawn(NamedTuple):
    """Cameras [V] and the angles that they were drawn with, before any shift; azimuth in [-pi, pi), elevation, radians [V]."""

    cameras: Cameras
    azimuth: jax.Array
    elevation: jax.Array


def from_section(section) -> Ranges:
    """The ranges of a config's section `cameras`, whose `views` says how many; UsageError where none can be drawn."""
    plain = lambda value: tuple(value) if isinstance(value, tuple | list) else value
    ranges = Ranges(**{name: plain(value) for name, value in section.items() if name != 'views'})
    check(ranges)
    return ranges


def check(ranges: Ranges) -> None:
    """Raises UsageError for ranges that no camera can be drawn from."""
    for name in ('elevation', 'radius', 'fov'):
        low, high = getattr(ranges, name)
        if low > high:
            raise UsageError(f'cameras.{name}=({low}, {high}): wanted the lower end first.')
    if not -0.5 * math.pi <= ranges.elevation[0] <= ranges.elevation[1] <= 0.5 * math.pi:
        raise UsageError(f'cameras.elevation={tuple(ranges.elevation)}: wanted radians in [-pi/2, pi/2].')
    if ranges.sectors and (len(ranges.sectors) != 4 or min(ranges.sectors) < 0.0 or sum(ranges.sectors) <= 0.0):
        raise UsageError(
            f'cameras.sectors={tuple(ranges.sectors)}: wanted four shares, of front, right, back and left, such as '
            '(0.4, 0.2, 0.2, 0.2), or () for none.'
        )
    if ranges.radius[0] <= 0.0 or not 0.0 < ranges.fov[0] <= ranges.fov[1] < math.pi:
        raise UsageError(
            f'cameras.radius={tuple(ranges.radius)} and cameras.fov={tuple(ranges.fov)}: wanted distances above 0 and angles '
            'between 0 and pi.'
        )


def draw(key: Key, views: int, ranges: Ranges) -> Drawn:
    """`views` cameras around one object; view i is a function of the key and of i (and of `views`, by its stratum)."""

    def one(index):
        mine = jax.random.fold_in(key, index)
        names = ('azimuth', 'kind', 'elevation', 'radius', 'fov', 'shift', 'target', 'up')
        keys = dict(zip(names, jax.random.split(mine, len(names)), strict=True))
        uniform = lambda name, low=0.0, high=1.0, shape=(): jax.random.uniform(keys[name], shape, jnp.float32, low, high)
        normal = lambda name: jax.random.normal(keys[name], (3,), jnp.float32)
        azimuth = place((uniform('azimuth') + index) / views, ranges.sectors)
        low, high = ranges.elevation
        u = uniform('elevation')
        on_sphere = jnp.arcsin(jnp.clip(math.sin(low) + u * (math.sin(high) - math.sin(low)), -1.0, 1.0))
        elevation = jnp.where(uniform('kind') < ranges.even, low + u * (high - low), on_sphere)
        radius, fov = uniform('radius', *ranges.radius), uniform('fov', *ranges.fov)
        orbit = cameras.orbit(azimuth, elevation, radius, fov)
        if not (ranges.shift or ranges.target or ranges.up):
            return Drawn(orbit, azimuth, elevation)
        position = orbit.world_from_cam[:3, 3] + uniform('shift', -ranges.shift, ranges.shift, (3,))
        up = jnp.array([0.0, 1.0, 0.0]) + ranges.up * normal('up')
        pose = cameras.look_at(position, ranges.target * normal('target'), up)
        return Drawn(Cameras(pose, orbit.intrinsics), azimuth, elevation)

    return jax.vmap(one)(jnp.arange(views))


def place(u, sectors: tuple[float, ...]):
    """Azimuths in [-pi, pi) of u in [0, 1): even, or with the shares `sectors` in the quarters of `Ranges`."""
    if not sectors:
        return 2.0 * math.pi * u - math.pi
    total, ends = sum(sectors), [0.0]
    for share in sectors:
        ends.append(ends[-1] + share / total)
    turns = jnp.interp(u, jnp.asarray(ends, jnp.float32), jnp.arange(5, dtype=jnp.float32)) * 0.25 - 0.125
    return 2.0 * math.pi * jnp.where(turns >= 0.5, turns - 1.0, turns)


def ring(key: Key, views: int, ranges: Ranges) -> Drawn:
    """`views` cameras evenly around one object at one elevation and distance: those of a multi-view model."""
    keys = jax.random.split(key, 4)
    draw_one = lambda key, ends: jax.random.uniform(key, (), jnp.float32, *ends)
    start, elevation = draw_one(keys[0], (0.0, 2.0 * math.pi * ranges.turned)), draw_one(keys[1], ranges.elevation)
    radius, fov = draw_one(keys[2], ranges.radius), draw_one(keys[3], ranges.fov)
    azimuth = (start + jnp.arange(views) * (2.0 * math.pi / views) + math.pi) % (2.0 * math.pi) - math.pi
    elevation = jnp.full((views,), elevation)
    return Drawn(cameras.orbit(azimuth, elevation, radius, fov), azimuth, elevation)
