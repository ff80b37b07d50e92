"""Gradients of a batch in parts: the mean of the parts' gradients, on one device and on eight, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_image_diffusion as small
import test_instant3d_sds

from t3d import systems
from t3d.core import accumulate, optim
from t3d.core.errors import UsageError
from t3d.parallel import devices

RANDOM = np.random.default_rng(0)
BATCH = {'x': np.float32(RANDOM.normal(size=(24, 3))), 'y': np.float32(RANDOM.normal(size=24))}
PARAMS = {'w': jnp.float32([0.3, -1.0, 2.0]), 'half': jnp.bfloat16(0.5)}


def loss(params, batch, key):
    """Of a line, with noise on what goes in; not a mean of rows alone, so that the order of rows matters."""
    x = batch['x'] + 0.1 * jax.random.normal(key, batch['x'].shape)
    error = x @ params['w'] * params['half'].astype(jnp.float32) - batch['y']
    value = jnp.mean(error**2) + jnp.max(error)
    return value, {'loss': value, 'count/rows': jnp.float32(len(error)), 'more': {'least': jnp.min(error)}}


def by_hand(parts):
    """The same, with rows dealt like cards and a plain loop."""
    keys, found = jax.random.split(jax.random.key(5), parts), []
    for part in range(parts):
        rows = {name: leaf[part::parts] for name, leaf in BATCH.items()}
        found.append(jax.value_and_grad(loss, has_aux=True)(PARAMS, rows, keys[part]))
    mean = lambda pick: np.mean([np.float32(pick(one)) for one in found], 0)
    grads = {name: mean(lambda one: one[1][name]) for name in PARAMS}  # noqa: B023
    return mean(lambda one: one[0][0]), mean(lambda one: one[0][1]['more']['least']), grads


@pytest.mark.parametrize('parts', [2, 3, 24])
def test_it_is_the_mean_of_the_parts_and_counts_are_summed(parts):
    (value, aux), grads = jax.jit(accumulate.value_and_grad(loss, parts))(PARAMS, BATCH, jax.random.key(5))
    expected, least, slopes = by_hand(parts)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(aux['more']['least'], least, rtol=1e-6)
    assert aux['loss'] == value and aux['count/rows'] == 24
    for name in PARAMS:
        assert grads[name].dtype == jnp.float32
        np.testing.assert_allclose(grads[name], slopes[name], rtol=4e-3 if name == 'half' else 1e-6)


def test_one_part_is_the_function_of_jax():
    key = jax.random.key(1)
    ours = accumulate.value_and_grad(loss)(PARAMS, BATCH, key)
    jax.tree.map(np.testing.assert_array_equal, ours, jax.value_and_grad(loss, has_aux=True)(PARAMS, BATCH, key))


def test_parts_of_a_spread_batch_stay_where_they_are():
    mesh = devices.make({'data': 4, 'fsdp': 2, 'tensor': 1})
    batch = {name: np.concatenate([leaf, leaf[:8]]) for name, leaf in BATCH.items()}
    spread = jax.device_put(batch, jax.NamedSharding(mesh, jax.P(('data', 'fsdp'))))
    run = jax.jit(accumulate.value_and_grad(loss, 4))
    one, eight = (run(PARAMS, rows, jax.random.key(5)) for rows in (batch, spread))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), one, eight)
    dealt = jax.jit(lambda leaf: accumulate.deal(leaf, 4))
    text = dealt.lower(spread['x']).compile().as_text()
    assert not any(name in text for name in ('all-gather', 'all-to-all', 'collective-permute')), text
    np.testing.assert_array_equal(dealt(spread['x']), [batch['x'][part::4] for part in range(4)])


def test_a_system_moves_by_the_mean_of_its_parts():
    config = small.config('accumulate=2')
    system, model, batch = systems.make(config), small.model(), small.batch()
    state = jax.jit(system.init)(jax.random.key(0), batch)
    found, metrics = jax.jit(system.train_step)(state, batch, jax.random.key(2))
    slopes = jax.jit(jax.grad(lambda *args: model.loss(*args)[0]))
    parts = [jax.tree.map(lambda leaf, part=part: leaf[part::2], batch) for part in range(2)]
    each = [slopes(state.params, rows, key) for rows, key in zip(parts, jax.random.split(jax.random.key(2), 2), strict=True)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 2, *each)
    params, _ = optim.update(optim.adamw(**config.optimizer, total=config.steps), state, mean)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6), found.params, params)
    assert np.isfinite(metrics['loss'])


def test_what_does_not_divide_and_steps_that_remember_are_refused():
    with pytest.raises(UsageError, match=r'accumulate=5 does not divide the 24 rows of a batch. Nearest: accumulate=4.'):
        accumulate.value_and_grad(loss, 5)(PARAMS, BATCH, jax.random.key(0))
    mesh = devices.make({'data': 4, 'fsdp': 1, 'tensor': 1})
    devices.check_batch(32, mesh, 8)
    with pytest.raises(UsageError, match=r'batch 40 is not .* by the 4 devices .* times accumulate=8: set batch=32 or 64'):
        devices.check_batch(40, mesh, 8)
    remembers = test_instant3d_sds.config(*test_instant3d_sds.ADAPTIVE, 'accumulate=2')
    with pytest.raises(UsageError, match="accumulate=2 with supervision='sds', whose steps remember prompts"):
        systems.make(remembers, {'prior': test_instant3d_sds.prior()})
