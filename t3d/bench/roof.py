"""`t3d bench roof`: the most that this machine does with matrix products, streams of memory and gathered rows.

What a program reaches of these says what limits it. Products: float32 (or `--dtype`), square. Streams: 256 MiB read and
written (4 GiB on an accelerator). Rows: of 32 numbers, drawn at random from three planes of 256 x 256; their bytes alone count.
Least time of several: a roof is what is reached at best.
"""

import time

import jax
import jax.numpy as jnp

from t3d.bench import figures, measure
from t3d.core import parsing, prng

SIZES = {  # side of the matrices, numbers of a stream, rows, rows at a time: those stay in a cache of a processor
    'cpu': (2048, 2**26, 2**21, 2**13),
    'others': (8192, 2**30, 2**24, 2**24),
}
TABLE, CHANNELS = 3 * 256 * 256, 32


def sizes() -> tuple[int, int, int, int]:
    """Those of SIZES for this backend."""
    return SIZES['cpu' if jax.default_backend() == 'cpu' else 'others']


def least(call, *args, repeats: int = 7) -> float:
    """Seconds of the quickest call, after one that does not count."""
    jax.block_until_ready(call(*args))
    return 1e-3 * min(measure.once(call, *args) for _ in range(repeats))


def products(dtype: str = 'float32', repeats: int = 7) -> float:
    """GFLOP/s of a square matrix product on one device."""
    side = sizes()[0]
    pair = jax.random.normal(prng.key(0), (2, side, side), jnp.float32)
    a, b = pair.astype(dtype)
    return 2e-9 * side**3 / least(jax.jit(jnp.matmul), a, b, repeats=repeats)


def copy(repeats: int = 7) -> float:
    """GB/s of a stream that is read and written: what a streaming kernel reaches on this device."""
    data = jnp.ones(sizes()[1], jnp.float32)
    add = jax.jit(lambda data: data + 1.0, donate_argnums=0)
    data, best = add(data), float('inf')
    for _ in range(repeats):
        start = time.perf_counter()
        data = jax.block_until_ready(add(data))
        best = min(best, time.perf_counter() - start)
    return 2e-9 * data.nbytes / best


def gather(repeats: int = 7) -> float:
    """GB/s of rows of CHANNELS float32 numbers taken from a table of TABLE rows at random places, each then summed."""
    _, _, count, block = sizes()
    table = jax.random.normal(prng.key(0), (TABLE, CHANNELS), jnp.float32)
    places = jax.random.randint(prng.key(1), (count // block, block), 0, TABLE, jnp.int32)

    @jax.jit
    def sums(table, places):
        rows = lambda block: jax.lax.optimization_barrier(table.at[block].get(mode='promise_in_bounds'))  # whole rows first
        return jax.lax.map(lambda block: jnp.sum(rows(block), -1), places)

    return 4e-9 * count * CHANNELS / least(sums, table, places, repeats=repeats)


def measured(dtype: str, repeats: int) -> dict:
    """The three roofs of one device, JSON-ready."""
    return {
        'dtype': dtype,
        'gflop_per_s': products(dtype, repeats),
        'copy_gb_per_s': copy(repeats),
        'rows_gb_per_s': gather(repeats),
    }


def flags() -> parsing.Parser:
    """The flags of `t3d bench roof`."""
    parser = figures.parser('roof', __doc__)
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'), help='of the products')
    return parser


def main(argv=None) -> int:
    """Prints the roofs; returns 0."""
    args = flags().parse_args(argv)
    print(figures.machine(args.dtype))
    roofs = measured(args.dtype, args.repeats)
    print(f'products {roofs["gflop_per_s"]:.1f} GFLOP/s, streams {roofs["copy_gb_per_s"]:.1f} GB/s, ', end='')
    print(f'rows of {CHANNELS} {roofs["rows_gb_per_s"]:.1f} GB/s')
    measure.warn_of_load()
    figures.write(args, 'roof', roofs)
    return 0
