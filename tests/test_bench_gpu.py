"""All benchmarks of an accelerator in one go: what runs, what fails, what time does not reach, and what is not run again."""

import json
import shlex

import pytest

from t3d.bench import gpu, series, table
from t3d.core import config as configs
from t3d.core import tables
from t3d.core.errors import UsageError

OWN = """
import sys
from t3d.bench import figures


def main(argv):
    parser = figures.parser('own', None)
    parser.add_argument('--status', type=int, default=0)
    args = parser.parse_args(argv)
    if args.status:
        print('no room on the device', file=sys.stderr)
        return args.status
    figures.write(args, 'own', {'ms': args.repeats})
    return 0
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Benchmarks of one's own in the working directory: one that runs, one that fails, another that runs."""
    (tmp_path / 'own_bench.py').write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, 'PLAN', ('own_bench', 'own_bench --status 3', 'own_bench --repeats 5'))
    return tmp_path / 'gpu.jsonl'


def test_one_that_fails_costs_its_own_figures_alone_and_the_same_words_go_on(own, capsys):
    assert gpu.main([]) == 1
    rows = [json.loads(line) for line in own.read_text().splitlines()]
    assert [row.get('figures') for row in rows] == [{'ms': 7}, None, {'ms': 5}]
    assert rows[1]['failed'] == 'status 3: no room on the device' and rows[2]['asked'] == ['own_bench', '--repeats', '5']
    assert '2 of 3 benchmarks have figures' in capsys.readouterr().out
    assert gpu.main([]) == 1 and len(own.read_text().splitlines()) == 4  # the one that failed, once more
    assert '1 benchmarks, at most' in capsys.readouterr().out


def test_what_time_does_not_reach_is_listed(own, capsys):
    assert gpu.main(['--seconds', '2']) == 1 and not own.exists()
    said = capsys.readouterr().out
    goes_on = 'what these do not reach goes on: t3d bench gpu --json gpu.jsonl'
    assert said.splitlines()[0] == f'3 benchmarks, at most 2 s; {goes_on}'
    assert 'not reached in 2 s: own_bench; own_bench --status 3; ' in said
    assert 'These go on: t3d bench gpu --json gpu.jsonl' in said
    assert series.one(['own_bench'], own, 0.01) == 'not ended after the 0 s that were left'


def test_a_file_of_something_else_is_refused(own):
    own.write_text('a red cube\n')
    with pytest.raises(UsageError, match=r'gpu.jsonl, line 1 is none of figures .* name another --json'):
        gpu.main([])


def test_every_line_of_the_plan_and_of_its_rehearsal_is_understood():
    for small in (False, True):
        for words in gpu.plan(small):
            module = tables.find(words[0], table.BENCHMARKS, 'benchmark', 'main')
            args, rest = module.flags().parse_known_args(words[1:])
            assert all('overrides' in args and '=' in word for word in rest) and (not small or args.repeats == 2)
            if 'sizes' in args and hasattr(module, 'SIZES'):
                assert set(args.sizes.split(',')) <= set(module.SIZES)
            if 'config' in args:
                configs.load(args.config, [*args.overrides, *rest])
            assert not small or not {'base', 'sd21', 'mvdream', 'released'} & {*shlex.join(words).replace(':', ' ').split()}
    assert len(gpu.PLAN) == len(set(gpu.PLAN))
    assert {line.split()[0] for line in gpu.PLAN} == {*table.BENCHMARKS} - {'gpu', 'goals', 'scale'}
