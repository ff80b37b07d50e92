"""How benchmarks measure: repeated turns of t3d and a peer process, compilation apart, memory as the system counts it.

Rules of measurement: compilation is timed apart; the median of at least 7 runs with the smallest and largest beside it; t3d and
the peer take turns, so that other load on the machine meets both; a turn is timed in the midst of work, as steps of a training
are; ratios are printed of the medians and of the minima.
"""

import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import jax

from t3d.plan import hlo_cost

PEERS = pathlib.Path(__file__).resolve().parents[2] / 'tests' / 'peers'  # of a checkout
MIB = 2**20
PAUSE = 0.3  # s before each turn: the threads of the other side may still wait, spinning, for more work
WARM = 100.0  # ms of work in each turn before a call counts: a second core joins in after some 60 ms (measured, Linux guest)
THREADS = sorted({1, len(os.sched_getaffinity(0))})  # the peer runs with each, the better one counts: waiting threads cost
TRIED, LOST = 2, 1.5  # after so many turns, a number of threads that took LOST times the quickest is left out


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


class Turns(NamedTuple):
    """Milliseconds of each turn: ours, and beside it the better peer's (None without one); cores that ours kept busy."""

    mine: tuple[float, ...]
    others: tuple[float, ...] | None
    cores: tuple[float, ...] = ()

    @property
    def ours(self) -> Timing:
        return timing(self.mine)

    @property
    def theirs(self) -> Timing | None:
        return timing(self.others) if self.others else None

    @property
    def ratio(self) -> Timing | None:
        """Theirs over ours, turn by turn: what slowed the machine met both sides of a turn."""
        return timing([b / a for a, b in zip(self.mine, self.others, strict=True)]) if self.others else None


def once(function, *args) -> float:
    """Milliseconds of one call, its result waited for."""
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return 1e3 * (time.perf_counter() - start)


def turn(call) -> tuple[float, float]:
    """(what one `call() -> ms` returns, cores that this process kept busy in it), right after calls that took WARM ms together
    and do not count.
    """
    time.sleep(PAUSE)
    spent = call()
    while spent < WARM:
        spent += call()
    began, used = time.perf_counter(), time.process_time()
    milliseconds = call()
    return milliseconds, (time.process_time() - used) / max(time.perf_counter() - began, 1e-9)


def take_turns(ours, theirs: list, repeats: int) -> Turns:
    """`repeats` turns of ours and of each of theirs, all `() -> ms`, one after the other; the better of theirs counts."""
    mine, others = [], [[] for _ in theirs]
    for number in range(repeats):
        mine.append(turn(ours))
        least = [min(milliseconds, default=0.0) for milliseconds in others]
        for call, milliseconds, own in zip(theirs, others, least, strict=True):
            if number < TRIED or own <= LOST * min(least):
                milliseconds.append(turn(call)[0])
    whole = [tuple(milliseconds) for milliseconds in others if len(milliseconds) == repeats]
    milliseconds, cores = zip(*mine)
    return Turns(milliseconds, min(whole, key=timing) if whole else None, cores)


def all_turns(calls, repeats: int) -> list[Turns]:
    """The turns of each of the calls, all `() -> ms`: `repeats` of them, one after the other."""
    made = [[] for _ in calls]
    for _ in range(repeats):
        for call, own in zip(calls, made, strict=True):
            own.append(turn(call))
    return [Turns(milliseconds, None, cores) for milliseconds, cores in (zip(*own) for own in made)]


class Compiled(NamedTuple):
    """A compiled function and what compiling it took and needs."""

    call: object
    seconds: float  # tracing and compiling, no cache
    temp_bytes: int  # XLA's temporaries on one device, without arguments and results
    moved_bytes: float | None = None  # what its kernels read and write on one device, see moved


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
    return Compiled(call, seconds, call.memory_analysis().temp_size_in_bytes, moved(call))


def moved(call) -> float | None:
    """Bytes that the kernels of a compiled program read and write on one device, loops in full (t3d.plan.hlo_cost).

    Caches serve a part of them. None for a program whose text is not understood.
    """
    try:
        return hlo_cost.of(call.as_text(), jax.device_count()).bytes
    except (KeyError, IndexError, ValueError, TypeError):
        return None


class Peer:
    """A PyTorch program in a process of its own; answers one JSON line to each request."""

    def __init__(self, script):
        self.process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

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


def start_peer(refused: bool, script, needs: tuple[str, ...] = ('torch',)):
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
