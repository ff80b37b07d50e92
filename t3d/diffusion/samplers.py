"""Samplers: from noise to data by repeated prediction, each one `lax.scan`.

`predict(x, t)` returns the network's output in the schedule's prediction type; x is a float32 array [B, ...] of any rank, of
which a sampler only knows that the first axis counts objects. t is a scalar.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core.errors import UsageError
from t3d.diffusion import guidance, schedules
from t3d.diffusion.schedules import Schedule

SPACINGS = ('leading', 'trailing', 'linspace')


def timesteps(length: int, steps: int, spacing: str, offset: int = 0) -> np.ndarray:
    """[steps] falling integer times out of 0 .. length-1, as diffusers spaces them (names: arXiv 2305.08891, Table 2)."""
    if spacing not in SPACINGS:
        raise UsageError(f'Unknown spacing {spacing!r}: choose one of {", ".join(map(repr, SPACINGS))}.')
    if not 1 <= steps <= length:
        raise UsageError(f'{steps} steps of a model trained at {length} times: choose 1 to {length}.')
    if spacing == 'leading':
        times = np.arange(steps)[::-1] * (length // steps) + offset
    elif spacing == 'trailing':
        times = np.round(np.arange(length, 0, -length / steps)[:steps]).astype(np.int64) - 1
    else:
        times = np.round(np.linspace(0, length - 1, steps))[::-1].astype(np.int64)
    if times[0] >= length:
        raise UsageError(
            f'{steps} steps spaced "leading" with offset {offset} start at t = {times[0]}, '
            f'of 0 to {length - 1}: take fewer steps or offset 0.'
        )
    return times


def last(step: Callable, x, inputs):
    """Runs the steps and returns where they end."""
    return jax.lax.scan(lambda state, given: (step(state, given), None), x, inputs)[0]


def ddim(
    predict: Callable,
    schedule: Schedule,
    x,
    *,
    steps: int,
    spacing: str | None = None,
    eta: float = 0.0,
    key=None,
    project: Callable | None = None,
):
    """DDIM (arXiv 2010.02502, Eq. 12 and 16).

    Args:
        x: noise at the first time, standard normal.
        spacing: None for the schedule's.
        eta: 0 deterministic, 1 as noisy as DDPM; then `key` is wanted.
        key: a PRNG key, or the draws themselves, [steps, *x.shape].
        project: function of x_0 at each step; None for the schedule's clip or threshold.
    """
    times = timesteps(schedule.length, steps, spacing or schedule.spacing, schedule.steps_offset)
    project = project or guidance.projection(schedule)
    end = (1.0, 0.0) if schedule.alpha_to_one else (schedule.signal[0], schedule.noise[0])
    signal, sigma = schedule.signal[times], schedule.noise[times]
    inputs = (jnp.asarray(times, jnp.int32), signal, sigma, jnp.append(signal[1:], end[0]), jnp.append(sigma[1:], end[1]))

    def step(x, given):
        t, a, s, a_next, s_next = given
        output = predict(x, t)
        eps = schedules.eps_of(schedule.prediction, output, x, a, s)
        return a_next * project(schedules.x0_of(schedule.prediction, output, x, a, s)) + s_next * eps

    if eta:
        raise UsageError('eta is not there yet.')
    return last(step, x, inputs)
