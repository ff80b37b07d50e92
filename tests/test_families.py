"""A program is ended with all that it has started: after its time, by Ctrl-C and by a signal that ends who started it."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from t3d.bench import series
from t3d.core import families

ROOT = pathlib.Path(__file__).parent.parent
STARTS = '#!/bin/sh\nsleep 600 &\necho $! > "$PIDS/sleeper"\nmv "$PIDS/sleeper" "$PIDS/grandchild"\n'
# Signals are as at a terminal: who runs the tests may have some of them ignored, which a process inherits.
RUNS = """
import signal, sys
from t3d.core import families
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
families.run([sys.argv[1]], 600.0)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A program that starts another one, which writes its number into a file, and waits for it."""
    path = tmp_path / 'program'
    path.write_text(STARTS + 'wait\n')
    path.chmod(0o755)
    monkeypatch.setenv('PIDS', str(tmp_path))
    return path


def lives(number: int) -> bool:
    """Whether a process is there and no zombie, of which a container may have many."""
    try:
        return pathlib.Path(f'/proc/{number}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def grandchild(folder) -> int:
    end = time.monotonic() + 60
    while not (folder / 'grandchild').exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    return int((folder / 'grandchild').read_text())


def is_gone(number: int) -> bool:
    end = time.monotonic() + 10
    while lives(number) and time.monotonic() < end:
        time.sleep(0.01)
    if lives(number):
        os.kill(number, signal.SIGKILL)
        return False
    return True


def test_a_benchmark_that_takes_too_long_is_ended_with_what_it_started(program, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'executable', str(program))
    began = time.monotonic()
    assert series.one(['own'], tmp_path / 'figures.jsonl', 2.0) == 'not ended after the 2 s that were left'
    assert time.monotonic() - began < 30 and is_gone(grandchild(tmp_path))


def test_a_program_that_ends_leaves_nothing_running(program, tmp_path):
    program.write_text(STARTS + 'echo said; echo failed >&2; exit 3\n')
    ended = families.run([str(program)], 60.0, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, None, 'failed\n')
    assert is_gone(grandchild(tmp_path))


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_who_started_it_ends_it_too(program, tmp_path, number, status):
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    words = [sys.executable, '-c', RUNS, str(program)]
    parent = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, start_new_session=True)
    try:
        started = grandchild(tmp_path)
        parent.send_signal(number)
        parent.communicate(timeout=60)
    finally:
        parent.kill()
    assert parent.returncode == status and is_gone(started)


def test_signals_are_as_before(program):
    program.write_text('#!/bin/sh\nexit 0\n')
    before = [signal.getsignal(number) for number in families.ENDS]
    assert families.run([str(program)], None).returncode == 0
    assert [signal.getsignal(number) for number in families.ENDS] == before
