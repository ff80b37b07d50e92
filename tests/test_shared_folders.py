"""A run folder that the processes do not share is refused on all of them, in a stated time."""

import json
import time

import jax
import numpy as np
import pytest
import test_multiprocess as multiprocess

from t3d.core import files
from t3d.core.errors import UsageError
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


def test_what_one_process_alone_meets_ends_all_and_is_said_once(second, capsys):
    second([[0]])
    with pytest.raises(UsageError, match='a folder of another config'):
        workdirs._on_every_process(fails)
    assert capsys.readouterr().err == 'error: process 1: a folder of another config\n'
    second([[1]])
    with pytest.raises(UsageError, match='process 0 cannot use the run folder: its output says why'):
        workdirs._on_every_process(lambda: None)
    second([[1]])
    with pytest.raises(UsageError, match='a folder of another config'):
        workdirs._on_every_process(fails)
    assert not capsys.readouterr().err  # process 0 says it
    second([[0]])
    workdirs._on_every_process(lambda: None)


@pytest.mark.parametrize('said', ['workdir /r is in use: process 12', 'wörkdir ' + 'ä' * 2000, ''])
def test_what_process_0_met_is_what_the_others_say(second, said):
    inner = said.encode()[: agreement.LONGEST]
    second([[*inner, *[0] * (agreement.LONGEST - len(inner))]])
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
