import numpy as np
import pytest

from t3d.core.errors import UsageError
from t3d.metrics import image, retrieval


def test_psnr_of_known_errors():
    target = np.full((2, 4, 4, 3), 0.5, np.float32)
    shifted = target + np.array([0.1, 0.01], np.float32)[:, None, None, None]
    np.testing.assert_allclose(image.psnr(shifted, target), [20.0, 40.0], atol=1e-3)
    np.testing.assert_allclose(image.psnr(target, target), 100.0, atol=1e-4)


def test_retrieval_against_a_loop_and_ties_count_against():
    random = np.random.default_rng(0)
    renders, targets = random.normal(size=(5, 2, 3)), random.normal(size=(7, 2, 3))
    distance = retrieval.distances(renders, targets)
    for n in range(5):
        for m in range(7):
            np.testing.assert_allclose(distance[n, m], np.mean((renders[n] - targets[m]) ** 2), rtol=1e-4)
    own = np.array([0, 1, 2, 3, 4])
    rank = retrieval.ranks(distance, own)
    assert rank.tolist() == [sorted(row).index(row[k]) for row, k in zip(distance.tolist(), own)]
    assert retrieval.ranks(np.zeros((1, 4)), np.array([2]))[0] == 3
    assert retrieval.recall(np.array([0, 3, 9, 12]), 1) == 0.25 and retrieval.recall(np.array([0, 3, 9, 12]), 10) == 0.75


def theirs(a, b):
    metrics = pytest.importorskip('skimage.metrics')
    settings = {'gaussian_weights': True, 'sigma': 1.5, 'use_sample_covariance': False, 'data_range': 1.0, 'channel_axis': -1}
    return [metrics.structural_similarity(x.astype(np.float64), y.astype(np.float64), **settings) for x, y in zip(a, b)]


def pictures():
    """Smooth, noisy, and nearly flat white pictures, as renders over white are, with their distorted copies."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:33, :40] / 40.0
    smooth = np.stack([rows, columns, rows * columns], -1)
    flat = np.full_like(smooth, 0.999) - 1e-3 * (rows[..., None] > 0.4)
    targets = np.stack([smooth, random.uniform(size=smooth.shape), flat, smooth])
    noise = random.normal(size=smooth.shape)
    images = np.clip(targets + np.stack([0.1 * noise, 0.3 * noise, 2e-3 * smooth, 0.0 * smooth]), 0.0, 1.0)
    return images.astype(np.float32), targets.astype(np.float32)


def test_ssim_is_that_of_scikit_image():
    images, targets = pictures()
    got = np.asarray(image.ssim(images, targets))
    np.testing.assert_allclose(got, theirs(images, targets), atol=1e-6)
    assert got[3] == pytest.approx(1.0, abs=1e-6) and np.ptp(got) > 0.1
    np.testing.assert_allclose(image.ssim(images[None, 0], targets[None, 0]), got[:1], atol=1e-7)


def test_ssim_of_constants_has_a_closed_form_and_small_images_are_refused():
    low, high = np.full((16, 16, 3), 0.25, np.float32), np.full((16, 16, 3), 0.75, np.float32)
    assert float(image.ssim(low, high)) == pytest.approx((2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4), abs=1e-6)
    with pytest.raises(UsageError, match='10 x 16 pixels.*11 x 11'):
        image.ssim(low[:10], high[:10])
