"""UV unwrap (xatlas) and baking of a field's colour into a texture, and the small rasteriser both baking and previews use.

Colours of a field are display values (sRGB, as the training images are), so they go into the base colour texture unchanged.
"""

import functools
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from t3d.export.meshes import Mesh

# Where `surface_colors` looks, cells below the surface: densest about it, for models know no colours deeper than what is seen.
DEPTHS = np.array([-0.5, -0.25, -0.1, 0.0, 0.1, 0.25, 0.5, 0.9, 1.4, 2.0, 3.0, 4.5, 6.0], np.float32)
WIDTHS = np.gradient(DEPTHS)  # of the slices that the samples stand for


def unwrap(vertices, faces, normals, size: int, log=print) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """An atlas of charts: (vertex index [N'], faces [M, 3] over N', uv float32 [N', 2] with v upwards, number of charts).

    Vertices on chart borders are doubled: `vertices[index]` are the positions of the new ones. xatlas works in a process of
    its own while this one prints how long it has been at it.
    """
    estimate = 1.0 + (len(faces) / 12_000) ** 2  # measured on one slow core; charts get more and smaller as faces do
    log(f'texture: unwrapping {len(faces)} faces, about {estimate:.0f} s ...')
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder, 'mesh.npz'), pathlib.Path(folder, 'atlas.npz')
        np.savez(source, vertices=np.float32(vertices), faces=np.uint32(faces), normals=np.float32(normals), size=size)
        command = [sys.executable, str(pathlib.Path(__file__).with_name('unwrap.py')), str(source), str(target)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            while True:
                try:
                    _, error = process.communicate(timeout=5.0)
                    break
                except subprocess.TimeoutExpired:
                    log(f'texture: still unwrapping, {time.perf_counter() - started:.0f} s of about {estimate:.0f}')
                except BaseException:
                    process.kill()
                    raise
        if process.returncode:
            raise RuntimeError(f'xatlas failed ({process.returncode}): {error[-500:].strip()}. texture=0 needs no unwrapping.')
        arrays = np.load(target)
        index, unwrapped, uv, charts = (arrays[name] for name in ('index', 'faces', 'uv', 'charts'))
    log(f'texture: {charts} charts in {time.perf_counter() - started:.1f} s')
    uv = np.stack([uv[:, 0], 1.0 - uv[:, 1]], -1).astype(np.float32)
    return index.astype(np.int64), unwrapped.astype(np.int32), uv, int(charts)


def rasterize(xy: np.ndarray, faces: np.ndarray, size: tuple[int, int], depth=None, chunk: int = 2**22):
    """Which triangle covers each pixel centre.

    Args:
      xy: float [N, 2] in pixels, x right, y down; pixel (i, j) has its centre at (j + 1/2, i + 1/2).
      faces: int [M, 3].
      size: (height, width).
      depth: float [N] at the vertices, smaller is nearer; None where triangles do not overlap (a texture).
      chunk: candidate (triangle, pixel) pairs tested at a time.

    Returns:
      (pixel [K] flat index, face [K], barycentric weights [K, 3]) of the covered pixels, each pixel once.
    """
    height, width = size
    corners = xy[faces].astype(np.float64)  # [M, 3, 2]
    low = np.maximum(np.ceil(corners.min(1) - 0.5), 0).astype(np.int64)
    high = np.minimum(np.floor(corners.max(1) - 0.5), [width - 1, height - 1]).astype(np.int64)
    extent = np.maximum(high - low + 1, 0)
    counts = extent[:, 0] * extent[:, 1]
    fragments = []
    bounds = np.searchsorted(np.cumsum(counts), np.arange(0, counts.sum() + chunk, chunk), side='left')
    bounds = np.unique(np.concatenate([bounds, [0, len(faces)]]))
    for first, last in zip(bounds[:-1], bounds[1:]):
        face = np.repeat(np.arange(first, last), counts[first:last])
        within = np.arange(len(face)) - np.repeat(np.cumsum(counts[first:last]) - counts[first:last], counts[first:last])
        column = low[face, 0] + within % np.maximum(extent[face, 0], 1)
        row = low[face, 1] + within // np.maximum(extent[face, 0], 1)
        weights = _barycentric(corners[face], np.stack([column, row], -1) + 0.5)
        inside = np.all(weights >= -1e-9, axis=-1)
        fragments.append((row[inside] * width + column[inside], face[inside], weights[inside]))
    pixel, face, weights = (np.concatenate(part) for part in zip(*fragments))
    order = slice(None)
    if depth is not None:
        order = np.argsort(np.sum(depth[faces[face]] * weights, -1), kind='stable')
    _, first = np.unique(pixel[order], return_index=True)
    chosen = np.arange(len(pixel))[order][first]
    return pixel[chosen], face[chosen], weights[chosen]


def _barycentric(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    ab, ac, ap = b - a, c - a, points - a
    area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    area = np.where(np.abs(area) > 1e-12, area, np.inf)
    v = (ap[:, 0] * ac[:, 1] - ap[:, 1] * ac[:, 0]) / area
    w = (ab[:, 0] * ap[:, 1] - ab[:, 1] * ap[:, 0]) / area
    u = np.where(np.isinf(area), -1.0, 1.0 - v - w)
    return np.stack([u, v, w], -1)


def bake(asset, mesh: Mesh, size: int, *, step: float, light=None, chunk: int = 2**16, log=print) -> Mesh:
    """`mesh` with uv and a texture of the field's colour at the surface.

    Args:
      asset: the Field whose field is asked.
      mesh: without uv.
      size: texture side, texels.
      step: width of a grid cell, scene units; see `surface_colors`.
      light: see `surface_colors`.
    """
    index, faces, uv, charts = unwrap(mesh.vertices, mesh.faces, mesh.normals, size, log)
    vertices, normals = mesh.vertices[index], mesh.normals[index]
    pixel, face, weights = rasterize(np.stack([uv[:, 0], 1.0 - uv[:, 1]], -1) * size, faces, (size, size))
    points = np.einsum('kf,kfc->kc', weights, vertices[faces[face]])
    inward = -np.einsum('kf,kfc->kc', weights, normals[faces[face]])
    colors = surface_colors(asset, points, inward, step=step, light=light, chunk=chunk)
    texture = np.zeros((size * size, 3), np.uint8)
    covered = np.zeros(size * size, bool)
    texture[pixel], covered[pixel] = colors, True
    texture = dilate(texture.reshape(size, size, 3), covered.reshape(size, size))
    log(f'texture: {size} x {size}, {len(pixel) / size**2:.0%} covered by the charts')
    colors = mesh.colors[index] if mesh.colors is not None else None
    return Mesh(vertices, faces, normals, colors, uv, texture, charts, mesh.name)


def surface_colors(asset, points, inward, *, step: float, light=None, chunk: int = 2**16) -> np.ndarray:
    """sRGB bytes [K, 3] that a short ray along the inward normal would see at surface points.

    Samples from half a step outside to six steps inside (DEPTHS) are composited with the field's own density and divided by
    their opacity, so that the texture shows what the render shows, and not the untrained colour of the air in front. Where all
    stays transparent it is the colour at the surface.

    Args:
      light: `(outward unit normals [K, 3]) -> [K]`, the factor by which the display colours that the asset learned were lit;
        colours are divided by it. None leaves the light in.
    """
    parts = []
    for start in range(0, len(points), chunk):
        lit = np.ones(len(points[start : start + chunk]))
        if light is not None:
            normals = -inward[start : start + chunk]
            lit = light(normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12))
        here = (_fill(rows, chunk) for rows in (points[start : start + chunk], inward[start : start + chunk], lit[:, None]))
        parts.append((_surface_colors(asset.field, asset.scene, *here, jnp.float32(step)), min(chunk, len(points) - start)))
    if not parts:
        return np.zeros((0, 3), np.uint8)
    return np.concatenate([np.asarray(part)[:count] for part, count in parts])


def _fill(rows: np.ndarray, count: int) -> np.ndarray:
    """Rows padded with zeros to a fixed count: one compiled program for every chunk."""
    return np.pad(np.asarray(rows, np.float32), ((0, count - len(rows)), (0, 0)))


@functools.partial(jax.jit, static_argnums=0)
def _surface_colors(field, scene, points, inward, light, step):
    samples = points + DEPTHS[:, None, None] * step * inward  # [S, K, 3]
    density, rgb = field(scene, samples.reshape(-1, 3))
    density, rgb = density.reshape(len(DEPTHS), -1), rgb.reshape(len(DEPTHS), -1, 3)
    optical = density * WIDTHS[:, None] * step
    weights = jnp.exp(optical - jnp.cumsum(optical, 0)) * -jnp.expm1(-optical)
    opacity = jnp.sum(weights, 0)[:, None]
    surface = field(scene, points)[1]
    color = jnp.where(opacity > 1e-2, jnp.sum(weights[..., None] * rgb, 0) / jnp.maximum(opacity, 1e-2), surface)
    color = color / jnp.maximum(light, 1e-3)
    return jnp.round(jnp.clip(color, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def dilate(texture: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Gives every uncovered texel the colour of the nearest covered one: no seams, at any mipmap level."""
    from scipy import ndimage

    if covered.all() or not covered.any():
        return texture
    rows, columns = ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return texture[rows, columns]
