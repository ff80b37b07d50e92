"""What holds Instant3D's renders to their prompts: the supervisions of `systems/instant3d.py`.

`photometric` compares pixels of posed views, `rays` rays whose truth is known, `imle`, `codes` and `places` the same for
captions of many objects; `sds` is score distillation from a prior, and `sds+clip` adds the likeness of renders and prompts that
CLIP sees (arXiv 2311.08403, Sec. 3.3 and 3.4).

Differences from the paper: those of `systems/instant3d.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import numerics, optim, replicas, tokens
from t3d.core.errors import UsageError
from t3d.core.prompts import SUFFIXES, with_sides
from t3d.diffusion import guide, likeness, perp_neg, timesteps
from t3d.diffusion.prior import MultiViewPrior
from t3d.fields.text_field import TextField
from t3d.geom import camera_draws, cameras, shading, volume
from t3d.systems import instant3d_supervision_rays, instant3d_supervision_seeds
from t3d.systems.instant3d_supervision_shared import Supervision, beside_truth, over, refuse_given

# ------------------------------------------------------------------------------------------------------------- photometric


def batch_spec(config) -> dict[str, jax.ShapeDtypeStruct]:
    """Posed RGBA views of captioned objects."""
    batch, views, size = config.batch, config.data.views, config.data.size
    spec = {
        'tokens': ((batch, config.text.length), jnp.int32),
        'image': ((batch, views, size, size, 4), jnp.uint8),
        'world_from_cam': ((batch, views, 4, 4), jnp.float32),
        'intrinsics': ((batch, views, 3, 3), jnp.float32),
    }
    if config.loss.depth > 0.0:
        spec['depth'] = ((batch, views, size, size), jnp.float32)
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in spec.items()}


def draw_pixels(key, alpha, count: int, foreground: float):
    """Random pixel indices [B, V, count] of masks uint8 [B, V, H, W].

    A share `foreground` comes from the object and the pixels next to it, the rest from the whole image; stratified inverse
    CDF, with replacement.
    """
    batch, views, height, width = alpha.shape
    solid = alpha.astype(jnp.float32) / 255.0
    near = jax.lax.reduce_window(solid, np.float32(0.0), jax.lax.max, (1, 1, 5, 5), (1, 1, 1, 1), 'SAME')
    near = near.reshape(batch, views, -1)
    share = near / jnp.maximum(jnp.sum(near, -1, keepdims=True), 1.0)
    cdf = jnp.cumsum(foreground * share + (1.0 - foreground) / (height * width), -1)
    u = (jnp.arange(count) + jax.random.uniform(key, (batch, views, count), jnp.float32)) / count * cdf[..., -1:]
    index = jax.vmap(jax.vmap(lambda row, at: jnp.searchsorted(row, at, side='right', method='compare_all')))(cdf, u)
    return jnp.minimum(index, height * width - 1)


def photometric(config, model: TextField, given) -> Supervision:
    """By posed views.

    Each view gives `loss.rays` random pixels, a share `loss.foreground` of them from the object's surroundings. Colour is
    compared over a random background per view, so that the mask is learned too; opacity and, where asked for, distance along
    the ray have terms of their own.
    """
    refuse_given(given, 'photometric')

    def loss(params, extras, given, batch, key, step):
        key_noise, key_pixels, key_background, key_jitter = jax.random.split(key, 4)
        batch_size, views, height, width, _ = batch['image'].shape
        pixels = draw_pixels(key_pixels, batch['image'][..., 3], config.loss.rays, config.loss.foreground)
        uv = (jnp.stack([pixels % width, pixels // width], -1).astype(jnp.float32) + 0.5) / jnp.array([width, height])
        views_of = cameras.Cameras(batch['world_from_cam'], batch['intrinsics'])
        rays = jax.vmap(jax.vmap(cameras.rays_at))(views_of, uv)  # [B, V, R, 3]
        rgba = jnp.take_along_axis(batch['image'].reshape(batch_size, views, -1, 4), pixels[..., None], axis=2)
        scene = model.scene(params, batch['tokens'], key_noise)
        flat = jax.tree.map(lambda leaf: leaf.reshape(batch_size, -1, 3), rays)
        out = model.render_rays(scene, flat, key_jitter, config.render.samples)
        background = jax.random.uniform(key_background, (batch_size, views, 1, 3), jnp.float32)
        shape = (batch_size, views, config.loss.rays)
        opacity = out.opacity.reshape(shape)
        colour = out.features.reshape(*shape, 3) + background * (1.0 - opacity[..., None])
        mask = rgba[..., 3].astype(jnp.float32) / 255.0
        error = jnp.mean(jnp.square(colour - over(rgba, background)))
        parts = {'rgb': error, 'mask': config.loss.mask * jnp.mean(jnp.square(opacity - mask))}
        if config.loss.depth > 0.0:
            depth = jnp.take_along_axis(batch['depth'].reshape(batch_size, views, -1), pixels, axis=2)
            cosine = jnp.sum(rays.directions * cameras.forward_axis(views_of)[:, :, None], -1)
            off = jnp.abs(out.depth.reshape(shape) - depth / cosine) * mask * (depth > 0.0)  # 0 is background
            parts['depth'] = config.loss.depth * jnp.mean(off)
        total = sum(parts.values())
        metrics = {
            'loss': total,
            **{f'loss/{name}': part for name, part in parts.items()},
            'psnr': -10.0 * jnp.log10(error),
            'alpha': params['field']['alpha'],
            'count/rays': jnp.float32(opacity.size),
        }
        return total, (metrics, extras)

    return Supervision(loss, dict, beside_truth(config, model), batch_spec(config))


# ----------------------------------------------------------------------------------------------------------------- rays


def by_rays(config, model: TextField, given) -> Supervision:
    """By rays whose truth is known, in closed form or from pictures of any size (instant3d_supervision_rays.py)."""
    refuse_given(given, 'rays')
    check_rays(config, 'rays')
    of_batch = instant3d_supervision_rays.loss_fn(config, model)

    def loss(params, extras, given, batch, key, step):
        total, metrics = of_batch(params, batch, key)
        return total, (metrics, extras)

    return Supervision(loss, dict, beside_truth(config, model), instant3d_supervision_rays.batch_spec(config))


def check_rays(config, name: str) -> None:
    """Raises UsageError for a config without rays, or with rays that cannot be."""
    if 'rays' not in config:
        raise UsageError(f"supervision={name!r} reads the section 'rays': start from configs/instant3d.py:scenes_rays.")
    instant3d_supervision_rays.check(config)


# ---------------------------------------------------------------------------------------------------------------- seeds


def comparison(config, model: TextField, name: str) -> tuple[instant3d_supervision_seeds.Comparison, dict]:
    """(how scenes are compared along rays, what of that the data pipeline delivers) of captions of many objects."""
    rays, seeds = instant3d_supervision_rays, instant3d_supervision_seeds
    check_rays(config, name)
    by = seeds.Comparison(
        functools.partial(rays.truth_of, config),
        lambda truth: rays.fewer(truth, config.data.views, config.seeds.rays),
        functools.partial(rays.apart, config, model),
        functools.partial(rays.compare, config, model),
    )
    return by, rays.batch_spec(config)


def by_nearest_noise(config, model: TextField, given) -> Supervision:
    """By rays, of the one among several noises whose scene is nearest."""
    refuse_given(given, 'imle')
    seeds = instant3d_supervision_seeds
    by, spec = comparison(config, model, 'imle')
    seeds.check(config, 'seeds', 'imle')
    extras = lambda: {'seeds': seeds.empty(config)}
    return Supervision(
        seeds.imle_fn(config, model, by), extras, beside_truth(config, model), spec | seeds.spec_of_numbers(config)
    )


def by_codes(config, model: TextField, given) -> Supervision:
    """By rays, of scenes whose style noise is a learned code of their object."""
    refuse_given(given, 'codes')
    seeds = instant3d_supervision_seeds
    by, spec = comparison(config, model, 'codes')
    seeds.check(config, 'codes', 'codes')
    spec |= seeds.spec_of_numbers(config)
    learned = lambda key: {'codes': seeds.first_codes(config, key)}
    noise = lambda params, key, count: seeds.of_gaussian(params['codes'], key, count)
    return Supervision(seeds.codes_fn(config, model, by), dict, beside_truth(config, model), spec, learned, noise)


def by_places(config, model: TextField, given) -> Supervision:
    """By rays, of scenes whose style noise is that of a place which their caption gives to their object alone."""
    refuse_given(given, 'places')
    seeds = instant3d_supervision_seeds
    by, spec = comparison(config, model, 'places')
    if 'places' not in config:
        raise UsageError("supervision='places' reads the section 'places': start from configs/instant3d.py:toy_places.")
    spec |= {'place': jax.ShapeDtypeStruct((config.batch,), jnp.int32)}
    noise = lambda params, key, count: seeds.at_random(config, key, count)
    return Supervision(seeds.places_fn(config, model, by), dict, beside_truth(config, model), spec, noise=noise)


# ------------------------------------------------------------------------------------------------------ score distillation

DRAWS = ('cameras', 'style', 'jitter', 'background', 'guide')  # of a prompt at a step


def distilled_with_clip(config, model: TextField, given) -> Supervision:
    """`distilled`, and 1 - the likeness that given.clip sees between each view and its prompt, times `loss.clip`."""
    if 'clip' not in given:
        raise UsageError(f"supervision='sds+clip' needs given.clip: wanted {likeness.WANTED}. Set given.clip=NAME or FOLDER.")
    if 'clip' not in config.loss:
        raise UsageError("supervision='sds+clip' reads loss.clip: set loss.clip=(0,0.1,0.1,1).")
    return distilled(config, model, given, with_clip=True)


def distilled(config, model: TextField, given, with_clip: bool = False) -> Supervision:
    """By a prior's score: V views of each prompt from random cameras, whole, and not clipped: colours above 1 are legal while
    alpha is below it. Only what given.clip sees is clipped for display.

    What is drawn for a prompt depends on its place in the global batch, not on the number of devices.
    """
    for section in ('cameras', 'distill'):
        if section not in config:
            raise UsageError(f"supervision='sds' reads the section {section!r}: start from configs/instant3d.py:sds.")
    prior = guide.prior_of(given)
    together = isinstance(prior, MultiViewPrior)
    sided = config.distill.words != 'none'
    said = [text for prompt in config.export.prompts for text in ([prompt, *with_sides(prompt)] if sided else [prompt])]
    tokens.refuse_other(config.text, prior.tokenize, said)
    size, views = config.render.size, config.cameras.views
    judge, none = guide.make(prior, guide.Options(**config.distill)), np.asarray(prior.tokenize(['']))
    ranges = camera_draws.from_section(config.cameras)
    draw = camera_draws.ring if together else camera_draws.draw
    weight = lambda name, step: optim.ramp(step, config.loss[name])
    asked = lambda name: any(config.loss[name][1:3])  # what weighs nothing is not computed

    alike = likeness.of_given(given)
    if alike is not None:
        likeness.refuse_other(config.text, alike.tokenize, list(config.export.prompts))
    adaptive = config.distill.negatives == 'adaptive'
    if adaptive and not config.data.count:
        raise UsageError('data.count=0: give the number of prompts, whose last visits adaptive negatives keep.')

    def texts(batch):
        if together:
            return batch['tokens']
        return batch['sides'] if sided else batch['tokens'][:, None]

    def features_of(given, images):
        """Unit vectors [B V, D] of what the views look like: those of given.clip, or coarse colours."""
        shown = jnp.clip(images, 0.0, 1.0).reshape(-1, *images.shape[2:])
        return perp_neg.picture_features(shown) if alike is None else alike.images(given['clip'], shown)

    def compared(extras, index, features, azimuth):
        """(severity [B, V] of each view beside its prompt's last visit, the visits with this one, metrics)."""
        if not adaptive:
            return None, extras, {}
        features, seen = jax.lax.stop_gradient(features), (jnp.repeat(index, views), azimuth.reshape(-1))
        severity = perp_neg.severity(features, seen[1], extras['visits'], seen[0])
        visits = perp_neg.visited(extras['visits'], *replicas.gather((seen[0], features, seen[1])))
        return severity.reshape(azimuth.shape), {'visits': visits}, {'distill/severity': jnp.mean(severity)}

    def empty():
        return {'visits': perp_neg.empty_cache(config.data.count, alike.width if alike else perp_neg.WIDTH)} if adaptive else {}

    def loss(params, extras, given, batch, key, step):
        objects = batch['tokens'].shape[0]
        key_drawn, key_density, key_smoothness = jax.random.split(key, 3)
        each = timesteps.view_keys(key_drawn, jnp.arange(objects))
        keys = dict(zip(DRAWS, jax.vmap(lambda key: jax.random.split(key, len(DRAWS)), out_axes=1)(each), strict=True))
        drawn = jax.vmap(lambda key: draw(key, views, ranges))(keys['cameras'])
        rays = cameras.rays(drawn.cameras, size, size)  # [B, V, S, S, 3]
        shape = rays.origins.shape
        flat = jax.tree.map(lambda leaf: leaf.reshape(objects, -1, 3), rays)
        scene = model.scene_from_noise(params, batch['tokens'], jax.vmap(lambda key: model.noise(key, 1)[0])(keys['style']))
        plain = model.raw_field(scene)
        oriented = shading.oriented(plain, config.loss.offset) if asked('orientation') else None
        u = jax.vmap(lambda key: volume.draws(key, flat.origins.shape[1:2], config.render.samples, config.render.importance))(
            keys['jitter']
        )
        out = model.render_drawn(scene, flat, u, oriented)
        opacity = out.opacity.reshape(shape[:-1])
        behind = volume.backgrounds(keys['background'], views, config.render.background, config.render.random_background)
        images = out.features[..., :3].reshape(shape) + behind * (1.0 - opacity[..., None])
        features = features_of(given, images) if adaptive or with_clip else None
        severity, extras, looks = compared(extras, batch['index'], features, drawn.azimuth)
        said = {'text': texts(batch), 'none': none}
        told = judge.guide(given['prior'], said, images, drawn, keys['guide'], step, severity)
        parts = {}
        if with_clip:
            prompts = jnp.repeat(alike.texts(given['clip'], batch['tokens']), views, axis=0)
            parts['clip'] = weight('clip', step) * likeness.unlikeness(features, prompts)
        if asked('density'):
            parts['density'] = weight('density', step) * jnp.mean(model.density_steps(scene, key_density))
        if asked('orientation'):
            parts['orientation'] = weight('orientation', step) * jnp.mean(shading.orientation_of(out.features[..., 3:5]))
        if asked('smoothness'):
            ends = jax.lax.stop_gradient(flat.origins + out.depth[..., None] * flat.directions)
            normals = lambda points: shading.with_difference_normals(plain, points, config.loss.offset)[2]
            rough = shading.smoothness_loss(normals, key_smoothness, ends)
            parts['smoothness'] = weight('smoothness', step) * jnp.mean(jax.lax.stop_gradient(out.opacity) * rough)
        metrics = {
            'loss': guide.surprise(told.metrics),
            **{f'loss/{name}': part for name, part in parts.items()},
            **told.metrics,
            **looks,
            'opacity': jnp.mean(opacity),
            'alpha': params['field']['alpha'],
            'count/rays': jnp.float32(opacity.size),
        }
        return told.loss / objects + sum(parts.values()), (metrics, extras)

    def preview(scene, batch):
        rig = cameras.turntable(
            config.preview.views, elevation=config.preview.elevation, radius=config.render.radius, fov=config.render.fov
        )
        rays = cameras.rays(rig, config.preview.size, config.preview.size)
        rays = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch['tokens'].shape[0], *leaf.shape)), rays)
        return numerics.side_by_side(jnp.clip(model.render_scene(scene, rays).features, 0.0, 1.0))

    return Supervision(loss, empty, preview, batch_spec_of_prompts(config))


def batch_spec_of_prompts(config) -> dict[str, jax.ShapeDtypeStruct]:
    """Prompts, their places in the set, and where views are told apart by words the prompt with each of these."""
    spec = {'tokens': (config.batch, config.text.length), 'index': (config.batch,)}
    if config.distill.words != 'none':
        spec['sides'] = (config.batch, len(SUFFIXES), config.text.length)
    return {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in spec.items()}


SUPERVISIONS = {'photometric': photometric, 'rays': by_rays}
SUPERVISIONS |= {'imle': by_nearest_noise, 'codes': by_codes, 'places': by_places}
SUPERVISIONS |= {'sds': distilled, 'sds+clip': distilled_with_clip}
