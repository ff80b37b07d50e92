"""Schedules of the step, the optax chain, and the tail of a training step, all from plain numbers in a config."""

import jax
import jax.numpy as jnp
import optax

from t3d.core import muon, tree
from t3d.core.system import Metrics, TrainState
from t3d.core.typing import PyTree


def piecewise(step, points: tuple[tuple[int, float], ...]):
    """Linear between (step, value) points, constant outside them; traced."""
    steps, values = zip(*points, strict=True)
    return jnp.interp(jnp.asarray(step, jnp.float32), jnp.asarray(steps, jnp.float32), jnp.asarray(values, jnp.float32))


def ramp(step, points: tuple[int, float, float, int]):
    """0 before step `start`, then from one value to another until step `end`, of (start, first, last, end); traced."""
    start, first, last, end = points
    return jnp.where(step >= start, piecewise(step, ((start, first), (max(end, start + 1), last))), 0.0)


def warmup_cosine(step, peak: float, warmup: int, total: int, final: float = 0.1):
    """Linear warm-up to `peak`, then a half cosine down to `final * peak` at `total`; traced."""
    step = jnp.asarray(step, jnp.float32)
    rise = jnp.minimum(1.0, (step + 1.0) / max(warmup, 1))
    progress = jnp.clip((step - warmup) / max(total - warmup, 1), 0.0, 1.0)
    return peak * rise * (final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress)))


def rate(section, step, total: int):
    """`warmup_cosine` of a config's optimizer section: learning_rate, warmup, final."""
    return warmup_cosine(step, section.learning_rate, section.warmup, total, section.final)


def ema_decay(step, decay: float):
    """Decay of a moving average at a step: (1 + step) / (10 + step) until that is above `decay`; traced.

    The average then holds about the last tenth of a short run, instead of its random start.
    """
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """All gradients times min(1, limit / norm), the norm over all of them together.

    `optax.clip_by_global_norm` but for one rounding: one factor instead of a division and a choice for each number, which
    XLA keeps in memory, and a kernel less to compile for each array.
    """

    def update(grads, state, params=None):
        factor = jnp.minimum(1.0, limit / optax.tree.norm(grads))
        return jax.tree.map(lambda leaf: (leaf * factor).astype(leaf.dtype), grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


KERNELS = {'adam': optax.scale_by_adam, 'muon': muon.scale}


def adamw(
    *,
    learning_rate: float,
    warmup: int,
    total: int,
    final: float = 0.1,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    kernels: str = 'adam',
) -> optax.GradientTransformation:
    """AdamW behind a clip of the global norm, on a warm-up and cosine schedule. Decay skips vectors, stacked ones too.

    With `kernels='muon'` the kernels of products and convolutions move by Muon (core/muon.py) at the same rate.
    """

    def matrices(params):  # scanned layers stack their vectors: two axes, and vectors all the same
        return tree.map_with_name(lambda name, leaf: leaf.ndim > 1 and not name.endswith(('bias', 'scale')), params)

    return optax.chain(
        clip_by_global_norm(clip),
        KERNELS[kernels](b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=matrices),
        optax.scale_by_learning_rate(lambda step: warmup_cosine(step, learning_rate, warmup, total, final)),
    )


def staged(optimizer: optax.GradientTransformation, is_new, *, unfreeze_at: int, old_rate: float):
    """The optimizer with parameters in two groups: those for whose name `is_new(name)` learn at its rate; the others stay as
    they are until step `unfreeze_at` and then learn at `old_rate` times that rate."""

    def update(updates, step, params=None):
        factor = jnp.where(step >= unfreeze_at, old_rate, 0.0)
        return tree.map_with_name(lambda name, leaf: leaf if is_new(name) else leaf * factor, updates), step + 1

    scale = optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)
    return optax.chain(optimizer, scale)


def adam_of_parts(section, total: int) -> optax.GradientTransformation:
    """Adam on a warm-up and cosine schedule whose rate is `learning_rate` times that of the part in `parts`, by the first name.

    No clip and no decay couples the arrays: a population's members do not see each other.

    Args:
      section: learning_rate, warmup, final, b1, b2, eps, parts: {first name of a path: factor}.
    """

    def scale(updates, step, params=None):
        factor, parts = -rate(section, step, total), section.parts
        return tree.map_with_name(lambda name, leaf: factor * parts.get(name.split('/')[0], 1.0) * leaf, updates), step + 1

    return optax.chain(
        optax.scale_by_adam(b1=section.b1, b2=section.b2, eps=section.eps),
        optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), scale),
    )


def lazy_adam(*, learning_rate: float, interval: int, b1: float = 0.0, b2: float = 0.99) -> optax.GradientTransformation:
    """Adam of a network that is regularised every `interval` steps (StyleGAN2, arXiv 1912.04958, App. B).

    With r = k / (k + 1), learning rate lr r and decays b ** r: each of the k + 1 moves in k iterations counts as r of one.
    """
    ratio = interval / (interval + 1.0)
    return optax.adam(learning_rate * ratio, b1=b1**ratio, b2=b2**ratio, eps=1e-8)


AVERAGE_RAMPUP = 0.05  # of a GAN's average: the greatest share of the images shown that its half-life takes


def average_images(batch: int) -> float:
    """Half-life of a GAN's average in images by StyleGAN2-ADA's rule, 10,000 for 32 of the batch (2006.06676, App. C)."""
    return batch * 10_000.0 / 32.0


def ema_decay_of_images(images, batch: int, half_life: float, rampup: float = AVERAGE_RAMPUP):
    """Decay of a GAN's average for an iteration at `images` shown: of the half-life, or of `rampup` of those shown.

    The smaller of the two counts; 0, a plain copy, at the start. Traced.
    """
    half_life = jnp.minimum(half_life, rampup * images)
    return 0.5 ** (batch / jnp.maximum(half_life, 1e-8))


# ------------------------------------------------------------------------------------------------------ the tail of a step


def trained(params: PyTree, frozen: tuple[str, ...]) -> PyTree:
    """The parts of the parameters that the optimizer sees: all but the `frozen` ones, which weight decay must not move."""
    return {name: part for name, part in params.items() if name not in frozen}


def update(optimizer, state: TrainState, grads: PyTree, frozen: tuple[str, ...] = ()) -> tuple[PyTree, PyTree]:
    """(parameters, optimizer state) after one step by `grads`, which are of `trained(params, frozen)`."""
    moving = trained(state.params, frozen)
    updates, opt_state = optimizer.update(grads, state.opt_state, moving)
    return {**state.params, **jax.tree.map(jnp.add, moving, updates)}, opt_state


def advance(config, state: TrainState, params: PyTree, opt_state: PyTree, metrics: Metrics) -> tuple[TrainState, Metrics]:
    """(the next state with its average of the parameters, the metrics with the learning rate)."""
    average = tree.ema(state.ema, params, ema_decay(state.step, config.ema_decay))
    lr = rate(config.optimizer, state.step, config.steps)
    return TrainState(state.step + 1, params, opt_state, average, state.extras), {**metrics, 'lr': lr}
