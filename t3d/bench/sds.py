"""`t3d bench sds`: one step of score distillation through Stable Diffusion's networks, beside diffusers and PyTorch.

    t3d bench sds                                   # small networks of the same layout, seconds
    t3d bench sds --sizes sd21 --repeats 3          # Stable Diffusion 2.1, 512 px, 64 x 64 latents, 77 tokens: minutes
    t3d bench sds --sizes sd21 --check              # one warm pass each; 1 if the gradients differ

A render of 64 px is enlarged, encoded, and noised; the UNet sees it with the prompt and without; w(t) (eps_hat - eps) goes
back through the encoder to the render. That is all of a step but the field and its renderer (`t3d bench render`). Weights are
random, each a function of its name, the same on both sides. The full size needs some 4 GiB for the weights in each process, and
as much again for the activations of the encoder.
"""

import functools
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from t3d.bench import figures, measure, memory
from t3d.bench import unet as unet_bench
from t3d.checkpoint import convert
from t3d.core import parsing, tree
from t3d.diffusion import distill, guidance, schedules
from t3d.inference.shapes import AUTOENCODER
from t3d.metrics import flops
from t3d.nets import vae as autoencoder
from t3d.nets.unet import UNet
from t3d.nets.vae import VAE

SHAPE = {'views': 1, 'render': 64, 'tokens': 77, 't': 400, 'scale': 7.5}
SIZES = {
    'tiny': {**SHAPE, 'unet': unet_bench.TINY, 'vae': {**AUTOENCODER, 'block_out_channels': [32, 32, 64, 64]}, 'pixels': 128},
    'sd21': {**SHAPE, 'unet': unet_bench.SD21, 'vae': AUTOENCODER, 'pixels': 512},
}
PEER = measure.PEERS / 'torch_sds.py'
TOLERANCE = 1e-3  # of the largest gradient; rounding is amplified by the encoder of random weights
HEADER = (
    '| size | t3d, ms: median [min, max] | TFLOP/s | compile, s | temporaries, MiB | peak, MiB | PyTorch, ms | its peak, MiB '
    '| ratio of medians (minima) | largest difference of the largest gradient |',
    '|---|---|---|---|---|---|---|---|---|---|',
)


def inputs(shape: dict) -> dict[str, np.ndarray]:
    """Render [V, S, S, 3] in [0, 1], noise like the latents, text and empty text [V, N, D], as the peer makes them."""
    rng, side = np.random.default_rng(0), shape['pixels'] // 8
    lead, width = shape['views'], shape['unet']['cross_attention_dim']
    return {
        'render': rng.uniform(size=(lead, shape['render'], shape['render'], 3)).astype(np.float32),
        'noise': rng.standard_normal((lead, side, side, 4), np.float32),
        'text': rng.standard_normal((lead, shape['tokens'], width), np.float32),
        'none': rng.standard_normal((lead, shape['tokens'], width), np.float32),
    }


def gradient(shape: dict):
    """(function of (params, inputs) -> gradient of the render, abstract params {'unet', 'vae'})."""
    unet, vae, schedule = UNet.from_config(shape['unet']), VAE.from_config(shape['vae']), schedules.scaled_linear()

    def loss(render, params, given):
        large = jax.image.resize(render, (render.shape[0], shape['pixels'], shape['pixels'], 3), 'bilinear')
        z = autoencoder.to_latents(vae, params['vae'], 2.0 * large - 1.0)
        predict = lambda x, t, text: unet.apply({'params': params['unet']}, x, t, text)
        denoise = guidance.guided(predict, given['text'], given['none'], shape['scale'])
        t = jnp.full(render.shape[:1], shape['t'], jnp.int32)
        told, _ = distill.sds_gradient(denoise, schedule, z, t, given['noise'])
        return distill.inner(told, z)

    pulled = lambda params, given: jax.grad(loss)(given['render'], params, given)
    return pulled, {'unet': convert.unet_shapes(unet), 'vae': convert.vae_shapes(vae)}


def weights(abstract: dict) -> dict:
    """Random parameters of each network, each a function of its name there."""
    return {name: unet_bench.weights(tree_of) for name, tree_of in abstract.items()}


def measured(shape: dict, peer, repeats: int, exact: bool) -> dict:
    """The figures of one size, JSON-ready. peer: a started measure.Peer, or None; exact: products are not rounded."""
    memory.forget_peak()
    peer_is = peer.ask({**shape, 'device': jax.default_backend(), 'exact': exact})['is'] if peer else None
    function, abstract = gradient(shape)
    params, given = weights(abstract), inputs(shape)
    with jax.default_matmul_precision('highest' if exact else None):
        program = measure.compiled(function, params, given)
    peaks = []

    def peer_once(count):
        answer = peer.ask({'run': 'step', 'threads': count})
        peaks.append(answer['peak_mib'])
        return answer['ms']

    theirs = [functools.partial(peer_once, count) for count in measure.THREADS[-1:]] if peer else []
    turns = measure.take_turns(lambda: measure.once(program.call, params, given), theirs, repeats)
    work = flops.count(function, params, given)
    return {
        **figures.row(turns, program, work, given, images=shape['views']),
        'parameters': tree.count(params),
        'peer': peer_is,
        'peer_peak_mib': peaks[-1] if peaks else None,
        'difference': _difference(program.call(params, given), peer) if peer else None,
    }


def _difference(ours, peer) -> float:
    """The largest difference of the gradients, relative to the largest of the peer's."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / 'gradient.npy')
        peer.ask({'run': 'step', 'save': path})
        theirs = np.load(path)
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def _line(size: str, row: dict) -> str:
    ours, theirs, peer = row['t3d_ms'], row['peer_ms'], ['-'] * 4
    if theirs:
        ratio = f'{theirs.median / ours.median:.2f} ({theirs.min / ours.min:.2f})'
        peer = [str(theirs), f'{row["peer_peak_mib"]:.0f}', ratio, f'{row["difference"]:.1e}']
    cells = [size, str(ours), f'{row["tflop_per_s"]:.3f}', f'{row["compile_s"]:.1f}', f'{row["temp_mib"]:.0f}']
    return '| ' + ' | '.join([*cells, f'{row["peak_mib"]:.0f}', *peer]) + ' |'


def flags() -> parsing.Parser:
    """The flags of `t3d bench sds`."""
    parser = figures.parser('sds', __doc__)
    figures.of_sizes(parser, SIZES)
    figures.beside_peer(parser, check='one warm pass each; ends with 1 if the gradients differ')
    return parser


def main(argv=None) -> int:
    """Prints a Markdown table; returns 1 if `--check` finds a difference above TOLERANCE, else 0."""
    args = figures.parsed(flags(), argv, sizes=SIZES)
    print(figures.machine())
    print('\n'.join(HEADER), flush=True)
    results = {}
    for size in args.sizes:
        with figures.peer(args, PEER, needs=('torch', 'diffusers')) as (peer, why_not):
            results[size] = measured(SIZES[size], peer, 1 if args.check else args.repeats, args.check)
        print(_line(size, results[size]), flush=True)
    print(f'\n{figures.told(next((row["peer"] for row in results.values()), None), why_not)}')
    print('\n'.join(f'{size}: {row["parameters"]:,} parameters, {row["gflop"]:.1f} GFLOP' for size, row in results.items()))
    measure.warn_of_load()
    figures.write(args, 'sds', results, why_not)
    apart = [size for size, row in results.items() if args.check and not why_not and not row['difference'] <= TOLERANCE]
    if apart:
        print(f'{", ".join(apart)}: differs by more than {TOLERANCE:.0e} of the largest gradient.')
    return 1 if apart else 0
