"""The loop: exact resume, interruptions, run folders, and what it refuses."""

import json
import os
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dummy_system import DATA, Source, config, make, transform

from t3d import cli, systems
from t3d.checkpoint import store as stores
from t3d.checkpoint import weights
from t3d.core import config as configs
from t3d.core import errors, tree
from t3d.core.errors import NonFinite
from t3d.data import pipeline, sources
from t3d.parallel import agreement, devices
from t3d.train import failures, loop, states, workdirs


def run(workdir, *, steps=6, system=None, log=lambda line: None, data=DATA, stop_after=None, init_from=None, **changes):
    options = {'system': system or make(), 'data': data, 'log': log, 'stop_after': stop_after, 'init_from': init_from}
    return loop.run(config(steps=steps, **changes), workdir, **options)


def state(workdir, step=None):
    """The checkpointed state, on one device."""
    store, system = stores.Store(workdir / 'checkpoints', read_only=True), make()
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        jax.eval_shape(lambda: system.init(jax.random.key(0), None)),
    )
    try:
        return jax.device_get(store.restore(target, step).state)
    finally:
        store.close()


def metrics(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A run of 6 steps without interruption."""
    lines = []
    workdir = run(tmp_path_factory.mktemp('whole') / 'run', log=lines.append)
    return workdir, lines


def test_run_folder_and_lines(whole):
    workdir, lines = whole
    assert {path.name for path in workdir.iterdir()} == {
        'config.json',
        'command.txt',
        'environment.json',
        'log.txt',
        'metrics.jsonl',
        'goodput.jsonl',
        'tensorboard',
        'checkpoints',
        'previews',
    }
    assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == ['00000002', '00000004', '00000006']
    assert [path.name for path in (workdir / 'previews').iterdir()] == ['00000006.png']
    assert [record['step'] for record in metrics(workdir)] == [2, 4, 6]
    assert lines[0].startswith('devices: 8 x CPU (no accelerator found)') and lines[1] == 'compiling train_step ...'
    assert lines[2].startswith('compiled train_step in ') and lines[3].startswith('step 2/6   33%  eta')
    assert 'ray/s' in lines[3] and '(fit ' in lines[3]
    environment = json.loads((workdir / 'environment.json').read_text())
    assert environment['packages']['jax'] == jax.__version__ and len(environment['devices']) == 8
    assert metrics(workdir)[-1]['loss'] < metrics(workdir)[0]['loss']


@pytest.mark.parametrize('stops', [(2, 3), (5,)], ids=str)
def test_interrupted_equals_uninterrupted_exactly(whole, tmp_path, stops):
    for stop in stops:
        run(tmp_path / 'run', stop_after=stop)
    run(tmp_path / 'run')
    chex.assert_trees_all_equal(state(tmp_path / 'run'), state(whole[0]))
    losses = lambda workdir: {record['step']: record['loss'] for record in metrics(workdir)}
    assert losses(tmp_path / 'run')[6] == losses(whole[0])[6] or len(stops) == 1  # the window before 6 may be shorter


def test_a_run_of_two_kinds_of_steps_goes_on_with_the_kind_that_was_due(tmp_path):
    kinds, plain, other = (0, 1, 1, 0, 1, 0), make(), make(rate=1e-3)
    system = plain._replace(other_steps=(other.train_step,), choose=kinds.__getitem__)
    for folder, stops in (('whole', ()), ('parts', (2,))):
        for stop in (*stops, None):
            run(tmp_path / folder, system=system, log_every=1, stop_after=stop)
    chex.assert_trees_all_equal(state(tmp_path / 'parts'), state(tmp_path / 'whole'))
    rates = [record['lr'] for record in metrics(tmp_path / 'parts')]
    np.testing.assert_allclose(rates, [(1e-2, 1e-3)[kind] for kind in kinds])


@pytest.mark.parametrize('mesh', [(2, 1), (1, 8), (2, 4)], ids=str)
def test_resumes_on_another_mesh(whole, tmp_path, mesh):
    run(tmp_path / 'run', stop_after=4)
    run(tmp_path / 'run', mesh={'data': mesh[0], 'fsdp': mesh[1], 'tensor': 1})
    for name, leaf in tree.flatten(state(tmp_path / 'run').params).items():
        other = tree.flatten(state(whole[0]).params)[name]
        assert np.max(np.abs(leaf - other)) <= 1e-5 * np.max(np.abs(other)), name


def test_finished_run_does_nothing_and_more_steps_go_on(whole, tmp_path):
    lines = []
    run(tmp_path / 'run', steps=2)
    run(tmp_path / 'run', steps=2, log=lines.append)
    assert lines[-1] == 'nothing to do: 2 of 2 steps are finished'
    run(tmp_path / 'run', steps=3, log=lines.append)
    assert 'resuming from step 2' in lines and int(state(tmp_path / 'run').step) == 3


def test_traces_once_and_transfers_nothing_implicitly(tmp_path, monkeypatch):
    chex.clear_trace_counter()
    system = make()
    counted = chex.assert_max_traces(system.train_step, n=1)
    inner = loop._loop

    def guarded(*args):
        with jax.transfer_guard('disallow'):
            inner(*args)

    monkeypatch.setattr(loop, '_loop', guarded)
    programs = []
    first = loop.Program._first
    ahead = []

    def seen(self, *args):
        programs.append(self)
        ahead.append(self._ahead)
        return first(self, *args)

    monkeypatch.setattr(loop.Program, '_first', seen)
    run(tmp_path / 'run', system=system._replace(train_step=counted))
    assert programs[0].step._cache_size() == 1 and ahead[0].result() > 0.0
    chex.clear_trace_counter()


def test_the_first_step_finds_what_was_compiled_ahead():
    settings, system, mesh = configs.from_dict(config()), make(), devices.make({'data': 1})
    target = states.abstract(settings, system, mesh)
    program = loop.Program(settings, system, mesh, target)
    program.compile_ahead()
    state, batch = states.fresh(settings, system, target), next(pipeline.make(*DATA, batch=settings.batch, seed=0))
    assert program._ahead.result() > 0.0
    compiled = []
    mine = threading.current_thread()
    note = lambda name, *_, **__: compiled.append(name) if threading.current_thread() is mine else None
    jax.monitoring.register_event_duration_secs_listener(note)
    with jax.set_mesh(mesh):
        state, _ = program(state, batch)
    seen = [name for name in compiled if 'compile' in name]  # the listener stays: look before anything else compiles
    assert seen == [] and int(state.step) == 1


def test_a_failure_ahead_is_told_and_tried_again(tmp_path):
    system, lines, calls = make(), [], []

    def flaky(*args):
        calls.append(0)
        if len(calls) == 1:
            raise RuntimeError('no room beside the init')
        return system.train_step(*args)

    run(tmp_path / 'run', steps=2, system=system._replace(train_step=flaky), log=lines.append)
    assert 'compiling train_step again, after RuntimeError: no room beside the init' in lines
    assert len(calls) == 2 and int(state(tmp_path / 'run').step) == 2


def test_non_finite_loss_names_part_step_and_checkpoint(tmp_path):
    with pytest.raises(NonFinite) as error:
        run(tmp_path / 'run', steps=50, system=make(poison=8), log_every=5)
    text = str(error.value)
    assert text.startswith('loss/fit is nan at step 8 (first bad step); last good checkpoint: step 6 in ')
    assert 'lower optimizer.learning_rate' in text and f'--init-from {tmp_path / "run"}` starts' in text
    assert stores.Store(tmp_path / 'run' / 'checkpoints', read_only=True).latest() == 6
    with pytest.raises(NonFinite, match='at step 1 .*no checkpoint was saved before'):
        run(tmp_path / 'other', system=make(poison=1))


def test_a_state_that_is_not_finite_under_a_finite_loss(tmp_path):
    plain = make()

    def train_step(state, batch, key, given):
        new, metrics = plain.train_step(state, batch, key)
        return new.replace(ema=jax.tree.map(lambda x: jnp.where(new.step == 4, jnp.nan, x), new.ema)), metrics

    with pytest.raises(NonFinite) as error:
        run(tmp_path / 'run', system=plain._replace(train_step=train_step), checkpoint={'every': 2, 'keep': 3})
    text = errors.line(error.value)
    assert text.startswith(
        'not saved: NaN or infinity in ema/layer_in/bias, ema/layer_in/kernel, ema/layer_out/bias and 1 more'
    )
    assert f'at step 4; last good checkpoint: step 2 in {tmp_path / "run" / "checkpoints"}. Train in another --workdir' in text
    # what it says to do
    new = run(tmp_path / 'new', steps=1, init_from=tmp_path / 'run', optimizer={'learning_rate': 1e-3})
    assert int(state(new).step) == 1


def test_workdir_of_another_config_is_refused(whole, tmp_path):
    with pytest.raises(ValueError) as error:
        run(whole[0], seed=2, batch=32, system=make(batch=32))
    assert '  batch: 16 there, 32 given\n  seed: 1 there, 2 given\n' in str(error.value)
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(ValueError, match='holds notes.txt but no config.json: it is no run'):
        run(tmp_path)


def test_batch_that_does_not_divide(tmp_path):
    with pytest.raises(ValueError, match='batch 12 is not divisible by the 8 .*set batch=8 or 16'):
        run(tmp_path / 'run', batch=12, mesh={'data': -1})
    assert not (tmp_path / 'run').exists()


def test_numbered_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'runs' / '0006-x').mkdir(parents=True)
    named = configs.from_dict(config(name='a corgi in a spacesuit'))
    assert str(workdirs.number(named)) == 'runs/0007-dummy-a_corgi_in_a_spacesuit'
    assert str(run(None, steps=1)) == 'runs/0007-dummy-test'
    assert workdirs.number(configs.from_dict(config())).name == '0008-dummy-test'


def test_weights_of_another_run_to_start_from(whole, tmp_path):
    stored = state(whole[0]).ema
    weights.save(tmp_path / 'weights', stored, config())
    for folder in (whole[0], tmp_path / 'weights'):
        lines = []
        changes = {'steps': 1, 'seed': 5, 'mesh': {'data': 2, 'fsdp': 4}}
        new = run(tmp_path / f'from_{folder.name}', init_from=folder, log=lines.append, **changes)
        assert f'starting from the weights in {folder}' in lines
        moved = state(new)
        assert int(moved.step) == 1
        for name, leaf in tree.flatten(moved.params).items():  # one step of Adam moves by the learning rate at most
            assert np.max(np.abs(leaf - tree.flatten(stored)[name])) < 0.0101, name
    assert 'leaves sharded' in (new / 'sharding.txt').read_text() and 'layer_in/kernel' in (new / 'sharding.txt').read_text()


def test_out_of_memory_says_what_to_halve():
    error = RuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 3 GiB')
    text = str(failures.out_of_memory(error, configs.from_dict(config(mesh={'data': -1}))))
    assert 'Set one of batch=8 (now 16), dtype=bfloat16, mesh.fsdp=<devices>' in text
    assert failures.out_of_memory(RuntimeError('INTERNAL'), configs.from_dict(config())) is None


def test_labels_of_the_preview(tmp_path, monkeypatch):
    seen = {}

    def sheet(rows, labels, title):
        seen.update(rows=rows, labels=labels, title=title)
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(loop.sheets, 'sheet', sheet)
    batch = {'x': np.zeros((16, 8), np.float32), 'y': np.zeros((16, 3), np.float32)}
    run(tmp_path / 'run', steps=1, data=(*DATA, (batch, [f'caption {n}' for n in range(16)])))
    assert seen['rows'].shape == (4, 8, 8, 3) and seen['labels'] == [f'caption {n}' for n in range(4)]
    assert seen['title'] == 'step 1'


def test_errors_of_the_data_reach_the_user(tmp_path):
    class Truncated(Source):
        def __getitem__(self, i):
            raise EOFError('file ended')

    with pytest.raises(ValueError, match='record .* file ended.*truncated'):
        run(tmp_path / 'run', data=(Truncated(), transform))


def fail(error):
    """A function that raises it."""

    def function(*_, **__):
        raise error

    return function


def test_command_line(tmp_path, monkeypatch, capsys):
    from launch import train
    from t3d.commands import train as commands_train

    finished = []
    monkeypatch.setattr(commands_train, 'finish', lambda *words: finished.append(words))
    (tmp_path / 'small.py').write_text(f'def get_config(variant=""):\n    return {config()!r}\n')
    monkeypatch.setattr(systems, 'make', lambda config, given=None: make(batch=config.batch))
    monkeypatch.setattr(systems, 'module', lambda name: None)
    monkeypatch.setattr(sources, 'resolve', lambda config: config)
    monkeypatch.setattr(sources, 'make', lambda *args: DATA)
    monkeypatch.setattr(sources, 'preview', lambda config, spec: None)
    command = ['--config', str(tmp_path / 'small.py'), '--workdir', str(tmp_path / 'run')]
    command += ['--config.steps=2', '--config.batch', '8']
    assert train.main(command) == 0
    stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
    assert (stored['steps'], stored['batch']) == (2, 8) and 'step 2/2' in capsys.readouterr().out
    assert [(os.fspath(workdir), prompts) for workdir, prompts in finished] == [(str(tmp_path / 'run'), [])]  # as `t3d train`
    assert train.main([*command, '--config.seed=9']) == 2
    assert 'error: workdir' in (text := capsys.readouterr().err) and 'seed: 1 there, 9 given' in text
    small, empty = ['--config', str(tmp_path / 'small.py')], ['--config', str(tmp_path / 'none.py')]
    (tmp_path / 'none.py').write_text('import nothing_here\n')
    (tmp_path / 'file').write_text('')
    for words, fault, message in (
        ([*small, '--config.stps=3'], None, "unknown config key 'stps'. Did you mean 'steps'?"),
        (empty, None, f"{tmp_path / 'none.py'}, line 1: ModuleNotFoundError: No module named 'nothing_here'"),
        (
            [*small, '--workdir', str(tmp_path / 'file' / 'run')],
            None,
            f'--workdir {tmp_path / "file" / "run"}: {tmp_path / "file"} is a file',
        ),
        (small, PermissionError(13, 'Permission denied', '/data'), 'Permission denied: /data'),
        (small, RuntimeError("Unable to initialize backend 'cuda': none"), "Unable to initialize backend 'cuda': none"),
        (small, errors.NonFinite('not saved: NaN'), 'not saved: NaN'),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(sources, 'resolve', fail(fault) if fault else lambda config: config)
            assert train.main(words) == cli.main(['train', words[1], *(w.removeprefix('--config.') for w in words[2:])]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].startswith(f'error: {message}') and lines == [lines[0]] * 2, lines  # as `t3d train`
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match='a fault of ours'):
        patch.setattr(sources, 'resolve', fail(RuntimeError('a fault of ours')))
        train.main(small)
    monkeypatch.setattr(loop, 'run', lambda *words, **options: tmp_path / 'run')
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(agreement, 'gathered', lambda mine: np.int32([mine, mine]))
    assert train.main(command) == 0 and f'`t3d eval {tmp_path / "run"}`' in capsys.readouterr().out
    assert len(finished) == 1  # several processes leave their devices
