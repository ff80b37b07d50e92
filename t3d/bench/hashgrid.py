"""`t3d bench hash`: points a second of a hash grid, beside plain PyTorch that runs in a second process, turn by turn.

`ngp` is the grid of instant-ngp (arXiv 2201.05989, Table 1) and the default of `scene_fields.Options`: 16 levels of up to 2^19
rows; `tiny` has 8 levels of 2^14. `both` is the forward pass and the gradient of the table. The rules of measurement are those
of t3d.bench.measure.
"""

import functools

import jax
import jax.numpy as jnp

from t3d.bench import figures, measure, memory
from t3d.core import parsing, prng
from t3d.geom import hashgrid
from t3d.metrics import flops

PEER = measure.PEERS / 'torch_hashgrid.py'
SHAPES = {
    'tiny': {'levels': 8, 'log2_rows': 14, 'base': 16, 'growth': 1.5, 'points': 32_768},
    'ngp': {'levels': 16, 'log2_rows': 19, 'base': 16, 'growth': 1.4472692, 'points': 131_072},
}
CHANNELS = 2
PASSES = {'forward': 'forward', 'both': 'forward + backward'}
HEADER = (
    '| grid | points | pass | t3d, ms: median [min, max] | Mpoint/s | compile, s | temporaries, MiB | PyTorch, ms | ratio of '
    'medians (minima) |',
    '|---|---|---|---|---|---|---|---|---|',
)


def layout_of(shape: dict) -> hashgrid.Layout:
    return hashgrid.layout(*(shape[name] for name in ('levels', 'log2_rows', 'base', 'growth')))


def load(peer: measure.Peer, shape: dict) -> str:
    """Gives the peer a grid; returns what it is ('torch 2.13.0, cpu, ...')."""
    layout = layout_of(shape)
    levels = list(zip(layout.scales, layout.resolutions, layout.rows, layout.offsets, layout.hashed, strict=True))
    sizes = {'points': shape['points'], 'rows': layout.total, 'channels': CHANNELS, 'device': jax.default_backend()}
    return peer.ask({'shape': {**sizes, 'levels': levels}})['is']


def measured(shape: dict, peer: measure.Peer | None, repeats: int) -> list[dict]:
    """A row for each pass."""
    layout, (key_table, key_points) = layout_of(shape), jax.random.split(prng.key(0))
    table = jax.random.normal(key_table, (layout.total, CHANNELS), jnp.float32)
    points = jax.random.uniform(key_points, (shape['points'], 3), jnp.float32)

    def mean_square(table, points):
        return jnp.mean(jnp.square(hashgrid.encode(layout, table, points)))

    rows = []
    for name, function in (('forward', functools.partial(hashgrid.encode, layout)), ('both', jax.grad(mean_square))):
        memory.forget_peak()
        program = measure.compiled(function, table, points)
        run = functools.partial(measure.once, program.call, table, points)
        turns = measure.take_turns(run, peer.runs(name) if peer else [], repeats)
        row = figures.row(turns, program, flops.count(function, table, points), {'table': table, 'points': points})
        rows.append({'pass': name, **row, 'mpoint_per_s': 1e-3 * shape['points'] / turns.ours.median})
    return rows


def _line(size: str, row: dict) -> str:
    ours, theirs = row['t3d_ms'], row['peer_ms']
    ratio = f'{theirs.median / ours.median:.2f} ({theirs.min / ours.min:.2f})' if theirs else '-'
    return (
        f'| {size} | {SHAPES[size]["points"]:,} | {PASSES[row["pass"]]} | {ours} | {row["mpoint_per_s"]:.2f} '
        f'| {row["compile_s"]:.1f} | {row["temp_mib"]:.0f} | {theirs or "-"} | {ratio} |'
    )


def flags() -> parsing.Parser:
    """The flags of `t3d bench hash`."""
    parser = figures.parser('hash', __doc__)
    figures.of_sizes(parser, SHAPES, 'tiny,ngp')
    figures.beside_peer(parser, 'the PyTorch grid')
    return parser


def main(argv=None) -> int:
    """`t3d bench hash`: prints a Markdown table; returns 0."""
    args = figures.parsed(flags(), argv, sizes=SHAPES)
    print(figures.machine('float32'))
    print('\n'.join(HEADER), flush=True)
    results, peer_is = {}, None
    with figures.peer(args, PEER) as (peer, why_not):
        for size in args.sizes:
            peer_is = load(peer, SHAPES[size]) if peer else None
            results[size] = measured(SHAPES[size], peer, args.repeats)
            print('\n'.join(_line(size, row) for row in results[size]), flush=True)
    print(f'\n{figures.told(peer_is, why_not)}')
    measure.warn_of_load()
    figures.write(args, 'hash', results, why_not)
    return 0
