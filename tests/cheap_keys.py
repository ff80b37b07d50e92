"""Keys of a generator that compiles in a third of threefry's time, for the many draws of a network's first parameters.

Tests that ask for numbers that are random, not for those of a seed, start their networks from them.
"""

import math

import jax
import jax.numpy as jnp
from jax.extend import random

WIDTHS = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}
GOLDEN = 0x9E3779B9


def mixed(x):
    """The finalizer of MurmurHash3 on uint32."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def seeded(seed):
    return mixed(jnp.asarray(seed).astype(jnp.uint32) + jnp.uint32(GOLDEN))[None]


def folded(key, data):
    return mixed(key ^ mixed(data.astype(jnp.uint32) + jnp.uint32(GOLDEN)))


def bits(key, width, shape):
    counts = jnp.arange(math.prod(shape), dtype=jnp.uint32) * jnp.uint32(GOLDEN)
    return mixed(mixed(counts + key[0])).reshape(shape).astype(WIDTHS[width])


def split(key, shape):
    return bits(key, 32, shape)[..., None]


HASH = random.define_prng_impl(
    key_shape=(1,), seed=seeded, split=split, random_bits=bits, fold_in=folded, name='cheap', tag='cheap'
)


def key(seed: int) -> jax.Array:
    """A key of this generator; whatever is drawn with it, or split off it, is of it too."""
    return jax.random.key(seed, impl=HASH)
