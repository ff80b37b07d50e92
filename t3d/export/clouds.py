"""Points and splats to PLY files and labelled sheets.

Both files are binary and little-endian, in the world as it is (y up, front +z, metres). Splats have the names and order of the
3D Gaussian Splatting reference (arXiv 2308.04079): position, normals of 0, f_dc, f_rest channel by channel, opacity as a logit,
scales as logarithms, rotations as quaternions (w, x, y, z) of unit length.
"""

import math
import pathlib

import numpy as np

from t3d.core import files
from t3d.core.errors import UsageError
from t3d.core.outputs import Points, Splats
from t3d.geom import cameras

SH_C0 = 0.28209479177387814  # the constant spherical harmonic
SIDES = (('front', 0.0), ('right', 90.0), ('back', 180.0), ('left', 270.0))
SIZE, ELEVATION, FOV = 256, 0.3, 0.7  # of the sheet's pictures: pixels, radians, radians
OPACITY = (1e-6, 1.0 - 1e-6)  # a logit is finite between these


def write_points(points: Points, path) -> pathlib.Path:
    """A PLY of positions and, where there are any, uint8 sRGB colours."""
    position = _finite(points.positions, 'positions')
    names = [(name, '<f4') for name in 'xyz']
    colour = None if points.colors is None else _bytes(points.colors)
    names += [] if colour is None else [(name, 'u1') for name in ('red', 'green', 'blue')]
    table = np.empty(len(position), names)
    for index, name in enumerate('xyz'):
        table[name] = position[:, index]
    for index, name in enumerate(('red', 'green', 'blue') if colour is not None else ()):
        table[name] = colour[:, index]
    return _write(table, path)


def write_splats(splats: Splats, path) -> pathlib.Path:
    """The PLY that viewers of Gaussian splats open; dead ones are left out."""
    alive = slice(None) if splats.alive is None else np.asarray(splats.alive, bool)
    means, scales, opacities = (_finite(getattr(splats, name), name)[alive] for name in ('means', 'scales', 'opacities'))
    rotations, sh = (_finite(getattr(splats, name), name)[alive] for name in ('rotations', 'sh'))
    if (scales <= 0.0).any() or (np.linalg.norm(rotations, axis=-1) == 0.0).any():
        raise UsageError('splats need scales above 0 and quaternions of a length above 0.')
    if sh.shape[1] not in (1, 4, 9, 16):
        raise UsageError(f'splats have {sh.shape[1]} harmonics: wanted 1, 4, 9 or 16.')
    opacities = np.clip(opacities.reshape(-1), *OPACITY)
    rest = sh[:, 1:].transpose(0, 2, 1).reshape(len(sh), 3 * (sh.shape[1] - 1))  # channel by channel
    columns = {
        **{name: means[:, index] for index, name in enumerate('xyz')},
        **{name: np.zeros(len(means)) for name in ('nx', 'ny', 'nz')},
        **{f'f_dc_{index}': sh[:, 0, index] for index in range(3)},
        **{f'f_rest_{index}': rest[:, index] for index in range(rest.shape[1])},
        'opacity': np.log(opacities / (1.0 - opacities)),
        **{f'scale_{index}': np.log(scales[:, index]) for index in range(3)},
        **{f'rot_{index}': (rotations / np.linalg.norm(rotations, axis=-1, keepdims=True))[:, index] for index in range(4)},
    }
    table = np.empty(len(means), [(name, '<f4') for name in columns])
    for name, values in columns.items():
        table[name] = values
    return _write(table, path)


def splat_colors(splats: Splats) -> np.ndarray:
    """[N, 3] in [0, 1]: the colour without a direction."""
    return np.clip(0.5 + SH_C0 * np.asarray(splats.sh)[:, 0], 0.0, 1.0)


def pictures(position: np.ndarray, colour: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """uint8 [4, S, S, 3]: discs over white, the nearest in front, from the four sides of `SIDES`.

    Args:
      position: [N, 3]; colour: [N, 3] in [0, 1]; radius: [N] scene units.
    """
    bound = max(float(np.abs(position).max(initial=0.0)), 1e-6)
    azimuths = np.radians([angle for _, angle in SIDES])
    views = cameras.orbit(azimuths, np.full(len(SIDES), ELEVATION), 1.8 * bound / math.tan(0.5 * FOV), FOV)
    images = np.full((len(SIDES), SIZE, SIZE, 3), 255, np.uint8)
    for image, pose, lens in zip(images, np.asarray(views.world_from_cam), np.asarray(views.intrinsics), strict=True):
        local = (position - pose[:3, 3]) @ pose[:3, :3]
        order = np.argsort(-local[:, 2])  # painter's order: far first
        uv = (local @ lens.T)[order]
        centre = uv[:, :2] / uv[:, 2:] * SIZE
        reach = np.maximum(radius[order] * lens[0, 0] * SIZE / local[order, 2], 0.7)
        shaded = np.round(255.0 * np.clip(colour[order], 0.0, 1.0)).astype(np.uint8)
        for (x, y), r, rgb in zip(centre, np.minimum(reach, 0.25 * SIZE), shaded, strict=True):
            left, right, top, bottom = (int(v) for v in (x - r, x + r + 1, y - r, y + r + 1))
            rows, columns = np.mgrid[max(top, 0) : min(bottom, SIZE), max(left, 0) : min(right, SIZE)]
            inside = (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= r * r
            image[rows[inside], columns[inside]] = rgb
    return images


def _finite(values, name: str) -> np.ndarray:
    values = np.asarray(values, np.float32)
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise UsageError(f'{bad} of {values.size} {name} are NaN or infinite: the object has diverged.')
    return values


def _bytes(colors) -> np.ndarray:
    return np.round(255.0 * np.clip(_finite(colors, 'colors'), 0.0, 1.0)).astype(np.uint8)


def _write(table: np.ndarray, path) -> pathlib.Path:
    if not len(table):
        raise UsageError('the object has no points: it has not been trained, or all of its points were pruned.')
    kinds = {'<f4': 'float', '|u1': 'uchar'}
    head = ['ply', 'format binary_little_endian 1.0', 'comment t3d: y up, front +z, metres', f'element vertex {len(table)}']
    head += [f'property {kinds[table.dtype[name].str]} {name}' for name in table.dtype.names]
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, '\n'.join([*head, 'end_header\n']).encode() + table.tobytes())
    return path
