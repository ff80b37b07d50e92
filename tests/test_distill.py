"""Score distillation against closed forms of Gaussian priors and explicit Jacobians; deferred gradients against plain ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.core import prng
from t3d.core.errors import UsageError
from t3d.diffusion import distill, guidance, losses, schedules

SCHEDULE = schedules.scaled_linear()
MEAN, SPREAD = 0.3, 0.5


def gaussian(mean, spread, schedule=SCHEDULE):
    """The exact network of a prior N(mean, spread^2 I), in the schedule's prediction type."""

    def denoise(x, t):
        signal, sigma = schedules.levels_like(schedule, t, x)
        eps = sigma * (x - signal * mean) / (signal**2 * spread**2 + sigma**2)
        x0 = (x - sigma * eps) / signal
        return {'eps': eps, 'x0': x0, 'v': signal * eps - sigma * x0}[schedule.prediction]

    return denoise


def draws(shape, seed=0):
    return jax.random.normal(prng.key(seed), shape, jnp.float32)


def relative(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_a_scene_gets_the_pulled_back_gradient():
    """Of three parameters, by the Jacobian of the renderer written out and the gradient worked in float64."""
    scene, noise, t = jnp.array([0.4, -0.7, 1.3]), draws((2, 3, 1, 2)), jnp.array([101, 640])
    pixels = jnp.linspace(-1.0, 1.0, 6).reshape(3, 1, 2)

    def render(scene):
        return jnp.stack([jnp.sin(scene[0] * pixels + scene[1]) * scene[2], scene[0] * scene[2] + scene[1] ** 2 * pixels])

    def loss(scene):
        gradient, _ = distill.sds_gradient(gaussian(MEAN, SPREAD), SCHEDULE, render(scene), t, noise)
        return distill.inner(gradient, render(scene))

    p, x = np.asarray(scene, np.float64), np.asarray(pixels, np.float64)
    phase = p[0] * x + p[1]
    z = np.stack([np.sin(phase) * p[2], p[0] * p[2] + p[1] ** 2 * x])
    zero, one = np.zeros_like(x), np.ones_like(x)
    jacobian = np.stack(
        [
            np.stack([np.cos(phase) * p[2] * x, p[2] * one]),
            np.stack([np.cos(phase) * p[2], 2.0 * p[1] * x]),
            np.stack([np.sin(phase), p[0] * one + zero]),
        ]
    )
    abar = np.cumprod(1.0 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[np.asarray(t)].reshape(2, 1, 1, 1)
    x_t = np.sqrt(abar) * z + np.sqrt(1.0 - abar) * np.asarray(noise, np.float64)
    eps = np.sqrt(1.0 - abar) * (x_t - np.sqrt(abar) * MEAN) / (abar * SPREAD**2 + 1.0 - abar)
    by_hand = np.einsum('pbhwc,bhwc->p', jacobian, (1.0 - abar) * (eps - noise)) / 2.0
    assert relative(jax.grad(loss)(scene), by_hand) < 2e-6


@pytest.mark.parametrize('size', [1.0, 1e-3])
def test_the_gradient_of_the_loss_is_that_over_the_batch_bit_for_bit(size):
    gradient, z = size * draws((4, 5)), draws((4, 5), 1)
    np.testing.assert_array_equal(jax.grad(lambda z: distill.inner(gradient, z))(z), gradient / 4)
    value = distill.inner(gradient.astype(jnp.bfloat16), z.astype(jnp.bfloat16))
    assert value.dtype == jnp.float32 and value.shape == ()
    assert not np.any(jax.grad(lambda g: distill.inner(g, z))(gradient))


@pytest.mark.parametrize('weighting', distill.WEIGHTINGS)
def test_the_mean_gradient_is_that_of_the_closed_form(weighting):
    z, count = jnp.array([0.9, -0.4, 0.31]), 1 << 14
    for t in (60, 500, 900):
        each, _ = distill.sds_gradient(
            gaussian(MEAN, SPREAD), SCHEDULE, jnp.broadcast_to(z, (count, 3)), jnp.int32(t), draws((count, 3)), weighting
        )
        signal, sigma = (np.float64(level[t]) for level in (SCHEDULE.signal, SCHEDULE.noise))
        w = {'sds': sigma**2, 'uniform': 1.0, 'fantasia3d': signal * sigma**2}[weighting]
        closed = w * sigma * signal * (np.asarray(z) - MEAN) / (signal**2 * SPREAD**2 + sigma**2)
        error = np.asarray(each).std(0) / np.sqrt(count)
        assert np.all(np.abs(np.asarray(each).mean(0) - closed) < 3.0 * error)
        assert np.all(error < 0.02) and np.abs(closed[0]) > 10.0 * error[0]


def test_descent_converges_to_the_mean():
    mean = jnp.array([[0.3, -0.8], [1.1, 0.2]])

    def step(k, z):
        t = jax.random.randint(jax.random.fold_in(prng.key(3), k), (64,), 20, 981, jnp.int32)
        z_views, noise = jnp.broadcast_to(z, (64, 2, 2)), jax.random.normal(jax.random.fold_in(prng.key(4), k), (64, 2, 2))
        gradient, _ = distill.sds_gradient(gaussian(mean, 0.2), SCHEDULE, z_views, t, noise)
        return z - 0.5 / (1.0 + k / 30.0) * jnp.mean(gradient, 0)

    found = jax.jit(lambda: jax.lax.fori_loop(0, 600, step, jnp.zeros((2, 2))))()
    np.testing.assert_allclose(found, mean, atol=1e-2)


@pytest.mark.parametrize('prediction', ['v', 'x0'])
def test_any_prediction_type_gives_the_same_gradient(prediction):
    other, noise, z = schedules.scaled_linear(prediction=prediction), draws((3, 4)), draws((3, 4), 1)
    t = jnp.array([30, 400, 800])
    expected, _ = distill.sds_gradient(gaussian(MEAN, SPREAD), SCHEDULE, z, t, noise)
    gradient, _ = distill.sds_gradient(gaussian(MEAN, SPREAD, other), other, z, t, noise)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)


def test_no_gradient_enters_the_network_and_the_encoder_has_one():
    network, encoder, picture = {'w': jnp.float32(0.7)}, jnp.float32(1.3), draws((2, 3))

    def loss(network, encoder):
        z = jnp.tanh(encoder * picture)
        denoise = lambda x, t: network['w'] * x
        sds, _ = distill.sds_gradient(denoise, SCHEDULE, z, jnp.array([100, 700]), draws((2, 3), 1))
        pair = lambda x, t: (network['w'] * x, x)
        mvd, _ = distill.reconstruction_gradient(pair, SCHEDULE, z, jnp.array([100, 700]), draws((2, 3), 1), 0.5)
        return distill.inner(sds + mvd, z)

    to_network, to_encoder = jax.grad(loss, (0, 1))(network, encoder)
    assert to_network['w'] == 0.0 and abs(to_encoder) > 1e-3


def test_reconstruction_is_sds_with_another_weight_and_rescales_as_written_out():
    """z - x_0_hat = s / a (eps_hat - eps); with phi, x_0_hat in numpy."""
    z, noise, t = draws((2, 3, 4)), draws((2, 3, 4), 1), jnp.array([50, 600])
    guided = lambda x, t: (3.0 * gaussian(MEAN, SPREAD)(x, t), gaussian(MEAN, SPREAD)(x, t))
    eps = np.asarray(distill.predicted_eps(lambda x, t: guided(x, t)[0], SCHEDULE, z, t, noise))
    signal, sigma = (np.asarray(level) for level in schedules.levels_like(SCHEDULE, t, z))
    gradient, told = distill.reconstruction_gradient(guided, SCHEDULE, z, t, noise)
    np.testing.assert_allclose(gradient, sigma / signal * (eps - noise), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(told.residual, np.sqrt(np.mean((eps - noise) ** 2, (1, 2))), rtol=1e-4)
    x_t = signal * z + sigma * noise
    x0, plain = (x_t - sigma * eps) / signal, (x_t - sigma * eps / 3.0) / signal
    ratio = np.std(plain, (1, 2), keepdims=True) / np.std(x0, (1, 2), keepdims=True)
    rescaled, _ = distill.reconstruction_gradient(guided, SCHEDULE, z, t, noise, 0.3)
    np.testing.assert_allclose(rescaled, z - (0.3 * x0 * ratio + 0.7 * x0), rtol=1e-4, atol=1e-5)


def test_guidance_scale_is_one_more_than_that_of_dreamfusion():
    text = {'mean': jnp.array([[0.5], [-0.2]])}
    predict = lambda x, t, text: gaussian(text['mean'], SPREAD)(x, t)
    none = {'mean': jnp.zeros((2, 1))}
    x, t = draws((2, 3)), jnp.array([90, 500])
    with_, without = predict(x, t, text), predict(x, t, none)
    denoise = lambda scale: guidance.guided(predict, text, none, scale)(x, t)
    np.testing.assert_allclose(denoise(1.0), with_, atol=1e-6)
    np.testing.assert_allclose(denoise(0.0), without, atol=1e-6)
    np.testing.assert_allclose(denoise(1.0 + 7.0), with_ + 7.0 * (with_ - without), atol=5e-6)
    pair = guidance.guided_pair(predict, text, none, 3.0)(x, t)
    np.testing.assert_allclose(pair[0], denoise(3.0), atol=1e-6)
    np.testing.assert_allclose(pair[1], with_, atol=1e-6)


def test_what_is_not_finite_is_counted_and_is_zero():
    broken = lambda x, t: gaussian(MEAN, SPREAD)(x, t).at[1, 2].set(jnp.nan).at[0, 0].set(jnp.inf)
    gradient, told = distill.sds_gradient(broken, SCHEDULE, draws((3, 4)), jnp.int32(300), draws((3, 4), 1))
    whole, _ = distill.sds_gradient(gaussian(MEAN, SPREAD), SCHEDULE, draws((3, 4)), jnp.int32(300), draws((3, 4), 1))
    expected = np.asarray(whole).copy()
    expected[1, 2] = expected[0, 0] = 0.0
    assert int(told.broken) == 2 and np.all(np.isfinite(told.residual))
    np.testing.assert_array_equal(gradient, expected)
    np.testing.assert_allclose(told.norm, np.linalg.norm(expected, axis=1), rtol=1e-6)
    with pytest.raises(UsageError, match=r"unknown weighting of score distillation 'sd'\. Did you mean 'sds'"):
        distill.weight(SCHEDULE, 3, 'sd')


def test_long_pixels_are_cut_to_the_limit():
    gradient = draws((2, 3, 3, 4)) * jnp.array([0.01, 1.0, 5.0]).reshape(1, 3, 1, 1)
    clipped = np.asarray(distill.clip_pixels(gradient.at[0, 0, 0].set(0.0), 1.5))
    for place in np.ndindex(2, 3, 3):
        vector = np.zeros(4) if place == (0, 0, 0) else np.asarray(gradient)[place]
        expected = vector * min(1.0, 1.5 / max(np.linalg.norm(vector), 1e-9))
        np.testing.assert_allclose(clipped[place], expected, rtol=1e-5)


def test_vsd_is_sds_where_the_second_network_says_the_noise_and_nothing_where_both_agree():
    z, noise, t = draws((2, 5)), draws((2, 5), 1), jnp.array([77, 812])
    prior = gaussian(MEAN, SPREAD)
    sds, _ = distill.sds_gradient(prior, SCHEDULE, z, t, noise, 'uniform')
    vsd, _ = distill.vsd_gradient(prior, lambda x, t: noise, SCHEDULE, z, t, noise, 'uniform')
    np.testing.assert_allclose(vsd, sds, atol=1e-6)
    nothing, told = distill.vsd_gradient(prior, prior, SCHEDULE, z, t, noise)
    assert not np.any(nothing) and not np.any(told.norm)


def test_each_loss_of_vsd_has_one_gradient():
    """None to the second network from the scene's loss, none to the scene from the second network's."""
    z, noise, t = draws((2, 5)), draws((2, 5), 1), jnp.array([77, 812])
    lora = lambda phi: lambda x, t: phi * x

    def scene_loss(phi, z):
        return distill.inner(distill.vsd_gradient(gaussian(MEAN, SPREAD), lora(phi), SCHEDULE, z, t, noise)[0], z)

    def lora_loss(phi, z):
        return distill.lora_loss(lora(phi), SCHEDULE, z, t, noise)

    phi = jnp.float32(0.4)
    to_phi, to_z = jax.grad(scene_loss, (0, 1))(phi, z)
    assert to_phi == 0.0 and np.all(to_z != 0.0)
    to_phi, to_z = jax.grad(lora_loss, (0, 1))(phi, z)
    assert abs(to_phi) > 1e-3 and not np.any(to_z)
    signal, sigma = schedules.levels_like(SCHEDULE, t, z)
    by_hand = np.mean((0.4 * np.asarray(signal * z + sigma * noise) - np.asarray(noise)) ** 2)
    np.testing.assert_allclose(lora_loss(phi, z), by_hand, rtol=1e-5)
    other = schedules.scaled_linear(prediction='v')
    said_v = lambda x, t: losses.target(other, z, t, noise)
    assert distill.lora_loss(said_v, other, z, t, noise) < 1e-10


@pytest.mark.parametrize('kind', ['vsd', 'sds'])
def test_vsd_keeps_the_spread_of_the_prior_where_sds_collapses(kind):
    """64 scalar particles; the second network is the exact one of the particles' own Gaussian."""
    steps, rate = 4000, 0.02

    def step(k, z):
        key_t, key_noise = jax.random.split(jax.random.fold_in(prng.key(8), k))
        t, noise = jax.random.randint(key_t, (64,), 20, 981, jnp.int32), jax.random.normal(key_noise, (64, 1), jnp.float32)
        prior, own = gaussian(MEAN, SPREAD), gaussian(jnp.mean(z), jnp.std(z))
        if kind == 'vsd':
            gradient, _ = distill.vsd_gradient(prior, own, SCHEDULE, z, t, noise)
        else:
            gradient, _ = distill.sds_gradient(prior, SCHEDULE, z, t, noise)
        return z - rate * jnp.minimum(1.0, 2.0 * (1.0 - k / steps)) * gradient

    z = np.asarray(jax.jit(lambda: jax.lax.fori_loop(0, steps, step, draws((64, 1), 2) * 0.2 - 1.0))())
    assert abs(z.mean() - MEAN) < 0.03
    assert abs(z.std() - SPREAD) < 0.05 if kind == 'vsd' else z.std() < 0.05


def chunked_scene(rays: int, samples: int):
    """A render that keeps much for its gradient: R rays of S samples through a small network, with jitter by keys."""
    params = {'w1': 0.5 * draws((3, 64)), 'w2': 0.3 * draws((64, 64), 1), 'w3': 0.2 * draws((64, 4), 2)}
    directions = draws((rays, 3), 5)

    def render_chunk(params, chunk):
        directions, key = chunk
        dist = jnp.linspace(0.1, 1.0, samples) + 0.01 * jax.random.uniform(key, (samples,), jnp.float32)
        hidden = jnp.sin(directions[:, None] * dist[:, None] @ params['w1'])
        out = jnp.sin(jnp.tanh(hidden @ params['w2']) @ params['w3'])
        weights = jax.nn.softmax(out[..., 3], -1)
        return {'rgb': jnp.sum(weights[..., None] * out[..., :3], 1), 'smooth': jnp.sum(out**2)}

    def image_loss(image):
        rgb = image['rgb'].reshape(-1, 3)
        return jnp.sum(jnp.sin(3.0 * rgb) * rgb) / 7.0 + 0.01 * jnp.sum(image['smooth']), {'mean': jnp.mean(rgb)}

    def chunks(n):
        return directions.reshape(n, rays // n, 3), prng.each(prng.key(1), n)

    return params, render_chunk, image_loss, chunks


def test_deferred_gradients_are_the_plain_ones():
    params, render_chunk, image_loss, chunks = chunked_scene(15, 5)

    def plain(params):
        return image_loss(jax.vmap(functools.partial(render_chunk, params))(chunks(5)))

    (loss, aux), grads = jax.jit(jax.value_and_grad(plain, has_aux=True))(params)
    deferred = jax.jit(lambda params: distill.deferred_grad(render_chunk, params, chunks(5), image_loss))(params)
    np.testing.assert_allclose(deferred.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(deferred.aux['mean'], aux['mean'], rtol=1e-5)
    assert deferred.image['rgb'].shape == (5, 3, 3)
    for name in params:
        assert relative(deferred.grads[name], grads[name]) < 1e-5


def test_deferred_gradients_need_a_quarter_of_the_memory_at_eight_chunks():
    params, render_chunk, image_loss, chunks = chunked_scene(1024, 32)

    def plain(params):
        return jax.grad(lambda params: image_loss(jax.vmap(functools.partial(render_chunk, params))(chunks(8)))[0])(params)

    deferred = lambda params: distill.deferred_grad(render_chunk, params, chunks(8), image_loss).grads
    needs = [jax.jit(way).lower(params).compile().memory_analysis().temp_size_in_bytes for way in (plain, deferred)]
    assert needs[0] > 4 * needs[1], needs
