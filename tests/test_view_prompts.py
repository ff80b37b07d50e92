"""Suffixes and sectors against threestudio's rules written out in degrees, and what a step gathers."""

import jax.numpy as jnp
import numpy as np
import pytest

from t3d.core import tokens
from t3d.diffusion import view_prompts
from t3d.diffusion.view_prompts import Thresholds

WORDS = ('a', 'red', 'cube', 'cone', 'front', 'side', 'back', 'overhead', 'view')


def by_rules(azimuth, elevation, front=45.0, back=45.0, overhead=60.0):
    """In degrees, one camera at a time; later rules override."""
    while azimuth > 180.0:
        azimuth -= 360.0
    while azimuth < -180.0:
        azimuth += 360.0
    name = 'side view'
    if -front < azimuth < front:
        name = 'front view'
    if azimuth > 180.0 - back or azimuth < -180.0 + back:
        name = 'back view'
    if elevation > overhead:
        name = 'overhead view'
    return name


@pytest.mark.parametrize('limits', [(45.0, 45.0, 60.0), (30.0, 20.0, 75.0)])
def test_sectors_are_those_of_the_rules(limits):
    azimuth, elevation = (angles.ravel() for angles in np.meshgrid(np.arange(-355.5, 540.0, 7.0), [-30.0, 20.0, 61.0, 80.0]))
    found = view_prompts.sector(np.deg2rad(azimuth), np.deg2rad(elevation), Thresholds(*np.deg2rad(limits)))
    names = [view_prompts.SUFFIXES[k] for k in np.asarray(found)]
    assert names == [by_rules(a, e, *limits) for a, e in zip(azimuth, elevation, strict=True)]
    assert len(set(names)) == 4 and found.dtype == jnp.int32


def test_tokens_are_those_of_the_texts():
    tokenize = tokens.WordTokenizer(WORDS, 8)
    ids = view_prompts.tokens(tokenize, ['a red cube', 'a cone'])
    assert ids.shape == (2, 4, 8) and ids.dtype == np.int32
    np.testing.assert_array_equal(ids[1, 2], tokenize(['a cone, back view'])[0])
    np.testing.assert_array_equal(ids[0, 3], tokenize(['a red cube, overhead view'])[0])


def test_features_between_are_linear_in_the_angle_and_nearest_ones_are_gathered():
    degrees = np.array([0.0, 30.0, -90.0, 135.0, 180.0, -150.0, 10.0])
    elevation = np.deg2rad([10.0, 0.0, 0.0, 20.0, 0.0, 0.0, 70.0])
    features = np.random.default_rng(0).normal(size=(7, 4, 3, 5)).astype(np.float32)
    shares = view_prompts.mixture(np.deg2rad(degrees), elevation)
    expected = [(1, 0, 0, 0), (2 / 3, 1 / 3, 0, 0), (0, 1, 0, 0), (0, 0.5, 0.5, 0), (0, 0, 1, 0), (0, 1 / 3, 2 / 3, 0)]
    np.testing.assert_allclose(shares, [*expected, (0, 0, 0, 1)], atol=1e-6)
    between = view_prompts.mixed(features, shares)
    np.testing.assert_allclose(between[1], 2 / 3 * features[1, 0] + 1 / 3 * features[1, 1], atol=1e-6)
    near = view_prompts.nearest(features, np.deg2rad(degrees), elevation)
    for k, sector in enumerate((0, 0, 1, 1, 2, 2, 3)):
        np.testing.assert_array_equal(near[k], features[k, sector])
