"""Muon beside optax's: orthogonalised matrices, whole moves, which arrays are kernels, and runs with it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_run
from optax.contrib import MuonDimensionNumbers

from t3d.checkpoint import store as stores
from t3d.core import muon, optim, tree
from t3d.train import loop


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize('shape', [(96, 96), (288, 48), (5, 80), (3, 1), (1, 1)])
def test_orthogonalised_is_that_of_optax_by_the_long_way(shape):
    x = normal(0, *shape)
    theirs = optax.contrib._muon.orthogonalize_via_newton_schulz(x, jnp.array(muon.COEFFICIENTS), muon.ITERATIONS)
    np.testing.assert_allclose(muon.orthogonalised(x), theirs, atol=2e-4 * np.abs(theirs).max())


def test_singular_values_become_alike_and_directions_stay():
    left, values, right = np.linalg.svd(np.asarray(normal(1, 64, 40)), full_matrices=False)
    values = np.geomspace(1.0, 3e-3, 40)
    made = muon.orthogonalised(jnp.asarray(left * values @ right, jnp.float32))
    inner = left.T @ np.asarray(made) @ right.T
    assert np.diag(inner).min() > 0.6 and np.diag(inner).max() < 1.25
    assert np.abs(inner - np.diag(np.diag(inner))).max() < 2e-3
    assert np.isfinite(muon.orthogonalised(jnp.zeros((4, 3)))).all()


def test_products_are_of_full_precision_on_every_device():
    """x^T x squares what is small: with operands rounded to bfloat16 a move of low rank is hundreds of times too large."""
    low = np.asarray(normal(11, 96, 4)) @ np.asarray(normal(12, 4, 48))
    values = np.linalg.svd(np.asarray(muon.orthogonalised(jnp.asarray(low))), compute_uv=False)
    assert values[:4].min() > 0.6 and values.max() < 1.25
    text = jax.jit(muon.orthogonalised).lower(jnp.zeros((96, 48))).as_text()
    products = [line for line in text.splitlines() if 'dot_general' in line]
    assert len(products) == 6 and all('precision = [HIGHEST, HIGHEST]' in line for line in products)


def test_stacked_layers_and_convolutions_are_matrices_of_their_own():
    layers, kernel = normal(2, 3, 20, 10), normal(3, 3, 3, 8, 12)
    each = jnp.stack([muon.orthogonalised(layer) for layer in layers])
    np.testing.assert_allclose(muon.orthogonalised(muon.matrices(layers)), each, atol=1e-5)
    assert muon.matrices(kernel).shape == (72, 12) and muon.matrices(kernel[None]).shape == (1, 72, 12)
    np.testing.assert_array_equal(muon.matrices(kernel)[8 * 4 + 5], kernel[1, 1, 5])


def test_moves_are_those_of_optax():
    """Three steps of kernels by Muon and the rest by Adam, from different gradients."""
    params = {'conv': {'kernel': normal(4, 3, 3, 4, 16), 'bias': jnp.ones(16)}, 'layers': {'kernel': normal(5, 2, 12, 6)}}
    params['embedding'] = normal(6, 5, 8)
    dims = {'conv': {'kernel': MuonDimensionNumbers((0, 1, 2), 3), 'bias': None}, 'embedding': None}
    dims['layers'] = {'kernel': MuonDimensionNumbers(1, 2)}
    theirs = optax.contrib.muon(1e-2, consistent_rms=muon.RMS, muon_weight_dimension_numbers=dims, beta=muon.MOMENTUM)
    adam = optax.adam(1e-2, b2=0.98)  # that of optax.contrib.muon is Nadam
    ours = optim.adamw(learning_rate=1e-2, warmup=1, total=10**9, final=1.0, b2=0.98, clip=1e9, kernels='muon')
    methods = (ours, theirs, adam)
    states, moved = [method.init(params) for method in methods], []
    for step in range(3):
        grads = tree.map_with_name(lambda name, leaf, k=step: normal(len(name) + 31 * k, *leaf.shape), params)
        moved = [method.update(grads, state, params) for method, state in zip(methods, states, strict=True)]
        states = [state for _, state in moved]
    mine, other, plain = (tree.flatten(updates) for updates, _ in moved)
    for name in ('conv/bias', 'embedding'):
        np.testing.assert_allclose(mine[name], plain[name], rtol=1e-4)
    for name in ('conv/kernel', 'layers/kernel'):  # optax corrects the first momenta for their start, as Adam does
        cosine = jnp.sum(mine[name] * other[name]) / jnp.linalg.norm(mine[name]) / jnp.linalg.norm(other[name])
        assert cosine > 0.99
        assert 0.15 < jnp.sqrt(jnp.mean(jnp.square(mine[name]))) / 1e-2 < 0.25


def test_the_first_move_is_that_of_optax_to_rounding():
    params = {'kernel': normal(7, 40, 24)}
    grads = {'kernel': normal(8, 40, 24)}
    theirs = optax.contrib.muon(1e-2, consistent_rms=muon.RMS)
    ours = optim.adamw(learning_rate=1e-2, warmup=1, total=10**9, final=1.0, clip=1e9, kernels='muon')
    mine, other = (method.update(grads, method.init(params), params)[0]['kernel'] for method in (ours, theirs))
    np.testing.assert_allclose(mine, other, atol=1e-3 * np.abs(other).max())


def test_a_run_with_muon_goes_on_where_it_stopped(tmp_path):
    """The whole state, momenta too: the last step's loss and what it moved depend on them."""
    config = small_run.config('optimizer.kernels=muon', 'steps=4')
    states = []
    for name, stops in (('whole', (None,)), ('parts', (2, None))):
        for stop in stops:
            loop.run(config, tmp_path / name, stop_after=stop, log=lambda line: None)
        store = stores.Store(tmp_path / name / 'checkpoints', read_only=True)
        states.append(jax.device_get(store.restore_weights()))
        store.close()
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_kernels_over_eight_devices_move_as_on_one():
    mesh = jax.make_mesh((8,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,))
    params = {'conv': {'kernel': normal(9, 3, 3, 16, 32)}, 'dense': {'kernel': normal(10, 64, 24)}}
    grads = jax.tree.map(lambda leaf: leaf + 0.1, params)
    rule = optim.adamw(learning_rate=1e-2, warmup=1, total=100, clip=1.0, kernels='muon')
    step = jax.jit(lambda grads, state: rule.update(grads, state, params)[0])
    spread = {
        'conv': {'kernel': jax.NamedSharding(mesh, jax.P(None, None, 'fsdp', None))},
        'dense': {'kernel': jax.NamedSharding(mesh, jax.P(None, 'fsdp'))},
    }
    one, many = step(grads, rule.init(params)), step(jax.device_put(grads, spread), rule.init(jax.device_put(params, spread)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max()), one, many)
