"""What the benchmarks have in common beside their figures: words, the machine, the peer's life, and lines of JSON.

`--json FILE` adds a line to a file, so that several runs, sizes and machines share one:

    {"benchmark": "unet", "words": {"sizes": ["tiny"], ...}, "when": "2026-11-29T02:30:00+00:00", "cores": 2, "load": 0.4,
     "processor": ..., "machine": {"t3d": ..., "packages": {...}, "commit": ..., "devices": [...]}, "peers": {"torch": ...},
     "figures": {...}}

A `measure.Timing` stands there as [median, min, max] in ms. What a timed program has in every benchmark is `row`.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import jax
import numpy as np

from t3d.bench import measure, memory
from t3d.core import environment, parsing, rules
from t3d.core.typing import PyTree
from t3d.metrics import flops

COUNT = rules.argument(rules.Whole(1, 10**6))
PEERS = ('torch', 'diffusers')  # packages whose versions a line states beside those of a run


def parser(name: str, description: str | None) -> parsing.Parser:
    """The words that every benchmark takes: `--repeats`, `--json`."""
    made = parsing.Parser(
        prog=f't3d bench {name}', description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument('--repeats', type=COUNT, default=7)
    made.add_argument('--json', type=parsing.json_file, help='also add the figures to this file, a line of JSON for each run')
    return made


def beside_peer(made: parsing.Parser, peer: str = 'PyTorch', check: str = '', others: Mapping[str, str] = MappingProxyType({})):
    """Adds `--vs torch`, the default, and `--no-peer`; and `--check` where there is a sentence on what it compares.

    others: peers that `--vs` takes besides, by their words: what they are.
    """
    if check:
        made.add_argument('--check', action='store_true', help=check)
    beside = made.add_mutually_exclusive_group()
    told = '; '.join([f'beside {peer}: the default', *(f'{word}: {what}' for word, what in others.items())])
    beside.add_argument('--vs', choices=('torch', *others), default=argparse.SUPPRESS, help=told)
    beside.add_argument('--no-peer', action='store_true', help=f'without {peer}')
    made.set_defaults(peer=peer)


def of_sizes(made: parsing.Parser, known: Iterable[str], default: str = 'tiny') -> None:
    """Adds `--sizes`: some of the known ones."""
    made.add_argument('--sizes', default=default, help=f'some of {",".join(known)}')


def parsed(made: parsing.Parser, argv, **known) -> argparse.Namespace:
    """The words of a command, lists cut at their commas.

    Args:
      known: {name of a list: what may stand in it}, sizes=..., passes=....
    Ends the program with 2 for others, and where a check is asked for without the peer that it compares with.
    """
    args = made.parse_args(argv)
    for name, choices in known.items():
        chosen = getattr(args, name).split(',')
        if unknown := [one for one in chosen if one not in choices]:
            one = {'sizes': 'size', 'passes': 'pass'}.get(name, name)
            made.error(f'unknown {one} {unknown[0]!r}: choose from {", ".join(choices)}')
        setattr(args, name, chosen)
    if getattr(args, 'check', False) and args.no_peer:
        made.error(f'--check compares with {args.peer}: leave --no-peer out.')
    return args


def machine(*more: str) -> str:
    """A line on where the figures come from."""
    count = f', devices: {jax.device_count()}' if jax.device_count() > 1 else ''
    facts = [
        f'{jax.devices()[0].device_kind} ({jax.default_backend()})',
        f'{len(os.sched_getaffinity(0))} cores{count}',
        f'jax {jax.__version__}',
        f'{platform.python_implementation()} {platform.python_version()}',
        f'load {os.getloadavg()[0]:.1f}',
    ]
    return ', '.join([*facts, *more])


@contextlib.contextmanager
def peer(args, script, needs: tuple[str, ...] = ('torch',)):
    """`with peer(...) as (peer, why_not)`: one of the two is None; the process ends with the block."""
    started, why_not = measure.start_peer(args.no_peer, script, needs)
    try:
        yield started, why_not
    finally:
        if started:
            started.close()


def told(peer_is: str | None, why_not: str | None) -> str:
    """'peer: torch 2.13.0', or 'no peer: diffusers is not installed'."""
    return f'peer: {peer_is}' if peer_is else f'no peer: {why_not}'


def row(
    turns: measure.Turns,
    program: measure.Compiled,
    flop: float,
    inputs: PyTree,
    dtype: str = 'float32',
    *,
    images: int = 0,
    rays: int = 0,
) -> dict:
    """The figures of a timed program that every benchmark has, JSON-ready.

    Args:
      flop: model FLOPs of a call.
      inputs: the arrays (or their shapes) that say how large the work is; weights may be left out.
      dtype: of the products.
      images, rays: that a call makes, 0 where it makes none.
    Returns:
      'shapes', 'dtype'; 't3d_ms', 'peer_ms' and 'ratio' (theirs over ours, turn by turn), each [median, min, max] or None, and
      the turns themselves, with the 'cores' that each of ours kept busy; 'gflop', 'tflop_per_s', 'mfu' (None where the peak of
      the device is not known); 'gbyte' that kernels of one device read and write; 'compile_s'; 'temp_mib'; 'peak_mib' since
      `memory.forget_peak`; 'images_per_s' and 'rays_per_s' where there are such.
    """
    seconds, peak = 1e-3 * turns.ours.median, flops.peak()
    shapes = {jax.tree_util.keystr(path, simple=True, separator='/'): list(np.shape(leaf)) for path, leaf in leaves(inputs)}
    facts = {
        'shapes': shapes,
        'dtype': dtype,
        't3d_ms': turns.ours,
        'peer_ms': turns.theirs,
        'ratio': turns.ratio,
        'turns_ms': turns.mine,
        'peer_turns_ms': turns.others,
        'cores': turns.cores,
        'gflop': flop / 1e9,
        'tflop_per_s': flop / seconds / 1e12,
        'mfu': flop / seconds / (peak * jax.device_count()) if peak else None,
        'gbyte': None if program.moved_bytes is None else program.moved_bytes / 1e9,
        'compile_s': program.seconds,
        'temp_mib': program.temp_bytes / measure.MIB,
        'peak_mib': memory.peak_mib(),
    }
    made = {'images_per_s': images, 'rays_per_s': rays}
    return {**facts, **{name: count / seconds for name, count in made.items() if count}}


def leaves(inputs: PyTree) -> list:
    """(path, leaf) of each array."""
    return jax.tree_util.tree_flatten_with_path(inputs)[0]


def processor() -> str:
    """The name of this machine's processor, 'unknown' where the system does not say."""
    try:
        with open('/proc/cpuinfo') as file:
            name = re.search(r'^model name\s*: (.*)$', file.read(), re.M)
    except OSError:
        name = None
    return name[1].strip() if name else platform.processor() or 'unknown'


def write(args, benchmark: str, figures: dict, why_no_peer: str | None = None) -> None:
    """Adds the line of a run to the file of `--json`, if there is one; where there was no peer, 'no peer' says why."""
    if not args.json:
        return
    words = {name: value for name, value in vars(args).items() if name not in ('json', 'peer')}
    line = {
        'benchmark': benchmark,
        'words': words,
        'when': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'cores': len(os.sched_getaffinity(0)),
        'load': round(os.getloadavg()[0], 2),
        'processor': processor(),
        'machine': environment.environment(args.json),  # whose lines before this one are no other code
        'peers': environment.versions(PEERS),
        **({'no peer': why_no_peer} if why_no_peer else {}),
        'figures': figures,
    }
    with open(args.json, 'a') as file:
        file.write(json.dumps(line) + '\n')
