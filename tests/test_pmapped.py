"""The pmap variant equals the jit path."""

import chex
import jax
import numpy as np
import pytest
from dummy_system import DATA, make

from t3d.core import replicas
from t3d.data import pipeline
from t3d.parallel import pmapped


def both(noise, steps=3):
    """(losses and params of jit, of pmap on 8 devices) after the same batches."""
    system = make(noise=noise)
    batches = pipeline.make(*DATA, batch=16, seed=0)
    key, step = jax.random.key(1), jax.jit(system.train_step)
    state = system.init(jax.random.key(0), None)
    parallel, copies = pmapped.train_step(system), pmapped.replicate(state)
    losses = []
    for _ in range(steps):
        batch = next(batches)
        state, one = step(state, batch, jax.random.fold_in(key, state.step))
        copies, many = parallel(copies, pmapped.split(batch, 8), key)
        losses.append((float(one['loss']), float(many['loss'][0])))
    return np.array(losses), state, copies


def test_equals_the_jit_path():
    losses, state, copies = both(noise=0.0)
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-5)
    chex.assert_trees_all_close(pmapped.unreplicate(copies).params, state.params, rtol=1e-5, atol=1e-7)
    kernel = np.asarray(copies.params['layer_in']['kernel'])
    assert (kernel == kernel[:1]).all() and int(copies.step[0]) == 3


def test_replicas_draw_their_own_noise():
    losses, _, _ = both(noise=0.05)
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=0.1)
    assert not np.allclose(losses[:, 0], losses[:, 1], rtol=1e-6)
    draw = jax.pmap(lambda _, key: jax.random.key_data(replicas.fold_in(key)), axis_name=replicas.AXIS, in_axes=(0, None))
    assert len(np.unique(np.asarray(draw(np.arange(8), jax.random.key(0))), axis=0)) == 8


def test_mean_is_the_identity_outside():
    assert not replicas.inside() and replicas.mean({'a': 3}) == {'a': 3}
    assert replicas.fold_in('key') == 'key'


def test_gradients_are_those_of_the_whole_batch():
    """Adam hides a constant factor; raw gradients do not."""
    x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    loss = lambda w, rows: ((rows @ w) ** 2).mean()
    w = np.ones(3, np.float32)
    grad = jax.pmap(lambda w, rows: replicas.mean(jax.grad(loss)(w, rows)), axis_name=replicas.AXIS, in_axes=(None, 0))
    np.testing.assert_allclose(grad(w, x.reshape(8, 2, 3))[0], jax.grad(loss)(w, x), rtol=1e-5)


def test_a_step_that_does_not_average_is_refused():
    system = make()
    bad = system._replace(train_step=lambda state, batch, key, given: (state.replace(step=state.step + 1), {}))
    state = pmapped.replicate(system.init(jax.random.key(0), None))
    with pytest.raises(ValueError, match='does not average over replicas'):
        pmapped.train_step(bad)(state, pmapped.split(next(pipeline.make(*DATA, batch=16, seed=0)), 8), jax.random.key(1))


def test_split_refuses_what_does_not_divide():
    with pytest.raises(ValueError):
        pmapped.split({'x': np.zeros((9, 2))}, 8)


@pytest.mark.slow
def test_instant3d_trains_on_replicas_as_on_one_device():
    """Pixels and jitter are each replica's own, so losses agree as draws do; replicas to the bit."""
    from test_instant3d import SMALL

    from t3d import systems
    from t3d.core import config as configs
    from t3d.data import sources

    config = sources.resolve(configs.load('configs/instant3d.py:tiny', [*SMALL, 'batch=4', 'noise=0.0', 'loss.rays=512']))
    system = systems.make(config)
    source, transform = sources.make(config)
    batches = pipeline.make(source, transform, batch=4, seed=0)
    state = system.init(jax.random.key(0), next(batches))
    pair = jax.local_devices()[:2]
    parallel, copies, step = pmapped.train_step(system, pair), pmapped.replicate(state, pair), jax.jit(system.train_step)
    losses = []
    for _ in range(8):
        batch = next(batches)
        state, one = step(state, batch, jax.random.fold_in(jax.random.key(1), state.step))
        copies, many = parallel(copies, pmapped.split(batch, 2), jax.random.key(1))
        losses.append((float(one['loss']), float(many['loss'][0])))
    for leaf in jax.tree.leaves(copies.params):
        np.testing.assert_array_equal(leaf[0], leaf[1])
    np.testing.assert_allclose(*np.mean(losses, axis=0), rtol=0.1)  # each step draws 2,048 pixels of its own


@pytest.mark.slow
def test_views_and_pictures_are_learned_on_replicas_as_on_one_device():
    """Times, noise and dropped words are each replica's own, so losses agree as draws do; replicas to the bit."""
    import test_mvdiffusion

    from t3d import systems
    from t3d.data import sources

    config = test_mvdiffusion.config('tiny', 'batch=16', 'diffusion.min_snr=0.0')
    system, pair = systems.make(config), jax.local_devices()[:2]
    batch = next(pipeline.make(*sources.make(config, None, system.batch_spec), batch=16, seed=0))
    start = jax.jit(system.init)(jax.random.key(0), batch, {})
    for kind in (system.train_step, *system.other_steps):
        parallel = pmapped.train_step(system._replace(train_step=kind), pair)
        state, copies, step, losses = start, pmapped.replicate(start, pair), jax.jit(kind), []
        for _ in range(8):
            state, one = step(state, batch, jax.random.fold_in(jax.random.key(1), state.step), {})
            copies, many = parallel(copies, pmapped.split(batch, 2), jax.random.key(1))
            losses.append((float(one['loss']), float(many['loss'][0])))
        for leaf in jax.tree.leaves(copies):
            np.testing.assert_array_equal(leaf[0], leaf[1])
        np.testing.assert_allclose(*np.mean(losses, axis=0), rtol=0.1)
