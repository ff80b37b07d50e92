"""Names are data: folders, files and prompts with signs that patterns, templates, shells and programs read otherwise."""

import logging

import jax.numpy as jnp
import numpy as np
import pytest

from t3d.checkpoint import store as stores
from t3d.core import files
from t3d.core.errors import UsageError
from t3d.core.system import TrainState
from t3d.export import video

NAMES = (
    *('run [v2]', 'lr[1e-3]', '[!a]', '[', '*', '**', 'a?b', '{x}', '{0}', '$HOME', '%d', '%2F', 'a:b', '12:30', '~', '#1'),
    *("it's", '"q"', '<b>', 'new\nline', '\t', '-x', ' lead', 'trail ', 'x.', 'ü', 'u\u0308', '日本', '🐈', 'a|b', 'a@b'),
    *('a&b', '.hidden', 'x' * 200, '\x1b[31m', 'CON', '^$', 'file:', 'checkpoints', 'x.orbax-checkpoint-tmp', '00000003'),
)
BAD = ('a\\b', 'gs:', '\udcff')


def state(value: float = 0.0) -> TrainState:
    params = {'a': jnp.arange(6.0).reshape(2, 3) + value}
    return TrainState(step=jnp.int32(3), params=params, ema=params, opt_state={}, extras={})


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_a_run_folder_of_any_name_gives_back_what_was_saved(tmp_path):
    for value, name in enumerate(NAMES):
        store = stores.Store(tmp_path / name / 'checkpoints')
        store.save(state(value), data={'position': 3}, config={})
        store.close()
        store = stores.Store(tmp_path / name / 'checkpoints', read_only=True)
        assert np.array_equal(store.restore_ema()['a'], state(value).params['a']), name
        store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)  # each under its own name, nothing beside
    (tmp_path / 'run [v2]').rename(tmp_path / 'run *')
    assert stores.Store(tmp_path / 'run *' / 'checkpoints', read_only=True).restore_ema()['a'][0, 0] == NAMES.index('run [v2]')


@pytest.mark.parametrize('name', BAD, ids=ascii)
def test_a_folder_that_cannot_hold_checkpoints_is_refused_before_it_is_made(tmp_path, name):
    with pytest.raises(UsageError, match='is no name for a folder. Choose another|is not UTF-8: rename the folder'):
        stores.Store(tmp_path / name / 'checkpoints')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('text', ['', 'http://host/run', 'ftp://x', 'x://y'])
def test_what_is_no_path_is_one_sentence(text):
    with pytest.raises(UsageError, match=r'an empty path|is not read; give a local folder'):
        files.path(text)


def test_ffmpeg_takes_every_path_for_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.zeros((2, 16, 48, 3), np.uint8)
    for name in (*NAMES, *BAD[:2], 'pipe:1', 'concat:a|b', '-loglevel', 'a b é %d %03d'):
        path = video.write_mp4(images, f'{name}/turntable.mp4')
        assert (tmp_path / name / 'turntable.mp4').stat().st_size > 500 and str(path) == f'{name}/turntable.mp4'
    (tmp_path / 'taken' / 'turntable.mp4.part').mkdir(parents=True)
    with pytest.raises(UsageError, match='ffmpeg could not write taken/turntable.mp4: .*directory'):
        video.write_mp4(images, 'taken/turntable.mp4')
