"""Is it an object, or a picture on a board? 3-D sanity of rendered views, each number to be read beside that of true geometry.

Inputs are renders of one object from V known cameras: colour, opacity and depth, where depth is the distance along the unit ray
through the pixel's centre (as EG3D and geom.volume have it; `ray_depth` converts planar z).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from t3d.core.typing import Array, Float
from t3d.geom import cameras

SOLID = 0.5  # opacity from which a ray counts as hitting the object
HALF = (0.05, 0.95)  # opacities that are neither: fog, or an edge
TOLERANCE = 0.05  # scene units; a point further behind what the other view sees is hidden from it


class Relief(NamedTuple):
    """How far the visible surface is from flat, mean over views; scene units."""

    depth: jax.Array  # standard deviation of planar depth over the rays that hit
    bent: jax.Array  # root mean square distance of the visible points from their best plane: 0 for a board however it is turned


class Agreement(NamedTuple):
    """What two neighbouring views say of the same points."""

    colour: jax.Array  # mean absolute difference in [0, 1] over points that both see
    seen: jax.Array  # share of the points of one view inside the other's picture that are at the depth it sees, or hidden by it
    overlap: jax.Array  # share of the points of one view that both see: the weight of the two above


def ray_depth(planar: Float[Array, 'v h w'], views: cameras.Cameras) -> Float[Array, 'v h w']:
    """Distance along unit rays from planar z [V, H, W]."""
    directions = cameras.rays(views, *planar.shape[1:]).directions
    return planar / jnp.einsum('vhwc,vc->vhw', directions, cameras.forward_axis(views))


def half_opaque(opacity: Float[Array, '*b h w']) -> jax.Array:
    """Share of rays whose opacity is in (0.05, 0.95), among those above 0.05: fog; true surfaces have their outlines only."""
    some = opacity > HALF[0]
    return jnp.sum(some & (opacity < HALF[1])) / jnp.maximum(jnp.sum(some), 1)


def relief(depth: Float[Array, 'v h w'], opacity: Float[Array, 'v h w'], views: cameras.Cameras) -> Relief:
    """Flat-board detector: a generator that cheats paints boards that face the camera (both 0) or stand still (`bent` is 0).

    Views that hit nothing count as flat.
    """
    points = _points(depth, views)
    weight = (opacity > SOLID).astype(jnp.float32)
    total = jnp.maximum(jnp.sum(weight, (1, 2)), 1.0)
    forward, origin = cameras.forward_axis(views), views.world_from_cam[:, :3, 3]
    planar = jnp.einsum('vhwc,vc->vhw', points - origin[:, None, None], forward)
    middle = jnp.sum(weight * planar, (1, 2)) / total
    spread = jnp.sum(weight * (planar - middle[:, None, None]) ** 2, (1, 2)) / total
    centre = jnp.sum(weight[..., None] * points, (1, 2)) / total[:, None]
    offset = points - centre[:, None, None]
    covariance = jnp.einsum('vhw,vhwi,vhwj->vij', weight, offset, offset) / total[:, None, None]
    least = jnp.maximum(jnp.linalg.eigvalsh(covariance)[:, 0], 0.0)
    return Relief(jnp.mean(jnp.sqrt(spread)), jnp.mean(jnp.sqrt(least)))


def agreement(
    rgb: Float[Array, 'v h w 3'],
    depth: Float[Array, 'v h w'],
    opacity: Float[Array, 'v h w'],
    views: cameras.Cameras,
    tolerance: float = TOLERANCE,
) -> Agreement:
    """Colours of each view moved into the next one by depth (the last one's into the first), and compared there.

    A point of one view is looked up in the next by projection, between pixels bilinearly. It is seen if the depth there is its
    own within `tolerance`, hidden if something nearer is there, and contradicted if the other view sees through it: geometry
    that differs from view to view, or fog. Colours are compared where it is seen.
    """
    other = lambda x: jnp.roll(x, -1, axis=0)
    points = _points(depth, views)
    count = points.shape[0]
    theirs = jax.tree.map(other, views)
    uv, ahead = cameras.project(theirs, points.reshape(count, -1, 3))
    far = jnp.linalg.norm(points.reshape(count, -1, 3) - theirs.world_from_cam[:, None, :3, 3], axis=-1)
    other_view = jax.vmap(_bilinear)(jnp.concatenate([other(rgb), other(depth)[..., None], other(opacity)[..., None]], -1), uv)
    there, behind, solid = other_view[..., :3], other_view[..., 3], other_view[..., 4]
    inside = jnp.all((uv > 0.0) & (uv < 1.0), -1) & (ahead > 0.0) & (opacity.reshape(count, -1) > SOLID)
    clean = solid > HALF[1]  # no outline: between pixels of object and background depths have no meaning
    seen = inside & clean & (jnp.abs(far - behind) <= tolerance)
    contradicted = inside & ((clean & (far < behind - tolerance)) | (solid < HALF[0]))
    wrong = jnp.mean(jnp.abs(there - rgb.reshape(count, -1, 3)), -1)
    total = jnp.maximum(jnp.sum(seen), 1)
    hidden = inside & clean & (far > behind + tolerance)
    decided = jnp.maximum(jnp.sum(seen | hidden | contradicted), 1)
    return Agreement(
        jnp.sum(jnp.where(seen, wrong, 0.0)) / total,
        jnp.sum(seen | hidden) / decided,
        jnp.sum(seen) / jnp.maximum(jnp.sum(opacity > SOLID), 1),
    )


def _points(depth, views):
    """World points [V, H, W, 3]."""
    rays = cameras.rays(views, *depth.shape[1:])
    return rays.origins + depth[..., None] * rays.directions


def _bilinear(image: jax.Array, uv: jax.Array) -> jax.Array:
    """Values [N, C] of an image [H, W, C] at uv [N, 2] in [0, 1]^2; the border is repeated."""
    height, width = image.shape[:2]
    x, y = uv[:, 0] * width - 0.5, uv[:, 1] * height - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    total = 0.0
    for dy in (0, 1):
        for dx in (0, 1):
            weight = (1.0 - jnp.abs(x - left - dx)) * (1.0 - jnp.abs(y - top - dy))
            column = jnp.clip(left + dx, 0, width - 1).astype(jnp.int32)
            row = jnp.clip(top + dy, 0, height - 1).astype(jnp.int32)
            total = total + weight[:, None] * image[row, column]
    return total
