"""Random weights for tests: no bias, scale or output layer at its start, so that every array and every input matters."""

import jax
import jax.numpy as jnp
import numpy as np


def shaken(params, scale: float = 0.1, seed: int = 1):
    """Each number of a tree plus a normal one of deviation `scale`."""
    rng = np.random.default_rng(seed)
    noise = lambda leaf: (scale * rng.standard_normal(leaf.shape)).astype(np.float32)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf + noise(leaf)), jax.device_get(params))


def drawn(shapes, scale: float = 0.3, seed: int = 0):
    """Normal numbers of deviation `scale` in place of each leaf (arrays or ShapeDtypeStructs); NumPy arrays."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (scale * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)
