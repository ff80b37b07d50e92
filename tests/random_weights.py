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


def fan_in(shapes, seed: int = 0):
    """Random arrays that keep signals alive: kernels of deviation 1.4 / sqrt(fan-in), scales about 1, biases of 0.1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise, name = rng.standard_normal(leaf.shape), str(getattr(path[-1], 'key', path[-1]))
        if name == 'kernel':
            return (1.4 * noise / np.sqrt(np.prod(leaf.shape[:-1]))).astype(np.float32)
        return ((1.0 if name == 'scale' else 0.0) + (0.2 if name == 'scale' else 0.1) * noise).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)
