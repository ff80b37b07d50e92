"""The rigs of cameras that records of the toy set are seen from."""

import hashlib

import numpy as np
import pytest

from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.data import sets
from t3d.data.sets import toy

TURN = 2.0 * np.pi
DATA = {'name': 'toy', 'split': 'train', 'scenes': 'singles', 'size': 8, 'views': 4, 'poses': 64, 'seed': 5, 'supersample': 1}


def angles(rig, index, **options):
    return toy.ToySource('train', rig=rig, **{'views': 4, 'seed': 5, **options}).angles(index)


def test_free_cameras_are_those_of_a_set_without_a_rig():
    for source in (toy.ToySource('train', views=4, seed=5), sets.open_set(configs.from_dict({'data': DATA}).data, 'train')):
        random = np.random.default_rng((5, 17))
        azimuth, elevation = source.angles(17)
        np.testing.assert_array_equal(azimuth, random.uniform(0.0, TURN, 4))
        np.testing.assert_array_equal(elevation, random.uniform(-0.2, 0.9, 4))
    bits = np.concatenate([part.view(np.uint8) for part in toy.ToySource('train', views=4, seed=5).angles(17)])
    assert hashlib.sha256(bits.tobytes()).hexdigest()[:16] == '00eacf0cf498cfc0'


@pytest.mark.parametrize('views', [1, 4, 6])
def test_a_ring_is_equally_spaced_at_one_height_from_a_drawn_start(views):
    starts, heights = [], []
    for index in range(200):
        azimuth, elevation = angles('ring', index, views=views)
        steps = (azimuth - azimuth[0] - np.arange(views) * TURN / views + 1e-9) % TURN
        assert azimuth.shape == elevation.shape == (views,) and steps.max() < 1e-6
        assert np.ptp(elevation) == 0.0 and 0.0 <= azimuth[0] < TURN
        starts.append(azimuth[0])
        heights.append(elevation[0])
    assert abs(np.mean(starts) - np.pi) < 0.5 and 1.6 < np.std(starts) < 2.0  # uniform: pi and 1.81
    assert -0.2 <= min(heights) < -0.1 and 0.8 < max(heights) < 0.9


def test_a_canonical_rig_begins_at_the_front_at_the_height_of_the_ring():
    for index in range(20):
        azimuth, elevation = angles('canonical', index)
        np.testing.assert_allclose(azimuth, np.arange(4) * TURN / 4)
        np.testing.assert_array_equal(elevation, angles('ring', index)[1])


def test_a_config_names_the_rig_and_the_records_follow():
    data = configs.from_dict({'data': {**DATA, 'rig': 'canonical'}}).data
    record = sets.open_set(data, 'train')[3]
    assert record['world_from_cam'][0, 0, 3] == 0.0 and record['world_from_cam'][1, 0, 3] > 1.9  # the second is at +x
    np.testing.assert_allclose(record['azimuth'], np.arange(4) * TURN / 4, rtol=1e-6)
    with pytest.raises(UsageError, match="unknown camera rig .data.rig. 'rign'. Did you mean 'ring'"):
        toy.ToySource('train', rig='rign')
