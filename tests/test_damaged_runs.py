"""A run folder that lost something: intact weights load with a line, and nothing is trained anew over results in silence."""

import json
import shutil

import jax
import numpy as np
import pytest
from dummy_system import DATA, config, make

from t3d.checkpoint import run_configs
from t3d.checkpoint import store as stores
from t3d.commands import per_prompt
from t3d.core import config as configs
from t3d.core import tree
from t3d.core.errors import UsageError
from t3d.core.system import Given
from t3d.train import loop, workdirs

# After a failed read the library's abandoned tasks complain when they are freed.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


def run(folder, lines=None, **changes):
    lines = [] if lines is None else lines
    return loop.run(config(**({'steps': 4} | changes)), folder, system=make(), data=DATA, log=lines.append)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A run with checkpoints at 2 and 4."""
    return run(tmp_path_factory.mktemp('whole') / 'run')


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / 'run')


def weights(folder):
    store = stores.Store(folder / 'checkpoints', read_only=True)
    try:
        return store.latest(), tree.flatten(store.restore_weights())
    finally:
        store.close()


def restored(folder):
    """The step that training would go on from."""
    system = make()
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        jax.eval_shape(lambda: system.init(jax.random.key(0), None)),
    )
    store = stores.Store(folder / 'checkpoints', best='loss')
    try:
        return int(store.restore(target).state.step)
    finally:
        store.close()


def same(left, right):
    assert left[0] == right[0]
    for name, leaf in left[1].items():
        np.testing.assert_array_equal(leaf, right[1][name])


DAMAGES = {
    'flipped': lambda raw, n: raw[:n] + bytes([raw[n] ^ 0x10]) + raw[n + 1 :],
    'high bit': lambda raw, n: raw[:n] + bytes([raw[n] ^ 0x80]) + raw[n + 1 :],
    'cut': lambda raw, n: raw[:n],
    'empty': lambda raw, n: b'',
    'zeros': lambda raw, n: bytes(len(raw)),
}


@pytest.mark.parametrize('item', ['metrics', 'data', 'meta'])
@pytest.mark.parametrize('damage', DAMAGES)
def test_weights_load_beside_damaged_numbers_and_training_goes_on_or_says_what_to_do(whole, folder, item, damage, capfd):
    (file,) = [path for path in (folder / 'checkpoints' / '00000004' / item).iterdir() if path.name in (item, 'metadata')]
    file.write_bytes(DAMAGES[damage](raw := file.read_bytes(), len(raw) // 2))
    capfd.readouterr()
    same(weights(folder), weights(whole))
    said = capfd.readouterr().err
    if item != 'metrics':
        assert said.startswith('note: ') and '00000004: its' in said and 'the weights are read' in said
        with pytest.raises(stores.CorruptCheckpoint, match='00000004.* Delete that folder to go on from step 2') as error:
            restored(folder)
        assert '\n' not in str(error.value)
        shutil.rmtree(folder / 'checkpoints' / '00000004')
        assert restored(folder) == 2
    else:
        assert restored(folder) == 4
        read = 'note: checkpoint 4 in' in capfd.readouterr().err
        assert read or damage == 'flipped'  # a digit that became another is a number still


def test_the_given_models_of_a_prompt_are_compared_with_the_newest_step_that_can_be_read(folder):
    """Training goes on from there: a damaged step behind it is no reason to stop, and another model is one."""
    store, state = stores.Store(folder / 'checkpoints'), make().init(jax.random.key(0), None)
    for step in (8, 9):
        store.save(state.replace(step=jax.numpy.int32(step)), data={}, config={}, given={'prior': 'that of the run'})
    store.close()
    (folder / 'checkpoints' / '00000009' / 'meta' / 'metadata').write_text('{')
    model = lambda digest: {'prior': Given(None, {}, name='prior', digest=digest)}
    per_prompt._refuse_other_models(folder, model('that of the run'))
    with pytest.raises(UsageError, match='given.prior'):
        per_prompt._refuse_other_models(folder, model('another'))


@pytest.mark.parametrize('text', ['{}', '[]', '"loss"', '{"loss": "low"}', '{"loss": NaN}', '{"lnss": 0.5}', '3'])
def test_metrics_that_are_no_number_only_cost_the_choice_of_the_best(folder, text, capfd):
    (folder / 'checkpoints' / '00000002' / 'metrics' / 'metrics').write_text(text)
    assert restored(folder) == 4 and 'checkpoint 2 in' in capfd.readouterr().err


def stray(folder):
    (folder / 'checkpoints' / '00000099').mkdir()
    (folder / 'checkpoints' / '00000098').write_text('a file')
    (folder / 'checkpoints' / '00000097').mkdir()
    (folder / 'checkpoints' / '00000097' / 'notes.txt').write_text('')
    (folder / 'checkpoints' / '7').mkdir()
    (folder / 'checkpoints' / '.DS_Store').write_text('')
    (folder / 'checkpoints' / '00000008.orbax-checkpoint-tmp').mkdir()


def test_stray_files_and_folders_are_not_checkpoints_and_nothing_is_deleted_for_them(whole, folder):
    stray(folder)
    same(weights(folder), weights(whole))
    assert restored(folder) == 4
    run(folder, steps=6, checkpoint={'every': 2, 'keep': 1, 'best': ''}, lines=(lines := []))
    assert 'resuming from step 4' in lines and weights(folder)[0] == 6


@pytest.mark.parametrize('gone', ['state', 'weights', 'meta', 'data', 'metrics'])
def test_a_step_that_lacks_a_part_is_named(whole, folder, gone, capfd):
    shutil.rmtree(folder / 'checkpoints' / '00000004' / gone)
    if gone == 'weights':
        with pytest.raises(UsageError, match='00000004.*Delete that folder to go on from step 2'):
            weights(folder)
    else:
        same(weights(folder), weights(whole))
    if gone != 'metrics':
        with pytest.raises(UsageError, match='00000004.*Delete that folder to go on from step 2') as error:
            restored(folder)
        assert '\n' not in str(error.value)


LOST = {
    'gone': lambda folder: shutil.rmtree(folder / 'checkpoints'),
    'empty': lambda folder: (shutil.rmtree(folder / 'checkpoints'), (folder / 'checkpoints').mkdir()),
    'a file': lambda folder: (shutil.rmtree(folder / 'checkpoints'), (folder / 'checkpoints').write_text('')),
    'renamed': lambda folder: (folder / 'checkpoints').rename(folder / 'checkpoints_old'),
    'emptied': lambda folder: [(shutil.rmtree(step), step.mkdir()) for step in list((folder / 'checkpoints').iterdir())],
    'a link to nothing': lambda folder: (shutil.rmtree(folder / 'checkpoints'), (folder / 'checkpoints').symlink_to('none')),
}


@pytest.mark.parametrize('how', LOST)
def test_a_run_without_its_checkpoints_never_starts_anew_in_silence(folder, how):
    LOST[how](folder)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(UsageError) as error:
        run(folder, steps=6)
    assert str(error.value) == (
        f'workdir {folder} is at step 4 by its metrics.jsonl, but {folder / "checkpoints"} holds no checkpoint: were they '
        'moved or deleted? Put them back, train anew in another --workdir, or delete '
        f'{folder / "metrics.jsonl"} to start here at step 0.'
    )
    assert before == {path: path.read_bytes() for path in before} and not (folder / 'run.lock').exists()


def test_a_run_killed_before_its_first_checkpoint_starts_again_and_says_so(folder):
    shutil.rmtree(folder / 'checkpoints')
    (folder / 'metrics.jsonl').write_text('{"step": 1, "loss": 2.0}\n{"st')
    run(folder, lines=(lines := []))
    assert 'no checkpoint was saved before: starting again at step 0' in lines
    assert [json.loads(line)['step'] for line in (folder / 'metrics.jsonl').read_text().splitlines()] == [2, 4]


def test_checkpoints_behind_a_link_and_in_a_moved_folder(whole, folder, tmp_path):
    (folder / 'checkpoints').rename(tmp_path / 'elsewhere [1]')
    (folder / 'checkpoints').symlink_to(tmp_path / 'elsewhere [1]')
    folder.rename(tmp_path / 'moved')
    same(weights(tmp_path / 'moved'), weights(whole))
    assert restored(tmp_path / 'moved') == 4


@pytest.mark.parametrize('text', ['', '{', '[]', '3', '{"steps": ', '\xff\xfe', 'null'])
def test_a_damaged_config_is_read_from_the_checkpoint(whole, folder, text, capfd):
    (folder / 'config.json').write_bytes(text.encode('latin-1'))
    assert run_configs.read(folder).to_dict() == run_configs.read(whole).to_dict()
    assert f'{folder / "config.json"} is damaged: read from checkpoint 4' in capfd.readouterr().err
    workdirs.check(folder, configs.from_dict(config(steps=5)))
    with pytest.raises(UsageError, match='seed: 1 there, 2 given'):
        workdirs.check(folder, configs.from_dict(config(steps=5, seed=2)))
    shutil.rmtree(folder / 'checkpoints')
    with pytest.raises(UsageError, match='config.json is damaged .*: copy it again'):
        run_configs.read(folder)


def test_a_config_that_is_not_the_one_of_the_weights(whole, folder, capfd):
    changed = run_configs.read(folder).to_dict() | {'seed': 3, 'log_every': 77}
    (folder / 'config.json').write_text(json.dumps(changed))
    reader = stores.Store(folder / 'checkpoints', read_only=True)
    used = run_configs.as_saved(run_configs.read(folder), reader)
    assert (
        used.seed == 1
        and used.log_every == 77
        and 'checkpoint 4 was saved with; used is seed=1 (now 3)' in capfd.readouterr().err
    )
    assert run_configs.as_saved(used, reader) is used and not capfd.readouterr().err


def test_one_process_at_a_time_reads_what_another_writes(folder):
    """Reading takes no lock: eval and generate work beside a training."""
    (folder / 'run.lock').write_text('{"machine": "x"}')
    assert weights(folder)[0] == 4 and jax.process_count() == 1
