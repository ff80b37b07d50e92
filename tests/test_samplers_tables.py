"""Samplers as users run them, from scheduler files, against diffusers: three tables, every spacing, 1 to all T steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.diffusion import samplers, schedules

T = 60
X = np.random.default_rng(0).standard_normal((1, 3, 4, 2)).astype(np.float32)
SLOPES = np.random.default_rng(1).uniform(0.3, 1.2, X.shape).astype(np.float32)
TABLES = {
    'linear': {'beta_start': 1e-4 * 1000 / T, 'beta_end': 0.02 * 1000 / T},
    'scaled_linear': {'beta_start': 0.00085 * 1000 / T, 'beta_end': 0.012 * 1000 / T},
    'squaredcos_cap_v2': {},
}
STEPS = (1, 2, 31, T - 1, T)
PREDICTIONS = {'eps': 'epsilon', 'v': 'v_prediction', 'x0': 'sample'}


def model(x, t, xp=jnp):
    """Nonlinear in x and t, and different in every element; numpy and jax."""
    return xp.tanh(SLOPES * x + xp.cos(t / 9.0)) - 0.2 * xp.sin(2.0 * x)


def file(name, table, count=T, **fields):
    return {'_class_name': name, 'num_train_timesteps': count, 'beta_schedule': table, **TABLES[table], **fields}


@functools.partial(jax.jit, static_argnames=('name', 'steps', 'spacing'))
def run(schedule, x, *, name, steps, spacing=None):
    options = {} if spacing is None else {'spacing': spacing}
    return getattr(samplers, name)(model, schedule, x, steps=steps, **options)


def theirs(config, steps):
    """Where diffusers' class leads from X with the same file; float64 states but for DPM-Solver, which computes in float32."""
    diffusers, torch = pytest.importorskip('diffusers'), pytest.importorskip('torch')
    cls = getattr(diffusers, config['_class_name'])
    scheduler = cls.from_config({key: value for key, value in config.items() if key != '_class_name'})
    betas = scheduler.betas.numpy().astype(np.float64)  # its own product of float32 numbers has lost digits of small abar
    scheduler.alphas_cumprod = torch.cumprod(1.0 - torch.tensor(betas), 0)
    if scheduler.config.get('set_alpha_to_one') is False:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(steps)
    dtype = torch.float32 if 'DPM' in config['_class_name'] else torch.float64
    x = torch.tensor(X.astype(np.float64)).to(dtype)
    if 'Heun' in config['_class_name'] or 'Euler' in config['_class_name']:
        x = x * (1.0 + float(scheduler.sigmas[0]) ** 2) ** 0.5
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t).numpy().astype(np.float64)
        x = scheduler.step(torch.tensor(model(scaled, float(t), np)).to(dtype), t, x).prev_sample
    return x.numpy()


def solved(schedule, times):
    """DPM-Solver++(2M), arXiv 2211.01095, Alg. 2, as a plain loop in float64 over given times."""
    a, s = np.asarray(schedule.signal, np.float64)[times], np.asarray(schedule.noise, np.float64)[times]
    least = np.sqrt(2.0**-24)
    a, s = np.where(a > 0, a, least), np.where(a > 0, s, np.sqrt(1 - least**2))
    x, before, lam = X.astype(np.float64), None, np.log(a / s)
    for i, t in enumerate(times):
        output = model(x, float(t), np)
        x0 = {'eps': lambda: (x - s[i] * output) / a[i], 'v': lambda: a[i] * x - s[i] * output, 'x0': lambda: output}  # noqa: B023
        x0 = x0[schedule.prediction]()
        if i == len(times) - 1:
            return x0
        h, lean = lam[i + 1] - lam[i], x0
        if before is not None:
            lean = x0 + (x0 - before) * h / (2.0 * (lam[i] - lam[i - 1]))
        x, before = s[i + 1] / s[i] * x - a[i + 1] * np.expm1(-h) * lean, x0


def error(got, expected):
    return np.abs(np.asarray(got) - expected).max() / max(np.abs(expected).max(), 1.0)


@pytest.mark.parametrize('prediction', PREDICTIONS)
@pytest.mark.parametrize('spacing', samplers.SPACINGS)
def test_dpm_solver_from_one_step_to_all(spacing, prediction):
    """Against diffusers where it is finite (up to T - 1 steps), and against the algorithm itself at all T times."""
    for table in TABLES:
        config = file('DPMSolverMultistepScheduler', table, timestep_spacing=spacing, prediction_type=PREDICTIONS[prediction])
        schedule = schedules.from_config(config)
        # At the cosine's end eps leaves x_0 = (x - s eps) / 5e-5 or so, of which float32 keeps three or four digits.
        tolerance = 2e-3 if (table, prediction) == ('squaredcos_cap_v2', 'eps') else 2e-5
        for steps in STEPS:
            got = run(schedule, X, name='dpm_solver_2m', steps=steps, spacing=spacing)
            times = samplers.solver_timesteps(T, steps, spacing)
            assert len(set(times.tolist())) == steps and (steps < T or sorted(times) == list(range(T)))
            assert error(got, solved(schedule, times)) < tolerance, (table, steps)
            if steps < T or spacing == 'trailing':
                assert error(got, theirs(config, steps)) < tolerance, (table, steps)


@pytest.mark.parametrize('name', ['DDIMScheduler', 'EulerDiscreteScheduler'])
@pytest.mark.parametrize('spacing', samplers.SPACINGS)
def test_ddim_of_a_file_ends_where_the_class_of_the_file_does(name, spacing):
    """Nothing is set but what the file says: DDIM's own steps do not meet for some counts, Euler's always do."""
    count = T + 1 if spacing == 'linspace' else T  # so that Euler's fractional times of 7, 31 and 61 steps are whole
    for table in TABLES:
        for prediction in ('v',) if table == 'squaredcos_cap_v2' else ('eps', 'v'):
            config = file(name, table, count, timestep_spacing=spacing, prediction_type=PREDICTIONS[prediction])
            config |= {'set_alpha_to_one': False, 'steps_offset': 0, 'clip_sample': False}  # Euler has two of these not
            for steps in (1, 7, 31, count):
                got = run(schedules.from_config(config), X, name='ddim', steps=steps)
                assert error(got, theirs(config, steps)) < 5e-5, (table, prediction, steps)


def test_ddim_at_the_defaults_of_its_class():
    """A file that says nothing but its class: linear betas, clipped x_0, 'leading', an end at abar = 1; all 1000 steps too."""
    for steps in (1, 25, 50, 333, 1000):
        got = run(schedules.from_config({'_class_name': 'DDIMScheduler'}), X, name='ddim', steps=steps)
        assert error(got, theirs({'_class_name': 'DDIMScheduler'}, steps)) < 2e-5, steps


@pytest.mark.parametrize('prediction', ['eps', 'v'])
def test_heun_over_the_whole_range_of_three_tables(prediction):
    for table in TABLES:
        config = file('HeunDiscreteScheduler', table, use_karras_sigmas=True, prediction_type=PREDICTIONS[prediction])
        schedule = schedules.from_config(config)
        for steps in (7, T - 1, T) if table == 'squaredcos_cap_v2' else (2, 7, T - 1, T):
            got = run(schedule, X, name='heun', steps=steps)
            # Their float32 betas know the cosine's last abar, and so the first sigma, to 6e-5 only.
            assert error(got, theirs(config, steps)) < (5e-4 if table == 'squaredcos_cap_v2' else 5e-5), (table, steps)


@pytest.mark.parametrize('base', [schedules.scaled_linear, schedules.linear, schedules.cosine])
@pytest.mark.parametrize('prediction', ['v', 'x0'])
def test_tables_rescaled_to_zero_snr_are_solved_from_their_last_time(base, prediction):
    """Only their last level is raised; a network that knows x_0 ends at it from any number of steps, by every sampler."""
    schedule = schedules.zero_terminal_snr(base(T, prediction=prediction))
    least = float(schedules.least_signal(schedule))
    assert 0.0 < least <= schedules.LEAST_SIGNAL and least < float(schedule.signal[-2])
    x0 = np.float32(0.3) * SLOPES
    for name, options in (
        ('dpm_solver_2m', {'spacing': 'trailing'}),
        ('dpm_solver_2m', {'spacing': 'karras'}),
        ('ddim', {}),
        ('heun', {}),
    ):
        for steps in (1, T):
            perfect = lambda x, t: _output(schedule, x0, x, t)
            got = jax.jit(functools.partial(getattr(samplers, name), perfect, schedule, steps=steps, **options))(X)
            np.testing.assert_allclose(got, x0, atol=3.0 * schedules.LEAST_SIGNAL, err_msg=f'{name} {options} {steps}')


def _output(schedule, x0, x, t):
    a, s = schedules.levels_like(schedule, t, x)
    return x0 if schedule.prediction == 'x0' else (a * x - x0) / jnp.maximum(s, 1e-6)
