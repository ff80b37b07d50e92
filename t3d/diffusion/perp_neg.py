"""Perp-Neg: negative prompts act only across the positive one, so that they take away a wrong side and not the object.

d_i = eps_i - eps_0, d_+ = eps_+ - eps_0; eps_hat = eps_0 + scale (d_+ + sum_i w_i perp(d_i)), w_i <= 0,
perp(d_i) = d_i - <d_i, d_+> / <d_+, d_+> d_+, products of each sample alone, in float32.
Source: Perp-Neg, arXiv 2304.04968, Sec. 3; its code takes the products over the whole batch. Weights by the camera as in
threestudio; their severity, which rises where an object looks alike from two sides, is Instant3D's, arXiv 2311.08403, Sec. 3.4.

Rows lie in front, [rows, B, ...]: positive, unconditional, negatives; one call of the prior has all of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from t3d.diffusion import view_prompts
from t3d.diffusion.view_prompts import FRONT, SIDE, SUFFIXES, THREESTUDIO, Thresholds

LEAST = 1e-6  # of <d_+, d_+>
UNSEEN = 0.5  # severity before a prompt's first visit


def perpendicular(direction, positive):
    """The part of direction [..., B, ...] across positive [B, ...], of each sample b, float32."""
    direction, positive = direction.astype(jnp.float32), positive.astype(jnp.float32)
    axes = tuple(range(1 - positive.ndim, 0))
    along = jnp.sum(direction * positive, axes, keepdims=True)
    return direction - along / jnp.maximum(jnp.sum(positive**2, axes, keepdims=True), LEAST) * positive


def combined(outputs, weights, scale):
    """The guided output of rows.

    Args:
      outputs: [2 + K, B, ...]: positive, unconditional, negatives; eps, v or x_0, which are affine in each other at one x_t.
      weights: [K, B], at most 0. scale: a number or [B].
    """
    outputs = outputs.astype(jnp.float32)
    positive, uncond = outputs[0] - outputs[1], outputs[1]
    trailing = (1,) * (uncond.ndim - 1)
    across = perpendicular(outputs[2:] - uncond, positive)
    steered = positive + jnp.sum(weights.astype(jnp.float32).reshape(weights.shape + trailing) * across, 0)
    scale = jnp.asarray(scale, jnp.float32)
    return uncond + scale.reshape(scale.shape + (1,) * (uncond.ndim - scale.ndim)) * steered


def guided(predict: Callable, rows, weights, scale) -> Callable:
    """`predict(x, t, condition)` with rows of conditions made into one `predict(x, t)`, by one call on a larger batch.

    Args:
      rows: pytree whose leaves are [2 + K, B, ...]: positive, unconditional, negatives.
      weights: [K, B]. scale: a number, [B], or a function of t that returns one.
    """
    count = 2 + weights.shape[0]
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows)  # [rows B, ...]

    def predict_guided(x, t):
        t = jnp.asarray(t)
        tiled = jnp.broadcast_to(x, (count, *x.shape)).reshape(-1, *x.shape[1:])
        times = jnp.broadcast_to(t, (count, *t.shape)).reshape(-1) if t.ndim else t
        outputs = predict(tiled, times, flat).reshape(count, *x.shape)
        return combined(outputs, weights, scale(t) if callable(scale) else scale)

    return predict_guided


class Decays(NamedTuple):
    """(a, b, c) of weights a exp(-b r) + c of negatives by the angle; threestudio's.

    front_side: of views between front and side. side_back: of the side, for views between side and back; front_back: of the
    front there.
    """

    front_side: tuple[float, float, float] = (4.0, 0.5, -2.426)
    side_back: tuple[float, float, float] = (1.0, 0.5, -0.606)
    front_back: tuple[float, float, float] = (1.0, 0.5, 0.967)


DECAYS = Decays()


def decay(abc: tuple[float, float, float], r):
    """a exp(-b r) + c."""
    a, b, c = abc
    return a * jnp.exp(-b * r) + c


class ViewRows(NamedTuple):
    """shares: [3, B, 4] of suffixes, for the positive and for two negatives, front and side. weights: [2, B] of those."""

    shares: jax.Array
    weights: jax.Array


def by_view(azimuth, elevation, thresholds: Thresholds = THREESTUDIO, decays: Decays = DECAYS) -> ViewRows:
    """Positive and negatives of cameras [B]: what a view must not look like is a front, and a side if it is neither.

    Up to 90 degrees, r = 1 - |az| / 90: front -f_fs(r), side -f_fs(1 - r). Beyond, r = 2 - |az| / 90: side -f_sb(r), front
    -f_fsb(r). From above both are 0. Continuous at 90 degrees to .001. The positive is `view_prompts.mixture`.
    """
    away = view_prompts.around(azimuth) / (0.5 * jnp.pi)
    r = jnp.where(away < 1.0, 1.0 - away, 2.0 - away)
    front = jnp.where(away < 1.0, decay(decays.front_side, r), decay(decays.front_back, r))
    side = jnp.where(away < 1.0, decay(decays.front_side, 1.0 - r), decay(decays.side_back, r))
    weights = jnp.where(elevation > thresholds.overhead, 0.0, -jnp.stack([front, side]))
    positive = view_prompts.mixture(azimuth, elevation, thresholds)
    negatives = jnp.eye(len(SUFFIXES))[jnp.array([FRONT, SIDE])]
    negatives = jnp.broadcast_to(negatives[:, None], (2, *positive.shape))
    return ViewRows(jnp.concatenate([positive[None], negatives]), weights)


def rows(features, uncond, shares):
    """[4, B, N, D]: positive, unconditional, negatives, of features [B, 4, N, D] of the suffixes, and uncond [B, N, D]."""
    chosen = view_prompts.mixed(features, shares)
    return jnp.concatenate([chosen[:1], uncond[None], chosen[1:]])


@flax.struct.dataclass
class Cache:
    """What a prompt looked like at its last visit; belongs into the checkpoint, replicated."""

    features: jax.Array  # [P, D] float32, unit image features of CLIP
    azimuth: jax.Array  # [P] float32 radians
    valid: jax.Array  # [P] bool, False before the first visit


CELLS = 8  # per side of a picture, as `picture_features` sees it
WIDTH = 3 * CELLS**2


def picture_features(images):
    """Unit features [B, WIDTH] of pictures [B, S, S, 3]: their colours in 8 x 8 cells, without the mean of each colour.

    In place of CLIP's features, where none are given: how alike two pictures look, and nothing of what they show.
    """
    cells = jax.image.resize(images.astype(jnp.float32), (images.shape[0], CELLS, CELLS, 3), 'linear')
    flat = (cells - jnp.mean(cells, (1, 2), keepdims=True)).reshape(images.shape[0], WIDTH)
    return flat * jax.lax.rsqrt(jnp.sum(flat**2, -1, keepdims=True) + LEAST)


def empty_cache(prompts: int, width: int) -> Cache:
    """A cache without visits."""
    return Cache(jnp.zeros((prompts, width), jnp.float32), jnp.zeros(prompts, jnp.float32), jnp.zeros(prompts, jnp.bool_))


def visited(cache: Cache, ids, features, azimuth) -> Cache:
    """The cache after a global batch; of several views of one prompt the last one stays.

    Args:
      ids: int [B] prompts of the global batch in its order, features [B, D], azimuth [B] radians.
    """
    last = jnp.full(cache.valid.shape, -1, jnp.int32).at[ids].max(jnp.arange(ids.shape[0], dtype=jnp.int32))
    new = last >= 0
    features = jax.lax.stop_gradient(features).astype(jnp.float32)
    return Cache(
        jnp.where(new[:, None], features[last], cache.features),
        jnp.where(new, azimuth.astype(jnp.float32)[last], cache.azimuth),
        cache.valid | new,
    )


def severity(features, azimuth, cache: Cache, ids, cosine: tuple[float, float] = (-1.0, 1.0)):
    """C [B] = 1/4 (1 - cos(v - v_i)) (1 + <phi, phi_i>) in [0, 1], against each prompt's last visit (2311.08403, Sec. 3.4).

    Args:
      features: [B, D] unit features, azimuth: [B] radians, ids: [B] prompts.
      cosine: the range of <phi, phi_i> that is stretched to [-1, 1], and cut there; renders of one object rarely differ by more
        than a cosine of .5. The default changes nothing, as in the paper.
    """
    low, high = cosine
    like = jnp.sum(features.astype(jnp.float32) * cache.features[ids], -1)
    like = jnp.clip(2.0 * (like - low) / (high - low) - 1.0, -1.0, 1.0)
    apart = 1.0 - jnp.cos(azimuth.astype(jnp.float32) - cache.azimuth[ids])
    value = jnp.clip(0.25 * apart * (1.0 + like), 0.0, 1.0)
    return jax.lax.stop_gradient(jnp.where(cache.valid[ids], value, UNSEEN))


def adapted(weights, severity, least: float = 1.0, more: float = 3.0):
    """weights [K, B] times least + C more; the paper gives neither number."""
    return weights * (least + severity * more)
