"""Samplers on Gaussian data, for which the best network and the ODE's solution are known: their orders and their statistics.

For data N(m, d^2) the optimal eps is s (x - a m) / (a^2 d^2 + s^2), and the ODE keeps (x - a m) / sqrt(a^2 d^2 + s^2).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from t3d.diffusion import samplers, schedules

MEAN, SPREAD = 0.7, 0.3


def run(sampler, schedule, x, **options):
    predict = gaussian(schedule)
    return np.asarray(jax.jit(functools.partial(sampler, predict, schedule, **options))(jnp.asarray(x)))


def gaussian(schedule):
    """The optimal eps."""

    def predict(x, t):
        a, s = schedules.levels(schedule, t)
        return s * (x - a * MEAN) / (a**2 * SPREAD**2 + s**2)

    return predict


def constant_of(x, a, s):
    """What the probability-flow ODE keeps for Gaussian data."""
    return (x - a * MEAN) / np.sqrt(a**2 * SPREAD**2 + s**2)


def test_ddim_and_inversion_errors_halve_on_gaussians():
    """First order in 1 / N, and near the figures that were measured for this case."""
    table = schedules.scaled_linear(steps_offset=1, alpha_to_one=False)
    x = np.random.default_rng(5).standard_normal((4096, 1)).astype(np.float32)
    a, s = (np.asarray(level, np.float64) for level in (table.signal, table.noise))
    errors = {}
    for steps in (25, 50, 100, 200):
        first = samplers.timesteps(1000, steps, 'leading', 1)[0]
        out = run(samplers.ddim, table, x, steps=steps)
        exact = a[0] * MEAN + np.sqrt(a[0] ** 2 * SPREAD**2 + s[0] ** 2) * constant_of(x, a[first], s[first])
        data = (MEAN + SPREAD * x).astype(np.float32)
        noise = run(samplers.ddim_invert, table, data, steps=steps)
        back = run(samplers.ddim, table, noise, steps=steps)
        errors[steps] = rms(out - exact), rms(back - data), out.std()
    for steps in (25, 50, 100):
        for i in range(2):
            assert 1.6 < errors[steps][i] / errors[2 * steps][i] < 2.4, errors
    assert errors[50][0] < 2 * 2.3e-2 and errors[50][1] < 2 * 3.2e-2 and abs(errors[50][2] - 0.278) < 0.01, errors


def path(sampler, schedule, x, **options):
    sample = functools.partial(sampler, gaussian(schedule), schedule, scan=samplers.path, **options)
    return np.asarray(jax.jit(sample)(x)[1])


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def test_dpm_solver_is_of_second_order_on_gaussians():
    """Compared where half of the steps are done, at t = 500 for all: the last step is of first order by design."""
    table = schedules.scaled_linear()
    a, s = (np.asarray(level, np.float64) for level in (table.signal, table.noise))
    x = np.random.default_rng(5).standard_normal((512, 1)).astype(np.float32)
    errors = []
    for steps in (20, 40, 80):
        assert samplers.solver_timesteps(1000, steps, 'linspace')[steps // 2] == 500
        states = jax.jit(lambda x, n=steps: samplers.dpm_solver_2m(gaussian(table), table, x, steps=n, scan=samplers.path)[1])(
            x
        )
        errors.append(rms(constant_of(states[steps // 2 - 1], a[500], s[500]) - constant_of(x, a[999], s[999])))
    assert all(3.0 < errors[i] / errors[i + 1] < 6.0 for i in range(2)), errors


def test_heun_is_of_second_order_on_gaussians():
    """Compared at sigma_min, before the last step to 0, which is Euler's."""
    table = schedules.scaled_linear()
    x = np.random.default_rng(5).standard_normal((512, 1)).astype(np.float32)
    errors = []
    for steps in (10, 20, 40):
        sigmas = np.asarray(samplers.karras_sigmas(steps, 0.05, 10.0), np.float64)
        states = path(samplers.heun, table, x, steps=steps, sigmas=jnp.asarray(sigmas, jnp.float32))
        began = constant_of(x * np.sqrt(1 + sigmas[0] ** 2), 1.0, sigmas[0])
        errors.append(rms(constant_of(states[-2], 1.0, sigmas[-2]) - began))
    assert all(3.0 < errors[i] / errors[i + 1] < 6.0 for i in range(2)), errors


def test_ancestral_sampling_reaches_the_gaussian():
    table = schedules.scaled_linear()
    x = jax.random.normal(jax.random.key(0), (20000, 1))
    for sampler, options in (
        (samplers.ddpm, {'steps': 250}),
        (samplers.ddim, {'steps': 250, 'eta': 1.0}),
        (samplers.heun, {'steps': 40, 'churn': 20.0, 'churn_range': (0.05, 10.0)}),
    ):
        out = run(sampler, table, x, key=jax.random.key(1), **options)
        assert abs(out.mean() - MEAN) < 0.02 and abs(out.std() - SPREAD) < 0.02, (sampler, out.mean(), out.std())
