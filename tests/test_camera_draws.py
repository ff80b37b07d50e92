"""Random cameras: their ranges, their strata, the law of elevations, jitters, and what a view depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.core import prng
from t3d.core.errors import UsageError
from t3d.geom import camera_draws, cameras
from t3d.geom.camera_draws import Ranges

WIDE = Ranges((-0.5, 1.4), (2.0, 3.0), (0.4, 0.9))


def test_cameras_stand_where_the_angles_say_and_look_at_the_origin():
    drawn = camera_draws.draw(prng.key(0), 37, WIDE)
    azimuth, elevation, radius = cameras.angles(drawn.cameras.world_from_cam)
    np.testing.assert_allclose(np.cos(azimuth - drawn.azimuth), 1.0, atol=1e-5)
    np.testing.assert_allclose(elevation, drawn.elevation, atol=1e-4)
    assert radius.min() >= 2.0 and radius.max() <= 3.0 and np.std(radius) > 0.1
    fov = 2.0 * np.arctan(0.5 / np.asarray(drawn.cameras.intrinsics)[:, 0, 0])
    assert fov.min() >= 0.4 - 1e-5 and fov.max() <= 0.9 + 1e-5 and np.std(fov) > 0.05
    forward = drawn.cameras.world_from_cam[:, :3, 2]
    np.testing.assert_allclose(forward * radius[:, None], -drawn.cameras.world_from_cam[:, :3, 3], atol=1e-5)


def test_each_azimuth_is_in_its_own_stratum():
    azimuth = np.asarray(camera_draws.draw(prng.key(3), 9, WIDE).azimuth)
    np.testing.assert_array_equal(np.floor((azimuth + np.pi) / (2 * np.pi) * 9), np.arange(9))


def test_sectors_have_their_shares_and_are_even_within():
    """Against a count: quarters around front, right (x), back and left; strata keep the counts exact to one view."""
    shares = (0.4, 0.1, 0.3, 0.2)
    drawn = camera_draws.draw(prng.key(3), 1000, WIDE._replace(sectors=shares))
    x, z = np.asarray(drawn.cameras.world_from_cam)[:, 0, 3], np.asarray(drawn.cameras.world_from_cam)[:, 2, 3]
    quarter = np.where(np.abs(x) > np.abs(z), np.where(x > 0, 1, 3), np.where(z > 0, 0, 2))
    assert np.abs(np.bincount(quarter) - 1000 * np.array(shares)).max() <= 1
    azimuth = np.asarray(drawn.azimuth)
    assert azimuth.min() >= -np.pi and azimuth.max() < np.pi
    for number, centre in enumerate((0.0, np.pi / 2, np.pi, -np.pi / 2)):
        off = np.sort((azimuth[quarter == number] - centre + np.pi) % (2 * np.pi) - np.pi)
        even = np.linspace(-np.pi / 4, np.pi / 4, len(off) + 2)[1:-1]
        np.testing.assert_allclose(off, even, atol=2 * np.pi / 2 / len(off))
    plain = camera_draws.draw(prng.key(3), 8, WIDE._replace(sectors=(0.25,) * 4)).azimuth
    np.testing.assert_allclose(np.sort((plain + np.pi / 4) % (2 * np.pi)) * 4 / np.pi, np.arange(8) + 0.5, atol=0.5)


@pytest.mark.parametrize('even', (0.0, 1.0))
def test_the_law_of_elevations(even):
    """Uniform angles, or uniform sines: moments within four standard errors."""
    elevation = np.asarray(camera_draws.draw(prng.key(1), 4096, WIDE._replace(even=even)).elevation, np.float64)
    value, (low, high) = (elevation, (-0.5, 1.4)) if even else (np.sin(elevation), (np.sin(-0.5), np.sin(1.4)))
    assert abs(value.mean() - (low + high) / 2) < 4 * (high - low) / np.sqrt(12 * 4096)
    np.testing.assert_allclose(value.std(), (high - low) / np.sqrt(12), rtol=0.05)
    assert abs(np.mean(elevation) - 0.45) > 0.05 or even  # the two laws differ here


def test_a_view_is_a_function_of_its_index():
    """Cut over devices or scenes, view i is the same: every stratum has a key of its own."""
    whole = camera_draws.draw(prng.key(5), 8, WIDE)
    again = jax.jit(lambda key: camera_draws.draw(key, 8, WIDE))(prng.key(5))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    both = jax.vmap(lambda key: camera_draws.draw(key, 8, WIDE))(jnp.stack([prng.key(4), prng.key(5)]))
    np.testing.assert_allclose(both.cameras.world_from_cam[1], whole.cameras.world_from_cam, atol=1e-6)
    assert not np.allclose(both.azimuth[0], both.azimuth[1])


def test_jitters_move_position_target_and_upright():
    plain = camera_draws.draw(prng.key(2), 512, Ranges())
    moved = camera_draws.draw(prng.key(2), 512, Ranges(shift=0.1, target=0.2, up=0.02))
    offset = np.asarray(moved.cameras.world_from_cam - plain.cameras.world_from_cam)[:, :3, 3]
    assert np.abs(offset).max() <= 0.1 and np.abs(offset).max() > 0.09
    np.testing.assert_allclose(offset.std(), 0.2 / np.sqrt(12), rtol=0.1)
    rotation = np.asarray(moved.cameras.world_from_cam)[:, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.broadcast_to(np.eye(3), rotation.shape), atol=1e-5)
    position, forward = np.asarray(moved.cameras.world_from_cam)[:, :3, 3], rotation[:, :, 2]
    missed = position - np.sum(position * forward, -1, keepdims=True) * forward  # where the axis passes the origin
    np.testing.assert_allclose(missed.std(), 0.2 * np.sqrt(2 / 3), rtol=0.15)  # two of the three directions are seen
    np.testing.assert_array_equal(moved.azimuth, plain.azimuth)


def test_a_ring_is_even():
    drawn = camera_draws.ring(prng.key(7), 5, WIDE)
    turn = np.diff(np.unwrap(np.asarray(drawn.azimuth)))
    np.testing.assert_allclose(turn, 2 * np.pi / 5, atol=1e-5)
    assert np.ptp(drawn.elevation) == 0.0 and -0.5 <= drawn.elevation[0] <= 1.4
    azimuth, elevation, radius = cameras.angles(drawn.cameras.world_from_cam)
    np.testing.assert_allclose(np.cos(azimuth - drawn.azimuth), 1.0, atol=1e-5)
    np.testing.assert_allclose(radius, radius[0], rtol=1e-6)
    front = camera_draws.ring(prng.key(7), 4, WIDE._replace(turned=False))
    np.testing.assert_allclose(np.cos(front.azimuth - np.arange(4) * np.pi / 2), 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ('ranges', 'word'),
    (
        (Ranges(elevation=(0.5, 0.2)), 'elevation'),
        (Ranges(elevation=(-2.0, 0.2)), 'elevation'),
        (Ranges(radius=(0.0, 1.0)), 'radius'),
        (Ranges(fov=(0.5, 3.2)), 'fov'),
        (Ranges(sectors=(0.5, 0.5)), 'four shares'),
        (Ranges(sectors=(0.0, 0.0, 0.0, 0.0)), 'four shares'),
    ),
)
def test_ranges_that_no_camera_has_are_refused(ranges, word):
    with pytest.raises(UsageError, match=word):
        camera_draws.check(ranges)
