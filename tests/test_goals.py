"""Goals on a processor: what lines of figures say of them, the page that is made of them, and the curves."""

import argparse
import json
import pathlib
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from launch import bench_page
from t3d.bench import figures, goals, measure, roof, scale, series, table, verdicts
from t3d.core import config as configs
from t3d.core import environment, tables
from t3d.core.errors import UsageError
from t3d.export import plots

ROOT = pathlib.Path(__file__).parent.parent


def line(benchmark, numbers, **words):
    """A line of JSON as benchmarks write it."""
    machine = {'python': '3.11.7', 'packages': {'jax': '0.10.2'}, 'commit': 'abcdef0123456789'}
    about = {'when': '2026-12-01T10:00:00+00:00', 'cores': 2, 'load': 1.5, 'processor': 'A CPU', 'machine': machine}
    words = {'repeats': 7, **words}
    return {'benchmark': benchmark, 'words': words, **about, 'peers': {'torch': '2.13.0'}, 'figures': numbers}


def row(ratio, ms=100.0, **more):
    return {'t3d_ms': [ms, ms - 1, ms + 1], 'peer_ms': [ms * ratio, 1.0, 2.0], 'ratio': [ratio, 0.5, 9.0], **more}


ROOF = line('roof', {'dtype': 'float32', 'gflop_per_s': 200.0, 'copy_gb_per_s': 30.0, 'rows_gb_per_s': 10.0})
LINES = [
    ROOF,
    line('render', {'tiny': [row(2.5, gflop=5.0, gbyte=1.5, gathered_gbyte=0.8), row(1.99)]}, sizes=['tiny']),
    line('gan', {'phases': {'iteration': row(1.7)}}, size=None),
    line('gan', {'phases': {'iteration': row(0.999)}}, size='128'),
    line('start', {'the step alone, cold': [16.0, 14.0, 15.0], 'the step alone, warm': [2.1, 1.9, 2.2]}, repeats=3),
    {'benchmark': 'mv', 'words': ['--sizes', 'dense'], 'failed': 'status 1'},
]


def goal(workload, what):
    (one,) = [goal for goal in verdicts.GOALS if (goal.workload, goal.what) == (workload, what)]
    return one


def test_a_goal_is_met_from_its_number_on():
    said = {(one.workload, one.what): verdicts.verdict(one, LINES) for one in verdicts.GOALS}
    assert said['triplane render, tiny', 'forward'] == 'met' and said['triplane render, tiny', verdicts.BOTH] == '**missed**'
    assert said['GAN, tiny', 'iteration'] == 'met' and said['GAN, 128 px', 'iteration'] == '**missed**'
    assert said['first step, tiny, cold cache', 'the step alone'] == 'met'  # the median is 15.0 s
    assert said['first step, tiny, warm cache', 'the step alone'] == '**missed**'
    assert said['multi-view UNet, tiny, 4 views', 'forward'] == 'not measured: status 1'
    planes = line('decoder', {'released-planes': {'planes': row(0.5)}})
    assert verdicts.verdict(goal('text to triplane, released size', 'forward'), [planes]) == 'reported'


def test_the_newest_line_counts():
    newer = line('render', {'tiny': [row(1.0)]})
    assert verdicts.measured(goal('triplane render, tiny', 'forward'), [*LINES, newer])[0] == 1.0
    assert verdicts.measured(goal('triplane render, tiny', verdicts.BOTH), [*LINES, newer])[0] == 1.99  # which that one lacks


def test_shares_of_the_roofs():
    first = LINES[1]['figures']['tiny'][0]  # 100 ms: 50 of 200 GFLOP/s, 15 of 30 GB/s, 8 of 10 GB/s
    share = verdicts.shares(first, verdicts.roofs(LINES))
    assert share == pytest.approx({'products': 0.25, 'streams': 0.5, 'rows': 0.8}) and verdicts.nearest(share) == 'rows'
    assert verdicts.nearest({'products': 0.33, 'streams': 0.1}) == 'none' and verdicts.nearest({}) == '-'
    quicker = line('roof', {'dtype': 'float32', 'gflop_per_s': 250.0, 'copy_gb_per_s': 20.0, 'rows_gb_per_s': 10.0})
    assert verdicts.roofs([ROOF, quicker]) == {'gflop_per_s': 250.0, 'copy_gb_per_s': 30.0, 'rows_gb_per_s': 10.0}


def test_the_table_has_a_row_for_each_goal():
    rows = verdicts.table(LINES).splitlines()
    assert len(rows) == 2 + len(verdicts.GOALS) and {text.count('|') for text in rows} == {12}
    wanted = (
        '| triplane render, tiny | forward | PyTorch, grid_sample | >= 2.5 | 2.50 [0.50, 9.00] | met | 100.0 [99.0, 101.0] '
    )
    assert rows[2] == f'{wanted}| 250.0 [1.0, 2.0] | 25 %, 50 %, 80 % | rows | 7, abcdef01, 2026-12-01 |'
    wanted = '| first step, tiny, cold cache | the step alone | - | <= 15 s | 15.00 [14.00, 16.00] s | met | - | - '
    assert rows[-2] == f'{wanted}| -, -, - | - | 3, abcdef01, 2026-12-01 |'
    said = verdicts.machine(LINES)
    assert said.startswith('A CPU, 2 cores, Python 3.11.7, jax 0.10.2, torch 2.13.0; load')
    assert '200 GFLOP/s (float32), streams 30 GB/s' in said


CURVE = {'unit': 'rays', 'points': [{'value': 256, 'per_s': 1000.0}, {'value': 1024, 'per_s': 1500.0}]}


def test_the_page_is_written_between_its_marks(tmp_path, capsys):
    file, page = tmp_path / 'goals.jsonl', tmp_path / 'goals.md'
    file.write_text(''.join(json.dumps(one) + '\n' for one in [*LINES, line('scale', {'rays': CURVE})]))
    page.write_text(f'before\n{bench_page.BEGIN}\nstale\n{bench_page.END}\nafter\n')
    bench_page.main(['--figures', str(file), '--page', str(page)])
    text = page.read_text()
    assert text.startswith('before\n') and text.endswith('\nafter\n') and 'stale' not in text
    assert '| rays | 256: 1,000 (1.00); 1024: 1,500 (1.50) | rays |' in text
    assert bench_page.efficiencies(series.read(file)) == {'rays': ([0.0, 2.0], [1.0, 1.5])}
    assert {path.name for path in (tmp_path / 'images').iterdir()} == {bench_page.RATIOS, bench_page.CURVES}
    assert 'triplane render, tiny forward: met' in capsys.readouterr().out
    bench_page.main(['--figures', str(file), '--page', str(page)])
    assert page.read_text() == text
    with pytest.raises(UsageError, match='no place for the figures'):
        bench_page.replaced('a page', 'text')


def test_what_was_not_measured_says_why():
    late = {'benchmark': 'scale', 'words': ['--axes', 'devices'], 'failed': 'not ended after the 49 s\nthat were left'}
    loud = {'benchmark': 'gan', 'words': ['--size', '128'], 'failed': f'status 1: a | b {"x" * 500}'}
    lines = [line('gan', {'phases': {'iteration': row(1.7)}}, size=None), loud, line('scale', {'rays': CURVE}), late]
    text = bench_page.block(lines)
    assert '| devices | not measured: not ended after the 49 s that were left | pictures |' in text
    assert '| rays | 256: 1,000' in text and '| batch | not measured: not reached yet | latents |' in text
    assert (
        len([one for one in text.splitlines() if one.startswith(('| rays', '| samples', '| views', '| batch', '| dev'))]) == 5
    )
    (large,) = [one for one in text.splitlines() if one.startswith('| GAN, 128 px')]
    assert '| - | not measured: status 1: a / b xxx' in large and large.count('|') == 12 and len(large) < 300
    (small,) = [one for one in text.splitlines() if one.startswith('| GAN, tiny')]
    assert '| 1.70 [0.50, 9.00] | met |' in small
    assert verdicts.verdict(goal('GAN, tiny', 'iteration'), [loud]) == 'not measured: not reached yet'  # 128 px failed
    again = [*lines, line('scale', {'devices': {'unit': 'pictures', 'points': CURVE['points']}})]  # what came later counts
    assert '| devices | 256: 1,000 (1.00); 1024: 1,500 (1.50) | pictures |' in bench_page.block(again)
    assert bench_page.block([]).count('not measured: not reached yet') == len(verdicts.GOALS) + len(scale.AXES)
    assert bench_page.CURVES not in bench_page.block([]) and bench_page.pictures([]) == {}


def test_a_checkout_that_differs_from_its_commit_is_told():
    assert [verdicts.short(name) for name in ('abcdef0123456789', 'abcdef0123456789+', None)] == ['abcdef01', 'abcdef01+', '-']


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """(a repository that stands for the checkout, its commit), with a file of code and one of figures."""

    def git(*words):
        author = ('-c', 'user.name=t3d', '-c', 'user.email=t3d@example.com')
        return subprocess.run(['git', '-C', tmp_path, *author, *words], check=True, capture_output=True, text=True).stdout

    for name in ('code.py', 'docs/figures/goals [1].jsonl', 'docs/figures/goals 1.jsonl'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('')
    git('init', '--quiet')
    git('add', '.')
    git('commit', '--quiet', '--message', 'all')
    monkeypatch.setattr(environment, 'CHECKOUT', tmp_path)
    return tmp_path, git('rev-parse', 'HEAD').strip()


def test_the_lines_of_a_series_make_no_other_checkout_for_those_after_them(checkout, monkeypatch):
    root, commit = checkout
    file = root / 'docs/figures/goals [1].jsonl'  # a name that git would read as a pattern
    write = lambda: figures.write(argparse.Namespace(json=str(file), repeats=1), 'own', {})
    monkeypatch.chdir(root / 'docs')
    write()
    write()
    assert environment.commit() == f'{commit}+' and environment.commit('figures/goals [1].jsonl') == commit
    (root / 'code.py').write_text('other code')
    write()
    (root / 'code.py').write_text('')
    (root / 'docs/figures/goals 1.jsonl').write_text('of another series')
    write()
    assert [row['machine']['commit'] for row in series.read(file)] == [commit, commit, f'{commit}+', f'{commit}+']


def test_the_committed_page_is_made_of_the_committed_figures():
    page, lines = (ROOT / 'docs/goals.md').read_text(), series.read(ROOT / 'docs/figures/goals.jsonl')
    assert bench_page.replaced(page, bench_page.block(lines)) == page, 'run python -m launch.bench_page'
    assert all((ROOT / 'docs/images' / name).exists() for name in bench_page.pictures(lines))


def test_a_bar_below_its_goal_has_another_colour():
    picture = plots.ranges({'met': (1.0, 0.9, 1.1, 1.0), 'missed': (0.99, 0.9, 1.1, 1.0)}, 'title', 'ratio')
    assert picture.shape == (132, 900, 3)
    assert tuple(picture[52 - 5, 340]) == plots.COLOURS[0] and tuple(picture[78 - 5, 340]) == plots.COLOURS[1]


def test_every_line_of_the_plan_and_of_its_rehearsal_is_understood():
    for small in (False, True):
        for words in goals.plan(small):
            module = tables.find(words[0], table.BENCHMARKS, 'benchmark', 'main')
            args, rest = module.flags().parse_known_args(words[1:])
            assert not rest and (not small or args.repeats == 1)
            known = getattr(module, 'SIZES', None)
            if known and 'sizes' in args:
                assert set(args.sizes.split(',')) <= set(known)
            if 'config' in args:
                configs.load(args.config)
    planned = {line.split()[0] for line in goals.PLAN}
    assert {one.benchmark for one in verdicts.GOALS} | {'roof', 'scale'} == planned


# -------------------------------------------------------------------------------------------------------------- figures


def test_a_row_has_what_every_benchmark_states():
    program = measure.Compiled(None, 2.5, 3 * measure.MIB, 4e9)
    turns = measure.Turns((100.0, 300.0, 200.0), (200.0, 150.0, 200.0))
    made = figures.row(turns, program, 6e9, {'x': jnp.zeros((2, 3)), 'rest': [np.zeros(4)]}, images=8)
    assert made['shapes'] == {'x': [2, 3], 'rest/0': [4]} and made['mfu'] is None and 'rays_per_s' not in made
    assert made['t3d_ms'] == (200.0, 100.0, 300.0) and made['ratio'] == (1.0, 0.5, 2.0)
    assert (made['gflop'], made['gbyte'], made['compile_s'], made['temp_mib']) == (6.0, 4.0, 2.5, 3.0)
    assert made['tflop_per_s'] == pytest.approx(0.03) and made['images_per_s'] == pytest.approx(40.0)
    assert made['peak_mib'] > 50


def test_bytes_of_a_loop_count_as_often_as_it_runs():
    x = jnp.ones(4096, jnp.float32)
    once = measure.compiled(jnp.sin, x).moved_bytes
    assert once == 2 * 4 * 4096  # read, written

    def many(x):
        import jax

        return jax.lax.fori_loop(0, 50, lambda _, x: jnp.sin(x), x)

    assert 50 * once <= measure.compiled(many, x).moved_bytes < 60 * once


def test_roofs_are_work_over_least_time(monkeypatch):
    monkeypatch.setattr(roof, 'SIZES', {'cpu': (64, 1000, 48, 16)})
    sums = []

    def half_a_second(call, *args, repeats):
        sums.append(np.asarray(call(*args)))
        return 0.5

    monkeypatch.setattr(roof, 'least', half_a_second)
    assert roof.products() == pytest.approx(2 * 64**3 / 0.5 / 1e9) and sums[0].shape == (64, 64)
    assert roof.gather() == pytest.approx(4 * 32 * 48 / 0.5 / 1e9) and sums[1].shape == (3, 16)


def test_a_curve_counts_units_a_second(monkeypatch, tmp_path, capsys):
    asked = []

    def rendered(repeats, image=32, samples=32):
        asked.append((image, samples))
        return {'t3d_ms': [1.0, 1.0, 1.0], 'rays_per_s': 100.0}

    monkeypatch.setattr(scale, 'rendered', rendered)
    monkeypatch.setattr(scale, 'divided', lambda repeats, count: {'t3d_ms': [1.0, 1.0, 1.0], 'images_per_s': 5.0 * count})
    file = tmp_path / 'scale.json'
    assert table.main(['scale', '--axes', 'rays,samples,devices', '--points', '2', '--json', str(file)]) == 0
    curves = json.loads(file.read_text())['figures']
    assert asked == [(16, 32), (32, 32), (32, 16), (32, 32)]
    assert [[point['per_s'] for point in curves[axis]['points']] for axis in curves] == [[100, 100], [1600, 3200], [5, 10]]
    assert '| devices | 2 | 1.0 [1.0, 1.0] | 10 pictures | 2.00 |' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        table.main(['scale', '--axes', 'planes'])


@pytest.mark.slow
def test_points_of_every_curve(monkeypatch):
    monkeypatch.setattr(measure, 'PAUSE', 0.0)
    monkeypatch.setattr(measure, 'WARM', 0.0)
    assert scale.rendered(1, image=4, samples=8)['shapes']['samples'] == [16, 8]
    assert scale.point('views', 2, 1)['row']['shapes']['x'][:2] == [1, 2]
    assert scale.point('batch', 1, 1)['per_s'] > 0
    assert scale.divided(1, 2)['rays_per_s'] > 0
