"""Posed views to an object: a triplane field is fitted to the pictures of each request, by optimisation.

Nothing is learned beforehand and nothing is kept: `weights` is empty, and the key of a request chooses the random start and the
rays. The numbers of a fit are in t3d.fields.fitting, which t3d.metrics.multiview uses too.

Pictures with alpha are compared over random backgrounds, which makes the outline of the object exact. Pictures without it,
as generated views are, are cut out from the colour of their frame (t3d.geom.silhouettes) and rendered over that colour.

Differences from the paper (K-Planes, arXiv 2301.10241, whose total variation this is; no paper has the whole):
- The features of the planes are added and decoded by EG3D's point MLP, not multiplied; there is no view direction, so
  highlights become part of the colour.
- Scales are a pyramid that is summed into one set of planes before the lookup, in place of several lookups.
- Rays are limited by a grid of what is occupied instead of proposal networks, and the silhouettes are supervised.
"""

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core.errors import UsageError
from t3d.core.outputs import Field, only_views
from t3d.core.system import System, TrainState
from t3d.fields import fitting
from t3d.geom import cameras, occupancy, silhouettes, volume
from t3d.geom.rays import Rays


def make(config, given=None) -> System:
    """The system of a config (configs/reconstruct.py): sections fit and render."""
    options = fitting.Options(**config.fit, steps=config.steps)
    check_options(options)

    def init(key, batch, given=None) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), {}, {}, {}, {})

    def field_at(scene, points):
        """Field.field: (density [N], rgb [N, 3]), nothing where no cell is occupied."""
        points = points / scene['bound']
        raw, rgb = fitting.raw_field(scene)(points)
        density = fitting.density(raw, options) * occupancy.lookup(scene['occupied'], points)
        return density / scene['bound'], jnp.clip(rgb, 0.0, 1.0)

    def render(scene, rays: Rays) -> volume.RenderOutput:
        """Field.render: rays of any shape, over the background that the views had."""
        flat = Rays(rays.origins.reshape(-1, 3) / scene['bound'], rays.directions.reshape(-1, 3))
        out = volume.shown(
            fitting.render(scene, flat, config.render.samples_shown, options), scene['background'], rays.origins.shape
        )
        return out.replace(depth=out.depth * scene['bound'])

    def generate(weights, requests, keys, given=None) -> list[Field]:
        made = []
        for request, key in zip(requests, keys, strict=True):
            views = request.views
            posed = cameras.Cameras(jnp.asarray(views.world_from_cam), jnp.asarray(views.intrinsics))
            bound = config.render.bound or float(fitting.seen_bound(posed))
            pixels, background = pixels_of(views, posed, bound, config.render.tolerance)
            scenes = fitting.fit_each(jax.tree.map(lambda leaf: leaf[None], pixels), key[None], options)
            scene = {**jax.tree.map(lambda leaf: leaf[0], scenes), 'bound': jnp.float32(bound), 'background': background}
            made.append(Field(request.prompt, scene, field_at, render, bound, orbit_of(posed)))
        return made

    def check(requests) -> None:
        for views in only_views(requests, config.system):
            check_views(views, config.render.bound)

    return System(init, None, None, generate, check, (), (), {})


def pixels_of(views, posed: cameras.Cameras, bound: float, tolerance: float) -> tuple[fitting.Pixels, jax.Array]:
    """(pixels of one object's views, the background [3] behind them)."""
    images = np.asarray(views.images, np.float32)
    alpha, sure, background = silhouettes.alpha_of(images, tolerance)
    return fitting.pixels(images, posed, bound, background=background, mask=(alpha, sure)), jnp.asarray(background)


def orbit_of(posed: cameras.Cameras) -> dict[str, float]:
    """The orbit that is nearest to the cameras: their median distance, and the field of view of their height."""
    radius = np.median(np.linalg.norm(np.asarray(posed.world_from_cam)[:, :3, 3], axis=-1))
    return {'radius': float(radius), 'fov': float(np.median(2.0 * np.arctan(0.5 / np.asarray(posed.intrinsics)[:, 1, 1])))}


def check_options(options: fitting.Options) -> None:
    """Raises UsageError for numbers of a fit that do not go together."""
    if options.steps % options.stages:
        near = max(options.stages, round(options.steps / options.stages) * options.stages)
        raise UsageError(f'fit.stages={options.stages} does not divide steps={options.steps}. Nearest: steps={near}.')
    if options.resolution % 2 ** (options.levels - 1) or options.resolution >> (options.levels - 1) < 2:
        raise UsageError(
            f'fit.resolution={options.resolution} cannot be halved {options.levels - 1} times to 2 or more: wanted a power of '
            'two, for example fit.resolution=64, or fewer fit.levels.'
        )


def check_views(views, bound: float) -> None:
    """Raises UsageError for views that are no pictures of one object with their cameras."""
    images, poses, lenses = (np.asarray(part) for part in (views.images, views.world_from_cam, views.intrinsics))
    if images.ndim != 4 or images.shape[-1] not in (3, 4) or min(images.shape[:3], default=0) < 1 or min(images.shape[1:3]) < 4:
        raise UsageError(f'views of shape {images.shape}: wanted [V, H, W, 3 or 4], at least one view of 4 x 4 pixels.')
    count = len(images)
    if poses.shape != (count, 4, 4) or lenses.shape != (count, 3, 3):
        raise UsageError(
            f'{count} views with poses {poses.shape} and intrinsics {lenses.shape}: wanted one of each for every view, '
            f'({count}, 4, 4) and ({count}, 3, 3).'
        )
    if not all(np.isfinite(part).all() for part in (images, poses, lenses)):
        raise UsageError('the views or their cameras hold NaN or infinite numbers: write them again.')
    if images.min() < -0.01 or images.max() > 1.01:
        raise UsageError(
            f'pictures from {images.min():.3g} to {images.max():.3g}: wanted values in [0, 1]; divide bytes by 255.'
        )
    seen = float(fitting.seen_bound(cameras.Cameras(jnp.asarray(poses), jnp.asarray(lenses))))
    if not bound and seen <= 1e-3:
        raise UsageError(
            'the cameras do not show the origin of the world: wanted an object about the origin. Move the poses, or set '
            'render.bound to half the side of the cube that holds the object.'
        )
