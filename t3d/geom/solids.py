"""Exact pictures of simple solids: rays to distance, normal, solid and colour in closed form, for scenes of a few of them.

A scene is a table of K solids, a row each (`ROW`); places without one have kind -1. A solid stands upright about its centre:

| kind | radius | half |
|---|---|---|
| sphere | of the ball | the same |
| cube | half the side along x and z | half the height |
| cylinder | of the side | half the height |
| cone | of the base, at the bottom | half the height |

Spheres, cylinders and cones are one surface, x^2 + z^2 = q(y) with q quadratic, cut off at y = -half and y = half by flat caps.
This is the truth that renders are compared with: nothing is differentiated through it.
"""

from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp

from t3d.core.typing import Array, Bool, Float, Int, typechecked
from t3d.geom.rays import Rays

KINDS = ('sphere', 'cube', 'cylinder', 'cone')
NONE = -1.0  # the kind of a row without a solid
ROW = ('kind', 'x', 'y', 'z', 'radius', 'half', 'red', 'green', 'blue')  # of a table; colours in [0, 1], lengths in scene units
LAMP = ('ambient', 'sky', 'key', 'x', 'y', 'z')  # of `shade`
NEAR = 1e-6  # scene units: what a ray meets closer to its origin does not count


class Hits(NamedTuple):
    """What rays meet first."""

    distance: jax.Array  # [..., R] along the ray, inf where it meets nothing
    normal: jax.Array  # [..., R, 3] outward, 0 where it meets nothing
    which: jax.Array  # int32 [..., R], the row of the table, -1 where it meets nothing


@flax.struct.dataclass
class Solid:
    """Rows of a table by name, any leading shape."""

    kind: jax.Array
    centre: jax.Array  # [..., 3]
    radius: jax.Array
    half: jax.Array


def rows(table: Float[Array, '*b k 9']) -> Solid:
    """The columns of a table by name, colours left out."""
    return Solid(table[..., 0], table[..., 1:4], table[..., 4], table[..., 5])


def profile(solid: Solid) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(q0, q1, q2) of the squared radius q0 + q1 y + q2 y^2 at height y above the centre; of no meaning for cubes."""
    slope = solid.radius / jnp.maximum(2.0 * solid.half, 1e-12)  # of a cone: the radius is slope (half - y)
    is_sphere, is_cone = solid.kind == KINDS.index('sphere'), solid.kind == KINDS.index('cone')
    squared, steep = jnp.square(solid.radius), jnp.square(slope)
    zero = jnp.zeros_like(squared)
    return (
        jnp.where(is_cone, steep * jnp.square(solid.half), squared),
        jnp.where(is_cone, -2.0 * steep * solid.half, zero),
        jnp.where(is_cone, steep, jnp.where(is_sphere, -1.0, zero)),
    )


def inside_each(table: Float[Array, '*b k 9'], points: Float[Array, '*b n 3']) -> Bool[Array, '*b k n']:
    """Which points lie in which solid, its surface included."""
    solid = rows(table)
    x, y, z = jnp.moveaxis(points[..., None, :, :] - solid.centre[..., :, None, :], -1, 0)  # [..., K, N] each
    q0, q1, q2 = (value[..., None] for value in profile(solid))
    half, radius = solid.half[..., None], solid.radius[..., None]
    round_one = x * x + z * z <= q0 + (q1 + q2 * y) * y
    square_one = jnp.maximum(jnp.abs(x), jnp.abs(z)) <= radius
    within = jnp.where(solid.kind[..., None] == KINDS.index('cube'), square_one, round_one)
    return within & (jnp.abs(y) <= half) & (solid.kind[..., None] >= 0.0)


@typechecked
def inside(table: Float[Array, '*b k 9'], points: Float[Array, '*b n 3']) -> Int[Array, '*b n']:
    """The first row whose solid holds each point, -1 where none does."""
    each = inside_each(table, points)
    return jnp.where(jnp.any(each, -2), jnp.argmax(each, -2).astype(jnp.int32), -1)


@typechecked
def trace(table: Float[Array, '*b k 9'], rays: Rays) -> Hits:
    """First hits of rays [..., R, 3] with the solids of the table of their scene."""
    shape = rays.origins.shape[:-2]
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[-2:]), rays)
    hits = jax.vmap(_trace)(table.reshape(-1, *table.shape[-2:]), flat)
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), hits)


def _trace(table, rays: Rays) -> Hits:
    """Of one scene: table [K, 9], rays [R, 3]."""
    distance, normal = jax.vmap(lambda row: _hit(rows(row), rays))(table)  # [K, R], [K, R, 3]
    which = jnp.argmin(distance, axis=0).astype(jnp.int32)
    nearest = jnp.min(distance, axis=0)
    hit = jnp.isfinite(nearest)
    chosen = jnp.take_along_axis(normal, which[None, :, None], axis=0)[0]
    return Hits(nearest, jnp.where(hit[:, None], chosen, 0.0), jnp.where(hit, which, -1))


def _hit(solid: Solid, rays: Rays):
    """(distance [R], normal [R, 3]) of one solid; inf and no meaning where it is missed."""
    o, d = rays.origins - solid.centre, rays.directions
    cube, cube_normal = _cube(solid, o, d)
    turned, turned_normal = _turned(solid, o, d)
    square = solid.kind == KINDS.index('cube')
    distance = jnp.where(square, cube, turned)
    return jnp.where(solid.kind >= 0.0, distance, jnp.inf), jnp.where(square, cube_normal, turned_normal)


def _ahead(distance, valid):
    return jnp.where(valid & (distance > NEAR), distance, jnp.inf)


def _cube(solid: Solid, o, d):
    """By slabs: where the last of three pairs of planes is entered, or from within where the first is left."""
    sides = jnp.stack([solid.radius, solid.half, solid.radius])
    inverse = 1.0 / jnp.where(jnp.abs(d) < 1e-12, 1e-12, d)
    low, high = (-sides - o) * inverse, (sides - o) * inverse
    near, far = jnp.minimum(low, high), jnp.maximum(low, high)
    enter, leave = jnp.max(near, -1), jnp.min(far, -1)
    outside = enter > NEAR
    distance = _ahead(jnp.where(outside, enter, leave), enter <= leave)
    face = jnp.where(outside, jnp.argmax(near, -1), jnp.argmin(far, -1))
    away = -jnp.sign(d) * jnp.where(outside, 1.0, -1.0)[:, None]
    return distance, away * jax.nn.one_hot(face, 3, dtype=d.dtype)


def _turned(solid: Solid, o, d):
    """The side by the roots of a t^2 + 2 b t + c, then the two caps."""
    q0, q1, q2 = profile(solid)
    (ox, oy, oz), (dx, dy, dz) = jnp.moveaxis(o, -1, 0), jnp.moveaxis(d, -1, 0)
    a = dx * dx + dz * dz - q2 * dy * dy
    b = ox * dx + oz * dz - (0.5 * q1 + q2 * oy) * dy
    c = ox * ox + oz * oz - (q0 + (q1 + q2 * oy) * oy)
    a = jnp.where(jnp.abs(a) < 1e-12, 1e-12, a)
    discriminant = b * b - a * c
    root = jnp.sqrt(jnp.maximum(discriminant, 0.0))
    distance, normal = jnp.full_like(ox, jnp.inf), jnp.zeros_like(d)
    for t in ((-b - root) / a, (-b + root) / a):
        y = oy + t * dy
        found = _ahead(t, (discriminant >= 0.0) & (jnp.abs(y) <= solid.half))
        outward = jnp.stack([ox + t * dx, -(0.5 * q1 + q2 * y), oz + t * dz], -1)
        outward = outward * jax.lax.rsqrt(jnp.maximum(jnp.sum(outward * outward, -1, keepdims=True), 1e-24))
        normal = jnp.where((found < distance)[:, None], outward, normal)
        distance = jnp.minimum(distance, found)
    down = jnp.where(jnp.abs(dy) < 1e-12, 1e-12, dy)
    for end in (solid.half, -solid.half):
        t = (end - oy) / down
        x, z = ox + t * dx, oz + t * dz
        found = _ahead(t, x * x + z * z <= q0 + (q1 + q2 * end) * end)
        cap = jnp.stack([0.0 * end, jnp.sign(end), 0.0 * end])
        normal = jnp.where((found < distance)[:, None], cap, normal)
        distance = jnp.minimum(distance, found)
    return distance, normal


@typechecked
def shade(colour: Float[Array, '*b r 3'], normal: Float[Array, '*b r 3'], lamp: Float[Array, '*b 6']) -> Float[Array, '*b r 3']:
    """Lit colours: colour * (ambient + sky n_y + key max(n . direction, 0)), clipped to [0, 1]; the same from every side.

    Args:
      lamp: `LAMP`: three brightnesses, and the direction towards the key light, of unit length.
    """
    lamp = lamp[..., None, :]
    toward = jnp.maximum(jnp.sum(normal * lamp[..., 3:], -1, keepdims=True), 0.0)
    return jnp.clip(colour * (lamp[..., :1] + lamp[..., 1:2] * normal[..., 1:2] + lamp[..., 2:3] * toward), 0.0, 1.0)


def colours(table: Float[Array, '*b k 9'], lamp: Float[Array, '*b 6'], hits: Hits) -> Float[Array, '*b r 3']:
    """What rays see, [..., R, 3] in [0, 1]; black where they meet nothing."""
    own = jnp.take_along_axis(table[..., 6:9], jnp.maximum(hits.which, 0)[..., None], axis=-2)
    return jnp.where((hits.which >= 0)[..., None], shade(own, hits.normal, lamp), 0.0)
