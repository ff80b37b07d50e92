import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.core import grids


def interpolate(grid, position):
    """A scalar loop over the corners; position in index order of the grid, clamped."""
    position = [min(max(float(p), 0.0), n - 1.0) for p, n in zip(position, grid.shape)]
    total = np.zeros(grid.shape[-1])
    for offset in itertools.product((0, 1), repeat=len(position)):
        low = [min(math.floor(p), n - 2) for p, n in zip(position, grid.shape)]
        weight = np.prod([(p - i) if o else 1 - (p - i) for p, i, o in zip(position, low, offset)])
        total += weight * grid[tuple(i + o for i, o in zip(low, offset))]
    return total


@pytest.mark.parametrize('lookup, shape', [(grids.bilinear, (5, 7, 3)), (grids.trilinear, (4, 5, 6, 2))])
def test_lookup_equals_a_scalar_loop(lookup, shape):
    grid = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    dims = len(shape) - 1
    where = np.random.default_rng(1).uniform(-1.5, 7.5, (60, dims)).astype(np.float32)  # x first
    expected = [interpolate(grid, point[::-1]) for point in where]
    np.testing.assert_allclose(lookup(jnp.asarray(grid), jnp.asarray(where)), expected, atol=1e-5)


def test_gradients_equal_those_of_plain_indexing():
    key_grid, key_xy, key_g = jax.random.split(jax.random.key(0), 3)
    grid = jax.random.normal(key_grid, (6, 5, 4))
    xy = jax.random.uniform(key_xy, (50, 2), minval=0.1, maxval=3.9)
    weights = jax.random.normal(key_g, (50, 4))

    def plain(grid, xy):
        low = jnp.floor(xy).astype(int)
        (x, y), (fx, fy) = low.T, (xy - low).T[..., None]
        top, bottom = grid[y, x] * (1 - fx) + grid[y, x + 1] * fx, grid[y + 1, x] * (1 - fx) + grid[y + 1, x + 1] * fx
        return top * (1 - fy) + bottom * fy

    slopes = lambda lookup: jax.jit(jax.grad(lambda grid, xy: jnp.sum(weights * lookup(grid, xy) ** 2), (0, 1)))(grid, xy)
    ours, theirs = slopes(grids.bilinear), slopes(plain)
    for got, expected in zip(ours, theirs):
        np.testing.assert_allclose(got, expected, atol=2e-5)


def test_a_second_derivative_is_right():
    grid = jax.random.normal(jax.random.key(0), (5, 5, 2))
    xy = jnp.array([[1.3, 2.6], [0.2, 3.1]])
    slope = lambda grid: jnp.sum(jax.grad(lambda xy: jnp.sum(grids.bilinear(grid, xy) ** 2))(xy) ** 2)
    direction, step = jax.random.normal(jax.random.key(1), grid.shape), 1e-2
    expected = (slope(grid + step * direction) - slope(grid - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(jax.grad(slope)(grid) * direction), expected, rtol=2e-3)


@pytest.mark.parametrize('channels', [2, 5])
def test_dot_rows_and_its_gradients_are_those_of_plain_indexing(channels):
    random = np.random.default_rng(0)
    table, vectors = (jnp.asarray(random.normal(size=(count, channels)), jnp.float32) for count in (7, 11))
    index, mix = jnp.asarray(random.integers(0, 7, (3, 11)), jnp.int32), jnp.asarray(random.normal(size=(3, 11)), jnp.float32)
    plain = lambda table, index, vectors: jnp.einsum('knc,nc->kn', table[index], vectors)
    np.testing.assert_allclose(grids.dot_rows(table, index, vectors), plain(table, index, vectors), atol=1e-5)
    slopes = lambda dot: jax.grad(lambda table, vectors: jnp.sum(mix * dot(table, index, vectors) ** 2), (0, 1))(table, vectors)
    for ours, theirs in zip(slopes(grids.dot_rows), slopes(plain)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_bad_coordinates_stay_inside_the_table():
    out = grids.bilinear(jnp.ones((3, 3, 1)), jnp.array([[jnp.nan, 0.0], [jnp.inf, -jnp.inf], [1e30, 2.0]]))
    assert np.isnan(out[0, 0])
    np.testing.assert_array_equal(out[1:], 1.0)


def test_a_grid_of_one_texel_is_refused():
    with pytest.raises(ValueError, match='1 x 4.*at least 2 x 2'):
        grids.bilinear(jnp.ones((1, 4, 2)), jnp.zeros((1, 2)))


@pytest.mark.parametrize('block', [7, 12, 13, 64])  # 60 = 5 * 12; 13 and 7 leave a rest or a smaller divisor; 64 is all at once
def test_lookup_map_equals_lookup_then_map(block):
    keys = jax.random.split(jax.random.key(0), 4)
    table, kernel = jax.random.normal(keys[0], (36, 3)), jax.random.normal(keys[1], (3, 5))
    points, mix = jax.random.uniform(keys[2], (60, 2), minval=0.0, maxval=5.0), jax.random.normal(keys[3], (60, 5))
    corners = lambda points: grids.bilinear_corners(points[:, 0], points[:, 1], 6, 6)

    def loss(blocks):
        def of(kernel, table, points, shift):
            function = lambda kernel, rows: {'a': jnp.tanh(rows @ kernel + shift), 'b': jnp.sum(rows, -1)}
            if blocks:
                out = grids.lookup_map(function, kernel, table, corners, points, blocks)
            else:
                out = function(kernel, grids.weighted_rows(table, *corners(points)))
            return jnp.sum(out['a'] * mix) + jnp.sum(out['b'] ** 2)

        return jax.jit(jax.value_and_grad(of, (0, 1, 2, 3)))

    got, expected = (loss(blocks)(kernel, table, points, jnp.float32(0.3)) for blocks in (block, None))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), got, expected)


def test_lookup_map_over_a_batch_shares_its_parameters():
    keys = jax.random.split(jax.random.key(0), 3)
    tables, kernel = jax.random.normal(keys[0], (2, 36, 3)), jax.random.normal(keys[1], (3, 4))
    points = jax.random.uniform(keys[2], (2, 24, 2), maxval=5.0)
    corners = lambda points: grids.bilinear_corners(points[:, 0], points[:, 1], 6, 6)
    function = lambda kernel, rows: jnp.sin(rows @ kernel)

    def batched(kernel, tables):
        one = lambda table, points: grids.lookup_map(function, kernel, table, corners, points, 6)
        return jnp.sum(jax.vmap(one)(tables, points) ** 2)

    def looped(kernel, tables):
        return sum(jnp.sum(function(kernel, grids.weighted_rows(t, *corners(p))) ** 2) for t, p in zip(tables, points))

    got, expected = (jax.grad(f, (0, 1))(kernel, tables) for f in (batched, looped))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), got, expected)
