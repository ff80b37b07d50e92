"""What Stable Diffusion's UNet and its autoencoder are made of: residual blocks, attention, levels down and up.

Submodule names are those of the released files with each number glued to its left neighbour (`resnets.0` -> `resnets_0`), so
that weights are found by name. Maps are [B, H, W, C]. Parameters are float32; `dtype` is that of products and convolutions,
while norm statistics and softmax are float32 always. Source: arXiv 2112.10752, Sec. 3 and App. E, and the released files.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from t3d.core import platforms, spread
from t3d.core.typing import Array, Float, PyTree, typechecked
from t3d.nets import convolution, flash_attention
from t3d.nets.remat import again

LAYER_EPSILON = 1e-5  # of a transformer's layer norms
TRANSFORMER_EPSILON = 1e-6  # of the group norm before a transformer, in every released model
NEVER = -1e30  # logit of a masked key: its weight is exactly 0
LOGITS = 2**27  # attention logits that a device may have at once where no fused kernel takes the shape: 512 MiB in float32


class Options(NamedTuple):
    """What all blocks of a network share.

    groups, epsilon: of the group norms. linear: the transformer's projections are matrices (2.1), not 1x1 convolutions (1.5).
    upcast: attention logits from float32 queries and keys. attention: one of flash_attention.KERNELS. padding: of the stride-2
    convolution, 1 is one texel on each side, 0 one texel at the far sides only. remat: compute again in the backward pass
    instead of storing. transformer: the class of the modules between ResNets, None for `Transformer`, and `settings` of that
    class.
    """

    groups: int
    epsilon: float
    linear: bool = False
    upcast: bool = False
    attention: str = 'xla'
    padding: int = 1
    remat: bool | str = False
    dtype: jnp.dtype = jnp.float32
    transformer: type | None = None
    settings: Any = None


class Masked(NamedTuple):
    """Text of which not every token may be attended to; blocks take it wherever they take text features."""

    features: jax.Array  # [B, M, D]
    mask: jax.Array  # [B, M] bool, True where attention may look; at least one of each row


Text = Float[Array, 'b m d'] | Masked
Maps = tuple[Float[Array, 'b _ _ _'], ...]  # of several levels


def group_norm(options: Options, epsilon: float, name: str) -> nn.GroupNorm:
    """Group norm whose variance is taken around the mean: the difference of squares loses low variances."""
    return nn.GroupNorm(options.groups, epsilon=epsilon, use_fast_variance=False, dtype=options.dtype, name=name)


def layer_norm(options: Options, name: str) -> nn.LayerNorm:
    """Layer norm over channels, variance around the mean."""
    return nn.LayerNorm(epsilon=LAYER_EPSILON, use_fast_variance=False, dtype=options.dtype, name=name)


def conv3(channels: int, dtype, name: str) -> nn.Conv:
    """3x3 convolution that keeps the size."""
    return convolution.layer(channels, (3, 3), padding=1, dtype=dtype, name=name)


def upsample(x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
    """Nearest neighbour to twice the size."""
    batch, height, width, channels = x.shape
    x = jax.lax.broadcast_in_dim(x, (batch, height, 2, width, 2, channels), (0, 1, 3, 5))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def geglu(x):
    """First half times erf-GELU of the second (arXiv 2002.05202)."""
    value, gate = jnp.split(x, 2, axis=-1)
    return value * nn.gelu(gate, approximate=False)


def join(x, skip):
    """Input of a decoder ResNet: the running map first, then the skip."""
    return jnp.concatenate([x, skip], axis=-1)


def dot_product_attention(query, key, value, *, upcast: bool = False, mask=None, kernel: str = 'xla'):
    """Softmax attention, scale head_dim ** -0.5, softmax in float32.

    The flash kernel on a TPU if `kernel` is 'flash' and it takes dtype and shape; the fused cuDNN kernel where the backend is a
    GPU and takes them, no mask is given (masks are for text, whose keys are few) and `kernel` is not 'plain'; else plain
    products, with queries in chunks (each computed again in the backward pass) if there would be more than LOGITS logits at
    once.

    Args: query [B, N, heads, D], key and value [B, M, heads, D]; upcast makes the logits from float32 copies; mask [B, M],
      True for the keys that may be attended to, None for all; kernel, one of flash_attention.KERNELS.
    Returns: [B, N, heads, D] in the dtype of `value`.
    """
    dtype = value.dtype
    allowed = None if mask is None else mask[:, None, None, :]
    if upcast:
        query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    if kernel == 'flash' and flash_attention.takes(query, key):
        return flash_attention.attend(query, key, value, mask).astype(dtype)
    fused = kernel != 'plain' and mask is None and platforms.name() == 'gpu'
    if fused and query.dtype in (jnp.bfloat16, jnp.float16):
        try:
            return jax.nn.dot_product_attention(query, key, value, implementation='cudnn').astype(dtype)
        except (NotImplementedError, RuntimeError, ValueError):  # shape, card or cuDNN version: said at trace time
            pass
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))  # [B, heads, N, D]
    batch, heads, count, _ = query.shape
    chunks = chunks_of(batch, heads * key.shape[2], count, LOGITS)
    if chunks == 1:
        out = plain_attention(query, key, value, allowed)
    else:
        parts = jnp.moveaxis(query.reshape(batch, heads, chunks, count // chunks, -1), 2, 0)
        part = jax.checkpoint(lambda query: plain_attention(query, key, value, allowed))
        out = jnp.moveaxis(jax.lax.map(part, parts), 0, 2).reshape(query.shape)
    return jnp.swapaxes(out, 1, 2).astype(dtype)


def chunks_of(batch: int, each: int, count: int, limit: int) -> int:
    """Into how many equal parts `count` queries go, of `each` logits, so that no device has more than `limit` of those at once;
    at most one for each query."""
    chunks = min(-(-spread.rows_here(batch) * each * count // limit), count)
    while count % chunks:
        chunks += 1
    return chunks


def plain_attention(query, key, value, allowed=None):
    """Attention of [B, heads, N, D], heads in front: on a CPU 1.3 times as fast a UNet as by `jax.nn.dot_product_attention`,
    whose products have the heads between rows and columns."""
    logits = jnp.einsum('bhnd,bhmd->bhnm', query, key, preferred_element_type=jnp.float32)
    logits = logits * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(logits if allowed is None else jnp.where(allowed, logits, NEVER), axis=-1)
    return jnp.einsum('bhnm,bhmd->bhnd', weights.astype(value.dtype), value)


def attention(x, context, heads: int, options: Options, *, bias: bool = False):
    """Attention of x [B, N, C] over context [B, M, D] or `Masked`, as many channels out; makes layers in the calling module.

    Args: heads, of width C / heads; bias, of query, key and value (the last projection always has one).
    """
    channels = x.shape[-1]
    context, mask = context if isinstance(context, Masked) else (context, None)

    def project(name, value):
        out = nn.Dense(channels, use_bias=bias, dtype=options.dtype, name=name)(value)
        return out.reshape(*out.shape[:2], heads, channels // heads)

    query, key, value = project('to_q', x), project('to_k', context), project('to_v', context)
    out = dot_product_attention(query, key, value, upcast=options.upcast, mask=mask, kernel=options.attention)
    return nn.Dense(channels, dtype=options.dtype, name='to_out_0')(out.reshape(x.shape))


class Attention(nn.Module):
    """Attention of `x` over `context`, over itself when None."""

    heads: int
    options: Options

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b n c'], context: Text | None = None) -> Float[Array, 'b n c']:
        return attention(x, x if context is None else context, self.heads, self.options)


class GatedProjection(nn.Module):
    """Linear to twice `width`, one half gating the other."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, '*b c']) -> Float[Array, '*b o']:
        return geglu(nn.Dense(2 * self.width, dtype=self.dtype, name='proj')(x))


class FeedForward(nn.Module):
    """Widens to four times the channels, gates them, and projects back."""

    dtype: jnp.dtype

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, '*b c']) -> Float[Array, '*b c']:
        h = GatedProjection(4 * x.shape[-1], self.dtype, name='net_0')(x)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name='net_2')(h)


class TransformerBlock(nn.Module):
    """Self attention, cross attention to the text, feed-forward, each added behind a layer norm."""

    heads: int
    options: Options

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b n c'], text: Text) -> Float[Array, 'b n c']:
        x = x + Attention(self.heads, self.options, name='attn1')(layer_norm(self.options, 'norm1')(x))
        x = x + Attention(self.heads, self.options, name='attn2')(layer_norm(self.options, 'norm2')(x), text)
        return x + FeedForward(self.options.dtype, name='ff')(layer_norm(self.options, 'norm3')(x))


class Transformer(nn.Module):
    """One transformer block over the pixels of a map, between projections, added to its input."""

    heads: int
    options: Options

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c'], text: Text) -> Float[Array, 'b h w c']:
        batch, height, width, channels = x.shape

        def project(name, value):
            if self.options.linear:
                return nn.Dense(channels, dtype=self.options.dtype, name=name)(value)
            return convolution.layer(channels, (1, 1), dtype=self.options.dtype, name=name)(value)

        h = project('proj_in', group_norm(self.options, TRANSFORMER_EPSILON, 'norm')(x))
        block = TransformerBlock(self.heads, self.options, name='transformer_blocks_0')
        h = block(h.reshape(batch, height * width, channels), text)
        return x + project('proj_out', h.reshape(x.shape))


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions behind group norm and SiLU; `temb` enters between; a 1x1 shortcut where the width changes.

    `temb` [B, E] comes as SiLU of the time embedding; None leaves its projection out.
    """

    channels: int
    options: Options

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c'], temb: Float[Array, 'b e'] | None = None) -> Float[Array, 'b h w o']:
        options = self.options
        h = nn.silu(group_norm(options, options.epsilon, 'norm1')(x))
        h = conv3(self.channels, options.dtype, 'conv1')(h)
        if temb is not None:
            h = h + nn.Dense(self.channels, dtype=options.dtype, name='time_emb_proj')(temb)[:, None, None, :]
        h = nn.silu(group_norm(options, options.epsilon, 'norm2')(h))
        h = conv3(self.channels, options.dtype, 'conv2')(h)
        if x.shape[-1] != self.channels:
            x = convolution.layer(self.channels, (1, 1), dtype=options.dtype, name='conv_shortcut')(x)
        return x + h


class Downsample(nn.Module):
    """Half the size by a stride-2 convolution; see Options.padding."""

    options: Options

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
        pad = ((1, 1), (1, 1)) if self.options.padding else ((0, 1), (0, 1))
        return convolution.layer(x.shape[-1], (3, 3), strides=2, padding=pad, dtype=self.options.dtype, name='conv')(x)


class Upsample(nn.Module):
    """Twice the size, cut to `size` (height, width) where the encoder's map has an odd side, then a 3x3 convolution."""

    dtype: jnp.dtype

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c'], size: tuple[int, int] | None = None) -> Float[Array, 'b h2 w2 c']:
        height, width = size or (2 * x.shape[1], 2 * x.shape[2])
        return conv3(x.shape[-1], self.dtype, 'conv')(upsample(x)[:, :height, :width])


def residual(options: Options):
    """ResnetBlock, recomputed in the backward pass as asked for."""
    return again(ResnetBlock, options.remat)


def transformer(options: Options):
    """The class of the modules between ResNets, recomputed in the backward pass as asked for."""
    return again(options.transformer or Transformer, options.remat)


class DownBlock(nn.Module):
    """One level of an encoder: ResNets, each with a transformer if `heads`, and a down-sampling unless it is the last level.

    Returns the map and all maps on the way, for the decoder.
    """

    channels: int
    layers: int
    heads: int  # 0 for no transformers
    last: bool
    options: Options

    @nn.compact
    @typechecked
    def __call__(
        self, x: Float[Array, 'b h w c'], temb: Float[Array, 'b e'] | None = None, text: PyTree = None
    ) -> tuple[Float[Array, 'b h2 w2 o'], Maps]:
        skips = []
        for k in range(self.layers):
            x = residual(self.options)(self.channels, self.options, name=f'resnets_{k}')(x, temb)
            if self.heads:
                x = transformer(self.options)(self.heads, self.options, name=f'attentions_{k}')(x, text)
            skips.append(x)
        if not self.last:
            x = Downsample(self.options, name='downsamplers_0')(x)
            skips.append(x)
        return x, tuple(skips)


class UpBlock(nn.Module):
    """One level of a decoder: ResNets, joined with the skips (last first) if there are any, and an up-sampling unless last.

    `size` (height, width) is that of the next level's skips, None for twice this level's.
    """

    channels: int
    layers: int
    heads: int
    last: bool
    options: Options

    @nn.compact
    @typechecked
    def __call__(
        self,
        x: Float[Array, 'b h w c'],
        skips: Maps = (),
        temb: Float[Array, 'b e'] | None = None,
        text: PyTree = None,
        size: tuple[int, int] | None = None,
    ) -> Float[Array, 'b h2 w2 o']:
        for k in range(self.layers):
            if skips:
                x = join(x, skips[-1 - k])
            x = residual(self.options)(self.channels, self.options, name=f'resnets_{k}')(x, temb)
            if self.heads:
                x = transformer(self.options)(self.heads, self.options, name=f'attentions_{k}')(x, text)
        return x if self.last else Upsample(self.options.dtype, name='upsamplers_0')(x, size)
