"""The toy prior as a given model: `given.prior=toy`, or `toy:SIZE`. Its means are renders of the 64 single toy objects.

`toy_marked` has the same objects with a mark on their front, and says "front" too often: of its pictures under "side view" and
"back view" the share `BIAS` shows the front, so that score distillation gives an object several of them.

See t3d.diffusion.toy_prior for what it is. Opening it draws 2,048 pictures, in seconds; nothing is read and nothing learned.
"""

import functools

import numpy as np

from t3d.core.errors import UsageError
from t3d.core.system import Given
from t3d.data.sets import marked, patterns, shapes, toy
from t3d.diffusion import toy_prior
from t3d.inference import given

NAME, MARKED = 'toy', 'toy_marked'
SIZE, SIZES = 32, (8, 64)  # pixels per side where none are told, and the least and most
BIAS = 0.7  # share of the front among the pictures of other sides, of the marked objects
SUPERSAMPLE = 3
LOW, HIGH, ABOVE = 0.1, 0.6, 1.2  # elevations of poses, radians; the third is that of the overhead sector


def is_toy(value) -> bool:
    """Whether a value names this prior."""
    return str(value).partition(':')[0] in (NAME, MARKED)


def open_toy(value: str) -> Given:
    """The prior that 'toy', 'toy_marked' or one of them with ':SIZE' names.

    Raises:
      UsageError: the size is no whole number that this prior is drawn at.
    """
    name, size = str(value).partition(':')[0], size_of(value, SIZE)
    params = {'means': means(size, name == MARKED)}
    captions = [scene.captions for scene in shapes.singles('all')]
    prior = toy_prior.make(captions, size, bias=BIAS if name == MARKED else 0.0)
    return Given(prior, params, None, f'{name}:{size}', given.digest(params))


def size_of(value: str, usual: int) -> int:
    """SIZE of 'NAME:SIZE', or the usual one of 'NAME'; UsageError where it is no whole number in SIZES."""
    name, colon, size = str(value).partition(':')
    least, most = SIZES
    if colon and not (size.isascii() and size.isdigit() and len(size) < 5 and least <= int(size) <= most):
        raise UsageError(f'{value!r}: wanted {name}, or {name}:SIZE with {least} to {most} px, for example {name}:{usual}.')
    return int(size or usual)


def poses(with_mark: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(azimuth, elevation) [4, K] radians of the poses of each sector, in the order of `view_prompts.SUFFIXES`.

    Those of marked objects stand closer together: a mark that may be anywhere in a sector is nowhere in the end.
    """
    front = np.deg2rad([-15.0, -5.0, 5.0, 15.0] if with_mark else [-33.75, -11.25, 11.25, 33.75])
    sides = np.deg2rad([-100.0, -80.0, 80.0, 100.0] if with_mark else [-112.5, -67.5, 67.5, 112.5])
    azimuth = np.stack([np.tile(around, 2) for around in (front, sides, front + np.pi)] + [np.arange(8) * (np.pi / 4)])
    elevation = np.repeat([LOW, HIGH], 4)
    return azimuth, np.stack([elevation, elevation, elevation, np.full(8, ABOVE)])


@functools.lru_cache(2)
def means(size: int, with_mark: bool = False) -> np.ndarray:
    """[64, 4, K, S, S, 3] float32 in [-1, 1]: the single objects of toy on white, from the poses of each sector.

    Rays are cast once for each shape and size: no colour of toy is clipped by its light, so each is a factor.

    Args:
      with_mark: of the objects of `marked`.
    """
    azimuth, elevation = poses(with_mark)
    cameras = toy.camera_arrays(azimuth.ravel(), elevation.ravel(), shapes.RADIUS, shapes.FOV)
    cast = {}
    pictures = []
    for scene in shapes.singles('all'):
        kind = (scene.attributes['shape'], scene.attributes['size'])
        if kind not in cast:
            cast[kind] = _cast(scene, cameras, size, with_mark)
        light, marked_light, alpha = cast[kind]
        colour = shapes.palette(scene)[0]
        pictures.append(light * colour + marked_light * patterns.second_tone(colour) + 1.0 - alpha)
    return (2.0 * np.stack(pictures) - 1.0).astype(np.float32).reshape(len(pictures), *azimuth.shape, size, size, 3)


def _cast(scene: shapes.Scene, cameras, size: int, with_mark: bool) -> list[np.ndarray]:
    """(light on the plain surface, on its mark, alpha), each [N, S, S, 1] of the N cameras."""
    hits = toy.trace(scene, *cameras, size, SUPERSAMPLE)
    hit, thing = (hits.which >= 0)[:, None], scene.objects[0]
    white = np.where(hit, shapes.shade(np.ones_like(hits.normal), hits.normal), 0.0)[:, :1]
    mark = marked.mask(hits.points - np.asarray(thing.centre))[:, None] & with_mark
    parts = white * ~mark, white * mark, hit.astype(np.float64)
    return [part.reshape(*hits.fine, 1).mean((2, 4)) for part in parts]
