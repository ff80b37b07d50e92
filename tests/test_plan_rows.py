"""Rows of the table of plans: of several train steps, of the smallest mesh, made anew, and what failed."""

import json

import pytest
from small_cli import alone  # noqa: F401

from t3d import cli
from t3d.plan import chips, costs, planner, programs, report, sweep

GIB = 2**30


def step(flops, temporaries, need, times, compile_seconds, run, sent):
    """A train step as a plan has it; times: (compute, memory, links) in ms."""
    compute, memory, links = (1e-3 * time for time in times)
    line = {'compute_seconds': compute, 'memory_seconds': memory, 'links_seconds': {'all-gather': links}}
    line |= {'least_seconds': max(compute, memory, links), 'most_seconds': compute + memory + links}
    line['bound'] = ('compute', 'memory', 'links')[times.index(max(times))]
    sizes = {'temporary_bytes': temporaries * GIB, 'need_bytes': need * GIB, 'compile_seconds': compile_seconds}
    rows = [{'kind': 'all-gather', 'group': 4, 'count': 2.25, 'bytes': sent * GIB}]
    return {'model_flops': flops, 'device_flops': run, **sizes, 'collectives': rows, 'roofline': line}


LARGE = step(3e12, 7, 9, (4, 6, 5), 100, 1e12, 1)  # needs more memory
SLOW = step(8e12, 2, 3, (10, 30, 35), 50, 3e12, 6)  # takes longer
OVERFLOW = {'model_flops': 1e12, 'overflow': {'need_bytes': 20 * GIB, 'have_bytes': 15.75 * GIB, 'text': 'too much'}}


def plan(*steps, **changes):
    names = ('train_step', 'train_step_1')
    made = {'config': 'configs/instant3d.py:tiny', 'overrides': ['batch=64'], 'topology': 'v5e:2x2', 'devices': 4}
    made |= {'mesh': {'data': 4, 'fsdp': 1, 'tensor': 1}, 'batch': 64, 'parameters': {'p': 2_000_000}, 'given_parameters': {}}
    made |= {'bytes': {'params': GIB}, 'need_bytes': 9 * GIB, 'hbm_bytes': 15.75 * GIB, 'fits': True, 'smallest': None}
    return made | {'programs': dict(zip(names, steps, strict=False))} | changes


@pytest.mark.parametrize('steps', [(LARGE, SLOW), (SLOW, LARGE)])
def test_memory_is_of_the_largest_step_and_the_rest_of_the_slowest(steps):
    assert report.row('instant3d:tiny', plan(*steps)) == [
        '`instant3d:tiny`',
        'v5e:2x2',
        'data=4',
        '64',
        '2.0',
        '1.00',
        '7.00',  # of the larger
        '9.00 of 15.75',
        'yes',
        '8',  # TFLOP of the slower
        '1.50',  # 4 x 3 over 8
        '6.00',
        '10.0 / 30.0 / 35.0',
        'links',
        '150',  # of both
        '-',
    ]
    took = costs.times(plan(*steps))
    assert (took.least, took.most) == (pytest.approx(6e-3), pytest.approx(75e-3))  # from the quicker to the slower


def test_of_a_step_that_overflows_no_time_is_told_and_most_flops_are():
    cells = report.row('instant3d:tiny', plan(LARGE, OVERFLOW, fits=False, need_bytes=20 * GIB))
    assert cells[6:10] == ['-', '20.00 of 15.75', '**no**, 4.25 GiB too much', '3']
    assert cells[12:] == ['-', '-', '100', 'none found']


@pytest.mark.parametrize('tries', [0, 3])
def test_of_the_planned_slice_the_smallest_mesh_is_the_planned_one(monkeypatch, tries):
    """11 of 12 GiB are temporaries: on half the devices 22, which are too many; by fsdp=16 a device would need 11.06."""

    class One:
        system, given, floor, config = None, {}, 0, {}

    monkeypatch.setattr(programs, 'bytes_of', lambda one, sizes: {'params': GIB // sizes['fsdp']})
    monkeypatch.setattr(planner, '_tried', lambda *args: pytest.fail('compiled again'))
    sizes, made = {'data': 16, 'fsdp': 1, 'tensor': 1}, {'bytes': {'params': GIB}, 'need_bytes': 12 * GIB, 'fits': True}
    small = planner.smallest(made, One, chips.topology('v5e:4x4'), sizes, 64, tries, False, print)
    assert small == {'topology': 'v5e:4x4', 'mesh': 'data=16', 'devices': 16, 'need_bytes': 12 * GIB, 'compiled': True}


CELL = sweep.Cell('configs/instant3d.py:tiny', (), 'v5e:2x2', 'data=4', 64)
QUIETLY = dict(tries=0, quick=True, limit=5.0, log=lambda line: None)


def test_a_row_made_anew_leaves_one_plan_of_it(tmp_path, monkeypatch):
    path, other = tmp_path / 'pods.md', CELL._replace(batch=32)
    lines = lambda: [json.loads(line) for line in path.with_suffix('.jsonl').read_text().splitlines()]
    made = lambda cell, state: (plan(LARGE, overrides=[f'batch={cell.batch}'], batch=cell.batch, state_bytes=state), '')
    monkeypatch.setattr(sweep, 'plan', lambda cell, *args: made(cell, 1))
    sweep.run([CELL, other], path, **QUIETLY)
    without = '\n'.join(line for line in path.read_text().splitlines() if '| 64 |' not in line) + '\n'
    path.write_text(without)
    monkeypatch.setattr(sweep, 'plan', lambda cell, *args: made(cell, 2))
    assert sweep.run([CELL, other], path, **QUIETLY) == 1
    assert [(one['batch'], one['state_bytes']) for one in lines()] == [(32, 1), (64, 2)]
    assert len(sweep.rows(path)) == 2
    path.write_text(without)
    monkeypatch.setattr(sweep, 'plan', lambda cell, *args: (None, 'the compiler aborted'))
    sweep.run([CELL], path, **QUIETLY)
    assert [one['batch'] for one in lines()] == [32]  # the row says that there is no plan


def test_other_lines_and_plans_of_systems_without_data_are_kept_apart(tmp_path, monkeypatch):
    """Such a plan has a batch of 0 rows, whatever the config's batch is."""
    path = tmp_path / 'pods.md'
    path.with_suffix('.jsonl').write_text('half a li\n')
    monkeypatch.setattr(sweep, 'plan', lambda cell, *args: (plan(LARGE, overrides=[f'batch={cell.batch}'], batch=0), ''))
    for _ in range(2):
        sweep.run([CELL], path, **QUIETLY)
        path.unlink()
    first, *rest = path.with_suffix('.jsonl').read_text().splitlines()
    assert first == 'half a li' and len(rest) == 1


def test_the_status_of_a_table_tells_of_plans_that_failed(capsys, monkeypatch):
    words = ['plan', '--config', CELL.spec, '--topology', 'v5e:2x2', '--mesh', 'data=4', '--table', 'x.md', '--batch', '32']
    too_large = plan(LARGE, OVERFLOW, fits=False, need_bytes=20 * GIB)
    monkeypatch.setattr(sweep, 'plan', lambda cell, *args: (too_large, ''))
    assert cli.main(words) == 0  # does not fit: a result like others
    monkeypatch.setattr(sweep, 'plan', lambda cell, *args: (None, 'the compiler aborted'))
    for made in (1, 0):  # and again where the row is kept
        assert cli.main([*words, '64']) == 1
        text = capsys.readouterr().out
        assert f'x.md: {made} rows made' in text and '1 not planned, each row says why' in text
    assert cli.main(words) == 0  # of the rows that were asked for
