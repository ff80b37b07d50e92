"""`t3d bench train --config ...`: steps and images a second, model TFLOP/s and MFU of a train step."""

import argparse
import datetime
import json
import time

import jax
import numpy as np

from t3d.core import prng, rules

COUNT = rules.argument(rules.Whole(1, 10**6))


def flags() -> argparse.ArgumentParser:
    """Of `t3d bench train`."""
    parser = argparse.ArgumentParser(prog='t3d bench train')
    parser.add_argument('--config', default='configs/instant3d.py:tiny')
    parser.add_argument('--repeats', type=COUNT, default=15)
    parser.add_argument('--steps', type=COUNT, default=5, help='steps in each repeat')
    parser.add_argument('--json', help='also write the result here')
    parser.add_argument('overrides', nargs='*', metavar='key=value')
    return parser


def train_bench(argv=None) -> int:
    """Times the loop's own step on the config's data: all up to the first step apart, then the median of repeats."""
    args, rest = flags().parse_known_args(argv)
    from t3d.core import config as configs
    from t3d.data import sources

    config = sources.resolve(configs.load(args.config, [*args.overrides, *rest]))
    result = measure(config, args.repeats, args.steps)
    result['config'] = args.config
    print('\n'.join(f'{name:>22}  {value}' for name, value in result.items()))
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(result, file, indent=1)
    return 0


def measure(config, repeats: int, steps: int) -> dict:
    """The figures of one config, JSON-ready."""
    from t3d import systems
    from t3d.core import tree
    from t3d.metrics import flops
    from t3d.parallel import devices
    from t3d.train import bench, loop

    devices.keep_freed_memory()
    system = systems.make(config)
    mesh = devices.make(config.mesh)
    devices.check_batch(config.batch, mesh)
    given = batches(config)
    with jax.set_mesh(mesh):
        began = time.perf_counter()
        target = loop.abstract(config, system, mesh)
        program = loop.Program(config, system, mesh, target)
        program.compile_ahead()
        state, metrics = program(loop.fresh(config, system, target), next(given))
        jax.block_until_ready(metrics)
        first_seconds = time.perf_counter() - began
        plain = jax.eval_shape(lambda: state), system.batch_spec, prng.key(0)
        model_flops = flops.count(system.train_step, *plain)
        times, waits = [], []
        for _ in range(repeats + 1):  # the first does not count
            began, waited = time.perf_counter(), 0.0
            for _ in range(steps):
                asked = time.perf_counter()
                local = next(given)
                waited += time.perf_counter() - asked
                state, metrics = program(state, local)
            jax.block_until_ready(metrics)
            times.append(1e3 * (time.perf_counter() - began) / steps)
            waits.append(1e3 * waited / steps)
    timing = bench.timing(times[1:])
    images = config.batch * config.data.views
    rays = images * config.loss.get('rays', 0)
    peak = flops.peak()
    rate = model_flops / (timing.median / 1e3)
    return {
        'device': f'{mesh.size} x {jax.devices()[0].device_kind}',
        'date': datetime.date.today().isoformat(),
        'jax': jax.__version__,
        'parameters': tree.count(state.params),
        'step ms': str(timing),
        'steps/s': round(1e3 / timing.median, 2),
        'images/s': round(1e3 * images / timing.median, 1),
        **({'krays/s': round(rays / timing.median, 1)} if rays else {}),
        'wait for data ms/step': round(float(np.median(waits[1:])), 2),
        'model GFLOP/step': round(model_flops / 1e9, 2),
        'model TFLOP/s': round(rate / 1e12, 4),
        'MFU': f'{rate / (peak * mesh.size):.1%}' if peak else 'peak of this device unknown',
        'first step s': round(first_seconds, 1),  # the state made and the step compiled, side by side, and run once
    }


def batches(config):
    """This process's batches, as in a run."""
    from t3d.data import pipeline, sources

    source, transform = sources.make(config)
    return pipeline.make(
        source,
        transform,
        batch=config.batch,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=config.loader.threads,
        prefetch=config.loader.prefetch,
    )
