"""CLIP's text transformer (arXiv 2103.00020, Sec. 2.4): pre-norm, causal, learned positions."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t3d.core.typing import Array, Float, Int


def quick_gelu(x):
    """x sigmoid(1.702 x), the activation of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {'quick_gelu': quick_gelu, 'gelu': lambda x: nn.gelu(x, approximate=False)}


class TextLayer(nn.Module):
    """One causal transformer layer; returns (x, None) so that nn.scan can stack it."""

    heads: int
    mlp_width: int
    activation: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, _):
        batch, count, width = x.shape

        def dense(name, features, value):
            return nn.Dense(features, dtype=self.dtype, name=name)(value)

        h = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm_1')(x)
        q, k, v = (
            dense(name, width, h).reshape(batch, count, self.heads, width // self.heads) for name in ('query', 'key', 'value')
        )
        h = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(batch, count, width)
        x = x + dense('out', width, h)
        h = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm_2')(x)
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
    def __call__(self, tokens: Int[Array, 'b n']) -> Float[Array, 'b n c']:
        init = nn.initializers.normal(self.embedding_scale)
        x = nn.Embed(self.vocabulary_size, self.width, embedding_init=init, name='token_embedding')(tokens)
        x = x + self.param('position_embedding', nn.initializers.normal(0.5 * self.embedding_scale), (self.length, self.width))
        stack = nn.scan(
            TextLayer, variable_axes={'params': 0}, split_rngs={'params': True}, in_axes=nn.broadcast, length=self.layers
        )
        x, _ = stack(self.heads, self.mlp_ratio * self.width, self.activation, self.dtype, name='layers')(
            x.astype(self.dtype), None
        )
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='final_norm')(x)
