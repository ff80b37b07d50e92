"""Turntables: frames of an Asset by one compiled program over chunks of rays, and H.264 or GIF files of them.

A frame shows colour, normal and depth side by side. Rays that cannot meet the object are not rendered: the visible cells of
the density grid are painted into each frame first, and only the pixels they touch are traced.
"""

import functools
import math
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.geom import cameras, meshing
from t3d.geom.rays import Rays

ELEVATION = math.radians(15.0)
COARSE = 32  # cells per side of the occupancy that is painted into the frames


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


def render_views(asset, views: cameras.Cameras, size: int, *, grid=None, chunk: int = 2**14, log=print) -> Frames:
    """Colour, opacity and depth of V views of `size` x `size`, `chunk` rays at a time under one compiled program.

    Args:
      grid: float [R, R, R] density over the asset's box (`meshing.density_grid`): pixels that no visible cell touches take
        the background without being traced. None traces every pixel.
    """
    count = views.world_from_cam.shape[0]
    matrices, lenses = np.asarray(views.world_from_cam), np.asarray(views.intrinsics)
    touched = np.ones((count, size, size), bool) if grid is None else touched_pixels(grid, asset.bound, matrices, lenses, size)
    todo = np.flatnonzero(touched)
    missed = np.flatnonzero(~touched)[:1]  # one of the others is traced too, for the background's colour
    pixels = np.concatenate([missed, todo])
    log(f'video: {count} views of {size} x {size}, {len(todo) / touched.size:.0%} of the pixels traced')
    values, started, told = [], time.perf_counter(), time.perf_counter()
    for start in range(0, len(pixels), chunk):
        block = pixels[start : start + chunk]
        rays = _pixel_rays(matrices, lenses, np.resize(block, chunk), size)
        values.append(np.asarray(_render(asset.render, asset.scene, rays))[: len(block)])
        now = time.perf_counter()
        if now - told > 5.0:
            done = min(start + chunk, len(pixels))
            log(f'video: {done / len(pixels):4.0%}  {done / (now - started) / 1e6:.2f} Mray/s  '
                f'eta {(len(pixels) - done) * (now - started) / done:.0f} s')
            told = now
    values = np.concatenate(values)
    flat = np.zeros((touched.size, 5), np.float32)
    if len(missed):
        flat[:, :3] = values[0, :3]
    flat[pixels] = values
    flat = flat.reshape(count, size, size, 5)
    return Frames(np.clip(flat[..., :3], 0.0, 1.0), flat[..., 3], np.where(flat[..., 3] > 1e-3, flat[..., 4], 0.0))


def _pixel_rays(matrices, lenses, index, size: int) -> Rays:
    """Rays through pixel centres given by their flat index into [V, size, size]; numpy, so that nothing is compiled."""
    view, row, column = index // size**2, index // size % size, index % size
    lens = lenses[view]
    y = ((row + 0.5) / size - lens[:, 1, 2]) / lens[:, 1, 1]
    x = ((column + 0.5) / size - lens[:, 0, 2] - lens[:, 0, 1] * y) / lens[:, 0, 0]
    local = np.stack([x, y, np.ones_like(x)], -1)
    directions = np.einsum('rij,rj->ri', matrices[view, :3, :3], local)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return Rays(np.float32(matrices[view, :3, 3]), np.float32(directions))


def touched_pixels(grid, bound: float, matrices, lenses, size: int) -> np.ndarray:
    """bool [V, size, size]: pixels whose ray may meet a visible cell of the grid; never too few.

    The grid's visible cells are pooled to COARSE^3 balls; each is painted as the square around its projection.
    """
    from scipy import ndimage

    seen = meshing.visible_cells(grid, bound)
    step = -(-seen.shape[0] // COARSE)
    seen = np.pad(seen, (0, -seen.shape[0] % step))
    side = seen.shape[0] // step
    index = np.argwhere(seen.reshape(side, step, side, step, side, step).any(axis=(1, 3, 5)))
    cell = 2.0 * bound / grid.shape[0] * step
    centres = (index + 0.5) * cell - bound
    radius = cell * math.sqrt(3.0) / 2.0 + bound / grid.shape[0]
    touched = np.zeros((len(matrices), size, size), bool)
    for frame, matrix, lens in zip(touched, matrices, lenses):
        local = (centres - matrix[:3, 3]) @ matrix[:3, :3]
        if len(local) == 0:
            continue
        nearest = local[:, 2].min() - radius
        if nearest <= 0.0:  # the camera stands in the object
            frame[:] = True
            continue
        uv = local @ lens.T
        pixel = np.floor(uv[:, :2] / uv[:, 2:] * size).astype(int)
        reach = int(math.ceil(radius * max(lens[0, 0], lens[1, 1]) * size / nearest * 1.1)) + 1
        wide = np.zeros((size + 2 * reach, size + 2 * reach), bool)
        pixel = pixel + reach
        inside = np.all((pixel >= 0) & (pixel < len(wide)), axis=-1)
        wide[pixel[inside, 1], pixel[inside, 0]] = True
        wide = ndimage.maximum_filter(wide.view(np.uint8), size=2 * reach + 1)
        frame[:] = wide[reach:-reach, reach:-reach] > 0
    return touched


# ------------------------------------------------------------------------------------------------------------- pictures


def normal_maps(frames: Frames, views: cameras.Cameras, grid, bound: float) -> np.ndarray:
    """World normals [V, H, W, 3] in [-1, 1] at the rendered depth: minus the gradient of the smoothed opacity grid.

    The grid's gradient is smoother than finite differences of the depth, and needs no second pass through the field.
    """
    from scipy import ndimage

    resolution = grid.shape[0]
    step = 2.0 * bound / resolution
    solid = ndimage.gaussian_filter(1.0 - np.exp(-np.maximum(grid, 0.0) * 2.0 * step).astype(np.float32), 1.5)
    gradient = [ndimage.sobel(solid, axis) for axis in range(3)]
    matrices, lenses, size = np.asarray(views.world_from_cam), np.asarray(views.intrinsics), frames.rgb.shape[1]
    hit = np.flatnonzero(frames.opacity > 0.02)
    rays = _pixel_rays(matrices, lenses, hit, size)
    points = rays.origins + rays.directions * frames.depth.reshape(-1)[hit, None]
    where = ((points + bound) / step - 0.5).T
    vectors = -np.stack([ndimage.map_coordinates(part, where, order=1, mode='nearest') for part in gradient], -1)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    maps = np.zeros((*frames.opacity.shape, 3), np.float32)
    maps.reshape(-1, 3)[hit] = np.where(length > 1e-9, vectors / np.maximum(length, 1e-9), -rays.directions)
    return maps


def panels(frames: Frames, normals: np.ndarray) -> np.ndarray:
    """uint8 [V, H, 3 W, 3]: colour, world normal as (n + 1) / 2, depth from white (near) to dark (far); white behind."""
    opacity = np.clip(frames.opacity, 0.0, 1.0)[..., None]
    solid = frames.opacity > 0.5
    near, far = (np.percentile(frames.depth[solid], (0.5, 99.5)) if solid.any() else (0.0, 1.0))
    shade = 0.95 - 0.8 * np.clip((frames.depth - near) / max(far - near, 1e-6), 0.0, 1.0)
    normal = (0.5 + 0.5 * normals) * opacity + (1.0 - opacity)
    depth = np.repeat(shade[..., None], 3, -1) * opacity + (1.0 - opacity)
    return np.round(np.concatenate([frames.rgb, normal, depth], axis=2) * 255.0).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------- files


def write_mp4(images: np.ndarray, path, *, height: int | None = None, fps: int = 30) -> pathlib.Path:
    """H.264, yuv420p, of uint8 images [V, H, W, 3], scaled by ffmpeg to `height` (made even) with their aspect ratio."""
    path = pathlib.Path(path)
    imageio_ffmpeg = _ffmpeg()
    _, rows, columns, _ = images.shape
    height = rows if height is None else height
    target = [2 * round(value / 2) for value in (columns * height / rows, height)]
    options = ['-crf', '18', '-preset', 'fast', '-movflags', '+faststart']
    options += ['-vf', f'scale={target[0]}:{target[1]}:flags=bicubic']
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = imageio_ffmpeg.write_frames(
        str(path), (columns, rows), fps=fps, codec='libx264', pix_fmt_in='rgb24', pix_fmt_out='yuv420p', quality=None,
        macro_block_size=1, output_params=options, ffmpeg_log_level='error',
    )
    writer.send(None)
    for image in images:
        writer.send(np.ascontiguousarray(image))
    writer.close()
    return path


def _ffmpeg():
    """imageio-ffmpeg with a working ffmpeg, or an error that says how to get one."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(
            'no ffmpeg to write an mp4 with: `pip install imageio-ffmpeg`, or point IMAGEIO_FFMPEG_EXE at an ffmpeg program, '
            'or ask for a gif (--gif), which needs none.'
        ) from error
    return imageio_ffmpeg


def write_gif(images: np.ndarray, path, *, fps: int = 30) -> pathlib.Path:
    """An endless GIF of uint8 images [V, H, W, 3]; needs no ffmpeg. GIF times are hundredths of a second."""
    from PIL import Image

    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = [Image.fromarray(image).quantize(128, dither=Image.Dither.NONE) for image in images]
    first.save(path, save_all=True, append_images=rest, duration=max(20, round(100 / fps) * 10), loop=0, optimize=False)
    return path
