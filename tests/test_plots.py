"""Line plots: where points fall, and what is refused."""

import numpy as np
import pytest

from t3d.train import plots


def test_points_fall_where_their_values_say():
    image = plots.lines({'a': ([0.0, 1.0, 2.0], [0.0, 0.5, 2.0]), 'b': ([0.0, 2.0], [1.0, 0.25])}, 'title', 'x')
    assert image.shape == (400, 640, 3) and image.dtype == np.uint8
    left, top, right, bottom = plots.BOX
    middle = (left + right) // 2, (top + bottom) // 2
    for x, y in ((left, bottom), middle, (right, top)):  # the last is beyond the limit and drawn at it
        assert tuple(image[y, x]) == plots.COLOURS[0]
    assert tuple(image[top, left]) == plots.COLOURS[1]
    assert tuple(image[bottom - (bottom - top) // 4, right]) == plots.COLOURS[1]


def test_too_many_curves_are_refused():
    with pytest.raises(ValueError, match='6 curves, wanted 1 to 5'):
        plots.lines({str(k): ([0.0], [0.0]) for k in range(6)}, '', '')
