"""Hash grids against a scalar loop of Python integers, tiny-cuda-nn's numbers, and finite differences."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.bench import hashgrid as hash_bench
from t3d.bench import measure, table
from t3d.core import prng
from t3d.core.errors import UsageError
from t3d.geom import hashgrid

SMALL = hashgrid.layout(levels=5, log2_rows=8, base=3, growth=1.7)  # 3, 6 dense; 9, 15, 26 hashed
encode = jax.jit(hashgrid.encode, static_argnums=0)
SIDES = [(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)]


def scalar(layout, table, point):
    """The features of one point, corner by corner: Python's integers for the hash, float64 for the weights."""
    out = []
    for level in range(layout.levels):
        scale = np.float64(np.float32(layout.scales[level]))
        position = [scale * np.float64(x) + 0.5 for x in point]
        low = [math.floor(p) for p in position]
        total = np.zeros(table.shape[1])
        for sides in SIDES:
            place = [a + b for a, b in zip(low, sides)]
            weight = math.prod(p - a if b else 1.0 - (p - a) for p, a, b in zip(position, low, sides))
            res = layout.resolutions[level]
            if res**3 <= 2 ** int(math.log2(max(layout.rows))):
                row = place[0] + place[1] * res + place[2] * res * res
            else:
                row = place[0] ^ (place[1] * 2654435761 % 2**32) ^ (place[2] * 805459861 % 2**32)
            total += weight * table[layout.offsets[level] + row % layout.rows[level]]
        out.append(total)
    return np.concatenate(out)


def tables(layout, channels, *lead):
    return np.random.default_rng(1).uniform(-1, 1, (*lead, layout.total, channels)).astype(np.float32)


@pytest.mark.parametrize('name', hash_bench.SHAPES)
def test_the_peer_of_the_benchmark_has_the_same_features(name):
    torch, torch_hashgrid = pytest.importorskip('torch'), pytest.importorskip('peers.torch_hashgrid')
    layout = hash_bench.layout_of(hash_bench.SHAPES[name])
    random = np.random.default_rng(5)
    table = random.normal(size=(layout.total, 2)).astype(np.float32)
    points = np.concatenate([random.uniform(size=(500, 3)), random.integers(2, size=(20, 3))]).astype(np.float32)
    levels = list(zip(layout.scales, layout.resolutions, layout.rows, layout.offsets, layout.hashed, strict=True))
    want = torch_hashgrid.encode(levels, torch.tensor(table), torch.tensor(points))
    # A fused multiply-add moves a position of the finest level by half of 2.4e-4, and a feature by that times its rows.
    np.testing.assert_allclose(encode(layout, table, points), want, atol=2e-3)


def test_the_benchmark_prints_a_line_for_each_pass(monkeypatch, tmp_path, capsys):
    small = {'levels': 2, 'log2_rows': 6, 'base': 3, 'growth': 1.7, 'points': 40}
    monkeypatch.setattr(hash_bench, 'SHAPES', {'tiny': small})
    for name in ('PAUSE', 'WARM'):
        monkeypatch.setattr(measure, name, 0.0)
    assert table.main(['hash', '--sizes', 'tiny', '--repeats', '1', '--no-peer', '--json', str(tmp_path / 'hash.json')]) == 0
    assert [line.split('|')[3].strip() for line in capsys.readouterr().out.splitlines() if line.startswith('| tiny')] == [
        'forward',
        'forward + backward',
    ]
    assert json.loads((tmp_path / 'hash.json').read_text())['figures']['tiny'][1]['temp_mib'] >= 0


def test_the_default_layout_is_that_of_tiny_cuda_nn():
    layout = hashgrid.layout()
    assert layout.resolutions == (16, 24, 34, 49, 71, 102, 148, 213, 308, 446, 646, 934, 1352, 1956, 2831, 4096)
    assert layout.total == 6_299_960 and layout.hashed == (False,) * 5 + (True,) * 11  # the boundary lies at level 5
    assert layout.rows[:3] == (16**3, 24**3, 39304) and set(layout.rows[5:]) == {2**19}
    assert layout.rows[3] == 117_656 and 49**3 == 117_649  # padded to eights
    assert hashgrid.layout(8, 14, 16, 1.5).total == 116_224


@pytest.mark.parametrize('layout', [SMALL, hashgrid.layout(8, 14, 16, 1.5)], ids=['small', 'tiny'])
def test_features_are_those_of_a_scalar_loop(layout):
    points = np.random.default_rng(0).uniform(0, 1, (13, 3)).astype(np.float32)
    points[:4] = [[0, 0, 0], [1, 1, 1], [1, 0, 0.3], [0.2, 1, 1]]  # corners on the faces of the box
    table = tables(layout, 3)
    ours = encode(layout, table, points)
    assert ours.shape == (13, 3 * layout.levels) and np.all(np.isfinite(ours))
    np.testing.assert_allclose(ours, [scalar(layout, table, point) for point in points], atol=1e-4)


def test_the_finest_levels_agree_within_the_rounding_of_their_positions():
    layout = hashgrid.layout()
    points = np.random.default_rng(0).uniform(0, 1, (40, 3)).astype(np.float32)
    table = tables(layout, 1)
    wanted = np.stack([scalar(layout, table, point) for point in points])
    off = np.abs(encode(layout, table, points) - wanted)
    assert off[:, :9].max() < 1e-4 and off.max() < 3 * 5e-4  # ulp(4096) / 2 along three axes, on tables in [-1, 1]


def test_many_tables_are_looked_up_as_each_alone():
    table, points = tables(SMALL, 2, 3), np.random.default_rng(2).uniform(0, 1, (3, 4, 5, 3)).astype(np.float32)
    together = encode(SMALL, table, points)
    for p in range(3):
        np.testing.assert_allclose(together[p], encode(SMALL, table[p], points[p]), atol=1e-6)  # two programs: they round


def test_gradients_are_finite_differences():
    """Of table and points; the feature is linear in the table, and trilinear within a cell of the grid."""
    table, points = tables(SMALL, 2), np.random.default_rng(3).uniform(0.02, 0.98, (7, 3)).astype(np.float32)
    mix = np.random.default_rng(4).normal(size=(7, 2 * SMALL.levels)).astype(np.float32)
    value = lambda table, points: jnp.sum(mix * encode(SMALL, table, points))
    to_table, to_points = jax.jit(jax.grad(value, (0, 1)))(table, points)
    way = np.random.default_rng(5).normal(size=table.shape).astype(np.float32)
    exact = sum(np.sum(m * scalar(SMALL, way.astype(np.float64), p)) for m, p in zip(mix, points))
    np.testing.assert_allclose(np.sum(np.float64(to_table) * way), exact, rtol=1e-4)
    wide = table.astype(np.float64)
    for n in range(7):
        for axis in range(3):
            ends = [np.float64(points[n]) + sign * 1e-5 * np.eye(3)[axis] for sign in (-1, 1)]
            below, above = (np.sum(mix[n] * scalar(SMALL, wide, end)) for end in ends)
            np.testing.assert_allclose(to_points[n, axis], (above - below) / 2e-5, rtol=1e-3, atol=2e-3)


def test_second_derivatives_reach_the_table():
    """d/dtable of |d feature / dx|^2, along a direction, against a difference of first derivatives."""
    table, points = tables(SMALL, 1), np.random.default_rng(6).uniform(0.02, 0.98, (9, 3)).astype(np.float32)
    feature = lambda table, points: jnp.sum(encode(SMALL, table, points) ** 2)
    steepness = jax.jit(lambda table: jnp.sum(jax.grad(feature, 1)(table, points) ** 2))
    way = np.random.default_rng(7).normal(size=table.shape).astype(np.float32)
    exact = np.sum(np.float64(jax.grad(steepness)(table)) * way)
    above, below = (float(steepness(table + sign * 5e-3 * way)) for sign in (1, -1))
    np.testing.assert_allclose(exact, (above - below) / 1e-2, rtol=1e-3)


def test_points_outside_lie_on_the_surface_and_nothing_is_out_of_bounds():
    points = np.array([[-0.3, 0.5, 1.7], [1e9, -1e9, 0.0], [np.nan, 0.5, 0.5]], np.float32)
    for level, rows in enumerate(SMALL.rows):
        index, _ = jax.jit(hashgrid.corners, static_argnums=(0, 1))(SMALL, level, points)
        assert index.min() >= 0 and index.max() < rows
    table = tables(SMALL, 2)
    moved = encode(SMALL, table, np.clip(points[:2], 0, 1))
    np.testing.assert_array_equal(encode(SMALL, table, points[:2]), moved)


def test_levels_come_one_after_another_within_one_program():
    kind = {'first': 2, 'start': 20, 'every': 5}
    mask = jax.jit(lambda step: hashgrid.progressive(5, step, **kind))
    assert [int(mask(step).sum()) for step in (0, 20, 24, 25, 29, 30, 35, 10**6)] == [2, 2, 2, 3, 3, 4, 5, 5]
    assert mask._cache_size() == 1
    np.testing.assert_array_equal(mask(25), [1, 1, 1, 0, 0])
    table, points = tables(SMALL, 2), np.full((1, 3), 0.4, np.float32)
    some, whole = (encode(SMALL, table, points, one) for one in (mask(25), None))
    np.testing.assert_allclose(some, np.where(np.arange(10) < 6, whole, 0.0), atol=1e-6)  # two programs: they round
    assert not np.any(some[:, 6:])


def test_new_tables_are_small_and_other_sizes_are_refused():
    table = hashgrid.init(prng.key(0), SMALL)
    assert table.shape == (SMALL.total, 2) and 0.9e-4 < np.abs(table).max() <= 1e-4
    for bad in ({'levels': 0}, {'growth': 0.9}, {'log2_rows': 30}, {'levels': 40}):
        with pytest.raises(UsageError, match='wanted levels >= 1'):
            hashgrid.layout(**bad)
    with pytest.raises(ValueError, match=f'a table of 7 rows for a layout of {SMALL.total}'):
        hashgrid.encode(SMALL, jnp.zeros((7, 2)), jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match='wanted \\[P, rows, F\\]'):
        hashgrid.encode(SMALL, jnp.zeros((2, SMALL.total, 2)), jnp.zeros((3, 1, 3)))
