"""Supervision by rays: the part of `systems/instant3d_supervision.py` that draws rays, knows what they see, and compares.

What is true along a ray comes from one of two places (`rays.truth`), and the rest is the same for both:

- `solids`: scenes in closed form (geom/solids.py). Rays go through any point of any view, so pictures have no resolution and
  edges are antialiased in the mean. A share of the rays goes where the picture changes within `rays.pixel`.
- `pixels`: pixels that the data drew from pictures of any size (data/adapters/rays.py).

A decoder costs more than many rays do: a scene gives `data.views` x `loss.rays` of them, and few samples suffice on each since
the truth says where its surface is. `render.samples` are stratified over the box, `rays.samples` stand within `rays.spread` of
that surface. Every sample is then also told whether it lies in a solid, which costs nothing beside its look-up.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core.config import unknown
from t3d.core.errors import UsageError
from t3d.fields.text_field import TextField
from t3d.geom import cameras, sampling, solids, volume
from t3d.geom.rays import Rays, ray_box

MOST = 2  # solids of a scene
CANDIDATES = 4  # rays that are looked at for each one that is drawn
MARGIN = 1.1  # of the boxes around solids that candidates are aimed at
ALIKE = 0.95  # cosine of normals from which a surface counts as one
LEAST = 1e-6  # optical thickness


class Truth(NamedTuple):
    """What B scenes show along R rays each.

    Attributes:
      rays: [B, R, 3].
      colour: [B, R, 3] in [0, 1], of what is hit.
      mask: [B, R], the share of each ray's pixel that hits something.
      distance: [B, R] along the ray, inf where nothing is hit; None where the data do not know it.
      guide: [B, R] where a surface is, or nearly: samples are placed about it. None without distances.
      solid: `(points [B, S, R, 3], depths [B, S, R]) -> (within, known, own)` of samples, bool: they lie in a solid; whether
        they do is known; they lie in the solid that their ray hits, within `loss.skin` behind its surface.
    """

    rays: Rays
    colour: jax.Array
    mask: jax.Array
    distance: jax.Array | None
    guide: jax.Array | None
    solid: Callable


# --------------------------------------------------------------------------------------------------------- closed forms


def spec_of_solids(config) -> dict:
    return {
        'solids': ((config.batch, MOST, len(solids.ROW)), jnp.float32),
        'lamp': ((config.batch, len(solids.LAMP)), jnp.float32),
    }


def of_solids(config, batch, key) -> Truth:
    """Rays of scenes in closed form: candidates in every view, of which shares are kept by what they hit."""
    key_any, key_aimed, key_step, key_kept, key_free = jax.random.split(key, 5)
    views = cameras.Cameras(batch['world_from_cam'], batch['intrinsics'])
    lead, table = batch['world_from_cam'].shape[:2], batch['solids']  # B, V
    count = CANDIDATES * config.loss.rays // 2
    anywhere = jax.random.uniform(key_any, (*lead, count, 2), jnp.float32)
    uv = jnp.concatenate([anywhere, aimed(key_aimed, views, table, count)], -2)
    turn = jax.random.uniform(key_step, (*uv.shape[:-1], 1), jnp.float32, 0.0, 2.0 * jnp.pi)
    beside = uv + config.rays.pixel * jnp.concatenate([jnp.cos(turn), jnp.sin(turn)], -1)

    def look(uv):
        rays = jax.vmap(jax.vmap(cameras.rays_at))(views, uv)
        return rays, solids.trace(jnp.broadcast_to(table[:, None], (*lead, *table.shape[1:])), rays)

    (rays, hits), (_, others) = look(uv), look(beside)
    hit = hits.which >= 0
    edge = (hits.which != others.which) | (hit & (jnp.sum(hits.normal * others.normal, -1) < ALIKE))
    is_any = jnp.broadcast_to(jnp.arange(2 * count) < count, edge.shape)
    shares = (
        (edge, config.loss.edges),
        (hit, config.loss.foreground),
        (is_any, 1.0 - config.loss.edges - config.loss.foreground),
    )
    mass = sum(share * one / jnp.maximum(jnp.sum(one, -1, keepdims=True), 1) for one, share in shares)
    kept = stratified_choice(key_kept, mass, config.loss.rays)  # [B, V, R]

    def flat(values):
        """The kept ones of [B, V, C, ...], as [B, V R, ...]."""
        index = kept.reshape(*kept.shape, *(1,) * (values.ndim - 3))
        return jnp.take_along_axis(values, index, axis=2).reshape(lead[0], -1, *values.shape[3:])

    rays, hits, other_distance = jax.tree.map(flat, (rays, hits, others.distance))
    near, far = ray_box(rays, 2.0)
    free = near + (far - near) * jax.random.uniform(key_free, near.shape, jnp.float32)
    guide = jnp.where(jnp.isfinite(hits.distance), hits.distance, jnp.where(jnp.isfinite(other_distance), other_distance, free))

    def solid(points, depths):
        which = solids.inside(table, points.reshape(lead[0], -1, 3)).reshape(depths.shape)
        own = (which >= 0) & (which == hits.which[:, None]) & behind(depths, hits.distance, config.loss.skin)
        return which >= 0, jnp.ones_like(depths, bool), own

    colour = solids.colours(table, batch['lamp'], hits)
    return Truth(rays, colour, (hits.which >= 0).astype(jnp.float32), hits.distance, guide, solid)


def aimed(key, views: cameras.Cameras, table, count: int):
    """Image points [B, V, count, 2] of random points in the boxes around the solids of each scene."""
    key_row, key_point = jax.random.split(key)
    batch, seen = views.world_from_cam.shape[:2]
    row = jax.random.randint(key_row, (batch, seen * count), 0, table.shape[1], jnp.int32)
    row = jnp.where(jnp.take_along_axis(table[..., 0], row, axis=1) >= 0.0, row, 0)
    solid = solids.rows(jnp.take_along_axis(table, row[..., None], axis=1))
    sides = jnp.stack([solid.radius, solid.half, solid.radius], -1)
    spread = jax.random.uniform(key_point, sides.shape, jnp.float32, -MARGIN, MARGIN)
    points = (solid.centre + spread * sides).reshape(batch, seen, count, 3)
    return jax.vmap(jax.vmap(cameras.project))(views, points)[0]


def stratified_choice(key, mass, count: int):
    """`count` indices [..., count] with probabilities in proportion to mass [..., C], one draw in each count-th of it."""
    cdf = jnp.cumsum(mass, -1)
    u = (jnp.arange(count) + jax.random.uniform(key, (*mass.shape[:-1], count), jnp.float32)) / count * cdf[..., -1:]
    index = jnp.sum(cdf[..., None, :] <= u[..., :, None], -1, dtype=jnp.int32)
    return jnp.minimum(index, mass.shape[-1] - 1)


# --------------------------------------------------------------------------------------------------------------- pixels


def spec_of_pixels(config) -> dict:
    shape = (config.batch, config.data.views, config.loss.rays)
    spec = {'uv': ((*shape, 2), jnp.float32), 'pixels': ((*shape, 4), jnp.uint8)}
    return spec | ({'depth': (shape, jnp.float32)} if config.loss.depth > 0.0 else {})


def of_pixels(config, batch, key) -> Truth:
    """Rays through the centres of pixels of pictures. (A pixel is the mean of its square: a ray elsewhere in it sees less.)"""
    views = cameras.Cameras(batch['world_from_cam'], batch['intrinsics'])
    rays = jax.vmap(jax.vmap(cameras.rays_at))(views, batch['uv'])
    flat = lambda values: values.reshape(values.shape[0], -1, *values.shape[3:])
    rgba = flat(batch['pixels']).astype(jnp.float32) / 255.0
    mask, distance, guide = rgba[..., 3], None, None
    near, far = ray_box(jax.tree.map(flat, rays), 2.0)
    if 'depth' in batch:
        cosine = jnp.sum(rays.directions * cameras.forward_axis(views)[:, :, None], -1)
        distance = flat(jnp.where(batch['depth'] > 0.0, batch['depth'] / cosine, jnp.inf))  # 0 is background
        free = near + (far - near) * jax.random.uniform(key, near.shape, jnp.float32)
        guide = jnp.where(jnp.isfinite(distance), distance, free)

    def solid(points, depths):
        """Nothing lies before a surface or on a ray of the background, and something just behind a surface."""
        empty = jnp.broadcast_to((mask == 0.0)[:, None], depths.shape)
        if distance is None:
            return jnp.zeros_like(empty), empty, jnp.zeros_like(empty)
        met = ((mask == 1.0) & jnp.isfinite(distance))[:, None]
        own = met & behind(depths, distance, config.loss.skin)
        return own, empty | own | (met & (depths < distance[:, None])), own

    return Truth(jax.tree.map(flat, rays), rgba[..., :3], mask, distance, guide, solid)


def behind(depths, distance, skin: float):
    """Which samples [B, S, R] lie within `skin` behind the surfaces at distance [B, R]."""
    return (depths >= distance[:, None]) & (depths <= distance[:, None] + skin)


TRUTHS = {'solids': (spec_of_solids, of_solids), 'pixels': (spec_of_pixels, of_pixels)}


# ----------------------------------------------------------------------------------------------------------- comparison


def check(config) -> None:
    """Raises UsageError for a truth that there is not, and for shares of more than all rays."""
    if config.rays.truth not in TRUTHS:
        raise UsageError(unknown(config.rays.truth, TRUTHS, 'truth of rays (rays.truth)'))
    if config.loss.edges + config.loss.foreground > 1.0:
        raise UsageError(
            f'loss.edges={config.loss.edges} and loss.foreground={config.loss.foreground} are shares of the rays: together at '
            f'most 1. Nearest: loss.foreground={1.0 - config.loss.edges:.4g}.'
        )


def batch_spec(config) -> dict[str, jax.ShapeDtypeStruct]:
    """Captions and cameras, beside what the truth is read from."""
    batch, views = config.batch, config.data.views
    spec = {
        'tokens': ((batch, config.text.length), jnp.int32),
        'world_from_cam': ((batch, views, 4, 4), jnp.float32),
        'intrinsics': ((batch, views, 3, 3), jnp.float32),
        **TRUTHS[config.rays.truth][0](config),
    }
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in spec.items()}


def depths_of(config, model: TextField, field, truth: Truth, key):
    """Sorted depths [B, S, R]: `render.samples` over the box, `rays.samples` about the surface that the truth knows, or else
    where the field has its own.
    """
    key_coarse, key_fine = jax.random.split(key)
    near, far = volume.limits(truth.rays, *ray_box(truth.rays, 2.0))
    lead, fine = near.shape[:-1], config.rays.samples
    u = jax.random.uniform(key_coarse, (*lead, config.render.samples, near.shape[-1]), jnp.float32)
    coarse = sampling.stratified(near, far, u)
    v = jax.random.uniform(key_fine, (*lead, fine, near.shape[-1]), jnp.float32)
    v = (jnp.arange(fine, dtype=jnp.float32)[:, None] + v) / fine
    if truth.guide is None:
        raw, _ = volume.query(field, truth.rays, coarse)
        weights = volume.midpoint_weights(raw, coarse, model.density)
        about = sampling.importance(coarse, weights, v)
    else:
        away = 2.0 * v - 1.0
        about = truth.guide[..., None, :] + config.rays.spread * away * jnp.abs(away)  # denser towards the surface
        about = jnp.clip(about, near[..., None, :], far[..., None, :])
    ranks, order = sampling.merge(coarse, about)
    return jax.lax.stop_gradient(sampling.permute(jnp.concatenate([coarse, about], -2), order, ranks))


def occupancy(optical, within):
    """Cross entropy of the opacity 1 - exp(-optical) of a sample, for samples that lie in a solid and for those that do not."""
    optical = jnp.maximum(optical, LEAST)
    return jnp.where(within, -jnp.log(-jnp.expm1(-optical)), optical)


def squares(out: volume.RenderOutput, truth: Truth, key, views: int):
    """Squared difference [B, R] of the colours, mean over channels, each view over a random background."""
    objects, rays = truth.mask.shape
    background = jax.random.uniform(key, (objects, views, 1, 3), jnp.float32)
    background = jnp.broadcast_to(background, (objects, views, rays // views, 3)).reshape(out.features.shape)
    shown = out.features + background * (1.0 - out.opacity[..., None])
    true = truth.colour * truth.mask[..., None] + background * (1.0 - truth.mask[..., None])
    return jnp.mean(jnp.square(shown - true), -1)


def march(config, model: TextField, scene, truth: Truth, key):
    """(depths [B, S, R], raw densities and colours there, what the rays see) of scenes."""
    field = model.raw_field(scene)
    depths = depths_of(config, model, field, truth, key)
    raw, colours = volume.query(field, truth.rays, depths)
    return depths, raw, colours, volume.composite_samples(raw, colours, depths, model.density)


def compare(config, model: TextField, params, scene, truth: Truth, keys):
    """(loss, metrics) of scenes [B] beside their truth; keys: of depths and of backgrounds."""
    key_depths, key_background = keys
    depths, raw, colours, out = march(config, model, scene, truth, key_depths)
    error = jnp.mean(squares(out, truth, key_background, config.data.views))
    parts = {'rgb': error, 'mask': config.loss.mask * jnp.mean(jnp.square(out.opacity - truth.mask))}
    points = truth.rays.origins[:, None] + depths[..., None] * truth.rays.directions[:, None]  # [B, S, R, 3]
    within, known, own = truth.solid(points, depths)
    told = occupancy(config.loss.thickness * model.density(raw), within)
    parts['solid'] = config.loss.solid * mean_of(told, known)
    if truth.distance is not None:
        hit = jnp.isfinite(truth.distance)
        distance = jnp.where(hit, truth.distance, 0.0)
        parts['depth'] = config.loss.depth * jnp.mean(jnp.abs(out.depth - distance) * hit * truth.mask)
        off = jnp.mean(jnp.square(colours - truth.colour[:, None]), -1)
        parts['surface'] = config.loss.surface * mean_of(off, own)
    total = sum(parts.values())
    metrics = {
        'loss': total,
        **{f'loss/{name}': part for name, part in parts.items()},
        'psnr': -10.0 * jnp.log10(error),
        'alpha': params['field']['alpha'],
        'count/rays': jnp.float32(out.opacity.size),
    }
    return total, metrics


def fewer(truth: Truth, views: int, count: int) -> Truth:
    """The truth along `count` rays of each view, evenly chosen of those it has; without `solid`."""
    per = truth.mask.shape[1] // views
    place = (per * np.arange(views)[:, None] + np.arange(count) * per // count).reshape(-1)
    some = [None if part is None else jax.tree.map(lambda leaf: leaf[:, place], part) for part in truth[:5]]
    return Truth(*some, None)


def apart(config, model: TextField, scene, truth: Truth, key):
    """How far [B] scenes are from their truth: the colour's and the mask's part of the loss, by row.

    The same key gives every scene the same backgrounds, and where the truth knows surfaces the same samples.
    """
    key_depths, key_background = jax.random.split(key)
    *_, out = march(config, model, scene, truth, key_depths)
    error = squares(out, truth, key_background, config.data.views)
    return jnp.mean(error + config.loss.mask * jnp.square(out.opacity - truth.mask), -1)


def loss_fn(config, model: TextField):
    """`(params, batch, key) -> (loss, metrics)`."""

    def loss(params, batch, key):
        key_noise, key_truth, *keys = jax.random.split(key, 4)
        truth = truth_of(config, batch, key_truth)
        return compare(config, model, params, model.scene(params, batch['tokens'], key_noise), truth, keys)

    return loss


def truth_of(config, batch, key) -> Truth:
    """The truth of a batch, of the kind `rays.truth`."""
    return TRUTHS[config.rays.truth][1](config, batch, key)


def mean_of(values, chosen):
    """Mean over the chosen ones, 0 of none."""
    return jnp.sum(jnp.where(chosen, values, 0.0)) / jnp.maximum(jnp.sum(chosen), 1)
