import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.geom import cameras


@pytest.fixture
def poses():
    key_azimuth, key_elevation, key_radius = jax.random.split(jax.random.key(0), 3)
    azimuth = jax.random.uniform(key_azimuth, (16,), minval=-3.0, maxval=3.0)
    elevation = jax.random.uniform(key_elevation, (16,), minval=-1.4, maxval=1.4)
    radius = jax.random.uniform(key_radius, (16,), minval=1.0, maxval=4.0)
    return azimuth, elevation, radius


def test_rays_match_the_reference(golden):
    data = golden('rays')
    rays = cameras.rays(cameras.Cameras(data['cam2world'], data['intrinsics']), 8, 8)
    np.testing.assert_allclose(rays.origins.reshape(4, 64, 3), data['origins'], atol=1e-6)
    np.testing.assert_allclose(rays.directions.reshape(4, 64, 3), data['dirs'], atol=1e-6)
    poses = cameras.eg3d_pose(data['yaw'], data['pitch'], radius=float(data['radius']), pivot=data['pivot'])
    np.testing.assert_allclose(poses, data['cam2world'], atol=1e-6)


def test_the_frontal_pose_is_the_documented_matrix():
    expected = np.array([[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 2.7], [0, 0, 0, 1]], np.float32)
    frontal = cameras.orbit(0.0, 0.0, 2.7, 0.5).world_from_cam
    np.testing.assert_allclose(frontal, expected, atol=1e-6)
    np.testing.assert_allclose(cameras.eg3d_pose(np.pi / 2, np.pi / 2, radius=2.7), expected, atol=1e-6)


def test_orbit_and_angles_are_inverse(poses):
    angles = cameras.angles(cameras.orbit(*poses, 0.7).world_from_cam)
    for got, expected in zip(angles, poses):
        np.testing.assert_allclose(got, expected, atol=2e-6)


def test_poses_are_rigid_and_right_handed(poses):
    rotation = cameras.orbit(*poses, 0.7).world_from_cam[:, :3, :3]
    np.testing.assert_allclose(rotation @ jnp.swapaxes(rotation, -1, -2), np.broadcast_to(np.eye(3), (16, 3, 3)), atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.det(rotation), 1.0, atol=1e-6)


@pytest.mark.parametrize('sign', [1.0, -1.0])
@pytest.mark.parametrize('dtype', [np.float32, np.float64, float])
@pytest.mark.parametrize('azimuth', [-2.5, 0.0, 0.4, 3.1])
def test_orbit_at_the_poles_is_the_limit(azimuth, dtype, sign):
    near = cameras.orbit(azimuth, sign * np.radians(89.99), 2.5, 0.8).world_from_cam
    pole = cameras.orbit(dtype(azimuth), dtype(sign * np.pi / 2), 2.5, 0.8).world_from_cam
    np.testing.assert_allclose(pole, near, atol=1e-3)
    assert pole.dtype == near.dtype == np.float32
    np.testing.assert_allclose(np.linalg.det(pole[:3, :3]), 1.0, atol=1e-6)


@pytest.mark.parametrize('up', [(0, 7, 0), (0, 0, 1), (0, -1, 0), (0.6, 0, 0.8)])
def test_look_at_along_up_is_rigid_and_the_same_inside_jit(up):
    position = jnp.float32(np.array([*np.outer([2.0, -3.0], up), [0, 0, 0], np.add(up, [3e-5, 0, 2e-5])]))
    pose = cameras.look_at(position, jnp.zeros_like(position), up)
    rotation = np.asarray(pose)[:, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (4, 3, 3)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0, atol=1e-6)
    looks = -np.asarray(position)[:2] / np.linalg.norm(position[:2], axis=1, keepdims=True)
    np.testing.assert_allclose(rotation[:2, :, 2], looks, atol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda p: cameras.look_at(p, jnp.zeros_like(p), up))(position), pose, atol=1e-6)
    slope = jax.grad(lambda p: jnp.sum(jnp.sin(cameras.look_at(p, jnp.zeros_like(p), up))))(position)
    assert np.isfinite(slope).all()


def test_look_at_straight_down_is_what_orbit_sees_from_the_front():
    for sign in (1.0, -1.0):
        position = jnp.float32(np.array([0.0, 2.0 * sign, 0.0]))
        expected = cameras.orbit(0.0, sign * np.pi / 2, 2.0, 0.8).world_from_cam
        np.testing.assert_allclose(cameras.look_at(position, jnp.zeros(3)), expected, atol=1e-6)


def test_colmap_pytorch3d_and_units_by_hand(poses):
    pose = np.asarray(cameras.orbit(*poses, 0.7).world_from_cam, np.float64)
    rotation, position = pose[:, :3, :3], pose[:, :3, 3]
    extrinsics = np.concatenate([rotation.transpose(0, 2, 1), -np.einsum('bji,bj->bi', rotation, position)[..., None]], -1)
    np.testing.assert_allclose(cameras.from_colmap(extrinsics), pose, atol=1e-6)
    np.testing.assert_allclose(cameras.to_colmap(pose)[:, :3], extrinsics, atol=1e-6)
    left_up_forward = np.concatenate([-pose[..., :2], pose[..., 2:]], -1)
    np.testing.assert_allclose(cameras.from_pytorch3d(left_up_forward), pose, atol=1e-6)
    millimetres = np.concatenate([pose[..., :3], pose[..., 3:] * [[1000.0], [1000.0], [1000.0], [1.0]]], -1)
    np.testing.assert_allclose(cameras.scaled(millimetres, 0.001), pose, atol=1e-6)


def test_the_image_is_upright_and_not_mirrored():
    camera = cameras.orbit(0.0, 0.0, 3.0, 0.7)
    uv, depth = cameras.project(camera, jnp.array([[0.0, 0.5, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.5]]))
    assert uv[0, 1] < 0.5 and uv[1, 0] > 0.5  # up is up; seen from the front, +x is on the right
    np.testing.assert_allclose(depth, [3.0, 3.0, 2.5], atol=1e-6)
    side = cameras.orbit(np.pi / 2, 0.0, 3.0, 0.7)  # from +x the front (+z) is on the left
    assert cameras.project(side, jnp.array([[0.0, 0.0, 0.5]]))[0][0, 0] < 0.5


def test_projection_inverts_rays(poses):
    camera = cameras.orbit(*poses, 0.7)
    rays = cameras.rays(camera, 5, 7)
    points = (rays.origins + 2.3 * rays.directions).reshape(16, 35, 3)
    uv, depth = cameras.project(camera, points)
    grid_v, grid_u = np.meshgrid((np.arange(5) + 0.5) / 5, (np.arange(7) + 0.5) / 7, indexing='ij')
    np.testing.assert_allclose(uv, np.broadcast_to(np.stack([grid_u, grid_v], -1).reshape(35, 2), (16, 35, 2)), atol=1e-5)
    cosine = jnp.sum(rays.directions * cameras.forward_axis(camera)[:, None, None], -1).reshape(16, 35)
    np.testing.assert_allclose(depth, 2.3 * cosine, atol=1e-5)


@pytest.mark.parametrize(
    'there, back',
    [
        (cameras.to_opengl, cameras.from_opengl),
        (cameras.to_blender, cameras.from_blender),
        (cameras.to_zero123, cameras.from_zero123),
        (cameras.to_colmap, cameras.from_colmap),
        (cameras.to_pytorch3d, cameras.from_pytorch3d),
        (cameras.mirror, cameras.mirror),
    ],
)
def test_converters_round_trip(poses, there, back):
    matrices = cameras.orbit(*poses, 0.7).world_from_cam
    assert not np.allclose(there(matrices)[..., :3, :3], matrices[..., :3, :3], atol=0.1)
    np.testing.assert_allclose(back(there(matrices)), matrices, atol=3e-6)


def test_mvdream_round_trip_and_angles(poses):
    azimuth, elevation, _ = poses
    matrices = cameras.orbit(azimuth, elevation, 2.5, 0.7).world_from_cam
    values = cameras.to_mvdream(matrices)
    position = values.reshape(-1, 4, 4)[:, :3, 3]
    cos = jnp.cos(elevation)
    expected = jnp.stack([cos * jnp.sin(azimuth), -cos * jnp.cos(azimuth), jnp.sin(elevation)], -1)
    np.testing.assert_allclose(position, expected, atol=1e-6)
    np.testing.assert_allclose(cameras.from_mvdream(values, 2.5), matrices, atol=1e-6)


def test_spad_angles_name_the_same_position(poses):
    azimuth, elevation, _ = poses
    phi, polar = cameras.to_spad_angles(azimuth, elevation)
    z_up = jnp.stack([jnp.sin(polar) * jnp.cos(phi), jnp.sin(polar) * jnp.sin(phi), jnp.cos(polar)], -1)
    ours = cameras.to_blender(cameras.orbit(azimuth, elevation, 1.0, 0.7).world_from_cam)[:, :3, 3]
    np.testing.assert_allclose(ours, z_up, atol=1e-6)
    for got, expected in zip(cameras.from_spad_angles(phi, polar), (azimuth, elevation)):
        np.testing.assert_allclose(got, expected, atol=1e-6)


def quaternion(axis, angle) -> np.ndarray:
    """(w, x, y, z) of a rotation about a unit axis."""
    return np.array([np.cos(angle / 2), *(np.sin(angle / 2) * np.asarray(axis))])


def of_matrix(rotation: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a rotation matrix: its axis is the eigenvector of 1, its angle follows from the trace."""
    values, vectors = np.linalg.eig(rotation)
    axis = np.real(vectors[:, np.argmin(np.abs(values - 1.0))])
    angle = np.arccos(np.clip(0.5 * (np.trace(rotation) - 1.0), -1.0, 1.0))
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    return quaternion(axis if axis @ skew >= 0.0 else -axis, angle)


@pytest.mark.parametrize('azimuth', [0.4, 1.5, 2.9, -2.0])
@pytest.mark.parametrize('elevation', [-0.5, 0.2, 1.1])
def test_viser_pose_is_that_of_look_at(azimuth, elevation):
    pose = np.asarray(cameras.orbit(azimuth, elevation, 3.0, 0.7).world_from_cam, np.float64)
    quaternion = of_matrix(pose[:3, :3])
    for factor in (1.0, -1.0, 2.5):  # q and -q are one rotation; the length does not matter
        np.testing.assert_allclose(cameras.from_viser(factor * quaternion, pose[:3, 3]), pose, atol=1e-5)


def test_viser_quarter_turn_about_each_axis():
    for axis, image in (
        (0, [[1, 0, 0], [0, 0, 1], [0, -1, 0]]),
        (1, [[0, 0, -1], [0, 1, 0], [1, 0, 0]]),
        (2, [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]),
    ):
        matrix = cameras.from_viser(quaternion(np.eye(3)[axis], np.pi / 2), np.zeros(3))
        np.testing.assert_allclose(matrix[:3, :3].T, image, atol=1e-6)  # row k: where axis k goes


def test_eg3d_label_round_trip(poses):
    camera = cameras.orbit(*poses, 0.7)
    label = cameras.to_eg3d(camera)
    assert label.shape == (16, 25)
    again = cameras.from_eg3d(label)
    np.testing.assert_array_equal(again.world_from_cam, camera.world_from_cam)
    np.testing.assert_array_equal(again.intrinsics, camera.intrinsics)


def test_mirrored_pose_sees_the_mirrored_scene(poses):
    camera = cameras.orbit(*poses, 0.7)
    point = jnp.broadcast_to(jnp.array([[0.3, -0.2, 0.4]]), (16, 1, 3))
    mirrored = camera.replace(world_from_cam=cameras.mirror(camera.world_from_cam))
    uv, _ = cameras.project(camera, point)
    uv_mirrored, _ = cameras.project(mirrored, point * jnp.array([-1.0, 1.0, 1.0]))
    np.testing.assert_allclose(uv_mirrored[..., 0], 1.0 - uv[..., 0], atol=1e-5)
    np.testing.assert_allclose(uv_mirrored[..., 1], uv[..., 1], atol=1e-5)


def test_plucker_does_not_depend_on_the_point_of_the_ray():
    rays = cameras.rays(cameras.orbit(0.4, 0.2, 3.0, 0.7), 4, 4)
    shifted = rays.replace(origins=rays.origins + 1.7 * rays.directions)
    np.testing.assert_allclose(cameras.plucker(rays), cameras.plucker(shifted), atol=1e-5)


def test_transforms_json_carries_the_lens():
    camera = cameras.turntable(3, elevation=0.2, radius=3.0, fov=0.7)
    document = cameras.transforms_json(camera, 64, ['a.png', 'b.png', 'c.png'])
    assert document['convention'] == 'opengl' and len(document['frames']) == 3
    frame = document['frames'][1]
    assert frame['fl_x'] == pytest.approx(32 / np.tan(0.35), rel=1e-5) and frame['cx'] == 32
    np.testing.assert_allclose(cameras.from_opengl(np.array(frame['transform_matrix'])), camera.world_from_cam[1], atol=1e-6)
