"""Samplers: from noise to data (and back) by repeated prediction, each one `lax.scan`.

`predict(x, t)` returns the network's output in the schedule's prediction type. x is a float32 array [B, ...] of any rank: a
sampler only knows that the first axis counts objects. t is a scalar, int32 except in `heun`. All begin from standard normal
noise, whatever scale they work in, and end at x_0, so that one may be put in another's place. Options they share:

    steps     number of steps; static, as is `spacing`
    spacing   'leading', 'trailing' or 'linspace' (arXiv 2305.08891, Table 2); None: the schedule's
    project   function of x_0 at every step; None: what the schedule asks for (`guidance.projection`)
    key       a typed PRNG key, or the normal draws themselves, [steps, *x.shape]
    scan      how the steps are run: `last` returns where they end, `path` also every state on the way
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
    """[steps] falling integer times out of 0 .. length-1, as diffusers' DDIM and DDPM space them.

    One departure: for some odd numbers of steps (61 and 103 of 1000, ...) diffusers' 'trailing' has one time too many, -1.
    """
    _check(length, steps, spacing)
    if spacing == 'leading':
        return _offset(np.arange(steps)[::-1] * (length // steps), offset, length)
    if spacing == 'trailing':
        return np.round(np.arange(length, 0, -length / steps)[:steps]).astype(np.int64) - 1
    return np.round(np.linspace(0, length - 1, steps))[::-1].astype(np.int64)


def solver_timesteps(length: int, steps: int, spacing: str, offset: int = 0) -> np.ndarray:
    """`timesteps` as diffusers' multistep solvers have them: one more is spaced and the lowest left out.

    'leading' divides the length by steps + 1 and rounds down, so 20 of 1000 start at 941: prefer the other two. As many steps
    as times take every time once, where diffusers takes one twice and divides by the zero between them.
    """
    _check(length, steps, spacing)
    if steps == length:
        return _offset(np.arange(length)[::-1], offset if spacing == 'leading' else 0, length)
    if spacing == 'leading':
        return _offset(np.arange(steps + 1)[:0:-1] * (length // (steps + 1)), offset, length)
    if spacing == 'trailing':
        return timesteps(length, steps, spacing)
    return np.round(np.linspace(0, length - 1, steps + 1))[:0:-1].astype(np.int64)


def _check(length: int, steps: int, spacing: str) -> None:
    if spacing not in SPACINGS:
        raise UsageError(f'Unknown spacing {spacing!r}: choose one of {", ".join(map(repr, SPACINGS))}.')
    if not 1 <= steps <= length:
        raise UsageError(f'{steps} steps of a model trained at {length} times: choose 1 to {length}.')


def _offset(times: np.ndarray, offset: int, length: int) -> np.ndarray:
    if times[0] + offset >= length:
        raise UsageError(
            f'{len(times)} steps spaced "leading" with offset {offset} start at t = {times[0] + offset}, '
            f'of 0 to {length - 1}: take fewer steps, or another spacing.'
        )
    return times + offset


def intervals(schedule: Schedule, steps: int, spacing: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(times, ends) of DDIM's steps, [steps] each; the end -1 is the clean one.

    `schedule.aligned`: a step ends where the next begins. Otherwise at t - T // steps, as in diffusers' DDIM: the same for
    'leading', and for 'trailing' where steps divides T. With 'linspace' diffusers' steps do not meet: of 10, the first ends
    at the noise of t = 899 and the second takes it for t = 888.
    """
    times = timesteps(schedule.length, steps, spacing or schedule.spacing, schedule.steps_offset)
    if schedule.aligned:
        return times, np.append(times[1:], -1)
    return times, np.maximum(times - schedule.length // steps, -1)


def last(step: Callable, x, inputs, memory=None):
    """x after `x, memory = step(x, memory, row)` for each row of the inputs."""
    return jax.lax.scan(lambda state, row: (step(*state, row), None), (x, memory), inputs)[0][0]


def path(step: Callable, x, inputs, memory=None):
    """(x after the last step, [steps, *x.shape] x after each)."""

    def body(state, row):
        state = step(*state, row)
        return state, state[0]

    (x, _), states = jax.lax.scan(body, (x, memory), inputs)
    return x, states


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
    rederive: bool = False,
    scan: Callable = last,
):
    """DDIM (arXiv 2010.02502, Eq. 12 and 16): x <- a' x_0 + sqrt(s'^2 - sig^2) eps + sig z.

    Args:
        x: [B, ...] standard normal noise.
        eta: sig = eta s'/s sqrt(1 - a^2/a'^2): 0 deterministic, 1 as noisy as DDPM. Static; above 0 it wants a `key`.
        rederive: take eps from x_t and the projected x_0, as Glide does; diffusers (and False) keep the network's eps.
    """
    times, ends = intervals(schedule, steps, spacing)
    project = project or guidance.projection(schedule)
    levels, ends = _levels(schedule, times), _levels(schedule, ends, schedule.alpha_to_one)
    if eta and key is None:
        raise UsageError(f'eta = {eta} adds noise at each step: give key=jax.random.key(...), or eta=0.')
    draws = _draws(key, steps, x) if eta else jnp.zeros(steps, jnp.float32)

    def step(x, memory, row):
        t, (a, s), (a_end, s_end), draw = row
        output = predict(x, t)
        x0 = project(schedules.x0_of(schedule.prediction, output, x, a, s))
        eps = (x - a * x0) / s if rederive else schedules.eps_of(schedule.prediction, output, x, a, s)
        if not eta:
            return a_end * x0 + s_end * eps, memory
        spread = eta * s_end / s * jnp.sqrt(_beta(a, s, a_end, s_end))
        direction = jnp.sqrt(jnp.maximum(s_end**2 - spread**2, 0.0))
        return a_end * x0 + direction * eps + spread * _normal(draw, x), memory

    return scan(step, x, (jnp.asarray(times, jnp.int32), levels, ends, draws))


def ddim_invert(predict: Callable, schedule: Schedule, x0, *, steps: int, spacing: str | None = None, scan: Callable = last):
    """The noise from which `ddim` leads to x_0: DDIM's steps with begin and end swapped, in the reverse order.

    Each step asks the network about the cleaner latent at the noisier time, so `ddim(ddim_invert(x))` is x exactly only if
    the prediction does not depend on x; otherwise the error falls as 1 / steps. Nothing is clipped. A network that predicts
    x_0 is taken at its word for the noisier level, since a clean latent with x_0 says nothing of eps.
    """
    times, ends = intervals(schedule, steps, spacing)
    noisy, clean = _levels(schedule, times[::-1]), _levels(schedule, ends[::-1], schedule.alpha_to_one)

    def step(x, memory, row):
        t, (a, s), (a_clean, s_clean) = row
        at = (a, s) if schedule.prediction == 'x0' else (a_clean, s_clean)
        eps = schedules.eps_of(schedule.prediction, predict(x, t), x, *at)
        return a * (x - s_clean * eps) / a_clean + s * eps, memory

    return scan(step, x0, (jnp.asarray(times[::-1].copy(), jnp.int32), noisy, clean))


def ddpm(
    predict: Callable,
    schedule: Schedule,
    x,
    *,
    steps: int,
    key,
    spacing: str | None = None,
    variance: str = 'small',
    project: Callable | None = None,
    scan: Callable = last,
):
    """DDPM's ancestral sampling (arXiv 2006.11239, Eq. 6-7 and Alg. 2), from one of the chosen times to the next.

    Args:
        x: [B, ...] standard normal noise.
        variance: 'small', the posterior's for a known x_0, or 'large', beta (Sec. 3.2 there). The last step adds none.
    """
    if variance not in ('small', 'large'):
        raise UsageError(f"Unknown variance {variance!r}: choose 'small' or 'large'; learned variances are not sampled.")
    times = timesteps(schedule.length, steps, spacing or schedule.spacing, schedule.steps_offset)
    project = project or guidance.projection(schedule)
    levels, ends = _levels(schedule, times), _levels(schedule, np.append(times[1:], -1), True)

    def step(x, memory, row):
        t, (a, s), (a_end, s_end), draw = row
        x0 = project(schedules.x0_of(schedule.prediction, predict(x, t), x, a, s))
        beta = _beta(a, s, a_end, s_end)
        mean = a_end * beta / s**2 * x0 + (a / a_end) * (s_end / s) ** 2 * x
        spread = (s_end / s if variance == 'small' else jnp.where(s_end > 0.0, 1.0, 0.0)) * jnp.sqrt(beta)
        return mean + spread * _normal(draw, x), memory

    return scan(step, x, (jnp.asarray(times, jnp.int32), levels, ends, _draws(key, steps, x)))


def dpm_solver_2m(
    predict: Callable,
    schedule: Schedule,
    x,
    *,
    steps: int,
    spacing: str = 'linspace',
    project: Callable | None = None,
    scan: Callable = last,
):
    """DPM-Solver++(2M) (arXiv 2211.01095, Alg. 2), in half as many steps as DDIM or fewer; deterministic.

    x <- s'/s x - a' (exp(-h) - 1) D with h the step in log(a/s) and D = x_0 + h / (2 h_before) (x_0 - x_0_before). The first
    step is of first order, and so is the last, which ends at no noise. Times: `solver_timesteps`.

    Args:
        x: [B, ...] standard normal noise.
        spacing: not the schedule's unless said; see `solver_timesteps` for 'leading'. Or 'karras': noise levels of
            `karras_sigmas` over the schedule's whole range, at the nearest whole times, as diffusers' `use_karras_sigmas`.
    """
    if spacing == 'karras':
        _check(schedule.length, steps, 'linspace')
        sigmas = _karras_of(schedule, steps)[:-1]
        times, a = jnp.round(schedules.sigma_to_t(schedule, sigmas)), jax.lax.rsqrt(1.0 + sigmas**2)
        s = a * sigmas
    else:
        times = solver_timesteps(schedule.length, steps, spacing, schedule.steps_offset)
        a, s = _floored(schedule, *_levels(schedule, times))
    project = project or guidance.projection(schedule)
    log_ratio = jnp.log(a) - jnp.log(s)
    h = jnp.diff(log_ratio)  # [steps - 1]
    # h_i / (2 h_(i-1)); 0, first order, at the first step and at the last, where h is infinite
    lean = jnp.concatenate([jnp.zeros(1, jnp.float32), 0.5 * h[1:] / h[:-1], jnp.zeros(1, jnp.float32)])[:steps]
    ends = (jnp.append(a[1:], 1.0), jnp.append(s[1:], 0.0))

    def step(x, before, row):
        t, (a, s), (a_end, s_end), lean = row
        x0 = project(schedules.x0_of(schedule.prediction, predict(x, t), x, a, s))
        ratio = s_end / s
        return ratio * x + (a_end - ratio * a) * (x0 + lean * (x0 - before)), x0

    return scan(step, x, (jnp.asarray(times, jnp.int32), (a, s), ends, lean), jnp.zeros_like(x))


def karras_sigmas(steps: int, sigma_min, sigma_max, rho: float = 7.0):
    """[steps + 1] noise levels of EDM, sigma_max to sigma_min and then 0 (arXiv 2206.00364, Eq. 5)."""
    ramp = jnp.linspace(0.0, 1.0, steps, dtype=jnp.float32)
    low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
    return jnp.append((high + ramp * (low - high)) ** rho, 0.0)


def heun(
    predict: Callable,
    schedule: Schedule,
    x,
    *,
    steps: int,
    sigmas=None,
    churn: float = 0.0,
    churn_range: tuple[float, float] = (0.0, float('inf')),
    churn_noise: float = 1.0,
    key=None,
    project: Callable | None = None,
    scan: Callable = last,
):
    """EDM's stochastic Heun sampler (arXiv 2206.00364, Alg. 2) around a variance-preserving network; 2 steps - 1 predictions.

    The latent here is x / a = x_0 + sigma eps with sigma = s/a; the network is given a x at the real time of that sigma.

    Args:
        x: [B, ...] standard normal noise; scaled by sqrt(1 + sigma_max^2) within.
        sigmas: [steps + 1] falling to 0; None: `karras_sigmas` over the schedule's whole range.
        churn: S_churn; noise is raised by min(churn / steps, sqrt 2 - 1) before each step with sigma in `churn_range`. Static.
        churn_noise: S_noise, the deviation of the noise so added.
    """
    project = project or guidance.projection(schedule)
    if sigmas is None:
        sigmas = _karras_of(schedule, steps)
    if jnp.shape(sigmas) != (steps + 1,):
        raise UsageError(f'sigmas of shape {jnp.shape(sigmas)} for {steps} steps: wanted {steps + 1}, the last of them 0.')
    if churn and key is None:
        raise UsageError(f'churn = {churn} adds noise at each step: give key=jax.random.key(...), or churn=0.')
    draws = _draws(key, steps, x) if churn else jnp.zeros(steps, jnp.float32)
    raised = min(churn / steps, 2.0**0.5 - 1.0)

    def look(x, sigma):
        """(x_0, slope (x - x_0) / sigma): the network's own eps, and what the projection took away; x - x_0 loses digits."""
        a = jax.lax.rsqrt(1.0 + sigma**2)
        at = (schedule.prediction, predict(a * x, schedules.sigma_to_t(schedule, sigma)), a * x, a, a * sigma)
        raw = schedules.x0_of(*at)
        x0 = project(raw)
        return x0, schedules.eps_of(*at) + (raw - x0) / sigma

    def step(x, memory, row):
        sigma, end, draw = row
        if churn:
            inside = (sigma >= churn_range[0]) & (sigma <= churn_range[1])
            x = x + jnp.where(inside, churn_noise * (raised * (2.0 + raised)) ** 0.5 * sigma, 0.0) * _normal(draw, x)
            sigma = sigma * (1.0 + jnp.where(inside, raised, 0.0))
        x0, slope = look(x, sigma)
        euler = x0 + end * slope  # x + (end - sigma) slope, which would lose x_0's digits where sigma is large

        def corrected():
            return x + 0.5 * (end - sigma) * (slope + look(euler, end)[1])

        return jax.lax.cond(end > 0.0, corrected, lambda: euler), memory

    return scan(step, x * jnp.sqrt(1.0 + sigmas[0] ** 2), (sigmas[:-1], sigmas[1:], draws))


def _karras_of(schedule: Schedule, steps: int):
    """`karras_sigmas` over the schedule's whole range."""
    ends = jnp.array([0, -1])
    signal, noise = _floored(schedule, schedule.signal[ends], schedule.noise[ends])
    return karras_sigmas(steps, *(noise / signal))


def _levels(schedule: Schedule, times: np.ndarray, end_at_one: bool = True):
    """(a, s) at integer times; at -1, those of no noise at all or of t = 0."""
    at = np.maximum(times, 0)
    signal, noise = schedule.signal[at], schedule.noise[at]
    if end_at_one:
        signal, noise = jnp.where(times < 0, 1.0, signal), jnp.where(times < 0, 0.0, noise)
    return signal, noise


def _floored(schedule: Schedule, signal, noise):
    """The levels with `schedules.least_signal` for a_t = 0, and s_t to match; others are the table's own, however small."""
    least = schedules.least_signal(schedule)
    return jnp.where(signal > 0.0, signal, least), jnp.where(signal > 0.0, noise, jnp.sqrt(1.0 - least**2))


def _beta(a, s, a_end, s_end):
    """1 - abar/abar', without the cancellation of float32 where both are near 1."""
    return jnp.where(a > 0.7, (s - s_end) * (s + s_end) / a_end**2, 1.0 - (a / a_end) ** 2)


def _draws(key, steps: int, x):
    """What each step makes its noise of: keys, or the given draws."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return jax.random.split(key, steps)
    if key.shape != (steps, *x.shape):
        raise UsageError(
            f'key is an array of shape {key.shape}: wanted a typed key (jax.random.key), or draws of shape {(steps, *x.shape)}.'
        )
    return key


def _normal(draw, x):
    return jax.random.normal(draw, x.shape, x.dtype) if jnp.issubdtype(draw.dtype, jax.dtypes.prng_key) else draw
