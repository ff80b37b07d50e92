"""The progress line, the files, resuming them."""

import io
import json
import sys

import numpy as np
import pytest

from t3d.train import log as logs

VALUES = {
    'loss': 0.183,
    'loss/sds': 0.161,
    'loss/sparsity': 0.022,
    'lr': 1e-2,
    'grad_norm': 2.0,
    'perf/steps_per_sec': 10.1,
    'perf/examples_per_sec': 80.0,
    'perf/rays_per_sec': 41.4e6,
}


def test_progress_line():
    assert logs.progress_line(2400, 10000, VALUES, (6.1 * 2**30, 24 * 2**30)) == (
        'step  2400/10000   24%  eta 12:32  10.1 it/s  41.4 Mray/s  loss 0.183 (sds 0.161 sparsity 0.022)  lr 1.0e-02  '
        'mem 6.1/24 GiB'
    )


@pytest.mark.parametrize(
    'seconds, text', [(5, '00:05'), (752, '12:32'), (3723, '1:02:03'), (90061, '1d 01:01:01'), (np.inf, '?')]
)
def test_clock(seconds, text):
    assert logs.clock(seconds) == text


@pytest.mark.parametrize('value, text', [(41.4e6, '41.4 M'), (999.0, '999 '), (1234.0, '1.23 k'), (2e12, '2 T')])
def test_si(value, text):
    assert logs.si(value) == text


def records(path):
    return [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]


def test_files_and_console(tmp_path):
    lines = []
    log = logs.Log(tmp_path, total=10, batch=4, write=lines.append)
    log.line('devices: none')
    log.progress(5, {'loss': 1.0, 'loss/fit': np.nan, 'count/rays': 100.0}, seconds=2.0, steps=5, wait=0.5)
    log.scalars(5, {'eval/psnr': 20.0})
    log.image(5, np.zeros((4, 4, 3), np.uint8))
    log.close()
    first, second = records(tmp_path)
    assert first['perf/rays_per_sec'] == 250.0 and first['perf/examples_per_sec'] == 10.0
    assert first['perf/data_wait_seconds'] == 0.1 and first['loss/fit'] is None and second == {'step': 5, 'eval/psnr': 20.0}
    assert lines[0] == 'devices: none' and '250 ray/s' in lines[1]
    assert (tmp_path / 'log.txt').read_text().splitlines() == lines
    assert list((tmp_path / 'tensorboard').iterdir())


def test_resume_drops_later_and_cut_lines(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"ste')
    log = logs.Log(tmp_path, total=10, batch=4, write=lambda _: None)
    log.resume(4)
    log.scalars(5, {})
    log.close()
    assert [record['step'] for record in records(tmp_path)] == [2, 4, 5]


def test_only_the_first_process_writes(tmp_path, capsys):
    log = logs.Log(tmp_path, total=10, batch=4, active=False)
    log.line('x')
    log.progress(1, {'loss': 1.0}, seconds=1.0, steps=1)
    log.resume(0)
    log.close()
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out


def test_piped_output_is_one_line_per_interval(tmp_path, capsys):
    log = logs.Log(tmp_path, total=4, batch=1)
    for step in (1, 2):
        log.progress(step, {'loss': 1.0}, seconds=1.0, steps=1)
    log.close()
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_one_bar_on_a_terminal(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, 'stdout', terminal)
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', '160')
    log = logs.Log(tmp_path, total=4, batch=1)
    log.progress(2, {'loss': 1.0}, seconds=1.0, steps=2)
    log.line('saved')
    log.progress(4, {'loss': 0.5}, seconds=1.0, steps=2)
    log.close()
    assert 'saved' in terminal.getvalue() and 'loss 0.5' in terminal.getvalue()
    assert len((tmp_path / 'log.txt').read_text().splitlines()) == 3


def test_bucket_files_are_rewritten(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('old\n')
    file = logs._Rewritten(path, every=0.0)
    file.write('new\n')
    file.close()
    assert path.read_text() == 'old\nnew\n'
