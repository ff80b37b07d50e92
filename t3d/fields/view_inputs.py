"""From cameras to the arrays that a multi-view UNet reads: camera vectors, Plücker coordinates, masks, points along rays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core.errors import UsageError
from t3d.core.typing import Array, Float
from t3d.geom import cameras as camera_tools
from t3d.geom import epipolar
from t3d.geom.cameras import ZUP_FROM_YUP, Cameras
from t3d.nets.mv_unet import MultiViewUNet, ViewInputs, level_name

VECTORS = {'mvdream': 16, 'spad': 8, 'spad_relative': 4}  # numbers of each description of a camera
LEAST = 1e-2  # z-depth of the nearest point of a ray, scene units
MASKS = {'geometric': epipolar.masks, 'spad_legacy': epipolar.legacy_masks}


class ViewOptions(NamedTuple):
    """How cameras are described.

    Attributes:
      vector: 'mvdream', 'spad' (absolute with intrinsics) or 'spad_relative' (to the first view); '' for none.
      masks: 'geometric', or 'spad_legacy' for SPAD's released weights.
      line_width: positions about an epipolar line that a geometric mask holds.
      samples: points of a ray in epipolar blocks.
      reach: scene units before and behind the origin's distance from a camera, between which they lie.
    """

    vector: str = 'mvdream'
    masks: str = 'geometric'
    line_width: float = epipolar.LINE_WIDTH
    samples: int = 16
    reach: float = 1.0


def make(unet: MultiViewUNet, views: Cameras, height: int, width: int, options: ViewOptions, jitter=None) -> ViewInputs:
    """The inputs of a network for cameras [B, V] and latents [B, V, height, width, C].

    Args:
      jitter: a key, for points of rays at random places of their intervals, as in training; None: the middles.
    """
    sizes = level_sizes(unet, height, width)
    camera = vectors(views, options.vector) if options.vector and unet.camera else None
    plucker = plucker_zup(views, height, width) if unet.plucker else None
    masks = rays = None
    if unet.form == 'masked':
        of = MASKS[options.masks] if options.masks != 'geometric' else lambda *size: epipolar.masks(*size, options.line_width)
        masks = {level_name(*size): of(views, *size) for level, size in enumerate(sizes) if attends(unet, level)}
    if unet.form == 'epipolar':
        rays, distance = {}, jnp.linalg.norm(views.world_from_cam[..., :3, 3], axis=-1)
        ends = jnp.maximum(distance - options.reach, LEAST), distance + options.reach
        for level in unet.block_levels:
            shape = (*views.world_from_cam.shape[:-2], *sizes[level], options.samples)
            noise = None if jitter is None else jax.random.uniform(jax.random.fold_in(jitter, level), shape, jnp.float32)
            rays[level_name(*sizes[level])] = epipolar.ray_points(views, *sizes[level], options.samples, *ends, noise)
    return ViewInputs(camera, plucker, masks, rays)


def level_sizes(unet: MultiViewUNet, height: int, width: int) -> list[tuple[int, int]]:
    """(h, w) of the maps of each level."""
    extra = 1 if unet.downsample_padding else 0
    sizes = [(height, width)]
    for _ in unet.block_out_channels[1:]:
        sizes.append(tuple((side + extra) // 2 for side in sizes[-1]))
    return sizes


def attends(unet: MultiViewUNet, level: int) -> bool:
    """Whether a level has transformers; the middle block, which always has one, is of the last."""
    last = level == len(unet.block_out_channels) - 1
    return last or unet.down_block_types[level].startswith('CrossAttn')


def vectors(views: Cameras, kind: str) -> Float[Array, 'b v k']:
    """The numbers that describe each camera.

    'mvdream': Blender's pose with a translation of length 1, row-major (16). 'spad': polar angle, sine and cosine of the
    azimuth, distance, focal lengths and centre in an image that spans [-1, 1]^2 (8). 'spad_relative': the first four of the
    first view minus those of this one (4), as in SPAD's released code.
    """
    if kind not in VECTORS:
        raise UsageError(f'camera vector {kind!r}: wanted one of {", ".join(VECTORS)}.')
    if kind == 'mvdream':
        return camera_tools.to_mvdream(views.world_from_cam)
    azimuth, elevation, radius = camera_tools.angles(views.world_from_cam)
    azimuth, polar = camera_tools.to_spad_angles(azimuth, elevation)
    if kind == 'spad_relative':
        azimuth, polar, radius = (value[..., :1] - value for value in (azimuth, polar, radius))
    angles = jnp.stack([polar, jnp.sin(azimuth), jnp.cos(azimuth), radius], -1)
    if kind == 'spad_relative':
        return angles
    k = views.intrinsics
    lens = jnp.stack([2 * k[..., 0, 0], 2 * k[..., 1, 1], 2 * k[..., 0, 2] - 1, 2 * k[..., 1, 2] - 1], -1)
    return jnp.concatenate([angles, lens], -1)


def plucker_zup(views: Cameras, height: int, width: int) -> Float[Array, 'b v h w 6']:
    """(d, o x d) of the rays in a z-up world, as SPAD has them."""
    moment, direction = jnp.split(camera_tools.plucker(camera_tools.rays(views, height, width)), 2, axis=-1)
    turn = np.ascontiguousarray(ZUP_FROM_YUP[:3, :3].T)
    return jnp.concatenate([direction @ turn, moment @ turn], -1)
