"""`t3d bench unet`: a forward pass of the Stable Diffusion UNet beside diffusers, which runs in a second process, turn by turn.

    t3d bench unet                                  # a small network of the same layout, seconds
    t3d bench unet --sizes sd21                     # Stable Diffusion 2.1, 4 latents of 32 x 32, minutes
    t3d bench unet --sizes sd21 --batch 1 --check   # one warm pass each: difference, time, peak memory; 1 if they differ
    t3d bench unet --check --precision default      # the same with the products that users run, which accelerators round
    t3d bench unet --vs plain                       # a UNet in PyTorch alone, where diffusers is not installed
    t3d bench unet --vs compiled                    # the same by torch.compile

Both networks have the same random weights, each a function of its name, so that no file passes between the processes. The full
size needs about 4 GiB for the weights in each process, and the activations. The rules of measurement are those of
t3d.bench.measure.
"""

import functools
import math
import pathlib
import tempfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from t3d.bench import figures, measure, memory
from t3d.checkpoint import convert_names
from t3d.core import parsing, prng, tree
from t3d.core.typing import PyTree
from t3d.inference import shapes
from t3d.metrics import flops
from t3d.nets.unet import UNet

SD15, SD21 = (shapes.MODELS[name][0] for name in ('sd15', 'sd21'))
TINY = {**SD21, 'block_out_channels': [32, 64, 128, 128], 'attention_head_dim': [1, 2, 4, 4], 'cross_attention_dim': 64}
SIZES = {  # latents of size x size with so many text tokens
    'tiny': {'config': TINY, 'batch': 4, 'size': 32, 'tokens': 77},
    'sd15': {'config': SD15, 'batch': 4, 'size': 32, 'tokens': 77},
    'sd21': {'config': SD21, 'batch': 4, 'size': 32, 'tokens': 77},
}
PEER = measure.PEERS / 'torch_unet.py'
TOLERANCE = {'float32': 1e-5, 'bfloat16': 5e-2}  # of the largest difference, relative to the largest output
# The same for float32 where a backend's default precision rounds products: TF32 has 10 bits, a TPU's one pass of bfloat16 7.
ROUNDED = {'gpu': 1e-2, 'cuda': 1e-2, 'rocm': 1e-2, 'tpu': 5e-2}
PRECISIONS = ('highest', 'default')
NETWORKS = {  # of the peer, besides that of diffusers, by the words of --vs
    'plain': 'a UNet in PyTorch alone',
    'compiled': 'the same by torch.compile',
}
HEADER = (
    '| size | dtype | t3d, ms: median [min, max] | TFLOP/s | compile, s | temporaries, MiB | peak, MiB '
    '| peer, ms | its peak, MiB | ratio of medians (minima) | largest difference (of the largest output) |',
    '|---|---|---|---|---|---|---|---|---|---|---|',
)


def draw(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 values of the torch parameter `key`, as tests/peers/torch_unet.py draws them."""
    values = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape, np.float32)
    if key.endswith('.bias'):
        return np.float32(0.1) * values
    if len(shape) == 1:
        return 1 + np.float32(0.3) * values
    return values * np.float32(math.prod(shape[1:]) ** -0.5)


def weights(abstract: PyTree, dtype=jnp.float32) -> PyTree:
    """Random parameters for a tree of ShapeDtypeStructs, leaf by leaf."""

    def one(name, leaf):
        kind = name.rpartition('/')[2]
        shape = jax.eval_shape(lambda x: convert_names.to_torch(x, kind), leaf).shape
        value = convert_names.to_flax(draw(convert_names.torch_name(name), shape), kind, leaf.shape)
        return jnp.asarray(np.ascontiguousarray(value), dtype)

    return tree.map_with_name(one, abstract)


def inputs(shape: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents [B, H, W, C], times [B] and text [B, N, D], as the peer makes them."""
    rng, config = np.random.default_rng(0), shape['config']
    latents = rng.standard_normal((shape['batch'], shape['size'], shape['size'], config['in_channels']), np.float32)
    t = np.linspace(999, 1, shape['batch']).round().astype(np.float32)
    return latents, t, rng.standard_normal((shape['batch'], shape['tokens'], config['cross_attention_dim']), np.float32)


def measured(shape: dict, dtype: str, peer, repeats: int, exact: bool, precision: str | None = None) -> dict:
    """The figures of one size, JSON-ready.

    Args:
      peer: a started measure.Peer of PEER, or None.
      repeats: turns of each side (`measure.take_turns`).
      exact: float32 products of the peer on accelerators that would round them.
      precision: of our own products, one of PRECISIONS; None: 'highest' if `exact`, else 'default'.
    """
    memory.forget_peak()
    request = {**shape, 'dtype': dtype, 'device': jax.default_backend(), 'exact': exact}
    peer_is = peer.ask(request)['is'] if peer else None
    kind = jnp.dtype(dtype)
    unet, arguments = UNet.from_config(shape['config'], dtype=kind), inputs(shape)
    params = weights(jax.eval_shape(lambda: unet.init(prng.key(0), *arguments))['params'], kind)
    precision = precision or ('highest' if exact else 'default')
    with jax.default_matmul_precision('highest' if precision == 'highest' else None):
        program = measure.compiled(unet.apply, {'params': params}, *arguments)
    difference, peer_peaks = None, []

    def peer_once(count):
        answer = peer.ask({'run': 'forward', 'threads': count})
        peer_peaks.append(answer['peak_mib'])
        return answer['ms']

    theirs = [functools.partial(peer_once, count) for count in measure.THREADS] if peer else []
    turns = measure.take_turns(lambda: measure.once(program.call, {'params': params}, *arguments), theirs, repeats)
    flop = flops.count(unet.apply, {'params': params}, *arguments)
    shapes = dict(zip(('latents', 't', 'text'), arguments, strict=True))
    row = figures.row(turns, program, flop, shapes, dtype, images=shape['batch'])
    if peer:
        difference = _difference(program.call({'params': params}, *arguments), peer)
    return {
        **row,
        'precision': precision,
        'parameters': tree.count(params),
        'peer': peer_is,
        'peer_peak_mib': peer_peaks[-1] if peer_peaks else None,
        'difference': difference,
    }


def _difference(ours, peer) -> tuple[float, float]:
    """The largest difference of the outputs, and the same relative to the largest of the peer's."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / 'output.npy')
        peer.ask({'run': 'forward', 'save': path})
        theirs = np.load(path)
    largest = float(np.abs(np.asarray(ours, np.float32) - theirs).max())
    return largest, largest / float(np.abs(theirs).max())


def network(args) -> str:
    """The word of `--vs`: one of NETWORKS, or 'torch' for the network of diffusers."""
    return getattr(args, 'vs', 'torch')


def needs(args) -> tuple[str, ...]:
    """The packages of the peer's network."""
    return ('torch',) if network(args) in NETWORKS else ('torch', 'diffusers')


def tolerance(dtype: str, precision: str, backend: str) -> float:
    """The largest difference that `--check` allows, relative to the largest output."""
    rounded = ROUNDED.get(backend, 0.0) if precision == 'default' else 0.0
    return max(TOLERANCE[dtype], rounded)


def _line(size: str, row: dict) -> str:
    ours, theirs = row['t3d_ms'], row['peer_ms']
    peer = ['-'] * 4
    if theirs:
        ratio = f'{theirs.median / ours.median:.2f} ({theirs.min / ours.min:.2f})'
        peer = [str(theirs), f'{row["peer_peak_mib"]:.0f}', ratio, '{:.1e} ({:.1e})'.format(*row['difference'])]
    cells = [size, row['dtype'], str(ours), f'{row["tflop_per_s"]:.3f}', f'{row["compile_s"]:.1f}']
    return '| ' + ' | '.join([*cells, f'{row["temp_mib"]:.0f}', f'{row["peak_mib"]:.0f}', *peer]) + ' |'


def flags() -> parsing.Parser:
    """The flags of `t3d bench unet`."""
    parser = figures.parser('unet', __doc__)
    figures.of_sizes(parser, SIZES)
    parser.add_argument('--batch', type=figures.COUNT, help='latents at once, instead of 4')
    parser.add_argument('--dtype', default='float32', choices=sorted(TOLERANCE), help='of weights and products')
    parser.add_argument(
        '--precision',
        choices=PRECISIONS,
        help='of our float32 products: "highest" as the tests run, "default" as users do (TF32 on a GPU, bfloat16 on a TPU, '
        'the same on a CPU); without it highest with --check, else default',
    )
    check = 'one warm pass each; ends with 1 if the outputs differ'
    figures.beside_peer(parser, 'diffusers', check, NETWORKS)
    return parser


def main(argv=None) -> int:
    """Prints a Markdown table; returns 1 if `--check` finds a difference above TOLERANCE, else 0."""
    args = figures.parsed(flags(), argv, sizes=SIZES)
    print(figures.machine())
    print('\n'.join(HEADER), flush=True)
    results = {}
    for size in args.sizes:
        shape = {**SIZES[size], 'network': network(args), **({'batch': args.batch} if args.batch else {})}
        with figures.peer(args, PEER, needs(args)) as (peer, why_not):
            repeats = 1 if args.check else args.repeats
            results[size] = measured(shape, args.dtype, peer, repeats, args.check, args.precision)
        print(_line(size, results[size]), flush=True)
    rows = results.values()
    print(f'\n{figures.told(next((row["peer"] for row in rows), None), why_not)}')
    print('\n'.join(f'{size}: {row["parameters"]:,} parameters, {row["gflop"]:.1f} GFLOP' for size, row in results.items()))
    measure.warn_of_load()
    figures.write(args, 'unet', results, why_not)
    bounds = {size: tolerance(args.dtype, row['precision'], jax.default_backend()) for size, row in results.items()}
    if args.check and not why_not:
        print(
            f'products in {args.dtype} at {results[args.sizes[0]]["precision"]} precision; allowed: {bounds[args.sizes[0]]:.0e}'
        )
    apart = [size for size, row in results.items() if args.check and not why_not and not row['difference'][1] <= bounds[size]]
    if apart:
        print(f'{", ".join(apart)}: differs by more than {bounds[apart[0]]:.0e} of the largest output.')
    return 1 if apart else 0
