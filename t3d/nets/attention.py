"""Attention layers: multi-head self and cross attention, the image transformer block, and the L2-distance text mixer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t3d.core import platforms
from t3d.core.typing import Array, Float, typechecked


def softmax_attention(query, key, value, *, mask=None, is_causal: bool = False) -> jax.Array:
    """Softmax attention of [B, N, heads, D] over [B, M, heads, D], by `jax.nn.dot_product_attention`.

    Its logits are float32 sums of products in the type of the inputs; for float16 a CPU has no such product, and takes float32.
    """
    dtype = query.dtype
    if dtype == jnp.float16 and platforms.name() == 'cpu':
        query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=is_causal).astype(dtype)


class MultiHeadAttention(nn.Module):
    """Softmax attention of `x` over `context` (over itself when None): four projections, no bias but the last one's.

    Attributes:
      heads, head_dim: their product is the inner width.
    """

    heads: int
    head_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b n c'], context: Float[Array, 'b m d'] | None = None) -> Float[Array, 'b n c']:
        context = x if context is None else context
        inner = self.heads * self.head_dim

        def project(name, value):
            out = nn.Dense(inner, use_bias=False, dtype=self.dtype, name=name)(value)
            return out.reshape(*out.shape[:-1], self.heads, self.head_dim)  # [B, N, heads, head_dim]

        out = softmax_attention(project('query', x), project('key', context), project('value', context))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name='out')(out.reshape(*out.shape[:2], inner))


class GatedMLP(nn.Module):
    """Linear to twice `ratio` times the width, gated by GELU (GEGLU, arXiv 2002.05202), and back."""

    ratio: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, '*b c']) -> Float[Array, '*b c']:
        value, gate = jnp.split(nn.Dense(2 * self.ratio * x.shape[-1], dtype=self.dtype, name='in')(x), 2, axis=-1)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name='out')(value * nn.gelu(gate, approximate=False))


class ImageTransformer(nn.Module):
    """Stable Diffusion's transformer over the pixels of a map: self attention, cross attention to tokens, gated MLP.

    Attributes:
      heads: head count; the head width is channels / heads.
      cross: False leaves the attention to the tokens out (an ablation).
      groups: groups of the entry GroupNorm.
    """

    heads: int
    groups: int
    cross: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c'], tokens: Float[Array, 'b n d']) -> Float[Array, 'b h w c']:
        batch, height, width, channels = x.shape
        h = nn.GroupNorm(self.groups, use_fast_variance=False, epsilon=1e-6, dtype=self.dtype, name='norm')(x)
        h = nn.Dense(channels, dtype=self.dtype, name='proj_in')(h.reshape(batch, height * width, channels))

        def attend(name):
            return MultiHeadAttention(self.heads, channels // self.heads, dtype=self.dtype, name=name)

        def norm(name, value):
            return nn.LayerNorm(use_fast_variance=False, epsilon=1e-5, dtype=self.dtype, name=name)(value)

        h = h + attend('self_attention')(norm('norm_self', h))
        if self.cross:
            h = h + attend('cross_attention')(norm('norm_cross', h), tokens)
        h = h + GatedMLP(dtype=self.dtype, name='mlp')(norm('norm_mlp', h))
        h = nn.Dense(channels, dtype=self.dtype, name='proj_out')(h)
        return x + h.reshape(batch, height, width, channels)


class RMSNorm(nn.Module):
    """x / |x| * sqrt(C) * gain, in float32."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, '*b c']) -> Float[Array, '*b c']:
        gain = self.param('scale', nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x32 = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.maximum(jnp.mean(jnp.square(x32), -1, keepdims=True), 1e-24))
        return (x32 * scale * gain).astype(self.dtype)


class DistanceAttention(nn.Module):
    """Attention whose logits are negative L2 distances between shared queries and keys.

    A learned null token may always be attended to; a token never attends to itself. Both are stabilisers that Instant3D's
    released text mixers use (arXiv 2311.08403, code); the form is that of L2 self attention (arXiv 2006.04710).
    """

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b n c']) -> Float[Array, 'b n c']:
        batch, count, channels = x.shape
        head_dim = channels // self.heads
        x = RMSNorm(dtype=self.dtype, name='norm')(x)

        def project(name):
            out = nn.Dense(channels, use_bias=False, dtype=self.dtype, name=name)(x)
            return out.reshape(batch, count, self.heads, head_dim)

        null = self.param('null', nn.initializers.normal(1.0), (2, self.heads, head_dim), jnp.float32)
        query, value = project('query_key').astype(jnp.float32), project('value')
        null_key, null_value = jnp.broadcast_to(null[:, None, None], (2, batch, 1, self.heads, head_dim))
        key = jnp.concatenate([null_key, query], 1)  # [B, N + 1, heads, head_dim]
        value = jnp.concatenate([null_value.astype(value.dtype), value], 1)
        squared = (
            jnp.sum(query**2, -1).transpose(0, 2, 1)[..., :, None]
            + jnp.sum(key**2, -1).transpose(0, 2, 1)[..., None, :]
            - 2.0 * jnp.einsum('bihd,bjhd->bhij', query, key)
        )
        logits = -jnp.sqrt(jnp.maximum(squared, 1e-12)) * head_dim**-0.5
        itself = jnp.concatenate([jnp.zeros((count, 1), bool), jnp.eye(count, dtype=bool)], -1)
        weights = jax.nn.softmax(jnp.where(itself, -1e2, logits), axis=-1).astype(self.dtype)
        out = jnp.einsum('bhij,bjhd->bihd', weights, value).reshape(batch, count, channels)
        return nn.Dense(channels, use_bias=False, dtype=self.dtype, name='out')(out)


class TextMixer(nn.Module):
    """Tokens to a narrow width, one distance-attention layer with an MLP, RMS norm, flattened: [B, N * width].

    Source: the text branches of Instant3D's style injection and token-to-plane (Sec. 3.2).
    """

    width: int
    heads: int
    ratio: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, tokens: Float[Array, 'b n d']) -> Float[Array, 'b f']:
        x = nn.Dense(self.width, dtype=self.dtype, name='proj_in')(tokens)
        x = x + DistanceAttention(self.heads, dtype=self.dtype, name='attention')(x)
        h = RMSNorm(dtype=self.dtype, name='norm_mlp')(x)
        h = nn.gelu(nn.Dense(self.ratio * self.width, dtype=self.dtype, name='mlp_in')(h), approximate=False)
        x = x + nn.Dense(self.width, dtype=self.dtype, name='mlp_out')(h)
        x = RMSNorm(dtype=self.dtype, name='norm_out')(x)
        return x.reshape(x.shape[0], -1)
