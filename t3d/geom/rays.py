"""Rays, pixel centres, and where rays meet boxes."""

import flax
import jax


@flax.struct.dataclass
class Rays:
    """Half-lines in the world."""

    origins: jax.Array  # [..., 3] world, scene units (an object fits [-1, 1]^3)
    directions: jax.Array  # [..., 3] unit length
