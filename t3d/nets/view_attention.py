"""Attention between the views of an object, with or without a mask, and in blocks where a cache is what limits."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from t3d.core.typing import Array, Bool, Float
from t3d.nets.unet_blocks import LOGITS, NEVER, Options, dot_product_attention, plain_attention

CACHED = 2**19  # logits at once on a CPU: 2 MiB


class JointAttention(nn.Module):
    """Self attention over the positions of all views, along a mask for each pair of them or whole; the layers of
    unet_blocks.Attention."""

    heads: int
    options: Options

    @nn.compact
    def __call__(self, x: Float[Array, 'b n c'], mask: Bool[Array, 'b n n'] | None = None) -> Float[Array, 'b n c']:
        channels, options = x.shape[-1], self.options

        def project(name):
            out = nn.Dense(channels, use_bias=False, dtype=options.dtype, name=name)(x)
            return out.reshape(*x.shape[:2], self.heads, channels // self.heads)

        query, key, value = project('to_q'), project('to_k'), project('to_v')
        if mask is None and jax.default_backend() != 'cpu':
            out = dot_product_attention(query, key, value, upcast=options.upcast)
        else:
            if options.upcast:
                query, key = query.astype(jnp.float32), key.astype(jnp.float32)
            out = joint_attention(*(each.swapaxes(1, 2) for each in (query, key, value)), mask).swapaxes(1, 2)
        return nn.Dense(channels, dtype=options.dtype, name='to_out_0')(out.reshape(x.shape).astype(options.dtype))


def joint_attention(query, key, value, mask=None):
    """Softmax attention of [B, heads, N, D] along mask [B, N, M], in chunks of queries that are computed again in the backward
    pass if there would be more than `unet_blocks.LOGITS` logits at once, on a CPU more than `CACHED`."""
    batch, heads, count, _ = query.shape
    on_cpu = jax.default_backend() == 'cpu'
    chunks = -(-batch * heads * count * key.shape[2] // (CACHED if on_cpu else LOGITS))
    while count % chunks:
        chunks += 1
    if chunks == 1:
        return plain_attention(query, key, value, None if mask is None else mask[:, None])
    if on_cpu:
        return blocked(chunks, query, key, value, mask)
    part = jax.checkpoint(lambda both: plain_attention(both[0], key, value, both[1][:, None]))
    parts = jax.lax.map(part, (_cut(query, chunks, 2), _cut(mask, chunks, 1)))
    return _join(parts, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def blocked(chunks: int, query, key, value, mask):
    """`plain_attention` whose logits exist for one of `chunks` blocks of queries at a time, in both passes, and whose gradients
    are products of the form that XLA:CPU does three times as fast: the large matrix never the transposed one on the left."""
    return _blocked_forward(chunks, query, key, value, mask)[0]


def _blocked_forward(chunks, query, key, value, mask):
    def one(block):
        logits = _logits(block['query'], key, block.get('mask'))
        top = jnp.max(logits, -1, keepdims=True)
        weights = jnp.exp(logits - top)
        total = jnp.sum(weights, -1, keepdims=True)
        out = jnp.einsum('bhnm,bhmd->bhnd', weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
        return (out / total).astype(value.dtype), top + jnp.log(total)

    out, level = (_join(parts, 2) for parts in jax.lax.map(one, _blocks(chunks, mask, query=query)))
    return out, (query, key, value, mask, out, level)


def _blocked_backward(chunks, saved, gradient):
    query, key, value, mask, out, level = saved

    def one(totals, block):
        query, gradient = block['query'], block['gradient']
        weights = jnp.exp(_logits(query, key, block.get('mask')) - block['level'])
        to_weights = jnp.einsum('bhnd,bhmd->bhnm', gradient, value, preferred_element_type=jnp.float32)
        to_logits = weights * (to_weights - jnp.sum(gradient.astype(jnp.float32) * block['out'], -1, keepdims=True))
        to_logits = (to_logits * query.shape[-1] ** -0.5).astype(query.dtype)
        to_value = _columns(weights.astype(value.dtype), gradient)
        return (totals[0] + _columns(to_logits, query), totals[1] + to_value), jnp.einsum('bhnm,bhmd->bhnd', to_logits, key)

    blocks = _blocks(chunks, mask, query=query, gradient=gradient, out=out, level=level)
    start = tuple(jnp.zeros(each.swapaxes(2, 3).shape, jnp.float32) for each in (key, value))
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
