"""Labels and pictures of small EG3D sets, for the tests of such sets."""

import numpy as np

FRONTAL = [1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 2.7, 0, 0, 0, 1, 4.2647, 0, 0.5, 0, 4.2647, 0.5, 0, 0, 1]  # of EG3D's FFHQ


def label(angle: float) -> list[float]:
    """The frontal camera carried around the y axis."""
    turn = np.array([[np.cos(angle), 0, np.sin(angle), 0], [0, 1, 0, 0], [-np.sin(angle), 0, np.cos(angle), 0], [0, 0, 0, 1]])
    return [*(turn @ np.reshape(FRONTAL[:16], (4, 4))).ravel().tolist(), *FRONTAL[16:]]


def grey(size=4, value=9):
    return np.full((size, size, 3), value, np.uint8)
