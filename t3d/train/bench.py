"""`t3d bench`: how fast this machine renders, beside a plain PyTorch peer that runs in a second process, turn by turn.

Rules of measurement: compilation is timed apart; the median of at least 7 runs with the smallest and largest beside it; t3d and
the peer take turns, so that other load on the machine meets both; a turn is timed in the midst of work, as steps of a training
are; ratios are printed of the medians and of the minima.
"""

import argparse
import functools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import rules
from t3d.train import bench_workload, memory

PEER = pathlib.Path(__file__).resolve().parents[2] / 'tests' / 'peers' / 'torch_renderer.py'
MIB = 2**20
PAUSE = 0.3  # s before each turn: the threads of the other side may still wait, spinning, for more work
WARM = 100.0  # ms of work in each turn before a call counts: a second core joins in after some 60 ms (measured, Linux guest)
THREADS = sorted({1, len(os.sched_getaffinity(0))})  # the peer runs with each, the better one counts: waiting threads cost


class Timing(NamedTuple):
    """Milliseconds of repeated runs."""

    median: float
    min: float
    max: float

    def __str__(self):
        return f'{self.median:.1f} [{self.min:.1f}, {self.max:.1f}]'


def timing(milliseconds) -> Timing:
    """The summary of a list of measurements."""
    return Timing(statistics.median(milliseconds), min(milliseconds), max(milliseconds))


def once(function, *args) -> float:
    """Milliseconds of one call, its result waited for."""
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return 1e3 * (time.perf_counter() - start)


def turn(call) -> float:
    """What one `call() -> ms` returns, right after calls that took WARM ms together and do not count."""
    time.sleep(PAUSE)
    spent = call()
    while spent < WARM:
        spent += call()
    return call()


def take_turns(ours, theirs: list, repeats: int) -> tuple[Timing, Timing | None]:
    """(timing of ours, the better of theirs or None): `repeats` turns of each, all of them `() -> ms`, one after the other."""
    found = [[] for _ in (ours, *theirs)]
    for _ in range(repeats):
        for call, milliseconds in zip((ours, *theirs), found, strict=True):
            milliseconds.append(turn(call))
    mine, *others = (timing(milliseconds) for milliseconds in found)
    return mine, min(others) if others else None


class Compiled(NamedTuple):
    """A compiled function and what compiling it took and needs."""

    call: object
    seconds: float  # tracing and compiling, no cache
    temp_bytes: int  # XLA's temporaries on one device, without arguments and results


def compiled(function, *args) -> Compiled:
    """Compiles for these arguments, past any compilation cache."""
    cached = jax.config.jax_enable_compilation_cache
    jax.config.update('jax_enable_compilation_cache', False)
    try:
        start = time.perf_counter()
        call = jax.jit(function).lower(*args).compile()
        seconds = time.perf_counter() - start
    finally:
        jax.config.update('jax_enable_compilation_cache', cached)
    return Compiled(call, seconds, call.memory_analysis().temp_size_in_bytes)


class Peer:
    """The PyTorch renderer in a process of its own; answers one JSON line to each request."""

    def __init__(self, script=PEER):
        self.process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def load(self, shape: dict) -> str:
        """Gives it a size; returns what it is ('torch 2.13.0, cpu, 2 threads')."""
        rays = jax.tree.map(lambda leaf: np.asarray(leaf).ravel().tolist(), bench_workload.rays_of({**shape, 'batch': 1}))
        return self.ask(
            {
                'shape': {
                    **shape,
                    **bench_workload.CAMERA,
                    'rays': shape['image'] ** 2,
                    'device': jax.default_backend(),
                    'origins': rays.origins,
                    'directions': rays.directions,
                }
            }
        )['is']

    def once(self, name: str, threads: int) -> float:
        """Milliseconds of one 'forward' or 'both' with so many threads."""
        return self.ask({'run': name, 'threads': threads})['ms']

    def runs(self, name: str) -> list:
        """`once` of a name for each of THREADS, without arguments."""
        return [functools.partial(self.once, name, threads) for threads in THREADS]

    def memory(self, name: str) -> float | None:
        """MiB by which its resident memory rises in one run."""
        return self.ask({'memory': name})['mib']

    def ask(self, request: dict) -> dict:
        """The answer to one request."""
        self.process.stdin.write(json.dumps(request) + '\n')
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError('the PyTorch peer ended: its message is above. Run with --no-peer to measure t3d alone.')
        return json.loads(answer)

    def close(self):
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait(timeout=30)


def _measure(shape, peer, repeats):
    """Rows of results, one for each pass, and a line on what bounds the forward pass."""
    work = bench_workload.render_workload(shape)
    rows, rays = [], shape['batch'] * shape['image'] ** 2
    for name, function in (('forward', work.forward), ('both', work.both)):
        program = compiled(function, *work.args)
        rss = memory.peak_growth(lambda program=program: once(program.call, *work.args))
        peer_rss = peer.memory(name) if peer else None
        ours, theirs = take_turns(functools.partial(once, program.call, *work.args), peer.runs(name) if peer else [], repeats)
        rows.append(
            {
                'pass': name,
                't3d_ms': ours,
                'mray_per_s': 1e-3 * rays / ours.median,
                'compile_s': program.seconds,
                'temp_mib': program.temp_bytes / MIB,
                'rss_mib': rss,
                'peer_rss_mib': peer_rss,
                'peer_ms': theirs,
            }
        )
    lookup, _ = take_turns(functools.partial(once, compiled(work.lookup, *work.args).call, *work.args), [], repeats)
    bytes_gathered = 4.0 * shape['channels'] * work.rows
    bound = (
        f'forward gathers {work.rows / 1e6:.2f} M rows of {shape["channels"]} = {bytes_gathered / MIB:.0f} MiB; the '
        f'lookups alone take {lookup} ms = {1e-6 * bytes_gathered / lookup.median:.1f} GB/s of rows, '
        f'{100 * lookup.min / rows[0]["t3d_ms"].min:.0f} % of the pass; the point MLP is {1e-9 * work.flops:.2f} GFLOP '
        f'and {work.flops / (2 * (shape["channels"] + 1 + shape["outputs"])) / 1e6:.1f} M softplus'
    )
    return rows, bound


def _copy_roof() -> float:
    """GB/s of reading and writing 256 MiB: what a streaming kernel reaches on this device, best of 7."""
    data = jnp.ones(64 * MIB, jnp.float32)
    copy = jax.jit(lambda data: data + 1.0, donate_argnums=0)
    data, best = copy(data), float('inf')
    for _ in range(7):
        start = time.perf_counter()
        data = jax.block_until_ready(copy(data))
        best = min(best, time.perf_counter() - start)
    return 2 * 256 * MIB / best / 1e9


HEADER = (
    '| size | pass | t3d, ms: median [min, max] | Mray/s | compile, s | temporaries, MiB | memory rises, MiB | PyTorch, ms '
    '| its memory, MiB | ratio of medians (minima) |',
    '|---|---|---|---|---|---|---|---|---|---|',
)


def _line(size, row):
    ours, theirs = row['t3d_ms'], row['peer_ms']
    ratio = f'{theirs.median / ours.median:.2f} ({theirs.min / ours.min:.2f})' if theirs else '-'
    name = {'forward': 'forward', 'both': 'forward + backward'}[row['pass']]
    return (
        f'| {size} | {name} | {ours} | {row["mray_per_s"]:.3f} | {row["compile_s"]:.1f} | {row["temp_mib"]:.0f} '
        f'| {_mib(row["rss_mib"])} | {theirs or "-"} | {_mib(row["peer_rss_mib"])} | {ratio} |'
    )


def _mib(value: float | None) -> str:
    return '-' if value is None else f'{value:.0f}'


COUNT = rules.argument(rules.Whole(1, 10**6))


def flags() -> argparse.ArgumentParser:
    """Of `t3d bench render`; the other benchmarks have theirs under the same name."""
    parser = argparse.ArgumentParser(prog='t3d bench render', description=render_bench.__doc__)
    parser.add_argument('--sizes', default='tiny,64,128', help=f'some of {",".join(bench_workload.SHAPES)}')
    parser.add_argument('--repeats', type=COUNT, default=7)
    parser.add_argument('--no-peer', action='store_true', help='without the PyTorch renderer')
    parser.add_argument('--json', help='also write the figures to this file')
    return parser


def render_bench(argv=None) -> int:
    """`t3d bench render`: prints a Markdown table; returns 0."""
    parser = flags()
    args = parser.parse_args(argv)
    sizes = args.sizes.split(',')
    unknown = [size for size in sizes if size not in bench_workload.SHAPES]
    if unknown:
        parser.error(f'unknown size {unknown[0]!r}: choose from {", ".join(bench_workload.SHAPES)}')
    peer, why_not = start_peer(args.no_peer)
    device = jax.devices()[0]
    print(
        f'{device.device_kind} ({jax.default_backend()}), {len(os.sched_getaffinity(0))} cores, devices: {jax.device_count()}, '
        f'jax {jax.__version__}, {platform.python_implementation()} {platform.python_version()}, '
        f'load {os.getloadavg()[0]:.1f}, float32'
    )
    print('\n'.join(HEADER), flush=True)
    results, bounds, peer_is = {}, [], None
    try:
        for size in sizes:
            peer_is = peer.load(bench_workload.SHAPES[size]) if peer else None
            results[size], bound = _measure(bench_workload.SHAPES[size], peer, args.repeats)
            bounds.append(f'{size}: {bound}')
            print('\n'.join(_line(size, row) for row in results[size]), flush=True)
    finally:
        if peer:
            peer.close()
    print(f'\npeer: {peer_is or why_not}\nstreaming copy: {_copy_roof():.1f} GB/s\n' + '\n'.join(bounds))
    warn_of_load()
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=1))
    return 0


def start_peer(refused: bool, script=PEER, needs: tuple[str, ...] = ('torch',)):
    """(peer, None) or (None, why there is none)."""
    import importlib.util

    if refused:
        return None, 'not asked for'
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    if missing:
        return None, f'{missing[0]} is not installed: pip install "t3d[test]"'
    if not script.exists():
        return None, f'{script.name} comes with a checkout, not with the installed package'
    return Peer(script), None


def warn_of_load() -> None:
    """Prints a line if other programs ran."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load > 1.5 * cores:
        print(
            f"load {load:.1f} on {cores} cores: other programs ran. Threads that wait for each other suffer most, PyTorch's "
            'among them; trust the minima, or one core: `taskset -c 0 python -m launch.bench render`.'
        )


def _train_bench(argv=None) -> int:
    from t3d.train import bench_train  # reads configs and data, which this file must not

    return bench_train.train_bench(argv)


def _unet_bench(argv=None) -> int:
    from t3d.train import bench_unet

    return bench_unet.unet_bench(argv)


def _gan_bench(argv=None) -> int:
    from t3d.train import bench_gan

    return bench_gan.gan_bench(argv)


def _start_bench(argv=None) -> int:
    from t3d.train import bench_start

    return bench_start.start_bench(argv)


COMMANDS = {'render': render_bench, 'train': _train_bench, 'start': _start_bench, 'unet': _unet_bench, 'gan': _gan_bench}


def main(argv=None) -> int:
    """`t3d bench COMMAND ...`."""
    parser = argparse.ArgumentParser(prog='t3d bench', description='Speed of this machine.', add_help=False)
    parser.add_argument('command', choices=sorted(COMMANDS))
    args, rest = parser.parse_known_args(argv)
    return COMMANDS[args.command](rest)
