"""Noise schedules against diffusers, closed forms and the quoted constants of Stable Diffusion's table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.core.errors import UsageError
from t3d.diffusion import scheduler_files, schedules

MADE = {
    'scaled_linear': schedules.scaled_linear(),
    'linear': schedules.linear(),
    'squaredcos_cap_v2': schedules.cosine(),
    'exp': schedules.exponential(),
}


def test_constants_of_stable_diffusion():
    table = schedules.scaled_linear()
    assert table.alpha_bar.dtype == jnp.float32 and table.length == 1000
    np.testing.assert_allclose(table.alpha_bar[jnp.array([0, 500, 999])], [0.99915, 0.27633, 4.6601e-3], rtol=2e-5)
    np.testing.assert_allclose([table.signal[-1], table.noise[-1]], [0.068265, 0.997667], rtol=1e-5)
    np.testing.assert_allclose(schedules.snr(table, 999), 4.682e-3, rtol=1e-4)
    sigma = table.noise / table.signal
    np.testing.assert_allclose([sigma[0], sigma[-1]], [0.02917, 14.6146], rtol=1e-4)
    snr = np.asarray(schedules.snr(table, jnp.arange(1000)))
    assert np.abs(snr - 5.0).argmin() == 146 and np.abs(snr - 1.0).argmin() == 354
    np.testing.assert_allclose(schedules.linear().alpha_bar[-1], 4.036e-5, rtol=1e-4)
    np.testing.assert_allclose(
        schedules.linear(1024, 1e-4 * 1000 / 1024, 0.02 * 1000 / 1024).alpha_bar[-1], 4.042e-5, rtol=1e-3
    )
    np.testing.assert_allclose(schedules.cosine().alpha_bar[-1], 2.4e-9, rtol=2e-2)
    np.testing.assert_allclose(schedules.exponential().alpha_bar[-1], np.exp(-12.0), rtol=1e-5)


@pytest.mark.parametrize('name', MADE)
def test_tables_equal_diffusers_betas(name):
    """From its float32 betas, multiplied up in float64: small abar are off by up to 3e-5 in its own float32 product."""
    diffusers = pytest.importorskip('diffusers')
    scale = {'beta_start': 0.00085, 'beta_end': 0.012} if name == 'scaled_linear' else {'beta_start': 1e-4, 'beta_end': 0.02}
    theirs = diffusers.HeunDiscreteScheduler if name == 'exp' else diffusers.DDIMScheduler
    scheduler = theirs(beta_schedule=name, **scale)
    # a float32 beta at the end of the cosine leaves 1 - .999, known to 6e-5 only
    rtol = {'squaredcos_cap_v2': 1e-4}.get(name, 1.5e-6)
    np.testing.assert_allclose(MADE[name].alpha_bar, np.cumprod(1.0 - scheduler.betas.numpy().astype(np.float64)), rtol=rtol)
    np.testing.assert_allclose(MADE[name].alpha_bar[:990], scheduler.alphas_cumprod[:990], rtol=5e-5)


def test_tables_are_rounded_from_float64():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    exact = np.exp(np.cumsum(np.log1p(-betas)))
    table = schedules.scaled_linear()
    for ours, expected in (
        (table.alpha_bar, exact),
        (table.signal, exact**0.5),
        (table.noise, (1 - exact) ** 0.5),
        (table.log_snr, np.log(exact / (1 - exact))),
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-7, atol=1e-7)
    u = np.arange(1, 900) / 1000  # far from the cap of beta
    f = lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(schedules.cosine().alpha_bar[:899], f(u) / f(0.0), rtol=1e-6)


def test_zero_terminal_snr():
    base = schedules.scaled_linear(prediction='v')
    table = schedules.zero_terminal_snr(base)
    np.testing.assert_allclose(table.alpha_bar[998], 1.968e-7, rtol=1e-3)
    assert table.alpha_bar[999] == 0.0 and table.noise[999] == 1.0 and table.log_snr[999] == -jnp.inf
    np.testing.assert_allclose(table.alpha_bar[0], base.alpha_bar[0], rtol=1e-7)
    assert schedules.snr(table, 999) == 0.0 and table.spacing == 'trailing'
    assert np.all(np.isfinite(np.asarray(schedules.levels(table, jnp.float32(998.5)))))
    with pytest.raises(UsageError, match='prediction'):
        schedules.zero_terminal_snr(schedules.scaled_linear())


def test_zero_terminal_snr_equals_diffusers():
    diffusers = pytest.importorskip('diffusers')
    config = {'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear', 'prediction_type': 'v_prediction'}
    theirs = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, **config).alphas_cumprod.numpy()
    ours = schedules.from_config({'_class_name': 'DDIMScheduler', 'rescale_betas_zero_snr': True, **config})
    np.testing.assert_allclose(ours.alpha_bar[:990], theirs[:990], rtol=5e-5)  # theirs subtracts in float32
    np.testing.assert_allclose(ours.signal, theirs**0.5, atol=1e-6)
    table = schedules.zero_terminal_snr(schedules.scaled_linear(prediction='v'))
    np.testing.assert_allclose(table.signal, ours.signal, atol=3e-8)


@pytest.mark.parametrize('prediction', schedules.PREDICTIONS)
def test_conversions_compose_to_the_identity(prediction):
    table = schedules.scaled_linear(prediction=prediction)
    key_x, key_noise = jax.random.split(jax.random.key(0))
    x0, noise = jax.random.normal(key_x, (6, 4, 3)), jax.random.normal(key_noise, (6, 4, 3))
    t = jnp.array([50, 100, 146, 354, 500, 700])
    x = schedules.q_sample(table, x0, t, noise)
    v = schedules.levels_like(table, t, x)[0] * noise - schedules.levels_like(table, t, x)[1] * x0
    output = {'eps': noise, 'v': v, 'x0': x0}[prediction]
    for name, expected in (('to_x0', x0), ('to_eps', noise), ('to_v', v)):
        got = getattr(schedules, name)(table, output, x, t)
        np.testing.assert_allclose(got, expected, atol=4e-6, rtol=1e-6, err_msg=name)  # a = .2, s = .3 at the ends
    back = schedules.from_x0(table, schedules.to_x0(table, output, x, t), x, t)
    np.testing.assert_allclose(back, output, atol=1e-6, rtol=1e-6)


def test_conversions_in_float64():
    """The same formulas without rounding: 1e-12, so that a wrong sign or factor has nowhere to hide."""
    a, s, x0, noise = 0.6, 0.8, 1.3, -0.7
    x, v = a * x0 + s * noise, a * noise - s * x0
    for prediction, output in (('eps', noise), ('v', v), ('x0', x0)):
        assert abs(schedules.x0_of(prediction, output, x, a, s) - x0) < 1e-12
        assert abs(schedules.eps_of(prediction, output, x, a, s) - noise) < 1e-12


def test_t_may_be_a_scalar_one_for_each_object_or_real():
    table = schedules.scaled_linear()
    x0, noise = jnp.ones((2, 3, 4, 5, 1)), jnp.full((2, 3, 4, 5, 1), 2.0)
    both = schedules.q_sample(table, x0, jnp.array([10, 900]), noise)
    for i, t in enumerate((10, 900)):
        np.testing.assert_array_equal(both[i], schedules.q_sample(table, x0, t, noise)[i])
        np.testing.assert_allclose(both[i], schedules.q_sample(table, x0, float(t), noise)[i], rtol=1e-6)
    signal, sigma = schedules.levels(table, jnp.linspace(0.0, 999.0, 777))
    np.testing.assert_allclose(signal**2 + sigma**2, 1.0, rtol=1e-6)
    assert np.all(np.diff(signal) < 0)
    t = jnp.array([0.0, 0.25, 7.5, 500.0, 998.75, 999.0])
    signal, sigma = schedules.levels(table, t)
    np.testing.assert_allclose(schedules.sigma_to_t(table, sigma / signal), t, atol=2e-4)
    np.testing.assert_array_equal(schedules.sigma_to_t(table, jnp.array([1e-3, 80.0])), [0.0, 999.0])


def test_the_shift_undoes_averaging():
    """256 px averaged 4 x 4 has 1/16 of the noise variance: log SNR at 64 px is the base schedule's."""
    base = schedules.cosine()
    high = schedules.shifted(base, 256)
    averaged = high.alpha_bar / ((1.0 - high.alpha_bar) / 16.0)
    expected = base.alpha_bar / (1.0 - base.alpha_bar)
    np.testing.assert_allclose(averaged[20:], expected[20:], rtol=1e-4)
    np.testing.assert_allclose(schedules.shifted(high, 64, 256).log_snr, base.log_snr, rtol=1e-6, atol=1e-6)
    u = jnp.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(schedules.cosine_log_snr(u), [15.0, 0.0, -15.0], atol=1e-3)
    np.testing.assert_allclose(schedules.cosine_log_snr(0.3, -40.0, 40.0), -2 * np.log(np.tan(0.15 * np.pi)), rtol=1e-5)


@pytest.mark.parametrize('name', sorted(scheduler_files.CLASSES))
def test_a_file_means_what_diffusers_takes_it_to_mean(name):
    diffusers = pytest.importorskip('diffusers')
    theirs = getattr(diffusers, name)()
    for config in ({'_class_name': name}, dict(theirs.config) | {'_class_name': name}):
        ours = schedules.from_config(config)
        np.testing.assert_allclose(ours.alpha_bar, theirs.alphas_cumprod, rtol=2e-6)
        assert ours.spacing == theirs.config.get('timestep_spacing', 'linspace')
        assert ours.steps_offset == theirs.config.get('steps_offset', 0)
        assert ours.clip == (theirs.config.clip_sample_range if theirs.config.get('clip_sample') else None)
        assert ours.alpha_to_one == theirs.config.get('set_alpha_to_one', True)
        assert ours.prediction == 'eps' and ours.threshold is None


def test_files_of_stable_diffusion():
    """The fields of 1.5's and 2.1's files as they are published."""
    common = {'beta_end': 0.012, 'beta_schedule': 'scaled_linear', 'beta_start': 0.00085, 'num_train_timesteps': 1000}
    old = common | {'_class_name': 'PNDMScheduler', 'set_alpha_to_one': False, 'skip_prk_steps': True, 'steps_offset': 1}
    made = schedules.from_config(old | {'clip_sample': False, 'trained_betas': None})
    assert (made.prediction, made.steps_offset, made.alpha_to_one, made.clip) == ('eps', 1, False, None)
    np.testing.assert_array_equal(made.alpha_bar, schedules.scaled_linear().alpha_bar)
    made = schedules.from_config(common | {'_class_name': 'DDIMScheduler', 'prediction_type': 'v_prediction'})
    assert (made.prediction, made.alpha_to_one, made.clip) == ('v', True, 1.0)
    betas = list(np.linspace(1e-3, 2e-2, 50))
    schedule = schedules.from_config({'_class_name': 'DDIMScheduler', 'trained_betas': betas, 'thresholding': True})
    np.testing.assert_allclose(schedule.alpha_bar, np.cumprod(1 - np.array(betas)), rtol=1e-6)
    assert schedule.threshold == (0.995, 1.0)


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('prediction_type', 'flow_prediction'),
        ('beta_schedule', 'laplace'),
        ('timestep_spacing', 'karras'),
        ('_class_name', 'FlowMatchEulerDiscreteScheduler'),
    ],
)
def test_what_is_not_known_is_refused_by_name(field, value):
    with pytest.raises(UsageError, match=value):
        schedules.from_config({'_class_name': 'DDIMScheduler'} | {field: value})


def test_tables_that_are_no_schedule_are_refused():
    with pytest.raises(UsageError, match='falling'):
        schedules.from_betas(np.array([0.1, 0.0, 0.1]))
    with pytest.raises(UsageError, match='falling'):
        schedules.from_alpha_bar(np.array([0.9, 0.5, np.nan]))
    with pytest.raises(UsageError, match='epsilon'):
        schedules.linear(prediction='epsilon')


def test_a_schedule_passes_through_jit():
    table = schedules.scaled_linear(prediction='v')
    out = jax.jit(schedules.to_x0)(table, jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.array([3, 5]))
    np.testing.assert_allclose(out, schedules.to_x0(table, jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.array([3, 5])), rtol=1e-6)
