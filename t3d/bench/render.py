"""`t3d bench render`: how fast this machine renders, beside a plain PyTorch peer that runs in a second process, turn by turn.

The rules of measurement are those of t3d.bench.measure.
"""

import functools

import jax
import numpy as np

from t3d.bench import figures, measure, memory, render_workload, roof
from t3d.core import parsing
from t3d.metrics import flops

PEER = measure.PEERS / 'torch_renderer.py'
MIB = measure.MIB


def load(peer: measure.Peer, shape: dict) -> str:
    """Gives the peer a size; returns what it is ('torch 2.13.0, cpu, 2 threads')."""
    rays = jax.tree.map(lambda leaf: np.asarray(leaf).ravel().tolist(), render_workload.rays_of({**shape, 'batch': 1}))
    where = {'rays': shape['image'] ** 2, 'device': jax.default_backend()}
    where |= {'origins': rays.origins, 'directions': rays.directions}
    return peer.ask({'shape': {**shape, **render_workload.CAMERA, **where}})['is']


def measured(shape, peer, repeats):
    """Rows of results, one for each pass, and a line on what bounds the forward pass."""
    work = render_workload.render_workload(shape)
    rows, rays = [], shape['batch'] * shape['image'] ** 2
    inputs = {'planes': work.args[1], 'samples': np.empty((rays, shape['coarse'] + shape['fine']), np.bool_)}
    for name, function in (('forward', work.forward), ('both', work.both)):
        memory.forget_peak()
        program = measure.compiled(function, *work.args)
        rss = memory.peak_growth(lambda program=program: measure.once(program.call, *work.args))
        peer_rss = peer.memory(name) if peer else None
        turns = measure.take_turns(
            functools.partial(measure.once, program.call, *work.args), peer.runs(name) if peer else [], repeats
        )
        rows.append(
            {
                'pass': name,
                **figures.row(turns, program, flops.count(function, *work.args), inputs, images=shape['batch'], rays=rays),
                'mray_per_s': 1e-3 * rays / turns.ours.median,
                'rss_mib': rss,
                'peer_rss_mib': peer_rss,
            }
        )
    lookup = measure.take_turns(
        functools.partial(measure.once, measure.compiled(work.lookup, *work.args).call, *work.args), [], repeats
    ).ours
    bytes_gathered = 4.0 * shape['channels'] * work.rows
    bound = (
        f'forward gathers {work.rows / 1e6:.2f} M rows of {shape["channels"]} = {bytes_gathered / MIB:.0f} MiB; the '
        f'lookups alone take {lookup} ms = {1e-6 * bytes_gathered / lookup.median:.1f} GB/s of rows, '
        f'{100 * lookup.min / rows[0]["t3d_ms"].min:.0f} % of the pass; the point MLP is {1e-9 * work.flops:.2f} GFLOP '
        f'and {work.flops / (2 * (shape["channels"] + 1 + shape["outputs"])) / 1e6:.1f} M softplus'
    )
    rows[0].update({'lookup_ms': lookup, 'gathered_gbyte': 1e-9 * bytes_gathered})
    return rows, bound


HEADER = (
    '| size | pass | t3d, ms: median [min, max] | Mray/s | compile, s | temporaries, MiB | memory rises, MiB | PyTorch, ms '
    '| its memory, MiB | ratio of medians (minima) |',
    '|---|---|---|---|---|---|---|---|---|---|',
)


def _line(size, row):
    ours, theirs = row['t3d_ms'], row['peer_ms']
    ratio = f'{theirs.median / ours.median:.2f} ({theirs.min / ours.min:.2f})' if theirs else '-'
    name = {'forward': 'forward', 'both': 'forward + backward'}[row['pass']]
    return (
        f'| {size} | {name} | {ours} | {row["mray_per_s"]:.3f} | {row["compile_s"]:.1f} | {row["temp_mib"]:.0f} '
        f'| {_mib(row["rss_mib"])} | {theirs or "-"} | {_mib(row["peer_rss_mib"])} | {ratio} |'
    )


def _mib(value: float | None) -> str:
    return '-' if value is None else f'{value:.0f}'


def flags() -> parsing.Parser:
    """The flags of `t3d bench render`."""
    parser = figures.parser('render', __doc__)
    figures.of_sizes(parser, render_workload.SHAPES, 'tiny,64,128')
    figures.beside_peer(parser, 'the PyTorch renderer')
    return parser


def main(argv=None) -> int:
    """`t3d bench render`: prints a Markdown table; returns 0."""
    args = figures.parsed(flags(), argv, sizes=render_workload.SHAPES)
    print(figures.machine('float32'))
    print('\n'.join(HEADER), flush=True)
    results, bounds, peer_is = {}, [], None
    with figures.peer(args, PEER) as (peer, why_not):
        for size in args.sizes:
            peer_is = load(peer, render_workload.SHAPES[size]) if peer else None
            results[size], bound = measured(render_workload.SHAPES[size], peer, args.repeats)
            bounds.append(f'{size}: {bound}')
            print('\n'.join(_line(size, row) for row in results[size]), flush=True)
    print(f'\n{figures.told(peer_is, why_not)}\nstreaming copy: {roof.copy():.1f} GB/s\n' + '\n'.join(bounds))
    measure.warn_of_load()
    figures.write(args, 'render', results, why_not)
    return 0
