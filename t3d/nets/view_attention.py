"""Attention between the views of an object: along a mask, and with the views spread over devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t3d.core.typing import Array, Bool, Float
from t3d.nets.unet_blocks import LOGITS, Options, plain_attention


class MaskedAttention(nn.Module):
    """Self attention along a mask for each pair of positions; the layers of unet_blocks.Attention."""

    heads: int
    options: Options

    @nn.compact
    def __call__(self, x: Float[Array, 'b n c'], mask: Bool[Array, 'b n n']) -> Float[Array, 'b n c']:
        channels, options = x.shape[-1], self.options

        def project(name):
            out = nn.Dense(channels, use_bias=False, dtype=options.dtype, name=name)(x)
            out = out.reshape(*x.shape[:2], self.heads, channels // self.heads).swapaxes(1, 2)
            return out.astype(jnp.float32) if options.upcast and name != 'to_v' else out

        out = masked_attention(project('to_q'), project('to_k'), project('to_v'), mask)
        out = out.swapaxes(1, 2).reshape(x.shape).astype(options.dtype)
        return nn.Dense(channels, dtype=options.dtype, name='to_out_0')(out)


def masked_attention(query, key, value, mask):
    """Softmax attention of [B, heads, N, D] along mask [B, N, M], in chunks of queries that are computed again in the backward
    pass if there would be more than `unet_blocks.LOGITS` logits at once."""
    batch, heads, count, _ = query.shape
    chunks = -(-batch * heads * count * key.shape[2] // LOGITS)
    while count % chunks:
        chunks += 1
    if chunks == 1:
        return plain_attention(query, key, value, mask[:, None])
    split = lambda x, axis: jnp.moveaxis(x.reshape(*x.shape[:axis], chunks, -1, *x.shape[axis + 1 :]), axis, 0)
    part = jax.checkpoint(lambda both: plain_attention(both[0], key, value, both[1][:, None]))
    return jnp.moveaxis(jax.lax.map(part, (split(query, 2), split(mask, 1))), 0, 2).reshape(query.shape)
