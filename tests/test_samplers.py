"""Samplers against diffusers' schedulers with a fixed nonlinear model, and naive loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.core.errors import UsageError
from t3d.diffusion import guidance, samplers, schedules

X = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
SLOPES = np.random.default_rng(1).uniform(0.3, 1.2, X.shape).astype(np.float32)
NAMES = {'eps': 'epsilon', 'v': 'v_prediction', 'x0': 'sample'}
STABLE = {'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear'}


def model(x, t, xp=jnp):
    """Nonlinear in x and t, and different in every element; numpy and jax."""
    return xp.tanh(SLOPES * x + xp.cos(t / 150.0)) - 0.2 * xp.sin(2.0 * x)


def run(sampler, schedule, x=X, predict=model, **options):
    return np.asarray(jax.jit(functools.partial(sampler, predict, schedule, **options))(jnp.asarray(x)))


def theirs(name, prediction, steps, x=X, exact=False, **config):
    """Where a scheduler of diffusers leads with the same model; float64 states where it keeps them, tables too if `exact`."""
    diffusers, torch = pytest.importorskip('diffusers'), pytest.importorskip('torch')
    step_options = config.pop('step', lambda i: {})
    scheduler = getattr(diffusers, name)(prediction_type=NAMES[prediction], **(STABLE | config))
    if exact:
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        scheduler.alphas_cumprod = torch.cumprod(1.0 - torch.tensor(betas), 0)
    scheduler.set_timesteps(steps)
    dtype = torch.float32 if name.startswith('DPM') else torch.float64
    x = torch.tensor(np.asarray(x, np.float64)).to(dtype) * getattr(scheduler, 'scale', 1.0)
    for i, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t)
        output = torch.tensor(model(scaled.numpy().astype(np.float64), float(t), np)).to(dtype)
        x = scheduler.step(output, t, x, **step_options(i)).prev_sample
    return x.numpy()


def close(ours, expected):
    """Row 13: 5e-6 at unit scale, 1e-4 at scale 60."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=max(5e-6, 1.6e-6 * scale), err_msg=f'scale {scale:.1f}')


def test_the_quoted_timesteps():
    for spacing, first, final in (
        ('leading', [981, 961, 941], [41, 21, 1]),
        ('trailing', [999, 979, 959], [59, 39, 19]),
        ('linspace', [999, 979, 958], [41, 20, 0]),
    ):
        times = samplers.timesteps(1000, 50, spacing, offset=1)
        assert list(times[:3]) == first and list(times[-3:]) == final and len(times) == 50
    assert samplers.solver_timesteps(1000, 20, 'leading', 1)[0] == 941


@pytest.mark.parametrize('spacing', samplers.SPACINGS)
def test_timesteps_equal_diffusers_for_every_number_of_steps(spacing):
    diffusers = pytest.importorskip('diffusers')
    ddim = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=1)
    solver = diffusers.DPMSolverMultistepScheduler(timestep_spacing=spacing, steps_offset=1)
    too_many = []
    for steps in (*range(1, 130), 250, 333, 499):
        ddim.set_timesteps(steps)
        expected = ddim.timesteps.numpy()
        too_many += [steps] * (len(expected) - steps)
        np.testing.assert_array_equal(samplers.timesteps(1000, steps, spacing, 1), expected[:steps])
        solver.set_timesteps(steps)
        np.testing.assert_array_equal(samplers.solver_timesteps(1000, steps, spacing, 1), solver.timesteps[:steps])
    assert too_many[:4] == ([61, 103, 121, 122] if spacing == 'trailing' else [])  # these end at t = -1


@pytest.mark.parametrize('steps', [10, 20, 50, 7])
@pytest.mark.parametrize('spacing', samplers.SPACINGS)
def test_ddim_equals_diffusers(spacing, steps):
    """Also where its steps do not meet (linspace; trailing of 7): `aligned=False` means just that."""
    for prediction in ('eps', 'v') if steps < 50 else ('eps',):
        table = schedules.scaled_linear(prediction=prediction, steps_offset=1, alpha_to_one=False, aligned=False)
        expected = theirs(
            *('DDIMScheduler', prediction, steps),
            **dict(timestep_spacing=spacing, steps_offset=1, set_alpha_to_one=False, clip_sample=False),
        )
        close(run(samplers.ddim, table, steps=steps, spacing=spacing), expected)


def test_ddim_with_noise_clip_and_threshold_equals_diffusers():
    torch = pytest.importorskip('torch')
    draws = np.random.default_rng(2).standard_normal((20, *X.shape)).astype(np.float32)
    thresholding = {'thresholding': True, 'dynamic_thresholding_ratio': 0.9, 'sample_max_value': 1.5}
    for prediction, eta, options, config in (
        ('eps', 1.0, {}, {'clip_sample': False}),
        ('v', 0.4, {'clip': 0.8}, {'clip_sample': True, 'clip_sample_range': 0.8}),
        ('x0', 1.0, {'clip': 1.0}, {'clip_sample': True}),
        ('v', 0.0, {'threshold': (0.9, 1.5)}, thresholding),
    ):
        step = lambda i: {'eta': eta, 'variance_noise': torch.tensor(draws[i]).double()}  # noqa: B023
        expected = theirs('DDIMScheduler', prediction, 20, step=step, **config)
        key = {'key': jnp.asarray(draws)} if eta else {}
        close(run(samplers.ddim, schedules.scaled_linear(prediction=prediction, **options), steps=20, eta=eta, **key), expected)


def test_ddim_rederives_eps_as_glide_does():
    expected = theirs('DDIMScheduler', 'eps', 10, step=lambda i: {'use_clipped_model_output': True}, clip_sample=True)
    close(run(samplers.ddim, schedules.scaled_linear(clip=1.0), steps=10, rederive=True), expected)


def test_aligned_ddim_is_euler_in_sigma():
    """diffusers' Euler steps from one time to the next: 'trailing' of 7, where its DDIM does not."""
    diffusers, torch = pytest.importorskip('diffusers'), pytest.importorskip('torch')
    scheduler = diffusers.EulerDiscreteScheduler(timestep_spacing='trailing', **STABLE)
    scheduler.set_timesteps(7)
    x = torch.tensor(X) * (1.0 + scheduler.sigmas[0] ** 2) ** 0.5
    for t in scheduler.timesteps:
        output = model(scheduler.scale_model_input(x, t).numpy(), float(t), np)
        x = scheduler.step(torch.tensor(output), t, x).prev_sample
    close(run(samplers.ddim, schedules.scaled_linear(), steps=7, spacing='trailing'), x.numpy())


@pytest.mark.parametrize('variance', ['small', 'large'])
def test_ddpm_equals_diffusers(variance, monkeypatch):
    diffusers, torch = pytest.importorskip('diffusers'), pytest.importorskip('torch')
    module = diffusers.schedulers.scheduling_ddpm
    cases = [('eps', 10, 'leading', None), ('eps', 50, 'leading', None), ('v', 20, 'linspace', 1.0), ('v', 7, 'trailing', None)]
    for prediction, steps, spacing, clip in cases:
        draws = np.random.default_rng(3).standard_normal((steps, *X.shape))
        left = iter(draws)
        monkeypatch.setattr(module, 'randn_tensor', lambda *args, **kwargs: torch.tensor(next(left)))  # noqa: B023
        config = {'timestep_spacing': spacing, 'clip_sample': clip is not None, 'variance_type': f'fixed_{variance}'}
        if variance == 'large' and spacing == 'trailing':
            continue  # it adds beta's noise after the last step too, unless that is at t = 0
        expected = theirs('DDPMScheduler', prediction, steps, exact=True, **config)  # of its float32: 3e-6
        table = schedules.scaled_linear(prediction=prediction, clip=clip)
        out = run(samplers.ddpm, table, steps=steps, spacing=spacing, variance=variance, key=jnp.asarray(draws, jnp.float32))
        close(out, expected)


@pytest.mark.parametrize('steps', [10, 20, 50, 3, 2, 1])
@pytest.mark.parametrize('spacing', samplers.SPACINGS)
def test_dpm_solver_equals_diffusers(spacing, steps):
    prediction = 'v' if steps in (3, 20) else 'eps'
    expected = theirs('DPMSolverMultistepScheduler', prediction, steps, timestep_spacing=spacing, steps_offset=1)
    table = schedules.scaled_linear(prediction=prediction, steps_offset=1)
    out, scale = run(samplers.dpm_solver_2m, table, steps=steps, spacing=spacing), np.abs(expected).max()
    np.testing.assert_allclose(out, expected, rtol=0, atol=max(1e-5, 3e-6 * scale))  # theirs is float32 throughout


@pytest.mark.parametrize('steps', [10, 20, 7, 2])
def test_dpm_solver_over_karras_levels_equals_diffusers(steps):
    prediction = 'v' if steps == 20 else 'eps'
    expected = theirs('DPMSolverMultistepScheduler', prediction, steps, use_karras_sigmas=True)
    out = run(samplers.dpm_solver_2m, schedules.scaled_linear(prediction=prediction), steps=steps, spacing='karras')
    scale = np.abs(expected).max()
    np.testing.assert_allclose(out, expected, rtol=0, atol=max(1e-5, 3e-6 * scale))  # theirs is float32 throughout
    plain = run(samplers.dpm_solver_2m, schedules.scaled_linear(prediction=prediction), steps=steps)
    assert np.abs(plain - expected).max() > 1e-3 * scale
    with pytest.raises(UsageError, match='choose 1 to 1000'):
        samplers.dpm_solver_2m(model, schedules.scaled_linear(), jnp.asarray(X), steps=0, spacing='karras')


def test_dpm_solver_thresholds_and_starts_from_zero_terminal_snr():
    config = {'thresholding': True, 'sample_max_value': 1.5, 'timestep_spacing': 'trailing', 'rescale_betas_zero_snr': True}
    expected = theirs('DPMSolverMultistepScheduler', 'v', 10, **config)
    table = schedules.zero_terminal_snr(schedules.scaled_linear(prediction='v', threshold=(0.995, 1.5)))
    np.testing.assert_allclose(run(samplers.dpm_solver_2m, table, steps=10, spacing='trailing'), expected, atol=2e-5)


@pytest.mark.parametrize(('prediction', 'steps'), [('eps', 10), ('eps', 20), ('v', 20), ('eps', 7)])
def test_heun_equals_diffusers(prediction, steps, monkeypatch):
    diffusers = pytest.importorskip('diffusers')
    scale = property(lambda self: (1.0 + float(self.sigmas[0]) ** 2) ** 0.5)
    monkeypatch.setattr(diffusers.HeunDiscreteScheduler, 'scale', scale, raising=False)
    expected = theirs('HeunDiscreteScheduler', prediction, steps, use_karras_sigmas=True)
    out = run(samplers.heun, schedules.scaled_linear(prediction=prediction), steps=steps)
    # t differs in its last float32 digits: theirs takes the log of float32 sigmas
    np.testing.assert_allclose(out, expected, rtol=0, atol=max(1e-5, 5e-6 * np.abs(expected).max()))


def test_heun_with_churn_equals_a_plain_loop():
    """arXiv 2206.00364, Alg. 2, line by line in float64."""
    steps, churn, low, high, noise = 8, 20.0, 0.05, 5.0, 1.1
    draws = np.random.default_rng(4).standard_normal((steps, *X.shape))
    table = schedules.scaled_linear()
    sigmas = (14.0 ** (1 / 7) + np.arange(steps) / (steps - 1) * (0.03 ** (1 / 7) - 14.0 ** (1 / 7))) ** 7
    sigmas = np.append(sigmas, 0.0)
    np.testing.assert_allclose(samplers.karras_sigmas(steps, 0.03, 14.0), sigmas, rtol=2e-6)

    def denoised(x, sigma):
        t = np.interp(np.log(sigma), -0.5 * np.asarray(table.log_snr, np.float64), np.arange(1000.0))
        return x - sigma * model(x / np.sqrt(1 + sigma**2), t, np)

    x = X.astype(np.float64) * np.sqrt(1 + sigmas[0] ** 2)
    for i in range(steps):
        gamma = min(churn / steps, 2**0.5 - 1) if low <= sigmas[i] <= high else 0.0
        hat = sigmas[i] * (1 + gamma)
        x = x + np.sqrt(hat**2 - sigmas[i] ** 2) * noise * draws[i]
        slope = (x - denoised(x, hat)) / hat
        after = x + (sigmas[i + 1] - hat) * slope
        if sigmas[i + 1] > 0:
            after = x + (sigmas[i + 1] - hat) * 0.5 * (slope + (after - denoised(after, sigmas[i + 1])) / sigmas[i + 1])
        x = after
    options = {'churn': churn, 'churn_range': (low, high), 'churn_noise': noise, 'key': jnp.asarray(draws, jnp.float32)}
    out = run(samplers.heun, table, steps=steps, sigmas=jnp.asarray(sigmas, jnp.float32), **options)
    np.testing.assert_allclose(out, x, rtol=0, atol=5e-6 * np.abs(x).max())


@pytest.mark.parametrize('spacing', ['leading', 'trailing'])
def test_inversion_equals_diffusers(spacing):
    for prediction in ('eps', 'v'):
        config = {'timestep_spacing': spacing, 'steps_offset': 1, 'set_alpha_to_one': False, 'clip_sample': False}
        expected = theirs('DDIMInverseScheduler', prediction, 20, **config)
        table = schedules.scaled_linear(prediction=prediction, steps_offset=1, alpha_to_one=False)
        close(run(samplers.ddim_invert, table, steps=20, spacing=spacing), expected)


@pytest.mark.parametrize('to_one', [True, False])
def test_inversion_is_exact_if_eps_does_not_depend_on_x(to_one):
    constant = lambda x, t: jnp.cos(t / 100.0) * SLOPES
    for spacing in samplers.SPACINGS:
        table = schedules.scaled_linear(spacing=spacing, alpha_to_one=to_one)
        there = run(samplers.ddim_invert, table, predict=constant, steps=25)
        back = run(samplers.ddim, table, there, predict=constant, steps=25)
        np.testing.assert_allclose(back, X, atol=1e-5)


def test_inversion_of_a_network_that_predicts_x0_starts_from_clean():
    table = schedules.scaled_linear(prediction='x0')
    out = run(samplers.ddim_invert, table, predict=lambda x, t: jnp.tanh(x), steps=20)
    assert np.all(np.isfinite(out))


def test_one_trace_for_each_number_of_steps_and_finite_gradients():
    """Schedule, weights and inputs may be traced; the rank of x is no matter; clipped and thresholded steps too."""
    table = schedules.zero_terminal_snr(schedules.scaled_linear(prediction='v', threshold=(0.9, 1.5)))
    traces = []

    @functools.partial(jax.jit, static_argnames='name')
    def loss(weight, table, x, key, name):
        traces.append(name)

        def objective(weight):
            predict = guidance.guided(lambda x, t, c: jnp.tanh(weight * x) + c, jnp.ones((2, 1)), jnp.zeros((2, 1)), 2.0)
            noisy = {'ddim': {'eta': 0.5, 'key': key}, 'ddpm': {'key': key}, 'heun': {'churn': 5.0, 'key': key}}.get(name, {})
            return jnp.mean(getattr(samplers, name)(predict, table, x, steps=4, **noisy) ** 2)

        return jax.value_and_grad(objective)(weight)

    names = ('ddim', 'ddim_invert', 'ddpm', 'dpm_solver_2m', 'heun')
    for name in names:
        for seed in range(2):
            value, grad = loss(0.5 + seed, table, jnp.ones((2, 2)) * (1 + seed), jax.random.key(seed), name)
            assert np.isfinite(value) and np.isfinite(grad), name
    assert traces == list(names)


def test_path_holds_every_state_and_ends_where_last_does():
    table = schedules.scaled_linear(alpha_to_one=False)
    x, states = samplers.ddim(model, table, jnp.asarray(X), steps=5, scan=samplers.path)
    assert states.shape == (5, *X.shape)
    np.testing.assert_array_equal(states[-1], x)
    np.testing.assert_allclose(x, run(samplers.ddim, table, steps=5), atol=1e-5)


def test_keys_give_the_same_noise_again_and_wrong_ones_are_refused():
    table = schedules.scaled_linear(prediction='v')
    sample = jax.jit(lambda key: samplers.ddpm(model, table, jnp.asarray(X), steps=5, key=key))
    one, two, other = (sample(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 0.1
    for options, words in (
        ({'steps': 5, 'eta': 1.0}, 'give key'),
        ({'steps': 5, 'eta': 1.0, 'key': jnp.zeros((4, *X.shape))}, 'wanted a typed key'),
        ({'steps': 5, 'spacing': 'karras'}, 'leading'),
        ({'steps': 1001}, 'choose 1 to 1000'),
        ({'steps': 0}, 'choose 1 to 1000'),
    ):
        with pytest.raises(UsageError, match=words):
            samplers.ddim(model, table, jnp.asarray(X), **options)
    with pytest.raises(UsageError, match='offset 1'):
        samplers.timesteps(1000, 1000, 'leading', 1)
    with pytest.raises(UsageError, match='variance'):
        samplers.ddpm(model, table, jnp.asarray(X), steps=5, key=jax.random.key(0), variance='learned_range')
    with pytest.raises(UsageError, match='wanted 6'):
        samplers.heun(model, table, jnp.asarray(X), steps=5, sigmas=jnp.ones(5))
    with pytest.raises(UsageError, match='churn'):
        samplers.heun(model, table, jnp.asarray(X), steps=5, churn=1.0)
