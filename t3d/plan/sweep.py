"""A table of plans over configs, topologies, meshes and batches, in a Markdown file; each plan in a process of its own.

Rows that are there are kept, whatever they say: delete one to have it made again. A compiler that fails, aborts or takes too
long gives a row that says so, and the next plan is begun. The table is the first of the file whose columns are
`report.COLUMNS`; what stands around it stays. All figures of a plan are a line of the file of that name in .jsonl, in place of
what it had of the same row.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import NamedTuple

from t3d.core import files
from t3d.core.errors import UsageError
from t3d.plan import meshes, report

HEADER = '| ' + ' | '.join(report.COLUMNS) + ' |'
RULE = '|---' * len(report.COLUMNS) + '|'
NO_PLAN = 'not planned'  # begins the cell behind the key of a row whose plan failed


class Cell(NamedTuple):
    """A plan of the table: `spec` and `overrides` of the config; topology, mesh and batch as the table has them."""

    spec: str
    overrides: tuple[str, ...]
    topology: str
    mesh: str
    batch: int

    @property
    def name(self) -> str:
        """The config as the table names it: 'instant3d:pod text.frozen=true'."""
        short = self.spec.removeprefix('configs/').replace('.py', '')
        return ' '.join([short, *self.overrides])


def run(cells: list[Cell], path, *, tries: int, quick: bool, limit: float, log: Callable = print) -> int:
    """Fills the table at `path`; returns how many rows were made.

    Args:
      tries, quick: as planner.make. limit: seconds for each plan.
    Raises:
      UsageError: the file is there and has no such table.
    """
    path, made = pathlib.Path(path), 0
    rows(path)
    for cell in cells:
        if _key(cell) in {tuple(row[: report.KEYS]) for row in rows(path)}:
            log(f'kept: {cell.name} on {cell.topology} {cell.mesh}')
            continue
        log(f'planning {cell.name} on {cell.topology} {cell.mesh} batch {cell.batch} ...')
        made_now, why = plan(cell, tries, quick, limit)
        keep(path.with_suffix('.jsonl'), cell, made_now)
        add(path, _row(cell, made_now, why))
        made += 1
    return made


def plan(cell: Cell, tries: int, quick: bool, limit: float, python: str = sys.executable) -> tuple[dict | None, str]:
    """(plan, '') of a cell, made by `t3d plan` in another process of this Python, or (None, why not)."""
    words = ['plan', '--config', cell.spec, *cell.overrides, f'batch={cell.batch}']
    words += ['--topology', cell.topology, '--mesh', cell.mesh, '--tries', str(tries), *(['--quick'] if quick else ())]
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / 'plan.json'
        try:
            done = subprocess.run(
                [python, '-m', 't3d.cli', *words, '--json', str(out)], capture_output=True, text=True, timeout=limit
            )
        except subprocess.TimeoutExpired:
            return None, f'stopped after {limit:.0f} s'
        if out.exists() and out.stat().st_size:
            return json.loads(out.read_text()), ''
    lines = [line for line in done.stderr.splitlines() if line.strip()] or ['no message']
    fatal = [line for line in lines if re.match(r'F\d{4} ', line)]  # of the compiler, before it aborts
    faults = fatal[:1] or [line for line in lines if re.match(r'(error: |[\w.]*(Error|Exception)\b)', line)] or lines
    reason = faults[-1].removeprefix('error: ')
    return None, f'{reason[:300]}' if done.returncode in (1, 2) else f'ended with status {done.returncode}: {reason[:200]}'


def rows(path: pathlib.Path) -> list[list[str]]:
    """The cells of the rows of the file's table; [] without a file.

    Raises:
      UsageError: the file has no such table.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding='utf-8').splitlines()
    start, end = _table(path, lines)
    return [[cell.strip() for cell in line.strip().strip('|').split('|')] for line in lines[start:end]]


def keep(path: pathlib.Path, cell: Cell, made: dict | None) -> None:
    """Writes all figures of a plan below those of the others; those that the file has of the same cell go."""
    lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
    others = [line for line in lines if _key_of(line) != _key(cell)]
    if made is not None or others != lines:
        files.write(path, ''.join(f'{line}\n' for line in [*others, *([] if made is None else [json.dumps(made)])]))


def failed(cells: list[Cell], path) -> list[Cell]:
    """Those of the cells whose row in the file's table says that there is no plan of it."""
    none = {tuple(row[: report.KEYS]) for row in rows(pathlib.Path(path)) if row[report.KEYS].startswith(NO_PLAN)}
    return [cell for cell in cells if _key(cell) in none]


def add(path: pathlib.Path, cells: list[str]) -> None:
    """Writes a row below the others."""
    line = '| ' + ' | '.join(cell.replace('|', '/') for cell in cells) + ' |'
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, '\n'.join([HEADER, RULE, line]) + '\n')
        return
    lines = path.read_text(encoding='utf-8').splitlines()
    _, end = _table(path, lines)
    files.write(path, '\n'.join([*lines[:end], line, *lines[end:]]) + '\n')


def _table(path, lines: list[str]) -> tuple[int, int]:
    if HEADER not in lines:
        raise UsageError(f'{path} holds no table of plans: give a new file, or put this line and `{RULE}` into it: {HEADER}')
    start = end = lines.index(HEADER) + 2
    while end < len(lines) and lines[end].startswith('|'):
        end += 1
    return start, end


def _key(cell: Cell) -> tuple[str, ...]:
    return tuple(report.key(cell.name, cell.topology, cell.mesh, cell.batch))


def _key_of(line: str) -> tuple[str, ...] | None:
    """The key of the row whose plan `plan` wrote, the batch last of the overrides; None: the line is none of these."""
    try:
        made = json.loads(line)
        *overrides, batch = made['overrides']
        cell = Cell(made['config'], tuple(overrides), made['topology'], meshes.show(made['mesh']), batch.removeprefix('batch='))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return _key(cell)


def _row(cell: Cell, made: dict | None, why: str) -> list[str]:
    if made is None:
        return [*_key(cell), f'{NO_PLAN}: {why}', *['-'] * (len(report.COLUMNS) - report.KEYS - 1)]
    return [*_key(cell), *report.row(cell.name, made)[report.KEYS :]]
