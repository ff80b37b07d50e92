"""Denoising losses, their weights, and draws of t."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from t3d.core import prng
from t3d.diffusion import schedules
from t3d.diffusion.schedules import Schedule


class Denoising(NamedTuple):
    """A loss and what it was made of."""

    loss: jax.Array  # [] weighted mean
    each: jax.Array  # [B] unweighted mean squared error of each object
    t: jax.Array  # [B] int32


def target(schedule: Schedule, x0, t, noise):
    """What the network should say of x_t: noise, v or x_0."""
    if schedule.prediction == 'eps':
        return noise
    if schedule.prediction == 'x0':
        return x0
    signal, sigma = schedules.levels_like(schedule, t, x0)
    return signal * noise - sigma * x0


def mse(output, target, weights=None):
    """Mean squared error in float32. weights: [B], each multiplying its object's mean."""
    each = per_object(output, target)
    return jnp.mean(each if weights is None else weights * each)


def per_object(output, target):
    """[B] mean squared error of each object, in float32."""
    square = jnp.square(output.astype(jnp.float32) - target.astype(jnp.float32))
    return jnp.mean(square, axis=tuple(range(1, square.ndim)))


def min_snr(schedule: Schedule, t, gamma: float = 5.0, least: float = 0.0):
    """Weights min(SNR, gamma) / SNR for eps, / (SNR + 1) for v, and itself for x0 (arXiv 2303.09556, Sec. 3.4 and App.).

    All three are the same weighting of the error of x_0. Never on top of a loss of a learned variance.

    Args:
        least: SNR below it counts as `least`. With 0 nothing is learned of x_0 from pure noise, though text and cameras may
            tell much of it; 1 is the truncated SNR of arXiv 2202.00512, Sec. 4. Not for eps, whose error says nothing there.
    """
    signal, sigma = schedules.levels(schedule, t)
    ratio = (signal / sigma) ** 2
    if schedule.prediction == 'eps':
        return jnp.minimum(1.0, gamma * (sigma / signal) ** 2)  # 1, not 0 / 0, at zero SNR
    return jnp.clip(ratio, least, gamma) * (sigma**2 if schedule.prediction == 'v' else 1.0)


def draw_t(key, batch: int, length: int, stratified: bool = False):
    """[B] int32 in [0, length): independent draws, or one of each of B equal strata in random order (lower variance)."""
    if not stratified:
        return jax.random.randint(key, (batch,), 0, length, jnp.int32)
    key_shift, key_order = jax.random.split(key)
    u = (jnp.arange(batch) + jax.random.uniform(key_shift, (batch,), jnp.float32)) / batch
    t = jnp.minimum((u * length).astype(jnp.int32), length - 1)
    return jax.random.permutation(key_order, t)


def denoising(
    predict: Callable,
    schedule: Schedule,
    x0,
    key,
    *,
    gamma: float | None = None,
    least: float = 0.0,
    stratified: bool = True,
) -> Denoising:
    """Noises x_0 at random t and asks `predict(x_t, t)` for the target (arXiv 2006.11239, Alg. 1).

    Args:
        x0: [B, ...].
        gamma, least: of the min-SNR weights; gamma None: all 1.
    """
    key_t, key_noise = jax.random.split(key)
    t = draw_t(key_t, x0.shape[0], schedule.length, stratified)
    noise = prng.rows(key_noise, x0.shape)
    output = predict(schedules.q_sample(schedule, x0, t, noise), t)
    each = per_object(output, target(schedule, x0, t, noise))
    weights = 1.0 if gamma is None else min_snr(schedule, t, gamma, least)
    return Denoising(jnp.mean(weights * each), each, t)
