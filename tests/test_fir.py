"""Fixed filters against the golden arrays, a naive loop and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.core.errors import UsageError
from t3d.nets import fir

FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64.0


def nhwc(x):
    return np.asarray(x).transpose(0, 2, 3, 1)


def largest(got, expected) -> float:
    return float(np.abs(np.asarray(got) - expected).max())


def naive(x, taps, *, up=1, down=1, pad=(0, 0)):
    """Zero insertion, padding, correlation with a 2-D filter, decimation: one output pixel at a time, float64."""
    batch, height, width, channels = x.shape
    inserted = np.zeros((batch, height * up, width * up, channels))
    inserted[:, ::up, ::up] = x
    padded = np.pad(inserted, [(0, 0), pad, pad, (0, 0)])
    rows, columns = (padded.shape[axis] - len(taps) + 1 for axis in (1, 2))
    out = np.zeros((batch, rows, columns, channels))
    for i in range(rows):
        for j in range(columns):
            window = padded[:, i : i + len(taps), j : j + len(taps)]
            out[:, i, j] = np.einsum('bijc,ij->bc', window, taps)
    return out[:, ::down, ::down]


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_up_down_and_blur_are_the_golden_ones(golden):
    data = golden('upfirdn')
    x = nhwc(data['x'])
    assert largest(fir.upsample2(x), nhwc(data['up2'])) < 1e-6
    assert largest(fir.downsample2(x), nhwc(data['down2'])) < 1e-6
    assert largest(fir.blur(x, 2.3), nhwc(data['blur_sigma2.3'])) < 1e-6


@pytest.mark.parametrize('shape', [(2, 6, 10, 3), (1, 2, 4, 1)])
def test_filters_are_those_of_a_naive_loop(shape):
    x = random(*shape)
    assert largest(fir.upsample2(x), naive(x, 4 * FILTER, up=2, pad=(2, 1))) < 1e-6
    assert largest(fir.downsample2(x), naive(x, FILTER, down=2, pad=(1, 1))) < 1e-6
    assert largest(fir.smooth(x, 2), naive(x, FILTER, pad=(2, 2))) < 1e-6
    assert largest(fir.smooth(x, 1, 4.0), naive(x, 4 * FILTER, pad=(1, 1))) < 1e-6
    assert largest(fir.upsample2(x), naive(x, 4 * FILTER, up=2, pad=(1, 2))[:, : 2 * shape[1], : 2 * shape[2]]) > 0.1


def test_constants_pass_unchanged_away_from_the_border():
    x = np.ones((1, 24, 24, 2), np.float32)
    for out, margin in ((fir.upsample2(x), 1), (fir.downsample2(x), 1), (fir.blur(x, 2.3), 6), (fir.smooth(x, 2), 3)):
        inner = np.asarray(out)[:, margin:-margin, margin:-margin]
        assert largest(inner, 1.0) < 1e-6
        assert largest(out, 1.0) > 0.1  # the outside is zero


@pytest.mark.parametrize('sigma', [0.5, 1.0, 2.3])
def test_blur_is_a_gaussian_of_base_two(sigma):
    x, radius = random(1, 20, 18, 2), int(3 * sigma)
    taps = 2.0 ** -((np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    expected = naive(x, np.outer(taps, taps), pad=(radius, radius))
    assert largest(fir.blur(x, sigma), expected) < 1e-6
    traced = jax.jit(lambda x, s: fir.blur(x, s, 8))
    assert largest(traced(x, sigma), expected) < 1e-6
    assert largest(traced(x, 0.33), x) == 0.0  # floor(3 sigma) = 0
    assert largest(traced(x, 0.0), x) == 0.0


def test_blur_needs_a_radius_for_a_traced_sigma_and_keeps_small_ones_out():
    x = random(1, 8, 8, 1)
    assert fir.blur(x, 0.3) is x
    with pytest.raises(UsageError, match='radius'):
        jax.jit(fir.blur)(x, 1.0)
    slope = jax.grad(lambda x: jnp.sum(fir.blur(x, 0.0, 3)))(x)
    assert largest(slope, 1.0) < 1e-6


def test_odd_sides_are_refused():
    with pytest.raises(UsageError, match='7 x 8'):
        fir.downsample2(random(1, 7, 8, 1))


def test_gradients_are_the_transposed_filters():
    """<f(x), y> = <x, f'(y)> with f' from autodiff, against the naive loop's matrix."""
    x, y = random(1, 6, 6, 1), random(1, 12, 12, 1)
    back = jax.vjp(fir.upsample2, x)[1](y)[0]
    basis = np.eye(36, dtype=np.float32).reshape(36, 6, 6, 1)
    matrix = naive(basis, 4 * FILTER, up=2, pad=(2, 1)).reshape(36, -1)
    assert largest(np.asarray(back).ravel(), matrix @ y.ravel()) < 1e-6


def test_resize_is_the_golden_antialiased_one(golden):
    data = golden('resize_aa')
    x = nhwc(data['x'])
    for size in (16, 40, 64, 128):
        assert largest(fir.resize_aa(x, size), nhwc(data[f'to{size}'])) < 1e-6
    assert fir.resize_aa(x, 64) is x


@pytest.mark.parametrize('sizes', [(64, 128), (128, 64), (512, 64), (100, 64), (32, 64), (80, 128)])
def test_resize_is_that_of_torch(sizes):
    torch = pytest.importorskip('torch')
    x = random(1, sizes[0], sizes[0], 2)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2), size=sizes[1:] * 2, mode='bilinear', align_corners=False, antialias=True
    )
    assert largest(fir.resize_aa(x, sizes[1]), nhwc(expected.numpy())) < 1e-6
