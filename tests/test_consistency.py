"""3-D sanity against closed forms, a naive loop, and the toy scenes' own depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.data.sets import oracle, shapes, toy
from t3d.geom import cameras
from t3d.metrics import consistency

VIEWS, SIZE = 6, 48
AZIMUTH, ELEVATION = np.arange(VIEWS) * (2.0 * np.pi / VIEWS), np.full(VIEWS, 0.4)


def far_camera(count=1, distance=200.0):
    """Cameras so far away that their rays are parallel; the picture spans [-1, 1]."""
    return cameras.orbit(jnp.arange(count) * 0.7, 0.0, distance, 2.0 * np.arctan(1.0 / distance))


@pytest.mark.parametrize('radius', [0.5, 0.8])
def test_relief_of_a_ball(radius):
    """Over the disc of a ball's picture, z = sqrt(r^2 - rho^2) has variance r^2 / 2 - (2 r / 3)^2 = r^2 / 18."""
    views, size = far_camera(), 256
    grid = (np.arange(size) + 0.5) / size * 2.0 - 1.0
    rho2 = grid[:, None] ** 2 + grid[None] ** 2
    hit = rho2 < radius**2
    depth = 200.0 - np.sqrt(np.maximum(radius**2 - rho2, 0.0))
    relief = consistency.relief(jnp.float32(depth)[None], jnp.float32(hit)[None], views)
    np.testing.assert_allclose(relief.depth, radius / np.sqrt(18.0), rtol=5e-3)
    np.testing.assert_allclose(relief.bent, radius / np.sqrt(18.0), rtol=5e-3)  # across it is wider: r / 2


def test_relief_of_boards():
    """A board with |x|, |y| <= 1/2 of its own: straight on it has no relief, turned by 40 degrees depth but no bend."""
    views = cameras.orbit(jnp.array([0.0]), 0.0, 3.0, 0.7)
    rays = cameras.rays(views, 96, 96)
    for angle in (0.0, np.radians(40.0)):
        normal = jnp.array([np.sin(angle), 0.0, np.cos(angle)])
        depth = -(rays.origins @ normal) / (rays.directions @ normal)
        points = rays.origins + depth[..., None] * rays.directions
        across = points @ jnp.array([np.cos(angle), 0.0, -np.sin(angle)])
        opacity = ((jnp.abs(across) < 0.5) & (jnp.abs(points[..., 1]) < 0.5)).astype(jnp.float32)
        relief = consistency.relief(depth, opacity, views)
        np.testing.assert_allclose(relief.bent, 0.0, atol=2e-4)
        np.testing.assert_allclose(relief.depth, np.sin(angle) / np.sqrt(12.0), atol=8e-3)  # more rays hit its nearer half
    nothing = consistency.relief(depth, jnp.zeros_like(depth), views)
    assert (nothing.depth, nothing.bent) == (0.0, 0.0)


def test_share_of_fog():
    opacity = np.zeros((2, 4, 5), np.float32)
    opacity[0, :2] = 1.0  # ten solid rays
    opacity[1, 0] = (0.04, 0.06, 0.5, 0.94, 0.96)  # nothing, three half, solid
    np.testing.assert_allclose(consistency.half_opaque(opacity), 3 / 14, rtol=1e-6)
    assert consistency.half_opaque(np.zeros((1, 2, 2), np.float32)) == 0.0


def test_agreement_against_a_loop():
    random = np.random.default_rng(5)
    views = cameras.orbit(jnp.array([0.0, 0.5]), jnp.array([0.1, 0.3]), 3.0, 0.8)
    rgb = random.uniform(size=(2, 7, 7, 3)).astype(np.float32)
    depth = random.uniform(2.9, 3.1, (2, 7, 7)).astype(np.float32)
    opacity = random.choice([0.0, 0.6, 1.0, 1.0, 1.0], (2, 7, 7)).astype(np.float32)
    agreement = consistency.agreement(rgb, depth, opacity, views, tolerance=0.1)
    rays = jax.device_get(cameras.rays(views, 7, 7))
    pose, lens = np.asarray(views.world_from_cam, np.float64), np.asarray(views.intrinsics, np.float64)
    wrong, counts = [], dict.fromkeys(('seen', 'hidden', 'contradicted'), 0)
    for a, b in ((0, 1), (1, 0)):
        for row in range(7):
            for column in range(7):
                if opacity[a, row, column] <= 0.5:
                    continue
                point = rays.origins[a, row, column] + depth[a, row, column] * rays.directions[a, row, column]
                local = pose[b, :3, :3].T @ (point - pose[b, :3, 3])
                u, v, _ = lens[b] @ (local / local[2])
                if not (0 < u < 1 and 0 < v < 1):
                    continue
                x, y = u * 7 - 0.5, v * 7 - 0.5
                total = np.zeros(5)
                for i in (int(np.floor(y)), int(np.floor(y)) + 1):
                    for j in (int(np.floor(x)), int(np.floor(x)) + 1):
                        ci, cj = min(max(i, 0), 6), min(max(j, 0), 6)
                        total += (
                            (1 - abs(y - i))
                            * (1 - abs(x - j))
                            * np.array([*rgb[b, ci, cj], depth[b, ci, cj], opacity[b, ci, cj]])
                        )
                gap = np.linalg.norm(point - pose[b, :3, 3]) - total[3]
                if total[4] < 0.05 or total[4] > 0.95 and gap < -0.1:
                    counts['contradicted'] += 1
                elif total[4] > 0.95 and gap > 0.1:
                    counts['hidden'] += 1
                elif total[4] > 0.95:
                    counts['seen'] += 1
                    wrong.append(np.mean(np.abs(total[:3] - rgb[a, row, column])))
    assert min(counts.values()) > 0
    np.testing.assert_allclose(agreement.colour, np.mean(wrong), rtol=1e-4)
    np.testing.assert_allclose(agreement.seen, (counts['seen'] + counts['hidden']) / sum(counts.values()), rtol=1e-5)
    np.testing.assert_allclose(agreement.overlap, counts['seen'] / np.sum(opacity > 0.5), rtol=1e-5)


def truth(shape, colour='green'):
    record = toy.record(shapes.single(shape, colour), AZIMUTH, ELEVATION, SIZE)
    views = cameras.Cameras(jnp.asarray(record['world_from_cam']), jnp.asarray(record['intrinsics']))
    opacity = record['image'][..., 3] / np.float32(255.0)
    return oracle.composite(record['image'], 0.5), consistency.ray_depth(jnp.asarray(record['depth']), views), opacity, views


@pytest.mark.parametrize('shape', shapes.SHAPES)
def test_true_geometry_agrees_and_boards_do_not(shape):
    rgb, depth, opacity, views = truth(shape)
    agreement = consistency.agreement(rgb, depth, opacity, views)
    assert agreement.seen > 0.97 and agreement.colour < 0.012 and agreement.overlap > 0.2, agreement
    one = consistency.agreement(np.full_like(rgb, 0.3), depth, opacity, views)
    assert one.colour < 1e-6  # of one colour, and exact
    flat = jnp.where(
        opacity > 0.5,
        shapes.RADIUS / jnp.einsum('vhwc,vc->vhw', cameras.rays(views, SIZE, SIZE).directions, cameras.forward_axis(views)),
        0.0,
    )
    board = consistency.agreement(rgb, flat, opacity, views)  # in every view a board that faces it
    assert board.seen < agreement.seen - 0.15, (board, agreement)
    assert consistency.half_opaque(opacity) == 0.0
    assert consistency.relief(depth, opacity, views).bent > 0.05
    assert consistency.relief(flat, opacity, views).bent < 1e-3
