"""Volume rendering of any field along rays: compositing, two-pass sampling, chunks, background.

A field is `field(points [..., N, 3], directions [..., N, 3]) -> (density [..., N], features [..., N, C])`; the leading axes are
those of the rays. Density may be raw: `density_activation` is applied where the densities of neighbours have been averaged.
All compositing is in float32. The order of colours is never changed: samples are sorted by moving depths and densities only,
and the compositing weights are carried back to the samples.
"""

import flax
import jax
import jax.numpy as jnp

from t3d.core.typing import Array, Float, Key, typechecked
from t3d.geom import sampling
from t3d.geom.rays import Rays


@flax.struct.dataclass
class RenderOutput:
    """What a bundle of rays sees."""

    features: jax.Array  # [..., R, C] composited, without background
    opacity: jax.Array  # [..., R] sum of weights, in [0, 1]
    depth: jax.Array  # [..., R] distance along the ray, mean over the weights; the far end where nothing is hit
    weights: jax.Array | None  # [..., R, S - 1] per interval between sorted samples; None from render_chunked


def identity(x):
    return x


@typechecked
def interval_weights(density: Float[Array, '*b s r'], lengths: Float[Array, '*b s r']) -> Float[Array, '*b s r']:
    """Weights T_i (1 - exp(-density_i length_i)) of intervals of constant density, samples before rays (NeRF, Eq. 3).

    sum_i weight_i + exp(-sum_i density_i length_i) = 1.
    """
    optical = density * lengths
    through = jnp.cumsum(optical, -2) - optical
    return jnp.exp(-through) * -jnp.expm1(-optical)


@typechecked
def composite(
    density: Float[Array, '*b s'],
    features: Float[Array, '*b s c'],
    edges: Float[Array, '*b s1'],
) -> RenderOutput:
    """Piecewise constant quadrature over S intervals with S + 1 sorted edges, for any leading shape (NeRF, arXiv 2003.08934).

    Args:
      density: [..., S] per scene unit, at least 0.
      features: [..., S, C].
      edges: [..., S + 1] distances along the ray.
    """
    weights = interval_weights(density[..., None], jnp.diff(edges)[..., None])[..., 0]
    opacity = jnp.sum(weights, -1)
    middle = 0.5 * (edges[..., 1:] + edges[..., :-1])
    depth = mean_depth(jnp.sum(weights * middle, -1), opacity, edges[..., 0], edges[..., -1])
    return RenderOutput(jnp.einsum('...s,...sc->...c', weights, features), opacity, depth, weights)


def mean_depth(weighted, opacity, near, far):
    """weighted / opacity within the sampled range; the far end where the ray is empty. Its gradient is safe but steep there."""
    empty = opacity <= 1e-10
    return jnp.where(empty, far, jnp.clip(weighted / jnp.where(empty, 1.0, opacity), near, far))


def midpoint_weights(density, depths, density_activation=identity):
    """EG3D's march: the S - 1 weights between S sorted samples, densities averaged before their activation."""
    middle = density_activation(0.5 * (density[..., 1:, :] + density[..., :-1, :]))
    return interval_weights(middle, depths[..., 1:, :] - depths[..., :-1, :])


def sample_weights(weights):
    """Weights of the S samples from those of the S - 1 intervals, whose colour is the mean of their two ends."""
    pad = [(0, 0)] * (weights.ndim - 2)
    return 0.5 * (jnp.pad(weights, [*pad, (0, 1), (0, 0)]) + jnp.pad(weights, [*pad, (1, 0), (0, 0)]))


def limits(rays: Rays, near, far) -> tuple[jax.Array, jax.Array]:
    """near and far as arrays [..., R], and nothing behind the camera: what lies at negative distances is cut off.

    Rays with near > far, which missed the box or have left it behind (`rays.ray_box`), get an empty range at 0.
    """
    shape = rays.origins.shape[:-1]
    near, far = (jnp.broadcast_to(jnp.asarray(value, jnp.float32), shape) for value in (near, far))
    near = jnp.maximum(near, 0.0)
    hit = near <= far
    return jnp.where(hit, near, 0.0), jnp.where(hit, far, 0.0)


def draws(key: Key | None, shape: tuple, num_samples: int, num_importance: int, jitter: bool = True):
    """(u_coarse [..., S, R], u_fine [..., N, R]) for rays [..., R]; without a key, or without jitter, evenly spaced.

    u_fine is sorted, one draw in each N-th of [0, 1): less variance than independent draws, and nothing left to sort.
    """
    *lead, count = shape
    coarse_shape, fine_shape = (*lead, num_samples, count), (*lead, num_importance, count)
    strata = jnp.arange(num_importance, dtype=jnp.float32)[:, None]
    if key is None or not jitter:
        return jnp.zeros(coarse_shape, jnp.float32), jnp.broadcast_to((strata + 0.5) / max(num_importance, 1), fine_shape)
    key_coarse, key_fine = jax.random.split(key)
    u_fine = (strata + jax.random.uniform(key_fine, fine_shape, jnp.float32)) / max(num_importance, 1)
    return jax.random.uniform(key_coarse, coarse_shape, jnp.float32), u_fine


def query(field, rays, depths):
    """(density [..., S, R], features [..., S, R, C]) at the depths [..., S, R]."""
    *lead, samples, count = depths.shape
    points = rays.origins[..., None, :, :] + depths[..., None] * rays.directions[..., None, :, :]
    directions = jnp.broadcast_to(rays.directions[..., None, :, :], points.shape)
    density, features = field(points.reshape(*lead, samples * count, 3), directions.reshape(*lead, samples * count, 3))
    return density.reshape(depths.shape).astype(jnp.float32), features.reshape(*depths.shape, features.shape[-1])


def composite_samples(density, features, depths, density_activation=identity) -> RenderOutput:
    """What rays see by samples [..., S, R] at sorted depths, however they were placed: EG3D's march over the intervals between.

    Args:
      density: [..., S, R], of the field, before its activation.
      features: [..., S, R, C].
      depths: [..., S, R].
    """
    weights = midpoint_weights(density, depths, density_activation)
    composited = jnp.einsum('...sr,...src->...rc', sample_weights(weights), features.astype(jnp.float32))
    return _seen(composited, weights, depths)


def _seen(composited, weights, depths) -> RenderOutput:
    opacity = jnp.sum(weights, -2)
    middle = 0.5 * (depths[..., 1:, :] + depths[..., :-1, :])
    depth = mean_depth(jnp.sum(weights * middle, -2), opacity, depths[..., 0, :], depths[..., -1, :])
    return RenderOutput(composited, opacity, depth, jnp.moveaxis(weights, -2, -1))


def render_at(field, rays: Rays, u_coarse, u_fine, *, near, far, density_activation=identity) -> RenderOutput:
    """`render` with the random numbers given: u_coarse [..., S, R], u_fine [..., N, R] sorted along N, in [0, 1)."""
    near, far = limits(rays, near, far)
    depths = jax.lax.stop_gradient(sampling.stratified(near, far, u_coarse))
    density, features = query(field, rays, depths)
    if u_fine.shape[-2] == 0:
        return composite_samples(density, features, depths, density_activation)
    coarse = midpoint_weights(jax.lax.stop_gradient(density), depths, density_activation)
    fine = jax.lax.stop_gradient(sampling.importance(depths, coarse, u_fine))
    fine_density, fine_features = query(field, rays, fine)
    ranks, order = sampling.merge(depths, fine)
    ordered = sampling.permute(jnp.concatenate([depths, fine], -2), order, ranks)
    weights = midpoint_weights(
        sampling.permute(jnp.concatenate([density, fine_density], -2), order, ranks), ordered, density_activation
    )
    at_samples = sampling.permute(sample_weights(weights), ranks, order)
    count = depths.shape[-2]
    composited = jnp.einsum('...sr,...src->...rc', at_samples[..., :count, :], features.astype(jnp.float32))
    composited += jnp.einsum('...sr,...src->...rc', at_samples[..., count:, :], fine_features.astype(jnp.float32))
    return _seen(composited, weights, ordered)


def render(
    field,
    rays: Rays,
    key: Key | None,
    *,
    near,
    far,
    num_samples: int,
    num_importance: int = 0,
    density_activation=identity,
    jitter: bool = True,
) -> RenderOutput:
    """Renders a field along rays [..., R, 3], batched natively: the field receives points [..., N, 3].

    Two passes if num_importance > 0: S samples evenly spread and jittered, N drawn where their weights lie, both composited
    together. Gradients flow through densities and features of both, never through depths.

    Args:
      field: `(points [..., N, 3], directions [..., N, 3]) -> (density [..., N], features [..., N, C])`.
      rays: origins and directions [..., R, 3].
      key: for the jitter; None for none (the same image every time).
      near, far: distances, numbers or arrays [..., R], of which only those from 0 are seen, in front of the camera. Rays with
        near > far see nothing: exactly zero opacity.
      num_samples, num_importance: S >= 2 (>= 4 with importance samples) and N, per ray.
      density_activation: from the field's density, averaged between neighbours, to a density >= 0 per scene unit.
      jitter: False keeps the samples in place although a key is given.
    """
    u_coarse, u_fine = draws(key, rays.origins.shape[:-1], num_samples, num_importance, jitter)
    return render_at(field, rays, u_coarse, u_fine, near=near, far=far, density_activation=density_activation)


def render_chunked(
    field,
    rays: Rays,
    key: Key | None,
    *,
    chunk: int,
    near,
    far,
    num_samples: int,
    num_importance: int = 0,
    density_activation=identity,
    jitter: bool = True,
) -> RenderOutput:
    """`render` in pieces of `chunk` rays, one after the other, recomputed in the backward pass: the same result, less memory.

    `weights` is None. The last piece is filled up with copies of the last ray.
    """
    near, far = limits(rays, near, far)
    u_coarse, u_fine = draws(key, rays.origins.shape[:-1], num_samples, num_importance, jitter)
    count = rays.origins.shape[-2]
    pieces = -(-count // chunk)
    place = jnp.minimum(jnp.arange(pieces * chunk), count - 1)

    def split(value, axis):
        value = jnp.take(value, place, axis=axis)
        axis %= value.ndim
        return jnp.moveaxis(value.reshape(*value.shape[:axis], pieces, chunk, *value.shape[axis + 1 :]), axis, 0)

    def join(value, axis):
        value = jnp.moveaxis(value, 0, axis)
        joined = value.reshape(*value.shape[:axis], pieces * chunk, *value.shape[axis + 2 :])
        return jax.lax.slice_in_dim(joined, 0, count, axis=axis)

    @jax.checkpoint
    def one(piece):
        piece_rays, piece_near, piece_far, u, v = piece
        out = render_at(field, piece_rays, u, v, near=piece_near, far=piece_far, density_activation=density_activation)
        return out.replace(weights=None)

    per_ray = (split(value, -1) for value in (near, far, u_coarse, u_fine))
    out = jax.lax.map(one, (jax.tree.map(lambda value: split(value, -2), rays), *per_ray))
    axis = rays.origins.ndim - 2
    return jax.tree.map(lambda value: join(value, axis), out)


def shown(out: RenderOutput, background, shape: tuple[int, ...]) -> RenderOutput:
    """A render of rays in one row as people see it: over the background, `features` of shape [..., C] and the others [...]."""
    colour, *flat = over(out, background), out.opacity, out.depth
    return RenderOutput(colour.reshape(shape), *(value.reshape(shape[:-1]) for value in flat), weights=None)


def backgrounds(keys: Key, views: int, level: float, random: bool) -> jax.Array:
    """A grey level, or where `random` a colour [P, V, 1, 1, 3] in [0, 1] for each view of P scenes with keys [P]."""
    if not random:
        return jnp.float32(level)
    return jax.vmap(lambda key: jax.random.uniform(key, (views, 1, 1, 3), jnp.float32))(keys)


def over(out: RenderOutput, background) -> jax.Array:
    """features + (1 - opacity) * background, which broadcasts against [..., R, C]. Rays that hit nothing give it exactly."""
    return out.features + (1.0 - out.opacity)[..., None] * background
