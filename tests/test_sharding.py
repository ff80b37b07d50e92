"""Placement rules, and one result on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dummy_system import DATA, config, make
from jax.sharding import PartitionSpec as P
from test_instant3d import SMALL

from t3d import systems
from t3d.core import config as configs
from t3d.core import spread, tree
from t3d.data import pipeline, sources
from t3d.parallel import devices, sharding

MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2)]


def struct(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_first_rule_wins_and_reaches_the_optimizer():
    mesh = devices.make({'data': 1, 'fsdp': 4, 'tensor': 2})
    rules = ((r'.*/kernel', P('fsdp', 'tensor')), (r'.*', P()))
    state = {'params': {'a': {'kernel': struct(8, 4)}}, 'opt_state': {'mu': {'a': {'kernel': struct(8, 4)}}}}
    placed = tree.flatten(sharding.shardings(state, rules, mesh))
    assert {s.spec for s in placed.values()} == {P('fsdp', 'tensor')}


def test_axes_that_do_not_divide_are_dropped_and_logged(caplog):
    mesh = devices.make({'data': 1, 'fsdp': 4, 'tensor': 2})
    placed = sharding.shardings({'kernel': struct(6, 4)}, ((r'kernel', P('fsdp', 'tensor')),), mesh)
    assert placed['kernel'].spec == P(None, 'tensor')
    assert 'kernel (6, 4) is not divisible along fsdp' in caplog.text
    both = ((r'kernel', P(('fsdp', 'tensor'))),)
    assert sharding.place('kernel', struct(8, 4), both, mesh).spec == P(('fsdp', 'tensor'))
    assert sharding.place('kernel', struct(12, 4), both, mesh) == (P('fsdp'), 'rule', ('tensor',))
    assert sharding.place('kernel', struct(6, 4), both, mesh) == (P('tensor'), 'rule', ('fsdp',))
    assert sharding.place('kernel', struct(7, 4), both, mesh) == (P(), 'rule', ('fsdp', 'tensor'))


def test_fallback_takes_the_largest_divisible_axis_above_the_floor():
    mesh = devices.make({'data': 1, 'fsdp': 8})
    place = lambda *shape, floor=0: sharding.place('x', struct(*shape), (), mesh, floor)
    assert place(3, 3, 16, 64).spec == P(None, None, None, 'fsdp')
    assert place(64, 16).spec == P('fsdp')
    assert place(9, 7).spec == P() and place().spec == P()
    assert place(64, 16, floor=2**20) == (P(), 'small', ())


def test_wrong_rules_say_so():
    mesh = devices.make({'data': 8})
    with pytest.raises(ValueError, match=r'3 axes, kernel has shape \(8, 8\)'):
        sharding.place('kernel', struct(8, 8), ((r'kernel', P(None, None, 'fsdp')),), mesh)
    with pytest.raises(ValueError, match="no mesh axis 'model'"):
        sharding.place('kernel', struct(8, 8), ((r'kernel', P('model')),), mesh)


def test_report():
    mesh = devices.make({'data': 1, 'fsdp': 8})
    text = sharding.report({'a': struct(1024, 1024), 'b': struct(7)}, (), mesh)
    assert "a  (1024, 1024)  P('fsdp',)  fsdp" in text.replace('PartitionSpec', 'P')
    assert '4.0 MiB in all, 0.5 MiB per device, 1 of 2 leaves sharded' in text


def test_typed_keys_have_a_place():
    mesh = devices.make({'data': 1, 'fsdp': 8})
    key = jax.eval_shape(lambda: jax.random.key(0))
    assert sharding.place('key', key, (), mesh).spec == P()


def test_constrain_follows_the_mesh_of_the_context():
    x = jnp.ones((8, 4))
    assert 'sharding_constraint' not in str(jax.make_jaxpr(lambda x: spread.constrain(x, ('data', 'fsdp')))(x))
    with jax.set_mesh(devices.make({'data': 8})):
        assert 'sharding_constraint' in str(jax.make_jaxpr(lambda x: spread.constrain(x, ('data', 'fsdp')))(x))
        assert 'sharding_constraint' not in str(jax.make_jaxpr(lambda x: spread.constrain(x, 'absent'))(x))
    both = jax.pmap(lambda x: spread.constrain(x, ('data', 'fsdp')), axis_name='data')(x)
    np.testing.assert_array_equal(both, x)


def steps(sizes, count=3):
    """(losses, final state) of the dummy on a mesh."""
    mesh = devices.make(dict(zip(devices.AXES, sizes)))
    system = make()
    init = lambda: system.init(jax.random.key(0), None)
    placed = sharding.shardings(jax.eval_shape(init), system.sharding, mesh, 64)
    state = jax.jit(init, out_shardings=placed)()
    step = jax.jit(system.train_step, donate_argnums=0, out_shardings=(placed, sharding.replicated(mesh)))
    batches, losses = pipeline.make(*DATA, batch=config()['batch'], seed=0), []
    for n in range(count):
        batch = sharding.global_batch(next(batches), mesh)
        state, metrics = step(state, batch, jax.random.fold_in(jax.random.key(1), n))
        losses.append(float(metrics['loss']))
    return losses, state


@pytest.fixture(scope='module')
def reference():
    losses, state = steps((1, 1, 1))
    return losses, jax.device_get(state)


@pytest.mark.parametrize('sizes', MESHES[1:], ids=lambda sizes: 'x'.join(map(str, sizes)))
def test_same_loss_and_update_on_every_mesh(reference, sizes):
    losses, state = steps(sizes)
    np.testing.assert_allclose(losses, reference[0], rtol=1e-5)
    for name, leaf in tree.flatten(state.params).items():
        expected = tree.flatten(reference[1].params)[name]
        assert np.max(np.abs(leaf - expected)) <= 1e-5 * np.max(np.abs(expected)), name
    kernel = state.params['layer_in']['kernel']
    assert len({str(shard.index) for shard in kernel.addressable_shards}) == sizes[1] * sizes[2]
    assert state.opt_state[0].mu['layer_in']['kernel'].sharding == kernel.sharding


def instant3d_steps(sizes):
    """(losses, parameters) of three steps of a small Instant3D on a mesh."""
    config = sources.resolve(configs.load('configs/instant3d.py:tiny', [*SMALL, 'batch=16', 'optimizer.kernels=adam']))
    system, mesh = systems.make(config), devices.make(dict(zip(devices.AXES, sizes)))
    batches, losses = pipeline.make(*sources.make(config), batch=16, seed=0), []
    zeros = {name: np.zeros(spec.shape, spec.dtype) for name, spec in system.batch_spec.items()}
    with jax.set_mesh(mesh):
        init = lambda: system.init(jax.random.key(0), zeros)
        placed = sharding.shardings(jax.eval_shape(init), system.sharding, mesh, 1024)
        state = jax.jit(init, out_shardings=placed)()
        step = jax.jit(system.train_step, donate_argnums=0, out_shardings=(placed, sharding.replicated(mesh)))
        for n in range(3):
            state, metrics = step(state, sharding.global_batch(next(batches), mesh), jax.random.fold_in(jax.random.key(1), n))
            losses.append(float(metrics['loss']))
    return losses, tree.flatten(jax.device_get(state.params))


@pytest.mark.slow
def test_instant3d_is_the_same_on_every_mesh():
    """Losses to 1e-5, and the parameters to 1e-5 of the norm of each array, in the norm of their difference.

    Biases start at zero, so that theirs are errors of the update itself; elsewhere it holds for each number, too.
    """
    losses, params = instant3d_steps((1, 1, 1))
    for sizes in ((8, 1, 1), (1, 8, 1), (2, 4, 1)):
        other_losses, other = instant3d_steps(sizes)
        np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
        for name, leaf in params.items():
            assert np.linalg.norm(other[name] - leaf) <= 1e-5 * np.linalg.norm(leaf), name
            assert name.endswith('bias') or np.max(np.abs(other[name] - leaf)) <= 1e-5 * np.max(np.abs(leaf)), name
