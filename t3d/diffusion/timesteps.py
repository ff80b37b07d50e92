"""The t of score distillation: draws of each view from keys of its own, and how their range moves during training.

Times are told in thousandths of a schedule's length, so that [20, 980] is DreamFusion's range [.02, .98] for any prior. What
changes with the step is traced: a range that is annealed compiles once.
"""

import jax
import jax.numpy as jnp

from t3d.core.typing import Key
from t3d.diffusion.schedules import Schedule

LOW, HIGH = 20, 980  # arXiv 2209.14988


def view_keys(key: Key, index) -> Key:
    """Keys [B] of views with global indices int [B]: however the batch is laid over devices, a view draws the same."""
    return jax.vmap(lambda one: jax.random.fold_in(key, one))(jnp.asarray(index).astype(jnp.uint32))


def draw(keys: Key, schedule: Schedule, shape: tuple[int, ...], low=LOW, high=HIGH) -> tuple[jax.Array, jax.Array]:
    """(t [B] int32, noise [B, *shape] float32) of views with keys [B].

    Args:
      shape: of one z.
      low, high: in thousandths, inclusive; numbers, or traced ones of `anneal_step`, `anneal_sqrt`.
    """
    low, high = of_thousandths(schedule, low), of_thousandths(schedule, high)

    def one(key):
        key_t, key_noise = jax.random.split(key)
        t = jax.random.randint(key_t, (), low, jnp.maximum(low, high) + 1, jnp.int32)
        return t, jax.random.normal(key_noise, shape, jnp.float32)

    return jax.vmap(one)(keys)


def of_thousandths(schedule: Schedule, part):
    """int32 time of a schedule, 0 to T - 1, from thousandths of its length."""
    t = jnp.round(jnp.asarray(part, jnp.float32) * (schedule.length / 1000.0))
    return jnp.clip(t, 0, schedule.length - 1).astype(jnp.int32)


def anneal_step(step, before, after, at):
    """`before` until step `at`, then `after`: ProlificDreamer's 980 -> 500 at step 5,000 (arXiv 2305.16213)."""
    return jnp.where(step < at, before, after)


def anneal_sqrt(step, total, low=LOW, high=HIGH):
    """high - (high - low) sqrt(step / total), real: HiFA's time of a step (arXiv 2305.18766), or an upper end."""
    share = jnp.clip(jnp.asarray(step, jnp.float32) / total, 0.0, 1.0)
    return high - (high - low) * jnp.sqrt(share)


def linear(step, total, low=LOW, high=HIGH):
    """clip(round(1000 (1 - step / total)), low, high): DreamGaussian's one time of a step (arXiv 2309.16653, its code)."""
    left = jnp.clip(total - jnp.asarray(step, jnp.float32), 0.0, total)
    return jnp.clip(jnp.round(left * (1000.0 / total)), low, high)


def stage(step: int, total: int, shares: tuple[float, ...]) -> int:
    """Which stage a step is in, on the host: the number of shares of `total` that it has reached, (.3, .6) of DreamGaussian.

    Stages have other shapes, such as the size of renders, and so are programs of their own (`System.choose`).
    """
    return sum(step >= round(share * total) for share in shares)
