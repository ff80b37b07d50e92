"""`t3d bench decoder`: text to triplane to picture in one pass each, by Instant3D's networks, beside PyTorch, turn by turn.

    t3d bench decoder                                   # the networks of configs/instant3d.py:tiny, a minute
    t3d bench decoder --sizes released --repeats 3      # the released sizes: 270 M parameters, 3 x 256 x 256 x 32 planes
    t3d bench decoder --check                           # one warm pass each; 1 if results differ from PyTorch's

`planes` is the conditional decoder, from text features and noise to the triplane of one object; `view` is one picture of these
planes as people are shown it: lookups, point MLP and compositing. The text tower is not part of either. The peer
(tests/peers/torch_text_decoder.py) is eager PyTorch with the same random weights, each a function of its name. The rules of
measurement are those of t3d.bench.measure. The released sizes need some 2 GiB in each process;
`released-planes` makes no view.
"""

import functools
import json
import math
import pathlib
import tempfile
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.bench import figures, measure, memory
from t3d.core import config as configs
from t3d.core import parsing, prng, rules, tree
from t3d.core.typing import PyTree
from t3d.fields import triplane_field
from t3d.fields.text_field import TextField
from t3d.geom import cameras, triplanes
from t3d.metrics import flops

# The released network in float32, and of the released rig 64 + 64 samples on each ray.
RELEASED = ('dtype=float32', 'decoder.remat=False', 'render.samples_shown=64', 'render.importance=64')
SIZES = {
    'tiny': {'config': 'configs/instant3d.py:tiny', 'overrides': (), 'pixels': 256},
    'released': {'config': 'configs/instant3d.py:pod', 'overrides': RELEASED, 'pixels': 256},
    'released-planes': {'config': 'configs/instant3d.py:pod', 'overrides': RELEASED, 'pixels': 0},  # no view
}
PEER = measure.PEERS / 'torch_text_decoder.py'
TOLERANCE = {'planes': 2e-5, 'view': 1e-4}  # of the largest number; a view's samples move with the rounding of densities
HEADER = (
    '| size | what | t3d, ms: median [min, max] | TFLOP/s | compile, s | temporaries, MiB | PyTorch, ms '
    '| ratio of medians (minima) | largest difference, of the largest |',
    '|---|---|---|---|---|---|---|---|---|',
)
COUNT = rules.argument(rules.Whole(1, 10**6))


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 values of a leaf, as the peer draws them: kernels by fan-in, biases 0.1, norm scales 1 +- 0.3."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    leaf = name.rpartition('/')[2]
    if leaf == 'kernel':
        return values * np.float32(math.prod(shape['/rest/' in name : -1]) ** -0.5)  # 'rest': one kernel for each layer
    return {'bias': 0.1 * values, 'scale': 1 + 0.3 * values}.get(leaf, values)


class Work(NamedTuple):
    """What is timed, and on what.

    Attributes:
      planes: `(params['decoder'], tokens, noise) -> planes [1, 3, R, R, C]`.
      view: `(params['field'], planes, rays) -> picture [1, H, W, 3]`.
      abstract: the shapes of the weights that are drawn, {'decoder', 'field'}.
      inputs: tokens [1, N, D], noise [1, Z], rays [1, H, W, 3].
    """

    config: object
    planes: object
    view: object
    abstract: PyTree
    inputs: tuple

    def weights(self) -> PyTree:
        """Parameters, each a function of its name, and the coefficient of the scaled sigmoid."""
        params = tree.map_with_name(lambda name, leaf: jnp.asarray(draw(name, leaf.shape)), self.abstract)
        params['field']['alpha'] = jnp.float32(self.config.field.alpha)
        return params


def work(shape: dict) -> Work:
    """The decoder and the renderer of a config; `shape` as in SIZES."""
    config = configs.load(shape['config'], shape['overrides'])
    model, rng, text = TextField(config), np.random.default_rng(0), config.text
    tokens = rng.standard_normal((1, text.length, text.width), np.float32)
    noise = np.float32(config.noise) * rng.standard_normal((1, model.decoder.style_width), np.float32)
    rays = cameras.rays(cameras.orbit(0.3, 0.2, config.render.radius, config.render.fov), shape['pixels'], shape['pixels'])

    def planes(params, tokens, noise):
        return triplanes.unpack(model.decoder.apply({'params': params}, tokens, noise))

    def view(params, planes, rays):
        return model.render_scene({'planes': planes, 'field': params}, rays).features

    def init(key):
        hidden = {'hidden': config.field.hidden, 'outputs': 3, 'equalised': False}
        decoder = model.decoder.init(key, tokens, noise)['params']
        return {'decoder': decoder, 'field': triplane_field.init(key, model.plane_channels, **hidden)}

    inputs = tokens, noise, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], rays)
    return Work(config, planes, view, jax.eval_shape(init, prng.key(0)), inputs)


def request(made: Work, folder: str, exact: bool) -> dict:
    """Writes what the peer reads and returns the request that builds its networks, JSON-ready."""
    tokens, noise, rays = made.inputs
    path = str(pathlib.Path(folder) / 'inputs.npz')
    np.savez(path, tokens=tokens, noise=noise, origins=rays.origins, directions=rays.directions)
    plain = lambda section: json.loads(made.config[section].to_json())
    shapes = {name: leaf.shape for name, leaf in tree.flatten(made.abstract).items()}
    words = {'inputs': path, 'weights': shapes, 'device': jax.default_backend(), 'exact': exact}
    return {**words, **{section: plain(section) for section in ('decoder', 'field', 'render')}}


def measured(shape: dict, peer, repeats: int, exact: bool, echo=lambda name, row: None) -> dict:
    """The figures of one size, JSON-ready; `echo` gets those of the planes and of the view as they come.

    Args:
      peer: a started measure.Peer of PEER, or None.
      exact: products are not rounded, where a backend would.
    """
    made, rows, peer_is = work(shape), {}, None
    params, (tokens, noise, rays) = made.weights(), made.inputs
    given = {'planes': (params['decoder'], tokens, noise)}
    abstract = {**given, 'view': (params['field'], jax.eval_shape(made.planes, *given['planes']), rays)}
    with tempfile.TemporaryDirectory() as folder:
        if peer:
            peer_is = peer.ask(request(made, folder, exact))['is']
        for name, function in (('planes', made.planes), *([('view', made.view)] if shape['pixels'] else ())):
            memory.forget_peak()
            with jax.default_matmul_precision('highest' if exact else None):
                program = measure.compiled(function, *abstract[name])
            call = functools.partial(measure.once, program.call, *given[name])
            turns = measure.take_turns(call, peer.runs(name) if peer else [], repeats)
            shapes = {'tokens': tokens, 'noise': noise, 'view': rays.origins[..., 0]}
            count = {'images': 1, 'rays': rays.origins[..., 0].size} if name == 'view' else {}
            row = figures.row(turns, program, flops.count(function, *abstract[name]), shapes, **count)
            out = program.call(*given[name])
            given['view'] = (params['field'], out, rays)  # the view is one of the planes just made, on both sides
            rows[name] = {**row, 'difference': _difference(out, peer, name, folder) if peer else None}
            echo(name, rows[name])
    return {**rows, 'parameters': tree.count(params), 'peer': peer_is}


def _difference(ours, peer, name: str, folder: str) -> float:
    """The largest difference from the peer's result, relative to the largest of that."""
    path = str(pathlib.Path(folder) / 'result.npy')
    peer.ask({'run': name, 'save': path})
    theirs = np.load(path)
    if theirs.shape != ours.shape:
        raise RuntimeError(f'the PyTorch peer makes {name} of {theirs.shape}, ours are {ours.shape}.')
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def _line(size: str, name: str, row: dict) -> str:
    ours, theirs, peer = row['t3d_ms'], row['peer_ms'], ['-'] * 3
    if theirs:
        ratio = f'{theirs.median / ours.median:.2f} ({theirs.min / ours.min:.2f})'
        peer = [str(theirs), ratio, f'{row["difference"]:.1e}']
    cells = [size, name, str(ours), f'{row["tflop_per_s"]:.3f}', f'{row["compile_s"]:.1f}', f'{row["temp_mib"]:.0f}']
    return '| ' + ' | '.join([*cells, *peer]) + ' |'


def flags() -> parsing.Parser:
    """The flags of `t3d bench decoder`."""
    parser = figures.parser('decoder', __doc__)
    figures.of_sizes(parser, SIZES)
    figures.beside_peer(parser, check='one warm pass each; ends with 1 if the results differ')
    return parser


def main(argv=None) -> int:
    """Prints a Markdown table; returns 1 if `--check` finds a difference above TOLERANCE, else 0."""
    args = figures.parsed(flags(), argv, sizes=SIZES)
    print(figures.machine('float32'))
    print('\n'.join(HEADER), flush=True)
    results = {}
    for size in args.sizes:
        with figures.peer(args, PEER) as (peer, why_not):
            echo = lambda name, row, size=size: print(_line(size, name, row), flush=True)
            results[size] = measured(SIZES[size], peer, 1 if args.check else args.repeats, args.check, echo)
    print(f'\n{figures.told(next((row["peer"] for row in results.values()), None), why_not)}')
    for size, row in results.items():
        gflop = ', '.join(f'{name} {row[name]["gflop"]:.1f} GFLOP' for name in TOLERANCE if name in row)
        print(f'{size}: {row["parameters"]:,} parameters, {gflop}, views of {SIZES[size]["pixels"]} px')
    measure.warn_of_load()
    figures.write(args, 'decoder', results, why_not)
    apart = [
        f'{size} {name} differs by more than {bound:.0e} of the largest number.'
        for size, row in results.items()
        for name, bound in TOLERANCE.items()
        if args.check and not why_not and name in row and not row[name]['difference'] <= bound
    ]
    print('\n'.join(apart), end='\n' if apart else '')
    return 1 if apart else 0
