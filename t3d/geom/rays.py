"""Rays, and where they meet boxes."""

import flax
import jax
import jax.numpy as jnp

from t3d.core.typing import Array, Float, typechecked

MISS = (-1.0, -2.0)  # the limits of a ray that misses the box: near > far


@flax.struct.dataclass
class Rays:
    """Half-lines in the world."""

    origins: jax.Array  # [..., 3] world, scene units (an object fits [-1, 1]^3)
    directions: jax.Array  # [..., 3] unit length


@typechecked
def ray_box(rays: Rays, side: float) -> tuple[Float[Array, '*b'], Float[Array, '*b']]:
    """Distances (near, far) [...] at which rays enter and leave the cube of edge `side` about the origin; misses give (-1, -2).

    The slab test on lines: near is negative for an origin inside the box, and a box behind the origin is hit at negative
    distances, as in EG3D's renderer. What a camera sees begins at 0: `volume.limits` cuts there, for every renderer.
    """
    inverse = 1.0 / jnp.asarray(rays.directions)  # +-inf on an axis the ray does not move along
    low, high = (-0.5 * side - rays.origins) * inverse, (0.5 * side - rays.origins) * inverse
    # 0 * inf: the origin lies in the plane of a face and moves along it. A closed box contains it.
    enter = jnp.where(jnp.isnan(low) | jnp.isnan(high), -jnp.inf, jnp.minimum(low, high))
    leave = jnp.where(jnp.isnan(low) | jnp.isnan(high), jnp.inf, jnp.maximum(low, high))
    near, far = jnp.max(enter, axis=-1), jnp.min(leave, axis=-1)
    hit = near <= far
    return jnp.where(hit, near, MISS[0]), jnp.where(hit, far, MISS[1])


def eg3d_limits(near: Float[Array, '*b'], far: Float[Array, '*b']) -> tuple[Float[Array, '*b'], Float[Array, '*b']]:
    """EG3D's limits for `ray_box` results: rays that miss take the smallest and the largest *near* of those that hit.

    Both from near, as in the released code. They then see the field outside the box, and the result depends on which rays
    share the batch; t3d's own systems pass the misses on, and `volume.render` gives those rays zero opacity.
    """
    hit = near <= far
    first, last = jnp.min(jnp.where(hit, near, jnp.inf)), jnp.max(jnp.where(hit, near, -jnp.inf))
    return jnp.where(hit, near, first), jnp.where(hit, far, last)
