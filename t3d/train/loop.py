"""The training loop: `run(config, workdir)` for every system, on one device or a pod, interrupted or not.

The loop knows a system by the contract of t3d.core.system and reads the config keys of configs/common.py; of the others it
reads data and preview.columns, where a config has them. Rerunning in the same folder resumes. Randomness is a function of the
seed and the step: `fold_in(key(seed), step)`, the data of step n is batch n, so an interrupted run ends with the bits of an
uninterrupted one (same devices).
"""

import itertools
import sys
from collections.abc import Callable, Mapping

import jax
from jax.sharding import Mesh

from t3d import systems
from t3d.checkpoint import store as stores
from t3d.checkpoint import tiers as tiers_of
from t3d.core import config as configs
from t3d.core import errors, files
from t3d.core.system import Given, System, TrainState, params_of
from t3d.data import pipeline, sources
from t3d.export import sheets
from t3d.inference import given as givens
from t3d.inference import loading
from t3d.parallel import agreement, devices, sharding
from t3d.train import checked, failures, goodput, signals, states, traced, watch, workdirs
from t3d.train import log as logs
from t3d.train.program import Program
from t3d.train.window import Window


def run(
    config,
    workdir=None,
    *,
    stop_after: int | None = None,
    log: Callable[[str], None] | None = None,
    system: System | None = None,
    data: tuple | None = None,
    given: Mapping[str, Given] | None = None,
    init_from=None,
    traced_in=None,
    patience: float = watch.PATIENCE,
    stop: signals.Stop | None = None,
):
    """Trains, or goes on training, and returns the run folder.

    Args:
      config: a config (ConfigDict or dictionary) with the keys of configs/common.py.
      workdir: the run folder; None makes runs/0001-<system>-<name>. An existing one of the same config is resumed.
      stop_after: stop, as at Ctrl-C, once this many steps are finished (of the whole run).
      log: a function that takes the lines of the console.
      system, data: in place of `systems.make(config)` and `sources.make(config, split)`; data is (source, transform) or
        (source, transform, (batch, labels) for the preview).
      given: the models that the system uses, opened (t3d.inference.given); None opens those that the config names.
      init_from: a run folder or weights folder of the same model: a new run starts from its averaged parameters.
      traced_in: a folder where the traced functions are kept for the next start (t3d.train.traced). Only for a system that t3d
        makes from the config: the code of one of your own is not looked at.
      patience: seconds without progress after which a run of many processes ends, an hour at the least while it starts
        (t3d.train.watch).
      stop: where Ctrl-C and SIGTERM are noted; `stop.requested` then says whether to go on with what follows a run.
    """
    clock = goodput.Clock()
    config = configs.from_dict(config)
    configs.held(config)
    devices.keep_freed_memory()
    mesh = devices.make(config.mesh)
    devices.check_batch(config.batch, mesh, config.get('accumulate', 1))
    given = loading.open_given(config, workdir, kept_first=False) if given is None else dict(given)
    givens.require_weights(given)
    if system is None:
        system = systems.make(config, given)
    checked.refuse_untrained(config, system)
    with jax.set_mesh(mesh):
        target = states.abstract(config, system, mesh, params_of(given))  # a network that cannot be built leaves no folder
    if init_from is not None:
        init_from = loading.shipped().get(str(init_from), init_from)
        agreement.on_every_process(lambda: states.check_source(config, system, target, init_from, workdir))
    active = jax.process_index() == 0
    with watch.Watch(clock, patience):  # until the folder is given back: each part of it may hang
        workdir, lock = workdirs.prepare(workdir, config, (log or print) if active else lambda line: None)
        logger = logs.Log(workdir, total=config.steps, batch=config.batch, write=log, active=active)
        stop = stop or signals.Stop()
        try:
            with stop, devices.collecting_seldom(), jax.set_mesh(mesh):
                keep = traced.Keep(traced_in, config, {name: one.digest for name, one in given.items()})
                what = system, target, data, given, init_from
                _train(config, workdir, lock, mesh, logger, stop, stop_after, *what, keep, clock)
        finally:
            logger.close()
            if active:
                lock.release()
    return workdir


def _train(
    config, workdir, lock, mesh: Mesh, log, stop, stop_after, system, target, data, given, init_from, keep, clock
) -> None:
    log.line(f'{devices.describe(mesh)}; {logs.here()}')
    local = config.checkpoint.get('local', '')
    store = stores.Store(
        workdir / 'checkpoints',
        keep=config.checkpoint.keep,
        keep_every=config.checkpoint.get('keep_every', 0),
        best=config.checkpoint.get('best', ''),
        weights=system.weights,
    )
    tiers = [store]
    try:
        if local:
            tiers.insert(0, tiers_of.open_local(local, workdir, system.weights))
        params = states.placed(given, mesh, config.get('fsdp_floor', sharding.FLOOR))
        program = Program(config, system, mesh, target, log, keep, params)
        end = min(config.steps, stop_after if stop_after is not None else config.steps)
        meta = tiers_of.meta(tiers)
        if meta is not None:
            givens.refuse_other(given, meta.get('given', {}), workdir)
        if jax.process_index() == 0:
            givens.keep(workdir, given)
        if (tiers_of.newest(tiers) or 0) < end:
            program.compile_ahead()
        state = states.start(config, system, tiers, mesh, log, target, init_from, keep, params)
        if mesh.size > 1 and log.active:
            report = sharding.report(target, system.sharding, mesh, config.get('fsdp_floor', sharding.FLOOR))
            (workdir / 'sharding.txt').write_text(report + '\n')
            log.line(report.splitlines()[-1])
        source, batches, example = _data(config, system, data, int(state.step))
        if source is not None and 'data' in config:
            log.line(f'{sources.describe(config, source)}; curves: tensorboard --logdir {files.quoted(workdir)}')
        digests = {name: one.digest for name, one in given.items()}
        clock.start(log, int(state.step), jax.process_count(), mesh.size)
        with failures.told(config, store):
            _loop(config, program, state, batches, example, tiers, log, stop, end, workdir, lock, digests, clock)
    finally:
        clock.to('checkpoint')
        if jax.process_count() == 1 or not isinstance(sys.exception(), errors.OneProcess):  # close waits for the others
            for tier in tiers:
                tier.close()


def _data(config, system: System, data: tuple | None, start: int):
    """(source, this process's batches from `start` on, (global preview batch, labels))."""
    if not system.batch_spec:  # it learns from prompts alone
        return None, itertools.repeat({}), ({}, None)
    if data is None:
        source, transform = sources.make(config, config.data.split, system.batch_spec)
        example = sources.preview(config, system.batch_spec)
    else:
        source, transform, *rest = data
        example = rest[0] if rest else None
    loader = config.get('loader') or {'threads': 1, 'prefetch': 4}
    make = lambda **where: pipeline.make(
        source, transform, batch=config.batch, seed=config.seed, threads=loader['threads'], prefetch=loader['prefetch'], **where
    )
    if example is None:
        example = (next(make()), None)
    return source, make(process_index=jax.process_index(), process_count=jax.process_count(), start=start), example


def _loop(
    config, program, state: TrainState, batches, example, tiers, log, stop, end: int, workdir, lock, digests, clock
) -> None:
    mesh, many = program.mesh, jax.process_count() > 1
    first = step = int(state.step)
    stopped = False
    *local, store = tiers
    window = Window(log, store)
    preview_batch = None
    while step < end:
        clock.to('data')
        rows = next(batches)
        window.waited(clock.to('step' if step > first else 'compile'))
        state, metrics = program(state, rows, step)
        step += 1
        clock.to('step')
        if step == first + 1:
            window.begin(step)  # the first step compiles: not in the rate
        window.add(step, metrics)
        lock.check()
        if due(step, config.log_every):
            window.cut(step)
            clock.write(step)
        stopped = store.reached_preemption() if many else stop.requested
        done = stopped or step == end
        saves = [store] if done or due(step, config.checkpoint.every) else []
        if local and (stopped or (not saves and due(step, config.checkpoint.get('local_every', 0)))):
            saves = [*local, *saves]  # the fast one first: it may be all that there is time for
        if saves:
            values = window.flush(step)
            clock.to('checkpoint')
            position = {'position': step, 'batch': config.batch}
            for place in saves:
                place.save(state, data=position, config=config.to_dict(), metrics=values, given=digests)
                if place is not store and stopped:
                    place.wait()
                    log.line(f'step {step} is saved in the local tier; the run folder comes next')
            clock.to('step')
            clock.write(step)
        if program.previews and (done or due(step, config.preview_every)):
            window.flush(step)
            clock.to('preview')
            preview_batch = preview_batch or sharding.whole_batch(example[0], mesh)
            title = f'step {step}   {config.get("preview", {}).get("columns", "")}'.strip()
            _write_preview(program, state, preview_batch, example[1], title, log, step, workdir)
            clock.to('step')
            window.begin(step)
        if stopped:
            log.line(f'stopped at step {step}: saved; run the same command again to go on')
            break
    if step == first:
        log.line(f'nothing to do: {step} of {config.steps} steps are finished')
    if stop.requested and not stopped:  # while the last step was saved or shown
        log.line(f'stopped after the last step, {step}: saved')
    clock.to('checkpoint')
    store.wait()
    for tier in local if step == config.steps else ():
        tier.drop(tier.steps())  # the run folder has all
    clock.write(step)


def due(step: int, every: int) -> bool:
    """True at the multiples of `every`; never for 0."""
    return bool(every) and step % every == 0


def _write_preview(program: Program, state, batch, labels, title: str, log: logs.Log, step: int, workdir) -> None:
    images = program.preview(state, batch)
    if not log.active:
        return
    labels = list(labels) if labels is not None else [f'{n}' for n in range(len(images))]
    image = sheets.sheet(images, labels[: len(images)], title=title)
    sheets.write(workdir / 'previews' / f'{step:08d}.png', image)
    log.image(step, image)
