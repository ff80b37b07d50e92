"""What a process of a run prints when another one has died: everything it said, and one sentence in place of JAX's dump."""

import os
import subprocess
import sys
import time

import jax
import pytest
from dummy_system import config

from launch import train
from t3d.checkpoint import store as stores
from t3d.core import config as core
from t3d.core import errors
from t3d.core.errors import NonFinite, OneProcess, UsageError
from t3d.parallel import devices, last_words
from t3d.train import failures

WARNING = b'W1128 03:38:47.82 15693 preemption_sync_manager.cc:147] Failed to retrieve notice: UNAVAILABLE: closed\nmore\n'
POLLED = b'E1128 03:38:15.07 15131 coordination_service_agent.cc:289] Polled an error from coordination service.\n'
SILENT = (
    b'E1128 03:38:15.07 15131 coordination_service.cc:1549] Use error polling to propagate the following error to all tasks: '
    b'UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n%s\nThe tasks have crashed.\n'
)
FATAL = (
    b'F1128 03:38:15.08 15142 client.h:80] Terminating process because the JAX distributed service detected fatal errors.\n'
    b'*** Check failure stack trace: ***\n    @     0x7fa2e5740634  absl::lts::log_internal::LogMessage::Flush()\n'
    b'Fatal Python error: Aborted\n\nThread 0x00007f (most recent call first):\n  File "x.py", line 3 in loop\n'
)


def filtered(*parts, process=1, processes=4) -> bytes:
    """What comes out of the filter when a process writes these parts and ends."""
    command = [sys.executable, '-I', '-S', last_words.__file__, str(process), str(processes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        for part in parts:
            program.stdin.write(part)
            program.stdin.flush()
        program.stdin.close()
        return program.stderr.read()


@pytest.mark.parametrize(
    'text',
    [
        b'',
        b'a line\n',
        b'no end',
        b'a\n\nb\r\nc\rd',
        b'\xff\x00\x1b[31m\n' * 3,
        'ü 红\n'.encode(),
        b'x' * 300_000,
        b'a\n' * 50_000,
    ]
    + [
        WARNING,
        POLLED,
        b'error: no\n' + POLLED + b'Traceback\n',
        b'E1128 another.cc:3] text\n',
        FATAL.replace(b'fatal', b'no'),
    ],
    ids=range(13),
)
def test_all_that_is_said_comes_through(text):
    assert filtered(text) == text
    assert filtered(text[: len(text) // 2], text[len(text) // 2 :]) == text


@pytest.mark.parametrize(
    ('said', 'who'),
    [
        (POLLED + FATAL, 'process 0 of the run no longer answers'),
        (WARNING + POLLED + FATAL, 'process 0 of the run no longer answers'),
        (SILENT % b'2' + POLLED + FATAL, 'process 2 of the run no longer answers'),
        (SILENT % b'2,3' + POLLED + FATAL, 'processes 2, 3 of the run no longer answer'),
        (SILENT % b'17' + FATAL, 'process 17 of the run no longer answers'),
    ],
)
def test_the_end_by_the_service_is_one_sentence(said, who):
    sentence = f'error: process 1 of 4 stopped: {who} (ended, or the host or network is down; its own output says more). '
    sentence += 'Start all processes again: they go on from the last checkpoint.\n'
    assert filtered(b'step 3\n', said) == b'step 3\n' + sentence.encode()
    assert filtered(b'step 3\n', said + b'error: disk full\n') == b'step 3\nerror: disk full\n' + sentence.encode()


def test_lines_about_peers_are_passed_on_while_the_process_lives(monkeypatch):
    code = f'import sys; sys.path.insert(0, {os.path.dirname(last_words.__file__)!r}); import last_words as words; '
    code += 'words.PATIENCE = 0.2; words._filter(0, 2)'
    with subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        program.stdin.write(POLLED)
        program.stdin.flush()
        assert program.stderr.read(len(POLLED)) == POLLED
        time.sleep(0.05)
        program.stdin.write(b'after\n')
        program.stdin.close()
        assert program.stderr.read() == b'after\n'


def test_errors_of_one_process_are_told_from_those_of_all(monkeypatch):
    class Safe:
        safe = staticmethod(lambda: 'Safe: step 2 in F.')

    def told(error):
        with pytest.raises(Exception) as caught, failures.told(configs, Safe()):
            raise error
        return caught.value

    configs = core.from_dict(config())
    assert type(told(UsageError('a record'))) is OneProcess and type(told(NonFinite('loss'))) is NonFinite
    assert str(told(OSError(28, 'No space left on device', 'x'))) == (
        'stopped: No space left on device: x. Make room there, or choose another place. Safe: step 2 in F.'
    )
    lost = jax.errors.JaxRuntimeError('UNKNOWN: Gloo AllReduce failed: [/gloo/pair.cc:534] Connection closed by peer [1]:23')
    assert told(lost) is lost  # one process has no other to lose
    assert 'Set one of batch=8' in str(told(jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: x')))
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    assert type(told(lost)) is OneProcess
    assert str(told(lost)).startswith('process 0 of 2 stopped: another process of the run no longer answers (UNKNOWN: Gloo')
    unsaved = lambda why: told(caused(stores.SaveFailed('step 6 could not be saved.'), why))
    assert str(unsaved(lost)) == str(told(lost)) and type(unsaved(lost)) is OneProcess
    disk = OSError(5, 'socket closed, unavailable')  # of a bucket, not of a process
    assert str(unsaved(disk)) == 'step 6 could not be saved.' and unsaved(disk).__cause__ is disk


def caused(error, why):
    """The error as `raise error from why` leaves it."""
    error.__cause__ = why
    return error


@pytest.mark.parametrize(('error', 'status'), [(OneProcess('lost'), errors.AGAIN), (UsageError('wrong'), 2)])
def test_who_stops_alone_in_a_run_has_a_status_that_asks_for_another_start(monkeypatch, capsys, error, status):
    ended = []
    monkeypatch.setattr(devices, 'compilation_cache', lambda: (_ for _ in ()).throw(error))
    monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(os, '_exit', ended.append)
    returned = train.main(['--config', 'configs/instant3d.py:tiny'])
    assert (ended or [returned]) == [status] and capsys.readouterr().err == f'error: {error}\n'
