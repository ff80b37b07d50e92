"""Two-view geometry: closed forms in float64 and float32, masks against a brute force over depths, released masks by index."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.geom import cameras, epipolar


def rig(count: int, seed: int = 0) -> cameras.Cameras:
    """Cameras about the origin at free angles, distances and fields of view."""
    random = np.random.default_rng(seed)
    azimuth = random.uniform(0.0, 6.28, count)
    return cameras.orbit(
        azimuth, random.uniform(-0.5, 0.9, count), random.uniform(2.5, 4.0, count), random.uniform(0.5, 0.9, count)
    )


def test_a_point_and_its_two_images_satisfy_the_fundamental_matrix():
    a, b = rig(5), rig(5, seed=1)
    points = np.random.default_rng(2).uniform(-0.8, 0.8, (5, 40, 3)).astype(np.float32)
    (p, _), (q, _) = cameras.project(a, points), cameras.project(b, points)
    f = np.asarray(epipolar.fundamental(a, b), np.float64)
    f /= np.linalg.norm(f, axis=(-2, -1), keepdims=True)
    one = lambda uv: np.concatenate([np.asarray(uv), np.ones((*uv.shape[:-1], 1))], -1)
    lines = np.einsum('bij,bnj->bni', f, one(p))
    distance = np.abs(np.einsum('bni,bni->bn', one(q), lines)) / np.linalg.norm(lines[..., :2], axis=-1)
    assert 32 * distance.max() < 1e-3  # positions of a map of 32
    assert np.abs(np.linalg.det(f)).max() < 1e-6
    centre, _ = cameras.project(b, a.world_from_cam[:, None, :3, 3])  # the epipole: F^T e = 0
    assert (
        np.abs(np.einsum('bij,bi->bj', f, one(centre)[:, 0]) / np.linalg.norm(one(centre)[:, 0], axis=-1)[:, None]).max() < 1e-4
    )


def test_points_of_rays_return_to_their_own_view_and_lie_on_lines_in_others():
    views = rig(4, seed=3)
    made = epipolar.ray_points(views, 6, 9, 5, 1.5, 4.5)
    assert made.uv.shape == (4, 4, 6, 9, 5, 2) and made.points.shape == (4, 6, 9, 5, 3)
    flat = np.asarray(made.points).reshape(4, -1, 3)
    uv, depth = cameras.project(views, flat)
    centre = np.broadcast_to(epipolar.centres(6, 9)[:, :, None], (6, 9, 5, 2)).reshape(-1, 2)
    np.testing.assert_allclose(uv, np.broadcast_to(centre, uv.shape), atol=2e-5)
    np.testing.assert_allclose(depth.reshape(4, 6, 9, 5), made.depths, rtol=1e-5)
    np.testing.assert_allclose(made.depths[0, 0, 0], 1.5 + 3.0 * (np.arange(5) + 0.5) / 5, rtol=1e-6)
    for v in range(4):
        for s in range(4):
            target, ahead = cameras.project(jax.tree.map(lambda leaf, s=s: leaf[s], views), flat[v])
            inside = np.asarray((ahead > 0) & (target >= 0).all(-1) & (target <= 1).all(-1)) | (v == s)
            np.testing.assert_array_equal(np.asarray(made.valid[v, s]).reshape(-1), inside)
            got = np.asarray(made.uv[v, s]).reshape(-1, 2)
            np.testing.assert_allclose(got[inside], target[inside] if v != s else centre, atol=2e-5)


def test_plucker_coordinates_meet_where_rays_meet():
    views = rig(2, seed=4)
    point = jnp.array([0.2, -0.1, 0.3])
    uv, _ = cameras.project(views, jnp.broadcast_to(point, (2, 1, 3)))
    rays = jax.vmap(cameras.rays_at)(views, uv)
    first, second = np.asarray(cameras.plucker(rays), np.float64).reshape(2, 6)
    assert abs(first[3:] @ second[:3] + second[3:] @ first[:3]) < 1e-5  # reciprocal product
    assert abs(first[:3] @ first[3:]) < 1e-6


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
