"""Digests of arrays, taken on the device: the same for every sharding, another for every changed bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.core.typing import PyTree
from t3d.parallel import offload, quickly

LARGE = 1 << 20  # numbers of an array; compiling its program well pays


def inspect(tree: PyTree) -> tuple[dict[str, dict], list[str]]:
    """({name: {shape, dtype, digest}} of all leaves, names of floating leaves that hold NaN or infinity)."""
    leaves = trees.flatten(tree)
    mesh = next((leaf.sharding.mesh for leaf in leaves.values() if isinstance(leaf.sharding, jax.sharding.NamedSharding)), None)
    # Compiled once for each shape: of hundreds of arrays some dozens.
    found = jax.device_get([_one(mesh, leaf.size >= LARGE)(leaf) for leaf in leaves.values()])
    table = {
        name: {'shape': list(leaf.shape), 'dtype': str(leaf.dtype), 'digest': int(digest)}
        for (name, leaf), (digest, _) in zip(leaves.items(), found, strict=True)
    }
    return table, [name for name, (_, finite) in zip(leaves, found, strict=True) if not finite]


@functools.lru_cache(maxsize=8)
def _one(mesh, large: bool):
    """A program of one array on `mesh`: its digest, and whether all its numbers are finite."""

    def run(x):
        x = offload.fetched(x)
        return digest(x), jnp.all(jnp.isfinite(x)) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.array(True)

    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()) if mesh else None
    return (jax.jit if large else quickly.jit)(run, out_shardings=everywhere)


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
