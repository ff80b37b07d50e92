"""BERT's encoder (arXiv 1810.04805) as MiniLM uses it, and sentence vectors (Sentence-BERT, arXiv 1908.10084).

`t3d.checkpoint.judges` reads all-MiniLM-L6-v2 (six layers, 22.6 million parameters) from an installed package.
"""

import flax.linen as nn
import jax.numpy as jnp

from t3d.core.typing import Array, Bool, Float, Int, typechecked
from t3d.nets.attention import softmax_attention

EPSILON = 1e-12  # of every layer norm, as in the released config
MINILM = dict(vocabulary_size=30522, length=512, width=384, layers=6, heads=12, mlp_width=1536)  # all-MiniLM-L6-v2


class Layer(nn.Module):
    """One post-norm transformer layer; returns (x, None) so that nn.scan can stack it."""

    heads: int
    mlp_width: int
    dtype: jnp.dtype

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b n c'], mask: Bool[Array, 'b n']) -> tuple[Float[Array, 'b n c'], None]:
        batch, count, width = x.shape

        def dense(name, features, value):
            return nn.Dense(features, dtype=self.dtype, name=name)(value)

        def norm(name, value):
            return nn.LayerNorm(use_fast_variance=False, epsilon=EPSILON, dtype=self.dtype, name=name)(value)

        q, k, v = (
            dense(name, width, x).reshape(batch, count, self.heads, width // self.heads) for name in ('query', 'key', 'value')
        )
        h = softmax_attention(q, k, v, mask=mask[:, None, None, :]).reshape(batch, count, width)
        x = norm('norm_1', x + dense('out', width, h))
        h = nn.gelu(dense('mlp_in', self.mlp_width, x), approximate=False)
        return norm('norm_2', x + dense('mlp_out', width, h)), None


class Bert(nn.Module):
    """Token ids to token features; without BERT's pooler, which sentence vectors do not use.

    Attributes:
      vocabulary_size, length: of the tokenizer, and the most tokens there are positions for.
      width, layers, heads, mlp_width: of the transformer.
    """

    vocabulary_size: int
    length: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, tokens: Int[Array, 'b n'], mask: Bool[Array, 'b n']) -> Float[Array, 'b n c']:
        """mask is False at padding, which no token attends to; all tokens are of the first segment.

        Raises:
          ValueError: more tokens than positions.
        """
        count = tokens.shape[1]
        if count > self.length:
            raise ValueError(f'{count} tokens given, this model has positions for {self.length}: cut the texts shorter.')
        init = nn.initializers.normal(0.02)
        x = nn.Embed(self.vocabulary_size, self.width, embedding_init=init, name='token_embedding')(tokens)
        positions = self.param('position_embedding', init, (self.length, self.width), jnp.float32)
        segments = self.param('segment_embedding', init, (2, self.width), jnp.float32)
        x = x + positions[:count] + segments[0]
        x = nn.LayerNorm(use_fast_variance=False, epsilon=EPSILON, dtype=self.dtype, name='norm')(x)
        stack = nn.scan(
            Layer, variable_axes={'params': 0}, split_rngs={'params': True}, in_axes=nn.broadcast, length=self.layers
        )
        return stack(self.heads, self.mlp_width, self.dtype, name='layers')(x, mask)[0]


def sentence(features: Float[Array, 'b n c'], mask: Bool[Array, 'b n']) -> Float[Array, 'b c']:
    """Sentence vectors of unit length: the mean of the features where mask is True, normalised; float32."""
    weights = mask.astype(jnp.float32)[..., None]
    mean = jnp.sum(features.astype(jnp.float32) * weights, 1) / jnp.maximum(jnp.sum(weights, 1), 1e-9)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)
