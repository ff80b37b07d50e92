"""How alike a picture and a text are: the form in which CLIP, or what stands in for it, is given to a system.

    1 - <phi(I), tau(y)>        the loss that pulls renders to their prompt (Instant3D, arXiv 2311.08403, Sec. 3.4)

A `Likeness` is made of a CLIP folder of the user's, or in closed form of pictures of known things (`of_means`). It holds no
parameters: those are the first argument of its functions.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import tokens
from t3d.core.errors import UsageError
from t3d.core.system import Given, require
from t3d.core.typing import Array, Float

WANTED = 'a model that compares pictures with texts: toy_clip, judge, or a CLIP folder'
LEAST = 1e-12
HIGHEST = jax.lax.Precision.HIGHEST


class Likeness(NamedTuple):
    """A model of pictures and texts in one space.

    Attributes:
      tokenize: prompts -> int32 [B, N], on the host.
      images: (params, images [B, S, S, 3] in [0, 1]) -> unit vectors [B, D] float32; differentiable, of any S.
      texts: (params, ids [B, N]) -> unit vectors [B, D] float32.
      width: D.
    """

    tokenize: Callable
    images: Callable
    texts: Callable
    width: int


def of_given(given: Mapping[str, Given]) -> Likeness | None:
    """The model that is given as 'clip', or None; UsageError for one of another kind."""
    return require(given, 'clip', Likeness, WANTED).functions if 'clip' in given else None


def refuse_other(text, tokenize: Callable, texts: list[str]) -> None:
    """Raises UsageError for a model that does not read texts as a section `text` does, with which batches are made.

    What follows a text's end does not count: Stable Diffusion 2 fills with another token than CLIP.
    """
    ours, theirs = (np.asarray(read(texts)) for read in (tokens.make(text), tokenize))
    ends = np.minimum(_filled_from(ours), _filled_from(theirs))
    alike = ours.shape == theirs.shape and all((a[:n] == b[:n]).all() for a, b, n in zip(ours, theirs, ends, strict=True))
    if not alike:
        raise UsageError(
            'given.clip reads texts in another way than the section `text`: set text.folder to a CLIP tokenizer, and '
            'text.length to its length.'
        )


def _filled_from(ids: np.ndarray) -> np.ndarray:
    """[B]: the place behind the first of the equal ids that end each row."""
    return ids.shape[1] - np.cumprod(ids[:, ::-1] == ids[:, -1:], axis=1).sum(1) + 1


def unlikeness(images: Float[Array, 'b d'], texts: Float[Array, 'b d']) -> jax.Array:
    """The mean of 1 - <phi, tau> over pairs of unit vectors."""
    return 1.0 - jnp.mean(jnp.sum(images * jax.lax.stop_gradient(texts), -1))


def unit(x):
    """x / |x| along the last axis, float32, with a finite gradient at 0."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + LEAST)


def of_means(captions: Sequence[Sequence[str]], size: int, tokenize: Callable) -> Likeness:
    """The model in closed form of P things with known pictures; its parameters are {'texts': [P, D], 'centre': [D]}.

    phi(I) = unit(I - c) for a picture at `size` px, c the mean of all known pictures, and tau(y) = unit(m_y - c), m_y the mean
    picture of a thing from all sides. A text of no known thing has the vector 0.

    Args:
      captions: of each thing, all that name it.
      size: S; D = 3 S^2.
      tokenize: of the batches that it is to read.
    """
    ids = np.concatenate([np.asarray(tokenize(list(names))) for names in captions])  # [C, N]
    things = np.repeat(np.arange(len(captions)), [len(names) for names in captions])

    def images(params, pictures):
        small = jax.image.resize(pictures, (pictures.shape[0], size, size, 3), 'linear')
        return unit(small.reshape(len(pictures), -1) - params['centre'])

    def texts(params, prompt_ids):
        return looked_up(prompt_ids, ids, things, params['texts'])

    return Likeness(tokenize, images, texts, 3 * size**2)


def looked_up(prompt_ids, ids: np.ndarray, things: np.ndarray, vectors):
    """The vectors [B, D] of prompts [B, N] among C known ones [C, N], whose places in `vectors` [P, D] `things` [C] has; 0 for
    others."""
    if prompt_ids.shape[-1] != ids.shape[-1]:
        raise UsageError(f'texts of {prompt_ids.shape[-1]} tokens: this model reads {ids.shape[-1]}.')
    same = jnp.all(prompt_ids[:, None] == ids, -1)  # [B, C]
    share = same.astype(jnp.float32) / jnp.maximum(jnp.sum(same, -1, keepdims=True), 1)
    return jnp.matmul(share, vectors[things], precision=HIGHEST)


def of_means_params(means: np.ndarray) -> dict[str, np.ndarray]:
    """The parameters of `of_means`, of pictures [P, ..., S, S, 3] in [-1, 1] of each thing from all sides."""
    pictures = (0.5 + 0.5 * np.asarray(means, np.float64)).reshape(len(means), -1, math.prod(means.shape[-3:]))
    centre = pictures.mean((0, 1))
    offsets = pictures.mean(1) - centre
    texts = offsets / np.linalg.norm(offsets, axis=-1, keepdims=True)
    return {'texts': texts.astype(np.float32), 'centre': centre.astype(np.float32)}
