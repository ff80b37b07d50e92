"""Turntables: frames of a Field by one compiled program over chunks of rays, and H.264 or GIF files of them.

A frame shows colour, normal and depth side by side. Rays that cannot meet the object are not rendered: the visible cells of
the density grid are painted into each frame first, and only the pixels they touch are traced.
"""

import contextlib
import functools
import math
import operator
import pathlib
import signal
import subprocess
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import files
from t3d.core.errors import UsageError
from t3d.geom import cameras
from t3d.geom.rays import Rays

ELEVATION = math.radians(15.0)
COARSE = 64  # cells per side of the occupancy that is painted into the frames
FPS = 30
GIF_FPS = 100 / 3  # GIF times are whole hundredths of a second
DEEP = 3.0  # cells of cover that normals look at
VISIBLE = 0.01  # opacity below which a ray shows the background: two of 255 grey levels at most


class Frames(NamedTuple):
    """Rendered views on the host."""

    rgb: np.ndarray  # float32 [V, H, W, 3] in [0, 1] over the background
    opacity: np.ndarray  # float32 [V, H, W]
    depth: np.ndarray  # float32 [V, H, W] ray distance, 0 where nothing is


def orbit(asset, frames: int, elevation: float | None = None) -> cameras.Cameras:
    """The asset's turntable: `frames` cameras, front first, at the orbit its system was trained for."""
    if elevation is None:
        elevation = asset.camera.get('elevation', ELEVATION)
    return cameras.turntable(frames, elevation=elevation, radius=asset.camera['radius'], fov=asset.camera['fov'])


@functools.partial(jax.jit, static_argnums=0)
def _render(render, scene, rays):
    out = render(scene, rays)
    return jnp.concatenate([out.features[..., :3], out.opacity[..., None], out.depth[..., None]], -1).astype(jnp.float32)


def render_views(asset, views: cameras.Cameras, size: int | tuple[int, int], *, grid=None, chunk: int = 2**12) -> Frames:
    """Colour, opacity and depth of V views, `chunk` rays at a time under one compiled program.

    Args:
      size: pixels of a square's side, or (height, width).
      grid: float [R, R, R] density over the asset's box (`meshing.density_grid`): pixels that see none of it take the
        background without being traced. None traces every pixel.
    """
    count, shape = views.world_from_cam.shape[0], _shape(size)
    matrices, lenses = np.asarray(views.world_from_cam), np.asarray(views.intrinsics)
    touched = np.ones((count, *shape), bool) if grid is None else touched_pixels(grid, asset.bound, matrices, lenses, shape)
    todo, missed = np.flatnonzero(touched), np.flatnonzero(~touched)[:1]
    pixels = np.concatenate([missed, todo])  # one of the others is traced too, for the background's colour
    values = []
    for start in range(0, len(pixels), chunk):
        block = pixels[start : start + chunk]
        rays = pixel_rays(matrices, lenses, np.resize(block, chunk), shape)
        values.append(_render(asset.render, asset.scene, rays))  # dispatched ahead: the host builds the next rays meanwhile
    values = np.concatenate([np.asarray(value) for value in values])[: len(pixels)]
    flat = np.zeros((touched.size, 5), np.float32)
    if len(missed):
        flat[:, :3] = values[0, :3]
    flat[pixels] = values
    flat = flat.reshape(count, *shape, 5)
    rgb = flat[..., :3] if asset.picture is None else _pictures(asset, views, shape)
    return Frames(np.clip(rgb, 0.0, 1.0), flat[..., 3], np.where(flat[..., 3] > 1e-3, flat[..., 4], 0.0))


def _shape(size: int | tuple[int, int]) -> tuple[int, int]:
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


def pixel_rays(matrices, lenses, index, shape: tuple[int, int]) -> Rays:
    """Rays through pixel centres given by their flat index into [V, H, W]; numpy, so that nothing is compiled."""
    height, width = shape
    view, row, column = index // (height * width), index // width % height, index % width
    lens = lenses[view]
    y = ((row + 0.5) / height - lens[:, 1, 2]) / lens[:, 1, 1]
    x = ((column + 0.5) / width - lens[:, 0, 2] - lens[:, 0, 1] * y) / lens[:, 0, 0]
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
    height, width = _shape(size)
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


# ------------------------------------------------------------------------------------------------------------- pictures


def turntable(asset, views: cameras.Cameras, size: int, grid, *, log=print) -> np.ndarray:
    """uint8 [V, size, 3 size, 3]: colour, normal and depth side by side, a few views at a time, with progress."""
    count = views.world_from_cam.shape[0]
    group = max(1, 2**20 // size**2)
    gradient = inward_gradient(grid, asset.bound)
    limits = depth_limits(asset, grid)
    images, started, told = np.empty((count, size, 3 * size, 3), np.uint8), time.perf_counter(), 0.0
    for start in range(0, count, group):
        some = jax.tree.map(lambda leaf: leaf[start : start + group], views)  # noqa: B023
        frames = render_views(asset, some, size, grid=grid)
        normals = normal_maps(frames, some, gradient, asset.bound)
        images[start : start + group] = panels(frames, normals, limits)
        done, passed = min(start + group, count), time.perf_counter() - started
        if passed > told + 3.0 or done == count:
            log(f'video: {done}/{count} views of {size} x {size}  {passed:.0f} s  eta {passed / done * (count - done):.0f} s')
            told = passed
    return images


def inward_gradient(grid, bound: float) -> np.ndarray:
    """[R, R, R, 3]: gradient of a smoothed measure of how deep a cell lies in the object; it points inwards.

    The measure is the solid that covers the cell from the least covered of the six axis directions, DEEP cells at most; a cell
    is solid by the share of light that density stops on the way to it. The gradient of the opacity itself would flip behind
    the skin of an object that is hollow, or empties inwards: no picture of the outside tells a field to fill it.
    """
    from scipy import ndimage

    step = 2.0 * bound / grid.shape[0]
    hidden = -np.expm1(-_cover(np.maximum(grid, 0.0) * np.float32(2.0 * step)))
    return np.stack(np.gradient(ndimage.gaussian_filter(np.minimum(_cover(hidden), DEEP), 1.2)), -1)


def _cover(cells: np.ndarray) -> np.ndarray:
    """The smallest of the six sums over the cells from each side of the box to a cell, itself included."""
    least = np.full(cells.shape, np.inf, np.float32)
    for axis in range(3):
        sums = np.cumsum(cells, axis, dtype=np.float32)
        least = np.minimum(least, np.minimum(sums, sums.take([-1], axis) - sums + cells))
    return least


def normal_maps(frames: Frames, views: cameras.Cameras, gradient, bound: float) -> np.ndarray:
    """World normals [V, H, W, 3]: minus `inward_gradient` a cell in front of the rendered depth; 0 where nothing is.

    (The depth is a mean, which lies behind the skin.) Smoother than finite differences of the depth, and without a second pass
    through the field. By trilinear lookup.
    """
    from scipy import ndimage

    matrices, lenses, shape = np.asarray(views.world_from_cam), np.asarray(views.intrinsics), frames.rgb.shape[1:3]
    hit = np.flatnonzero(frames.opacity > 0.02)
    rays = pixel_rays(matrices, lenses, hit, shape)
    cell = 2.0 * bound / gradient.shape[0]
    points = rays.origins + rays.directions * (frames.depth.reshape(-1)[hit, None] - cell)
    where = ((points + bound) / cell - 0.5).T
    vectors = -np.stack([ndimage.map_coordinates(gradient[..., c], where, order=1, mode='nearest') for c in range(3)], -1)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    maps = np.zeros((*frames.opacity.shape, 3), np.float32)
    maps.reshape(-1, 3)[hit] = np.where(length > 1e-6, vectors / np.maximum(length, 1e-6), -rays.directions)
    return maps


def depth_limits(asset, grid) -> tuple[float, float]:
    """(near, far) between which depths are shaded: the camera's distance -+ that of the object's farthest dense cell."""
    index = np.argwhere(grid > 0.25 * grid.max())
    farthest = np.linalg.norm((index + 0.5) / grid.shape[0] * 2.0 - 1.0, axis=-1).max(initial=0.1) * asset.bound
    return asset.camera['radius'] - farthest, asset.camera['radius'] + farthest


def panels(frames: Frames, normals: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """uint8 [V, H, 3 W, 3]: colour, world normal as (n + 1) / 2, depth from white (near) to dark (far); white behind."""
    images = []
    for rgb, opacity, depth, normal in zip(*frames, normals):
        opacity = np.clip(opacity, 0.0, 1.0)[..., None]
        shade = 0.95 - 0.8 * np.clip((depth[..., None] - limits[0]) / (limits[1] - limits[0]), 0.0, 1.0)
        layers = [rgb, 1.0 + opacity * (0.5 * normal - 0.5), np.repeat(1.0 + opacity * (shade - 1.0), 3, -1)]
        images.append(np.round(np.concatenate(layers, 1) * 255.0).astype(np.uint8))
    return np.stack(images)


# ---------------------------------------------------------------------------------------------------------------- files


def write_mp4(images: np.ndarray, path, *, height: int | None = None, fps: int = FPS) -> pathlib.Path:
    """H.264, yuv420p, of uint8 sRGB images [V, H, W, 3], scaled by ffmpeg to `height` (made even) with their aspect ratio.

    The file states its colours: BT.709 primaries and matrix, the transfer curve of sRGB, limited range. ffmpeg's own choice is
    the matrix of BT.601 and to say nothing, which players read by the picture's height.
    """
    path = pathlib.Path(path)
    program = ffmpeg()
    _, rows, columns, _ = images.shape
    height = rows if height is None else height
    target = [2 * round(value / 2) for value in (columns * height / rows, height)]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f'{path.name}.part'
    command = [
        program,
        '-y',
        '-loglevel',
        'error',
        '-f',
        'rawvideo',
        '-pix_fmt',
        'rgb24',
        '-s',
        f'{columns}x{rows}',
        '-r',
        str(fps),
        '-i',
        '-',
        '-an',
        '-c:v',
        'libx264',
        '-pix_fmt',
        'yuv420p',
        '-crf',
        '18',
        '-preset',
        'fast',
        '-vf',
        f'scale={target[0]}:{target[1]}:flags=bicubic+accurate_rnd+full_chroma_int:in_range=pc:out_range=tv:'
        'out_color_matrix=bt709,format=yuv420p,'
        'setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=iec61966-2-1',
        '-movflags',
        '+faststart',
        '-f',
        'mp4',
        f'file:{part.absolute()}',  # else a colon names a protocol and a leading dash an option
    ]
    # Not imageio_ffmpeg.write_frames: it starts ffmpeg through os.fork, which a process with JAX's threads must not use.
    done = subprocess.run(command, input=np.ascontiguousarray(images).data, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        with contextlib.suppress(OSError):
            part.unlink()
        how = f'ended with status {done.returncode}' if done.returncode > 0 else signal.Signals(-done.returncode).name
        said = done.stderr.decode(errors='replace').strip().splitlines() or [how]
        raise UsageError(f'ffmpeg could not write {path}: {said[-1][-300:]}')
    part.replace(path)
    return path


def ffmpeg() -> str:
    """Path of a working ffmpeg (imageio-ffmpeg brings one), or an error that says how to get it."""
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            'no ffmpeg to write an mp4 with: `pip install imageio-ffmpeg`, or point IMAGEIO_FFMPEG_EXE at an ffmpeg program, '
            'or ask for a gif (--gif), which needs none.'
        ) from error


def write_gif(images: np.ndarray, path, *, fps: float = GIF_FPS) -> pathlib.Path:
    """An endless GIF of uint8 images [V, H, W, 3]; needs no ffmpeg. GIF times are hundredths of a second."""
    from PIL import Image

    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = [Image.fromarray(image).quantize(128, dither=Image.Dither.NONE) for image in images]
    times = {'duration': max(20, round(100 / fps) * 10), 'loop': 0}
    files.write_image(path, first, save_all=True, append_images=rest, optimize=False, **times)
    return path
