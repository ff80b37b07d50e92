"""The soak: its checks fail where they should; a small form of it holds (slow)."""

import argparse
import json
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_gan import batch, config, state, step

from launch import soak, soak_witness
from t3d import systems
from t3d.core.errors import UsageError

STEPS = 6


@pytest.fixture
def two(tmp_path):
    """A soak with the metrics of two runs, `change(records)` of the second before they are written."""

    def make(change=lambda records: records):
        made = soak.Soak(argparse.Namespace(seed=0, minutes=1.0, steps=STEPS), tmp_path)
        records = [{'step': step, 'loss': 1.0 / step, 'data/order': 7.0 * step} for step in range(1, STEPS + 1)]
        for name, some in (('whole', records), ('same', change([dict(record) for record in records]))):
            (tmp_path / name).mkdir()
            (tmp_path / name / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, some)) + '\n{"cut')
        return made

    return make


def test_equal_runs_pass(two):
    assert soak.same_steps(two(), 'same') == 0.0


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (lambda records: records[:3] + records[4:], 'steps .4. are lost or too many'),
        (lambda records: records[:4] + records[3:], 'step 4 is in metrics.jsonl twice'),
        (lambda records: [*records[:-1], records[-1] | {'data/order': 1.0}], 'other records at step 6'),
    ],
)
def test_what_is_lost_repeated_or_another_fails(two, change, says):
    with pytest.raises(soak.Failed, match=says):
        soak.same_steps(two(change), 'same')


def test_losses_that_differ_are_measured(two):
    assert soak.same_steps(two(lambda records: [records[0] | {'loss': 1.001}, *records[1:]]), 'same') == pytest.approx(1e-3)


def test_a_loss_that_is_no_number_passes_no_tolerance(two):
    far = soak.same_steps(two(lambda records: [*records[:-1], records[-1] | {'loss': float('nan')}]), 'same')
    assert not far <= 1.0


def test_the_witness_sees_other_rows_another_order_and_no_devices():
    random = np.random.default_rng(0)
    batch = {
        'image': random.integers(0, 256, (8, 4, 4, 3), np.uint8),
        'tokens': random.integers(0, 50, (8, 5), np.int32),
        'x': random.normal(size=(8, 3)).astype(np.float32),
    }
    said = float(soak_witness.order(jax.tree.map(jnp.asarray, batch)))
    assert said == int(said) and 0 <= said < 2**24
    changes = [jax.tree.map(lambda leaf: leaf[::-1], batch), jax.tree.map(lambda leaf: np.roll(leaf, 1, 0), batch)]
    changes += [
        batch | {'x': np.nextafter(batch['x'], np.float32(9))},
        batch | {'tokens': batch['tokens'] + (np.arange(5) == 2)},
    ]
    swapped = batch['image'].copy()
    swapped[[2, 5]] = swapped[[5, 2]]
    seen = {float(soak_witness.order(jax.tree.map(jnp.asarray, one))) for one in [*changes, batch | {'image': swapped}]}
    assert len(seen | {said}) == 6
    mesh = jax.make_mesh((4,), ('data',), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(batch, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data')))
    assert float(jax.jit(soak_witness.order)(spread)) == said


def test_a_system_is_trained_as_without_its_witness(monkeypatch):
    monkeypatch.setenv(soak_witness.WITNESSED, 'ganfusion_gan')
    plain, other = config(), config().copy_and_resolve_references()
    other.unlock().system = 'launch.soak_witness'
    key = jax.random.key(2)
    wanted, measured = step()(state(), batch(), key)
    found, told = jax.jit(systems.make(other.lock()).train_step)(state(), batch(), key)
    jax.tree.map(np.testing.assert_array_equal, wanted, found)
    assert set(told) - set(measured) == {'data/order'} and plain.system == 'ganfusion_gan'


def test_a_system_that_does_not_say_its_batches_fails(two):
    def silent(records):
        return [{key: value for key, value in record.items() if key != 'data/order'} for record in records]

    with pytest.raises(soak.Failed, match='does not say which batches it saw'):
        soak.same_steps(two(silent), 'same')


def test_what_fails_first_is_told_beside_what_fails_after_it(monkeypatch, tmp_path, capsys):
    """`same` ends with another number, `turns` with a damaged checkpoint, a changed byte is loaded: all three are said."""
    ran = []

    def run(self, name, interrupted, last=2):
        ran.append((name, len(interrupted)))
        return len(interrupted)

    monkeypatch.setattr(soak.Soak, 'run', run)
    monkeypatch.setattr(soak, 'target_of', lambda folder: None)
    monkeypatch.setattr(soak, 'same_steps', lambda made, name: 0.0)

    def state_of(folder, target, step=None):
        if folder.parent.name == 'turns':
            raise UsageError('no checkpoint loads')
        return {'a': np.float32([1.0, 2.0 + (folder.parent.name == 'same')])}

    def flips(made, folders, target):
        raise soak.Failed('byte 3 was changed')

    monkeypatch.setattr(soak, 'state_of', state_of)
    monkeypatch.setattr(soak, 'flips', flips)
    (tmp_path / 'alone-local' / 'run' / '0-of-1').mkdir(parents=True)
    assert soak.main(['--kills', '2', '--turns', '3', '--out', str(tmp_path)]) == 1
    said = json.loads(capsys.readouterr().out)
    assert ran == [('whole', 0), ('same', 2), ('turns', 3), ('alone', 1)]
    assert said['same_state'] == 0.5 and said['same_bit_equal'] == 0
    assert [text.split(':')[0] for text in said['wrong']] == ['same', 'no checkpoint loads', 'byte 3 was changed']


def test_a_soak_without_its_faults_fails(monkeypatch, tmp_path, capsys):
    """Every run is equal to `whole`, but one kill in two met nothing, as all of `turns` and `alone`."""
    met = {'whole': 0, 'same': 1, 'turns': 0, 'alone': 0}
    monkeypatch.setattr(soak.Soak, 'run', lambda self, name, interrupted, last=2: met[name])
    monkeypatch.setattr(soak, 'target_of', lambda folder: None)
    monkeypatch.setattr(soak, 'same_steps', lambda made, name: 0.0)
    monkeypatch.setattr(soak, 'state_of', lambda folder, target, step=None: {'a': np.float32([1.0])})
    assert soak.main(['--kills', '2', '--turns', '3', '--out', str(tmp_path)]) == 1
    said = json.loads(capsys.readouterr().out)
    assert [text.partition(' interruptions')[0] for text in said['wrong']] == ['same: 1 of 2', 'turns: 0 of 3', 'alone: 0 of 1']
    assert said['same_state'] == said['turns_state'] == 0.0


LIVES, ENDS = "trap 'exit 0' TERM; echo; while :; do sleep 0.02; done", 'echo'


@pytest.mark.parametrize(
    ('scripts', 'told', 'saved', 'counts'),
    [
        ([LIVES, LIVES, ENDS], [6, 7], False, {'SIGKILL': 1, 'SIGTERM': 1}),
        ([ENDS, ENDS, ENDS], [12], True, {'SIGKILL': 0, 'SIGTERM': 0}),  # faster than any signal
        ([ENDS, ENDS, ENDS], [1], True, {'SIGKILL': 0, 'SIGTERM': 0}),  # ended before the step was told of
        ([LIVES, ENDS, ENDS], [6, 7], False, {'SIGKILL': 1, 'SIGTERM': 0}),  # the second signal comes after the end
        ([LIVES, LIVES, ENDS], [6, 7], True, {'SIGKILL': 0, 'SIGTERM': 0}),  # all was saved before the signals
    ],
)
def test_only_signals_that_meet_a_living_unfinished_run_are_counted(tmp_path, scripts, told, saved, counts):
    made, left = soak.Soak(argparse.Namespace(seed=0, minutes=1.0, steps=12), tmp_path), list(scripts)
    (tmp_path / 'same' / 'checkpoints').mkdir(parents=True)
    if saved:
        (tmp_path / 'same' / 'checkpoints' / f'{12:08d}').mkdir()

    def start(name, count):
        script = left.pop(0)
        process = subprocess.Popen(['sh', '-c', script], stdout=subprocess.PIPE)
        process.stdout.readline()  # it has its trap
        if told:
            with open(tmp_path / 'same' / 'metrics.jsonl', 'a') as file:
                file.write(json.dumps({'step': told.pop(0)}) + '\n')
        if script == ENDS:
            process.wait()
        return [process]

    made.start = start
    assert made.run('same', [1, 1], last=1) == sum(counts.values())
    assert made.counts == {'starts': 0, **counts} and not left


def test_states_are_compared_leaf_by_leaf():
    state = {'a': np.float32([1.0, -4.0]), 'b': np.float32([0.5]), 'c': np.zeros((0, 3))}
    assert soak.apart(state, state) == 0.0
    assert soak.apart(state, state | {'a': np.float32([1.5, -4.0])}) == pytest.approx(0.5 / 4.0)
    assert soak.apart(state, state | {'b': np.float32([0.75])}) == pytest.approx(0.25)
    assert np.isnan(soak.apart(state, state | {'b': np.float32([np.nan])}))


@pytest.mark.slow
def test_a_small_soak(tmp_path):
    words = ['--set', 'delay=0.03', '--steps', '16', '--kills', '2', '--turns', '3', '--every', '5', '--local-every', '2']
    assert soak.main([*words, '--flips', '12', '--minutes', '40', '--out', str(tmp_path)]) == 0
