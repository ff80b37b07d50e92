"""Two-view geometry for networks that relate views: epipolar lines, masks along them, points of rays seen from all views.

Everything here makes arrays for a network that itself knows no camera (t3d.nets.mv_unet). Cameras are `Cameras [..., V]` in the
conventions of geom.cameras; a level of h x w positions has their centres at ((j + 1/2) / w, (i + 1/2) / h), so that one pair of
normalised intrinsics serves all levels.
Source: Hartley and Zisserman, Multiple View Geometry, ch. 9; SPAD (arXiv 2402.05235), Sec. 3.2; Guided multi-view diffusion,
Sec. 3.2.
"""

import flax
import jax
import jax.numpy as jnp
import numpy as np

from t3d.core.typing import Array, Bool, Float
from t3d.geom import cameras as camera_tools
from t3d.geom.cameras import Cameras

LINE_WIDTH = 1.5  # positions from the epipolar line that still belong to it
EPSILON = 1e-9
LEGACY = 32  # side of the masks that SPAD's released code makes and then subsamples


@flax.struct.dataclass
class RayPoints:
    """Points along the rays of every view, and where every view sees them.

    Attributes:
      uv: [..., V, S, h, w, M, 2] image coordinates in [0, 1]^2 of the points of view V in view S; 0.5 where not valid.
      valid: [..., V, S, h, w, M] True where the point lies before view S and in its picture; always True for S = V.
      points: [..., V, h, w, M, 3] in the world.
      depths: [..., V, h, w, M] z-depth in the own view.
      plucker: [..., V, h, w, 6] of the rays.
    """

    uv: jax.Array
    valid: jax.Array
    points: jax.Array
    depths: jax.Array
    plucker: jax.Array


def centres(height: int, width: int) -> np.ndarray:
    """[h, w, 2] centres (u, v) of a level's positions, float32."""
    v, u = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing='ij')
    return np.stack([u, v], -1).astype(np.float32)


def fundamental(a: Cameras, b: Cameras) -> Float[Array, '*b 3 3']:
    """F with (q, 1)^T F (p, 1) = 0 for the images p in `a` and q in `b` of one point, in normalised image coordinates.

    F = K_b^-T [t]_x R K_a^-1 with X_b = R X_a + t (Hartley and Zisserman, Eq. 9.2).
    """
    rotation_a, rotation_b = a.world_from_cam[..., :3, :3], b.world_from_cam[..., :3, :3]
    rotation = jnp.einsum('...ji,...jk->...ik', rotation_b, rotation_a)
    t = jnp.einsum('...ji,...j->...i', rotation_b, a.world_from_cam[..., :3, 3] - b.world_from_cam[..., :3, 3])
    zero = jnp.zeros_like(t[..., 0])
    cross = jnp.stack(
        [
            jnp.stack([zero, -t[..., 2], t[..., 1]], -1),
            jnp.stack([t[..., 2], zero, -t[..., 0]], -1),
            jnp.stack([-t[..., 1], t[..., 0], zero], -1),
        ],
        -2,
    )
    inverse_a, inverse_b = jnp.linalg.inv(a.intrinsics), jnp.linalg.inv(b.intrinsics)
    return jnp.einsum('...ji,...jk,...kl,...lm->...im', inverse_b, cross, rotation, inverse_a)


def pairs(views: Cameras) -> tuple[Cameras, Cameras]:
    """(own [..., V, 1], other [..., 1, V]) cameras of every ordered pair of views."""
    own = jax.tree.map(lambda leaf: leaf[..., :, None, :, :], views)
    other = jax.tree.map(lambda leaf: leaf[..., None, :, :, :], views)
    return own, other


def _seen_along(views: Cameras, height: int, width: int):
    """(start [..., V, V, 3], along [..., V, V, h, w, 3]): homogenous images in each view of the centre of another, and of the
    directions of its rays: the point at z-depth z of a ray is seen at start + z along."""
    own, other = pairs(views)
    uv = jnp.asarray(centres(height, width))
    pixel = jnp.concatenate([uv, jnp.ones((height, width, 1), jnp.float32)], -1)
    inverse = jnp.linalg.inv(own.intrinsics)
    turn = jnp.einsum('...ji,...jk->...ik', other.world_from_cam[..., :3, :3], own.world_from_cam[..., :3, :3])
    offset = own.world_from_cam[..., :3, 3] - other.world_from_cam[..., :3, 3]
    local = jnp.einsum('...ji,...j->...i', other.world_from_cam[..., :3, :3], offset)
    start = jnp.einsum('...ij,...j->...i', other.intrinsics, local)
    matrix = other.intrinsics @ turn @ inverse
    along = jnp.einsum('...ij,hwj->...hwi', matrix, pixel)
    return start, along


def line_distance(views: Cameras, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """How far the positions of one view lie from the epipolar lines of those of another.

    Returns:
      distance [..., V, V, h w, h w]: own view and position, other view and position -> positions (not image units).
      ahead, of the same shape: the nearest point of the line is the image of a point before both cameras.
    """
    start, along = _seen_along(views, height, width)
    scale = jnp.array([width, height, 1.0], jnp.float32)  # lines in units of positions
    start = (start * scale)[..., None, None, :]
    along = (along * scale).reshape(*along.shape[:-3], height * width, 1, 3)
    target = jnp.asarray(centres(height, width)).reshape(-1, 2) * scale[:2]
    line = jnp.cross(start, along)
    norm = jnp.linalg.norm(line[..., :2], axis=-1)
    same_centre = norm < 1e-6 * (jnp.linalg.norm(along, axis=-1) + EPSILON)
    to_line = jnp.abs(jnp.einsum('...k,nk->...n', line[..., 0, :2], target) + line[..., 2]) / jnp.maximum(norm, EPSILON)
    image = along[..., :2] / jnp.where(jnp.abs(along[..., 2:]) < EPSILON, EPSILON, along[..., 2:])
    to_point = jnp.linalg.norm(image - target, axis=-1)
    distance = jnp.where(same_centre, to_point, to_line)
    a, b = start[..., :2] - target * start[..., 2:], along[..., :2] - target * along[..., 2:]
    depth = -jnp.sum(a * b, -1) / jnp.maximum(jnp.sum(b * b, -1), EPSILON)  # where the ray passes the position
    ahead = (depth > 0.0) & (start[..., 2] + depth * along[..., 2] > 0.0)
    return distance, jnp.where(same_centre, along[..., 2] > 0.0, ahead)


def masks(views: Cameras, height: int, width: int, line_width: float = LINE_WIDTH) -> Bool[Array, '*b n m']:
    """[..., V h w, V h w]: which positions of all views each one may look at; its own view whole, of the others what lies
    within `line_width` positions of its epipolar line and before both cameras (SPAD, Sec. 3.2, at this level's own size)."""
    distance, ahead = line_distance(views, height, width)
    return _joined((distance <= line_width) & ahead)


def legacy_masks(views: Cameras, height: int, width: int) -> Bool[Array, '*b n m']:
    """The masks that SPAD's released weights were trained with: lines drawn at 32 x 32, made one position wider on each side,
    and taken to smaller levels by every k-th *index* of the flattened positions, which is not the geometry of those levels."""
    side = LEGACY
    start, along = _seen_along(views, side, side)
    scale = jnp.array([side, side, 1.0], jnp.float32)
    line = jnp.cross((start * scale)[..., None, None, :], along * scale)  # [..., V, V, h, w, 3]
    line = line.reshape(*line.shape[:-3], side * side, 3)
    a, b, c = (line[..., k, None] for k in range(3))
    middle = jnp.arange(side) + 0.5
    flat = jnp.abs(b) >= jnp.abs(a)
    rows = jnp.floor(-(a * middle + c) / jnp.where(flat, b, 1.0))  # of each column
    columns = jnp.floor(-(b * middle + c) / jnp.where(flat, 1.0, a))
    index = jnp.arange(side)
    drawn = jnp.where(
        flat[..., None], index[:, None] == rows[..., None, :], index[None, :] == columns[..., :, None]
    )  # [..., V, V, n, row, column]
    _, ahead = line_distance(views, side, side)
    drawn = drawn & ahead.reshape(drawn.shape)
    window = (1,) * (drawn.ndim - 2) + (3, 3)
    wide = jax.lax.reduce_window(drawn, False, jax.lax.bitwise_or, window, (1,) * drawn.ndim, 'SAME')
    whole = _joined(wide.reshape(*wide.shape[:-2], side * side))
    count, level = whole.shape[-1], whole.shape[-1] // side**2 * height * width
    chosen = np.floor(np.arange(level) * (count / level)).astype(int)
    return whole[..., chosen[:, None], chosen]


def _joined(allowed):
    """[..., V, V, N, N] -> [..., V N, V N] with the own views whole."""
    *lead, views, _, count, _ = allowed.shape
    allowed = allowed | jnp.eye(views, dtype=bool)[:, :, None, None]
    return jnp.moveaxis(allowed, -3, -2).reshape(*lead, views * count, views * count)


def ray_points(
    views: Cameras, height: int, width: int, samples: int, near, far, jitter: Float[Array, '*b'] | None = None
) -> RayPoints:
    """`samples` points along the ray of every position of every view, and where every view sees them.

    Args:
      near, far: z-depths between which the points are spread evenly, scene units; of all views, or [..., V] of each.
      jitter: [..., V, h, w, M] in [0, 1), a place within each of the M intervals; None: their middles.
    """
    own_rays = camera_tools.rays(views, height, width)  # [..., V, h, w, 3]
    cosine = jnp.einsum('...vhwc,...vc->...vhw', own_rays.directions, camera_tools.forward_axis(views))
    place = jnp.full((*cosine.shape, samples), 0.5, jnp.float32) if jitter is None else jitter
    near, far = (jnp.asarray(end, jnp.float32)[..., None, None, None] for end in (near, far))
    depths = near + (jnp.arange(samples, dtype=jnp.float32) + place) * ((far - near) / samples)
    along = depths / cosine[..., None]
    points = own_rays.origins[..., None, :] + along[..., None] * own_rays.directions[..., None, :]
    count = views.world_from_cam.shape[-3]
    flat = points.reshape(*points.shape[:-5], 1, -1, 3)
    uv, ahead = _project(views, jnp.broadcast_to(flat, (*flat.shape[:-3], count, *flat.shape[-2:])))
    shape = (*points.shape[:-5], count, count, height, width, samples)
    uv, ahead = jnp.moveaxis(uv.reshape(*shape, 2), -6, -5), jnp.moveaxis(ahead.reshape(shape), -5, -4)
    itself = jnp.eye(count, dtype=bool)[:, :, None, None, None]
    inside = ahead & jnp.all((uv >= 0.0) & (uv <= 1.0), -1)
    own = jnp.asarray(centres(height, width))[:, :, None]
    uv = jnp.where(itself[..., None], own, jnp.where(inside[..., None], uv, 0.5))
    return RayPoints(uv, inside | itself, points, depths, camera_tools.plucker(own_rays))


def _project(views: Cameras, points):
    """(uv, ahead) of points [..., N, 3] in views [...]; finite for points beside and behind them, with finite gradients."""
    offset = points - views.world_from_cam[..., None, :3, 3]
    local = jnp.einsum('...ji,...nj->...ni', views.world_from_cam[..., :3, :3], offset)
    ahead = local[..., 2] > EPSILON
    pixel = jnp.einsum('...ij,...nj->...ni', views.intrinsics, local)
    return pixel[..., :2] / jnp.where(ahead, pixel[..., 2], 1.0)[..., None], ahead
