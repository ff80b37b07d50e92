"""The Fréchet distance of pixels: over principal components of the pixels of real patterned views, no network and no files."""

import functools

import numpy as np

from t3d.data.sets import oracle, patterns
from t3d.metrics import fid

COMPONENTS = 64
VIEWS = 384  # real views that the components are made of
NAME = f'{COMPONENTS} principal components of the pixels of real patterned views'


@functools.cache
def components(size: int, background: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(mean [D], directions [D, 64]) float64 of 384 real views of striped, checked and dotted objects, D = 3 size^2.

    They are fixed by size and background: large and small objects of all colours from free cameras, one seed,
    one ray a pixel.
    """
    source = patterns.PatternSource('all', patterns=patterns.PATTERNS[1:], size=size, views=1, poses=2, seed=64)
    chosen = np.linspace(0, len(source) - 1, VIEWS).astype(int)
    pixels = np.concatenate([oracle.composite(source[int(k)]['image'], background) for k in chosen])
    return components_of(pixels)


def components_of(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean [D], directions [D, 64]) float64 of images [N, ...] of D numbers, N over 64 and below D."""
    pixels = images.reshape(len(images), -1).astype(np.float64)
    mean = pixels.mean(0)
    values, vectors = np.linalg.eigh((pixels - mean) @ (pixels - mean).T)  # of the smaller side
    kept = np.argsort(values)[::-1][:COMPONENTS]
    return mean, (pixels - mean).T @ (vectors[:, kept] / np.sqrt(values[kept]))


def frechet(images: np.ndarray, real: np.ndarray, background: float = 1.0) -> float:
    """Squared Fréchet distance of pixels of images [N, S, S, 3] and real [N, S, S, 3], both in [0, 1]; N is to be over 64.

    In units of squared intensity, summed over pixels and channels. Compare values at one N and one size alone.
    """
    return frechet_along(components(images.shape[1], background), images, real)


def frechet_along(basis: tuple[np.ndarray, np.ndarray], images: np.ndarray, real: np.ndarray) -> float:
    """The same along the directions of `components_of` other pictures."""
    mean, directions = basis

    def moments(pictures):
        return fid.moments((pictures.reshape(len(pictures), -1).astype(np.float64) - mean) @ directions)

    return fid.frechet(moments(images), moments(real))
