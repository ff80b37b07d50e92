"""Attention between the views of an object: along a mask, and with the views spread over devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t3d.core import spread
from t3d.core.errors import UsageError
from t3d.core.typing import Array, Bool, Float
from t3d.nets.unet_blocks import Options, chunks_of, dot_product_attention, plain_attention


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


class ViewAttention(nn.Module):
    """Self attention over the positions of all views; the layers of unet_blocks.Attention.

    Attributes:
      views: of an object.
      axis: the mesh axis that they are spread over ('' for none): each device asks for its own views, of the keys and values of
        all, which are gathered.
    """

    heads: int
    options: Options
    views: int
    axis: str = ''

    @nn.compact
    def __call__(self, x: Float[Array, 'b n c'], mask: Bool[Array, 'b n n'] | None = None) -> Float[Array, 'b n c']:
        """mask: for each pair of positions, True where attention may look."""
        channels, options = x.shape[-1], self.options

        def project(name):
            out = nn.Dense(channels, use_bias=False, dtype=options.dtype, name=name)(x)
            return out.reshape(*x.shape[:2], self.heads, channels // self.heads)

        query, key, value = project('to_q'), project('to_k'), project('to_v')
        each = lambda value: value.reshape(value.shape[0], self.views, -1, *value.shape[2:])
        joined = lambda value: value.reshape(value.shape[0], -1, *value.shape[3:])

        def attend(own, others):
            query, mask = jax.tree.map(joined, own)
            return self.attend(query, *jax.tree.map(joined, others), mask).reshape(own[0].shape)

        if self.axis:
            out = spread.over(attend, self.axis, jax.tree.map(each, (query, mask)), (each(key), each(value)))
        else:
            out = self.attend(query, key, value, mask)
        return nn.Dense(channels, dtype=options.dtype, name='to_out_0')(out.reshape(x.shape))

    def attend(self, query, key, value, mask):
        """[B, N, heads, D] of queries, over keys and values [B, M, heads, D], along mask [B, N, M] if there is one."""
        if mask is None:
            return dot_product_attention(query, key, value, upcast=self.options.upcast)
        query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
        if self.options.upcast:
            query, key = query.astype(jnp.float32), key.astype(jnp.float32)
        return masked_attention(query, key, value, mask).swapaxes(1, 2).astype(self.options.dtype)


def masked_attention(query, key, value, mask):
    """Softmax attention of [B, heads, N, D] along mask [B, N, M], in chunks of queries that are computed again in the backward
    pass if a device would have more than `unet_blocks.LOGITS` logits at once."""
    batch, heads, count, _ = query.shape
    chunks = chunks_of(batch, heads * key.shape[2], count)
    if chunks == 1:
        return plain_attention(query, key, value, mask[:, None])
    split = lambda x, axis: jnp.moveaxis(x.reshape(*x.shape[:axis], chunks, -1, *x.shape[axis + 1 :]), axis, 0)
    part = jax.checkpoint(lambda both: plain_attention(both[0], key, value, both[1][:, None]))
    return jnp.moveaxis(jax.lax.map(part, (split(query, 2), split(mask, 1))), 0, 2).reshape(query.shape)
