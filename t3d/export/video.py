"""Turntables: views of a Field (export/renders.py) as colour, normal and depth side by side, and H.264 or GIF files of them."""

import contextlib
import math
import pathlib
import signal
import subprocess
import time

import jax
import numpy as np

from t3d.core import files
from t3d.core.errors import UsageError
from t3d.export.renders import Frames, pixel_rays, smooth_views
from t3d.geom import cameras

ELEVATION = math.radians(15.0)
FPS = 30
GIF_FPS = 100 / 3  # GIF times are whole hundredths of a second
DEEP = 3.0  # cells of cover that normals look at


def orbit(asset, frames: int, elevation: float | None = None) -> cameras.Cameras:
    """The asset's turntable: `frames` cameras, front first, at the orbit its system was trained for."""
    if elevation is None:
        elevation = asset.camera.get('elevation', ELEVATION)
    return cameras.turntable(frames, elevation=elevation, radius=asset.camera['radius'], fov=asset.camera['fov'])


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
        frames = smooth_views(asset, some, size, grid=grid)
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
