"""docs/pods.md beside docs/pods.jsonl: rows of the table, the commands that make them, what steps cost; the times it states."""

import json
import pathlib
import re
import shlex

import pytest
from small_cli import said

from t3d import cli
from t3d.parallel import devices
from t3d.plan import meshes, sweep
from t3d.train import locks, workdirs

ROOT = pathlib.Path(__file__).parent.parent
PAGE, PLANS = ROOT / 'docs/pods.md', ROOT / 'docs/pods.jsonl'
TEXT = PAGE.read_text()


def planned() -> list[tuple[sweep.Cell, dict]]:
    """(cell, plan) of each line of the file."""
    plans = [json.loads(line) for line in PLANS.read_text().splitlines()]

    def cell(plan):
        overrides = tuple(word for word in plan['overrides'] if not word.startswith('batch='))
        return sweep.Cell(plan['config'], overrides, plan['topology'], meshes.show(plan['mesh']), plan['batch'])

    return [(cell(plan), plan) for plan in plans]


def test_the_table_is_that_of_the_plans():
    made = [sweep._row(cell, plan, '') for cell, plan in planned()]
    assert sorted(made) == sorted(sweep.rows(PAGE))


def test_the_commands_of_the_page_make_each_row_of_the_table_and_no_other(monkeypatch):
    cells = []
    monkeypatch.setattr(sweep, 'run', lambda some, path, **settings: cells.extend(some) or len(some))
    lines = [line for line in TEXT.splitlines() if line.endswith(f'--table {PAGE.relative_to(ROOT)}')]
    for line in lines:
        program, *words = shlex.split(line)
        assert program == '.venv-plan/bin/t3d' and cli.main(words) == 0
    assert len(cells) == len(set(cells)) and set(cells) == {cell for cell, _ in planned()}
    assert [plan['topology'] for _, plan in planned() if plan['fits'] is False] == ['v5e:4x4']  # what was made to overflow


def test_what_steps_cost_is_made_of_the_plans(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    ((command, block, again),) = re.findall(r'<!-- made by (.*): begin -->\n(.*)<!-- made by (.*): end -->', TEXT, re.S)
    assert command == again and command in re.findall(r'^t3d plan --costs .*', TEXT, re.M)
    assert block.strip() == said(capsys, *shlex.split(command)[1:]).strip(), f'put the output of {command} there'


@pytest.mark.parametrize(
    ('row', 'seconds'),
    [('a coordinator', devices.MEET), ('a run folder', workdirs.SHARED), ('two trainings', locks.WATCH)],
)
def test_the_times_of_refusals_are_those_of_the_code(row, seconds):
    section = TEXT.partition('## Wrong input')[2].partition('\n## ')[0]
    (line,) = [line for line in section.splitlines() if line.startswith(f'| {row}')]
    when = line.split('|')[3]
    assert re.search(rf'\b{seconds:.0f}\b', when), when
