"""Random keys whose draws are a function of the seed alone: Threefry-2x32 (Salmon et al., SC 2011), whatever JAX is set to.

A seed names an asset, and a set of captions names the objects of its seeds: they must be the same ones on every machine. But
`jax.random.key` follows `jax_default_prng_impl` and `jax_random_seed_offset`; splits and draws follow
`jax_threefry_partitionable`, which is read when a function is lowered, so that a context manager within a jit is too late; and
a draw without dtype is of 64 bits under `jax_enable_x64`. The keys made here carry their own implementation: Threefry with a
counter for each element, JAX's default, bit for bit. An element depends on its own index alone, so a draw is the same sharded,
under vmap and in a batch. Draws state their dtype (tests/test_prng.py reads the source for both).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl, threefry2x32_p, threefry_2x32

from t3d.core.errors import UsageError
from t3d.core.typing import Key

COUNTED = 2**32  # elements of an array that a counter of 32 bits tells apart
UINTS = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}


def _seed(seed) -> jax.Array:
    """Key data uint32 [2], high word first, of an integer of 32 or 64 bits."""
    seed = jnp.asarray(seed)
    wide = seed.dtype.itemsize > 4
    high = jax.lax.shift_right_logical(seed, jnp.full_like(seed, 32)) if wide else jnp.zeros_like(seed)
    return jnp.stack([high.astype(jnp.uint32), seed.astype(jnp.uint32)])


def _words(data, shape) -> list[jax.Array]:
    """Two words uint32 of `shape`: the hash of each element's index in row-major order."""
    shape = tuple(shape)
    if np.prod(shape, dtype=float) >= COUNTED:
        raise ValueError(f'a random array of shape {shape} has 2^32 elements or more: draw it in pieces, a key for each.')
    low = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = int(np.prod(shape[axis + 1 :], dtype=np.int64))
        low = low + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    return threefry2x32_p.bind(data[0], data[1], jnp.zeros(shape, jnp.uint32), low)


def _split(data, shape) -> jax.Array:
    return jnp.stack(_words(data, shape), -1)


def _bits(data, width: int, shape) -> jax.Array:
    high, low = _words(data, shape)
    if width < 64:
        return (high ^ low).astype(UINTS[width])
    return high.astype(jnp.uint64) << jnp.uint64(32) | low.astype(jnp.uint64)


def _fold_in(data, number) -> jax.Array:
    word = jnp.asarray(number).astype(jnp.uint32)
    return threefry_2x32((data[0], data[1]), jnp.stack([jnp.zeros_like(word), word]))


IMPLEMENTATION = define_prng_impl(
    key_shape=(2,), seed=_seed, split=_split, random_bits=_bits, fold_in=_fold_in, name='t3d_threefry2x32', tag='t3d'
)


def key(seed) -> Key:
    """The key of a seed: a number from 0 to 2^32 - 1, or an integer scalar array, also within jit and vmap.

    Raises: UsageError for another number; arrays are not looked at.
    """
    if not isinstance(seed, int | np.integer):
        return of_data(_seed(seed))
    if not 0 <= seed < 2**32:
        raise UsageError(f'seed {seed}: wanted 0 to 2^32 - 1.')
    return of_data(np.array([0, seed], np.uint32))


def of_data(data) -> Key:
    """The keys [...] of data uint32 [..., 2], what `jax.random.key_data` gives: how keys pass where only numbers do."""
    return jax.random.wrap_key_data(jnp.asarray(data, jnp.uint32), impl=IMPLEMENTATION)


def settled(key: Key) -> Key:
    """The same Threefry key as one of this module, for keys that callers make; those of another implementation stay."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if typed and jax.random.key_impl(key) != 'threefry2x32':
        return key
    data = jax.random.key_data(key) if typed else key
    return of_data(data) if data.shape[-1] == 2 else key


def each(key: Key, count: int) -> Key:
    """Keys [count], one for each prompt of a call: number k is the same whatever the count is."""
    return jax.vmap(functools.partial(jax.random.fold_in, settled(key)))(jnp.arange(count, dtype=jnp.uint32))


def normals(seeds, width: int) -> jax.Array:
    """[B, width] float32, standard normal: row k is of seeds[k] alone, and begins alike at any width."""
    draw = lambda seed: jax.random.normal(key(seed), (width,), jnp.float32)
    return jax.vmap(draw)(jnp.asarray(seeds, jnp.uint32))


def rows(key: Key, shape) -> jax.Array:
    """Standard normals [B, ...] float32; where they are 2^32 or more (planes of a large batch), row by row of its own key."""
    if np.prod(shape, dtype=float) < COUNTED:
        return jax.random.normal(key, shape, jnp.float32)
    return jax.vmap(lambda one: jax.random.normal(one, shape[1:], jnp.float32))(jax.random.split(key, shape[0]))


def coin(key: Key, share, shape) -> jax.Array:
    """Booleans of `shape`, True with probability `share`, a number or an array that broadcasts."""
    return jax.random.bernoulli(key, jnp.asarray(share, jnp.float32), shape)
