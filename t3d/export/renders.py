"""Pictures of a Field on the host: by one compiled program over chunks of rays, of the pixels that can see the object alone.

Rays that cannot meet the object are not traced: the visible cells of the density grid are painted into each picture first, and
only the pixels they touch are rendered. `render_views` sends one ray through the centre of a pixel; `smooth_views` sends more
through those where the picture changes, so that edges are no stairs.
"""

import functools
import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.geom import cameras
from t3d.geom.rays import Rays

COARSE = 64  # cells per side of the occupancy that is painted into the frames
VISIBLE = 0.01  # opacity below which a ray shows the background: two of 255 grey levels at most
CHUNK = 2**12  # rays at a time
# Places of more rays within a pixel, from its centre, x and y: a square of 2 x 2 turned by atan(1/2), so that edges along rows,
# columns and diagonals meet its rays one after the other.
PLACES = ((-0.125, -0.375), (0.375, -0.125), (0.125, 0.375), (-0.375, 0.125))
CONTRAST = 6.0 / 255.0  # between neighbours, in a channel or the opacity, from which a pixel is looked at more closely


class Frames(NamedTuple):
    """Rendered views on the host."""

    rgb: np.ndarray  # float32 [V, H, W, 3] in [0, 1] over the background
    opacity: np.ndarray  # float32 [V, H, W]
    depth: np.ndarray  # float32 [V, H, W] ray distance, 0 where nothing is


def render_views(asset, views: cameras.Cameras, size: int | tuple[int, int], *, grid=None, chunk: int = CHUNK) -> Frames:
    """Colour, opacity and depth of V views, a ray through each pixel's centre, `chunk` rays at a time.

    Args:
      size: pixels of a square's side, or (height, width).
      grid: float [R, R, R] density over the asset's box (`meshing.density_grid`): pixels that see none of it take the
        background without being traced. None traces every pixel.
    """
    count, shape = views.world_from_cam.shape[0], shape_of(size)
    matrices, lenses = np.asarray(views.world_from_cam), np.asarray(views.intrinsics)
    touched = np.ones((count, *shape), bool) if grid is None else touched_pixels(grid, asset.bound, matrices, lenses, shape)
    todo, missed = np.flatnonzero(touched), np.flatnonzero(~touched)[:1]
    pixels = np.concatenate([missed, todo])  # one of the others is traced too, for the background's colour
    values = _traced(asset, matrices, lenses, pixels, shape, chunk)
    flat = np.zeros((touched.size, 5), np.float32)
    if len(missed):
        flat[:, :3] = values[0, :3]
    flat[pixels] = values
    flat = flat.reshape(count, *shape, 5)
    rgb = flat[..., :3] if asset.picture is None else _pictures(asset, views, shape)
    return Frames(np.clip(rgb, 0.0, 1.0), flat[..., 3], np.where(flat[..., 3] > 1e-3, flat[..., 4], 0.0))


def smooth_views(asset, views: cameras.Cameras, size: int | tuple[int, int], *, grid=None, chunk: int = CHUNK) -> Frames:
    """As `render_views`, with the mean of five rays in pixels that differ from a neighbour by more than CONTRAST.

    Depth stays that of the centre where something is there, so that no point lies between two parts; elsewhere it is the mean
    of what the rays hit, by their opacity. A system's own pictures stay as they are.
    """
    return smoothed(asset, views, render_views(asset, views, size, grid=grid, chunk=chunk), chunk=chunk)


def smoothed(asset, views: cameras.Cameras, frames: Frames, *, chunk: int = CHUNK) -> Frames:
    """`smooth_views` of what `render_views` gave of the same views."""
    if asset.picture is not None:
        return frames
    pixels = np.flatnonzero(changing(np.concatenate([frames.rgb, frames.opacity[..., None]], -1)))
    if not len(pixels):
        return frames
    matrices, lenses, shape = np.asarray(views.world_from_cam), np.asarray(views.intrinsics), frames.rgb.shape[1:3]
    centre = np.concatenate([frames.rgb, frames.opacity[..., None], frames.depth[..., None]], -1).reshape(-1, 5)[pixels]
    rays = np.stack([centre, *(_traced(asset, matrices, lenses, pixels, shape, chunk, place) for place in PLACES)])
    opacity = np.maximum(rays[..., 3], 1e-6)
    mean_depth = np.sum(rays[..., 4] * opacity, 0) / np.sum(opacity, 0)
    depth = np.where(centre[:, 3] > 0.5, centre[:, 4], mean_depth)
    frames = Frames(*(np.array(part) for part in frames))
    mean = np.mean(rays[..., 3], 0)
    frames.rgb.reshape(-1, 3)[pixels] = np.mean(np.clip(rays[..., :3], 0.0, 1.0), 0)
    frames.opacity.reshape(-1)[pixels] = mean
    frames.depth.reshape(-1)[pixels] = np.where(mean > 1e-3, depth, 0.0)
    return frames


def changing(images: np.ndarray) -> np.ndarray:
    """bool [V, H, W]: pixels of images [V, H, W, C] of whose eight neighbours one differs by more than CONTRAST."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
    height, width = images.shape[1:3]
    steps = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    far = [np.abs(padded[:, y : y + height, x : x + width] - images).max(-1) > CONTRAST for y, x in steps]
    return np.logical_or.reduce(far)


def _traced(asset, matrices, lenses, pixels, shape: tuple[int, int], chunk: int, place=(0.0, 0.0)) -> np.ndarray:
    """float32 [P, 5], colour, opacity and depth along a ray of each pixel, under one compiled program."""
    values = []
    for start in range(0, len(pixels), chunk):
        rays = pixel_rays(matrices, lenses, np.resize(pixels[start : start + chunk], chunk), shape, place)
        values.append(_render(asset.render, asset.scene, rays))  # dispatched ahead: the host builds the next rays meanwhile
    return np.concatenate([np.asarray(value) for value in values])[: len(pixels)]


@functools.partial(jax.jit, static_argnums=0)
def _render(render, scene, rays):
    out = render(scene, rays)
    return jnp.concatenate([out.features[..., :3], out.opacity[..., None], out.depth[..., None]], -1).astype(jnp.float32)


def shape_of(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _pictures(asset, views: cameras.Cameras, shape: tuple[int, int], batch: int = 8) -> np.ndarray:
    """The asset's own pictures [V, H, W, 3] of the views, resized, a few at a time."""
    count = views.world_from_cam.shape[0]
    order = np.resize(np.arange(count), -(-count // batch) * batch).reshape(-1, batch)
    batches = [_picture(asset.picture, shape, asset.scene, jax.tree.map(operator.itemgetter(some), views)) for some in order]
    return np.concatenate([np.asarray(images) for images in batches])[:count]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _picture(picture, shape, scene, views):
    images = picture(scene, views)
    return jax.image.resize(images, (images.shape[0], *shape, 3), 'bilinear')


def pixel_rays(matrices, lenses, index, shape: tuple[int, int], place=(0.0, 0.0)) -> Rays:
    """Rays through pixels given by their flat index into [V, H, W], at `place` (x, y) from their centres, in pixels.

    By numpy, so that nothing is compiled.
    """
    height, width = shape
    view, row, column = index // (height * width), index // width % height, index % width
    lens = lenses[view]
    y = ((row + 0.5 + place[1]) / height - lens[:, 1, 2]) / lens[:, 1, 1]
    x = ((column + 0.5 + place[0]) / width - lens[:, 0, 2] - lens[:, 0, 1] * y) / lens[:, 0, 0]
    local = np.stack([x, y, np.ones_like(x)], -1)
    directions = np.einsum('rij,rj->ri', matrices[view, :3, :3], local)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return Rays(np.float32(matrices[view, :3, 3]), np.float32(directions))


def touched_pixels(grid, bound: float, matrices, lenses, size: int | tuple[int, int]) -> np.ndarray:
    """bool [V, H, W]: pixels whose ray may gather an opacity of VISIBLE; rather too many than too few.

    The grid is pooled to at most COARSE^3 cells of the largest density in each; the optical thickness of a cell (density
    times diagonal) is spread over the square around its projection, and the sum compared.
    """
    from scipy import ndimage

    step = -(-grid.shape[0] // COARSE)
    padded = np.pad(grid, (0, -grid.shape[0] % step))
    side = padded.shape[0] // step
    pooled = padded.reshape(side, step, side, step, side, step).max(axis=(1, 3, 5))
    cell = 2.0 * bound / grid.shape[0] * step
    diagonal = cell * math.sqrt(3.0)
    index = np.argwhere(pooled * diagonal > 0.5 * VISIBLE / side)  # a whole row of less could not be seen
    thickness = pooled[tuple(index.T)] * diagonal
    centres = np.float32((index + 0.5) * cell - bound)
    height, width = shape_of(size)
    touched = np.zeros((len(matrices), height, width), bool)
    for frame, matrix, lens in zip(touched, matrices, lenses):
        local = (centres - matrix[:3, 3]) @ matrix[:3, :3]
        if len(local) == 0:
            continue
        nearest = local[:, 2].min() - diagonal
        if nearest <= 0.0:  # the camera stands in the object
            frame[:] = True
            continue
        uv = local @ lens.T
        focal = max(lens[0, 0] * width, lens[1, 1] * height)
        reach = 1 + math.ceil(0.5 * diagonal * focal / nearest)
        wide, tall = width + 2 * reach, height + 2 * reach
        pixel = np.floor(uv[:, :2] / uv[:, 2:] * [width, height]).astype(int) + reach
        inside = np.all((pixel >= 0) & (pixel < [wide, tall]), axis=-1)
        flat = pixel[inside, 1] * wide + pixel[inside, 0]
        total = np.bincount(flat, thickness[inside], tall * wide).reshape(tall, wide)
        spread = 2.0 * (cell * focal / nearest) ** 2  # one cell over the pixels it covers, twice to be safe
        total = ndimage.uniform_filter(np.float32(total * spread), 2 * reach + 1, mode='constant')
        frame[:] = total[reach:-reach, reach:-reach] > VISIBLE
    return touched
