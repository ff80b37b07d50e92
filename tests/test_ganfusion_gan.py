"""Stage 1: schedules and optimizers by closed form, phases by their counters, meshes, precision, run and resume."""

import functools

import asked
import cheap_keys
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_weights
from jax.sharding import NamedSharding, PartitionSpec

from t3d.checkpoint import store as stores
from t3d.core import config as configs
from t3d.core import optim, tree
from t3d.core.errors import UsageError
from t3d.data import sources
from t3d.export import renders
from t3d.geom import cameras
from t3d.inference import loading
from t3d.metrics import image as image_metrics
from t3d.nets import stylegan2_discriminator as discriminators
from t3d.systems import ganfusion_gan
from t3d.train import loop

SMALL = (
    'batch=8',
    'micro_batch=2',
    'discriminator.group=2',
    'steps=5',
    'mesh.data=1',
    'generator.z=8',
    'generator.w=8',
    'generator.plane_resolution=8',
    'generator.plane_channels=4',
    'generator.channel_base=64',
    'generator.channel_max=8',
    'generator.hidden=8',
    'generator.features=4',
    'generator.sr.input_size=8',
    'generator.sr.channels=(8,4)',
    'discriminator.channel_base=64',
    'discriminator.channel_max=8',
    'render.size=8',
    'render.samples=4',
    'render.importance=4',
    'blur.sigma=1.0',
    'data.size=16',
    'data.poses=2',
    'data.supersample=1',
    'density.every=2',
    'r1.every=3',
    'preview.rows=2',
    'preview.views=2',
    'preview_every=0',
    'log_every=1',
)


@functools.cache
def config(*overrides):
    return configs.load('configs/ganfusion_gan.py:tiny', [*SMALL, *overrides])


@functools.cache
def model(*overrides):
    return ganfusion_gan.Model(config(*overrides))


@functools.cache
def batch():
    source, transform = sources.make(config())
    rows = [transform(source[k], np.random.default_rng(k)) for k in range(8)]
    return {name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]}


@functools.cache
def state(*overrides):
    """A state whose every parameter is random: no bias, noise strength or average is zero."""
    made = jax.jit(ganfusion_gan.make(config(*overrides)).init)(cheap_keys.key(0), batch())
    params = random_weights.shaken(made.params)
    return made.replace(params=params, ema={name: params[name] for name in ('generator', 'buffers')})


@functools.cache
def step():
    return jax.jit(ganfusion_gan.make(config()).train_step)


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
        np.testing.assert_allclose(optim.ema_decay_of_images(now.images, 8), 0.5 ** (8 / half_life), atol=1e-7)
    assert model('r1.gamma=0.0').gamma == pytest.approx(0.0002 * 16**2 / 8)
    pod = configs.load('configs/ganfusion_gan.py:pod')
    assert discriminators.r1_gamma(pod.data.size, pod.batch) == pytest.approx(0.3) and pod.r1.gamma == 0.0


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


def test_each_phase_runs_when_it_is_due_with_a_step_of_its_own():
    now = state()
    counts = []
    for iteration in range(7):
        now, metrics = step()(now, batch(), jax.random.fold_in(jax.random.key(3), iteration))
        counts.append([int(now.opt_state[name][0].count) for name in ('generator', 'discriminator')])
        assert all(np.isfinite(value) for value in metrics.values())
    due = lambda every: np.cumsum([1 + (iteration % every == 0) for iteration in range(7)])
    np.testing.assert_array_equal(counts, np.stack([due(2), due(3)], -1))
    before = tree.flatten(state().params)
    still = {name for name, leaf in tree.flatten(now.params).items() if np.array_equal(leaf, before[name])}
    assert still == {  # the upsampler has no noise, only released weights' places for it
        name for name in before if name.endswith('noise_const') or 'superres' in name and name.endswith('noise_strength')
    }


def test_losses_are_those_of_the_logits():
    made, params, key = model('opacity.weight=6.0', 'opacity.images=(4,12)'), state().params, jax.random.key(5)
    now, keys = made.schedules(jnp.int32(1)), jax.random.split(key)
    assert (float(now.opaque), float(made.schedules(jnp.int32(9)).opaque)) == (3.0, 6.0)
    assert float(made.schedules(jnp.int32(0)).opaque) == 0.0
    label = batch()['fake_labels'][:, 0]
    image, raw, w, opacity = jax.jit(made.fake, static_argnums=5)(
        params['generator'], params['buffers'], label, keys[0], now, 8
    )
    assert image.shape == (8, 16, 16, 3) and raw.shape == (8, 8, 8, 3) and w.shape == (8, 8) and opacity.shape == (8, 8, 8)
    logits = made.discriminate(params['discriminator'], made.blurred(image, now.sigma), raw, label, keys[1], 0.0)
    loss, measured = jax.jit(made.generator_loss, static_argnums=5)(params['generator'], params, batch(), key, now, 8, 0.0)
    adversarial = np.mean(np.log1p(np.exp(-np.float64(logits))))
    translucency = 1.0 - np.mean((1.0 - 2.0 * np.float64(opacity)) ** 2)  # 0 where every ray is 0 or 1
    np.testing.assert_allclose(measured['loss/generator'], adversarial, rtol=2e-5)
    np.testing.assert_allclose(measured['translucency'], translucency, rtol=2e-5)
    np.testing.assert_allclose(loss, adversarial + 3.0 * translucency, rtol=2e-5)
    assert 0.01 < translucency < 1.0
    unblurred = made.discriminate(params['discriminator'], image, raw, label, keys[1], 0.0)
    assert np.abs(unblurred - logits).max() > 1e-3


def test_a_share_of_part_of_a_micro_batch_is_refused():
    """What pmap gives a device of more devices than micro-batches."""
    one = jax.tree.map(lambda leaf: leaf[:1], batch())
    with pytest.raises(UsageError, match='1 samples on a device do not fall into micro-batches of 2'):
        jax.eval_shape(model().train_step, state(), one, jax.random.key(0))


def test_density_loss_compares_neighbours():
    made, params = model(), state().params
    loss, measured = jax.jit(made.density_loss)(
        params['generator'], params, batch(), jax.random.key(0), made.schedules(jnp.int32(0))
    )
    np.testing.assert_allclose(loss, 0.25 * 2 * measured, rtol=1e-6)
    planes = jnp.ones((1, 3, 8, 8, 4))
    raw, _ = made.generator.field(params['generator'], planes)(jnp.zeros((1, 2, 3)))
    assert measured > 0 and raw[0, 0] == raw[0, 1]


def test_losses_and_gradients_do_not_depend_on_the_mesh():
    """8 samples in micro-batches of 2, on one device and on four."""
    mesh = jax.make_mesh((4,), ('data',), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))
    everywhere, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ('data',)))
    one, metrics = step()(state(), batch(), jax.random.key(3))
    with jax.set_mesh(mesh):
        run = jax.jit(ganfusion_gan.make(config()).train_step, out_shardings=(everywhere, everywhere))
        placed = jax.device_put((state(), jax.random.key(3)), everywhere)
        four, metrics4 = run(placed[0], jax.device_put(batch(), rows), placed[1])
    one, metrics, four, metrics4 = jax.device_get((one, metrics, four, metrics4))
    for name, value in metrics.items():
        np.testing.assert_allclose(metrics4[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(four.params['buffers']['w_avg'], one.params['buffers']['w_avg'], rtol=1e-5, atol=1e-8)
    for name in one.opt_state:  # Adam's second moments: of the gradients of both phases
        a, b = (
            np.concatenate([np.sqrt(leaf).ravel() for leaf in jax.tree.leaves(at.opt_state[name][0].nu)]) for at in (one, four)
        )
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a), name


def test_half_precision_changes_the_picture_by_little():
    params = state().params
    pictures = []
    for dtype in ('float32', 'bfloat16'):
        made = model(f'dtype={dtype}')
        z = jax.random.normal(jax.random.key(0), (8, 8))
        ws = made.generator.ws(params['generator'], params['buffers'], z)
        image, _ = jax.jit(made.generator.image)(params['generator'], params['buffers'], ws, batch()['label'])
        pictures.append(np.asarray(image, np.float32) * 0.5 + 0.5)
    assert np.min(image_metrics.psnr(*pictures)) > 40.0 and not np.array_equal(*pictures)


def test_the_renderer_learns_one_image():
    """Planes and decoder alone, by gradient descent on one 16 x 16 view."""
    import optax

    made, params = model('render.samples=8', 'render.importance=8'), state().params['generator']
    label = batch()['label'][:1]
    target = jax.image.resize(batch()['image'][:1] / 127.5 - 1.0, (1, 16, 16, 3), 'linear')
    weights = {'planes': jax.random.normal(jax.random.key(0), (1, 3, 16, 16, 4)), 'decoder': params['decoder']}
    optimizer = optax.adam(0.02)

    def error(weights, key):
        seen = made.generator.render(weights, weights['planes'], label, key, size=16)
        return jnp.mean(jnp.square(seen.features[..., :3] - target))

    @jax.jit
    def learn(weights):
        def one(carry, key):
            weights, opt = carry
            loss, gradient = jax.value_and_grad(error)(weights, key)
            updates, opt = optimizer.update(gradient, opt)
            return (jax.tree.map(jnp.add, weights, updates), opt), loss

        return jax.lax.scan(one, (weights, optimizer.init(weights)), jax.random.split(jax.random.key(1), 300))

    (weights, _), losses = learn(weights)
    peak = 10 * np.log10(4.0 / float(error(weights, None)))  # images span [-1, 1]
    assert peak > 30.0 and losses[0] > 20 * losses[-1]


def test_the_conditioning_label_does_not_follow_the_camera():
    """z decides who is shown; with a fixed conditioning label the planes are those of every camera."""
    made = model('generator.pose_conditioning=True')
    params = jax.jit(made.init)(cheap_keys.key(0))
    z = jax.random.normal(jax.random.key(1), (2, 8))
    front = made.generator.map(params['generator'], z)
    label = cameras.to_eg3d(cameras.orbit(0.0, 0.0, 3.2, 0.7027699))
    np.testing.assert_allclose(front, made.generator.map(params['generator'], z, jnp.stack([label, label])), atol=1e-6)
    assert np.abs(front - made.generator.map(params['generator'], z, batch()['label'][:2])).max() > 1e-4


def test_ladder_renders_at_the_resolution_of_its_rung():
    climbing = config('ladder=((0, 8), (8, 16))')
    sizes, run = [], ganfusion_gan.Model(climbing)
    original = run.iteration
    run.iteration = lambda state, batch, key, size: sizes.append(size) or original(state, batch, key, size)
    jax.eval_shape(run.train_step, state(), batch(), jax.random.key(0))
    assert sizes == [8, 16]
    with pytest.raises(UsageError, match='rise from 0 images'):
        ganfusion_gan.check(config('ladder=((0, 8), (0, 16))'))


def test_wrong_sizes_are_refused():
    with pytest.raises(UsageError, match='generator.sr makes images of 16 pixels, data.size=32'):
        ganfusion_gan.make(config('data.size=32'))
    with pytest.raises(UsageError, match='whole micro-batches'):
        ganfusion_gan.make(config('batch=7'))
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


def test_a_restored_state_goes_on_with_the_same_bits(tmp_path):
    """Both networks, both optimizers, the averages, w_avg and what the lazy phases last measured."""
    store = stores.Store(tmp_path / 'checkpoints')
    whole = state()
    for iteration in range(5):
        whole, _ = step()(whole, batch(), jax.random.fold_in(jax.random.key(3), iteration))
        if iteration == 1:
            store.save(whole, data={'position': 2, 'batch': 8}, config=config().to_dict(), metrics={'loss': 1.0})
            store.wait()
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), whole)
    again = store.restore(target).state
    store.close()
    assert int(again.step) == 2 and np.abs(again.params['buffers']['w_avg']).max() > 0 and again.extras['r1'] > 0
    for iteration in range(2, 5):
        again, _ = step()(again, batch(), jax.random.fold_in(jax.random.key(3), iteration))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole), jax.device_get(again))


def test_assets_and_sheets():
    system, params = ganfusion_gan.make(config()), state().ema
    one, two = asked.generate(system, params, ['one', 'two'], jax.random.key(0))
    density, rgb = one.field(one.scene, jnp.asarray([[0.0, 0.0, 0.0], [0.9, 0.0, 0.0]]))
    assert density[0] > 0 and density[1] == 0 and rgb.shape == (2, 3)
    views = cameras.turntable(3, elevation=0.3, radius=3.2, fov=0.7)
    pictures = jax.jit(one.picture)(one.scene, views)
    assert pictures.shape == (3, 16, 16, 3) and 0 <= pictures.min() and pictures.max() <= 1
    frames = renders.render_views(one, views, 32)
    expected = jax.image.resize(pictures, (3, 32, 32, 3), 'bilinear')
    np.testing.assert_allclose(frames.rgb, expected, atol=1e-5)
    sheet = np.asarray(jax.jit(system.preview)(params, batch(), jax.random.key(0)))
    assert sheet.shape == (2, 16, 16 * 5, 3) and sheet.std() > 0.01
    assert np.abs(one.scene['planes'] - two.scene['planes']).max() > 1e-3


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path):
    """Through the loop, with augmentations."""
    run = functools.partial(loop.run, config('augment.on=True', 'augment.p=0.3'), log=lambda line: None)
    whole, cut = run(tmp_path / 'whole'), run(tmp_path / 'cut', stop_after=2)
    run(tmp_path / 'cut')
    models = [loading.load(folder) for folder in (whole, cut)]
    assert models[0].step == models[1].step == 5
    jax.tree.map(np.testing.assert_array_equal, *(jax.device_get(loaded.weights) for loaded in models))


@pytest.mark.slow
def test_half_precision_stays_finite_for_five_hundred_steps():
    system = ganfusion_gan.make(config('dtype=bfloat16', 'generator.clamp=256.0', 'discriminator.clamp=256.0'))
    now, run = state('dtype=bfloat16'), jax.jit(system.train_step)
    for iteration in range(500):
        now, metrics = run(now, batch(), jax.random.fold_in(jax.random.key(3), iteration))
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((now.params, now.ema, now.opt_state)))
