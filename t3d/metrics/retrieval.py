"""Retrieval: is a render nearest to its own target among all candidates?"""

import numpy as np


def distances(renders: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Mean squared pixel distance [N, M] between renders [N, ...] and targets [M, ...] of equal image shapes."""
    a, b = np.asarray(renders, np.float32).reshape(len(renders), -1), np.asarray(targets, np.float32).reshape(len(targets), -1)
    squared = np.sum(a * a, -1)[:, None] + np.sum(b * b, -1)[None] - 2.0 * a @ b.T
    return np.maximum(squared, 0.0) / a.shape[1]


def ranks(distance: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Place (0 is nearest) of candidate own[n] for each row n of distance [N, M]; ties count against it."""
    mine = distance[np.arange(len(own)), own]
    return np.sum(distance <= mine[:, None], -1) - 1


def recall(rank: np.ndarray, k: int) -> float:
    """Share of ranks below k: R@k."""
    return float(np.mean(np.asarray(rank) < k))
