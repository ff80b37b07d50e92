import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.geom import sampling


def importance_of_one_ray(depths, weights, u):
    """EG3D's second pass for one ray, by search, in float64; the docstring of sampling.importance in loops."""
    padded = np.concatenate([[-np.inf], weights, [-np.inf]])
    widest = np.maximum(padded[1:], padded[:-1])
    smooth = 0.5 * (widest[1:] + widest[:-1]) + 0.01
    mass = smooth[1:-1] + 1e-5
    cdf = np.concatenate([[0.0], np.cumsum(mass / mass.sum())])
    bins = 0.5 * (depths[1:] + depths[:-1])
    samples = []
    for value in u:
        place = np.searchsorted(cdf, value, side='right')
        low, high = max(place - 1, 0), min(place, len(mass))
        span = cdf[high] - cdf[low]
        samples.append(bins[low] + (value - cdf[low]) / (span if span >= 1e-5 else 1.0) * (bins[high] - bins[low]))
    return np.array(samples)


@pytest.fixture
def draw():
    generator = np.random.default_rng(0)
    depths = np.sort(generator.uniform(2, 4, (2, 12, 5)), 1).astype(np.float32)
    weights = (generator.uniform(0, 1, (2, 11, 5)) ** 6).astype(np.float32)
    u = np.sort(generator.uniform(0, 1, (2, 9, 5)), 1).astype(np.float32)
    return depths, weights, u


def test_stratified_is_a_jittered_linspace():
    near, far = jnp.array([[2.0, 1.0]]), jnp.array([[3.0, 1.0]])
    plain = sampling.stratified(near, far, jnp.zeros((1, 5, 2)))
    np.testing.assert_allclose(plain[0, :, 0], np.linspace(2, 3, 5), atol=1e-6)
    np.testing.assert_array_equal(plain[0, :, 1], 1.0)  # an empty range: no jitter can leave it
    jittered = sampling.stratified(near, far, jnp.full((1, 5, 2), 0.5))
    np.testing.assert_allclose(jittered - plain, np.broadcast_to([[[0.125, 0.0]]], (1, 5, 2)), atol=1e-6)
    with pytest.raises(ValueError, match='at least 2'):
        sampling.stratified(near, far, jnp.zeros((1, 1, 2)))


def test_importance_equals_the_search(draw):
    depths, weights, u = draw
    samples = sampling.importance(*(jnp.asarray(value) for value in draw))
    for b in range(2):
        for r in range(5):
            expected = importance_of_one_ray(depths[b, :, r].astype(float), weights[b, :, r].astype(float), u[b, :, r])
            np.testing.assert_allclose(samples[b, :, r], expected, atol=2e-6)


def test_importance_goes_where_the_weight_is_and_keeps_the_inherited_end():
    depths = jnp.linspace(0.0, 1.0, 21)[:, None]
    weights = jnp.zeros((20, 1)).at[10].set(1.0)
    u = ((jnp.arange(2000) + 0.5) / 2000)[:, None]
    samples = sampling.importance(depths, weights, u)
    near = jnp.mean((samples > 0.4) & (samples < 0.6))
    assert near > 0.85
    assert samples.min() >= 0.025 and samples.max() <= 0.925 + 1e-6  # midpoints 0 and S - 3; 0.975, the last, is out of reach
    with pytest.raises(ValueError, match='raise num_samples to 4'):
        sampling.importance(depths[:3], weights[:2], u)


def test_merge_sorts_and_breaks_ties_by_order():
    generator = np.random.default_rng(1)
    coarse = np.sort(generator.integers(0, 12, (3, 7, 4)), 1).astype(np.float32)  # integers: many ties
    fine = np.sort(generator.integers(0, 12, (3, 6, 4)), 1).astype(np.float32)
    both = np.concatenate([coarse, fine], 1)
    ranks, order = sampling.merge(jnp.asarray(coarse), jnp.asarray(fine))
    np.testing.assert_array_equal(order, np.argsort(both, 1, kind='stable'))
    np.testing.assert_array_equal(ranks, np.argsort(np.asarray(order), 1))
    np.testing.assert_array_equal(sampling.permute(jnp.asarray(both), order, ranks), np.sort(both, 1))


def test_permute_carries_gradients_back():
    values = jax.random.normal(jax.random.key(0), (2, 6, 3))
    order = jnp.argsort(values, axis=1)
    ranks = jnp.argsort(order, axis=1)
    scale = jnp.arange(36.0).reshape(2, 6, 3)
    gradient = jax.grad(lambda v: jnp.sum(scale * sampling.permute(v, order, ranks)))(values)
    np.testing.assert_array_equal(gradient, jnp.take_along_axis(scale, ranks, 1))
