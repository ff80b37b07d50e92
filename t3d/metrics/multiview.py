"""Do the views of an object fit together? They are reconstructed with a fixed capacity, and rendered again.

- `consistency` (MVC): the error of the renders from the same cameras, which no view of one object that stands still would have.
  A field of free capacity explains any few pictures with boards that face the cameras, so the number measures the
  reconstruction too: it is read beside its floor, the same of renders of true geometry, and beside `shuffled` views, each of
  another object. `left_out` predicts each view from the others, for 6 views or more.
- `agreement`: two reconstructions from disjoint halves of the views, compared from cameras between them. It needs no truth.
  Of 4 views each half has two, which say little of a shape: read it beside the floor, or use 8.

Everything is batched over objects, which do not see each other: the number of one is the same in any company. Sources: the
definition is this project's, for the report that names the metric gives none; agreement: MVGBench, arXiv 2507.00006.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core.errors import UsageError
from t3d.core.typing import PyTree
from t3d.fields import fitting
from t3d.geom import cameras, silhouettes, volume
from t3d.geom.rays import Rays
from t3d.metrics import image as image_metrics

# What numbers in reports are made with; 32 objects of 4 views of 32 px take about a minute on two cores.
CAPACITY = fitting.Options(
    resolution=32,
    channels=8,
    hidden=16,
    levels=2,
    cells=32,
    samples=24,
    rays=512,
    steps=300,
    stages=4,
    learning_rate=0.03,
    decoder_rate=0.005,
    huber=0.0,
    mask=0.5,
    tv=0.01,
    entropy=0.002,
    density=25.0,
)
GREY = 0.5  # behind pictures with alpha, so that white and black objects both stand out
SAMPLES = 48  # on a ray of a render
LEAST_LEFT_OUT, LEAST_HALVES = 6, 4  # views


class Consistency(NamedTuple):
    """Errors of renders against views, over the pixels that either shows; of each object, the mean over its views."""

    rmse: np.ndarray  # [B] in [0, 1]
    dissimilarity: np.ndarray  # [B] 1 - SSIM


class Agreement(NamedTuple):
    """How alike renders of two reconstructions are; of each object."""

    psnr: np.ndarray  # [B] dB, over the pixels that either shows
    iou: np.ndarray  # [B] of the silhouettes, the mean over cameras


class Subject(NamedTuple):
    """Objects ready to be fitted: pictures over their background, masks and cameras."""

    rgb: np.ndarray  # [B, V, H, W, 3] over the background
    alpha: np.ndarray  # [B, V, H, W]
    background: np.ndarray  # [B, 3]
    bound: np.ndarray  # [B] half the side of the cube
    pixels: fitting.Pixels  # [B, N]


def prepare(images, views: cameras.Cameras, weight=None, tolerance: float = 0.04) -> Subject:
    """Objects' views as pixels.

    Args:
      images: [B, V, H, W, 4] straight alpha, or [B, V, H, W, 3] on a plain background; float in [0, 1].
      views: cameras [B, V].
      weight: [B, V] of each view in the fit, 0 leaves it out; None: all 1.
    """
    images = np.asarray(images, np.float32)
    weight = np.ones(images.shape[:2], np.float32) if weight is None else weight
    parts = []
    for k, one in enumerate(images):
        posed = jax.tree.map(lambda leaf: jnp.asarray(leaf)[k], views)  # noqa: B023
        alpha, sure, background = silhouettes.alpha_of(one, tolerance)
        background = np.full(3, GREY, np.float32) if one.shape[-1] == 4 else background
        bound = np.float32(fitting.seen_bound(posed))
        pixels = fitting.pixels(one, posed, bound, background=background, mask=(alpha, sure), weight=weight[k])
        parts.append(Subject(silhouettes.over(one, background), alpha, background, bound, pixels))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)


def consistency(images, views: cameras.Cameras, key, options: fitting.Options = CAPACITY) -> Consistency:
    """MVC of each object: reconstruct, render from the same cameras, compare. Arguments as of `prepare`."""
    subject = prepare(images, views)
    scenes = _fit(subject, key, options)
    return _errors(subject, *render(scenes, views, subject, images.shape[2:4], options))


def left_out(images, views: cameras.Cameras, key, options: fitting.Options = CAPACITY, folds: int = 3) -> Consistency:
    """The error of views that the reconstruction has not seen: `folds` of them, spread over all, one at a time.

    Raises:
      UsageError: fewer than 6 views, of which the others say too little.
    """
    count, total = images.shape[:2]
    if total < LEAST_LEFT_OUT:
        raise UsageError(f'{total} views of an object: leaving one out needs {LEAST_LEFT_OUT} or more; use `consistency`.')
    out = []
    for view in np.unique(np.linspace(0, total - 1, folds + 1).round().astype(int)[:folds]):
        subject = prepare(images, views, np.tile(np.arange(total) != view, (count, 1)).astype(np.float32))
        scenes = _fit(subject, key, options)
        one = slice(int(view), int(view) + 1)
        alone = subject._replace(rgb=subject.rgb[:, one], alpha=subject.alpha[:, one])
        at = jax.tree.map(lambda leaf: leaf[:, one], views)  # noqa: B023
        out.append(_errors(alone, *render(scenes, at, subject, images.shape[2:4], options)))
    return Consistency(*(np.mean(values, 0) for values in zip(*out)))


def shuffled(images, views: cameras.Cameras):
    """(images, views) in which view v of object b is that of object b + v, camera and all: no model is above it."""
    count, total = images.shape[:2]
    if count < 2:
        raise UsageError('1 object: shuffling its views needs another one. Give 2 or more.')
    rows, columns = np.indices((count, total))
    pick = lambda leaf: np.asarray(leaf)[(rows + columns) % count, columns]
    return pick(images), jax.tree.map(pick, views)


def agreement(images, views: cameras.Cameras, key, options: fitting.Options = CAPACITY, between=None) -> Agreement:
    """Two reconstructions of each object, from every other view about it and from the rest, seen from held-out cameras.

    Args:
      between: cameras [B, K]; None: as many as there are views, half way in azimuth to the next, on the views' own orbit.
    Raises:
      UsageError: fewer than 4 views.
    """
    count, total = images.shape[:2]
    if total < LEAST_HALVES:
        raise UsageError(f'{total} views of an object: two halves need {LEAST_HALVES} or more.')
    azimuth, elevation, radius = (np.asarray(part) for part in cameras.angles(jnp.asarray(views.world_from_cam)))
    rank = np.argsort(np.argsort(azimuth % (2.0 * np.pi), -1, kind='stable'), -1, kind='stable')
    if between is None:
        between = _between(azimuth, elevation, radius, np.asarray(views.intrinsics))
    made = []
    for half in (0, 1):
        subject = prepare(images, views, (rank % 2 == half).astype(np.float32))
        made.append(render(_fit(subject, key, options), between, subject, images.shape[2:4], options))
    (one, one_opacity), (other, other_opacity) = made
    union = (one_opacity > 0.5) | (other_opacity > 0.5)
    square = np.sum(np.square(one - other).mean(-1) * union, (1, 2, 3)) / np.maximum(union.sum((1, 2, 3)), 1)
    iou = np.array([silhouettes.iou(a, b) for a, b in zip(one_opacity, other_opacity)])
    return Agreement(-10.0 * np.log10(np.maximum(square, 1e-10)), iou)


def scores(images, views: cameras.Cameras, key, options: fitting.Options = CAPACITY, truth=None) -> dict[str, float]:
    """All of it as means over objects, for a table.

    Args:
      truth: (images, views) of true geometry, as many views of as many pixels: the floor.
    """
    found = {}

    def add(name, measured):
        found.update({f'{name}_{part}': float(np.mean(values)) for part, values in measured._asdict().items()})

    add('mvc', consistency(images, views, key, options))
    if truth is not None:
        add('floor/mvc', consistency(*truth, key, options))
    if len(images) > 1:
        add('control/mvc', consistency(*shuffled(images, views), key, options))
    if images.shape[1] >= LEAST_LEFT_OUT:
        add('mvc_left_out', left_out(images, views, key, options))
    if images.shape[1] >= LEAST_HALVES:
        add('agreement', agreement(images, views, key, options))
    return {**found, 'mvc_n': len(images)}


# ---------------------------------------------------------------------------------------------------------- render, compare


def render(scenes: PyTree, views: cameras.Cameras, subject: Subject, size, options: fitting.Options):
    """(rgb [B, V, H, W, 3] over the background of each object, opacity [B, V, H, W]) of scenes from cameras [B, V]."""
    bound, background = jnp.asarray(subject.bound), jnp.asarray(subject.background)
    return jax.tree.map(np.asarray, _render(scenes, views, bound, background, tuple(size), options))


@functools.partial(jax.jit, static_argnums=(4, 5))
def _render(scenes, views, bound, background, size, options):
    def one(inputs):
        scene, posed, bound, background = inputs
        rays = cameras.rays(posed, *size)
        flat = Rays(rays.origins.reshape(-1, 3) / bound, rays.directions.reshape(-1, 3))
        out = fitting.render(scene, flat, SAMPLES, options)
        shape = rays.origins.shape
        return volume.over(out, background).reshape(shape), out.opacity.reshape(shape[:-1])

    return jax.lax.map(one, (scenes, jax.tree.map(jnp.asarray, views), bound, background))


def _fit(subject: Subject, key, options: fitting.Options) -> PyTree:
    count = len(subject.rgb)
    return fitting.fit_each(jax.tree.map(jnp.asarray, subject.pixels), jnp.broadcast_to(key, (count,)), options)


def _errors(subject: Subject, rgb, opacity) -> Consistency:
    union = (subject.alpha > 0.5) | (opacity > 0.5)
    square = np.sum(np.square(rgb - subject.rgb).mean(-1) * union, (2, 3)) / np.maximum(union.sum((2, 3)), 1)
    margin = image_metrics.WINDOW // 2
    inner = union[:, :, margin:-margin, margin:-margin]
    alike = np.asarray(image_metrics.ssim_map(rgb, subject.rgb)).mean(-1)
    dissimilar = np.sum((1.0 - alike) * inner, (2, 3)) / np.maximum(inner.sum((2, 3)), 1)
    return Consistency(np.sqrt(square).mean(1), dissimilar.mean(1))


def _between(azimuth, elevation, radius, intrinsics) -> cameras.Cameras:
    """Cameras [B, V] half way in azimuth from each view to the next, at the views' mean elevation and radius."""
    around = np.sort(azimuth % (2.0 * np.pi), -1)
    step = np.diff(np.concatenate([around, around[:, :1] + 2.0 * np.pi], -1), axis=-1)
    mean = lambda values: np.broadcast_to(values.mean(-1, keepdims=True), values.shape)
    posed = cameras.orbit(around + 0.5 * step, mean(elevation), mean(radius), 0.7)
    return cameras.Cameras(posed.world_from_cam, jnp.asarray(intrinsics))
