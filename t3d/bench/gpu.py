"""`t3d bench gpu`: every benchmark that says something of an accelerator, one after the other, into one file within a time.

    t3d bench gpu --json figures.jsonl                # on the accelerator: ten minutes
    t3d bench gpu --json rehearsal.jsonl --small      # the same words at small sizes, on any machine: is nothing misspelt?

Each benchmark is a process of its own, so that one that fails or runs out of memory costs its own figures alone, and its memory
is free for the next. What is worth most comes first. A line of the file is a benchmark's own (t3d/bench/figures.py), or
`{"benchmark": ..., "words": ..., "failed": ...}`. What the time left does not reach is listed at the end, with the command that
goes on: benchmarks whose figures the file has are not run again.

Without PyTorch and diffusers the peers are left out by each benchmark, which says so.
"""

import json
import pathlib
import shlex
import subprocess
import sys
import time

from t3d.bench import figures
from t3d.core import rules
from t3d.core.errors import UsageError

LEAST = 15.0  # seconds left below which none is begun
SIZE = {'sd21': 'tiny', 'mvdream': 'tiny', 'released': 'tiny', 'tiny,64,128': 'tiny', 'base': 'tiny'}  # in a rehearsal
PLAN = (  # most telling first; a step of each system at `base` size in bfloat16 has its MFU
    'unet --sizes sd21 --dtype bfloat16',
    'train --config configs/image_diffusion.py:base',
    'train --config configs/mvdiffusion.py:base',
    'train --config configs/ganfusion_diffusion.py:base',
    'train --config configs/instant3d.py:base',
    'train --config configs/ganfusion_gan.py:base',
    'train --config configs/renderdiffusion.py:base',
    'render --sizes tiny,64,128',
    'hash',
    'unet --sizes sd21 --check --precision default',
    'unet --sizes sd21',
    'mv --sizes mvdream',
    'decoder --sizes released',
    'start --repeats 1',
    'sds --sizes sd21 --repeats 3',
    'gan --size 128',
    'decoder --check',
    'mv --check',
    'sds --check',
)


def flags():
    """The flags of `t3d bench gpu`."""
    parser = figures.parser('gpu', __doc__)
    parser.add_argument('--seconds', type=rules.argument(rules.Whole(1, 10**6)), default=560, help='for all together')
    parser.add_argument('--small', action='store_true', help='a rehearsal: tiny sizes, two repeats')
    parser.set_defaults(json='gpu.jsonl')
    return parser


def plan(small: bool) -> list[list[str]]:
    """The words of each benchmark."""
    if not small:
        return [shlex.split(line) for line in PLAN]
    return [[*map(_small, shlex.split(line)), '--repeats', '2'] for line in PLAN]


def _small(word: str) -> str:
    head, colon, variant = word.rpartition(':')
    return f'{head}:tiny' if colon and variant == 'base' else SIZE.get(word, word)


def main(argv=None) -> int:
    """Runs what time allows; returns 1 if a benchmark failed or was not reached, else 0."""
    args = flags().parse_args(argv)
    ends, wanted, failed = time.monotonic() + args.seconds, plan(args.small), []
    file = pathlib.Path(args.json)
    known = done(file, wanted)
    print(f'{len(wanted) - len(known)} benchmarks, at most {args.seconds} s', flush=True)
    left = [words for words in wanted if words not in known]
    while left and ends - time.monotonic() > LEAST:
        words = left.pop(0)
        print(f'\n$ t3d bench {shlex.join(words)}', flush=True)
        if reason := one(words, file, ends - time.monotonic()):
            failed.append(words)
            print(f'failed: {reason}', flush=True)
            with open(file, 'a') as lines:
                lines.write(json.dumps({'benchmark': words[0], 'words': words[1:], 'failed': reason}) + '\n')
    again = shlex.join(['t3d', 'bench', 'gpu', '--json', args.json, *(['--small'] if args.small else [])])
    if left:
        print(f'\nnot reached in {args.seconds} s: {"; ".join(map(shlex.join, left))}. These go on: {again}')
    print(f'\n{len(wanted) - len(left) - len(failed)} of {len(wanted)} benchmarks have figures in {file}')
    return 1 if left or failed else 0


def one(words: list[str], file: pathlib.Path, seconds: float) -> str | None:
    """Runs one benchmark, whose line comes into the file; why there is none, if so."""
    command = [sys.executable, '-m', 't3d.cli', 'bench', *words, '--json', str(file)]
    try:
        ended = subprocess.run(command, timeout=seconds, stderr=subprocess.PIPE, text=True)
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


def done(file: pathlib.Path, wanted: list[list[str]]) -> list[list[str]]:
    """Which of the wanted benchmarks have figures in the file. (This process itself never touches the device's memory.)"""
    if not file.exists():
        return []
    found = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            found += [row.get('asked')] if 'figures' in row else []
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(f'{file}, line {number} is none of figures ({error}): name another --json.') from error
    return [words for words in wanted if words in found]
