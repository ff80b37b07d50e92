"""Denoising losses: targets, min-SNR weights at their quoted values, draws of t, and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.diffusion import losses, schedules

X0 = jax.random.normal(jax.random.key(0), (4, 3, 2))
NOISE = jax.random.normal(jax.random.key(1), (4, 3, 2))
T = jnp.array([0, 146, 354, 999])


@pytest.mark.parametrize('prediction', schedules.PREDICTIONS)
def test_the_target_is_what_the_conversions_understand(prediction):
    table = schedules.scaled_linear(prediction=prediction)
    x = schedules.q_sample(table, X0, T, NOISE)
    target = losses.target(table, X0, T, NOISE)
    np.testing.assert_allclose(schedules.to_x0(table, target, x, T), X0, atol=2e-5)  # eps: / .068 at t = 999
    np.testing.assert_allclose(schedules.to_eps(table, target, x, T), NOISE, atol=2e-5)


def test_the_v_target_equals_diffusers():
    diffusers, torch = pytest.importorskip('diffusers'), pytest.importorskip('torch')
    scheduler = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear')
    x0, noise, t = (torch.tensor(np.asarray(array)) for array in (X0, NOISE, T))
    table = schedules.scaled_linear(prediction='v')
    theirs = scheduler.get_velocity(x0, noise, t.long()).numpy()
    np.testing.assert_allclose(losses.target(table, X0, T, NOISE), theirs, atol=3e-6)
    theirs = scheduler.add_noise(x0, noise, t.long()).numpy()
    np.testing.assert_allclose(schedules.q_sample(table, X0, T, NOISE), theirs, atol=3e-6)


def test_mse_and_its_weights():
    output, target = jnp.zeros((2, 2, 2)), jnp.stack([jnp.full((2, 2), 1.0), jnp.full((2, 2), 3.0)])
    assert losses.mse(output, target) == 5.0
    assert losses.mse(output, target, jnp.array([2.0, 0.0])) == 1.0
    assert losses.mse(output.astype(jnp.bfloat16), target).dtype == jnp.float32


def test_min_snr():
    eps, v, x0 = (losses.min_snr(schedules.scaled_linear(prediction=name), T) for name in schedules.PREDICTIONS)
    snr = np.asarray(schedules.snr(schedules.scaled_linear(), T), np.float64)
    np.testing.assert_allclose(eps[0], 4.25e-3, rtol=2e-3)
    np.testing.assert_array_equal(eps[2:], 1.0)
    np.testing.assert_allclose(eps, np.minimum(snr, 5.0) / snr, rtol=1e-5)
    np.testing.assert_allclose(v, np.minimum(snr, 5.0) / (snr + 1.0), rtol=1e-5)
    np.testing.assert_allclose(x0, np.minimum(snr, 5.0), rtol=1e-5)
    all_eps = losses.min_snr(schedules.scaled_linear(), jnp.arange(1000))
    assert np.all(all_eps[147:] == 1.0) and np.all(all_eps[:146] < 1.0)


def test_min_snr_weighs_the_error_of_x0_alike_for_all_targets():
    """The same wrong x_0, told as eps, v or x_0, costs the same."""
    t, wrong = jnp.array([100, 300, 500, 700]), X0 + 0.1
    weighted = []
    for name in schedules.PREDICTIONS:
        table = schedules.scaled_linear(prediction=name)
        x = schedules.q_sample(table, X0, t, NOISE)
        output = schedules.from_x0(table, wrong, x, t)
        weighted.append(losses.min_snr(table, t) * losses.per_object(output, losses.target(table, X0, t, NOISE)))
    np.testing.assert_allclose(weighted[0], weighted[2], rtol=1e-3)
    np.testing.assert_allclose(weighted[1], weighted[2], rtol=1e-3)


def test_min_snr_at_zero_terminal_snr():
    table = schedules.zero_terminal_snr(schedules.scaled_linear(prediction='v'))
    assert losses.min_snr(table, 999) == 0.0  # v is -x_0 there, of which pure noise says nothing
    assert losses.min_snr(table.replace(prediction='eps'), 999) == 1.0
    assert losses.min_snr(table.replace(prediction='x0'), 999) == 0.0


def test_the_least_snr_is_the_weight_of_x0_in_pure_noise():
    """The same wrong x_0, told as v or as x_0, costs its square times the SNR clipped to [1, 5]; v says x_0 = a x_t - s v."""
    t, wrong = jnp.array([100, 500, 900, 999]), X0 + 0.1
    table = schedules.zero_terminal_snr(schedules.scaled_linear(prediction='v'))
    snr = np.asarray(schedules.snr(table, t), np.float64)
    expected = np.clip(snr, 1.0, 5.0) * 0.1**2
    signal, sigma = schedules.levels_like(table, t, X0)
    as_v = (signal * schedules.q_sample(table, X0, t, NOISE) - wrong) / sigma
    for name, output in (('v', as_v), ('x0', wrong)):
        told = table.replace(prediction=name)
        each = losses.per_object(output, losses.target(told, X0, t, NOISE))
        np.testing.assert_allclose(losses.min_snr(told, t, 5.0, 1.0) * each, expected, rtol=1e-3)
    assert expected[-1] == 0.1**2


def test_draws_of_t():
    t = np.asarray(losses.draw_t(jax.random.key(0), 4000, 1000))
    assert t.min() >= 0 and t.max() <= 999 and abs(t.mean() - 499.5) < 5 * 289 / 4000**0.5
    for seed in range(3):
        t = np.asarray(losses.draw_t(jax.random.key(seed), 8, 1000, stratified=True))
        np.testing.assert_array_equal(np.sort(t) // 125, np.arange(8))
    many = jax.vmap(lambda key: losses.draw_t(key, 4, 10, True))(jax.random.split(jax.random.key(1), 5000))
    counts = np.bincount(np.asarray(many)[:, 0], minlength=10)  # of one place in the batch: uniform over all t
    assert len(counts) == 10 and np.abs(counts - 500).max() < 5 * 500**0.5


@pytest.mark.parametrize('prediction', schedules.PREDICTIONS)
def test_denoising_is_zero_for_an_oracle_and_one_trace_serves(prediction):
    table = schedules.scaled_linear(prediction=prediction)
    traces = []

    @jax.jit
    def step(factor, key):
        def loss(factor):
            traces.append(1)
            predict = lambda x, t: factor * schedules.from_x0(table, jnp.broadcast_to(X0, x.shape), x, t)
            return losses.denoising(predict, table, X0, key, gamma=5.0).loss

        return jax.value_and_grad(loss)(factor)

    for seed in range(3):
        loss, grad = step(1.0, jax.random.key(seed))
        assert loss < 1e-8 and np.isfinite(grad)
    assert step(0.5, jax.random.key(0))[1] < 0.0 and len(traces) == 1


def test_denoising_reports_the_unweighted_error_of_each_object():
    table = schedules.scaled_linear()
    out = losses.denoising(lambda x, t: jnp.zeros_like(x), table, jnp.zeros((64, 9, 9)), jax.random.key(0), gamma=5.0)
    np.testing.assert_allclose(out.each, 1.0, atol=0.6)
    np.testing.assert_allclose(out.loss, jnp.mean(losses.min_snr(table, out.t) * out.each), rtol=1e-6)
