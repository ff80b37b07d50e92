"""The toy prior as a given model: `given.prior=toy`, or `toy:SIZE`. Its means are renders of the 64 single toy objects.

`toy_marked` has the same objects with a mark on their front, and says "front" too often: of its pictures under "side view" and
"back view" the share `BIAS` shows the front, so that score distillation gives an object several of them.

`toy_patterns` has the 32 large objects plain, striped, checked and dotted, from 48 sides: what a text-to-image model of
`data.name=toy_patterns` would be that had learned everything.

See t3d.diffusion.toy_prior for what it is. Opening it draws thousands of pictures, in seconds; nothing is read and nothing
learned.
"""

import functools

import numpy as np

from t3d.core.errors import UsageError
from t3d.core.system import Given
from t3d.data.sets import marked, patterns, shapes, toy
from t3d.diffusion import toy_prior
from t3d.inference import given

NAME, MARKED, PATTERNED = 'toy', 'toy_marked', 'toy_patterns'
SIZE, SIZES = 32, (8, 64)  # pixels per side where none are told, and the least and most
BIAS = 0.7  # share of the front among the pictures of other sides, of the marked objects
SUPERSAMPLE = 3
LOW, HIGH, ABOVE = 0.1, 0.6, 1.2  # elevations of poses, radians; the third is that of the overhead sector


def is_toy(value) -> bool:
    """Whether a value names this prior."""
    return str(value).partition(':')[0] in (NAME, MARKED, PATTERNED)


def open_toy(value: str) -> Given:
    """The prior that 'toy', 'toy_marked' or one of them with ':SIZE' names.

    Raises:
      UsageError: the size is no whole number that this prior is drawn at.
    """
    name, size = str(value).partition(':')[0], size_of(value, SIZE)
    return _open(name, size, BIAS if name == MARKED else 0.0)


def open_marked(size: int, bias: float) -> Given:
    """`toy_marked` with another share of fronts among the pictures of other sides, in [0, 1]."""
    return _open(MARKED, size, bias)


def _open(name: str, size: int, bias: float) -> Given:
    params = {'means': means(size, name)}
    prior = toy_prior.make([scene.captions for scene in things(name)], size, bias=bias)
    return Given(prior, params, None, f'{name}:{size}', given.digest(params))


def size_of(value: str, usual: int) -> int:
    """SIZE of 'NAME:SIZE', or the usual one of 'NAME'; UsageError where it is no whole number in SIZES."""
    name, colon, size = str(value).partition(':')
    least, most = SIZES
    if colon and not (size.isascii() and size.isdigit() and len(size) < 5 and least <= int(size) <= most):
        raise UsageError(f'{value!r}: wanted {name}, or {name}:SIZE with {least} to {most} px, for example {name}:{usual}.')
    return int(size or usual)


def things(name: str) -> list[shapes.Scene]:
    """The objects of a prior."""
    every = shapes.singles('all')
    if name != PATTERNED:
        return every
    large = [scene for scene in every if scene.attributes['size'] == 'large']
    return [patterns.patterned(scene, pattern) for scene in large for pattern in patterns.PATTERNS]


def poses(name: str = NAME) -> tuple[np.ndarray, np.ndarray]:
    """(azimuth, elevation) [4, K] radians of the poses of each sector, in the order of `view_prompts.SUFFIXES`.

    Those of marked objects stand closer together: a mark that may be anywhere in a sector is nowhere in the end. Patterned ones
    are seen from all around in place of overhead, and from the height of a multi-view model's cameras among others.
    """
    if name == PATTERNED:
        azimuth = np.deg2rad(np.arange(4)[:, None] * 90.0 + np.array([-22.5, 0.0, 22.5, 45.0]))
        return np.tile(azimuth, 3), np.repeat([[0.0, 0.3, 0.6]], 4, axis=1).repeat(4, axis=0)
    with_mark = name == MARKED
    front = np.deg2rad([-15.0, -5.0, 5.0, 15.0] if with_mark else [-33.75, -11.25, 11.25, 33.75])
    sides = np.deg2rad([-100.0, -80.0, 80.0, 100.0] if with_mark else [-112.5, -67.5, 67.5, 112.5])
    azimuth = np.stack([np.tile(around, 2) for around in (front, sides, front + np.pi)] + [np.arange(8) * (np.pi / 4)])
    elevation = np.repeat([LOW, HIGH], 4)
    return azimuth, np.stack([elevation, elevation, elevation, np.full(8, ABOVE)])


@functools.lru_cache(2)
def means(size: int, name: str = NAME) -> np.ndarray:
    """[P, 4, K, S, S, 3] float32 in [-1, 1]: the objects of a prior on white, from the poses of each sector.

    Rays are cast once for each form and size: no colour of toy is clipped by its light, so each is a factor.
    """
    azimuth, elevation = poses(name)
    cameras = toy.camera_arrays(azimuth.ravel(), elevation.ravel(), shapes.RADIUS, shapes.FOV)
    cast = {}
    pictures = []
    for scene in things(name):
        kind = tuple(scene.attributes.get(label) for label in ('shape', 'size', 'pattern'))
        if kind not in cast:
            cast[kind] = _cast(scene, cameras, size, name)
        light, marked_light, alpha = cast[kind]
        colour = shapes.palette(scene)[0]
        pictures.append(light * colour + marked_light * patterns.second_tone(colour) + 1.0 - alpha)
    return (2.0 * np.stack(pictures) - 1.0).astype(np.float32).reshape(len(pictures), *azimuth.shape, size, size, 3)


def _cast(scene: shapes.Scene, cameras, size: int, name: str) -> list[np.ndarray]:
    """(light on the plain surface, on its second tone, alpha), each [N, S, S, 1] of the N cameras."""
    hits = toy.trace(scene, *cameras, size, SUPERSAMPLE)
    hit, thing = (hits.which >= 0)[:, None], scene.objects[0]
    white = np.where(hit, shapes.shade(np.ones_like(hits.normal), hits.normal), 0.0)[:, :1]
    points = hits.points - np.asarray(thing.centre)
    if name == MARKED:
        mark = marked.mask(points)
    elif name == PATTERNED:
        mark = patterns.mask(scene.attributes['pattern'], thing.shape, thing.scale, points)
    else:
        mark = np.zeros(len(points), bool)
    parts = white * ~mark[:, None], white * mark[:, None], hit.astype(np.float64)
    return [part.reshape(*hits.fine, 1).mean((2, 4)) for part in parts]
