"""Do seeds choose? How what several seeds of a caption show lies beside all the objects that the caption is true of."""

import numpy as np


def distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Root mean square differences [K, N] of pictures [K, ...] and [N, ...]."""
    a, b = (np.asarray(pictures, np.float64).reshape(len(pictures), -1) for pictures in (some, others))
    squares = np.sum(a**2, -1)[:, None] - 2.0 * a @ b.T + np.sum(b**2, -1)
    return np.sqrt(np.maximum(squares, 0.0) / a.shape[1])


def apart(pictures: np.ndarray) -> float:
    """The mean distance of two of pictures [K, ...], K at least 2."""
    return float(distances(pictures, pictures)[np.triu_indices(len(pictures), 1)].mean())


def beside(seeds: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Scores of what seeds [K, ...] of a caption show beside its objects [N, ...], both at least 2.

    `best`: distance of the best seed to the object that it is nearest to; `nearest`: that of all seeds, their mean; `reached`:
    distance of each object to the seed that is nearest to it, mean over objects; `spread`: mean distance of two seeds, divided
    by that of two of the objects.
    """
    between = distances(seeds, true)
    return {
        'best': float(between.min()),
        'nearest': float(between.min(1).mean()),
        'reached': float(between.min(0).mean()),
        'spread': apart(seeds) / apart(true),
    }
