"""One training in a run folder: the second is refused with host and process, what a dead one left is recovered."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from dummy_system import DATA, config, make

from t3d.core import files
from t3d.core.errors import UsageError
from t3d.train import locks, loop

HERE, PID = socket.gethostname(), os.getpid()


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(locks, 'BEAT', 0.05)
    monkeypatch.setattr(locks, 'WATCH', 0.6)
    monkeypatch.setattr(locks, 'SETTLE', 0.05)


def left(folder, **changes):
    """Leaves a lock as a process would that wrote `changes`."""
    lock = locks.Lock(folder)
    (folder / locks.NAME).write_text(json.dumps(lock._mine | {'token': 'of another'} | changes))


def run(folder, lines=None, **changes):
    lines = [] if lines is None else lines
    return loop.run(config(**changes), folder, system=make(), data=DATA, log=lines.append)


def test_the_second_training_is_refused_and_changes_nothing(tmp_path):
    run(tmp_path / 'run', steps=2)
    assert not (tmp_path / 'run' / locks.NAME).exists()
    holder = locks.Lock(tmp_path / 'run')
    holder.take()
    before = {path: path.read_bytes() for path in (tmp_path / 'run').iterdir() if path.is_file() and path.name != locks.NAME}
    began = time.monotonic()
    with pytest.raises(UsageError) as error:
        run(tmp_path / 'run', steps=4)
    assert time.monotonic() - began < 30.0  # at once: nobody is watched, nothing compiled
    text = str(error.value)
    assert text.startswith(f'workdir {tmp_path / "run"} is in use: process {PID} on host {HERE} trains there since 20')
    assert 'Choose another --workdir, or stop that process; if it is known to have ended, delete' in text
    assert before == {path: path.read_bytes() for path in before}
    holder.release()
    run(tmp_path / 'run', steps=4)


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, '-c', ''])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    'changes',
    [
        lambda: {'process': dead_process()},
        lambda: {'started': '1'},  # the number of the process was given to another
        lambda: {'process': 0},
        lambda: {'process': -1},
        lambda: {'process': 10**12},
        lambda: {'process': None},
        lambda: {'process': 'x'},
        lambda: {'machine': 'elsewhere', 'host': 'node7'},
    ],
)
def test_a_lock_of_the_dead_is_recovered(tmp_path, changes):
    left(tmp_path, **changes())
    lines = []
    lock = locks.Lock(tmp_path, lines.append)
    lock.take()
    assert lines[-1].startswith(f'recovering {tmp_path / locks.NAME}: process ') and lines[-1].endswith('without removing it')
    assert json.loads((tmp_path / locks.NAME).read_text())['process'] == PID
    lock.release()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('text', ['', '{', '[]', 'null', '{}', '\x00' * 100, '{"token": 3}'])
def test_a_damaged_lock_is_recovered(tmp_path, text):
    (tmp_path / locks.NAME).write_text(text)
    lock = locks.Lock(tmp_path, lambda line: None)
    lock.take()
    lock.release()
    assert not list(tmp_path.iterdir())


def test_a_process_on_another_host_that_gives_signs_of_life_is_not_robbed(tmp_path):
    alive = threading.Event()

    def beat():
        count = 0
        while not alive.wait(0.1):
            count += 1
            text = {'token': 'x', 'beat': count, 'host': 'node7', 'process': 12, 'machine': 'another'}
            files.write(tmp_path / locks.NAME, json.dumps(text))

    left(tmp_path, machine='another', host='node7', process=12, token='x')
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        began = time.monotonic()
        with pytest.raises(UsageError, match='process 12 on host node7 trains there since'):
            locks.Lock(tmp_path, lambda line: None).take()
        assert time.monotonic() - began < locks.WATCH + 10.0
    finally:
        alive.set()
        thread.join()


def test_who_lost_the_folder_stops_and_leaves_the_lock_of_the_other(tmp_path):
    lines, taken = [], []

    def log(line):
        lines.append(line)
        if line.startswith('step ') and not taken:
            left(tmp_path / 'run', host='node8', process=5)
            taken.append(line)

    with pytest.raises(UsageError, match='stopped: process 5 on host node8 trains in .* it took this process for dead'):
        loop.run(
            config(steps=100_000, checkpoint={'every': 100_000, 'keep': 1}), tmp_path / 'run', system=make(), data=DATA, log=log
        )
    assert json.loads((tmp_path / 'run' / locks.NAME).read_text())['process'] == 5
    assert not (tmp_path / 'run' / 'checkpoints' / '00100000').exists()


class Bucket:
    """A folder that says it is in a bucket, where a file that another has just written is not seen yet."""

    def __init__(self, path):
        self._path = path

    def __truediv__(self, name):
        return Bucket(self._path / name)

    def __str__(self):
        return f'gs://{self._path}'

    def __fspath__(self):
        return str(self._path)

    def __getattr__(self, name):
        return getattr(self._path, name)

    def exists(self):
        return False


def test_of_two_that_take_a_bucket_at_once_the_first_stops_a_beat_later(tmp_path):
    first, second = (locks.Lock(Bucket(tmp_path), lambda line: None) for _ in range(2))
    first.take()
    second.take()
    deadline = time.monotonic() + 30.0
    while first._keeper.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(UsageError, match=f'stopped: process {PID} on host {HERE} trains in .* it took this process for dead'):
        first.check()
    second.check()
    first.release()
    assert locks.token_in(tmp_path) == second.token
    second.release()
    assert not list(tmp_path.iterdir())


def at_once(function, arguments):
    """Calls the function with each argument, all in threads of their own; returns when all have."""
    threads = [threading.Thread(target=function, args=(argument,)) for argument in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize('found', ['damaged', '{"machine": "another", "process": 4, "beat": 2}', None])
def test_of_many_that_start_at_once_one_trains(tmp_path, monkeypatch, found):
    """Eight at once, each stopped for a moment at random between looking and taking."""
    monkeypatch.setattr(locks, 'SETTLE', 0.1)
    monkeypatch.setattr(locks, 'WATCH', 0.3)
    if found is not None:
        (tmp_path / locks.NAME).write_text(found)
    outcomes, barrier, delays = [], threading.Barrier(8), np.random.default_rng(0).uniform(0.0, 0.5, 8)

    def start(delay):
        lock = locks.Lock(tmp_path, lambda line: time.sleep(delay if line.startswith('recovering') else 0.0))
        barrier.wait()
        try:
            lock.take()
            outcomes.append(lock)
        except UsageError:
            outcomes.append(None)

    at_once(start, delays)
    won = [lock for lock in outcomes if lock is not None]
    assert len(outcomes) == 8 and len(won) == 1
    won[0].check()
    assert json.loads((tmp_path / locks.NAME).read_text())['token'] == won[0]._mine['token']
    assert [path.name for path in tmp_path.iterdir()] == [locks.NAME]


def test_two_that_write_one_file_at_once_both_write_it_whole(tmp_path):
    texts = [letter * 200_000 for letter in 'abcd']
    failed = []

    def write(text):
        try:
            for _ in range(25):
                files.write(tmp_path / 'x.json', text)
                assert (tmp_path / 'x.json').read_text() in texts
        except Exception as error:
            failed.append(error)

    at_once(write, texts)
    assert not failed and [path.name for path in tmp_path.iterdir()] == ['x.json']


def test_two_trainings_without_a_folder_take_two_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from t3d.train import workdirs

    stale, inner = [], workdirs.number
    (tmp_path / 'runs' / '0001-dummy-test').mkdir(parents=True)

    def number(config):  # what it read before the other made its folder
        stale.append(0)
        return workdirs.epath.Path('runs/0001-dummy-test') if len(stale) == 1 else inner(config)

    monkeypatch.setattr(workdirs, 'number', number)
    assert str(run(None, steps=1)) == 'runs/0002-dummy-test'
