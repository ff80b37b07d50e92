"""A run folder that the processes do not share is refused on all of them, in a stated time."""

import json
import os
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import test_multiprocess as multiprocess

from t3d.core import files
from t3d.core.errors import UsageError
from t3d.inference import loading
from t3d.parallel import agreement
from t3d.train import locks, workdirs

TOKEN, OTHER = '0123456789abcdef' * 2, 'f' * 32


@pytest.fixture
def second(monkeypatch):
    """This process as the second of two: `first` is what process 0 says when all are asked."""

    def become(first):
        said = iter(first)
        monkeypatch.setattr(jax, 'process_count', lambda: 2)
        monkeypatch.setattr(jax, 'process_index', lambda: 1)
        monkeypatch.setattr(agreement, 'gathered', lambda mine: np.int32([next(said), list(mine)]))

    return become


def words(token):
    return [int(token[k : k + 8], 16) - 2**31 for k in range(0, 32, 8)]


def test_who_sees_the_lock_of_process_0_goes_on(tmp_path, second):
    (tmp_path / locks.NAME).write_text(json.dumps({'token': TOKEN}))
    second([words(TOKEN), [1]])
    workdirs.refuse_unshared(tmp_path, OTHER, 0.0)


@pytest.mark.parametrize('there', [None, OTHER, '{', 5])
def test_who_does_not_see_it_is_named(tmp_path, second, there):
    if there is not None:
        (tmp_path / locks.NAME).write_text(there if there == '{' else json.dumps({'token': there}))
    second([words(TOKEN), [1]])
    began = time.monotonic()
    with pytest.raises(UsageError, match=r'process 1 of 2 did not see in 0 s the run.lock .* gs://BUCKET'):
        workdirs.refuse_unshared(tmp_path, OTHER, 0.3)
    assert 0.3 <= time.monotonic() - began < 10.3  # so long it looks, and no longer


def test_a_process_that_sees_it_ends_with_the_one_that_does_not(tmp_path, second):
    (tmp_path / locks.NAME).write_text(json.dumps({'token': TOKEN}))
    second([words(TOKEN), [0]])
    with pytest.raises(UsageError, match='process 0 of 2 did not see'):
        workdirs.refuse_unshared(tmp_path, OTHER, 0.0)


def fails():
    raise UsageError('a folder of another config')


def row(text):
    """A text as processes send it."""
    said = text.encode()[: agreement.LONGEST]
    return [*said, *[0] * (agreement.LONGEST - len(said))]


def test_what_one_process_alone_meets_ends_all_and_each_says_it(second, capsys):
    second([[0], row('')])
    with pytest.raises(UsageError, match='^a folder of another config$'):
        agreement.on_every_process(fails)
    assert capsys.readouterr().err == 'error: process 1: a folder of another config\n'
    second([[1], row('no data in /data.')])
    with pytest.raises(UsageError, match=r'^process 0 of 2 cannot begin: no data in /data. The others .* the same files\?$'):
        agreement.on_every_process(lambda: None)
    second([[1], row('no data')])
    with pytest.raises(UsageError, match='^a folder of another config$'):
        agreement.on_every_process(fails)
    assert not capsys.readouterr().err  # process 0 says it
    second([[0], row('')])
    with pytest.raises(ZeroDivisionError):  # a fault of the program keeps its traceback, and the others end too
        agreement.on_every_process(lambda: 1 // 0)
    assert not capsys.readouterr().err
    second([[0]])
    assert agreement.on_every_process(lambda: 5) == 5


# Process 1 works where neither the records nor the model lie, as on a host to which they were not copied.
CONFIG = """
from launch import soak_dummy

def get_config(variant='tiny'):
    config = soak_dummy.get_config(variant).copy_and_resolve_references().unlock()
    config.data.kind, config.data.path, config.given = 'own_records', 'records', {'prior': 'model'}
    return config.lock()
"""
RECORDS = """
import os
from launch.soak_data import make as records, preview

def make(config, split=None, batch_spec=None):
    if not os.path.exists(config.data.path):
        raise FileNotFoundError(f'no records in {config.data.path}: copy them there.')
    return records(config, split, batch_spec)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ('missing', 'says'),
    [('records', 'no records in records: copy them there.'), ('model', "given.prior='model': "), ('start', 'start')],
)
def test_what_lacks_on_one_host_ends_both_processes(tmp_path, missing, says):
    (tmp_path / 'own_config.py').write_text(CONFIG)
    (tmp_path / 'own_records.py').write_text(RECORDS)
    for name in ('0', '1'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'records').mkdir()
        (tmp_path / name / 'model').symlink_to(loading.shipped()['ganfusion_gan-toy'])
        (tmp_path / name / 'start').symlink_to(loading.shipped()['ganfusion_gan-toy'])
    lost = tmp_path / '1' / missing
    lost.unlink() if lost.is_symlink() else lost.rmdir()
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [sys.executable, '-m', 'launch.train', '--config', str(tmp_path / 'own_config.py'), '--init-from', 'start']
    command += ['--workdir', str(tmp_path / 'run'), '--coordinator', f'127.0.0.1:{port}', '--num-processes', '2']
    path = os.pathsep.join([str(multiprocess.HERE.parent), str(tmp_path)])
    environment = os.environ | {'PYTHONPATH': path, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '2'}
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True, 'env': environment}
    began = time.monotonic()
    processes = [
        subprocess.Popen([*command, '--process-id', name], cwd=tmp_path / name, start_new_session=True, **pipes)
        for name in ('0', '1')
    ]
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        multiprocess.kill(processes)
    assert [process.returncode for process in processes] == [2, 2], said
    assert time.monotonic() - began < 240.0  # JAX's barrier at exit would take 300 s
    (first,) = [line for line in said[0].splitlines() if line.startswith('error: ')]
    (second,) = [line for line in said[1].splitlines() if line.startswith('error: ')]
    assert first.startswith('error: process 1 of 2 cannot begin: ') and says in first
    assert second.startswith('error: process 1: ') and says in second
    assert second.removeprefix('error: process 1: ').rstrip('.') in first
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('said', ['workdir /r is in use: process 12', 'wörkdir ' + 'ä' * 2000, ''])
def test_what_process_0_met_is_what_the_others_say(second, said):
    inner = said.encode()[: agreement.LONGEST]
    second([row(said)])
    if said:
        with pytest.raises(UsageError) as error:
            workdirs._on_process_0(fails)  # process 1 does not run it
        assert said.startswith(str(error.value)) and len(str(error.value).encode()) >= min(len(inner), agreement.LONGEST - 1)
    else:
        workdirs._on_process_0(fails)


@pytest.mark.slow
def test_two_processes_with_folders_of_their_own_end(tmp_path):
    processes = multiprocess.launch(tmp_path / 'own-{index}', total=4, shared=2.0)
    try:
        codes = [process.wait(300) for process in processes]
    finally:
        multiprocess.kill(processes)
    said = [(tmp_path / f'own-{{index}}.{k}.txt').read_text() for k in (0, 1)]
    assert codes == [2, 2], said
    assert 'error: workdir' in said[0] and 'process 1 of 2 did not see in 2 s the run.lock that process 0 wrote' in said[0]
    assert not (tmp_path / 'own-0' / 'run.lock').exists()


@pytest.mark.slow
def test_a_lock_of_another_host_that_beats_late_is_what_both_processes_say(tmp_path, monkeypatch):
    """Process 0 watches it for longer than a collective of processors waits; its sign of life comes after 40 s."""
    monkeypatch.setenv('PYTHONUNBUFFERED', '1')
    run, held = tmp_path / 'run', {'token': TOKEN, 'host': 'node7', 'process': 12, 'machine': 'another', 'since': 'noon'}
    run.mkdir()
    (run / locks.NAME).write_text(json.dumps(held | {'beat': 1}))
    processes = multiprocess.launch(run, total=4)
    try:
        multiprocess.wait_for_text(f'{run}.0.txt', 'process 12 on host node7 holds the run folder: watching for 75 s', 300)
        time.sleep(40)  # a collective would have given up
        files.write(run / locks.NAME, json.dumps(held | {'beat': 2}))
        codes = [process.wait(120) for process in processes]
    finally:
        multiprocess.kill(processes)
    said = [multiprocess.wait_for_text(f'{run}.{k}.txt', 'error: ') for k in (0, 1)]
    for text in said:
        assert f'error: workdir {run} is in use: process 12 on host node7 trains there since noon' in text, said
    assert codes == [2, 2] and json.loads((run / locks.NAME).read_text())['token'] == TOKEN
    assert [path.name for path in run.iterdir()] == [locks.NAME]
