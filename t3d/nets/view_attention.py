"""Attention between the views of an object: whole or along a mask, in blocks of queries, and spread over devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from t3d.core import platforms, spread
from t3d.core.errors import UsageError
from t3d.core.typing import Array, Bool, Float, typechecked
from t3d.nets.unet_blocks import LOGITS, NEVER, Options, chunks_of, dot_product_attention, plain_attention

CACHED = 2**19  # logits at once on a CPU: 2 MiB


def axis_of(axis: str, views: int) -> str:
    """The mesh axis that `views` of an object are spread over: `axis`, or '' where the context's mesh has no such axis, and for
    single pictures.

    Raises UsageError where they do not divide.
    """
    size = spread.axes().get(axis, 1)
    if size == 1 or views == 1:
        return ''
    if views % size:
        fits = [n for n in range(1, views + 1) if views % n == 0]
        raise UsageError(f'{views} views do not divide over the {size} devices of mesh.{axis}: wanted mesh.{axis} of {fits}.')
    return axis


def constrain(x: Float[Array, 'n h w c'], objects: int, axis: str) -> Float[Array, 'n h w c']:
    """Maps [B V, h, w, C] laid out on the mesh, objects on the axes of the batch and views on `axis`; '' leaves them."""
    if not axis:
        return x
    return spread.constrain(x, (*spread.batch_axes(objects, axis), axis))


class JointAttention(nn.Module):
    """Self attention over the positions of all views of an object, views slowest; the layers of unet_blocks.Attention.

    Attributes:
      axis: the mesh axis that the views are spread over: each device has the queries of its own views, and gathers the keys and
        values of all; '' for none.
    """

    heads: int
    options: Options
    axis: str = ''

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b n c'], mask: Bool[Array, 'b n n'] | None = None) -> Float[Array, 'b n c']:
        """mask: for each pair of positions, True where the first may attend to the second; None for all pairs."""
        channels, options = x.shape[-1], self.options

        def project(name):
            out = nn.Dense(channels, use_bias=False, dtype=options.dtype, name=name)(x)
            return out.reshape(*x.shape[:2], self.heads, channels // self.heads)

        def attend(own, others):
            query, mask = own
            return joint_attention(query, *others, mask, upcast=options.upcast, kernel=options.attention)

        query, key, value = project('to_q'), project('to_k'), project('to_v')
        out = spread.over(attend, self.axis, (query, mask), (key, value), check_vma=options.attention != 'flash')
        return nn.Dense(channels, dtype=options.dtype, name='to_out_0')(out.reshape(x.shape))


def joint_attention(query, key, value, mask=None, *, upcast: bool = False, kernel: str = 'xla'):
    """Softmax attention, scale head_dim ** -0.5, softmax in float32.

    Without a mask, on anything but a CPU, it is `unet_blocks.dot_product_attention`. Else it is `blocked`, if a device would
    have more logits at once than `unet_blocks.LOGITS`, on a CPU than `CACHED`.

    Args: query [B, N, heads, D], key and value [B, M, heads, D]; mask [B, N, M], True for pairs that may attend, None for all;
      upcast makes the logits from float32 copies; kernel, one of flash_attention.KERNELS, which take no mask of pairs.
    Returns: [B, N, heads, D] in the dtype of `value`.
    """
    on_cpu = platforms.name() == 'cpu'
    if mask is None and not on_cpu:
        return dot_product_attention(query, key, value, upcast=upcast, kernel=kernel)
    if upcast:
        query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))  # [B, heads, N, D]
    batch, heads, count, _ = query.shape
    chunks = chunks_of(batch, heads * key.shape[2], count, CACHED if on_cpu else LOGITS)
    if chunks > 1:
        out = blocked(chunks, query, key, value, mask)
    else:
        out = plain_attention(query, key, value, None if mask is None else mask[:, None])
    return out.swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def blocked(chunks: int, query, key, value, mask):
    """`plain_attention` of [B, heads, N, D] along mask [B, N, M], whose logits exist for one of `chunks` blocks of queries at a
    time, in both passes, and whose gradients are products of the form that XLA:CPU does three times as fast: the large matrix
    never the transposed one on the left."""
    return _blocked_forward(chunks, query, key, value, mask)[0]


def _blocked_forward(chunks, query, key, value, mask):
    def one(block):
        logits = _logits(block['query'], key, block.get('mask'))
        top = jnp.max(logits, -1, keepdims=True)
        weights = jnp.exp(logits - top)
        total = jnp.sum(weights, -1, keepdims=True)
        out = jnp.einsum('bhnm,bhmd->bhnd', weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
        return (out / total).astype(value.dtype), top + jnp.log(total)

    out, level = (spread.keep(_join(parts, 2)) for parts in jax.lax.map(one, _blocks(chunks, mask, query=query)))
    return out, (query, key, value, mask, out, level)


def _blocked_backward(chunks, saved, gradient):
    query, key, value, mask, out, level = saved

    def one(totals, block):
        query, gradient = block['query'], block['gradient']
        with jax.named_scope('rematted_computation'):  # jax.checkpoint's name for it: such work is no model FLOP
            weights = jnp.exp(_logits(query, key, block.get('mask')) - block['level'])
        to_weights = jnp.einsum('bhnd,bhmd->bhnm', gradient, value, preferred_element_type=jnp.float32)
        to_logits = weights * (to_weights - jnp.sum(gradient.astype(jnp.float32) * block['out'], -1, keepdims=True))
        to_logits = (to_logits * query.shape[-1] ** -0.5).astype(query.dtype)
        to_value = _columns(weights.astype(value.dtype), gradient)
        return (totals[0] + _columns(to_logits, query), totals[1] + to_value), jnp.einsum('bhnm,bhmd->bhnd', to_logits, key)

    blocks = _blocks(chunks, mask, query=query, gradient=gradient, out=out, level=level)
    start = tuple(jnp.zeros_like(each.swapaxes(2, 3), jnp.float32) for each in (key, value))
    (to_key, to_value), to_query = jax.lax.scan(one, start, blocks)
    to_key, to_value = to_key.swapaxes(2, 3).astype(key.dtype), to_value.swapaxes(2, 3).astype(value.dtype)
    return _join(to_query, 2), to_key, to_value, None


blocked.defvjp(_blocked_forward, _blocked_backward)


def _logits(query, key, mask):
    logits = jnp.einsum('bhnd,bhmd->bhnm', query * query.shape[-1] ** -0.5, key, preferred_element_type=jnp.float32)
    return logits if mask is None else jnp.where(mask[:, None], logits, NEVER)


def _columns(matrix, rows):
    """The transpose [B, heads, D, M] of matrix^T rows."""
    return jnp.einsum('bhdn,bhnm->bhdm', rows.swapaxes(2, 3), matrix, preferred_element_type=jnp.float32)


def _blocks(chunks, mask, **arrays):
    """Each array cut along its queries, and the mask if there is one."""
    blocks = {name: _cut(value, chunks, 2) for name, value in arrays.items()}
    return blocks if mask is None else {**blocks, 'mask': _cut(mask, chunks, 1)}


def _cut(x, chunks: int, axis: int):
    return jnp.moveaxis(x.reshape(*x.shape[:axis], chunks, -1, *x.shape[axis + 1 :]), axis, 0)


def _join(parts, axis: int):
    parts = jnp.moveaxis(parts, 0, axis)
    return parts.reshape(*parts.shape[:axis], -1, *parts.shape[axis + 2 :])
