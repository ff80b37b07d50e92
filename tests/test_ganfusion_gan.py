"""Stage 1: phases by their counters, losses by their logits, meshes, precision, run and resume."""

import functools

import asked
import cheap_keys
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from small_gan import batch, config, model, state, step

from t3d.checkpoint import store as stores
from t3d.core import tree
from t3d.export import renders
from t3d.geom import cameras
from t3d.inference import loading
from t3d.metrics import image as image_metrics
from t3d.systems import ganfusion_gan
from t3d.train import loop


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
