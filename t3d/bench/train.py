"""`t3d bench train --config ...`: steps and images a second, model TFLOP/s and MFU of each kind of train step."""

import datetime
import importlib.util
import itertools
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from t3d.bench import figures, measure
from t3d.core import cadence, parsing
from t3d.core.typing import PyTree
from t3d.metrics import flops

APART = ('row', 'other steps')  # of the figures: not among those that are printed one a line


def flags() -> parsing.Parser:
    """The flags of `t3d bench train`."""
    parser = figures.parser('train', main.__doc__)
    parser.set_defaults(repeats=15)
    parser.add_argument('--config', default='configs/instant3d.py:tiny')
    parser.add_argument(
        '--steps',
        type=figures.COUNT,
        default=5,
        help='steps in each repeat, or a few more: whole cycles of what runs once in N steps',
    )
    parser.add_argument('overrides', nargs='*', metavar='key=value')
    return parser


def main(argv=None) -> int:
    """Times the loop's own steps on the config's data: all up to the first step apart, then the median of repeats."""
    args, rest = flags().parse_known_args(argv)
    args.overrides += rest
    from t3d.core import config as configs
    from t3d.plan import dry_run

    config = dry_run.resolve(configs.load(args.config, args.overrides))
    result = measured(config, args.repeats, args.steps)
    result['config'] = args.config
    for title, part in {'': result, **result.get('other steps', {})}.items():
        print('\n'.join([title] * bool(title) + [f'{name:>22}  {value}' for name, value in part.items() if name not in APART]))
    figures.write(args, 'train', result)
    return 0


def measured(config, repeats: int, steps: int) -> dict:
    """The figures of one config, JSON-ready; 'row' has those of every benchmark (`figures.row`), of one step.

    Each kind of step that the system has (`System.other_steps`) is timed and counted by itself: on top stands `train_step`, and
    'other steps' has figures and row of the others, by the names that `t3d plan` has for them. Seconds of compiling are of all.
    """
    from t3d import systems
    from t3d.bench import memory
    from t3d.core import tree
    from t3d.inference import loading
    from t3d.parallel import devices, sharding
    from t3d.plan import programs as plans
    from t3d.train import checked, states
    from t3d.train import program as programs

    devices.keep_freed_memory()
    memory.forget_peak()
    given = loading.open_given(config, random=True)
    system = systems.make(config, given)
    checked.refuse_untrained(config, system)
    mesh = devices.make(config.mesh)
    devices.check_batch(config.batch, mesh, config.get('accumulate', 1))
    rows, data = batches(config, system)
    with jax.set_mesh(mesh):
        params = states.placed(given, mesh, config.get('fsdp_floor', sharding.FLOOR))
        began = time.perf_counter()
        target = states.abstract(config, system, mesh, params)
        program = programs.Program(config, system._replace(choose=int), mesh, target, given=params)  # a step's number: its kind
        program.compile_ahead()
        state, metrics = program(states.fresh(config, system, target, given=params), next(rows))
        jax.block_until_ready(metrics)
        first_seconds = time.perf_counter() - began
        parts, count = {}, tree.count(state.params)
        works = plans.works(plans.Model(config, system, jax.eval_shape(lambda: state), given))
        for kind, (name, work) in enumerate(works.items()):
            cycle = cadence.cycle(work.cadences)
            state, times = timed(program, state, rows, kind, repeats, -(-steps // cycle) * cycle)
            parts[name] = of_kind(config, system.batch_spec, program, kind, work, times)
    first, *others = parts
    return {
        'device': f'{mesh.size} x {jax.devices()[0].device_kind}',
        'date': datetime.date.today().isoformat(),
        'jax': jax.__version__,
        'parameters': count,
        'data': data,
        'first step s': round(first_seconds, 1),  # makes the state while the steps compile, then runs one of them
        **parts[first],
        **({'other steps': {name: parts[name] for name in others}} if others else {}),
    }


class Times(NamedTuple):
    """Milliseconds of a step, and of waiting for its data, in each repeat of so many `steps`; rays of a step."""

    turns: tuple[float, ...]
    waits: tuple[float, ...]
    steps: int
    rays: float


def timed(program, state, rows: Iterator, kind: int, repeats: int, steps: int) -> tuple[PyTree, Times]:
    """(state, times) of repeats of one kind of step; one more before them does not count."""
    times, waits = [], []
    for _ in range(repeats + 1):
        began, waited = time.perf_counter(), 0.0
        for _ in range(steps):
            asked = time.perf_counter()
            local = next(rows)
            waited += time.perf_counter() - asked
            state, metrics = program(state, local, kind)
        jax.block_until_ready(metrics)
        times.append(1e3 * (time.perf_counter() - began) / steps)
        waits.append(1e3 * waited / steps)
    return state, Times(tuple(times[1:]), tuple(waits[1:]), steps, float(metrics.get('count/rays', 0)))


def of_kind(config, batch_spec: dict, program, kind: int, work: flops.Work, times: Times) -> dict:
    """The figures of one kind of step, with its row; all of the program that was timed."""
    executable, turns = program.executable(kind), measure.Turns(times.turns, None)
    median, peak = turns.ours.median, flops.peak()
    images = config.batch * config.get('data', {}).get('views', 1)
    rate = work.flops / (median / 1e3)
    temp = executable.memory_analysis().temp_size_in_bytes
    step = measure.Compiled(None, program.compile_seconds, temp, measure.moved(executable))
    sizes = {'images': images, 'rays': round(times.rays)}
    return {
        'step ms': str(turns.ours),
        'steps in a repeat': times.steps,  # whole cycles of what runs once in N steps
        'steps/s': round(1e3 / median, 2),
        'images/s': round(1e3 * images / median, 1),
        **({'krays/s': round(times.rays / median, 1)} if times.rays else {}),
        'wait for data ms/step': round(float(np.median(times.waits)), 2),
        'model GFLOP/step': round(work.flops / 1e9, 2),
        'model TFLOP/s': round(rate / 1e12, 4),
        'MFU': f'{rate / (peak * program.mesh.size):.1%}' if peak else 'peak of this device unknown',
        'attentions by cuDNN': by_cudnn(executable.as_text()),
        'row': figures.row(turns, step, work.flops, batch_spec, str(config.dtype), **sizes),
    }


def by_cudnn(text: str) -> int:
    """How many of the calls in a compiled program are cuDNN's attention, which a GPU may have in half precision."""
    from t3d.train import traced

    return sum(text.count(f'custom_call_target="{target}"') for target in traced.CUDNN)


def batches(config, system) -> tuple[Iterator, str]:
    """This process's batches, as in a run, and the name of their data.

    Where the data, or the packages that read them, are not here, it is one batch that is `made up`, and a line says so.
    """
    from t3d.data import pipeline, sources

    if not system.batch_spec:
        return itertools.repeat({}), 'none'
    try:
        source, transform = sources.make(config, None, system.batch_spec)
        if importlib.util.find_spec(pipeline.READER) is None:
            raise ModuleNotFoundError(f'No module named {pipeline.READER!r}')
    except (FileNotFoundError, ModuleNotFoundError) as error:
        print(f'note: {error}\nnote: numbers made up stand in for the data.')
        return itertools.repeat(made_up(system.batch_spec)), 'made up'
    made = pipeline.make(
        source,
        transform,
        batch=config.batch,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=config.loader.threads,
        prefetch=config.loader.prefetch,
    )
    return made, config.data.name


def made_up(batch_spec: dict) -> dict[str, np.ndarray]:
    """A batch of the right shapes: random pictures, cameras in front of the object, else zeros."""
    pose, lens = np.eye(4, dtype=np.float32), np.array([[1.4, 0, 0.5], [0, 1.4, 0.5], [0, 0, 1]], np.float32)
    pose[1, 1] = pose[2, 2] = -1.0  # at z = 3, looking at the origin, y of the picture downwards
    pose[2, 3] = 3.0
    known = {(4, 4): pose, (3, 3): lens, (25,): np.concatenate([pose.ravel(), lens.ravel()])}

    def one(spec):
        if spec.dtype == np.uint8:
            return np.random.default_rng(0).integers(0, 256, spec.shape, np.uint8)
        for shape, value in known.items():
            if spec.dtype == np.float32 and spec.shape[-len(shape) :] == shape:
                return np.broadcast_to(value, spec.shape).copy()
        return np.zeros(spec.shape, spec.dtype)

    return {name: one(spec) for name, spec in batch_spec.items()}
