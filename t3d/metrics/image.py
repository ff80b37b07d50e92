"""Image metrics. Images are float in [0, 1], [..., H, W, 3]."""

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core.errors import UsageError
from t3d.core.typing import Array, Float

WINDOW, SIGMA = 11, 1.5  # of SSIM: Wang et al. 2004, Sec. III-B
K1, K2 = 0.01, 0.03


def mse(image: Float[Array, '*b h w 3'], target: Float[Array, '*b h w 3']) -> Float[Array, '*b']:
    """Mean squared error of each image."""
    return jnp.mean(jnp.square(image - target), axis=(-3, -2, -1))


def psnr(image: Float[Array, '*b h w 3'], target: Float[Array, '*b h w 3']) -> Float[Array, '*b']:
    """Peak signal-to-noise ratio of each image in dB, for a peak of 1; at most 100."""
    return -10.0 * jnp.log10(jnp.maximum(mse(image, target), 1e-10))


def ssim(image: Float[Array, '*b h w c'], target: Float[Array, '*b h w c']) -> Float[Array, '*b']:
    """Structural similarity of each image, in [-1, 1], for a peak of 1: the mean over pixels and channels.

    Wang et al. 2004 (doi 10.1109/TIP.2003.819861), eq. 13: a Gaussian window of 11 x 11 pixels with sigma 1.5, K1 = 0.01,
    K2 = 0.03, the variances of the whole window (not n / (n - 1) times that), and only windows that lie inside the image. The
    authors compare luminance; as most evaluations of view synthesis do, this treats the channels apart and takes their mean.

    Raises:
      UsageError: an image smaller than the window.
    """
    return jnp.mean(ssim_map(image, target), axis=(-3, -2, -1))


def ssim_map(image: Float[Array, '*b h w c'], target: Float[Array, '*b h w c']) -> Float[Array, '*b h2 w2 c']:
    """`ssim` at each place of the window that lies inside the image: [..., H - 10, W - 10, C]."""
    image, target = jnp.asarray(image, jnp.float32), jnp.asarray(target, jnp.float32)
    if min(image.shape[-3:-1]) < WINDOW:
        raise UsageError(
            f'SSIM of images of {image.shape[-3]} x {image.shape[-2]} pixels: its window needs at least {WINDOW} x {WINDOW}. '
            'Compare larger renders, or leave ssim out.'
        )
    return _ssim_map(image, target)


@jax.jit
def _ssim_map(image, target):
    def average(function):
        """The window's weighted mean of `function(row, column)`, an array for each place in the window."""
        weights, places = _window(), np.indices((WINDOW, WINDOW)).reshape(2, -1).T

        def add(total, place):
            return total + weights[place[0], place[1]] * function(place[0], place[1]), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, function(0, 0)), jnp.asarray(places))[0]

    height, width = image.shape[-3] - WINDOW + 1, image.shape[-2] - WINDOW + 1

    def shifted(x, row, column):
        return jax.lax.dynamic_slice_in_dim(jax.lax.dynamic_slice_in_dim(x, row, height, -3), column, width, -2)

    # Squares are of what is left after the mean: E[x^2] - E[x]^2 in float32 is wrong by as much as the constant below.
    both = jnp.stack([image, target])
    mean = average(lambda row, column: shifted(both, row, column))

    def products(row, column):
        x, y = shifted(both, row, column) - mean
        return jnp.stack([x * x + y * y, x * y])

    power, covariance = average(products)
    x, y = mean
    c1, c2 = K1**2, K2**2
    return (2.0 * x * y + c1) * (2.0 * covariance + c2) / ((x * x + y * y + c1) * (power + c2))


def _window():
    """Gaussian weights [WINDOW, WINDOW] with sum 1."""
    offset = np.arange(WINDOW) - WINDOW // 2
    line = np.exp(-0.5 * (offset / SIGMA) ** 2)
    window = np.outer(line, line)
    return jnp.asarray(window / window.sum(), jnp.float32)
