"""`t3d bench gan`: the four training phases of a triplane GAN beside PyTorch modules of the same shapes, turn by turn.

    t3d bench gan                                              # configs/ganfusion_gan.py:tiny
    t3d bench gan --size 128                                   # the same at 128 px, 64 x 64 rays and wider, see SIZES
    t3d bench gan --config configs/ganfusion_gan.py:base --no-peer batch=4
    t3d bench gan --config configs/ganfusion_gan.py:pod --count    # FLOPs of an image, nothing is run

A phase is loss, gradient and Adam step, as the training step has them with `fakes=new` (with `shared` the discriminator renders
none); the iteration weighs them by how often they run (generator + density / 4 + discriminator + r1 / 16 in EG3D's schedule).
The step as it is trained, with its conditions and rungs, is timed by itself over whole cycles of the lazy phases.
The peer (tests/peers/torch_gan.py) is eager PyTorch with networks, renderer, losses and schedule of the same sizes.
Augmentation is off on both sides. The rules of measurement are those of t3d.bench.measure.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from t3d import systems
from t3d.bench import figures, measure, memory
from t3d.core import parsing, prng, tree
from t3d.core.errors import UsageError
from t3d.geom import cameras
from t3d.metrics import flops

PEER = measure.PEERS / 'torch_gan.py'
PHASES = ('generator', 'density', 'discriminator', 'r1')
CONFIG = 'configs/ganfusion_gan.py:tiny'
SIZES = {  # overrides of a 64 px config; the widths are what two CPU cores can repeat in minutes
    '128': (
        'data.size=128',
        'batch=4',
        'micro_batch=4',
        'ladder=()',
        'render.size=64',
        'render.samples=24',
        'render.importance=24',
        'generator.plane_resolution=64',
        'generator.plane_channels=16',
        'generator.channel_base=4096',
        'generator.channel_max=128',
        'generator.features=32',
        'generator.sr.input_size=64',
        'generator.sr.channels=(64, 32)',
        'discriminator.channel_base=4096',
        'discriminator.channel_max=128',
    )
}
HEADER = (
    '| phase | t3d, ms: median [min, max] | images/s | TFLOP/s | compile, s | temporaries, MiB | memory rises, MiB '
    '| PyTorch, ms | its memory, MiB | ratio of medians (minima) |',
    '|---|---|---|---|---|---|---|---|---|---|',
)


def labels(config) -> np.ndarray:
    """[B, 25] cameras around the object."""
    turn = np.linspace(0.0, 2 * np.pi, config.batch, endpoint=False)
    around = [cameras.orbit(angle, 0.3, config.render.radius, config.render.fov) for angle in turn]
    return np.stack([np.asarray(cameras.to_eg3d(camera), np.float32) for camera in around])


def batch(config) -> dict:
    """Noise for pictures, `labels` for cameras."""
    label = jnp.asarray(labels(config))
    size = config.data.size
    image = np.random.default_rng(0).integers(0, 256, (config.batch, size, size, 3), np.uint8)
    return {'image': jnp.asarray(image), 'label': label, 'fake_labels': jnp.repeat(label[:, None], 3, 1)}


def phases(model, size: int) -> dict:
    """name -> function (params, opt_state, batch, key) -> (params, opt_state) of one network, at `size` x `size` rays."""

    def step(name, loss):
        def run(params, opt_state, batch, key):
            now, p = model.schedules(jnp.zeros((), jnp.int32)), jnp.zeros((), jnp.float32)
            grads, _ = jax.grad(lambda own: loss(own, params, batch, key, now, p), has_aux=True)(params[name])
            updates, opt = model.optimizers[name].update(grads, opt_state[name], params[name])
            return optax.apply_updates(params[name], updates), opt

        return run

    return {
        'generator': step('generator', lambda *args: model.generator_loss(*args[:-1], size, args[-1])),
        'density': step('generator', lambda *args: model.density_loss(*args[:-1])),
        'discriminator': step('discriminator', lambda *args: model.discriminator_loss(*args[:-1], size, args[-1])),
        'r1': step('discriminator', lambda own, fixed, *args: model.r1_loss(own, *args[:-1], size, args[-1])),
    }


def peer_shape(config) -> dict:
    """What tests/peers/torch_gan.py builds, JSON-ready."""
    net, d, view = config.generator, config.discriminator, config.render
    return {
        'batch': config.batch,
        'image': config.data.size,
        'labels': labels(config).tolist(),
        'z': net.z,
        'w': net.w,
        'mapping_layers': net.mapping_layers,
        'pose': net.pose_conditioning,
        'planes': net.plane_resolution,
        'channels': net.plane_channels,
        'channel_base': net.channel_base,
        'channel_max': net.channel_max,
        'hidden': net.hidden,
        'features': net.features,
        'sr_input': net.sr.input_size,
        'sr_channels': list(net.sr.channels),
        'sr_ups': list(net.sr.ups),
        'sr_styled': net.sr_style != 'unit',
        'd_base': d.channel_base,
        'd_max': d.channel_max,
        'd_mapping_layers': d.mapping_layers,
        'group': d.group,
        'rays': view.size,
        'bound': 0.5 * view.box_warp,
        **{name: view[name] for name in ('samples', 'importance', 'near', 'far', 'limits', 'plane_axes', 'background')},
        'sigma': config.blur.sigma,
        'gamma': config.r1.gamma or 1.0,
        'density_every': config.density.every,
        'r1_every': config.r1.every,
        'device': jax.default_backend(),
    }


def model_of(config):
    """The networks of a config's system; UsageError for one that has not the four phases of a triplane GAN."""
    model = getattr(systems.module(config.system), 'Model', None)
    if not hasattr(model, 'discriminator_loss'):
        raise UsageError(f'{config.system} has no discriminator: `t3d bench train --config ...` measures its step.')
    return model(config)


def measured(config, peer, repeats: int, echo=lambda line: None) -> dict:
    """The figures of a config, JSON-ready; `echo` gets a line of the table after each phase."""
    model, made = model_of(config), batch(config)
    params = jax.jit(model.init)(prng.key(0))
    opt_state = {name: model.optimizers[name].init(params[name]) for name in model.optimizers}
    loaded = peer.ask({'shape': peer_shape(config)}) if peer else {}
    rows = {}
    for name, function in phases(model, config.render.size).items():
        args = (params, opt_state, made, prng.key(1))
        rows[name] = _phase(name, jax.jit(function), args, peer, repeats, config.batch, config.dtype)
        echo(_line(name, rows[name], config.batch))
    rows['iteration'] = _iteration(rows, {'density': config.density.every, 'r1': config.r1.every})
    echo(_line('iteration', rows['iteration'], config.batch))
    state = jax.jit(systems.make(config).init)(prng.key(0), made, {})
    whole = measure.compiled(model.train_step, state, made, prng.key(0), {})
    trained = as_trained(whole.call, state, made, math.lcm(config.density.every, config.r1.every), repeats)
    count = {name: tree.count(params[name]) for name in ('generator', 'discriminator')}
    return {
        'phases': rows,
        'step_compile_s': whole.seconds,
        'step_ms': trained,
        'step_rays': model.ladder[0][1],
        'step_temp_mib': whole.temp_bytes / measure.MIB,
        'parameters': count,
        'peer': loaded.get('is'),
        'peer_parameters': loaded.get('parameters'),
    }


def as_trained(step, state, made, cycle: int, repeats: int) -> measure.Timing:
    """Milliseconds of an iteration: means over `cycle` steps in a row, which hold every phase as often as it runs."""
    keys = [prng.key(number) for number in range(cycle)]

    def steps():
        now = state
        for key in keys:
            now, _ = step(now, made, key, {})
        return now

    return measure.timing([measure.once(steps) / cycle for _ in range(repeats + 1)][1:])


def _phase(name, function, args, peer, repeats, images, dtype) -> dict:
    program = measure.compiled(function, *args)
    rss = memory.peak_growth(lambda: measure.once(program.call, *args))
    peer_rss = peer.memory(name) if peer else None
    call = functools.partial(measure.once, program.call, *args)
    turns = measure.take_turns(call, peer.runs(name) if peer else [], repeats)
    row = figures.row(turns, program, flops.count(function, *args), args[2], dtype, images=images)
    return {**row, 'rss_mib': rss, 'peer_rss_mib': peer_rss}


def _iteration(rows: dict, every: dict) -> dict:
    """The phases' figures weighed by how often they run; memory is the dearest phase's."""
    share = {name: 1.0 / every.get(name, 1) for name in PHASES}
    total = lambda field: measure.Timing(*(sum(share[n] * rows[n][field][i] for n in PHASES) for i in range(3)))
    most = lambda field: max((rows[n][field] for n in PHASES if rows[n][field] is not None), default=None)
    ours = total('t3d_ms')
    weights = [share[name] for name in PHASES]
    by_turn = lambda field: tuple(np.dot(weights, [rows[name][field] for name in PHASES]).tolist())
    turns = measure.Turns(by_turn('turns_ms'), by_turn('peer_turns_ms') if rows['generator']['peer_ms'] else None)
    return {
        't3d_ms': ours,
        'ratio': turns.ratio,
        'images_per_s': rows['generator']['images_per_s'] * rows['generator']['t3d_ms'].median / ours.median,
        'gflop': sum(share[name] * rows[name]['gflop'] for name in PHASES),
        'gbyte': sum(share[name] * rows[name]['gbyte'] for name in PHASES) if rows['generator']['gbyte'] else None,
        'compile_s': sum(rows[name]['compile_s'] for name in PHASES),
        'temp_mib': most('temp_mib'),
        'peak_mib': most('peak_mib'),
        'rss_mib': most('rss_mib'),
        'peer_rss_mib': most('peer_rss_mib'),
        'peer_ms': total('peer_ms') if rows['generator']['peer_ms'] else None,
    }


def counted(config) -> str:
    """A Markdown table: model GFLOP of each phase for an image, at every neural resolution of the ladder; nothing is run."""
    model = model_of(config)
    made, key = systems.make(config).batch_spec, jax.eval_shape(lambda: prng.key(0))
    params = jax.eval_shape(model.init, key)
    opt_state = {name: jax.eval_shape(model.optimizers[name].init, params[name]) for name in model.optimizers}
    every = {'density': config.density.every, 'r1': config.r1.every}
    lines = ['| GFLOP an image | ' + ' | '.join(PHASES) + ' | iteration |', '|---' * (len(PHASES) + 2) + '|']
    for _, size in model.ladder:
        steps = phases(model, size)
        cost = {name: flops.count(steps[name], params, opt_state, made, key) / 1e9 / config.batch for name in PHASES}
        mean = sum(cost[name] / every.get(name, 1) for name in PHASES)
        lines.append(f'| {size} x {size} rays | ' + ' | '.join(f'{cost[name]:.4g}' for name in PHASES) + f' | {mean:.4g} |')
    return '\n'.join(lines)


def _line(name: str, row: dict, images: int) -> str:
    ours, theirs = row['t3d_ms'], row['peer_ms']
    ratio = f'{theirs.median / ours.median:.2f} ({theirs.min / ours.min:.2f})' if theirs else '-'
    mib = lambda value: '-' if value is None else f'{value:.0f}'
    cells = [name, ours, f'{row["images_per_s"]:.2f}', f'{row["gflop"] / ours.median:.3f}', f'{row["compile_s"]:.1f}']
    cells += [mib(row['temp_mib']), mib(row['rss_mib']), theirs or '-', mib(row['peer_rss_mib']), ratio]
    return '| ' + ' | '.join(map(str, cells)) + ' |'


def flags() -> parsing.Parser:
    """The flags of `t3d bench gan`."""
    parser = figures.parser('gan', __doc__)
    parser.add_argument('--config', default=CONFIG)
    parser.add_argument('--size', choices=sorted(SIZES), help='overrides of SIZES on top of the config')
    parser.add_argument('--count', action='store_true', help='only the FLOPs of an image, by phase; nothing is run')
    figures.beside_peer(parser)
    parser.add_argument('overrides', nargs='*', metavar='key=value')
    return parser


def main(argv=None) -> int:
    """Prints a Markdown table (of `counted` if asked for); returns 0."""
    from t3d.core import config as configs

    args, rest = flags().parse_known_args(argv)
    args.overrides = [*SIZES.get(args.size, ()), *args.overrides, *rest]
    config = configs.load(args.config, [*args.overrides, 'augment.on=False'])
    if args.count:
        print(counted(config))
        return 0
    net = config.generator
    print(
        f'{figures.machine(config.dtype)}\n'
        f'batch {config.batch} of {config.data.size} px, {config.render.size}^2 rays of {config.render.samples} + '
        f'{config.render.importance} samples, planes 3 x {net.plane_resolution}^2 x {net.plane_channels}'
    )
    print('\n'.join(HEADER), flush=True)
    with figures.peer(args, PEER) as (peer, why_not):
        result = measured(config, peer, args.repeats, lambda line: print(line, flush=True))
    g, d = result['parameters'].values()
    print(f'\n{figures.told(result["peer"], why_not)}')
    print(f'{g:,} parameters in the generator, {d:,} in the discriminator; {result["phases"]["iteration"]["gflop"]:.1f} GFLOP')
    print(f'the step as trained: {result["step_ms"]} ms, {result["step_rays"]}^2 rays at first, fakes={config.fakes}')
    print(f'the whole step compiles in {result["step_compile_s"]:.1f} s, {result["step_temp_mib"]:.0f} MiB of temporaries')
    measure.warn_of_load()
    figures.write(args, 'gan', result, why_not)
    return 0
