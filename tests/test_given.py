"""Models that a run is given, and what it takes from the folder it starts from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dummy_system import DATA, config, make

from t3d import systems
from t3d.checkpoint import store as stores
from t3d.checkpoint import weights
from t3d.core import config as configs
from t3d.core import tree
from t3d.core.errors import UsageError
from t3d.core.system import Given, TrainState, params_of, require
from t3d.inference import given as givens
from t3d.inference import loading
from t3d.train import loop

HALVES = {'data': 4, 'fsdp': 2, 'tensor': 1}


def taught():
    """The dummy whose targets come from a given model: y + given.teacher.bias."""
    inner = make()

    def train_step(state, batch, key, given):
        return inner.train_step(state, {**batch, 'y': batch['y'] + given['teacher']['bias']}, key)

    return inner._replace(train_step=train_step)


def teacher(value, folder=None):
    """A given model, kept in a weights folder if there is one."""
    params = {'bias': np.full(3, value, np.float32)}
    return {'teacher': Given(dict, params, configs.from_dict({'system': 'teacher'}), f'teacher {value}', givens.digest(params))}


@functools.cache
def system_with(part: str):
    """The dummy with one more part in its parameters that no step changes and that is not averaged."""
    inner = make()

    def init(key, batch, given):
        state = inner.init(key, batch)
        return state.replace(params={**state.params, part: {'net': {'bias': jax.random.normal(key, (3,))}}})

    def train_step(state, batch, key, given):
        alone = {name: value for name, value in state.params.items() if name != part}
        stepped, metrics = inner.train_step(state.replace(params=alone), batch, key)
        return stepped.replace(params={**stepped.params, part: state.params[part]}), metrics

    return inner._replace(init=init, train_step=train_step)


def state_of(workdir, of, given=None):
    """The newest state of a run, on one device."""
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.eval_shape(lambda: of.init(jax.random.key(0), None, given or {}))
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), target)
    store = stores.Store(workdir / 'checkpoints', read_only=True)
    try:
        return jax.device_get(store.restore(target).state)
    finally:
        store.close()


def run(workdir, of, steps=1, lines=None, **options):
    keys = ('init_from', 'given', 'stop_after')
    changes = {name: value for name, value in options.items() if name not in keys}
    options = {name: value for name, value in options.items() if name in keys}
    log = (lambda line: None) if lines is None else lines.append
    return loop.run(config(steps=steps, **changes), workdir, system=of, data=DATA, log=log, **options)


def test_a_given_model_is_an_argument_of_the_step_and_of_no_checkpoint(tmp_path):
    of = taught()
    for value, name in ((0.0, 'zero'), (0.5, 'half')):
        run(tmp_path / name, of, 3, given=teacher(value))
    zero, half = (tree.flatten(state_of(tmp_path / name, of).params) for name in ('zero', 'half'))
    plain = tree.flatten(state_of(run(tmp_path / 'plain', make(), 3), make()).params)
    for name in plain:
        np.testing.assert_array_equal(zero[name], plain[name])  # y + 0
    assert any(np.abs(zero[name] - half[name]).max() > 1e-4 for name in zero)
    assert set(stores.Store(tmp_path / 'half' / 'checkpoints', read_only=True).describe()[0]['leaves']) == set(
        stores.Store(tmp_path / 'plain' / 'checkpoints', read_only=True).describe()[0]['leaves']
    )


def test_a_resumed_run_with_a_given_model_has_the_bits_of_a_whole_one_and_other_devices_agree(tmp_path):
    of, given = taught(), teacher(0.5)
    run(tmp_path / 'whole', of, 4, given=given)
    run(tmp_path / 'parts', of, 4, given=given, stop_after=2)
    run(tmp_path / 'parts', of, 4, given=given)
    run(tmp_path / 'many', of, 4, given=given, mesh=HALVES)
    whole, parts, many = (state_of(tmp_path / name, of) for name in ('whole', 'parts', 'many'))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole.params, many.params)


def test_another_given_model_than_the_run_was_made_with_is_refused_by_name(tmp_path):
    of = taught()
    run(tmp_path / 'run', of, 2, given=teacher(0.5), stop_after=1)
    with pytest.raises(UsageError, match="given.teacher='teacher 0.7' .* is not what .*run was made with .*another --workdir"):
        run(tmp_path / 'run', of, 2, given=teacher(0.7))


def test_a_run_that_goes_on_meets_what_its_command_names_and_a_copy_that_was_changed_is_refused(tmp_path, monkeypatch):
    """The copy in the run's folder stands in for what is not there any more, and for nothing else."""
    of, lines = taught(), []
    begun = TrainState(jnp.int32(0), {'bias': jnp.zeros(3)}, {}, {}, {})
    alone = make()._replace(weights=('params',), init=lambda key, batch, given: begun)
    monkeypatch.setattr(systems, 'make', lambda config, given: of if config.system == 'dummy' else alone)
    for value in (0.5, 0.7):
        weights.save(tmp_path / f'{value}', teacher(value)['teacher'].params, {'system': 'teacher', 'steps': 1})
    options = {'data': DATA, 'log': lines.append}
    of_teacher = lambda value: config(steps=2, given={'teacher': str(tmp_path / f'{value}')})
    begin = lambda value, **more: loop.run(of_teacher(value), tmp_path / 'run', **options, **more)
    begin(0.5, stop_after=1)
    with pytest.raises(
        UsageError, match='is not what .*run was made with .*: give that one, given.teacher=.*run/given/teacher'
    ):
        begin(0.7)
    for name in weights.FILE, weights.CONFIG:
        (tmp_path / '0.5' / name).unlink()
    (tmp_path / '0.5').rmdir()
    begin(0.5)
    assert 'resuming from step 1' in lines and loading.load(tmp_path / 'run').step == 2
    weights.save(tmp_path / 'run' / 'given' / 'teacher', teacher(0.7)['teacher'].params, {'system': 'teacher', 'steps': 1})
    with pytest.raises(
        UsageError, match='is not what .*run was made with .*: copy the run again, or give that one with --given'
    ):
        loading.load(tmp_path / 'run')
    assert loading.load(tmp_path / 'run', given={'teacher': str(tmp_path / '0.7')}).step == 2


def test_a_copy_of_another_model_is_replaced(tmp_path):
    for value in (0.5, 0.7):
        givens.keep(tmp_path, teacher(value))
        assert givens.digest(weights.load(tmp_path / givens.FOLDER / 'teacher')[0]) == teacher(value)['teacher'].digest


def test_a_run_keeps_a_copy_of_a_given_model_of_its_own_format(tmp_path):
    run(tmp_path / 'run', taught(), given=teacher(0.5))
    kept, _ = weights.load(tmp_path / 'run' / givens.FOLDER / 'teacher')
    np.testing.assert_array_equal(kept['bias'], np.full(3, 0.5))
    assert givens.digest(kept) == teacher(0.5)['teacher'].digest != teacher(0.6)['teacher'].digest


def test_a_given_model_is_kept_with_the_models_that_it_is_given_itself(tmp_path):
    """The multi-view model that comes along has a prior: a run that keeps it opens the copy to the same arrays."""
    config = configs.from_dict({'system': 'any', 'given': {'prior': 'mvdiffusion-toy'}})
    opened = loading.open_given(config)
    givens.keep(tmp_path, opened)
    again = loading.open_given(config, tmp_path)
    assert again['prior'].digest == opened['prior'].digest and list(again['prior'].given) == ['prior']
    jax.tree.map(np.testing.assert_array_equal, again['prior'].params, opened['prior'].params)
    place = tmp_path / givens.FOLDER / 'prior'
    written = (place / weights.FILE).stat().st_mtime_ns
    givens.keep(tmp_path, again)
    assert (place / weights.FILE).stat().st_mtime_ns == written and (place / givens.FOLDER / 'prior' / weights.FILE).exists()


def test_a_given_that_is_missing_of_another_kind_or_without_weights():
    with pytest.raises(UsageError, match='given.prior is missing: wanted a prior. Set given.prior=NAME or FOLDER.'):
        require({}, 'prior', dict, 'a prior')
    with pytest.raises(UsageError, match="given.teacher='teacher 1' is a type, not a dict: wanted a prior"):
        require(teacher(1), 'teacher', dict, 'a prior')
    abstract = {'teacher': Given(dict, {'bias': jax.ShapeDtypeStruct((3,), jnp.float32)}, None, 'configs/x.py:tiny')}
    with pytest.raises(UsageError, match="given.teacher='configs/x.py:tiny' is a config, which has no weights: train it"):
        givens.require_weights(abstract)
    with pytest.raises(FileNotFoundError, match="given.prior='nowhere': missing weights: nowhere does not exist"):
        loading.open_one('prior', 'nowhere')
    with pytest.raises(UsageError, match="unknown given of dummy 'priro'. Did you mean 'prior'"):
        loading.open_given(configs.from_dict({'system': 'dummy', 'given': {'prior': ''}}), None, {'priro': 'x'})
    for word in ('prior', 'prior=', '=x'):
        with pytest.raises(UsageError, match='wanted NAME=MODEL'):
            givens.parse([word])
    assert givens.parse(['prior=a=b']) == {'prior': 'a=b'} and params_of(teacher(1))['teacher']['bias'][0] == 1.0


def test_a_start_from_weights_whose_numbers_mean_something_else_is_refused(tmp_path):
    render = {'plane_axes': 'legacy', 'box_warp': 1.6, 'samples': 8}
    bias = {'net': {'bias': np.ones(3, np.float32)}}
    weights.save(tmp_path / 'there', bias, {'system': 'dummy', 'render': render})
    match = ('render.plane_axes', 'render.box_warp')
    begin = lambda name, **other: run(
        tmp_path / name, make(), init_from=tmp_path / 'there', render={**render, **other}, must_match=match
    )
    with pytest.raises(
        UsageError, match="trained with render.plane_axes=legacy, this config has render.plane_axes='orthogonal'"
    ):
        begin('a', plane_axes='orthogonal')
    with pytest.raises(UsageError, match='set render.box_warp=1.6'):
        begin('b', box_warp=2.0)
    with pytest.raises(UsageError, match='do not fit dummy with this config'):  # it goes on to the arrays
        begin('c', samples=16)
    assert [path.name for path in tmp_path.iterdir()] == ['there']  # no folder was made


def test_a_start_from_averages_without_a_discriminator(tmp_path, monkeypatch):
    """A run folder has the discriminator, a weights folder has not; another optimizer's state cannot be read."""
    of, lines = system_with('discriminator'), []
    first = run(tmp_path / 'first', of)
    before = state_of(first, of)
    from_run = run(tmp_path / 'from_run', of, lines=lines, init_from=first, seed=5)
    assert f'starting from the weights in {first}' in lines
    np.testing.assert_array_equal(tree.flatten(state_of(from_run, of).params)['discriminator/net/bias'], bias_of(before))
    monkeypatch.setattr(systems, 'make', lambda config, given: of)
    loaded = loading.load(first)
    assert 'discriminator' not in loaded.weights and set(loaded.weights) == set(before.ema)
    loading.save_weights(loaded, tmp_path / 'weights')
    from_weights = run(tmp_path / 'from_weights', of, lines=lines, init_from=tmp_path / 'weights', seed=5)
    assert f'starting from the weights in {tmp_path / "weights"}; discriminator not there: new' in lines
    assert not np.array_equal(bias_of(state_of(from_weights, of)), bias_of(before))
    for name, leaf in tree.flatten(state_of(from_weights, of).ema).items():  # one step of Adam moves by its rate at most
        assert np.max(np.abs(leaf - tree.flatten(before.ema)[name])) < 0.0101, name
    other = lambda key, batch, given: of.init(key, batch, given).replace(opt_state={'other': jax.numpy.zeros(2)})
    monkeypatch.setattr(loop, '_loop', lambda *args: None)
    run(tmp_path / 'other', of._replace(init=other), lines=lines, init_from=first)
    assert f'starting from the weights in {first}; discriminator not there: new' in lines


def bias_of(state):
    return tree.flatten(state.params)['discriminator/net/bias']
