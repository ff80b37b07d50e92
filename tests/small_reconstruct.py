"""Views of toy objects and a fit that is small enough for tests."""

import functools

import jax
import numpy as np

from t3d import systems
from t3d.core import config as configs
from t3d.core import prng
from t3d.core.outputs import Request, Views
from t3d.data.sets import shapes, toy
from t3d.fields import fitting
from t3d.geom import cameras

SMALL = (
    'fit.resolution=32',
    'fit.channels=8',
    'fit.hidden=16',
    'fit.levels=2',
    'fit.cells=32',
    'fit.samples=16',
    'fit.rays=256',
    'fit.stages=4',
    'steps=120',
    'render.samples_shown=32',
)
PAIR = shapes.pair(('cone', 'red'), 'on top of', ('cube', 'blue'))


def views(
    scene=PAIR, count: int = 8, size: int = 32, *, elevation: float = 0.4, turned: float = 0.0, alpha: bool = True
) -> Views:
    """True views of a scene, evenly about it: RGBA, or RGB over white."""
    azimuth = turned + np.arange(count) * (2.0 * np.pi / count)
    record = toy.record(scene, azimuth, np.full(count, elevation), size, 3)
    images = record['image'].astype(np.float32) / 255.0
    images = images if alpha else over_white(images)
    return Views(scene.captions[0], images, record['world_from_cam'], record['intrinsics'])


def over_white(images):
    return images[..., :3] * images[..., 3:] + 1.0 - images[..., 3:]


def posed(some: Views) -> cameras.Cameras:
    return cameras.Cameras(np.asarray(some.world_from_cam), np.asarray(some.intrinsics))


PAIRS = [word.split('=') for word in SMALL]


def config(*overrides):
    return configs.load('configs/reconstruct.py:tiny', [*SMALL, *overrides])


def system_of(*overrides):
    return systems.make(config(*overrides))


@functools.cache
def system(*overrides):
    return system_of(*overrides)


def options() -> fitting.Options:
    return fitting.Options(**config().fit, steps=config().steps)


def made(some: Views, seed: int = 0, *overrides):
    """The field of views."""
    return system(*overrides).generate({}, [Request(some.prompt, views=some)], prng.each(prng.key(seed), 1), {})[0]


@functools.cache
def _render():
    return jax.jit(lambda render, scene, rays: render(scene, rays), static_argnums=0)


def rendered(field, some: Views):
    """RenderOutput of the cameras of views, at their size."""
    return _render()(field.render, field.scene, cameras.rays(posed(some), *some.images.shape[1:3]))


def psnr(field, some: Views) -> float:
    """Mean over views of the PSNR against true views with alpha, over white."""
    error = np.square(np.asarray(rendered(field, some).features) - over_white(some.images)).mean((1, 2, 3))
    return float(np.mean(-10.0 * np.log10(error)))
