"""Grids of what is occupied against loops in numpy; renders between their limits against dense ones."""

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import prng
from t3d.geom import occupancy, rays, volume

SIDE = 6
limits = jax.jit(occupancy.limits, static_argnums=2)


def bundle(count=40, seed=0):
    """Rays from all around at random points of the cube, some of which pass it by, and one from within."""
    random = np.random.default_rng(seed)
    origins = random.normal(size=(count, 3))
    origins *= 3.0 / np.linalg.norm(origins, axis=-1, keepdims=True)
    origins[0] = [0.1, -0.2, 0.3]
    directions = random.uniform(-1.2, 1.2, (count, 3)) - origins
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return rays.Rays(*(jnp.asarray(value, jnp.float32) for value in (origins, directions)))


def ball(points, directions=None):
    density = 8.0 * jax.nn.relu(0.5 - jnp.linalg.norm(points - jnp.array([0.3, 0.0, -0.2]), axis=-1))
    return density, 0.5 + 0.5 * points


def test_cells_keep_the_largest_recent_thickness():
    """Jittered looks lie in their own cells; the grid fades by 0.95 and takes what is more."""
    seen = []

    def density(points):
        seen.append(np.asarray(points))
        return 3.0 * points[..., 0] ** 2 + 0.1 * points[..., 2]

    cells = jnp.zeros((2, SIDE, SIDE, SIDE))
    wanted = np.zeros((2, SIDE**3))
    for step in range(3):
        cells = occupancy.update(cells, density, prng.key(step), length=0.5)
        wanted = np.maximum(0.95 * wanted, 0.5 * (3.0 * seen[-1][..., 0] ** 2 + 0.1 * seen[-1][..., 2]))
        np.testing.assert_allclose(cells.reshape(2, -1), wanted, rtol=1e-5, atol=1e-7)
    place = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing='ij'), -1).reshape(-1, 3)
    for points in seen:
        np.testing.assert_array_equal(points[0], points[1])
        np.testing.assert_array_equal(np.floor((points[0] + 1.0) * SIDE / 2), place)
    assert np.abs(seen[0] - seen[1]).max() > 0.1
    occupancy.update(cells, density, None, length=0.5)
    np.testing.assert_allclose(seen[-1][0], (place + 0.5) * 2 / SIDE - 1, atol=1e-6)


def test_nothing_is_left_out_at_first_then_what_is_thin():
    cells = np.zeros((2, 4, 4, 4), np.float32)
    cells[0, 1, 2, 3], cells[0, 0, 0, 0], cells[1, :2] = 9.0, 0.02, 0.002
    full = jax.jit(occupancy.occupied)
    assert np.all(full(cells, 0)) and np.all(full(cells, 255))
    late = full(cells, 256)
    assert full._cache_size() == 1
    np.testing.assert_array_equal(np.argwhere(late[0]), [[0, 0, 0], [1, 2, 3]])  # the threshold 1e-2, below the mean .14
    np.testing.assert_array_equal(late[1], cells[1] > 0.001)  # the mean, below the threshold


def test_lookup_takes_the_cell_of_a_point():
    cells = jnp.arange(SIDE**3).reshape((SIDE,) * 3)
    points = np.array([[-0.99, 0.01, 0.99], [0.4, -0.4, 0.1], [5.0, -5.0, 0.5]], np.float32)
    place = np.clip(np.floor((points + 1) * SIDE / 2), 0, SIDE - 1).astype(int)
    np.testing.assert_array_equal(occupancy.lookup(cells, jnp.asarray(points)), [cells[tuple(row)] for row in place])


def test_limits_are_the_first_and_last_occupied_place_of_a_loop():
    full = np.random.default_rng(1).uniform(size=(SIDE,) * 3) < 0.12
    some, march = bundle(), 50
    near, far = limits(jnp.asarray(full), some, march)
    enter, leave = (np.asarray(value, np.float64) for value in rays.ray_box(some, 2.0))
    hits = 0
    for n in range(40):
        begin, step = max(enter[n], 0.0), (leave[n] - max(enter[n], 0.0)) / march
        places = begin + (np.arange(march) + 0.5) * step
        points = np.float64(some.origins[n]) + places[:, None] * np.float64(some.directions[n])
        cell = np.clip(np.floor((points + 1) * SIDE / 2), 0, SIDE - 1).astype(int)
        met = places[full[tuple(cell.T)]] if leave[n] > enter[n] else []
        if not len(met):
            assert near[n] > far[n]
            continue
        hits += 1
        wanted = max(met[0] - step, begin), min(met[-1] + step, leave[n])
        np.testing.assert_allclose((near[n], far[n]), wanted, atol=1e-4)
    assert 10 < hits < 40


def test_a_full_grid_renders_as_no_grid_and_a_kept_one_nearly():
    """What is dropped is empty, so more samples fall where something is, and the picture changes by the quadrature alone."""
    some = bundle(64, seed=2)
    render = jax.jit(lambda near, far: volume.over(volume.render(ball, some, None, near=near, far=far, num_samples=64), 0.3))
    dense = render(*rays.ray_box(some, 2.0))
    nothing = jnp.zeros((SIDE,) * 3)
    np.testing.assert_allclose(render(*limits(occupancy.occupied(nothing, 3), some)), dense, atol=1e-5)  # not yet pruned
    cells = occupancy.update(jnp.zeros((16,) * 3), lambda points: ball(points)[0], None, length=0.05)
    kept = occupancy.grow(occupancy.occupied(cells, 300))
    assert 0.02 < np.mean(kept) < 0.3
    near, far = limits(kept, some)
    assert np.mean(near > far) > 0.3 and np.abs(dense - 0.3).max() > 0.2
    np.testing.assert_allclose(render(near, far), dense, atol=0.02)
    assert np.all(render(*limits(occupancy.occupied(nothing, 300), some)) == np.float32(0.3))  # everything is


def test_neighbours_are_grown():
    full = np.zeros((SIDE,) * 3, bool)
    full[0, 2, 4] = full[5, 5, 5] = True
    wanted = np.zeros_like(full)
    wanted[:2, 1:4, 3:6] = wanted[4:, 4:, 4:] = True
    np.testing.assert_array_equal(occupancy.grow(jnp.asarray(full)), wanted)
