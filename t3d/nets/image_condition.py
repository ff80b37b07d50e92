"""A picture beside the text as a condition of a denoiser: one token more, of what a model of pictures and texts sees in it.

picture -> given.clip's unit vector -> linear, layer norm -> a token behind those of the text, hidden where there is none.

Rows without a picture are those of the text alone, so that a network that never saw pictures starts unchanged, and one run
serves prompts with and without them. Source: IP-Adapter, arXiv 2308.06721, Sec. 3.2.2, has the same linear map and norm, but
four tokens, and attention layers of their own for them.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from t3d.core import prng
from t3d.core.errors import UsageError
from t3d.core.typing import Array, Bool, Float, typechecked
from t3d.nets.unet_blocks import Masked


class Shown(NamedTuple):
    """Pictures beside prompts: images [B, S, S, 3] in [0, 1]; keep [B] bool, False for rows that have none."""

    images: jax.Array
    keep: jax.Array


class ImageToken(nn.Module):
    """A unit vector [B, K] as a token [B, D].

    Attributes:
      width: D, that of text features.
    """

    width: int

    @nn.compact
    @typechecked
    def __call__(self, seen: Float[Array, 'b k']) -> Float[Array, 'b d']:
        token = nn.Dense(self.width, name='proj')(seen * seen.shape[-1] ** 0.5)
        return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name='norm')(token)


class ImageCondition:
    """The token of a picture by a model of pictures and texts; holds no parameters.

    Args:
      alike: that model (diffusion.likeness.Likeness), whose parameters are an argument of what is called.
      width: of text features.
    """

    def __init__(self, alike, width: int):
        self.alike, self.net = alike, ImageToken(width)

    def init(self, key):
        """Parameters of the token."""
        return self.net.init(key, jnp.zeros((1, self.alike.width), jnp.float32))['params']

    def beside(self, params, given, features: Float[Array, 'b n d'], shown: Shown) -> Masked:
        """Text features and the token of what is shown; no gradient goes into pictures or `given`, the model's parameters."""
        token = self.net.apply({'params': params}, jax.lax.stop_gradient(self.alike.images(given, shown.images)))
        return with_token(features, token, shown.keep)


def with_token(features: Float[Array, 'b n d'], token: Float[Array, 'b d'], keep: Bool[Array, ' b']) -> Masked:
    """Text features with one token more, which rows without `keep` do not attend to."""
    mask = jnp.concatenate([jnp.ones(features.shape[:2], bool), keep[:, None]], 1)
    return Masked(jnp.concatenate([features, token[:, None].astype(features.dtype)], 1), mask)


def in_training(key, images: Float[Array, 'b v s s 3'], drop: float) -> Shown:
    """The first view of each object, and none for the share `drop` of objects."""
    return Shown(images[:, 0], ~prng.coin(key, drop, (images.shape[0],)))


def dropped(shown: Shown | None) -> Shown | None:
    """The same pictures shown to nobody, for guidance."""
    return None if shown is None else shown._replace(keep=jnp.zeros_like(shown.keep))


def requested(pictures, size: int, background: float) -> Shown | None:
    """What requests show: pictures [H, W, 4] or None each; None where all are None.

    A picture is laid over the background, made square by it, and resized.
    """
    if all(picture is None for picture in pictures):
        return None
    blank = jnp.full((size, size, 3), background, jnp.float32)
    images = [blank if picture is None else squared(picture, size, background) for picture in pictures]
    return Shown(jnp.stack(images), jnp.array([picture is not None for picture in pictures]))


def squared(rgba, size: int, background: float):
    """A picture [H, W, 4] in [0, 1] over the background, with equal margins square, resized to [size, size, 3]."""
    rgba = jnp.asarray(rgba, jnp.float32)
    if rgba.ndim != 3 or rgba.shape[-1] != 4:
        raise UsageError(f'a picture of shape {rgba.shape}: wanted [H, W, 4], colour and opacity.')
    height, width, _ = rgba.shape
    rows, columns = max(width - height, 0), max(height - width, 0)
    rgba = jnp.pad(rgba, ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0)))
    image = rgba[..., :3] * rgba[..., 3:] + background * (1.0 - rgba[..., 3:])
    return jnp.clip(jax.image.resize(image, (size, size, 3), 'linear'), 0.0, 1.0)
