"""What a run takes from another folder: frozen parts, and weights whose averages lack a part (a GAN's discriminator)."""

import functools

import jax
import numpy as np
import pytest
from dummy_system import DATA, config, make

from t3d import systems
from t3d.checkpoint import store as stores
from t3d.checkpoint import weights
from t3d.core import tree
from t3d.core.errors import UsageError
from t3d.train import inference, loop


@functools.cache
def system(part: str, averaged: bool):
    """The dummy with one more part in its parameters that no step changes, in the average too if `averaged`."""
    inner = make()

    def parted(state, value, average):
        return state.replace(params={**state.params, part: value}, ema={**state.ema, part: average} if averaged else state.ema)

    def init(key, batch):
        fresh = lambda: {'net': {'bias': jax.random.normal(key, (3,))}}
        return parted(inner.init(key, batch), fresh(), fresh())

    def train_step(state, batch, key):
        without = lambda tree: {name: value for name, value in tree.items() if name != part}
        stepped, metrics = inner.train_step(state.replace(params=without(state.params), ema=without(state.ema)), batch, key)
        return parted(stepped, state.params[part], state.ema.get(part)), metrics

    return inner._replace(init=init, train_step=train_step)


def state(workdir, of):
    """The newest state of a run, on one device."""
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.eval_shape(lambda: of.init(jax.random.key(0), None))
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), target)
    store = stores.Store(workdir / 'checkpoints', read_only=True)
    try:
        return jax.device_get(store.restore(target).state)
    finally:
        store.close()


def run(workdir, of, steps=1, lines=None, init_from=None, **changes):
    log = (lambda line: None) if lines is None else lines.append
    return loop.run(config(steps=steps, **changes), workdir, system=of, data=DATA, log=log, init_from=init_from)


def bias(value):
    return {'net': {'bias': np.full(3, value, np.float32)}}


def test_a_frozen_part_is_read_once_into_parameters_and_average(tmp_path):
    of, folder, lines = system('frozen', True), tmp_path / 'generator', []
    weights.save(folder, bias(7.0), {'system': 'another'})
    run(tmp_path / 'run', of, 2, lines, frozen=str(folder), mesh={'data': 4, 'fsdp': 2, 'tensor': 1})
    assert f'frozen part: the weights in {folder}' in lines
    found = state(tmp_path / 'run', of)
    for trained in (found.params, found.ema):
        np.testing.assert_array_equal(trained['frozen']['net']['bias'], np.full(3, 7.0))
    (folder / weights.FILE).unlink()  # a run that goes on has it
    run(tmp_path / 'run', of, 3, lines, frozen=str(folder))
    assert 'resuming from step 2' in lines and state(tmp_path / 'run', of).params['frozen']['net']['bias'][0] == 7.0


def test_an_average_without_the_frozen_part_stays_without(tmp_path):
    of = system('frozen', False)
    weights.save(tmp_path / 'generator', bias(7.0), {'system': 'another'})
    run(tmp_path / 'run', of, frozen=str(tmp_path / 'generator'))
    found = state(tmp_path / 'run', of)
    assert found.params['frozen']['net']['bias'][0] == 7.0 and 'frozen' not in found.ema


def test_frozen_weights_that_are_not_there_or_do_not_fit(tmp_path):
    of, folder = system('frozen', True), tmp_path / 'generator'
    with pytest.raises(UsageError, match='model.safetensors and config.json not found in .*generator.*launch.make_triplanes'):
        run(tmp_path / 'a', of, frozen=str(folder))
    weights.save(folder, {'net': {'bias': np.zeros(4, np.float32)}}, {})
    with pytest.raises(UsageError, match=r'frozen weights in .*\n  other shape: net/bias \(4,\) given, \(3,\) wanted'):
        run(tmp_path / 'b', of, frozen=str(folder))
    with pytest.raises(UsageError, match='this system has no frozen part'):
        run(tmp_path / 'c', make(), frozen=str(folder))
    run(tmp_path / 'd', make(), frozen='')


def test_a_start_from_planes_that_lie_otherwise_is_refused(tmp_path):
    render = {'plane_axes': 'legacy', 'box_warp': 1.6, 'samples': 8}
    weights.save(tmp_path / 'there', bias(1.0), {'system': 'dummy', 'render': render})
    begin = lambda name, **other: run(tmp_path / name, make(), init_from=tmp_path / 'there', render={**render, **other})
    with pytest.raises(
        UsageError, match="trained with render.plane_axes=legacy, this config has render.plane_axes='orthogonal'"
    ):
        begin('a', plane_axes='orthogonal')
    with pytest.raises(UsageError, match='set render.box_warp=1.6'):
        begin('b', box_warp=2.0)
    with pytest.raises(UsageError, match='do not fit the model'):  # it goes on to the arrays
        begin('c', samples=16)


def test_a_start_from_averages_without_a_discriminator(tmp_path, monkeypatch):
    """A run folder has the discriminator, a weights folder has not; another optimizer's state cannot be read."""
    of, lines = system('discriminator', False), []
    first = run(tmp_path / 'first', of)
    before = state(first, of)
    from_run = run(tmp_path / 'from_run', of, lines=lines, init_from=first, seed=5)
    assert f'starting from the weights in {first}' in lines
    np.testing.assert_array_equal(tree.flatten(state(from_run, of).params)['discriminator/net/bias'], bias_of(before))
    monkeypatch.setattr(systems, 'make', lambda config: of)
    loaded = inference.load(first)
    assert 'discriminator' not in loaded.params and set(loaded.params) == set(before.ema)
    inference.save_weights(loaded, tmp_path / 'weights')
    from_weights = run(tmp_path / 'from_weights', of, lines=lines, init_from=tmp_path / 'weights', seed=5)
    assert f'starting from the weights in {tmp_path / "weights"}; discriminator not there: new' in lines
    assert not np.array_equal(bias_of(state(from_weights, of)), bias_of(before))
    for name, leaf in tree.flatten(state(from_weights, of).ema).items():  # one step of Adam moves by its rate at most
        assert np.max(np.abs(leaf - tree.flatten(before.ema)[name])) < 0.0101, name
    momentum = of._replace(init=lambda key, batch: of.init(key, batch).replace(opt_state={'other': jax.numpy.zeros(2)}))
    monkeypatch.setattr(loop, '_loop', lambda *args: None)
    run(tmp_path / 'other', momentum, lines=lines, init_from=first)
    assert f'starting from the weights in {first}; discriminator not there: new' in lines


def bias_of(found):
    return tree.flatten(found.params)['discriminator/net/bias']
