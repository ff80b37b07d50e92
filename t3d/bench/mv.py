"""`t3d bench mv`: the multi-view UNet's three forms beside the plain UNet on as many pictures, and beside PyTorch.

    t3d bench mv                                     # a small network of the same layout, a minute or two
    t3d bench mv --sizes mvdream --repeats 3         # Stable Diffusion 2.1 with all-view attention, 4 views of 32 x 32 latents
    t3d bench mv --sizes dense                       # the second table alone, of the small network
    t3d bench mv --sizes spad,epipolar --no-peer     # of Stable Diffusion 1.5
    t3d bench mv --check                             # one warm pass each; 1 if results differ from PyTorch's
    t3d bench mv --vs plain                          # a UNet in PyTorch alone, where diffusers is not installed

Two tables. The first: a step of each form and of the plain UNet whose weights it grew out of, all turn by turn, forward and
with the gradients of all weights; the arrays that are made of the cameras apart. The second: the `dense` form against
diffusers' UNet with an attention processor over all views, the epipolar block (that of the finest level that has one) against
one by torch.nn.functional.grid_sample, in a second process on the same weights, each a function of its name. The rules of
measurement are those of t3d.bench.measure. Several devices share the objects, where these divide over them
(`JAX_NUM_CPU_DEVICES=2`: both cores of a processor, convolutions included). The full sizes need some 4 GiB for the weights in
each process, twice that with gradients, and the activations.
"""

import functools
import math
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from t3d.bench import figures, measure, memory
from t3d.bench import unet as unet_bench
from t3d.core import parsing, prng, tree
from t3d.fields import view_inputs
from t3d.fields.view_inputs import ViewOptions
from t3d.geom import cameras
from t3d.metrics import flops
from t3d.nets import epipolar_block
from t3d.nets.mv_unet import MultiViewUNet, level_name
from t3d.nets.unet import UNet
from t3d.parallel import devices, sharding

FORMS = {
    'dense': {'form': 'dense', 'camera': 16},
    'masked': {'form': 'masked', 'camera': 8, 'camera_zero': True, 'plucker': True},
    'epipolar': {'form': 'epipolar', 'camera': 16, 'block_levels': (1, 2)},
}
SHAPE = {'objects': 1, 'views': 4, 'size': 32, 'tokens': 77, 'samples': 16}
SIZES = {
    'tiny': {**SHAPE, 'config': unet_bench.TINY, 'forms': ('dense', 'masked', 'epipolar'), 'objects': 2, 'size': 16},
    'dense': {**SHAPE, 'config': unet_bench.TINY, 'forms': ('dense',), 'objects': 2, 'size': 16, 'compared': True},
    'mvdream': {**SHAPE, 'config': unet_bench.SD21, 'forms': ('dense',)},
    'spad': {**SHAPE, 'config': unet_bench.SD15, 'forms': ('masked',)},
    'epipolar': {**SHAPE, 'config': unet_bench.SD15, 'forms': ('epipolar',)},
}
PEER = measure.PEERS / 'torch_mv.py'
PASSES = {'forward': 'forward', 'both': 'forward + backward'}
TOLERANCE = 5e-5  # of outputs and of gradients for the input, of their largest
FORM_HEADER = (
    '| size | network | pass | ms: median [min, max] | times the plain one (minima) | TFLOP/s | compile, s | temporaries, MiB '
    '| arrays of the cameras, ms |',
    '|---|---|---|---|---|---|---|---|---|',
)
PEER_HEADER = (
    '| size | what | pass | t3d, ms: median [min, max] | PyTorch, ms | ratio of medians (minima) | compile, s '
    '| temporaries, MiB | largest difference, of the largest: output, gradient |',
    '|---|---|---|---|---|---|---|---|---|',
)


def rig(shape: dict) -> cameras.Cameras:
    """Cameras [B, V] around the objects."""
    turn = np.linspace(0.0, 2 * np.pi, shape['views'], endpoint=False) + 0.3 * np.arange(shape['objects'])[:, None]
    return cameras.orbit(turn, np.full_like(turn, 0.3), 3.2, 0.7)


def inputs(shape: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents [B, V, H, W, C], times [B] and text [B, N, D]."""
    rng, config = np.random.default_rng(0), shape['config']
    size = (shape['objects'], shape['views'], shape['size'], shape['size'], config['in_channels'])
    t = np.linspace(999, 1, shape['objects']).round().astype(np.float32)
    text = rng.standard_normal((shape['objects'], shape['tokens'], config['cross_attention_dim']), np.float32)
    return rng.standard_normal(size, np.float32), t, text


def arrays_of_cameras(net: MultiViewUNet, shape: dict):
    """A function of cameras that makes the network's ViewInputs."""
    options = ViewOptions(vector='spad' if net.form == 'masked' else 'mvdream', samples=shape['samples'])
    return lambda views: view_inputs.make(net, views, shape['size'], shape['size'], options)


def both(function):
    """f(params, x, *rest) -> (its output, gradients of half the mean of its squares for params and x)."""

    def loss(params, x, *rest):
        out = function(params, x, *rest)
        return 0.5 * jnp.mean(jnp.square(out)), out

    def run(*args):
        gradients, out = jax.grad(loss, (0, 1), has_aux=True)(*args)
        return out, gradients

    return run


def placed(params, *rest) -> tuple:
    """The arguments over all devices: the weights whole, the others divided along their first axis where that goes."""
    count = jax.device_count()
    if count == 1 or any(leaf.shape[0] % count for leaf in jax.tree.leaves(rest)):
        return params, *rest
    mesh = devices.make({'data': count})
    return jax.device_put(params, sharding.replicated(mesh)), *jax.device_put(rest, sharding.batch_sharding(mesh))


class Work:
    """A function of (params, x, *rest), its arguments, and its compiled passes."""

    def __init__(self, function, *arguments):
        self.functions = {'forward': function, 'both': both(function)}
        self.arguments, self.programs = placed(*arguments), {}

    def program(self, name: str) -> measure.Compiled:
        """Of 'forward' or 'both'; compiled once."""
        if name not in self.programs:
            self.programs[name] = measure.compiled(self.functions[name], *self.arguments)
        return self.programs[name]

    def once(self, name: str) -> float:
        """Milliseconds of one pass."""
        return measure.once(self.program(name).call, *self.arguments)

    def results(self, name: str) -> list[np.ndarray]:
        """The output, and for 'both' the gradient for x."""
        out = self.program(name).call(*self.arguments)
        return [np.asarray(out)] if name == 'forward' else [np.asarray(out[0]), np.asarray(out[1][1])]

    def row(self, name: str, turns: measure.Turns) -> dict:
        """The figures of a pass."""
        flop = flops.count(self.functions[name], *self.arguments)
        _, x, *rest = self.arguments
        return figures.row(turns, self.program(name), flop, {'x': x, 'rest': rest}, images=math.prod(x.shape[:-3]))


def form_work(shape: dict, form: str) -> Work:
    """The multi-view UNet of a form with its inputs."""
    net, (latents, t, text) = MultiViewUNet.from_config(shape['config'], **FORMS[form]), inputs(shape)
    views = jax.jit(arrays_of_cameras(net, shape))(rig(shape))
    params = unet_bench.weights(jax.eval_shape(lambda: net.init(prng.key(0), latents, t, text, views))['params'])
    work = Work(lambda params, x, *rest: net.apply({'params': params}, x, *rest), params, latents, t, text, views)
    work.net = net
    return work


def plain_work(shape: dict, params) -> Work:
    """The plain UNet on as many pictures, with those of the weights `params` that fit it."""
    net, (latents, t, text) = UNet.from_config(shape['config']), inputs(shape)
    flat = (latents.reshape(-1, *latents.shape[2:]), np.repeat(t, shape['views']), np.repeat(text, shape['views'], 0))
    abstract, have = jax.eval_shape(lambda: net.init(prng.key(0), *flat))['params'], tree.flatten(params)

    def one(name, leaf):
        if have[name].shape == leaf.shape:
            return have[name]
        return tree.flatten(unet_bench.weights(tree.unflatten({name: leaf})))[name]

    return Work(lambda params, x, *rest: net.apply({'params': params}, x, *rest), tree.map_with_name(one, abstract), *flat)


def block_work(shape: dict) -> Work:
    """The epipolar block of the finest level that has one, with as many channels and heads as the network's."""
    net = MultiViewUNet.from_config(shape['config'], **FORMS['epipolar'])
    level = min(net.block_levels)
    side, channels = view_inputs.level_sizes(net, shape['size'], shape['size'])[level], net.block_out_channels[level]
    rays = jax.jit(arrays_of_cameras(net, shape))(rig(shape)).rays[level_name(*side)]
    block = epipolar_block.EpipolarBlock(net.per_level('attention_head_dim')[level])
    x = np.random.default_rng(1).standard_normal((shape['objects'] * shape['views'], *side, channels), np.float32)
    params = unet_bench.weights(jax.eval_shape(lambda: block.init(prng.key(0), x, rays))['params'])
    work = Work(lambda params, x, rays: block.apply({'params': params}, x, rays), params, x, rays)
    work.heads = block.heads
    return work


def all_work(shape: dict, compared: bool) -> dict[str, Work]:
    """The works of a size by name; `compared`: those alone that PyTorch has too."""
    names = [form for form in shape['forms'] if form == 'dense' or not compared]
    works = {form: form_work(shape, form) for form in names}
    if not compared:
        works = {'plain': plain_work(shape, next(iter(works.values())).arguments[0]), **works}
    return {**works, 'block': block_work(shape)}


def forms(shape: dict, works: dict[str, Work], repeats: int, passes: list[str]) -> dict:
    """{network: {pass: figures}} of the plain network and each form, all turn by turn."""
    works = {name: work for name, work in works.items() if name != 'block'}
    rows = {network: {} for network in works}
    for name in passes:
        calls = [functools.partial(work.once, name) for work in works.values()]
        memory.forget_peak()
        turns = measure.all_turns(calls, repeats)
        for (network, work), own in zip(works.items(), turns, strict=True):
            rows[network][name] = {**work.row(name, own), 'plain_ms': turns[0].ours}
    for form in shape['forms']:
        program = measure.compiled(arrays_of_cameras(works[form].net, shape), rig(shape))
        timing = measure.take_turns(functools.partial(measure.once, program.call, rig(shape)), [], repeats).ours
        for row in rows[form].values():
            row['cameras_ms'] = timing
    return rows


def request(what: str, shape: dict, work: Work, folder: str, exact: bool) -> dict:
    """Writes what the peer reads and returns the request that builds `what`."""
    _, x, *rest = work.arguments
    if what == 'dense':
        t, text, views = rest
        flat = x.reshape(-1, *x.shape[2:])
        arrays = {'x': flat, 't': np.repeat(t, shape['views']), 'text': text}
        arrays['camera'] = views.camera.reshape(len(flat), -1)
        words = {'config': shape['config'], 'views': shape['views'], 'network': shape.get('network', 'torch')}
    else:
        rays = rest[0]
        arrays = {'x': x, **{name: getattr(rays, name) for name in ('uv', 'valid', 'points', 'depths', 'plucker')}}
        words = {'heads': work.heads, 'widest': epipolar_block.WIDEST}
    path = str(pathlib.Path(folder) / f'{what}.npz')
    np.savez(path, **{name: np.array(value) for name, value in arrays.items()})
    return {'build': what, 'inputs': path, 'device': jax.default_backend(), 'exact': exact, **words}


def difference(ours: list, peer, what: str, name: str, folder: str) -> list[float]:
    """The largest difference of each result, relative to the largest of the peer's."""
    path = str(pathlib.Path(folder) / 'results.npz')
    peer.ask({'run': f'{what}/{name}', 'save': path})
    with np.load(path) as file:
        theirs = [file[key] for key in file.files]
    pairs = zip(ours, theirs, strict=True)
    return [float(np.abs(a.reshape(b.shape) - b).max() / np.abs(b).max()) for a, b in pairs]


def against_peer(shape: dict, works: dict[str, Work], peer, repeats: int, passes: list[str], exact: bool) -> dict:
    """{'dense' or 'block': {pass: figures}}; `peer` None measures ours alone."""
    rows = {what: {} for what in works if what in ('dense', 'block')}
    with tempfile.TemporaryDirectory() as folder:
        for what in rows:
            work = works[what]
            if peer:
                peer.ask(request(what, shape, work, folder, exact))
            for name in passes:
                theirs = peer.runs(f'{what}/{name}') if peer else []
                memory.forget_peak()
                turns = measure.take_turns(functools.partial(work.once, name), theirs, repeats)
                apart = difference(work.results(name), peer, what, name, folder) if peer else None
                rows[what][name] = {**work.row(name, turns), 'difference': apart}
    return rows


def _form_line(size: str, network: str, name: str, row: dict) -> str:
    ours, plain = row['t3d_ms'], row['plain_ms']
    times = f'{ours.median / plain.median:.2f} ({ours.min / plain.min:.2f})'
    cells = [size, network, PASSES[name], str(ours), times, f'{row["gflop"] / ours.median:.3f}']
    made = str(row['cameras_ms']) if 'cameras_ms' in row else '-'
    return '| ' + ' | '.join([*cells, f'{row["compile_s"]:.1f}', f'{row["temp_mib"]:.0f}', made]) + ' |'


def _peer_line(size: str, what: str, name: str, row: dict) -> str:
    ours, theirs = row['t3d_ms'], row['peer_ms']
    ratio = f'{theirs.median / ours.median:.2f} ({theirs.min / ours.min:.2f})' if theirs else '-'
    apart = ', '.join(f'{value:.1e}' for value in row['difference']) if theirs else '-'
    cells = [size, 'epipolar block' if what == 'block' else what, PASSES[name], str(ours), str(theirs or '-'), ratio]
    return '| ' + ' | '.join([*cells, f'{row["compile_s"]:.1f}', f'{row["temp_mib"]:.0f}', apart]) + ' |'


def flags() -> parsing.Parser:
    """The flags of `t3d bench mv`."""
    parser = figures.parser('mv', __doc__)
    figures.of_sizes(parser, SIZES)
    parser.add_argument('--passes', default='forward,both', help='forward, both (with gradients) or forward,both')
    others = {'plain': unet_bench.NETWORKS['plain']}
    figures.beside_peer(parser, check='the second table only, one warm pass each; 1 if results differ', others=others)
    return parser


def _measured(size: str, shape: dict, args, peer) -> dict:
    """The figures of one size, printed as they come."""
    result, repeats = {}, 1 if args.check else args.repeats
    compared = args.check or shape.get('compared', False)  # with PyTorch alone
    with jax.default_matmul_precision('highest' if args.check else None):
        works = all_work(shape, compared)
        for work in works.values():
            for name in args.passes:
                work.program(name)
    if not compared:
        print('\n'.join(FORM_HEADER))
        result['forms'] = forms(shape, works, repeats, args.passes)
        for network, rows in result['forms'].items():
            print('\n'.join(_form_line(size, network, name, row) for name, row in rows.items()), flush=True)
        print()
    print('\n'.join(PEER_HEADER))
    result['peer'] = against_peer(shape, works, peer, repeats, args.passes, args.check)
    for what, rows in result['peer'].items():
        print('\n'.join(_peer_line(size, what, name, row) for name, row in rows.items()), flush=True)
    return result


def main(argv=None) -> int:
    """Prints Markdown tables; returns 1 if `--check` finds a difference above TOLERANCE, else 0."""
    args = figures.parsed(flags(), argv, sizes=SIZES, passes=PASSES)
    print(figures.machine())
    results = {}
    for size in args.sizes:
        shape = {**SIZES[size], 'network': unet_bench.network(args)}
        print(
            f'\n{size}: {shape["objects"]} x {shape["views"]} views of {shape["size"]}^2 latents, {shape["tokens"]} tokens, '
            f'{shape["samples"]} points a ray'
        )
        with figures.peer(args, PEER, unet_bench.needs(args)) as (peer, why_not):
            results[size] = _measured(size, shape, args, peer)
    threads = ' and '.join(map(str, measure.THREADS))
    print(f'\n{figures.told(None if why_not else f"PyTorch, the better of {threads} threads", why_not)}')
    measure.warn_of_load()
    figures.write(args, 'mv', results, why_not)
    rows = [(size, what, row) for size, one in results.items() for what, parts in one['peer'].items() for row in parts.values()]
    apart = [
        f'{size} {what}' for size, what, row in rows if args.check and not why_not and not max(row['difference']) <= TOLERANCE
    ]
    if apart:
        print(f'{", ".join(dict.fromkeys(apart))}: differs by more than {TOLERANCE:.0e} of the largest.')
    return 1 if apart else 0
