import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.core import tree
from t3d.fields import triplane_field
from t3d.geom import triplanes


def test_parameter_counts():
    count = lambda **sizes: tree.count(jax.eval_shape(lambda key: triplane_field.init(key, 32, **sizes), jax.random.key(0)))
    assert count() == 32 * 64 + 64 + 64 * 33 + 33  # EG3D
    assert count(outputs=3) == 2372  # Instant3D, released


def test_the_series_is_the_documented_fit():
    nodes = np.cos(np.pi * (np.arange(400) + 0.5) / 400)
    e = 0.5 * (nodes + 1.0)
    fit = np.polynomial.Chebyshev.fit(e, np.log1p(e) / e, 8, domain=[0, 1])
    np.testing.assert_allclose(fit.convert(kind=np.polynomial.Polynomial).coef, triplane_field.LOG1P, rtol=1e-6)


def test_hidden_softplus_and_its_derivative():
    x = jnp.linspace(-40.0, 40.0, 20001)
    exact = np.logaddexp(0.0, np.asarray(x, np.float64))
    np.testing.assert_allclose(triplane_field.hidden_softplus(x), exact, atol=2e-7, rtol=2e-7)
    slope = jax.vmap(jax.grad(triplane_field.hidden_softplus))(x)
    np.testing.assert_allclose(slope, 1.0 / (1.0 + np.exp(-np.asarray(x, np.float64))), atol=3e-7)


@pytest.mark.parametrize('equalised', [True, False])
def test_decode_is_the_mean_then_two_layers(equalised):
    params = triplane_field.init(jax.random.key(0), 6, hidden=10, outputs=4, equalised=equalised)
    params['hidden']['bias'] = jax.random.normal(jax.random.key(1), (10,))
    params['out']['bias'] = jax.random.normal(jax.random.key(2), (5,))
    per_plane = jax.random.normal(jax.random.key(3), (3, 7, 6))
    gain = (lambda kernel: kernel / np.sqrt(kernel.shape[0])) if equalised else (lambda kernel: kernel)
    hidden = jax.nn.softplus(per_plane.mean(0) @ gain(params['hidden']['kernel']) + params['hidden']['bias'])
    expected = hidden @ gain(params['out']['kernel']) + params['out']['bias']
    density, features = triplane_field.decode(params, per_plane.sum(0), equalised=equalised)
    np.testing.assert_allclose(density, expected[:, 0], atol=2e-6)
    np.testing.assert_allclose(features, expected[:, 1:], atol=2e-6)


def test_both_forms_start_with_the_same_spread():
    spread = []
    for equalised in (True, False):
        params = triplane_field.init(jax.random.key(0), 32, equalised=equalised)
        density, _ = triplane_field.decode(params, jax.random.normal(jax.random.key(1), (500, 32)), equalised=equalised)
        spread.append(float(density.std()))
    np.testing.assert_allclose(*spread, rtol=1e-4)


@pytest.mark.parametrize('block', [None, 16, 10**6])
def test_blocks_change_nothing(block):
    params = triplane_field.init(jax.random.key(0), 4, hidden=8, outputs=3)
    planes = jax.random.normal(jax.random.key(1), (2, 3, 6, 6, 4))
    points = jax.random.uniform(jax.random.key(2), (2, 50, 3), minval=-1.2, maxval=1.2)

    def loss(params, planes, shift):
        field = triplane_field.make(params, planes, bound=1.0, activation=lambda x: jax.nn.sigmoid(x * shift), block=block)
        density, colour = field(points)
        return jnp.sum(density**2) + jnp.sum(colour**2)

    def plain(params, planes, shift):
        total = triplanes.sample_sum(triplanes.pad(planes), points, 1.0)
        density, features = triplane_field.decode(params, total)
        return jnp.sum(density**2) + jnp.sum(jax.nn.sigmoid(features * shift) ** 2)

    got, expected = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(params, planes, 1.3) for f in (loss, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, expected)


def test_colour_reaches_black_and_white():
    np.testing.assert_allclose(triplane_field.colour(jnp.array([-20.0, 0.0, 20.0])), [-0.001, 0.5, 1.001], atol=1e-6)


def test_half_precision_points_give_float32_density():
    params = triplane_field.init(jax.random.key(0), 4)
    field = triplane_field.make(params, jax.random.normal(jax.random.key(1), (3, 6, 6, 4)), bound=1.0, dtype=jnp.bfloat16)
    density, colour = field(jnp.zeros((5, 3)))
    assert density.dtype == jnp.float32 and colour.dtype == jnp.bfloat16
