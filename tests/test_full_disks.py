"""A disk that is full, a limit that is reached: one sentence that says which step is safe, and the same command goes on."""

import contextlib
import errno
import json
import resource

import jax
import numpy as np
import pytest
from dummy_system import DATA, config, make

from t3d.checkpoint import store as stores
from t3d.core import errors, files
from t3d.core.errors import UsageError
from t3d.export import camera_file, meshes, report, sheets, video
from t3d.train import failures, loop
from t3d.train import log as logs

SIZE = 2**16  # floats of ballast, that do not compress


@contextlib.contextmanager
def full(limit: int):
    """Files may not grow beyond `limit` bytes."""
    before, name = resource.getrlimit(resource.RLIMIT_FSIZE), 'jax_persistent_cache_min_compile_time_secs'
    seconds = getattr(jax.config, name)
    jax.config.update(name, 1e9)  # the tests' own cache would be cut as well
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        jax.config.update(name, seconds)


def run(folder, steps, ballast=SIZE, log=lambda line: None):
    return loop.run(config(steps=steps), folder, system=make(ballast=ballast), data=DATA, log=log)


def test_a_checkpoint_that_does_not_fit_names_the_safe_step_and_the_run_goes_on_later(tmp_path, capfd):
    folder = tmp_path / 'run'
    with full(30_000), pytest.raises(UsageError) as error:
        run(folder, 6)
    assert str(error.value) == (
        f'step 2 could not be saved in {folder / "checkpoints"}: File too large. '
        'No checkpoint was saved before: the same command again starts anew.'
    )
    run(folder, 2)
    with full(30_000), pytest.raises(UsageError) as error:
        run(folder, 6)
    assert str(error.value) == (
        f'step 4 could not be saved in {folder / "checkpoints"}: File too large. '
        f'Safe: step 2 in {folder / "checkpoints"}; the same command again goes on from there.'
    )
    assert errors.line(error.value) == str(error.value)
    lines = []
    run(folder, 6, log=lines.append)
    assert 'resuming from step 2' in lines and stores.Store(folder / 'checkpoints', read_only=True).steps() == [2, 4, 6]
    assert not (folder / 'run.lock').exists()
    assert 'Traceback' not in capfd.readouterr().err


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EIO])
@pytest.mark.parametrize('what', ['previews', 'metrics'])
def test_other_files_that_cannot_be_written_stop_the_run_and_name_the_safe_step(tmp_path, monkeypatch, trained, code, what):
    reason = OSError(code, 'the reason')

    def fail(*_, **__):
        raise reason

    if what == 'previews':
        monkeypatch.setattr(sheets, 'sheet', lambda *_, **__: np.zeros((2, 2, 3), np.uint8))
        monkeypatch.setattr(files, 'write', fail)
    else:
        monkeypatch.setattr(logs.Log, 'progress', fail)
    store = stores.Store(trained / 'checkpoints', read_only=True)
    with pytest.raises(UsageError) as error, failures.told(None, store):
        if what == 'previews':
            sheets.write(tmp_path / 'x.png', np.zeros((2, 2, 3), np.uint8))
        else:
            logs.Log(tmp_path, total=1, batch=1).progress(1, {}, seconds=1.0, steps=1)
    hint = '. Make room there, or choose another place' if code in errors.FULL else ''
    assert str(error.value) == f'stopped: the reason{hint}. {store.safe()}' and 'Safe: step 2 in' in str(error.value)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    return run(tmp_path_factory.mktemp('trained') / 'run', 2, ballast=0)


def test_a_full_log_names_the_file(tmp_path):
    log = logs.Log(tmp_path, total=1, batch=1, write=lambda line: None)
    log.line('x')
    with full(2), pytest.raises(OSError) as error:
        log.line('a longer line')
    assert errors.line(error.value) == f'File too large: {tmp_path / "log.txt"}. Make room there, or choose another place.'
    log.close()


def test_tensorboard_files_that_cannot_be_written_are_said_once_and_nothing_waits(tmp_path):
    lines = []
    log = logs.Log(tmp_path, total=100, batch=1, write=lines.append)
    with full(8_000):  # metrics.jsonl fits, the events do not
        for step in range(25):
            log.progress(step, {f'loss/{n}': 1.0 for n in range(5)}, seconds=1.0, steps=1)
    log.close()
    assert len([line for line in lines if line.startswith('no more TensorBoard files: ')]) == 1
    assert [json.loads(line)['step'] for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()] == list(range(25))


@pytest.mark.parametrize('data', ['text ü', b'bytes' * 100])
def test_files_are_whole_or_as_they_were(tmp_path, data):
    path = tmp_path / 'config.json'
    files.write(path, 'old')
    with full(2), pytest.raises(OSError) as error:
        files.write(path, data)
    assert (
        errors.line(error.value) == f'File too large: {path}. Make room there, or choose another place.'
        and path.read_text() == 'old'
    )
    assert [child.name for child in tmp_path.iterdir()] == ['config.json']
    files.write(path, data)
    assert path.read_bytes() == (data if isinstance(data, bytes) else data.encode())


@pytest.mark.parametrize('name', ['mesh.glb', 'mesh.obj', 'mesh.ply', 'mesh.stl', 'a.gif', 'a.mp4', 'frames', 'r.html'])
def test_an_export_that_does_not_fit_names_its_file_and_leaves_no_half_of_it(tmp_path, name):
    rng = np.random.default_rng(0)
    vertices, faces = rng.normal(size=(600, 3)).astype(np.float32), rng.integers(0, 600, (900, 3)).astype(np.int32)
    mesh = meshes.Mesh(vertices, faces, vertices, rng.integers(0, 255, (600, 3)).astype(np.uint8))
    images = rng.integers(0, 255, (4, 48, 48, 3)).astype(np.uint8)
    writers = {'.gif': video.write_gif, '.mp4': video.write_mp4, '': camera_file.write_frames}
    path = tmp_path / name
    with full(3000), pytest.raises((OSError, UsageError)) as error:
        if name.startswith('mesh'):
            meshes.write(mesh, path)
        elif name == 'r.html':
            report.write(path, prompt='x' * 5000)
        else:
            writers[path.suffix](images, path)
    text = errors.line(error.value)
    assert ('File too large' in text or 'SIGXFSZ' in text) and name in text and '\n' not in text
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]
