"""Linear lookup in regular grids: weighted sums of table rows, with gradients written by hand.

Every interpolation here is one primitive: output n is the sum over K corners of weight[k, n] * table[index[k, n]]. The
forward pass gathers whole rows (the C channels are contiguous) and fuses with the sum; the backward pass adds whole rows into
the table, corner after corner, so that one update of N rows is alive at a time. No corner is clipped or masked, because the
callers pad the grid by one texel and clip the coordinate once. `lookup_map` goes further and never holds all looked-up rows.

What it buys, and why: temporaries cost more than arithmetic. On a CPU every fresh megabyte is 256 page faults, which here take
longer than the sums they store; on any device they bound the batch.
"""

import functools

import jax
import jax.numpy as jnp

from t3d.core.typing import Array, Float, Int, typechecked

GATHER = jax.lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))
SCATTER = jax.lax.ScatterDimensionNumbers(update_window_dims=(1,), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0,))
NARROW = 4  # channels
TRUSTED = jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS


def _rows(table, index):
    return jax.lax.gather(table, index[:, None], GATHER, slice_sizes=(1, table.shape[1]), mode=TRUSTED)


def _add_rows(table, index, rows):
    return jax.lax.scatter_add(table, index[:, None], rows.astype(table.dtype), SCATTER, mode=TRUSTED)


@jax.custom_vjp
def weighted_rows(table: Float[Array, 'm c'], index: Int[Array, 'k n'], weight: Float[Array, 'k n']) -> Float[Array, 'n c']:
    """sum_k weight[k, n] * table[index[k, n]]; the indices are trusted to lie in [0, M).

    Differentiable in `table` and `weight`, to any order in reverse mode. Work and traffic: K * N rows of C.
    """
    return functools.reduce(jnp.add, (w[:, None] * _rows(table, i) for i, w in zip(index, weight, strict=True)))


def _weighted_rows_forward(table, index, weight):
    return weighted_rows(table, index, weight), (table, index, weight)


def _to_table(into, index, weight, gradient):
    """`into` plus the scattered gradient of the looked-up rows: a loop over the corners, in place."""

    def corner(into, place):
        i, w = place
        return _add_rows(into, i, w[:, None] * gradient), None

    return jax.lax.scan(corner, into, (index, weight))[0]


@jax.custom_vjp
def dot_rows(table: Float[Array, 'm c'], index: Int[Array, 'k n'], vectors: Float[Array, 'n c']) -> Float[Array, 'k n']:
    """table[index[k, n]] . vectors[n]: the gradient of `weighted_rows` by its weights, and its derivatives are of that kind.

    So a second derivative of a lookup, which normals need, is one pass over rows too, and not a table for each corner.
    """
    return jnp.stack([_dot(_rows(table, i), vectors) for i in index])


def _dot(rows, vectors):
    """Products summed over C. A handful of channels is written out: a reduction over so few takes a CPU twice as long."""
    if rows.shape[-1] > NARROW:
        return jnp.sum(rows * vectors, axis=-1)
    return functools.reduce(jnp.add, (rows[:, c] * vectors[:, c] for c in range(rows.shape[-1])))


def _dot_rows_backward(saved, gradient):
    table, index, vectors = saved
    to_table = _to_table(jnp.zeros_like(table), index, gradient, vectors)
    return to_table, None, weighted_rows(table, index, gradient).astype(vectors.dtype)


dot_rows.defvjp(lambda table, index, vectors: (dot_rows(table, index, vectors), (table, index, vectors)), _dot_rows_backward)


def _weighted_rows_backward(saved, gradient):
    table, index, weight = saved
    to_table = _to_table(jnp.zeros_like(table), index, weight, gradient)
    return to_table, None, dot_rows(table, index, gradient).astype(weight.dtype)


weighted_rows.defvjp(_weighted_rows_forward, _weighted_rows_backward)


def lookup_map(function, params, table: Float[Array, 'm c'], corners, points: Float[Array, 'n d'], block: int):
    """function(params, rows) of the interpolated rows at `points`, in blocks: the rows of all points never exist at once.

    The backward pass keeps nothing but the arguments: it looks the rows of a block up again, runs `function` again, and adds
    the gradient of the table in place.

    Args:
      function: `(params, rows [n, C]) -> pytree of [n, ...]`, each point by itself.
      params: pytree of float arrays; differentiated, as are `table`, `points` and the floats that `function` closes over.
      corners: `points [n, d] -> (index [K, n], weight [K, n])`; closes over no traced value.
      points: [N, d].
      block: points at a time; the largest divisor of N up to it is taken. block >= N means no loop at all.
    """
    count = points.shape[0]
    size = next(size for size in range(max(1, min(block, count)), 0, -1) if count % size == 0)
    if 4 * size < min(block, count):  # no fair divisor: fill the last block up with copies of a point
        pieces = -(-count // block)
        size = -(-count // pieces)
        points = jnp.concatenate([points, jnp.broadcast_to(points[-1:], (pieces * size - count, points.shape[1]))])
    rows = jax.ShapeDtypeStruct((size, table.shape[1]), table.dtype)
    pure, closed_over = jax.closure_convert(function, params, rows)
    out = _lookup_map(pure, corners, size, (params, closed_over), table, points)
    return jax.tree.map(lambda leaf: leaf[:count], out) if points.shape[0] != count else out


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _lookup_map(pure, corners, size, arguments, table, points):
    params, closed_over = arguments

    def one(block):
        return pure(params, weighted_rows(table, *corners(block)), *closed_over)

    return _join(jax.lax.map(one, _split(points, size))) if points.shape[0] > size else one(points)


def _lookup_map_forward(pure, corners, size, arguments, table, points):
    return _lookup_map(pure, corners, size, arguments, table, points), (arguments, table, points)


def _lookup_map_backward(pure, corners, size, saved, gradient):
    arguments, table, points = saved

    def one(total, block):
        points, gradient = block
        with jax.named_scope('rematted_computation'):  # jax.checkpoint's name for it: such work is no model FLOP
            (index, weight), pull_corners = _vjp_floats(corners, points)
            rows = weighted_rows(table, index, weight)
            _, pull = jax.vjp(lambda arguments, rows: pure(arguments[0], rows, *arguments[1]), arguments, rows)
        to_arguments, to_rows = pull(gradient)
        to_points = pull_corners(dot_rows(table, index, to_rows).astype(weight.dtype))
        to_table = _to_table(total[1], index, weight, to_rows)
        return (jax.tree.map(jnp.add, total[0], to_arguments), to_table), to_points

    start = (jax.tree.map(jnp.zeros_like, arguments), jnp.zeros_like(table))
    if points.shape[0] == size:
        (to_arguments, to_table), to_points = one(start, (points, gradient))
    else:
        split = (_split(points, size), jax.tree.map(lambda leaf: _split(leaf, size), gradient))
        (to_arguments, to_table), to_points = jax.lax.scan(one, start, split)
        to_points = _join(to_points)
    return to_arguments, to_table, to_points


_lookup_map.defvjp(_lookup_map_forward, _lookup_map_backward)


def _vjp_floats(corners, points):
    """((index, weight), pull) of corners(points), where pull takes the gradient of the weights alone."""
    weight, pull, index = jax.vjp(lambda points: corners(points)[::-1], points, has_aux=True)
    return (index, weight), lambda gradient: pull(gradient)[0]


def _split(value, size):
    return value.reshape(-1, size, *value.shape[1:])  # [N / size, size, ...]


def _join(tree):
    return jax.tree.map(lambda value: value.reshape(-1, *value.shape[2:]), tree)


def _cell(coordinate, size: int, border: int = 0):
    """Index in [0, size - 2] of the lower texel, and the fraction beyond it; ends at the centres of the outer texels."""
    clipped = jnp.clip(coordinate, -border, size - 1.0 - border)
    low = jnp.minimum(jnp.floor(clipped), size - 2.0 - border)
    place = jnp.clip(low.astype(jnp.int32) + border, 0, size - 2)  # keeps even a NaN inside the table
    return place, clipped - low


def bilinear_corners(x: Float[Array, '...'], y: Float[Array, '...'], height: int, width: int, border: int = 0):
    """Row-major indices and weights, each [4, ...], of the texels about (x, y), in texels with centres at the integers.

    `height` and `width` count a border of `border` texels on each side, at the coordinates -border ... -1 and likewise beyond.
    """
    x, fx = _cell(x, width, border)
    y, fy = _cell(y, height, border)
    corner = y * width + x
    index = jnp.stack([corner, corner + 1, corner + width, corner + width + 1])
    return index, jnp.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy])


@typechecked
def bilinear(grid: Float[Array, 'h w c'], xy: Float[Array, '*b 2']) -> Float[Array, '*b c']:
    """Values of an image at `xy` (x to the right, y down, in texels: centres at the integers), clamped at its border.

    A grid of one texel in height or width is refused; pad it first.
    """
    height, width, channels = grid.shape
    if min(height, width) < 2:
        raise ValueError(f'bilinear lookup in a {height} x {width} grid: it takes at least 2 x 2. Pad the grid by one texel.')
    index, weight = bilinear_corners(xy[..., 0].reshape(-1), xy[..., 1].reshape(-1), height, width)
    return weighted_rows(grid.reshape(-1, channels), index, weight).reshape(*xy.shape[:-1], channels)


@typechecked
def trilinear(volume: Float[Array, 'd h w c'], xyz: Float[Array, '*b 3']) -> Float[Array, '*b c']:
    """Values of a volume at `xyz` (x along w, y along h, z along d; voxel centres at the integers), clamped at its border."""
    depth, height, width, channels = volume.shape
    if min(depth, height, width) < 2:
        raise ValueError(f'trilinear lookup in a {depth} x {height} x {width} volume: it takes at least 2 along each axis.')
    flat = xyz.reshape(-1, 3)
    index, weight = bilinear_corners(flat[:, 0], flat[:, 1], height, width)
    z, fz = _cell(flat[:, 2], depth)
    below = index + z * (height * width)
    corners = jnp.concatenate([below, below + height * width])
    weights = jnp.concatenate([weight * (1 - fz), weight * fz])
    return weighted_rows(volume.reshape(-1, channels), corners, weights).reshape(*xyz.shape[:-1], channels)
