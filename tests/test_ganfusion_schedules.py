"""Stage 1: schedules, averages and optimizers by closed form, shared fakes, and what a config may not ask for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from small_gan import batch, config, model, state, step

from t3d.core import config as configs
from t3d.core import optim
from t3d.core.errors import UsageError
from t3d.nets import stylegan2_discriminator as discriminators
from t3d.systems import ganfusion_gan
from t3d.systems import ganfusion_gan_schedules as schedules


def test_lazy_adam_is_adam_by_hand_over_a_hundred_iterations():
    with jax.enable_x64(True):
        lazy_adam_by_hand()


def lazy_adam_by_hand():
    optimizer = optim.lazy_adam(learning_rate=0.0025, interval=4, b1=0.0, b2=0.99)
    value, state = jnp.float64(1.0), optimizer.init(jnp.float64(1.0))
    rate, decay = 0.0025 * 4 / 5, 0.99**0.8
    assert rate == pytest.approx(0.0020)
    weight, second, count = 1.0, 0.0, 0
    random = np.random.default_rng(0)
    for _ in range(100):
        gradient = random.normal()
        updates, state = optimizer.update(jnp.float64(gradient), state, value)
        value += updates
        count, second = count + 1, decay * second + (1 - decay) * gradient**2
        weight -= rate * gradient / (np.sqrt(second / (1 - decay**count)) + 1e-8)
    np.testing.assert_allclose(value, weight, atol=1e-7)
    assert optim.lazy_adam(learning_rate=0.002, interval=16).init(jnp.zeros(())) is not None


def test_schedules_by_closed_form():
    made = model('blur.sigma=10.0', 'blur.images=2000', 'swap.p=0.8', 'swap.images=1000')
    for iteration in (0, 1, 100, 249, 250, 400, 10_000):
        images = iteration * 8
        now = made.schedules(jnp.int32(iteration))
        np.testing.assert_allclose(now.sigma, 10.0 * max(1.0 - images / 2000, 0.0), atol=1e-6)
        np.testing.assert_allclose(now.swap, 1.0 - 0.2 * min(images / 1000, 1.0), atol=1e-7)
        half_life = max(min(8 * 10 / 32 * 1000, 0.05 * images), 1e-8)
        np.testing.assert_allclose(now.decay, 0.5 ** (8 / half_life), atol=1e-7)
        long = model('average.images=9000', 'average.rampup=0.5').schedules(jnp.int32(iteration))
        np.testing.assert_allclose(long.decay, 0.5 ** (8 / max(min(9000, 0.5 * images), 1e-8)), atol=1e-7)
    assert model('r1.gamma=0.0').gamma == pytest.approx(0.0002 * 16**2 / 8)
    pod = configs.load('configs/ganfusion_gan.py:pod')
    assert discriminators.r1_gamma(pod.data.size, pod.batch) == pytest.approx(0.3) and pod.r1.gamma == 0.0


def test_rates_fall_by_closed_form():
    """The share at images shown, and an iteration moves both networks by it of what it moves them without."""
    fall = 'fall.images=(100, 900)', 'fall.final=0.25'
    for images, share in ((0, 1.0), (100, 1.0), (500, 0.625), (900, 0.25), (5000, 0.25)):
        np.testing.assert_allclose(schedules.rate(config(*fall), jnp.float32(images)), share, rtol=1e-6)
    assert schedules.rate(config(), jnp.float32(500)) == 1.0
    old, key = state().replace(step=jnp.int32(65)), jax.random.key(4)  # 520 images shown; no lazy phase is due
    whole, less = (run(old, batch(), key)[0] for run in (step(), step(*fall)))
    length = lambda new, name: np.sqrt(
        sum(np.square(b - a).sum() for a, b in zip(*map(jax.tree.leaves, (old.params[name], new.params[name])), strict=True))
    )
    for name, near in (('generator', 1e-4), ('discriminator', 1e-2)):  # the second sees fakes of the moved generator
        np.testing.assert_allclose(length(less, name) / length(whole, name), 1.0 - 0.75 * 420 / 800, rtol=near)


def test_swapped_labels_are_the_next_of_the_micro_batch():
    made = model('generator.pose_conditioning=True')
    label = jnp.arange(8.0)[:, None] * jnp.ones((8, 25))
    swapped = made.conditioning(jax.random.key(0), label, jnp.float32(1.0))[:, 0]
    np.testing.assert_array_equal(swapped, [1, 0, 3, 2, 5, 4, 7, 6])
    np.testing.assert_array_equal(made.conditioning(jax.random.key(0), label, jnp.float32(0.0)), label)
    assert model().conditioning(jax.random.key(0), label, 1.0) is None


def test_swapped_labels_are_the_same_on_four_devices():
    """In micro-batches of 2, under jit and where each device sees its own rows alone."""
    made, key = model('generator.pose_conditioning=True'), jax.random.key(0)
    label = jnp.arange(8.0)[:, None] * jnp.ones((8, 25))
    mesh = jax.make_mesh((4,), ('data',), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))
    rows = PartitionSpec('data')
    sharded, swap = jax.device_put(label, NamedSharding(mesh, rows)), lambda label: made.conditioning(key, label, 1.0)
    local = jax.shard_map(swap, mesh=mesh, in_specs=rows, out_specs=rows)
    for run in (jax.jit(swap), jax.jit(local)):
        np.testing.assert_array_equal(run(sharded)[:, 0], [1, 0, 3, 2, 5, 4, 7, 6])


def test_averages_by_closed_form():
    """w_avg moves to the w of the discriminator's fakes, the generator's average to the parameters after their last move."""
    old, key = state().replace(step=jnp.int32(40)), jax.random.key(4)
    new, _ = step()(old, batch(), key)
    key_fake = jax.random.split(jax.random.split(key, 4)[2], 3)[0]
    z = jax.random.normal(jax.random.split(key_fake, 4)[0], (8, 8))
    w = model().generator.map(new.params['generator'], z)
    expected = 0.998 * old.params['buffers']['w_avg'] + 0.002 * w.mean(0)
    np.testing.assert_allclose(new.params['buffers']['w_avg'], expected, atol=1e-7)
    jax.tree.map(np.testing.assert_array_equal, new.ema['buffers'], new.params['buffers'])
    decay = 0.5 ** (8 / (0.05 * 40 * 8))
    mixed = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old.ema['generator'], new.params['generator'])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), new.ema['generator'], mixed)


def test_shared_fakes_are_those_that_the_generator_was_judged_by():
    """The discriminator's loss, measured by an iteration, is that of the old generator's pictures; w_avg moves to their w."""
    made, old, key = (
        model('fakes=shared', 'density.every=99', 'r1.every=99'),
        state().replace(step=jnp.int32(1)),
        jax.random.key(6),
    )
    new, metrics = jax.jit(made.train_step)(old, batch(), key)
    keys, now, params = jax.random.split(key, 4), made.schedules(jnp.int32(1)), old.params
    key_fake = jax.random.split(keys[0])[0]
    label = batch()['fake_labels'][:, 0]
    image, raw, w, _ = jax.jit(made.fake, static_argnums=5)(params['generator'], params['buffers'], label, key_fake, now, 8)
    _, key_discriminate, key_real = jax.random.split(keys[2], 3)
    judge = jax.jit(made.discriminate)
    fake = judge(params['discriminator'], made.blurred(image, now.sigma), raw, label, key_discriminate, 0.0)
    real = judge(params['discriminator'], *made.real(batch(), now, 8), batch()['label'], key_real, 0.0)
    expected = np.mean(np.logaddexp(0.0, np.float64(fake))) + np.mean(np.logaddexp(0.0, -np.float64(real)))
    np.testing.assert_allclose(metrics['loss/discriminator'], expected, rtol=1e-5)
    average = 0.998 * params['buffers']['w_avg'] + 0.002 * w.mean(0)
    np.testing.assert_allclose(new.params['buffers']['w_avg'], average, rtol=1e-5, atol=1e-7)
    other, _ = step()(old, batch(), key)
    assert np.abs(other.params['buffers']['w_avg'] - average).max() > 1e-6


def test_a_share_of_part_of_a_micro_batch_is_refused():
    """What pmap gives a device of more devices than micro-batches."""
    one = jax.tree.map(lambda leaf: leaf[:1], batch())
    with pytest.raises(UsageError, match='1 samples on a device do not fall into micro-batches of 2'):
        jax.eval_shape(model().train_step, state(), one, jax.random.key(0))


def test_ladder_renders_at_the_resolution_of_its_rung():
    climbing = config('ladder=((0, 8), (8, 16))')
    sizes, run = [], ganfusion_gan.Model(climbing)
    original = run.iteration
    run.iteration = lambda state, batch, key, size: sizes.append(size) or original(state, batch, key, size)
    jax.eval_shape(run.train_step, state(), batch(), jax.random.key(0))
    assert sizes == [8, 16]
    with pytest.raises(UsageError, match='rise from 0 images'):
        schedules.check(config('ladder=((0, 8), (0, 16))'))


def test_wrong_sizes_are_refused():
    with pytest.raises(UsageError, match='generator.sr makes images of 16 pixels, data.size=32'):
        ganfusion_gan.make(config('data.size=32'))
    with pytest.raises(UsageError, match='whole micro-batches'):
        ganfusion_gan.make(config('batch=7'))
    with pytest.raises(UsageError, match="fakes='old': wanted one of 'new', 'shared'"):
        ganfusion_gan.make(config('fakes=old'))
    with pytest.raises(UsageError, match='average.rampup=1.5: wanted'):
        ganfusion_gan.make(config('average.rampup=1.5'))
    unposed = ('data.mode=pose-distribution', 'discriminator.pose=False')
    for labelled in (unposed[:1], (*unposed, 'generator.pose_conditioning=True')):
        with pytest.raises(UsageError, match='no labels to show to a network: set discriminator.pose=False'):
            ganfusion_gan.make(config(*labelled))
    assert model(*unposed).discriminator.c_dim == 0
    with pytest.raises(
        UsageError,
        match="render.plane_axes='ortho': wanted one of 'orthogonal', 'legacy'. Nearest: render.plane_axes=orthogonal",
    ):
        ganfusion_gan.make(config('render.plane_axes=ortho'))
