"""`t3d bench train --config ...`: steps and images a second, model TFLOP/s and MFU of a train step."""

import argparse
import datetime
import json
import time

import jax
import numpy as np


def train_bench(argv=None) -> int:
    """Times the compiled train step on one batch of the config's data: compile apart, median of repeats, and the data alone."""
    parser = argparse.ArgumentParser(prog='t3d bench train')
    parser.add_argument('--config', default='configs/instant3d.py:tiny')
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument('--steps', type=int, default=5, help='steps in each repeat')
    parser.add_argument('--json', help='also write the result here')
    parser.add_argument('overrides', nargs='*', metavar='key=value')
    args, rest = parser.parse_known_args(argv)
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
    from t3d.parallel import devices, sharding
    from t3d.train import bench

    devices.keep_freed_memory()
    system = systems.make(config)
    mesh = devices.make(config.mesh)
    batch, data_ms = _batch(config)
    with jax.set_mesh(mesh):
        began = time.perf_counter()
        state = jax.jit(system.init)(jax.random.key(config.seed), batch)
        jax.block_until_ready(state)
        init_seconds = time.perf_counter() - began
        placed = sharding.shardings(jax.eval_shape(lambda: state), system.sharding, mesh, config.fsdp_floor)
        state, batch = jax.device_put(state, placed), sharding.global_batch(batch, mesh)
        model_flops = flops.count(system.train_step, state, batch, jax.random.key(0))
        began = time.perf_counter()
        step = jax.jit(system.train_step, donate_argnums=0).lower(state, batch, jax.random.key(0)).compile()
        compile_seconds = time.perf_counter() - began
        times = []
        for repeat in range(repeats + 1):  # the first does not count
            began = time.perf_counter()
            for k in range(steps):
                state, metrics = step(state, batch, jax.random.key(repeat * steps + k))
            jax.block_until_ready(metrics)
            times.append(1e3 * (time.perf_counter() - began) / steps)
    timing = bench.timing(times[1:])
    images = config.batch * config.data.views
    rays = images * config.loss.rays
    peak = flops.peak()
    rate = model_flops / (timing.median / 1e3)
    return {
        'device': f'{mesh.size} x {jax.devices()[0].device_kind}', 'date': datetime.date.today().isoformat(),
        'jax': jax.__version__, 'parameters': tree.count(state.params),
        'step ms': str(timing), 'steps/s': round(1e3 / timing.median, 2), 'images/s': round(1e3 * images / timing.median, 1),
        'krays/s': round(rays / timing.median, 1), 'data ms/batch': round(data_ms, 2),
        'model GFLOP/step': round(model_flops / 1e9, 2), 'model TFLOP/s': round(rate / 1e12, 4),
        'MFU': f'{rate / (peak * mesh.size):.1%}' if peak else 'peak of this device unknown',
        'init s': round(init_seconds, 1), 'compile s': round(compile_seconds, 1),
    }


def _batch(config) -> tuple[dict, float]:
    """(one batch of the config's data, milliseconds that making one takes)."""
    from t3d.data import sources

    source, transform = sources.make(config)
    random = np.random.default_rng(0)

    def one():
        examples = [transform(source[int(k)], random) for k in random.integers(len(source), size=config.batch)]
        return {name: np.stack([example[name] for example in examples]) for name in examples[0]}

    one()
    began = time.perf_counter()
    batches = [one() for _ in range(5)]
    return batches[-1], 1e3 * (time.perf_counter() - began) / 5
