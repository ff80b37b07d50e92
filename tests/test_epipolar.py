"""Two-view geometry: closed forms in float64 and float32, masks against a brute force over depths, released masks by index."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.core import grids
from t3d.fields import view_inputs
from t3d.geom import cameras, epipolar
from t3d.nets import epipolar_block


def rig(count: int, seed: int = 0) -> cameras.Cameras:
    """Cameras about the origin at free angles, distances and fields of view."""
    random = np.random.default_rng(seed)
    azimuth = random.uniform(0.0, 6.28, count)
    return cameras.orbit(
        azimuth, random.uniform(-0.5, 0.9, count), random.uniform(2.5, 4.0, count), random.uniform(0.5, 0.9, count)
    )


SIDE = 32  # positions of a map
TOLERANCES = {'float32': 1e-3 / SIDE, 'float64': 1e-10 / SIDE}  # of image coordinates: these of a position


@contextlib.contextmanager
def precision(name: str):
    """Arrays of 64 bits where they are asked for."""
    with jax.enable_x64(name == 'float64'):
        yield np.dtype(name)


def exact_rig(count: int, dtype, seed: int = 0, radius=(2.5, 4.0)) -> cameras.Cameras:
    """Cameras at free places, turned freely, with two focal lengths, a skew and a centre of their own; float64 in NumPy."""
    random = np.random.default_rng(seed)
    back = random.standard_normal((count, 3))
    back /= np.linalg.norm(back, axis=-1, keepdims=True)
    right = np.cross([0.1, 1.0, -0.2], back)
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    pose, lens = np.zeros((count, 4, 4)), np.zeros((count, 3, 3))
    pose[:, :3, 0], pose[:, :3, 1], pose[:, :3, 2], pose[:, 3, 3] = right, np.cross(-back, right), -back, 1.0
    pose[:, :3, 3] = random.uniform(*radius, (count, 1)) * back + random.uniform(-0.2, 0.2, (count, 3))
    lens[:, 0, 0], lens[:, 1, 1] = random.uniform(1.0, 1.6, (2, count))
    lens[:, 0, 1], lens[:, 2, 2] = random.uniform(-0.05, 0.05, count), 1.0
    lens[:, 0, 2], lens[:, 1, 2] = random.uniform(0.45, 0.55, (2, count))
    return cameras.Cameras(jnp.asarray(pose, dtype), jnp.asarray(lens, dtype))


def wide(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def seen(views: cameras.Cameras, v: int, points):
    """(uv, depth) of points [N, 3] in view v, written out in float64."""
    pose, lens = (np.asarray(leaf[v], np.float64) for leaf in (views.world_from_cam, views.intrinsics))
    local = (np.asarray(points, np.float64) - pose[:3, 3]) @ pose[:3, :3]
    pixel = local @ lens.T
    return pixel[:, :2] / pixel[:, 2:], local[:, 2]


def one(uv):
    return np.concatenate([uv, np.ones((*uv.shape[:-1], 1))], -1)


@pytest.mark.parametrize('name', TOLERANCES)
def test_a_point_and_its_two_images_satisfy_the_fundamental_matrix(name):
    with precision(name) as dtype:
        a, b = exact_rig(5, dtype), exact_rig(5, dtype, seed=1)
        made = epipolar.fundamental(a, b)
        assert made.dtype == dtype
        f = np.asarray(made, np.float64)
    f = f / np.linalg.norm(f, axis=(-2, -1), keepdims=True)
    points = np.random.default_rng(2).uniform(-0.8, 0.8, (40, 3))
    for k in range(5):
        (p, _), (q, _) = seen(a, k, points), seen(b, k, points)
        lines = one(p) @ f[k].T
        distance = np.abs(np.sum(one(q) * lines, -1)) / np.linalg.norm(lines[:, :2], axis=-1)
        assert distance.max() < TOLERANCES[name]
        for other, centre, turned in ((b, a, f[k]), (a, b, f[k].T)):  # both epipoles: e^T F = 0 and F e = 0
            epipole = one(seen(other, k, np.asarray(centre.world_from_cam)[k, None, :3, 3])[0])[0]
            assert np.abs(epipole @ turned).max() / np.linalg.norm(epipole) < TOLERANCES[name]
    assert np.abs(np.linalg.det(f)).max() < (1e-6 if name == 'float32' else 1e-15)


@pytest.mark.parametrize('name', TOLERANCES)
def test_points_of_rays_return_to_their_own_view_and_lie_on_lines_in_others(name):
    with precision(name) as dtype:
        views = exact_rig(4, dtype, seed=3)
        made = epipolar.ray_points(views, 4, 8, 5, 1.5, 4.5)
        assert {leaf.dtype for leaf in (made.uv, made.points, made.plucker)} == {dtype}
        made, valid = wide(made), np.asarray(made.valid)
        matrices = wide(epipolar.fundamental(*epipolar.pairs(views)))
    assert made.uv.shape == (4, 4, 4, 8, 5, 2) and made.points.shape == (4, 4, 8, 5, 3)
    centre = np.broadcast_to(epipolar.centres(4, 8)[:, :, None], (4, 8, 5, 2)).reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(made.depths[0, 0, 0], 1.5 + 3.0 * (np.arange(5) + 0.5) / 5, rtol=1e-6)
    compared = 0
    for v in range(4):
        flat = made.points[v].reshape(-1, 3)
        uv, depth = seen(views, v, flat)
        np.testing.assert_allclose(uv, centre, atol=TOLERANCES[name])
        np.testing.assert_allclose(depth, made.depths[v].reshape(-1), rtol=TOLERANCES[name])
        np.testing.assert_array_equal(made.uv[v, v].reshape(-1, 2), centre)
        for s in range(4):
            target, ahead = seen(views, s, flat)
            inside = (ahead > 0) & (target >= 0).all(-1) & (target <= 1).all(-1) | (v == s)
            np.testing.assert_array_equal(valid[v, s].reshape(-1), inside)
            got = made.uv[v, s].reshape(-1, 2)
            np.testing.assert_allclose(got[inside], target[inside] if v != s else centre, atol=TOLERANCES[name])
            np.testing.assert_array_equal(got[~inside], 0.5)
            if v != s:
                lines = one(centre) @ matrices[v, s].T
                distance = np.abs(np.sum(one(got) * lines, -1)) / np.linalg.norm(lines[:, :2], axis=-1)
                assert distance[inside].max(initial=0.0) < TOLERANCES[name]
                compared += inside.sum()
    assert 200 < compared < 12 * 4 * 8 * 5  # points within other pictures, and points that are not


@pytest.mark.parametrize('name', TOLERANCES)
def test_plucker_coordinates_meet_where_rays_meet(name):
    """Rays of two views through one point; the moment by NumPy, and from anywhere along the ray."""
    small = {'float32': 1e-5, 'float64': 1e-13}[name]
    with precision(name) as dtype:
        views = exact_rig(2, dtype, seed=4)
        point = np.array([0.2, -0.1, 0.3])
        uv = jnp.stack([jnp.asarray(seen(views, v, point[None])[0], dtype) for v in range(2)])
        rays = jax.vmap(cameras.rays_at)(views, uv)
        slid = rays.replace(origins=rays.origins + 1.7 * rays.directions)
        lines, moved = (np.asarray(cameras.plucker(one), np.float64).reshape(2, 6) for one in (rays, slid))
        turned = np.asarray(view_inputs.plucker_zup(views, 4, 4), np.float64)
    position = np.asarray(views.world_from_cam, np.float64)[:, :3, 3]
    direction = (point - position) / np.linalg.norm(point - position, axis=-1, keepdims=True)
    np.testing.assert_allclose(lines, np.concatenate([np.cross(position, direction), direction], -1), atol=small)
    np.testing.assert_allclose(moved, lines, atol=small)
    first, second = lines
    assert abs(first[:3] @ second[3:] + second[:3] @ first[3:]) < small  # reciprocal product
    assert np.abs(np.sum(lines[:, :3] * lines[:, 3:], -1)).max() < small
    assert np.abs(np.sum(turned[..., :3] * turned[..., 3:], -1)).max() < small
    np.testing.assert_allclose(np.linalg.norm(turned[..., :3], axis=-1), 1.0, atol=small)


@pytest.mark.parametrize('name', TOLERANCES)
def test_a_lookup_of_a_linear_field_is_the_field(name):
    small = {'float32': 1e-5, 'float64': 1e-13}[name]
    random = np.random.default_rng(5)
    slope, level = random.standard_normal((2, 3, 2, 6)), random.standard_normal((2, 3, 6))
    centre, uv = epipolar.centres(8, 16).astype(np.float64), random.uniform(1 / 16, 15 / 16, (2, 3, 50, 2))
    field = lambda uv: np.einsum('...k,bskc->bs...c', uv, slope) if uv.ndim == 3 else np.einsum('bsnk,bskc->bsnc', uv, slope)
    with precision(name) as dtype:
        maps = jnp.asarray(field(centre) + level[:, :, None, None], dtype)
        got = epipolar_block.lookup(maps, jnp.asarray(uv, dtype))
        plain = grids.bilinear(maps[1, 2], jnp.asarray(uv[1, 2], dtype) * np.array([16, 8], dtype) - np.array(0.5, dtype))
        outside = epipolar_block.lookup(maps, jnp.asarray([[[[-1.0, -1.0]] * 1] * 3] * 2, dtype))
        assert got.dtype == plain.dtype == dtype
        np.testing.assert_array_equal(outside[:, :, 0], maps[:, :, 0, 0])  # the border is repeated
    np.testing.assert_allclose(got, field(uv) + level[:, :, None], atol=small)
    np.testing.assert_allclose(plain, (field(uv) + level[:, :, None])[1, 2], atol=small)


@pytest.mark.parametrize('seed', [0, 1])
def test_masks_hold_what_lies_near_the_image_of_the_visible_half_line(seed):
    """Brute force: 1,500 points of every ray between 0.01 and 60 units, projected, nearest distance to every position."""
    views, height, width = rig(3, seed=seed + 10), 6, 8
    mask = np.asarray(epipolar.masks(views, height, width, 1.5))
    depth = np.geomspace(0.01, 60.0, 1500)
    k = np.asarray(views.intrinsics, np.float64)
    pose = np.asarray(views.world_from_cam, np.float64)
    centre = epipolar.centres(height, width).reshape(-1, 2).astype(np.float64)
    scale, count = np.array([width, height]), height * width
    compared = 0
    for a in range(3):
        pixel = np.concatenate([centre, np.ones((count, 1))], 1) @ np.linalg.inv(k[a]).T
        points = (depth[:, None, None] * pixel) @ pose[a, :3, :3].T + pose[a, :3, 3]
        for b in range(3):
            block = mask[a * count : (a + 1) * count, b * count : (b + 1) * count]
            if a == b:
                assert block.all()
                continue
            local = (points - pose[b, :3, 3]) @ pose[b, :3, :3] @ k[b].T
            seen = np.where(local[..., 2:] > 1e-3, local[..., :2] / np.maximum(local[..., 2:], 1e-3), np.inf)
            gaps = np.linalg.norm((seen[:, :, None] - centre) * scale, axis=-1)
            gap, nearest = gaps.min(0), gaps.argmin(0)
            sure = (np.abs(gap - 1.5) > 0.1) & (nearest > 0)  # ends of half-lines are round here and straight there
            compared += sure.sum()
            np.testing.assert_array_equal(block[sure], (gap <= 1.5)[sure])
    assert compared > 0.8 * 6 * count**2


def test_masks_are_as_dense_as_known_and_the_released_ones_read_every_fourth_index():
    views = cameras.turntable(4, elevation=0.0, radius=3.5, fov=0.7027699)
    blocks = {}
    for size, share in ((32, 0.089), (16, 0.178), (8, 0.352)):
        mask = np.asarray(epipolar.masks(views, size, size))
        blocks[size] = mask[: size**2, size**2 : 2 * size**2]  # neighbours 90 degrees apart
        assert abs(blocks[size].mean() / share - 1.0) < 0.15
    whole = np.asarray(epipolar.legacy_masks(views, 32, 32))
    half = np.asarray(epipolar.legacy_masks(views, 16, 16))
    np.testing.assert_array_equal(half, whole[::4, ::4])  # index 1 of 16 x 16 reads position (0, 4) of 32 x 32
    true = blocks[16]
    legacy = half[:256, 256:512]
    assert (true & legacy).sum() / (true | legacy).sum() < 0.5  # which is not the geometry of that level
    fine = blocks[32]
    drawn = whole[:1024, 1024:2048]
    assert (fine & drawn).sum() / (fine | drawn).sum() > 0.75


def test_everything_is_finite_with_cameras_in_one_place_and_points_behind():
    views = cameras.orbit(np.array([0.0, 0.0, np.pi]), 0.0, np.array([3.0, 3.0, 0.5]), 0.7)
    assert np.asarray(epipolar.masks(views, 4, 4)).any()

    def total(pose):
        moved = cameras.Cameras(pose, views.intrinsics)
        made = epipolar.ray_points(moved, 4, 4, 3, 0.1, 9.0)
        return jnp.sum(made.uv) + jnp.sum(made.points)

    assert np.isfinite(np.asarray(jax.grad(total)(views.world_from_cam))).all()
