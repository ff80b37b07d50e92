"""Ctrl-C and SIGTERM: of a training, of what follows its last step, and of a launcher."""

import os
import signal

import pytest
from dummy_system import DATA, config, make
from test_loop import run, state

from t3d import cli, systems
from t3d.commands import train as commands_train
from t3d.core import parsing
from t3d.train import loop, signals


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=['SIGINT', 'SIGTERM'])
def test_first_signal_finishes_the_step_saves_and_previews(tmp_path, number):
    lines = []

    def log(line):
        lines.append(line)
        if line.startswith('step ') and len(lines) == 4:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    run(tmp_path / 'run', steps=1000, log=log, log_every=3)
    assert signal.getsignal(number) is before
    step = int(state(tmp_path / 'run').step)
    assert 3 <= step < 20 and f'stopped at step {step}: saved' in lines[-1]
    assert (tmp_path / 'run' / 'previews' / f'{step:08d}.png').exists()


@pytest.mark.parametrize('before', [signal.default_int_handler, signal.SIG_IGN], ids=['foreground', 'background'])
def test_second_signal_stops_at_once(before):
    handler = signal.signal(signal.SIGINT, before)
    try:
        _two_signals()
        assert signal.getsignal(signal.SIGINT) == before
    finally:
        signal.signal(signal.SIGINT, handler)


def _two_signals():
    with pytest.raises(KeyboardInterrupt), signals.Stop() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        signal.raise_signal(signal.SIGINT)


def test_a_signal_after_the_last_step_leaves_too(tmp_path, monkeypatch, capsys):
    """The picture of the last step is drawn when it comes: no scores and no assets follow, and the run is whole."""
    finished, drawn = [], loop._write_preview
    monkeypatch.setattr(commands_train, 'finish', lambda *words: finished.append(words))
    monkeypatch.setattr(loop, '_write_preview', lambda *args: (signal.raise_signal(signal.SIGINT), drawn(*args)))
    monkeypatch.setattr(systems, 'module', lambda name: None)
    monkeypatch.setattr(commands_train, 'check_names', lambda config: None)
    monkeypatch.setattr('t3d.data.sources.resolve', lambda config: config)
    monkeypatch.setattr('t3d.train.checked.prepare', lambda config, given: (make(), DATA))
    (tmp_path / 'small.py').write_text(f'def get_config(variant=""):\n    return {config(steps=2)!r}\n')
    command = ['train', str(tmp_path / 'small.py'), '--workdir', str(tmp_path / 'run')]
    assert cli.main(command) == 0 and not finished
    assert 'stopped after the last step, 2: saved' in capsys.readouterr().out and int(state(tmp_path / 'run').step) == 2
    monkeypatch.setattr(loop, '_write_preview', drawn)
    assert cli.main(command) == 0 and len(finished) == 1  # as README says of a finished run


def test_a_launcher_leaves_with_130(capsys):
    with pytest.raises(SystemExit) as left, parsing.refusing(parsing.Parser(prog='x')):
        raise KeyboardInterrupt
    assert left.value.code == 130 and not capsys.readouterr().err
