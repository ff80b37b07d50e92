"""`t3d bench start --config ...`: seconds to the end of the first train step, with an empty and with a filled cache.

Each figure is of a process of its own. "From nothing" counts from the start of that process: imports, the shapes, the state
made and the step compiled side by side, data, one step. "The step alone" has its state and batch at hand: traced, compiled or
read back, run once.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

import jax

from t3d.core import errors, parsing

ALONE, WHOLE = 'the step alone', 'from nothing'


def flags() -> parsing.Parser:
    """The flags of `t3d bench start`."""
    from t3d.bench import figures

    parser = figures.parser('start', main.__doc__)
    parser.add_argument('--config', default='configs/instant3d.py:tiny')
    parser.add_argument('overrides', nargs='*', metavar='key=value')
    return parser


def main(argv=None) -> int:
    """Runs the processes and prints the table."""
    from t3d.bench import figures

    args, rest = flags().parse_known_args(argv)
    args.overrides += rest
    words = [args.config, *args.overrides]
    timings, data = {f'{what}, {cache}': [] for what in (WHOLE, ALONE) for cache in ('cold', 'warm')}, ''
    for _ in range(args.repeats):
        for what in (WHOLE, ALONE):
            with tempfile.TemporaryDirectory() as folder:
                for cache in ('cold', 'warm'):
                    seconds, data = _process(words, what, folder)
                    timings[f'{what}, {cache}'].append(seconds)
    print(f'{table(timings)}\n\ndata: {data}')
    figures.write(args, 'start', {**timings, 'data': data})
    return 0


def table(timings: dict[str, list[float]]) -> str:
    """Seconds, median and range, a line for each of the four."""
    from t3d.bench import measure

    lines = ['| to the end of the first step | seconds |', '|---|---|']
    return '\n'.join([*lines, *(f'| {name} | {measure.timing(seconds)} |' for name, seconds in timings.items())])


def _process(words: list[str], what: str, folder: str) -> tuple[float, str]:
    """Seconds in a new process that keeps its cache in a folder, and the data that it learned from."""
    environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': folder}
    code = f'import sys; from t3d.bench import start; sys.exit(start.one(sys.argv[1:], {what!r}, {time.time()!r}))'
    process = subprocess.run([sys.executable, '-c', code, *words], capture_output=True, text=True, env=environment)
    if process.returncode:
        ours = 'Traceback (most recent call last)' in process.stderr
        kind = RuntimeError if ours else errors.UsageError
        raise kind(f'no first step of {words[0]}: {process.stderr[-2000:].strip()}')
    seconds, data = json.loads(process.stdout.splitlines()[-1])
    return seconds, data


def one(words: list[str], what: str, began: float) -> str | None:
    """Prints the seconds of this process and its data, or returns what is wrong with the words.

    Args:
      words: config and overrides.
      what: ALONE or WHOLE.
      began: time.time() when the process was started.
    """
    try:
        seconds, data = _seconds(words, what, began)
        print(json.dumps([round(seconds, 2), data]))
    except Exception as error:
        if (text := errors.line(error)) is None:
            raise
        return text


def _seconds(words: list[str], what: str, began: float) -> tuple[float, str]:
    from t3d import systems
    from t3d.bench import train as train_bench
    from t3d.core import config as configs
    from t3d.inference import loading
    from t3d.parallel import devices, sharding
    from t3d.plan import dry_run
    from t3d.train import checked, states, traced
    from t3d.train import program as programs

    devices.compilation_cache()
    devices.keep_freed_memory()
    config = dry_run.resolve(configs.load(words[0], words[1:]))
    given = loading.open_given(config, random=True)
    system = systems.make(config, given)
    checked.refuse_untrained(config, system)
    mesh = devices.make(config.mesh)
    keep = traced.Keep(traced.folder(config, given), config)
    devices.check_batch(config.batch, mesh, config.get('accumulate', 1))
    batches, data = train_bench.batches(config, system)
    with devices.collecting_seldom(), jax.set_mesh(mesh):
        params = states.placed(given, mesh, config.get('fsdp_floor', sharding.FLOOR))
        target = states.abstract(config, system, mesh, params)
        program = programs.Program(config, system, mesh, target, keep=keep, given=params)
        if what == WHOLE:
            program.compile_ahead()
        state, local = states.fresh(config, system, target, keep, params), next(batches)
        if what == ALONE:
            jax.block_until_ready(state)
            began = time.time()
        jax.block_until_ready(program(state, local))
    return time.time() - began, data
