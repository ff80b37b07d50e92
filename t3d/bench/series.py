"""Several benchmarks one after the other, each a process of its own, into one file within a time.

One that fails or runs out of memory costs its own figures alone, and its memory is free for the next. A line of the file is a
benchmark's own (t3d/bench/figures.py), or `{"benchmark": ..., "words": ..., "failed": ...}`. Benchmarks whose figures the file
has are not run again, so the same command goes on where time ended.
"""

import json
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable

from t3d.bench import figures
from t3d.core import families, parsing, rules
from t3d.core.errors import UsageError

LEAST = 15.0  # seconds left below which none is begun


def flags(name: str, description: str, *, seconds: int, small: str, file: str) -> parsing.Parser:
    """The flags of `t3d bench NAME`, a series: `seconds` and `file` by default, `small` what a rehearsal is."""
    parser = figures.parser(name, description)
    parser.add_argument('--seconds', type=rules.argument(rules.Whole(1, 10**6)), default=seconds, help='for all together')
    parser.add_argument('--small', action='store_true', help=f'a rehearsal: {small}')
    parser.set_defaults(json=file)
    return parser


def main(name: str, parser: parsing.Parser, plan: Callable[[bool], list[list[str]]], argv) -> int:
    """Runs what time allows of `plan(small)`; returns 1 if a benchmark failed or was not reached, else 0."""
    args = parser.parse_args(argv)
    file = pathlib.Path(args.json)
    file.parent.mkdir(parents=True, exist_ok=True)
    again = shlex.join(['t3d', 'bench', name, '--json', args.json, *(['--small'] if args.small else [])])
    return run(plan(args.small), file, args.seconds, again)


def run(wanted: list[list[str]], file: pathlib.Path, seconds: float, again: str) -> int:
    """Runs what time allows and says what it does not reach; returns 1 if a benchmark failed or was not reached, else 0.

    Args:
      wanted: the words of each benchmark after `t3d bench`, most telling first.
      file: where the lines go.
      again: the command that goes on.
    """
    ends, failed, known = time.monotonic() + seconds, [], done(file, wanted)
    goes_on = f'what these do not reach goes on: {again}'
    print(f'{len(wanted) - len(known)} benchmarks, at most {seconds:.0f} s; {goes_on}', flush=True)
    left = [words for words in wanted if words not in known]
    while left and ends - time.monotonic() > LEAST:
        words = left.pop(0)
        print(f'\n$ t3d bench {shlex.join(words)}', flush=True)
        if reason := one(words, file, ends - time.monotonic()):
            failed.append(words)
            print(f'failed: {reason}', flush=True)
            with open(file, 'a') as lines:
                lines.write(json.dumps({'benchmark': words[0], 'words': words[1:], 'failed': reason}) + '\n')
    if left:
        print(f'\nnot reached in {seconds:.0f} s: {"; ".join(map(shlex.join, left))}. These go on: {again}')
    print(f'\n{len(wanted) - len(left) - len(failed)} of {len(wanted)} benchmarks have figures in {file}')
    return 1 if left or failed else 0


def one(words: list[str], file: pathlib.Path, seconds: float) -> str | None:
    """Runs one benchmark, whose line comes into the file; why there is none, if so. What it started ends with it."""
    command = [sys.executable, '-m', 't3d.cli', 'bench', *words, '--json', str(file)]
    try:
        ended = families.run(command, seconds, stderr=subprocess.PIPE, text=True)
    except subprocess.TimeoutExpired:
        return f'not ended after the {seconds:.0f} s that were left'
    if ended.returncode:
        return f'status {ended.returncode}: {" ".join(ended.stderr.split())[-300:] or "see above"}'
    mark(file, words)
    return None


def mark(file: pathlib.Path, words: list[str]) -> None:
    """Writes the words as they were asked for into the last line of the file, by which `done` knows them."""
    lines = file.read_text().splitlines()
    file.write_text('\n'.join([*lines[:-1], json.dumps({**json.loads(lines[-1]), 'asked': words})]) + '\n')


def read(file: pathlib.Path) -> list[dict]:
    """The lines of a file of figures; UsageError for one that is none."""
    rows = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            rows.append({**row, 'asked': row.get('asked')})
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(f'{file}, line {number} is none of figures ({error}): name another --json.') from error
    return rows


def done(file: pathlib.Path, wanted: list[list[str]]) -> list[list[str]]:
    """Which of the wanted benchmarks have figures in the file. (This process itself never touches the device's memory.)"""
    found = [row['asked'] for row in read(file) if 'figures' in row] if file.exists() else []
    return [words for words in wanted if words in found]
