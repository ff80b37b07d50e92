"""Consistency of views: floor < model < shuffled, growth with noise and with camera error, and each object by itself."""

import functools

import jax
import numpy as np
import pytest
import small_reconstruct as small

from t3d.core import prng
from t3d.core.errors import UsageError
from t3d.data.sets import shapes
from t3d.geom import cameras
from t3d.metrics import image, multiview

SCENES = (
    small.PAIR,
    shapes.pair(('cylinder', 'green'), 'to the left of', ('sphere', 'yellow')),
    shapes.pair(('cube', 'white'), 'in front of', ('cone', 'purple')),
)
FEW = multiview.CAPACITY._replace(steps=120, rays=256, samples=16)  # of the tests alone
KEY = prng.key(0)


@functools.cache
def objects(count: int = 4, size: int = 24):
    """(images [3, V, size, size, 4], cameras [3, V]) of true geometry."""
    some = [small.views(scene, count, size, elevation=0.3) for scene in SCENES]
    return np.stack([one.images for one in some]), jax.tree.map(lambda *leaves: np.stack(leaves), *map(small.posed, some))


@functools.cache
def measured(kind: str, amount: float = 0.0):
    """Mean RMSE and dissimilarity of the objects with noise of their own in each view, turned cameras, or shuffled views."""
    images, views = objects()
    random = np.random.default_rng(0)
    if kind == 'noise':
        offset = amount * random.standard_normal((*images.shape[:2], 1, 1, 3)).astype(np.float32)
        images = np.concatenate([np.clip(images[..., :3] + offset, 0.0, 1.0), images[..., 3:]], -1)
    if kind == 'camera':
        views = views.replace(world_from_cam=turned(views.world_from_cam, amount * random.standard_normal(images.shape[:2])))
    if kind == 'shuffled':
        images, views = multiview.shuffled(images, views)
    return [float(np.mean(values)) for values in multiview.consistency(images, views, KEY, FEW)]


def turned(poses, angle):
    """Poses turned about the world's y axis."""
    rotation = np.zeros((*angle.shape, 4, 4), np.float32)
    rotation[..., 0, 0] = rotation[..., 2, 2] = np.cos(angle)
    rotation[..., 0, 2], rotation[..., 2, 0] = np.sin(angle), -np.sin(angle)
    rotation[..., 1, 1] = rotation[..., 3, 3] = 1.0
    return rotation @ poses


@pytest.mark.parametrize('part', [0, 1])
def test_the_floor_is_below_inconsistent_views_and_these_below_shuffled_ones(part):
    floor, model, control = measured('truth')[part], measured('noise', 0.1)[part], measured('shuffled')[part]
    assert floor < 0.7 * model and model < 0.7 * control
    assert measured('truth')[0] < 0.04


@pytest.mark.parametrize(
    'kind, amounts',
    [
        ('noise', (0.2,)),
        pytest.param('noise', (0.1, 0.2), marks=pytest.mark.slow),
        pytest.param('camera', (0.15, 0.3, 0.6), marks=pytest.mark.slow),
    ],
)
def test_the_error_grows_with_what_is_wrong(kind, amounts):
    errors = [measured('truth')[0], *(measured(kind, amount)[0] for amount in amounts)]
    assert all(low < high for low, high in zip(errors, errors[1:])), errors


def test_an_object_has_the_same_number_in_any_company_and_whatever_its_place():
    images, views = objects()
    both = multiview.consistency(images, views, KEY, FEW)
    alone = multiview.consistency(images[1:2], jax.tree.map(lambda leaf: leaf[1:2], views), KEY, FEW)
    for some, one in zip(both, alone):
        np.testing.assert_allclose(some[1], one[0], rtol=1e-3)


@pytest.mark.slow
def test_halves_of_the_views_agree_on_an_object_and_not_on_shuffled_ones():
    images, views = objects(8)
    same = multiview.agreement(images, views, KEY, FEW)
    other = multiview.agreement(*multiview.shuffled(images, views), KEY, FEW)
    assert np.mean(same.psnr) > np.mean(other.psnr) + 3.0 and np.mean(same.iou) > np.mean(other.iou) + 0.2


@pytest.mark.slow
def test_a_view_left_out_is_foretold_by_the_others_of_its_object():
    images, views = objects(8)
    same = multiview.left_out(images, views, KEY, FEW)
    other = multiview.left_out(*multiview.shuffled(images, views), KEY, FEW)
    assert np.mean(same.rmse) < 0.6 * np.mean(other.rmse)
    assert np.mean(same.rmse) > np.mean(multiview.consistency(images, views, KEY, FEW).rmse)


@pytest.mark.slow
def test_a_table_of_all_scores():
    images, views = objects(8)
    found = multiview.scores(images, views, KEY, FEW, truth=(images, views))
    assert found['floor/mvc_rmse'] == found['mvc_rmse'] < found['control/mvc_rmse'] and found['mvc_n'] == 3
    assert {'mvc_left_out_rmse', 'agreement_psnr', 'agreement_iou', 'mvc_dissimilarity'} <= set(found)


def test_shuffling_moves_pictures_with_their_cameras_and_half_way_is_between():
    images, views = objects()
    moved, their = multiview.shuffled(images, views)
    for v in range(4):
        np.testing.assert_array_equal(moved[0, v], images[v % 3, v])
        np.testing.assert_array_equal(their.world_from_cam[0, v], views.world_from_cam[v % 3, v])
    azimuth, elevation, radius = (np.asarray(part) for part in cameras.angles(views.world_from_cam))
    between = multiview._between(azimuth, elevation, radius, views.intrinsics)
    middle, level, far = cameras.angles(between.world_from_cam)
    np.testing.assert_allclose(
        np.sort(middle % (2 * np.pi), -1), np.tile(np.pi / 4 + np.arange(4) * np.pi / 2, (3, 1)), atol=1e-4
    )
    np.testing.assert_allclose(level, 0.3, atol=1e-4)
    np.testing.assert_allclose(far, shapes.RADIUS, rtol=1e-5)


def test_too_few_views_and_objects_are_refused():
    images, views = objects()
    for call, message in (
        (lambda: multiview.left_out(images, views, KEY), '4 views of an object: leaving one out needs 6'),
        (lambda: multiview.shuffled(images[:1], views), '1 object: shuffling its views needs another'),
        (lambda: multiview.agreement(images[:, :3], views, KEY), '3 views of an object: two halves need 4'),
    ):
        with pytest.raises(UsageError, match=message):
            call()


def test_the_map_of_ssim_has_its_mean():
    random = np.random.default_rng(0)
    a, b = random.random((2, 20, 24, 3)), random.random((2, 20, 24, 3))
    assert image.ssim_map(a, b).shape == (2, 10, 14, 3)
    np.testing.assert_allclose(np.mean(image.ssim_map(a, b), (1, 2, 3)), image.ssim(a, b), rtol=1e-5)
