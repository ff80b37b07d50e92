"""Distances between sets of features against closed forms, naive loops and SciPy."""

import numpy as np
import pytest

from t3d.core.errors import UsageError
from t3d.metrics import fid

GOLDEN = [[0.143957, 0.270297, 0.130086, -0.042864], [0.656096, -0.033796, -0.075916, -0.002517]]


def gaussian(dim, seed):
    random = np.random.default_rng(seed)
    root = random.normal(size=(dim, dim))
    return random.normal(size=dim), root @ root.T / dim


def test_diagonal_gaussians_have_a_closed_form():
    random = np.random.default_rng(0)
    means, deviations = random.normal(size=(2, 40)), random.uniform(0.1, 3.0, (2, 40))
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((deviations[0] - deviations[1]) ** 2)
    got = fid.frechet_distance(means[0], np.diag(deviations[0] ** 2), means[1], np.diag(deviations[1] ** 2))
    assert got == pytest.approx(expected, abs=1e-9)


def test_gaussians_that_share_their_axes_have_a_closed_form():
    """Commuting covariances, turned out of the coordinate axes, one of them of rank 5 of 12."""
    random = np.random.default_rng(1)
    axes = np.linalg.qr(random.normal(size=(12, 12)))[0]
    a, b = random.uniform(0.5, 2.0, 12), np.where(np.arange(12) < 5, random.uniform(0.5, 2.0, 12), 0.0)
    got = fid.frechet_distance(np.zeros(12), axes * a @ axes.T, np.zeros(12), axes * b @ axes.T)
    assert got == pytest.approx(np.sum((np.sqrt(a) - np.sqrt(b)) ** 2), abs=1e-6)


def test_any_gaussians_against_the_matrix_square_root_of_scipy():
    linalg = pytest.importorskip('scipy.linalg')
    (mean_a, a), (mean_b, b) = gaussian(24, 2), gaussian(24, 3)
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(a + b - 2.0 * np.real(linalg.sqrtm(a @ b)))
    assert fid.frechet_distance(mean_a, a, mean_b, b) == pytest.approx(expected, abs=1e-6)
    assert fid.frechet_distance(mean_b, b, mean_a, a) == pytest.approx(expected, abs=1e-6)


def test_a_set_has_no_distance_from_itself_even_where_its_covariance_is_singular():
    features = np.random.default_rng(4).normal(size=(200, 8)) @ np.random.default_rng(5).normal(size=(8, 64)) + 30.0
    moments = fid.moments(features)
    assert fid.frechet(moments, moments) == pytest.approx(0.0, abs=1e-6)


def test_moments_of_pieces_are_those_of_the_whole():
    features = np.random.default_rng(6).normal(3.0, 2.0, (1000, 6)).astype(np.float32)
    whole, pieces = fid.moments(features, batch=1000), fid.moments(features, batch=17)
    both = fid.merge(fid.moments(features[:333]), fid.moments(features[333:]))
    for moments in (whole, pieces, both):
        assert moments.n == 1000 and moments.scatter.dtype == np.float64
        np.testing.assert_allclose(moments.mean, features.astype(np.float64).mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.covariance, np.cov(features.astype(np.float64), rowvar=False, ddof=0), rtol=1e-10)


def test_the_distance_of_samples_comes_near_that_of_their_gaussians():
    random = np.random.default_rng(7)
    a, b = random.normal(0.0, 1.0, (40_000, 4)), random.normal([1.0, 0.0, 0.0, 0.0], [1.0, 2.0, 1.0, 1.0], (40_000, 4))
    assert fid.frechet(fid.moments(a), fid.moments(b)) == pytest.approx(2.0, abs=0.06)


def test_numbers_that_would_mislead_are_refused():
    features = np.random.default_rng(8).normal(size=(300, 32))
    with pytest.raises(UsageError, match='30 and 30 images over 32 features.*KID'):
        fid.frechet(fid.moments(features[:30]), fid.moments(features[:30]))
    with pytest.raises(UsageError, match='300 against 200 images.*Take 200 of each'):
        fid.frechet(fid.moments(features), fid.moments(features[:200]))
    with pytest.raises(UsageError, match='of 32 and of 16 dimensions'):
        fid.frechet(fid.moments(features), fid.moments(features[:, :16]))
    with pytest.raises(UsageError, match='NaN or infinity'):
        fid.moments(np.where(features > 3.0, np.nan, features))
    with pytest.raises(UsageError, match='1 and 300'):
        fid.kernel_distance(features[:1], features)
    free = np.random.default_rng(9).normal(size=(fid.FREE + 500, 3))
    assert fid.frechet(fid.moments(free), fid.moments(free[: fid.FREE])) < 1e-3


def naive_kid(a, b):
    """The sums of the paper's eq. 4, one kernel value at a time."""

    def kernel(x, y):
        return (sum(p * q for p, q in zip(x, y)) / len(x) + 1.0) ** 3

    n, m = len(a), len(b)
    same_a = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    same_b = sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return same_a + same_b - 2.0 * sum(kernel(x, y) for x in a for y in b) / (n * m)


def test_the_kernel_distance_is_the_papers_double_sum():
    random = np.random.default_rng(10)
    a, b = random.normal(size=(9, 5)), random.normal(0.3, 1.5, (7, 5))
    value, deviation = fid.kernel_distance(a, b)
    assert value == pytest.approx(naive_kid(a.tolist(), b.tolist()), rel=1e-9) and np.isnan(deviation)
    value, deviation = fid.kernel_distance(a, b, subsets=3, subset=7)
    draws = np.random.default_rng(0)
    expected = []
    for _ in range(3):
        x = a[draws.choice(9, 7, replace=False)]
        expected.append(naive_kid(x.tolist(), b[draws.choice(7, 7, replace=False)].tolist()))
    assert value == pytest.approx(np.mean(expected), rel=1e-9) and deviation == pytest.approx(np.std(expected), rel=1e-6)


def test_the_kernel_distance_is_unbiased_and_the_frechet_distance_is_not():
    """Over many draws of one distribution KID is zero on average at any n; FID is positive and falls with n."""
    random = np.random.default_rng(11)
    kid = {n: [fid.kernel_distance(*random.normal(size=(2, n, 4)))[0] for _ in range(400)] for n in (8, 40)}
    for values in kid.values():
        assert abs(np.mean(values)) < 3.5 * np.std(values) / np.sqrt(len(values))
    distance = {}
    for n in (10, 80):
        distance[n] = np.mean([fid.frechet(*map(fid.moments, random.normal(size=(2, n, 4)))) for _ in range(100)])
    assert distance[10] > 4.0 * distance[80] > 0.1


def test_the_shuffled_control_is_the_floor():
    random = np.random.default_rng(12)
    a, b = random.normal(size=(400, 8)), random.normal(1.0, 1.0, (400, 8))
    own = fid.frechet(fid.moments(a), fid.moments(b))
    mixed = fid.shuffled(a, b)
    control = fid.frechet(*map(fid.moments, mixed))
    assert control < 0.1 * own and len(mixed[0]) == len(mixed[1]) == 400
    assert sorted(np.concatenate(mixed).ravel()) == sorted(np.concatenate([a, b]).ravel())


def test_features_are_extracted_in_equal_batches_of_8_bit_images():
    shapes = []

    def features(images):
        shapes.append(images.shape)
        return images.mean((1, 2))

    images = np.random.default_rng(13).uniform(-0.2, 1.2, (7, 4, 4, 3))
    got = fid.extract(fid.Extractor('mean', 3, features), images, batch=3)
    expected = (np.round(np.clip(images, 0.0, 1.0) * 255.0) / 255.0).mean((1, 2))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert shapes == [(3, 4, 4, 3)] * 3 and got.dtype == np.float32


def test_the_tiny_extractor_stays_what_it_is():
    """Numbers of other versions compare only while these hold."""
    rows, columns = np.mgrid[:32, :32] / 31.0
    images = np.stack([np.stack([rows, columns, rows * columns], -1), np.full((32, 32, 3), 0.25)])
    extractor = fid.tiny()
    features = fid.extract(extractor, images, batch=2)
    assert features.shape == (2, extractor.dim) == (2, 64)
    np.testing.assert_allclose(features[:, [0, 20, 40, 63]], GOLDEN, atol=2e-5)
    np.testing.assert_allclose(fid.extract(fid.tiny(), images, batch=1), features, atol=1e-6)


def test_the_tiny_distances_grow_with_damage_and_with_another_colour():
    random = np.random.default_rng(14)
    rows, columns = np.mgrid[:16, :16] - 7.5

    def discs(count, red):
        """White pictures, each with a disc of random place and size."""
        images = np.ones((count, 16, 16, 3))
        for picture in images:
            x, y, radius = random.uniform(-3, 3), random.uniform(-3, 3), random.uniform(2.5, 5.0)
            picture[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = (red, 0.2, 1.0 - red)
        return images

    def blurred(images):
        return (images + np.roll(images, 1, 1) + np.roll(images, 1, 2) + np.roll(images, (1, 1), (1, 2))) / 4.0

    extractor, true = fid.tiny(), discs(200, 0.9)
    others = {
        'same': discs(200, 0.9),
        'blurred': blurred(true),
        'twice': blurred(blurred(blurred(true))),
        'blue': discs(200, 0.1),
    }
    features = {name: fid.extract(extractor, images, batch=50) for name, images in others.items()}
    target = fid.extract(extractor, true, batch=50)
    for measure in (lambda a, b: fid.frechet(fid.moments(a), fid.moments(b)), lambda a, b: fid.kernel_distance(a, b)[0]):
        distance = {name: measure(value, target) for name, value in features.items()}
        assert distance['blurred'] < distance['twice'] and 10.0 * abs(distance['same']) < distance['blue'], distance
