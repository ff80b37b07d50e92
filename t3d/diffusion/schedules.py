"""Noise schedules: how much signal and noise a latent holds at time t, what a network predicts, and the maps between these.

x_t = a_t x_0 + s_t eps with a_t = sqrt(abar_t) and s_t = sqrt(1 - abar_t); v = a_t eps - s_t x_0 (arXiv 2202.00512, App. D).
A network predicts eps, v or x_0: `Schedule.prediction` says which, and only the functions of this file look at it.
Tables are made in float64 and rounded once; s_t near t = 0 therefore keeps digits that 1 - float32(abar) has lost.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from t3d.core.errors import UsageError
from t3d.diffusion import scheduler_files

PREDICTIONS = ('eps', 'v', 'x0')
LEAST_SIGNAL = 2.0**-12  # for a_t = 0, where one has to divide by it: abar 2^-24, as diffusers' solvers have it


@flax.struct.dataclass
class Schedule:
    """Tables over t = 0 .. T-1 (little to much noise), and how the model that was trained with them is to be sampled."""

    alpha_bar: jax.Array  # [T] in [0, 1], falling
    signal: jax.Array  # [T] a_t = sqrt(alpha_bar)
    noise: jax.Array  # [T] s_t = sqrt(1 - alpha_bar)
    log_snr: jax.Array  # [T] log(a_t^2 / s_t^2); -inf where alpha_bar is 0
    prediction: str = flax.struct.field(pytree_node=False, default='eps')  # 'eps', 'v' or 'x0'
    spacing: str = flax.struct.field(pytree_node=False, default='leading')  # of few steps: 'leading', 'trailing', 'linspace'
    steps_offset: int = flax.struct.field(pytree_node=False, default=0)  # added to 'leading' times; Stable Diffusion: 1
    alpha_to_one: bool = flax.struct.field(pytree_node=False, default=True)  # DDIM ends at abar = 1; False: at abar_0
    clip: float | None = flax.struct.field(pytree_node=False, default=None)  # x_0 clipped to +- this while sampling
    threshold: tuple[float, float] | None = flax.struct.field(pytree_node=False, default=None)  # (ratio, largest), Imagen's
    aligned: bool = flax.struct.field(pytree_node=False, default=True)  # see samplers.intervals

    @property
    def length(self) -> int:
        """T, the number of times the model was trained at."""
        return self.alpha_bar.shape[0]


_NO_X0 = (
    "A zero-terminal-SNR schedule with prediction 'eps' has no x_0 at its last time: wanted prediction 'v' or 'x0'. "
    "Make the schedule with prediction='v' if the model was trained to predict v; otherwise train it so."
)


def from_alpha_bar(alpha_bar, prediction: str = 'eps', **sampling) -> Schedule:
    """A schedule from abar_t, [T] float64, in [0, 1] and falling. `sampling`: further fields of `Schedule`."""
    table = np.asarray(alpha_bar, np.float64)
    check_prediction(prediction)
    if table.ndim != 1 or len(table) < 2 or not (table[0] < 1.0 and table[-1] >= 0.0 and np.all(np.diff(table) < 0.0)):
        raise UsageError(
            f'alpha_bar of shape {table.shape} is no schedule: wanted [T], T >= 2, falling from below 1 to not below 0. '
            'Check the betas: each must lie in (0, 1], and only the last may be 1.'
        )
    if prediction == 'eps' and table[-1] == 0.0:
        raise UsageError(_NO_X0)
    with np.errstate(divide='ignore'):
        log_snr = np.log(table) - np.log1p(-table)
    arrays = (table, np.sqrt(table), np.sqrt(1.0 - table), log_snr)
    return Schedule(*(jnp.asarray(array, jnp.float32) for array in arrays), prediction=prediction, **sampling)


def from_betas(betas, prediction: str = 'eps', **sampling) -> Schedule:
    """A schedule from beta_t, [T] in (0, 1]: abar_t = prod(1 - beta)."""
    return from_alpha_bar(np.cumprod(1.0 - np.asarray(betas, np.float64)), prediction, **sampling)


def scaled_linear(
    steps: int = 1000, start: float = 0.00085, end: float = 0.012, prediction: str = 'eps', **sampling
) -> Schedule:
    """Stable Diffusion's: sqrt(beta) linear from sqrt(start) to sqrt(end). (ldm calls this one 'linear'.)"""
    return from_betas(np.linspace(start**0.5, end**0.5, steps) ** 2, prediction, **sampling)


def linear(steps: int = 1000, start: float = 1e-4, end: float = 0.02, prediction: str = 'eps', **sampling) -> Schedule:
    """DDPM's: beta linear (arXiv 2006.11239, Sec. 4). The defaults are for 1000 steps; for others scale by 1000 / steps."""
    return from_betas(np.linspace(start, end, steps), prediction, **sampling)


def cosine(steps: int = 1000, prediction: str = 'eps', **sampling) -> Schedule:
    """abar(u) = cos^2((u + .008) / 1.008 pi/2), each beta at most .999 (arXiv 2102.09672, Eq. 17). Clip x_0 of eps."""
    return from_betas(scheduler_files.cosine_betas(steps), prediction, **sampling)


def from_section(section) -> Schedule:
    """The schedule of a config's `diffusion` section, of a model of pixels: schedule, timesteps, prediction."""
    tables = {'cosine': cosine, 'linear': linear, 'scaled_linear': scaled_linear}
    return tables[section.schedule](section.timesteps, prediction=section.prediction, spacing='trailing', clip=1.0)


def exponential(steps: int = 1000, rate: float = 12.0, prediction: str = 'eps', **sampling) -> Schedule:
    """abar(u) = exp(-rate u): Shap-E's, with its rate (arXiv 2305.02463)."""
    return from_betas(scheduler_files.exponential_betas(steps, rate), prediction, **sampling)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Shifts and scales sqrt(abar) so that the last is 0 and the first stays (arXiv 2305.08891, Alg. 1); sample it 'trailing'.

    At the last time x_T is pure noise, from which eps says nothing about x_0: predictions of eps are refused.
    """
    table = _zero_terminal(np.asarray(schedule.alpha_bar, np.float64), schedule.prediction)
    return _with_table(schedule.replace(spacing='trailing'), table)


def _zero_terminal(alpha_bar: np.ndarray, prediction: str) -> np.ndarray:
    if prediction == 'eps':
        raise UsageError(_NO_X0)
    root = np.sqrt(alpha_bar)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def shifted(schedule: Schedule, resolution: int, base: int = 64) -> Schedule:
    """log SNR + 2 log(base / resolution): as noisy at `resolution` as the schedule is at `base` pixels.

    Source: arXiv 2301.11093, Sec. 3.1. Averaging (resolution / base)^2 pixels gives the base schedule back.
    """
    log_snr = np.asarray(schedule.log_snr, np.float64) + 2.0 * np.log(base / resolution)
    return _with_table(schedule, 1.0 / (1.0 + np.exp(-log_snr)))


def cosine_log_snr(u, low: float = -15.0, high: float = 15.0):
    """log SNR = -2 log tan(pi u / 2) of real u in [0, 1], cut to [low, high] (arXiv 2301.11093, App. A)."""
    first, final = jnp.arctan(jnp.exp(-0.5 * high)), jnp.arctan(jnp.exp(-0.5 * low))
    return -2.0 * jnp.log(jnp.tan(first + u * (final - first)))


def _with_table(schedule: Schedule, alpha_bar: np.ndarray) -> Schedule:
    made = from_alpha_bar(alpha_bar, schedule.prediction)
    return schedule.replace(alpha_bar=made.alpha_bar, signal=made.signal, noise=made.noise, log_snr=made.log_snr)


def check_prediction(prediction: str) -> None:
    """UsageError unless it is 'eps', 'v' or 'x0'."""
    if prediction not in PREDICTIONS:
        raise UsageError(f'Unknown prediction {prediction!r}: choose one of {", ".join(map(repr, PREDICTIONS))}.')


def from_config(config: dict) -> Schedule:
    """The schedule of a diffusers `scheduler_config.json`, read as a dict.

    Read are the table, the prediction type, spacing and offset, and what DDIM does to x_0, at its end and from step to step;
    the choice of a sampler is not. Fields that are left out mean what the class named in the file takes them to be, and fields
    that the class does not have mean nothing (`scheduler_files.CLASSES`).

    Raises:
        UsageError: a class, field or value that is not known or not implemented, by name.
    """
    field = scheduler_files.read(config)
    prediction = scheduler_files.PREDICTIONS[field['prediction_type']]
    alpha_bar = scheduler_files.alpha_bar(field)
    if field['rescale_betas_zero_snr']:
        alpha_bar = _zero_terminal(alpha_bar, prediction)
    return from_alpha_bar(
        alpha_bar,
        prediction,
        spacing=field['timestep_spacing'],
        steps_offset=field['steps_offset'],
        alpha_to_one=field['set_alpha_to_one'],
        clip=float(field['clip_sample_range']) if field['clip_sample'] else None,
        threshold=(field['dynamic_thresholding_ratio'], field['sample_max_value']) if field['thresholding'] else None,
        aligned=config['_class_name'] not in scheduler_files.UNALIGNED,
    )


def levels(schedule: Schedule, t):
    """(a_t, s_t) at t of any shape: integers look the tables up; real t in [0, T-1] has log SNR linear between the entries.

    Near t = 0 that is within 4 % of the sigma of a finer schedule. A zero SNR counts as `least_signal` squared for real t.
    """
    t = jnp.asarray(t)
    if jnp.issubdtype(t.dtype, jnp.integer):
        return schedule.signal[t], schedule.noise[t]
    between = log_snr(schedule, t)
    return jnp.sqrt(jax.nn.sigmoid(between)), jnp.sqrt(jax.nn.sigmoid(-between))


def levels_like(schedule: Schedule, t, x):
    """`levels` of t, a scalar or [B], with trailing axes of size 1 so that they multiply x, [B, ...]."""
    t = jnp.asarray(t)
    return tuple(level.reshape(t.shape + (1,) * (x.ndim - t.ndim)) for level in levels(schedule, t))


def q_sample(schedule: Schedule, x0, t, noise):
    """x_t = a_t x_0 + s_t noise. t: scalar or [B]; x0, noise: [B, ...]."""
    signal, sigma = levels_like(schedule, t, x0)
    return signal * x0 + sigma * noise


def to_x0(schedule: Schedule, output, x, t):
    """x_0 from what the network said of x_t; with 'eps' infinite where abar_t is 0."""
    return x0_of(schedule.prediction, output, x, *levels_like(schedule, t, x))


def to_eps(schedule: Schedule, output, x, t):
    """eps from what the network said of x_t."""
    return eps_of(schedule.prediction, output, x, *levels_like(schedule, t, x))


def to_v(schedule: Schedule, output, x, t):
    """v = a eps - s x_0 from what the network said of x_t."""
    if schedule.prediction == 'v':
        return output
    signal, sigma = levels_like(schedule, t, x)
    if schedule.prediction == 'eps':
        return (output - sigma * x) / signal
    return (signal * x - output) / sigma


def from_x0(schedule: Schedule, x0, x, t):
    """The output, in the schedule's prediction type, that means x_0 at x_t: inverse of `to_x0`."""
    signal, sigma = levels_like(schedule, t, x)
    return {'x0': lambda: x0, 'eps': lambda: (x - signal * x0) / sigma, 'v': lambda: (signal * x - x0) / sigma}[
        schedule.prediction
    ]()


def x0_of(prediction: str, output, x, signal, sigma):
    """x_0 from an output at given levels."""
    if prediction == 'eps':
        return (x - sigma * output) / signal
    return signal * x - sigma * output if prediction == 'v' else output


def eps_of(prediction: str, output, x, signal, sigma):
    """eps from an output at given levels."""
    if prediction == 'x0':
        return (x - signal * output) / sigma
    return sigma * x + signal * output if prediction == 'v' else output


def snr(schedule: Schedule, t):
    """a_t^2 / s_t^2."""
    signal, sigma = levels(schedule, t)
    return (signal / sigma) ** 2


def log_snr(schedule: Schedule, t):
    """log(a_t^2 / s_t^2); -inf where abar_t is 0, for integer t."""
    t = jnp.asarray(t)
    if jnp.issubdtype(t.dtype, jnp.integer):
        return schedule.log_snr[t]
    return jnp.interp(t, jnp.arange(schedule.length, dtype=jnp.float32), _finite(schedule))


def sigma_to_t(schedule: Schedule, sigma):
    """The real time in [0, T-1] at which s/a is sigma, as `levels` has it between the entries; beyond them the ends."""
    return jnp.interp(2.0 * jnp.log(sigma), -_finite(schedule), jnp.arange(schedule.length, dtype=jnp.float32))


def least_signal(schedule: Schedule):
    """What stands for a_t = 0, of a table rescaled to zero terminal SNR: LEAST_SIGNAL, or half of the level before if less."""
    return jnp.minimum(LEAST_SIGNAL, 0.5 * schedule.signal[-2])


def _finite(schedule: Schedule):
    least = least_signal(schedule)
    return jnp.where(schedule.signal > 0.0, schedule.log_snr, 2.0 * jnp.log(least) - jnp.log1p(-(least**2)))
