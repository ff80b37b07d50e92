"""A system of the table that also says which batch it saw, for launch/soak.py: metric data/order.

`system` of the config is this module, and the environment variable WITNESSED names the system that it stands for. Each number
of a batch is weighed by its place, so that other rows, or the same rows in another order, give another sum. The sums are of
whole numbers modulo 2^32, which do not depend on how rows lie on devices, and of which a metric keeps 24 bits.
"""

import os

import jax
import jax.numpy as jnp

from t3d import systems

WITNESSED = 'T3D_SOAK_SYSTEM'
ODD = 2654435761  # of Knuth's multiplicative hashing: spreads neighbouring places over all bits


def make(config, given=None):
    """The system that is witnessed, its train step with one metric more."""
    config = config.copy_and_resolve_references().unlock()
    config.system = os.environ[WITNESSED]
    made = systems.make(config.lock(), given)
    return made._replace(train_step=witnessed(made.train_step), other_steps=tuple(map(witnessed, made.other_steps)))


def witnessed(step):
    """A train step with one metric more."""

    def train_step(state, batch, key, given=None):
        state, metrics = step(state, batch, key, given)
        return state, metrics | {'data/order': order(batch)}

    return train_step


def order(batch) -> jax.Array:
    """A whole number below 2^24, as float32, of all numbers of a batch and their places."""
    total = jnp.uint32(0)
    for number, leaf in enumerate(jax.tree.leaves(batch)):
        words = jax.lax.bitcast_convert_type(leaf, jnp.uint32) if leaf.dtype.itemsize == 4 else leaf.astype(jnp.uint32)
        places = jnp.arange(words.size, dtype=jnp.uint32).reshape(words.shape) + jnp.uint32(1 + 7919 * number)
        mixed = (words ^ (words >> 15)) * (places * jnp.uint32(ODD) | 1)
        total = total + jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)
    return ((total ^ (total >> 8)) & 0xFFFFFF).astype(jnp.float32)
