"""Distances between two sets of images: Fréchet (FID and its kin) and kernel (KID), over features of any extractor.

FID (arXiv 1706.08500, eq. 6) fits a Gaussian to the features of each set; KID (arXiv 1801.01401, Sec. 4) is the unbiased
squared maximum mean discrepancy with the kernel (x.y / d + 1)^3. Statistics are float64 in NumPy. The name says the extractor:
'fid' and 'kid' are Inception-v3 of 2015-12-05 (nets/judges/inception.py) and nothing else; the same distances over other
features have names of their own ('fd_effnet').

FID is biased upward by about 1/n and has no meaning where n does not exceed the dimension of the features, since the covariance
is singular there; so n belongs to the number, and two values compare only at equal n and with the same extractor.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core.errors import UsageError

SUBSETS, SUBSET = 100, 1000  # of KID, as published
TINY = (16, 16, 32)  # channels of the extractor of `tiny`
FREE = 10_000  # images from which sets of different size are compared: the bias is below what anyone reports


class Extractor(NamedTuple):
    """A function from images to features.

    Attributes:
      name: of the extractor, as it is printed beside every score.
      dim: number of features.
      features: images float [B, H, W, 3] in [0, 1] (a fixed B) -> float [B, dim].
    """

    name: str
    dim: int
    features: Callable


class Moments(NamedTuple):
    """Running statistics of features, float64: `n`, their `mean` [D], and `scatter` [D, D], the sum of (f - mean)(f - mean)^T.

    Taken around the mean throughout: sums of plain products lose the digits of a covariance that is small beside the mean.
    Where only the deviations are of interest, `scatter` is the diagonal of that matrix, [D].
    """

    n: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """[D, D] (or its diagonal), divided by n, as StyleGAN's evaluation has it; pytorch-fid divides by n - 1."""
        return self.scatter / self.n


def no_moments(dim: int) -> Moments:
    """The statistics before any features."""
    return Moments(0, np.zeros(dim), np.zeros((dim, dim)))


def add(moments: Moments, features: np.ndarray) -> Moments:
    """Statistics that include features [B, D] too. Raises UsageError where they are not finite."""
    features = np.asarray(features, np.float64)
    if not np.isfinite(features).all():
        raise UsageError('features hold NaN or infinity: look at the images and at the weights of the extractor.')
    if not len(features):
        return moments
    mean = features.mean(0)
    centred = features - mean
    return merge(moments, Moments(len(features), mean, centred.T @ centred))


def merge(a: Moments, b: Moments) -> Moments:
    """Statistics of both sets, for example of two devices (Chan, Golub and LeVeque 1979, eq. 2.1)."""
    n, between = a.n + b.n, b.mean - a.mean
    if not a.n or not b.n:
        return a if a.n else b
    square = between**2 if a.scatter.ndim == 1 else np.outer(between, between)
    return Moments(n, a.mean + between * (b.n / n), a.scatter + b.scatter + square * (a.n * b.n / n))


def moments(features: np.ndarray, batch: int = 1024) -> Moments:
    """Statistics of features [N, D], in pieces."""
    total = no_moments(features.shape[1])
    for start in range(0, len(features), batch):
        total = add(total, features[start : start + batch])
    return total


def frechet_distance(mean_a, covariance_a, mean_b, covariance_b) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians: |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

    The last trace is the sum of the square roots of the eigenvalues of S_a^(1/2) S_b S_a^(1/2), which are the singular values
    of S_a^(1/2) S_b^(1/2): symmetric eigenproblems and singular values only, no square root of a product, and so neither
    complex numbers nor an offset on the diagonal where a covariance is singular.

    Args:
      mean_a, mean_b: [D]. covariance_a, covariance_b: [D, D], symmetric, positive semi-definite up to rounding.
    """
    mean_a, mean_b = np.asarray(mean_a, np.float64), np.asarray(mean_b, np.float64)
    root_a, root_b = _root(covariance_a), _root(covariance_b)
    cross = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum()
    return float(np.sum((mean_a - mean_b) ** 2) + np.sum(root_a**2) + np.sum(root_b**2) - 2.0 * cross)


def _root(covariance) -> np.ndarray:
    """L with L L^T = covariance, negative eigenvalues (rounding) taken for zero."""
    covariance = np.asarray(covariance, np.float64)
    values, vectors = np.linalg.eigh(0.5 * (covariance + covariance.T))
    return vectors * np.sqrt(np.maximum(values, 0.0))


def frechet(a: Moments, b: Moments) -> float:
    """Fréchet distance of two sets from their statistics.

    Raises:
      UsageError: fewer images than features, or sets of different size below FREE, where the bias decides.
    """
    dim = len(a.mean)
    if dim != len(b.mean):
        raise UsageError(f'features of {dim} and of {len(b.mean)} dimensions: take both from one extractor.')
    if min(a.n, b.n) <= dim:
        raise UsageError(
            f'a Fréchet distance of {a.n} and {b.n} images over {dim} features: the covariance is singular at or below {dim} '
            'images. Give more, or use the kernel distance (KID), which is unbiased at any number.'
        )
    if a.n != b.n and min(a.n, b.n) < FREE:
        raise UsageError(
            f'a Fréchet distance of {a.n} against {b.n} images: its bias depends on the number. Take {min(a.n, b.n)} of each, '
            f'or at least {FREE}.'
        )
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def kernel_distance(
    a: np.ndarray, b: np.ndarray, *, subsets: int = SUBSETS, subset: int = SUBSET, seed: int = 0
) -> tuple[float, float]:
    """(KID, its standard deviation over subsets) of features [N, D] and [M, D].

    The mean over `subsets` draws of `subset` features from each, without replacement; with fewer than `subset` in either set,
    one estimate from all of them, whose deviation is nan. Unbiased, so it can be negative.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if min(len(a), len(b)) < 2:
        raise UsageError(f'a kernel distance of {len(a)} and {len(b)} images: wanted at least 2 of each.')
    if min(len(a), len(b)) < subset:
        return _mmd(a, b), float('nan')
    random = np.random.default_rng(seed)
    values = [
        _mmd(a[random.choice(len(a), subset, replace=False)], b[random.choice(len(b), subset, replace=False)])
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def _mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy with the cubic kernel (arXiv 1801.01401, eq. 4)."""

    def kernel(x, y):
        return (x @ y.T / a.shape[1] + 1.0) ** 3

    def within(x):
        values = kernel(x, x)
        return (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2.0 * kernel(a, b).mean())


def extract(extractor: Extractor, images: np.ndarray, batch: int = 32) -> np.ndarray:
    """Features float32 [N, dim] of images [N, H, W, 3] in [0, 1].

    Images are rounded to 8 bits first, as on disk, so that renders and pictures from files meet the extractor alike.
    """
    images = np.round(255.0 * np.clip(np.asarray(images, np.float32), 0.0, 1.0)) / np.float32(255.0)
    features = []
    for start in range(0, len(images), batch):
        some = images[start : start + batch]
        padded = np.concatenate([some, np.repeat(some[-1:], batch - len(some), axis=0)])  # one shape, one compilation
        features.append(np.asarray(extractor.features(padded), np.float32)[: len(some)])
    return np.concatenate(features)


def shuffled(a: np.ndarray, b: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The two sets with their members mixed at random, sizes kept: what the distance is when there is no difference."""
    pool = np.concatenate([a, b])[np.random.default_rng(seed).permutation(len(a) + len(b))]
    return pool[: len(a)], pool[len(a) :]


def tiny() -> Extractor:
    """Three random 3x3 convolutions and the means of their outputs: 64 features for small configs and tests, no files needed.

    Its distances are called `fid_tiny` and `kid_tiny`. They fall as two sets come to look alike; they compare runs of this
    project at equal n, and with nothing else.
    """
    random = np.random.default_rng(2412)
    kernels, inputs = [], 3
    for width in TINY:
        kernels.append(np.float32(random.normal(size=(3, 3, inputs, width)) * np.sqrt(2.0 / (9 * inputs))))
        inputs = width

    @jax.jit
    def features(images):
        x, means = 2.0 * jnp.asarray(images, jnp.float32) - 1.0, []
        for kernel in kernels:
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'), precision=jax.lax.Precision.HIGHEST
            )
            x = jax.nn.leaky_relu(x, 0.2)
            means.append(jnp.mean(x, (1, 2)))
            x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID') / 4.0
        return jnp.concatenate(means, -1)

    return Extractor('random convolutions of t3d', sum(TINY), features)
