"""Guidance: functions of predictions, and a wrapper that turns a conditional network into what the samplers call."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def cfg(uncond, cond, scale):
    """uncond + scale (cond - uncond) (arXiv 2207.12598 with scale = w + 1): 0 ignores the condition, 1 is the plain model.

    scale: a number, or [B] for one of each object.
    """
    scale = jnp.asarray(scale, jnp.float32)
    scale = scale.reshape(scale.shape + (1,) * (uncond.ndim - scale.ndim))
    return uncond + scale * (cond - uncond)


def rescale(guided, cond, phi: float, axes: tuple[int, ...] | None = None):
    """phi guided std(cond) / std(guided) + (1 - phi) guided (arXiv 2305.08891, Eq. 15-16; phi .7 there).

    axes: of one object, over which the deviation is taken jointly; None: all but the first. With views in an axis of their
    own, [B, V, H, W, C], that includes V: taken per view, views would drift apart in contrast.
    """
    axes = tuple(range(1, guided.ndim)) if axes is None else axes
    ratio = jnp.std(cond, axis=axes, keepdims=True) / jnp.std(guided, axis=axes, keepdims=True)
    return guided * (phi * ratio + (1.0 - phi))


def guided(predict: Callable, cond, uncond, scale, phi: float = 0.0) -> Callable:
    """`predict(x, t, condition)` with two conditions made into one `predict(x, t)`, by one call on a batch of twice the size.

    Args:
        cond, uncond: pytrees whose leaves have the objects in front, [B, ...].
        scale: guidance scale, a number or [B], or a function of t that returns one.
        phi: share of the rescaled prediction, 0 for none.
    """
    pair = guided_pair(predict, cond, uncond, scale)

    def predict_guided(x, t):
        out, with_ = pair(x, t)
        return rescale(out, with_, phi) if phi else out

    return predict_guided


def guided_pair(predict: Callable, cond, uncond, scale) -> Callable:
    """`guided` without rescaling, as `predict(x, t) -> (guided, conditional)`, for what rescales another prediction type."""
    both = jax.tree.map(lambda u, c: jnp.concatenate([u, c]), uncond, cond)

    def predict_pair(x, t):
        t = jnp.asarray(t)
        output = predict(jnp.concatenate([x, x]), jnp.concatenate([t, t]) if t.ndim else t, both)
        without, with_ = jnp.split(output, 2)
        return cfg(without, with_, scale(t) if callable(scale) else scale), with_

    return predict_pair


def dynamic_threshold(x0, ratio: float = 0.995, largest: float = 1.0):
    """Clips x_0 to +-s and divides by s; s: the ratio-quantile of |x_0| over one object, in [1, largest].

    Source: arXiv 2205.11487, Sec. 2.3, which sets no bound; largest 1, which scheduler files that leave `sample_max_value` out
    ask for, is a plain clip to [-1, 1].
    """
    s = jnp.quantile(jnp.abs(x0), ratio, axis=tuple(range(1, x0.ndim)), keepdims=True)
    s = jnp.clip(s, 1.0, largest)
    return jnp.clip(x0, -s, s) / s


def projection(schedule) -> Callable:
    """What a schedule asks to be done to x_0 at each step: thresholding before clipping, as in its file, or nothing."""
    if schedule.threshold is not None:
        return lambda x0: dynamic_threshold(x0, *schedule.threshold)
    if schedule.clip is not None:
        return lambda x0: jnp.clip(x0, -schedule.clip, schedule.clip)
    return lambda x0: x0
