"""NumPy's draws that define data, pinned: a release of NumPy that draws otherwise must not rename what seeds stand for.

NumPy promises the bits of PCG64 and of SeedSequence (NEP 19), so `default_rng(seed).bit_generator` is the same everywhere. It
does not promise what Generator's methods make of them; these are the numbers of NumPy 2.4.6.
"""

import types

import numpy as np
import pytest

from t3d.build import make_triplanes
from t3d.data import pipeline
from t3d.data.sets import toy

ORDERS = {
    (0, 12, 0): [9, 2, 7, 4, 5, 11, 0, 3, 6, 10, 8, 1],
    (5, 12, 3): [0, 1, 9, 4, 10, 7, 3, 11, 8, 2, 6, 5],
}


def test_the_bits():
    words = np.random.default_rng(0).bit_generator.random_raw(2).tolist()
    assert words == [11749869230777074271, 4976686463289251617]


@pytest.mark.parametrize('arguments, order', ORDERS.items())
def test_the_order_of_an_epoch(arguments, order):
    assert pipeline._permutation(*arguments).tolist() == order


def test_the_cameras_of_a_pair():
    """Whatever NumPy's global generator is at."""
    labels = make_triplanes.Labels.__new__(make_triplanes.Labels)
    labels.table = np.arange(1000)
    for state in (0, 1):
        np.random.seed(state)
        assert labels(17, 4).tolist() == [495, 470, 896, 601]


def test_which_caption_a_pair_gets():
    captioner = types.SimpleNamespace(caption=lambda images, labels: [{}] * 3, render=lambda slots, choice: str(choice))
    made = make_triplanes.Made(None, None, None)
    lines = make_triplanes._captioned(captioner, np.array([0, 17, 2**32 - 1], np.uint32), made)
    assert [line['caption'] for line in lines] == ['61925', '15929', '38297']


def test_the_views_of_toy():
    source = toy.ToySource.__new__(toy.ToySource)
    source.seed, source.views, source.elevation = 0, 2, (-0.2, 0.9)
    azimuth, elevation = source.angles(3)
    np.testing.assert_allclose(azimuth, [5.623279575256959, 5.406143347229487], rtol=1e-12)
    np.testing.assert_allclose(elevation, [0.1535123045712647, 0.14856206938594635], rtol=1e-12)
