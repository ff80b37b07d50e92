"""Digests of arrays, taken on the device: the same for every sharding, another for every changed bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.core.typing import PyTree


def inspect(tree: PyTree) -> tuple[dict[str, dict], list[str]]:
    """({name: {shape, dtype, digest}} of all leaves, names of floating leaves that hold NaN or infinity)."""
    leaves = trees.flatten(tree)
    mesh = next((leaf.sharding.mesh for leaf in leaves.values() if isinstance(leaf.sharding, jax.sharding.NamedSharding)), None)
    digests, finite = jax.device_get(_digests(mesh)(list(leaves.values())))
    table = {
        name: {'shape': list(leaf.shape), 'dtype': str(leaf.dtype), 'digest': int(digest)}
        for (name, leaf), digest in zip(leaves.items(), digests, strict=True)
    }
    return table, [name for name, good in zip(leaves, finite, strict=True) if not good]


@functools.lru_cache(maxsize=8)
def _digests(mesh):
    out = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()) if mesh else None

    def run(leaves):
        finite = [jnp.all(jnp.isfinite(x)) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.array(True) for x in leaves]
        return jnp.stack([digest(x) for x in leaves]), jnp.stack(finite)

    return jax.jit(run, out_shardings=out) if out else jax.jit(run)


def digest(x: jax.Array) -> jax.Array:
    """A uint32 of an array's bits, the same for every sharding: the sum modulo 2^32 of a mix of each word and its index."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = min(8 * x.dtype.itemsize, 32)
    words = jax.lax.bitcast_convert_type(x, jnp.dtype(f'uint{bits}')).astype(jnp.uint32)
    index, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    h = words ^ (index * np.uint32(0x9E3779B1))
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)  # the finaliser of MurmurHash3
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32) + np.uint32(stride % 2**32)


def compare(target: dict, stored: dict, path) -> None:
    """A short message where the names or shapes of a target and a checkpoint differ."""
    shapes = {name: jax.ShapeDtypeStruct(tuple(leaf['shape']), np.uint8) for name, leaf in stored.items()}
    lines = trees.mismatch(shapes, target)
    if lines:
        raise UsageError(
            f'checkpoint {path} is of another model:\n'
            + '\n'.join(lines)
            + '\n  Restore with the config beside it (config.json of the run folder).'
        )
