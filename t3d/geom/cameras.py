"""Cameras: one convention, the poses that samplers and turntables need, and the converters from everybody else's.

Ours: the world is right-handed, **y up, front +z**, the object inside [-1, 1]^3. A camera is `world_from_cam`, 4x4, in OpenCV
axes (x right, y down, z forward), and `intrinsics`, 3x3, divided by the image size, so that the image spans [0, 1]^2 and
pixel (row i, column j) of an H x W image has its centre at ((j + 1/2) / W, (i + 1/2) / H). Angles are radians. Azimuth 0
looks at the front, from +z; azimuth grows towards +x; elevation grows upwards.

| source | world | camera axes | converter |
|---|---|---|---|
| EG3D, GANFusion label | y up, front +z | OpenCV | `from_eg3d`, `to_eg3d` |
| OpenGL, glTF, nerfstudio's axes | any | x right, y up, z back | `from_opengl`, `to_opengl` |
| COLMAP, OpenCV's extrinsics | any | OpenCV, camera-from-world | `from_colmap`, `to_colmap` |
| PyTorch3D's axes | any | x left, y up, z forward | `from_pytorch3d`, `to_pytorch3d` |
| millimetres and other units | any | any | `scaled` |
| Blender, MVDream | z up, front -y | OpenGL | `from_blender`, `to_blender`, `to_mvdream`, `from_mvdream` |
| SPAD, Zero-1-to-3 angles | z up | azimuth from +x, polar angle from +z | `from_spad_angles`, `to_spad_angles` |
| Zero-1-to-3 files | z up | 3x4 camera-from-world, Blender axes | `from_zero123`, `to_zero123` |
| viser's quaternions | any | OpenCV | `from_viser` |
"""

import math

import flax
import jax
import jax.numpy as jnp
import numpy as np

from t3d.core.numerics import normalize
from t3d.core.typing import Array, Float, typechecked
from t3d.geom.rays import Rays

OPENGL_AXES = np.diag([1.0, -1.0, -1.0, 1.0]).astype(np.float32)  # flips y and z of the camera frame; its own inverse
PYTORCH3D_AXES = np.diag([-1.0, -1.0, 1.0, 1.0]).astype(np.float32)  # turns the camera about its axis; its own inverse
ZUP_FROM_YUP = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], np.float32)  # (x, y, z) -> (x, -z, y)


@flax.struct.dataclass
class Cameras:
    """Pinhole cameras of any leading shape."""

    world_from_cam: jax.Array  # [..., 4, 4] OpenCV axes, scene units
    intrinsics: jax.Array  # [..., 3, 3] divided by the image size (x by the width, y by the height)


# ------------------------------------------------------------------------------------------------------------- building


def intrinsics_from_fov(fov) -> Float[Array, '*b 3 3']:
    """Normalised intrinsics of a square image with field of view `fov` (radians, edge to edge), centred, without skew."""
    focal = 0.5 / jnp.tan(0.5 * jnp.asarray(fov, jnp.float32))
    zero, half, one = jnp.zeros_like(focal), jnp.full_like(focal, 0.5), jnp.ones_like(focal)
    rows = [jnp.stack([focal, zero, half], -1), jnp.stack([zero, focal, half], -1), jnp.stack([zero, zero, one], -1)]
    return jnp.stack(rows, -2)


@typechecked
def look_at(position: Float[Array, '*b 3'], target: Float[Array, '*#b 3'], up=(0.0, 1.0, 0.0)) -> Float[Array, '*b 4 4']:
    """world_from_cam of a camera at `position` that looks at `target` with `up` upright in the image.

    Along `up` (within 1e-4 of it, relative) no side of the image is up. There the pose is the limit of one that rises from the
    front: with `up` +y the image's right is +x. A camera that stands at its target looks along -z.
    """
    away = target - position
    x_axis, _, z_axis = jnp.eye(3, dtype=away.dtype)
    forward = jnp.where(jnp.sum(away * away, -1, keepdims=True) > 1e-20, normalize(away), -z_axis)
    up = jnp.broadcast_to(normalize(jnp.asarray(up, away.dtype)), forward.shape)
    side, front = jnp.cross(forward, up), jnp.cross(up, z_axis)
    front = jnp.where(jnp.sum(front * front, -1, keepdims=True) > 1e-8, front, x_axis)  # up is the z axis
    side = jnp.where(jnp.sum(side * side, -1, keepdims=True) > 1e-8, side, front)
    right = normalize(side - forward * jnp.sum(side * forward, -1, keepdims=True))
    down = jnp.cross(forward, right)
    return _pose(right, down, forward, position)


def _pose(right, down, forward, position):
    top = jnp.concatenate([jnp.stack([right, down, forward], -1), position[..., None]], -1)
    bottom = jnp.broadcast_to(jnp.array([[0.0, 0.0, 0.0, 1.0]], top.dtype), (*top.shape[:-2], 1, 4))
    return jnp.concatenate([top, bottom], -2)


def orbit(azimuth, elevation, radius, fov) -> Cameras:
    """Cameras on a sphere about the origin, all arguments broadcast together; radians and scene units.

    The right of the image follows from the azimuth alone, so a camera at a pole is the limit of those near it, and one beyond
    a pole hangs upside down.
    """
    azimuth, elevation, radius, fov = jnp.broadcast_arrays(
        *(jnp.asarray(value, jnp.float32) for value in (azimuth, elevation, radius, fov))
    )
    cos_elevation = jnp.cos(elevation)
    direction = jnp.stack([cos_elevation * jnp.sin(azimuth), jnp.sin(elevation), cos_elevation * jnp.cos(azimuth)], -1)
    right = jnp.stack([jnp.cos(azimuth), jnp.zeros_like(azimuth), -jnp.sin(azimuth)], -1)
    pose = _pose(right, jnp.cross(-direction, right), -direction, radius[..., None] * direction)
    return Cameras(pose, intrinsics_from_fov(fov))


def angles(world_from_cam: Float[Array, '*b 4 4']) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(azimuth, elevation, radius) of camera positions about the origin; the inverse of `orbit`."""
    x, y, z = world_from_cam[..., 0, 3], world_from_cam[..., 1, 3], world_from_cam[..., 2, 3]
    radius = jnp.sqrt(x * x + y * y + z * z)
    return jnp.arctan2(x, z), jnp.arcsin(jnp.clip(y / radius, -1.0, 1.0)), radius


def turntable(frames: int, *, elevation: float, radius: float, fov: float) -> Cameras:
    """`frames` cameras once around, front first."""
    return orbit(jnp.arange(frames, dtype=jnp.float32) * (2.0 * math.pi / frames), elevation, radius, fov)


@typechecked
def rays(cameras: Cameras, height: int, width: int) -> Rays:
    """One ray through each pixel centre, `[..., H, W, 3]`, row-major; skew is honoured.

    Source: the ray recipe of EG3D (arXiv 2112.07945, supplement), on normalised intrinsics.
    """
    u = (jnp.arange(width, dtype=jnp.float32) + 0.5) / width
    v = (jnp.arange(height, dtype=jnp.float32) + 0.5) / height
    grid_v, grid_u = jnp.meshgrid(v, u, indexing='ij')
    return rays_at(cameras, jnp.stack([grid_u, grid_v], -1))


def rays_at(cameras: Cameras, uv: Float[Array, '... 2']) -> Rays:
    """Rays through image points `uv` in [0, 1]^2 (x right, y down): the camera's leading shape, then uv's.

    Where uv has leading axes of its own for each camera, use `jax.vmap(rays_at)`.
    """
    extra = uv.ndim - 1
    world_from_cam = _add_axes(cameras.world_from_cam, extra)
    k = _add_axes(cameras.intrinsics, extra)
    fx, skew, cx, fy, cy = k[..., 0, 0], k[..., 0, 1], k[..., 0, 2], k[..., 1, 1], k[..., 1, 2]
    y = (uv[..., 1] - cy) / fy
    x = (uv[..., 0] - cx - skew * y) / fx
    local = jnp.stack([x, y, jnp.ones_like(x)], -1)
    directions = normalize(jnp.einsum('...ij,...j->...i', world_from_cam[..., :3, :3], local))
    origins = jnp.broadcast_to(world_from_cam[..., :3, 3], directions.shape)
    return Rays(origins, directions)


def project(cameras: Cameras, points: Float[Array, '... 3']) -> tuple[jax.Array, jax.Array]:
    """(uv [..., N, 2] in image units, z-depth [..., N]) of world points [..., N, 3] in cameras of leading shape [...]."""
    rotation = cameras.world_from_cam[..., None, :3, :3]
    local = jnp.einsum('...ji,...j->...i', rotation, points - cameras.world_from_cam[..., None, :3, 3])
    pixel = jnp.einsum('...ij,...j->...i', cameras.intrinsics[..., None, :, :], local)
    return pixel[..., :2] / pixel[..., 2:], local[..., 2]


def forward_axis(cameras: Cameras) -> Float[Array, '*b 3']:
    """Unit viewing direction in the world; z-depth = ray distance * (direction . forward)."""
    return cameras.world_from_cam[..., :3, 2]


def plucker(rays: Rays) -> Float[Array, '*b 6']:
    """Plücker coordinates (moment o x d, direction d) of rays."""
    return jnp.concatenate([jnp.cross(rays.origins, rays.directions), rays.directions], -1)


def _add_axes(matrix, count: int):
    return matrix.reshape(*matrix.shape[:-2], *(1,) * count, *matrix.shape[-2:])


# ------------------------------------------------------------------------------------------------------------ converters


def from_opengl(world_from_cam_gl):
    """OpenCV camera axes from OpenGL's (y up, z back); the world stays as it is."""
    return world_from_cam_gl @ OPENGL_AXES


def to_opengl(world_from_cam):
    """The inverse of `from_opengl`; also the node matrix of a glTF camera."""
    return world_from_cam @ OPENGL_AXES


def from_colmap(cam_from_world) -> np.ndarray:
    """world_from_cam, float32 [..., 4, 4], from camera-from-world matrices [..., 4, 4] or [..., 3, 4] in OpenCV axes."""
    matrix = np.asarray(cam_from_world, np.float64)
    if matrix.shape[-2] == 3:
        bottom = np.broadcast_to([[0.0, 0.0, 0.0, 1.0]], (*matrix.shape[:-2], 1, 4))
        matrix = np.concatenate([matrix, bottom], -2)
    return np.linalg.inv(matrix).astype(np.float32)


def to_colmap(world_from_cam) -> np.ndarray:
    """The inverse of `from_colmap`: camera-from-world, float32 [..., 4, 4]."""
    return np.linalg.inv(np.asarray(world_from_cam, np.float64)).astype(np.float32)


def from_pytorch3d(world_from_cam_p3d):
    """OpenCV camera axes from PyTorch3D's (x left, y up); the world stays as it is."""
    return world_from_cam_p3d @ PYTORCH3D_AXES


def to_pytorch3d(world_from_cam):
    """The inverse of `from_pytorch3d`."""
    return world_from_cam @ PYTORCH3D_AXES


def scaled(world_from_cam, factor: float) -> np.ndarray:
    """The poses in other units: positions times `factor`, for example 0.001 from millimetres to metres."""
    matrix = np.array(world_from_cam)
    matrix[..., :3, 3] *= factor
    return matrix


def from_blender(world_from_cam_blender):
    """Ours from a z-up world (front -y) with OpenGL camera axes."""
    return ZUP_FROM_YUP.T @ world_from_cam_blender @ OPENGL_AXES


def to_blender(world_from_cam):
    """The inverse of `from_blender`."""
    return ZUP_FROM_YUP @ world_from_cam @ OPENGL_AXES


def to_mvdream(world_from_cam) -> jax.Array:
    """MVDream's camera input [..., 16]: Blender convention, translation scaled to length 1, row-major. No intrinsics."""
    matrix = jnp.asarray(to_blender(world_from_cam))
    return matrix.at[..., :3, 3].set(normalize(matrix[..., :3, 3])).reshape(*matrix.shape[:-2], 16)


def from_mvdream(values, radius: float = 1.0) -> jax.Array:
    """world_from_cam from MVDream's 16 numbers; the distance they lost is given as `radius`."""
    matrix = jnp.asarray(values).reshape(*np.shape(values)[:-1], 4, 4)
    return from_blender(matrix.at[..., :3, 3].multiply(radius))


def from_spad_angles(azimuth, polar):
    """Our (azimuth, elevation) from SPAD's and Zero-1-to-3's (azimuth from +x, polar angle from +z of a z-up world)."""
    return azimuth + 0.5 * math.pi, 0.5 * math.pi - polar


def to_spad_angles(azimuth, elevation):
    """The inverse of `from_spad_angles`."""
    return azimuth - 0.5 * math.pi, 0.5 * math.pi - elevation


def from_zero123(cam_from_world_blender):
    """Ours from Zero-1-to-3's files: 3x4 camera-from-world, z-up world, Blender camera axes."""
    return from_blender(from_colmap(cam_from_world_blender))


def to_zero123(world_from_cam):
    """The inverse of `from_zero123`: [..., 3, 4]."""
    return np.linalg.inv(np.asarray(to_blender(world_from_cam), np.float64))[..., :3, :].astype(np.float32)


def from_viser(wxyz, position) -> np.ndarray:
    """world_from_cam 4x4 of a quaternion (w, x, y, z), of any length, and a position; the world stays as it is."""
    w, x, y, z = np.asarray(wxyz) / np.linalg.norm(wxyz)
    matrix = np.eye(4, dtype=np.float32)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = position
    return matrix


def from_eg3d(label) -> Cameras:
    """Cameras from EG3D's 25 numbers: world_from_cam (16, row-major), then normalised intrinsics (9)."""
    label = jnp.asarray(label)
    shape = label.shape[:-1]
    return Cameras(label[..., :16].reshape(*shape, 4, 4), label[..., 16:].reshape(*shape, 3, 3))


def to_eg3d(cameras: Cameras) -> jax.Array:
    """EG3D's 25-number label; the inverse of `from_eg3d`."""
    shape = cameras.world_from_cam.shape[:-2]
    parts = [cameras.world_from_cam.reshape(*shape, 16), cameras.intrinsics.reshape(*shape, 9)]
    return jnp.concatenate(parts, -1)


def eg3d_pose(yaw, pitch, *, radius: float, pivot=(0.0, 0.0, 0.0)) -> jax.Array:
    """world_from_cam of EG3D's pose samplers: yaw = pitch = pi / 2 is frontal, `pitch` in (0, pi) is uniform on the sphere.

    The polar angle is arccos(1 - 2 pitch / pi), which equals `pitch` only at 0, pi / 2 and pi (EG3D's parametrisation). The
    position circles the origin, the view goes to `pivot`.
    """
    yaw, pitch = jnp.asarray(yaw, jnp.float32), jnp.asarray(pitch, jnp.float32)
    polar = jnp.arccos(1.0 - 2.0 * jnp.clip(pitch / math.pi, 1e-5, 1.0 - 1e-5))
    around = math.pi - yaw
    direction = jnp.stack([jnp.sin(polar) * jnp.cos(around), jnp.cos(polar), jnp.sin(polar) * jnp.sin(around)], -1)
    return look_at(radius * direction, jnp.broadcast_to(jnp.asarray(pivot, jnp.float32), direction.shape))


def mirror(world_from_cam):
    """The pose that goes with a horizontally mirrored image: M A M with M = diag(-1, 1, 1, 1)."""
    sign = np.outer([-1.0, 1.0, 1.0, 1.0], [-1.0, 1.0, 1.0, 1.0]).astype(np.float32)
    return world_from_cam * sign


def transforms_json(cameras: Cameras, size: int | tuple[int, int], names: list[str] | None = None) -> dict:
    """nerfstudio's transforms.json, plus `convention` and `up`: OpenGL camera axes, our y-up world.

    Args:
      size: side of the images in pixels, or (height, width); fl_x, fl_y, cx, cy are in pixels too, the first's centre at 0.5.
      names: path of each camera's image, relative to the file; None leaves `file_path` out.
    """
    k = np.asarray(cameras.intrinsics).reshape(-1, 3, 3)
    matrices = np.asarray(to_opengl(cameras.world_from_cam)).reshape(-1, 4, 4)
    height, width = (size, size) if isinstance(size, int) else size
    frames = []
    for name, matrix, intrinsic in zip([None] * len(k) if names is None else names, matrices, k, strict=True):
        lens = {
            'fl_x': intrinsic[0, 0] * width,
            'fl_y': intrinsic[1, 1] * height,
            'cx': intrinsic[0, 2] * width,
            'cy': intrinsic[1, 2] * height,
        }
        frames.append(
            {
                **({} if name is None else {'file_path': name}),
                'transform_matrix': matrix.tolist(),
                'w': width,
                'h': height,
                **{key: float(value) for key, value in lens.items()},
            }
        )
    return {'camera_model': 'PINHOLE', 'convention': 'opengl', 'up': '+y', 'front': '+z', 'frames': frames}
