import functools
import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d import cli
from t3d.bench import figures, measure, render_workload, table
from t3d.bench import render as render_bench
from t3d.core import words
from t3d.core.errors import UsageError


def test_timing_and_compilation_are_apart():
    program = measure.compiled(lambda x: jnp.sin(x) @ x, jnp.ones((64, 64)))
    assert program.seconds > 0 and program.temp_bytes >= 0
    assert measure.once(program.call, jnp.ones((64, 64))) > 0
    assert str(measure.timing([3.0, 1.0, 2.0])) == '2.0 [1.0, 3.0]'


def test_a_turn_counts_one_call_in_the_midst_of_work(monkeypatch):
    monkeypatch.setattr(measure, 'PAUSE', 0.0)
    log = []

    def side(name, *milliseconds):
        left = list(milliseconds)
        return lambda: log.append(name) or left.pop(0)

    ours = side('ours', 70.0, 40.0, 3.0, 99.0, 1.0, 5.0)  # 70 + 40 wake the machine, 3 counts; 99 + 1 wake it, 5 counts
    slow, quick = side('slow', 200.0, 9.0, 200.0, 7.0), side('quick', 200.0, 6.0, 200.0, 8.0)
    turns = measure.take_turns(ours, [slow, quick], 2)
    assert turns.ours == (4.0, 3.0, 5.0) and turns.theirs == (7.0, 6.0, 8.0)
    np.testing.assert_allclose(turns.ratio, (1.8, 1.6, 2.0))  # 6 / 3 and 8 / 5
    assert log == 2 * ['ours', 'ours', 'ours', 'slow', 'slow', 'quick', 'quick']
    alone = measure.take_turns(side('ours', 100.0, 2.0), [], 1)
    assert alone[:2] == ((2.0,), None) and alone.ours == (2.0, 2.0, 2.0) and alone.theirs is alone.ratio is None


def test_a_turn_tells_the_cores_that_it_kept_busy(monkeypatch):
    monkeypatch.setattr(measure, 'PAUSE', 0.0)
    monkeypatch.setattr(measure, 'WARM', 0.0)

    def working():
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
        return 1.0

    def waiting():
        time.sleep(0.05)
        return 1.0

    (busy,), (idle,) = (turns.cores for turns in measure.all_turns([working, waiting], 1))
    assert 2 * idle < busy <= 1.1


def test_threads_that_lose_by_far_get_two_turns(monkeypatch):
    monkeypatch.setattr(measure, 'PAUSE', 0.0)
    monkeypatch.setattr(measure, 'WARM', 0.0)
    called = {name: 0 for name in (1.0, 10.0, 14.0, 16.0)}

    def side(milliseconds):
        def call():
            called[milliseconds] += 1
            return milliseconds

        return call

    turns = measure.take_turns(side(1.0), [side(16.0), side(14.0), side(10.0)], 5)
    assert turns.others == (10.0,) * 5 and turns.ratio == (10.0, 10.0, 10.0)
    assert called == {1.0: 10, 10.0: 10, 14.0: 10, 16.0: 4}  # each turn wakes the machine by one call


def test_the_rise_of_memory_is_that_of_what_is_written():
    if not os.access('/proc/self/clear_refs', os.W_OK):
        pytest.skip('this system does not say')
    code = 'import numpy as np; from t3d.bench import memory; '  # in a process of its own, which lets go of nothing meanwhile
    code += 'print(memory.peak_growth(lambda: np.ones(64 * 2**20, np.uint8).sum()), memory.peak_growth(lambda: None))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    rise, nothing = map(float, done.stdout.split())
    assert 60 < rise < 80 and nothing < 8


def test_render_prints_the_table(monkeypatch, tmp_path, capsys):
    small = {'batch': 2, 'image': 4, 'size': 8, 'channels': 4, 'coarse': 4, 'fine': 4, 'outputs': 3}
    monkeypatch.setattr(render_workload, 'SHAPES', {'tiny': small})
    monkeypatch.setattr(measure, 'PAUSE', 0.0)
    monkeypatch.setattr(measure, 'WARM', 0.0)
    assert table.main(['render', '--sizes', 'tiny', '--repeats', '2', '--no-peer', '--json', str(tmp_path / 'bench.json')]) == 0
    printed = capsys.readouterr().out
    assert '| tiny | forward |' in printed and '| tiny | forward + backward |' in printed and 'rows of 4' in printed
    assert json.loads((tmp_path / 'bench.json').read_text())['figures']['tiny'][0]['pass'] == 'forward'


def test_a_batch_spread_over_the_devices_renders_the_same(monkeypatch):
    shape = {'batch': 8, 'image': 4, 'size': 8, 'channels': 4, 'coarse': 4, 'fine': 4, 'outputs': 3}
    spread = render_workload.render_workload(shape)
    monkeypatch.setattr(render_workload, 'devices_for', lambda shape: 1)
    alone = render_workload.render_workload(shape)
    assert len(spread.args[1].sharding.device_set) == jax.device_count() == 8
    for name in ('forward', 'both', 'lookup'):
        across, single = (jax.device_get(jax.jit(getattr(work, name))(*work.args[:2], None)) for work in (spread, alone))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), across, single)


@pytest.mark.slow
def test_the_peer_answers():
    pytest.importorskip('torch')
    peer = measure.Peer(render_bench.PEER)
    assert 'torch' in render_bench.load(peer, render_workload.SHAPES['tiny'])
    assert peer.once('forward', 1) > 0 and peer.once('both', 1) > 0
    assert peer.memory('forward') > -8.0  # MiB that the process grew; nothing new may have been needed
    peer.close()


def test_a_train_step_of_any_system_is_measured():
    import test_image_diffusion

    from t3d.bench import train as train_bench

    figures = train_bench.measured(test_image_diffusion.config('mesh.data=1'), repeats=2, steps=1)
    assert 'krays/s' not in figures and figures['steps/s'] > 0 and figures['model GFLOP/step'] > 0
    assert figures['first step s'] > 0 and figures['MFU'] == 'peak of this device unknown'
    row = figures['row']
    assert row['temp_mib'] > 0 and row['gbyte'] > 0 and 0 < row['compile_s'] <= figures['first step s'] + 0.1
    assert round(row['gflop'], 2) == figures['model GFLOP/step'] and row['shapes']['image']


@pytest.mark.parametrize('spec', ['configs/reconstruct.py:tiny', 'configs/guided_mv.py:tiny'])
def test_a_system_that_only_samples_has_no_step_to_time(capsys, spec):
    assert cli.main(['bench', 'train', '--config', spec, '--repeats', '1']) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and 'has nothing to train: `t3d generate' in error and error.count('\n') == 1


@pytest.mark.parametrize(
    ('word', 'meant'),
    (('instant3d', 'decoder'), ('multi-view', 'mv'), ('distillation', 'sds'), ('mvdiffusion', 'mv'), ('decodr', 'decoder')),
)
def test_an_unknown_benchmark_names_the_nearest_by_meaning(capsys, word, meant):
    assert cli.main(['bench', word]) == 2
    error = capsys.readouterr().err
    assert f'unknown benchmark {word!r}: there are decoder, gan, ' in error and f"Did you mean '{meant}'?" in error
    assert set(words.BENCHMARKS) == set(table.BENCHMARKS)


def test_an_unknown_size_is_named(capsys):
    with pytest.raises(SystemExit):
        table.main(['render', '--sizes', '65'])
    assert "unknown size '65': choose from tiny, 64, 128" in capsys.readouterr().err


@pytest.mark.slow
def test_a_start_is_timed_in_processes_that_share_a_cache(tmp_path):
    import small_run

    from t3d.bench import start as start_bench

    words = ['configs/instant3d.py:tiny', *small_run.SMALL, 'mesh.data=1']
    kept = lambda: sorted(
        path.name for path in tmp_path.rglob('*') if path.suffix == '.jaxexport' or path.name.endswith('-cache')
    )
    runs = [start_bench._process(words, start_bench.ALONE, str(tmp_path))]
    files = kept()
    assert any('train_step' in name and name.endswith('.jaxexport') for name in files) and any(
        '-cache' in name for name in files
    )
    runs.append(start_bench._process(words, start_bench.ALONE, str(tmp_path)))
    assert kept() == files and all(second > 0.0 and data == 'toy' for second, data in runs)
    assert start_bench.table({'cold': [second for second, _ in runs]}).splitlines()[-1].startswith('| cold | ')


def test_a_start_that_cannot_be_says_why_without_a_traceback(tmp_path):
    from t3d.bench import start as start_bench

    with pytest.raises(UsageError) as error:
        start_bench._process(['configs/instant3d.py:tiny', 'bach=3'], start_bench.WHOLE, str(tmp_path))
    assert "unknown config key 'bach'. Did you mean 'batch'?" in str(error.value) and 'Traceback' not in str(error.value)


def test_runs_share_a_file_of_lines_that_say_where_they_are_from(tmp_path):
    file = tmp_path / 'bench.jsonl'
    parser = figures.parser('unet', None)
    figures.of_sizes(parser, ('tiny', 'sd21'))
    figures.beside_peer(parser, check='compares')
    for sizes in ('tiny', 'sd21,tiny'):
        args = figures.parsed(parser, ['--sizes', sizes, '--json', str(file)], sizes=('tiny', 'sd21'))
        figures.write(args, 'unet', {'tiny': {'t3d_ms': measure.timing([3.0, 1.0, 2.0])}})
    first, second = (json.loads(line) for line in file.read_text().splitlines())
    assert first['figures']['tiny']['t3d_ms'] == [2.0, 1.0, 3.0] and first['machine']['packages']['jax'] == jax.__version__
    assert second['words'] == {'sizes': ['sd21', 'tiny'], 'repeats': 7, 'check': False, 'no_peer': False}
    for given, peers in (([], True), (['--vs', 'torch'], True), (['--no-peer'], False)):
        assert figures.parsed(parser, given, sizes=('tiny', 'sd21')).no_peer is not peers
    figures.write(args, 'unet', {}, 'diffusers is not installed')
    assert json.loads(file.read_text().splitlines()[2])['no peer'] == 'diffusers is not installed' and 'no peer' not in first
    for given in (['--check', '--no-peer'], ['--vs', 'torch', '--no-peer'], ['--vs', 'jax']):
        with pytest.raises(SystemExit):
            figures.parsed(parser, given, sizes=('tiny', 'sd21'))
