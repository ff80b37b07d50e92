"""Random damage to everything that users write: no traceback, no hang, no memory beyond a bound.

    python tests/fuzz.py --inputs 20000 --seed 0

Each input starts from a good one (fuzz_targets.py), is changed in a few places, and is read in this process. It may be read,
or be refused as commands refuse (t3d.core.errors.line); an argument parser may exit with status 2. Anything else is a fault,
and so is taking longer than SECONDS, or a MemoryError under a limit of MOST_MEMORY beyond what the process had at its start.
An input is a function of (seed, target, number) alone: `--target obj --only 17` repeats one.
"""

import argparse
import collections
import contextlib
import io
import os
import pathlib
import random
import resource
import signal
import sys
import tempfile
import time
import traceback

import fuzz_targets

from t3d.core import errors

SECONDS = 10.0  # for one input
MOST_MEMORY = 1 << 30  # bytes of address space beyond those at the start


class Hang(BaseException):
    """An input took longer than SECONDS; not an Exception, so that no reader catches it."""


def attempt(target: str, seed: int, number: int, folder: pathlib.Path) -> tuple[str, str]:
    """('read' | 'refused' | 'fault', what was said) of one input; `folder` is empty before and after."""
    source = random.Random(f'{seed}/{target}/{number}')
    out = io.TextIOWrapper(io.BytesIO(), encoding='utf-8', write_through=True)  # as strict as a terminal's
    said = io.StringIO()  # replaces what it cannot write, as standard error does
    signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    before = os.getcwd()
    try:
        os.chdir(folder)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            status = fuzz_targets.TARGETS[target](source, folder)
        return ('refused', said.getvalue()) if status else ('read', '')
    except SystemExit as error:
        return ('refused', 'parser') if error.code in (0, 2) else ('fault', f'status {error.code}')
    except (Exception, Hang) as error:
        line = None if isinstance(error, Hang | MemoryError) else errors.line(error)
        if line is not None and isinstance(line, str) and line.strip():
            return 'refused', line
        return 'fault', traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        os.chdir(before)
        fuzz_targets.empty(folder)


def _ring(signum, frame):
    raise Hang(f'more than {SECONDS} s')


def run(seed: int, numbers: dict[str, range], say) -> dict[str, collections.Counter]:
    """{target: Counter of outcomes}; every fault is said at once, faults of one place once."""
    counts, known = {target: collections.Counter() for target in numbers}, collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        for target, some in numbers.items():
            for number in some:
                outcome, text = attempt(target, seed, number, pathlib.Path(name))
                counts[target][outcome] += 1
                if outcome == 'fault':
                    place = '\n'.join(text.strip().splitlines()[-3:])[:400]
                    known[place] += 1
                    if known[place] == 1:
                        say(f'{target} {number}: {text}')
    return counts


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--inputs', type=int, default=20_000, help='over all targets')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--target', choices=fuzz_targets.TARGETS, help='one alone')
    parser.add_argument('--only', type=int, help='one input')
    args = parser.parse_args(argv)
    targets = [args.target] if args.target else list(fuzz_targets.TARGETS)
    each = range(args.only, args.only + 1) if args.only is not None else range(-(-args.inputs // len(targets)))
    run(args.seed - 1, dict.fromkeys(targets, range(60)), lambda text: None)  # imports and first use
    size = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MOST_MEMORY, resource.RLIM_INFINITY))
    start, total = time.monotonic(), collections.Counter()
    for target in targets:
        counts = run(args.seed, {target: each}, lambda text: print(text, flush=True))[target]
        total += counts
        print(f'{target:12} {len(each):6} inputs: {dict(counts)}, {time.monotonic() - start:.0f} s so far', flush=True)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f'{total.total()} inputs, seed {args.seed}: {dict(total)}; {most} MiB resident at most')
    return 1 if total['fault'] else 0


if __name__ == '__main__':
    sys.exit(main())
