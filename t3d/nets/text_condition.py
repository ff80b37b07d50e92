"""Text as a condition of a denoiser: tokens, a tower, which of its features count, and the text dropped for guidance."""

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import prng, tokens
from t3d.core.errors import UsageError
from t3d.core.rules import divides
from t3d.core.typing import Array, Bool, Float, Int, Key, PyTree
from t3d.nets.clip import TextTower


def check(text, unet=None) -> None:
    """Raises UsageError for a `text` section whose numbers do not fit each other, or the `unet` section that reads it."""
    divides('text.heads', text.heads, 'text.width', text.width)
    if text.get('folder') and not text.vocabulary_size:
        raise UsageError(
            f'text.folder={text.folder!r} with text.vocabulary_size=0: give the number of tokens of that tokenizer, '
            '49408 for CLIP.'
        )
    if unet is not None and unet.cross_attention_dim != text.width:
        raise UsageError(
            f'unet.cross_attention_dim={unet.cross_attention_dim}, text.width={text.width}: the network reads features of that '
            f'width: set unet.cross_attention_dim={text.width}.'
        )


class TextCondition:
    """The tokenizer and tower of a config's `text` section; holds no parameters.

    The section has the sizes of `clip.TextTower`, the vocabulary, `frozen` (no gradient) and, optional, `mask`: attend to
    nothing behind the end mark. Stable Diffusion has no mask and attends to the padding; with a causal tower that is nearly the
    end mark.
    """

    def __init__(self, text, dtype=jnp.float32):
        self.tokenize = tokens.make(text)
        vocabulary = int(text.vocabulary_size) if text.get('folder') else self.tokenize.vocabulary_size
        self.end = vocabulary - 1 if text.get('folder') else tokens.END
        self.tower = TextTower(
            vocabulary,
            text.length,
            text.width,
            text.layers,
            text.heads,
            activation=text.activation,
            embedding_scale=text.embedding_scale,
            dtype=dtype,
        )
        self.frozen, self.masked = bool(text.frozen), bool(text.get('mask', False))
        self.empty = np.asarray(self.tokenize(['']))

    def init(self, key: Key, ids: Int[Array, 'b n']) -> PyTree:
        """Parameters of the tower."""
        return self.tower.init(key, ids)['params']

    def features(self, params: PyTree, ids: Int[Array, 'b n']) -> tuple[Float[Array, 'b n c'], Bool[Array, 'b n']]:
        """(features, mask), the mask True for the tokens that count: all up to the first end mark, or all without `mask`."""
        features = self.tower.apply({'params': params}, ids)
        return jax.lax.stop_gradient(features) if self.frozen else features, self.mask(ids)

    def mask(self, ids: Int[Array, 'b n']) -> Bool[Array, 'b n']:
        """True for the tokens up to the first end mark."""
        if not self.masked:
            return jnp.ones(ids.shape, bool)
        ended = jnp.cumsum(ids == self.end, axis=-1) - (ids == self.end)
        return ended == 0

    def none(self, ids: Int[Array, 'b n']) -> Int[Array, 'b n']:
        """The ids of an empty text for each row."""
        return jnp.broadcast_to(jnp.asarray(self.empty), ids.shape)

    def drop(self, key: Key, ids: Int[Array, 'b n'], share: float) -> Int[Array, 'b n']:
        """The ids with that share of the rows emptied."""
        return jnp.where(prng.coin(key, share, (ids.shape[0], 1)), self.empty, ids)
