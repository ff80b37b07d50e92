"""The training loop: `run(config, workdir)` for every system, on one device or a pod, interrupted or not.

The loop knows a system by the contract of t3d.core.system and reads the config keys of configs/common.py. Of the other keys it
reads data.split, frozen and preview.columns; it compares render.plane_axes and render.box_warp with those of given weights, and
names what saves memory (loss.rays, data.views, render.samples, decoder.remat) when that runs out. Rerunning in the same folder
resumes. Randomness is a function of the seed and the step: `fold_in(key(seed), step)`, the data of step n
is batch n, so an interrupted run ends with the bits of an uninterrupted one (same devices).
"""

import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from t3d.checkpoint import store as stores
from t3d.checkpoint import weights
from t3d.core import config as configs
from t3d.core import errors, files, prng
from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.core.system import System, TrainState
from t3d.data import pipeline, sources
from t3d.parallel import devices, sharding
from t3d.train import failures, preview, signals, traced, workdirs
from t3d.train import log as logs
from t3d.train.program import Program
from t3d.train.window import Window

KEY_INIT = 2**32 - 1  # folded into the seed's key, as KEY_PREVIEW of program.py; steps stay below
# Of XLA, for hundreds of small random draws that run once: a CPU would spend three times as long compiling them well.
QUICK = {'xla_backend_optimization_level': 0, 'xla_cpu_opt_preset': 'CPU_OPT_PRESET_FAST_COMPILE'}
PLANES = ('render.plane_axes', 'render.box_warp')  # of a config: where in space the numbers of its triplanes are


def run(
    config,
    workdir=None,
    *,
    stop_after: int | None = None,
    log: Callable[[str], None] | None = None,
    system: System | None = None,
    data: tuple | None = None,
    init_from=None,
    traced_in=None,
):
    """Trains, or goes on training, and returns the run folder.

    Args:
      config: a config (ConfigDict or dictionary) with the keys of configs/common.py.
      workdir: the run folder; None makes runs/0001-<system>-<name>. An existing one of the same config is resumed.
      stop_after: stop, as at Ctrl-C, once this many steps are finished (of the whole run).
      log: a function that takes the lines of the console.
      system, data: in place of `systems.make(config)` and `sources.make(config, split)`; data is (source, transform) or
        (source, transform, (batch, labels) for the preview).
      init_from: a run folder or weights folder of the same model: a new run starts from its averaged parameters.
      traced_in: a folder where the traced functions are kept for the next start (t3d.train.traced). Only for a system that t3d
        makes from the config: the code of one of your own is not looked at.
    """
    config = configs.from_dict(config)
    configs.held(config)
    devices.keep_freed_memory()
    mesh = devices.make(config.mesh)
    devices.check_batch(config.batch, mesh)
    if system is None:
        from t3d import systems

        system = systems.make(config)
    with jax.set_mesh(mesh):
        target = abstract(config, system, mesh)  # a network that cannot be built leaves no folder
    active = jax.process_index() == 0
    workdir, lock = workdirs.prepare(workdir, config, (log or print) if active else lambda line: None)
    say = logs.Log(workdir, total=config.steps, batch=config.batch, write=log, active=active)
    stop = signals.Stop()
    try:
        with stop, devices.collecting_seldom(), jax.set_mesh(mesh):
            keep = traced.Keep(traced_in, config)
            _train(config, workdir, lock, mesh, say, stop, stop_after, system, target, data, init_from, keep)
    finally:
        say.close()
        if active:
            lock.release()
    return workdir


def _train(config, workdir, lock, mesh: Mesh, say: logs.Log, stop, stop_after, system, target, data, init_from, keep) -> None:
    say.line(f'{devices.describe(mesh)}; {logs.here()}')
    store = stores.Store(
        workdir / 'checkpoints',
        keep=config.checkpoint.keep,
        keep_every=config.checkpoint.get('keep_every', 0),
        best=config.checkpoint.get('best', ''),
    )
    try:
        program = Program(config, system, mesh, target, say, keep)
        end = min(config.steps, stop_after if stop_after is not None else config.steps)
        latest = store.latest()
        if latest is None:
            refuse(config, target, init_from)  # before anything that takes long
        if (latest or 0) < end:
            program.compile_ahead()
        state = start(config, system, store, mesh, say, target, init_from, keep)
        if mesh.size > 1 and say.active:
            report = sharding.report(target, system.sharding, mesh, config.get('fsdp_floor', sharding.FLOOR))
            (workdir / 'sharding.txt').write_text(report + '\n')
            say.line(report.splitlines()[-1])
        source, batches, shown = _data(config, system, data, int(state.step))
        if 'data' in config:
            say.line(f'{sources.describe(config, source)}; curves: tensorboard --logdir {files.quoted(workdir)}')
        with failures.told(config, store):
            _loop(config, program, state, batches, shown, store, say, stop, end, workdir, lock)
        store.wait()
    finally:
        if jax.process_count() == 1 or not isinstance(sys.exception(), errors.OneProcess):  # it would wait for the others
            store.close()


def start(
    config,
    system: System,
    store: stores.Store,
    mesh: Mesh,
    say: logs.Log,
    target: TrainState,
    init_from=None,
    keep: traced.Keep = traced.NOTHING,
) -> TrainState:
    """The state to train from: restored as `target` (see `abstract`), or made by a sharded init."""
    if store.latest() is None:
        if say.resume(0):
            say.line('no checkpoint was saved before: starting again at step 0')
        state = fresh(config, system, target, keep)
        state = state if init_from is None else _with_weights(state, init_from, mesh, say)
        return _with_frozen(state, config.frozen, say) if config.get('frozen', '') else state
    restored = store.restore(target)
    step = int(restored.state.step)
    if restored.data['position'] != step:
        raise UsageError(f'checkpoint {step}: its data position is {restored.data["position"]}: not made by this loop.')
    say.line(f'resuming from step {step}')
    say.resume(step)
    return restored.state


def abstract(config, system: System, mesh: Mesh) -> TrainState:
    """ShapeDtypeStructs of the state of a run of this config, with their shardings on a mesh."""
    state = jax.eval_shape(_init(config, system), np.uint32(config.seed))
    return sharding.abstract_with(
        state, sharding.shardings(state, system.sharding, mesh, config.get('fsdp_floor', sharding.FLOOR))
    )


def fresh(config, system: System, target: TrainState, keep: traced.Keep = traced.NOTHING) -> TrainState:
    """The state a run of this config starts from, made by a sharded init; `target` as from `abstract`."""
    placed, structure = jax.tree.map(lambda leaf: leaf.sharding, target), jax.tree.structure(target)
    plain = _init(config, system)

    def init(seed):
        function = keep('init', lambda seed: jax.tree.leaves(plain(seed)), jax.ShapeDtypeStruct((), np.uint32))
        return jax.tree.unflatten(structure, function(seed))

    compile_with = lambda options: jax.jit(init, out_shardings=placed, compiler_options=options)(np.uint32(config.seed))
    if jax.default_backend() != 'cpu':
        return compile_with({})
    try:
        return compile_with(QUICK)
    except jax.errors.JaxRuntimeError as error:
        if 'option' not in str(error):
            raise
        return compile_with({})  # a jaxlib without them


def _init(config, system: System):
    """seed -> state."""

    def init(seed):
        key = jax.random.fold_in(prng.key(seed), KEY_INIT)
        return system.init(key, {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in system.batch_spec.items()})

    return init


def refuse(config, target: TrainState, init_from) -> None:
    """Raises UsageError for weights to start from that cannot be meant."""
    if init_from is not None:
        refuse_other_planes(config, init_from)
    if config.get('frozen', ''):
        if 'frozen' not in target.params:
            raise UsageError(f"frozen={str(config.frozen)!r}: this system has no frozen part: set frozen='' in its config.")
        what = "config.frozen names it: the generator that the run's data were made with (launch.make_triplanes)."
        weights.require(config.frozen, what)


def refuse_other_planes(config, folder) -> None:
    """Raises UsageError where the planes of the weights in a folder lie otherwise: they would render plausible nonsense."""
    path = epath.Path(folder) / weights.CONFIG
    ours, theirs = configs.flatten(config), configs.flatten(configs.read(path)) if path.exists() else {}
    wrong = [name for name in PLANES if name in ours and name in theirs and ours[name] != theirs[name]]
    if wrong:
        there = ' '.join(f'{name}={theirs[name]}' for name in wrong)
        here = ', '.join(f'{name}={ours[name]!r}' for name in wrong)
        raise UsageError(f'the weights in {folder} were trained with {there}, this config has {here}: set {there}.')


def _with_weights(state: TrainState, folder, mesh: Mesh, say: logs.Log) -> TrainState:
    """The state with the parameters, and their averages, of another run or weights folder.

    What is never averaged (a GAN's discriminator) comes from a run's checkpoint; weights folders lack it, so it starts anew.
    """
    folder, rest = epath.Path(folder), None
    averaged = bool(jax.tree.leaves(state.ema))
    if (folder / 'checkpoints').exists():
        store = stores.Store(folder / 'checkpoints', read_only=True)
        given = jax.device_get(store.restore_ema(sharding=sharding.replicated(mesh)))
        if averaged and set(trees.flatten(state.params)) - set(trees.flatten(given)):
            rest = _params_of(store, state)
        store.close()
    else:
        given, _ = weights.load(folder)
    given = weights.check(given, state.ema if averaged else state.params, f'the weights in {folder}')
    flat = trees.flatten(given) if rest is None else {**trees.flatten(rest), **trees.flatten(given)}
    new = sorted({name.split('/')[0] for name in trees.flatten(state.params) if name not in flat})
    say.line(f'starting from the weights in {folder}' + (f'; {", ".join(new)} not there: new' if new else ''))
    params = trees.map_with_name(lambda name, old: _put(flat[name], old) if name in flat else old, state.params)
    return state.replace(params=params, ema=jax.tree.map(_put, given, state.ema) if averaged else state.ema)


def _params_of(store: stores.Store, state: TrainState):
    """The parameters that training went on from, on the host; None if the rest of that state (the optimizer) is another's."""
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    try:
        return jax.device_get(store.restore(target).state.params)
    except stores.CorruptCheckpoint:
        raise
    except UsageError:
        return None


def _with_frozen(state: TrainState, folder, say: logs.Log) -> TrainState:
    """The state with params['frozen'], and its average where there is one, from the weights folder that config.frozen names."""
    given, _ = weights.load(folder)
    given = weights.check(given, state.params['frozen'], f'the frozen weights in {folder}')
    say.line(f'frozen part: the weights in {folder}')
    part = lambda tree: {**tree, 'frozen': jax.tree.map(_put, given, tree['frozen'])}
    return state.replace(params=part(state.params), ema=part(state.ema) if 'frozen' in state.ema else state.ema)


def _put(new, old):
    """A host array, laid out as `old`; buffers of its own."""
    return jax.make_array_from_callback(old.shape, old.sharding, lambda index: np.array(new[index]))


def _data(config, system: System, data: tuple | None, start: int):
    """(source, this process's batches from `start` on, (global preview batch, labels))."""
    if data is None:
        source, transform = sources.make(config, config.data.split)
        shown = sources.preview(config, system.batch_spec)
    else:
        source, transform, *rest = data
        shown = rest[0] if rest else None
    loader = config.get('loader') or {'threads': 1, 'prefetch': 4}
    make = lambda **where: pipeline.make(
        source, transform, batch=config.batch, seed=config.seed, threads=loader['threads'], prefetch=loader['prefetch'], **where
    )
    if shown is None:
        shown = (next(make()), None)
    return source, make(process_index=jax.process_index(), process_count=jax.process_count(), start=start), shown


def _loop(
    config, program: Program, state: TrainState, batches, shown, store, say: logs.Log, stop, end: int, workdir, lock
) -> None:
    mesh, many = program.mesh, jax.process_count() > 1
    first = step = int(state.step)
    window = Window(say, store)
    preview_batch = None
    while step < end:
        began = time.perf_counter()
        local = next(batches)
        window.waited(time.perf_counter() - began)
        state, metrics = program(state, local)
        step += 1
        if step == first + 1:
            window.begin(step)  # the first step compiles: not in the rate
        window.add(step, metrics)
        lock.check()
        if due(step, config.log_every):
            window.cut(step)
        stopped = store.reached_preemption() if many else stop.requested
        done = stopped or step == end
        if done or due(step, config.checkpoint.every):
            values = window.flush(step)
            store.save(state, data={'position': step, 'batch': config.batch}, config=config.to_dict(), metrics=values)
        if done or due(step, config.preview_every):
            window.flush(step)
            preview_batch = preview_batch or sharding.whole_batch(shown[0], mesh)
            title = f'step {step}   {config.get("preview", {}).get("columns", "")}'.strip()
            _write_preview(program, state, preview_batch, shown[1], title, say, step, workdir)
            window.begin(step)
        if stopped:
            say.line(f'stopped at step {step}: saved; run the same command again to go on')
            break
    if step == first:
        say.line(f'nothing to do: {step} of {config.steps} steps are finished')


def due(step: int, every: int) -> bool:
    """True at the multiples of `every`; never for 0."""
    return bool(every) and step % every == 0


def _write_preview(program: Program, state, batch, labels, title: str, say: logs.Log, step: int, workdir) -> None:
    images = program.preview(state, batch)
    if not say.active:
        return
    labels = list(labels) if labels is not None else [f'{n}' for n in range(len(images))]
    image = preview.sheet(images, labels[: len(images)], title=title)
    preview.write(workdir / 'previews' / f'{step:08d}.png', image)
    say.image(step, image)
