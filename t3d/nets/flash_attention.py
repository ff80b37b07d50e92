"""Attention by the flash kernel for TPUs that JAX ships: the logits are never whole in the device's memory.

The kernel is `jax.experimental.pallas.ops.tpu.flash_attention` (after arXiv 2205.14135 and 2307.08691). It wants lengths that
are multiples of its blocks, widths of a head that are at most 128 or multiples of it, and a program that is not partitioned by
the compiler; here queries, keys and heads are padded, and each device of a mesh calls it on its own rows and heads.

XLA's attention (`unet_blocks`) is the default; on a GPU it may be cuDNN's kernel, which `plain` leaves out. A UNet is asked for
the kernel by its attribute `attention='flash'`, a config by `unet.attention=flash`. Off TPU, for fewer than LEAST_KEYS keys
(those of a text), float16, and masks of pairs of positions, it is XLA's attention all the same. Speed was never measured on a
TPU; docs/pods.md has what the compiler says of memory.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from t3d.core import platforms, spread
from t3d.core.errors import UsageError
from t3d.core.typing import Array, Bool, Float, typechecked

KERNELS = ('xla', 'flash', 'plain')
LEAST_KEYS = 4096  # MaxDiffusion's `flash_min_seq_length`
DTYPES = (jnp.bfloat16, jnp.float32)
LANES = 128  # of a register: blocks are multiples of it


def check(kernel: str) -> None:
    """Raises UsageError for a kernel that is not there."""
    if kernel not in KERNELS:
        raise UsageError(f"attention={kernel!r}: wanted 'xla', 'flash' for the flash kernel on TPUs, or 'plain'.")


def takes(query: Float[Array, 'b n h d'], key: Float[Array, 'b m h d']) -> bool:
    """Whether attention that asks for the kernel gets it."""
    return platforms.name() == 'tpu' and query.dtype in DTYPES and key.shape[1] >= LEAST_KEYS


@typechecked
def attend(
    query: Float[Array, 'b n h d'],
    key: Float[Array, 'b m h d'],
    value: Float[Array, 'b m h d'],
    mask: Bool[Array, 'b m'] | None = None,
) -> Float[Array, 'b n h d']:
    """Softmax attention by the kernel, scale D ** -0.5, logits and softmax in float32; gradients to query, key and value.

    On the mesh of the context rows lie on the axes of the batch and heads on 'tensor', where they divide: nothing else moves.

    Args: of one dtype; mask, True for the keys that may be attended to, at least one of each row.
    """
    rows, heads = spread.batch_axes(query.shape[0]) or None, _heads_axis(query.shape[2])
    arrays = (query, key, value) if mask is None else (query, key, value, mask)
    if not spread.axes():
        return _padded(*arrays)
    specs = (P(rows, None, heads),) * 3 + (P(rows),) * (len(arrays) - 3)
    # The kernel does not say over which axes its results vary, as check_vma wants it.
    return jax.shard_map(_padded, in_specs=specs, out_specs=specs[0], axis_names=set(spread.axes()), check_vma=False)(*arrays)


def _heads_axis(heads: int) -> str | None:
    """'tensor' where the mesh has it and heads divide; the projections put them there (nets.unet.SHARDING)."""
    size = spread.axes().get('tensor', 0)
    return 'tensor' if size and heads % size == 0 else None


def _padded(query, key, value, mask=None):
    """The kernel on [B, N, heads, D], with zeros up to sizes that it takes."""
    from jax.experimental.pallas.ops.tpu import flash_attention as kernels  # half a second

    count, keys, width = query.shape[1], key.shape[1], query.shape[3]
    query, key, value = (_to_kernel(x) for x in (query, key, value))
    segments = None
    if mask is not None or key.shape[2] > keys:  # queries attend to keys with their number
        kept = jnp.ones((query.shape[0], keys), jnp.int32) if mask is None else mask.astype(jnp.int32)
        kept = jnp.pad(kept, ((0, 0), (0, key.shape[2] - keys)))
        segments = kernels.SegmentIds(q=jnp.ones((query.shape[0], query.shape[2]), jnp.int32), kv=kept)
    sizes = _sizes(query.shape[2], key.shape[2])
    out = kernels.flash_attention(query, key, value, segment_ids=segments, sm_scale=width**-0.5, block_sizes=sizes)
    return out[:, :, :count, :width].swapaxes(1, 2)


def _to_kernel(x):
    """[B, N, heads, D] -> [B, heads, N up to blocks, D up to registers if it is more than one]."""
    up = lambda size: -(-size // LANES) * LANES - size
    wider = up(x.shape[3]) if x.shape[3] > LANES else 0
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, up(x.shape[1])), (0, wider)))


@functools.lru_cache(None)
def _sizes(count: int, keys: int):
    """The kernel's blocks in its three passes, for padded lengths.

    The gradient of queries takes few keys at once: what it reads of each query is repeated for each of them in main memory.
    """
    from jax.experimental.pallas.ops.tpu import flash_attention as kernels

    of_queries, of_keys = _block(count, 512), _block(keys, 512)
    return kernels.BlockSizes(
        block_b=1,
        block_q=of_queries,
        block_k_major=of_keys,
        block_k=of_keys,
        block_q_major_dkv=of_queries,
        block_q_dkv=of_queries,
        block_k_major_dkv=of_keys,
        block_k_dkv=of_keys,
        block_q_dq=_block(count, 1024),
        block_k_major_dq=LANES,
        block_k_dq=LANES,
    )


def _block(size: int, most: int) -> int:
    """The largest power of two that divides a multiple of LANES, up to `most`."""
    return min(size & -size, most)
