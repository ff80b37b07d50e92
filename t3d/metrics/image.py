"""Image metrics. Images are float in [0, 1], [..., H, W, 3]."""

import jax.numpy as jnp

from t3d.core.typing import Array, Float


def mse(image: Float[Array, '*b h w 3'], target: Float[Array, '*b h w 3']) -> Float[Array, '*b']:
    """Mean squared error of each image."""
    return jnp.mean(jnp.square(image - target), axis=(-3, -2, -1))


def psnr(image: Float[Array, '*b h w 3'], target: Float[Array, '*b h w 3']) -> Float[Array, '*b']:
    """Peak signal-to-noise ratio of each image in dB, for a peak of 1; at most 100."""
    return -10.0 * jnp.log10(jnp.maximum(mse(image, target), 1e-10))
