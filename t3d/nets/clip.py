"""CLIP's text transformer (arXiv 2103.00020, Sec. 2.4): pre-norm, causal, learned positions; and what both towers share.

The sizes of the released text towers are in `TEXT`; `checkpoint/convert_clip.py` reads real weights. Softmax and the statistics
of the norms are float32 whatever `dtype` is.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t3d.core import spread
from t3d.core.typing import Array, Float, Int, typechecked
from t3d.nets.attention import softmax_attention


def quick_gelu(x):
    """x sigmoid(1.702 x), the activation of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {'quick_gelu': quick_gelu, 'gelu': lambda x: nn.gelu(x, approximate=False)}


TEXT = {  # attributes of TextTower for released weights
    # Stable Diffusion 1.x and OpenAI's ViT-L/14: 123,060,480 parameters.
    'L/14': dict(vocabulary_size=49408, length=77, width=768, layers=12, heads=12, activation='quick_gelu'),
    # OpenCLIP's ViT-H/14 as Stable Diffusion 2.x ships it: 23 of 24 layers, so that the "penultimate" layer is the last one.
    'H/14': dict(vocabulary_size=49408, length=77, width=1024, layers=23, heads=16, activation='gelu'),
}


class KeyDense(nn.Module):
    """A linear layer whose bias has no gradient, for the keys of softmax attention.

    Such a bias adds the same number to all logits of a query, which softmax cancels: its true gradient is zero, and what
    automatic differentiation finds are rounding errors, which Adam would scale up to whole steps.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, '*b c']) -> Float[Array, '*b o']:
        kernel = self.param('kernel', nn.linear.default_kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return x @ kernel + jax.lax.stop_gradient(bias)


class Layer(nn.Module):
    """One pre-norm transformer layer; returns (x, None) so that nn.scan can stack it."""

    heads: int
    mlp_width: int
    activation: str
    dtype: jnp.dtype
    causal: bool = True

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b n c'], _: None) -> tuple[Float[Array, 'b n c'], None]:
        batch, count, width = x.shape

        def dense(name, features, value):
            return nn.Dense(features, dtype=self.dtype, name=name)(value)

        h = nn.LayerNorm(use_fast_variance=False, epsilon=1e-5, dtype=self.dtype, name='norm_1')(x)
        keys = KeyDense(width, dtype=self.dtype, name='key')(h)
        q, k, v = (
            value.reshape(batch, count, self.heads, width // self.heads)
            for value in (dense('query', width, h), keys, dense('value', width, h))
        )
        h = softmax_attention(q, k, v, is_causal=self.causal).reshape(batch, count, width)
        x = x + dense('out', width, h)
        h = nn.LayerNorm(use_fast_variance=False, epsilon=1e-5, dtype=self.dtype, name='norm_2')(x)
        h = ACTIVATIONS[self.activation](dense('mlp_in', self.mlp_width, h))
        return x + dense('mlp_out', width, h), None


class TextTower(nn.Module):
    """Token ids to token features.

    Attributes:
      vocabulary_size, length: of the tokenizer.
      width, layers, heads: of the transformer; the MLP is `mlp_ratio` times as wide.
      activation: 'quick_gelu' (OpenAI) or 'gelu' (OpenCLIP).
      embedding_scale: standard deviation of new token embeddings, positions get half of it. CLIP's is 0.02; a small model
        trained at a high rate needs about 1, or its words move faster than what reads them.
    Returns:
      [B, N, width], after the final layer norm.
    """

    vocabulary_size: int
    length: int
    width: int
    layers: int
    heads: int
    mlp_ratio: int = 4
    activation: str = 'quick_gelu'
    embedding_scale: float = 0.02
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, tokens: Int[Array, 'b n']) -> Float[Array, 'b n c']:
        init = nn.initializers.normal(self.embedding_scale)
        x = nn.Embed(self.vocabulary_size, self.width, embedding_init=init, name='token_embedding')(spread.rows(tokens))
        x = x + self.param(
            'position_embedding', nn.initializers.normal(0.5 * self.embedding_scale), (self.length, self.width), jnp.float32
        )
        x = stack(self.layers, self.heads, self.mlp_ratio * self.width, self.activation, self.dtype)(x.astype(self.dtype))
        return nn.LayerNorm(use_fast_variance=False, epsilon=1e-5, dtype=self.dtype, name='final_norm')(x)


def stack(layers: int, heads: int, mlp_width: int, activation: str, dtype, causal: bool = True):
    """`layers` times `Layer` as one scan: x -> x. Its parameters are `layers/...`, each with the layer axis in front."""
    scanned = nn.scan(Layer, variable_axes={'params': 0}, split_rngs={'params': True}, in_axes=nn.broadcast, length=layers)
    module = scanned(heads, mlp_width, activation, dtype, causal, name='layers')
    return lambda x: module(x, None)[0]


def pool(features: Float[Array, 'b n c'], tokens: Int[Array, 'b n'], end: int | None = None) -> Float[Array, 'b c']:
    """The features at each row's first end-of-text token: CLIP's sentence vector before its projection.

    Args:
      features: of TextTower.
      tokens: the same ids that the tower read.
      end: the id of the end mark; None takes the highest id of each row, which is the end mark in CLIP's own vocabulary.
    """
    place = jnp.argmax(tokens if end is None else tokens == end, axis=-1)
    return jnp.take_along_axis(features, place[:, None, None], axis=1)[:, 0]


def embed(
    features: Float[Array, 'b n c'], tokens: Int[Array, 'b n'], projection: Float[Array, 'c d'], end: int | None = None
) -> Float[Array, 'b d']:
    """The text vector that CLIP compares with images: pooled, projected, not normalised.

    Args:
      projection: `text_projection` as a matrix from tower width to the shared width (checkpoint/convert_clip.py reads it).
    """
    pooled = pool(features, tokens, end)
    return jnp.einsum('bc,cd->bd', pooled, projection.astype(pooled.dtype))
