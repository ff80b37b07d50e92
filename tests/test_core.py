"""Numerics, trees and optimizers against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t3d.core import numerics, optim, tree


def test_softplus_values_and_gradients():
    x = jnp.array([-80.0, -3.0, 0.0, 3.0, 80.0])
    np.testing.assert_allclose(numerics.softplus(x), np.logaddexp(0.0, np.asarray(x, np.float64)), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(numerics.softplus))(x), jax.nn.sigmoid(x), atol=1e-6)


def test_trunc_exp_gradient_is_clipped():
    np.testing.assert_allclose(jax.grad(numerics.trunc_exp)(2.0), np.exp(2.0), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(numerics.trunc_exp)(30.0), np.exp(15.0), rtol=1e-6)


def test_norms_are_safe_at_the_origin():
    assert np.all(jax.grad(lambda x: numerics.safe_norm(x))(jnp.zeros(3)) == 0.0)
    assert np.all(np.isfinite(jax.grad(lambda x: numerics.normalize(x)[0])(jnp.zeros(3))))
    np.testing.assert_allclose(numerics.normalize(jnp.array([3.0, 0.0, 4.0])), [0.6, 0.0, 0.8], rtol=1e-6)


def test_scaled_sigmoid_has_slope_one_quarter_and_its_range():
    for alpha in (0.5, 0.7, 1.0):
        np.testing.assert_allclose(jax.grad(numerics.scaled_sigmoid)(0.0, alpha), 0.25, atol=1e-6)
        np.testing.assert_allclose(numerics.scaled_sigmoid(jnp.float32(0.0), alpha), 0.5 / alpha, atol=1e-6)
    np.testing.assert_allclose(numerics.scaled_sigmoid(jnp.float32(1.3), 1.0), jax.nn.sigmoid(1.3), atol=1e-6)
    slopes = [float(jax.grad(numerics.scaled_sigmoid)(4.0, alpha)) for alpha in (0.5, 0.7, 0.9, 1.0)]
    np.testing.assert_allclose(slopes, [0.105, 0.054, 0.026, 0.018], atol=1e-3)  # Sec. 3.3, reach
    for x in (-50.0, 50.0):
        assert np.isfinite(jax.grad(numerics.scaled_sigmoid)(x, 0.5))


def test_names_count_and_cast():
    values = {'a': {'b': jnp.ones((2, 3)), 'c': jnp.arange(4)}}
    assert list(tree.flatten(values)) == ['a/b', 'a/c'] and tree.count(values) == 10
    assert jax.tree.structure(tree.unflatten(tree.flatten(values))) == jax.tree.structure(values)
    cast = tree.cast(values, jnp.bfloat16)
    assert cast['a']['b'].dtype == jnp.bfloat16 and cast['a']['c'].dtype == jnp.int32
    assert tree.size_bytes(values) == 40
    copied = tree.copy(values)
    assert copied['a']['b'] is not values['a']['b']


def test_ema_closed_form():
    average, new = {'x': jnp.float32(0.0)}, {'x': jnp.float32(1.0)}
    for _ in range(100):
        average = tree.ema(average, new, 0.97)
    np.testing.assert_allclose(average['x'], 1.0 - 0.97**100, rtol=1e-5)


def test_schedules():
    points = ((0, 0.5), (100, 1.0))
    np.testing.assert_allclose([optim.piecewise(s, points) for s in (-5, 0, 50, 100, 900)], [0.5, 0.5, 0.75, 1.0, 1.0])
    values = [float(optim.warmup_cosine(s, 2.0, 10, 110, 0.1)) for s in (0, 9, 10, 60, 110, 500)]
    np.testing.assert_allclose(values, [0.2, 2.0, 2.0, 2.0 * (0.1 + 0.9 * 0.5), 0.2, 0.2], rtol=1e-5)


@pytest.mark.parametrize('decay', [0.0, 0.1])
def test_adamw_is_optax_adamw_on_matrices_and_adam_on_vectors(decay):
    ours = optim.adamw(learning_rate=1e-2, warmup=1, total=1000, final=1.0, weight_decay=decay, clip=1e9)
    theirs = optax.adamw(1e-2, b2=0.99, weight_decay=decay)
    plain = optax.adam(1e-2, b2=0.99)
    params = {
        'matrix': jnp.ones((2, 2)),
        'vector': jnp.ones(2),
        'layers': {'bias': jnp.ones((3, 2)), 'scale': jnp.ones((3, 2))},
    }
    grads = jax.tree.map(lambda leaf: 0.3 * leaf, params)
    states = [method.init(params) for method in (ours, theirs, plain)]
    for _ in range(3):
        answers = [method.update(grads, state, params) for method, state in zip((ours, theirs, plain), states)]
        states = [state for _, state in answers]
    (mine, _), (decayed, _), (undecayed, _) = answers
    np.testing.assert_allclose(mine['matrix'], decayed['matrix'], rtol=1e-5)
    for name in ('vector', 'layers/bias', 'layers/scale'):
        np.testing.assert_allclose(tree.flatten(mine)[name], tree.flatten(undecayed)[name], rtol=1e-5)


def test_the_gradient_is_clipped_by_its_global_norm():
    rule = optim.adamw(learning_rate=1.0, warmup=1, total=10, clip=1.0)
    params = {'a': jnp.zeros((2, 2))}
    state = rule.init(params)
    _, state = rule.update({'a': jnp.full((2, 2), 10.0)}, state, params)
    moment = next(part.mu['a'] for part in state if hasattr(part, 'mu'))
    np.testing.assert_allclose(moment, 0.1 * 0.5, rtol=1e-5)  # 10 scaled to a norm of 1 over four entries


@pytest.mark.parametrize('size', [0.0, 1e-3, 1.0, 1e3])
def test_clipping_is_that_of_optax(size):
    grads = {'a': size * jax.random.normal(jax.random.key(0), (5, 7)), 'b': size * jnp.ones(3, jnp.bfloat16)}
    clips = (optim.clip_by_global_norm, optax.clip_by_global_norm)
    ours, theirs = (method(2.0).update(grads, optax.EmptyState())[0] for method in clips)
    assert ours['b'].dtype == jnp.bfloat16
    np.testing.assert_allclose(ours['a'], theirs['a'], rtol=3e-7)
    np.testing.assert_allclose(ours['b'].astype(np.float32), theirs['b'].astype(np.float32), rtol=8e-3)  # one step of bf16
