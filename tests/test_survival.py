"""What a run outlives: a kill between two saves, a lost or damaged tier, a peer that hangs; and what its time went to."""

import contextlib
import json
import shutil
import signal

import chex
import jax
import pytest
from dummy_system import Source, config, make, transform

from t3d.checkpoint import store as stores
from t3d.checkpoint import tiers
from t3d.core.errors import UsageError
from t3d.train import goodput, loop, watch

pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


class Killed(Exception):
    """What stands for a SIGKILL: nothing of the loop's own end runs for it."""


def run(folder, tier, *, killed_at=None, every=100, steps=6):
    """The lines of a run that saves in the local tier at every step and dies when step `killed_at` is to be saved."""
    lines = []

    def log(line):
        lines.append(line)
        if line.startswith(f'step {killed_at}/'):
            raise Killed

    kept = {'every': every, 'keep': 3, 'best': '', 'local': str(tier), 'local_every': 1}
    with contextlib.suppress(Killed):
        loop.run(config(steps=steps, log_every=1, checkpoint=kept), folder, system=make(), data=(Source(), transform), log=log)
    return lines


def target():
    """The shapes of a state, on one device."""
    system, where = make(), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: system.init(jax.random.key(0), None))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes)


def final(folder, step=None):
    store = stores.Store(folder / 'checkpoints', read_only=True)
    try:
        return jax.device_get(store.restore(target(), step).state)
    finally:
        store.close()


def local(tier):
    """The steps of the local tier: {step: folder}."""
    return {int(path.name): path for path in tier.glob('*/0-of-1/*') if path.name.isdigit()}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The final state of a run without interruption."""
    root = tmp_path_factory.mktemp('whole')
    run(root / 'run', root / 'tier')
    assert not local(root / 'tier')  # a run that has ended leaves nothing there
    return final(root / 'run')


@pytest.fixture(scope='module')
def dead_run(tmp_path_factory):
    """A run that saved step 3 in its folder, steps 2 and 4 in the local tier, and died at step 5."""
    root = tmp_path_factory.mktemp('dead')
    run(root / 'run', root / 'tier', killed_at=5, every=3)
    return root


@pytest.fixture
def dead(dead_run, tmp_path):
    """Copies of (run folder, local tier) to go on with."""
    return shutil.copytree(dead_run / 'run', tmp_path / 'run'), shutil.copytree(dead_run / 'tier', tmp_path / 'tier')


def damage(folder):
    """Changes every second byte of the arrays of a step; single bytes may be unused ones (launch/soak.py tries those)."""
    for path in (path for path in (folder / 'state').rglob('d/*') if path.is_file()):
        path.write_bytes(bytes(byte ^ (n % 2) for n, byte in enumerate(path.read_bytes())))


def test_the_newest_step_of_either_tier_is_used(dead, whole):
    folder, tier = dead
    assert sorted(local(tier)) == [2, 4]
    lines = run(folder, tier, every=3)
    assert 'resuming from step 4' in lines and not any('local tier' in line for line in lines)
    chex.assert_trees_all_equal(final(folder), whole)
    steps = [json.loads(line)['step'] for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    spent = goodput.read(folder / goodput.NAME)
    assert spent.starts == 2 and spent.repeated == 1 and spent.seconds['step'] > 0.0 < spent.seconds['checkpoint']


def test_a_tier_that_is_gone_is_one_line_and_the_run_folder_goes_on(dead, whole):
    folder, tier = dead
    shutil.rmtree(tier)
    lines = run(folder, tier, every=3)
    (said,) = [line for line in lines if 'local tier' in line]
    assert said.startswith('local tier: no checkpoint of a run of 1 processes in ') and said.endswith('from the run folder')
    assert 'resuming from step 3' in lines
    chex.assert_trees_all_equal(final(folder), whole)


def test_damaged_steps_are_passed_over_and_saved_again(dead, whole):
    folder, tier = dead
    damage(local(tier)[4])
    damage(folder / 'checkpoints' / '00000003')
    lines = run(folder, tier, every=3)
    assert [line.split(':')[0] for line in lines if 'passed over' in line] == [f'step {n} is passed over' for n in (4, 3)]
    assert 'resuming from step 2' in lines
    assert {path.name for path in (folder / 'checkpoints').iterdir()} == {'00000003', '00000003.not-loaded', '00000006'}
    chex.assert_trees_all_equal(final(folder), whole)
    assert int(final(folder, 3).step) == 3


@pytest.mark.parametrize('bit', range(8))
@pytest.mark.parametrize('good', [3, 2])
def test_a_changed_bit_of_the_format_is_damage_and_no_newer_format(dead, good, bit):
    """In the newest step of the local tier, and in that of the run folder too: the step before is used."""
    folder, tier = dead
    (place,) = tier.glob('*/0-of-1')
    for step in (place / '00000004', folder / 'checkpoints' / '00000003')[: 4 - good]:
        path = step / 'meta' / 'metadata'
        before, word, after = path.read_bytes().partition(b'"format": 2')
        assert word, before
        path.write_bytes(before + word[:-1] + bytes([word[-1] ^ 1 << bit]) + after)
    both = [stores.Store(place, local=True), stores.Store(folder / 'checkpoints')]
    lines = []
    assert tiers.meta(both)['step'] == good
    assert int(tiers.restore(both, target(), lines.append).state.step) == good
    assert [line.split(':')[0] for line in lines] == [f'step {step} is passed over' for step in range(4, good, -1)]
    for store in both:
        store.close()


def test_where_nothing_loads_the_run_stops_and_says_why(dead):
    folder, tier = dead
    for step in (*local(tier).values(), folder / 'checkpoints' / '00000003'):
        damage(step)
    before = (folder / 'metrics.jsonl').read_bytes()
    with pytest.raises(
        stores.CorruptCheckpoint, match='nothing to go on from: .* loads on all processes. .*00000004 .*--workdir'
    ):
        run(folder, tier, every=3)
    assert (folder / 'metrics.jsonl').read_bytes() == before
    shutil.rmtree(tier)  # the same with the run folder alone
    with pytest.raises(stores.CorruptCheckpoint, match='nothing to go on from: .*00000003'):
        run(folder, tier, every=3)
    shutil.rmtree(folder / 'checkpoints')
    with pytest.raises(UsageError, match='is at step 5 by its metrics.jsonl, but .* holds no checkpoint'):
        run(folder, tier, every=3)


def test_a_local_tier_serves_its_own_run_alone(dead):
    folder, tier = dead
    lines = run(folder.parent / 'other', tier, killed_at=1)
    assert not any('resuming' in line for line in lines) and len(list(tier.iterdir())) == 2
    (folder / tiers.TOKEN).write_text('../../elsewhere\n')  # a damaged name is no name: a new one
    assert 'resuming from step 3' in run(folder, tier, every=3)
    with pytest.raises(UsageError, match='checkpoint.local=.gs://b/x.: wanted a folder of this machine'):
        run(folder.parent / 'bucket', 'gs://b/x')
    (tier / 'file').write_text('')
    with pytest.raises(UsageError, match='checkpoint.local=.*file.*Name a folder that every process can write to'):
        run(folder.parent / 'file', tier / 'file')


def test_sigterm_saves_locally_first(tmp_path):
    lines, order = [], []
    kept = {'every': 100, 'keep': 3, 'best': '', 'local': str(tmp_path / 'tier'), 'local_every': 50}

    def log(line):
        lines.append(line)
        if line.startswith('step  2/'):
            signal.raise_signal(signal.SIGTERM)
        if 'is saved in the local tier' in line:
            order.extend((sorted(local(tmp_path / 'tier')), (tmp_path / 'run' / 'checkpoints').exists() and list_steps()))

    list_steps = lambda: [path.name for path in (tmp_path / 'run' / 'checkpoints').iterdir() if path.name.isdigit()]
    settings = config(steps=50, log_every=2, checkpoint=kept)
    loop.run(settings, tmp_path / 'run', system=make(), data=(Source(), transform), log=log)
    (step,) = order[0]
    assert order[1] == [] and list_steps() == [f'{step:08d}']
    assert f'step {step} is saved in the local tier; the run folder comes next' in lines


def test_goodput_by_hand(tmp_path):
    """Two starts; the second goes on from step 15, though the first had come to 25: 10 steps ran twice."""
    records = [
        {'start': '', 'time': 100.0, 'step': 0},
        {'time': 108.0, 'step': 10, 'seconds': {'startup': 2.0, 'compile': 1.0, 'step': 5.0}},
        {'time': 119.0, 'step': 20, 'seconds': {'step': 10.0, 'data': 1.0}},
        {'time': 124.0, 'step': 25, 'seconds': {'step': 3.0, 'checkpoint': 2.0}},
        {'start': '', 'time': 131.0, 'step': 15},
        {'time': 140.0, 'step': 25, 'seconds': {'startup': 4.0, 'step': 5.0, 'unknown': 9.0}},
        {'time': 141.0, 'step': 25, 'seconds': {'preview': 1.0}},
    ]
    path = tmp_path / goodput.NAME
    path.write_text('\n'.join(['{"cut', *map(json.dumps, records), '[]', '{"step": 3}']))
    spent = goodput.read(path)
    lost = 10.0 * 5 / 10 + 3.0  # half of the record from 10 to 20, all of that from 20 to 25
    wanted = {'step': 5.0 + 5.0 + 5.0, 'data': 1.0, 'compile': 1.0, 'startup': 6.0, 'checkpoint': 2.0, 'preview': 1.0}
    assert spent.starts == 2 and spent.repeated == 10
    assert spent.seconds == pytest.approx(wanted | {'lost': lost, 'down': 7.0})
    assert sum(spent.seconds.values()) == pytest.approx(141.0 - 100.0)  # every second once
    assert goodput.describe(spent).startswith('goodput over 2 starts, 00:41: step 36.6%  data 2.4%  ')
    assert goodput.describe(spent).endswith('lost 19.5%  down 17.1% (10 steps ran twice)')
    assert goodput.read(tmp_path / 'none') is None


def silent(watched, clock, part, start=0.0):
    """(seconds from the turn to `part` until the watch, which looks each second, would end the process; what it says)."""
    clock.to(part)
    for second in range(200_000):
        said = watched.look(start + second)
        if said is not None:
            return second, said
    raise AssertionError(f'{part} would be waited for without an end')


@pytest.mark.parametrize(
    ('part', 'patience', 'seconds', 'says'),
    [
        ('data', 30, 30, 'its own data have not come'),
        ('step', 1800, 1800, 'the step in flight has not ended'),
        ('checkpoint', 1800, 1800, 'the checkpoint is not written'),
        ('preview', 1800, 1800, 'the preview is not done'),
        ('startup', 1800, 3600, 'the run has not started'),
        ('startup', 30, 3600, 'the run has not started'),
        ('compile', 1800, 3600, 'the first step has not ended'),
        ('compile', 7200, 7200, 'the first step has not ended'),
    ],
)
def test_a_process_that_does_not_turn_ends_with_the_reason(part, patience, seconds, says):
    clock = goodput.Clock()
    after, said = silent(watch.Watch(clock, patience), clock, part)
    assert after == seconds + 1  # the first look past the bound
    assert said.startswith(f'error: process 0 of 1 stopped: for {seconds} s {says}') and 'Start all processes again' in said


def test_every_part_of_a_run_has_a_bound():
    assert set(watch.WAITS) == set(goodput.PARTS) - {'lost', 'down'}  # these are found afterwards
    assert {part for part in watch.WAITS if watch.bound(part, 1.0) > 1.0} == {'startup', 'compile'}


def test_a_process_that_turns_or_was_asleep_is_left_alone():
    clock = goodput.Clock()
    watched = watch.Watch(clock, 30.0)
    for second in range(200):  # a turn in every 20 seconds
        if second % 20 == 0:
            clock.to('step')
        assert watched.look(second) is None
    clock.to('step')
    assert watched.look(200) is None and watched.look(90_000) is None  # the machine slept for a day: two seconds count
    assert [watched.look(90_000 + second) is None for second in (27, 28, 29)] == [True] * 3  # each at most two seconds
    after, _ = silent(watched, clock, 'data', 100_000)
    assert after == 31  # all is forgotten at a turn


def test_the_thread_ends_the_process_once_and_returns_when_it_is_left():
    clock, said = goodput.Clock(), []
    clock.to('step')
    watch.Watch(clock, 0.01, poll=0.001, end=said.append).watch()
    assert len(said) == 1 and 'the step in flight has not ended' in said[0]
    left = watch.Watch(clock, 0.01, end=said.append)
    left.__exit__()
    left.watch()
    assert len(said) == 1


@pytest.mark.parametrize('fails', [False, True])
def test_the_watch_stands_from_before_the_folder_is_taken_until_it_is_given_back(tmp_path, monkeypatch, fails):
    order, clocks = [], []

    class Told(watch.Watch):
        def __enter__(self):
            clocks.append(self._clock)
            order.append('watched')
            return super().__enter__()

        def __exit__(self, *error):
            order.append('left')
            super().__exit__(*error)

    def tell(place, name, word):
        inner = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *a, **k: order.append(f'{word} in {clocks[-1].part}') or inner(*a, **k))

    monkeypatch.setattr(watch, 'Watch', Told)
    tell(loop.workdirs, 'prepare', 'prepared')
    tell(loop.states, 'start', 'made')
    tell(loop, '_loop', 'loop')
    tell(loop.stores.Store, 'close', 'closed')
    tell(loop.workdirs.locks.Lock, 'release', 'released')
    if fails:
        monkeypatch.setattr(loop.Program, '__call__', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        loop.run(config(steps=1), tmp_path / 'run', system=make(), data=(Source(), transform), log=lambda line: None)
    starting = [f'{word} in startup' for word in ('prepared', 'made', 'loop')]
    assert order == ['watched', *starting, 'closed in checkpoint', 'released in checkpoint', 'left']
