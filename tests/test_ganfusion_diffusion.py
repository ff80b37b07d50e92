"""Stage 2: normalisation, schedule, loss, what trains and what is frozen, sampling, assets, refusals."""

import functools

import asked
import cheap_keys
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_weights
import small_gan

from t3d import systems
from t3d.core import config as configs
from t3d.core import tree
from t3d.core.system import Given
from t3d.diffusion import samplers
from t3d.fields import triplane_generator
from t3d.geom import cameras, triplanes
from t3d.systems import ganfusion_diffusion
from t3d.train import loop

GENERATOR = (*small_gan.GENERATOR, 'generator.features=5', 'render.samples=6')
SMALL = (
    'batch=4',
    'steps=4',
    'optimizer.kernels=adam',  # equal parameters on eight devices, which Muon's rounding does not give
    'text.width=16',
    'text.layers=1',
    'text.heads=2',
    'text.words=("a","red","blue","cube","cone")',
    'unet.block_out_channels=(8,16)',
    'unet.attention_head_dim=2',
    'unet.cross_attention_dim=16',
    'unet.norm_num_groups=4',
    'unet.attention_levels=(False,True)',
    'sample.steps=2',
    'diffusion.timesteps=50',
    'preview.views=2',
    'mesh.data=1',
)


@functools.cache
def config(*overrides):
    return configs.load('configs/ganfusion_diffusion.py:tiny', [*SMALL, *overrides])


@functools.cache
def generator(*overrides):
    """The given generator, without its arrays."""
    return triplane_generator.Generator(configs.load('configs/ganfusion_gan.py:tiny', [*GENERATOR, *overrides]))


@functools.cache
def model(*overrides):
    return with_statistics(ganfusion_diffusion.Model(config(*overrides), generator()))


def with_statistics(made):
    made.mean, made.std = (value.reshape(3, 1, 1, 4) for value in statistics())
    return made


def given():
    """{'generator': Given}: random weights, none of them zero."""
    return {'generator': Given(generator(), frozen(), None, 'random')}


@functools.cache
def system(*overrides):
    """The system whose config holds the statistics of the generator's own planes."""
    made = config(*overrides).to_dict()
    made['planes'] = dict(zip(('mean', 'std'), (tuple(value.tolist()) for value in statistics())))
    return systems.make(configs.from_dict(made), given())


@functools.cache
def frozen():
    params, buffers = jax.jit(generator().init)(cheap_keys.key(7))
    return random_weights.shaken({'generator': params, 'buffers': buffers})


@functools.cache
def statistics():
    """(mean, deviation) [12] of 64 objects of the generator."""
    seeds = jnp.arange(64, dtype=jnp.uint32)
    draw = lambda tree: generator().planes_of_seeds(tree['generator'], tree['buffers'], seeds)
    rows = np.asarray(jax.jit(draw)(frozen()), np.float64).transpose(0, 2, 3, 1, 4).reshape(-1, 12)
    return rows.mean(0).astype(np.float32), rows.std(0).astype(np.float32)


@functools.cache
def params():
    """Random weights, none of them zero."""
    return random_weights.shaken(jax.jit(model().init)(cheap_keys.key(0), batch()['tokens'][:1]))


@pytest.fixture(autouse=True, scope='module')
def ready():
    """What is made once must not first be asked for while something else is traced."""
    params()
    planes()


def batch():
    words = ['a red cube', 'a blue cone', 'a cube', 'blue cube']
    return {'tokens': model().text.tokenize(words), 'seed': np.array([3, 1, 4, 15], np.uint32)}


@functools.cache
def planes():
    """The generator's planes of the batch's seeds."""
    return jax.jit(model().planes_of_seeds)(frozen(), batch()['seed'])


# ------------------------------------------------------------------------------------------------ planes and their scale


def test_a_seed_gives_the_same_planes_whatever_the_batch_and_other_seeds_others():
    alone = jax.jit(model().planes_of_seeds)(frozen(), jnp.array([4], jnp.uint32))
    np.testing.assert_allclose(planes()[2], alone[0], atol=1e-5)
    assert np.abs(planes()[2] - planes()[1]).max() > 0.1
    z = np.asarray(jax.random.normal(jax.random.key(np.uint32(4)), (8,)))
    np.testing.assert_array_equal(model().generator.z_of_seed(np.array([4], np.uint32))[0], z)


def test_normalised_planes_have_the_statistics_of_numpy_and_come_back():
    network = model()
    many = jax.jit(network.planes_of_seeds)(frozen(), jnp.arange(64, dtype=jnp.uint32))
    normal = np.asarray(network.normalise(many), np.float64)
    assert normal.shape == (64, 3, 8, 8, 4)
    for plane, channel in np.ndindex(3, 4):
        values = normal[:, plane, :, :, channel]
        mean = sum(values.ravel()) / values.size  # two passes, by hand
        assert abs(mean) < 1e-5 and abs(np.sqrt(sum((values.ravel() - mean) ** 2) / values.size) - 1.0) < 1e-5
    np.testing.assert_allclose(network.denormalise(network.normalise(many)), many, atol=1e-5)


def test_channels_of_the_statistics_are_those_of_the_packed_planes():
    planes = configs.from_dict({'mean': tuple(range(12)), 'std': (2.0,) * 12})
    made = ganfusion_diffusion.Model(config(), generator())
    made.mean, made.std = ganfusion_diffusion.statistics(planes, 12)
    packed = np.asarray(triplanes.pack(made.denormalise(jnp.zeros((1, 3, 8, 8, 4)))))
    np.testing.assert_array_equal(packed[0, 3, 5], np.arange(12))


def test_planes_that_were_normalised_and_back_render_identically():
    network = model()
    back = network.denormalise(network.normalise(planes()))
    label = cameras.to_eg3d(cameras.orbit(np.linspace(0, 2, 4), 0.3, 3.2, 0.7))
    render = jax.jit(lambda planes: network.generator.render(frozen()['generator'], planes, label, None, size=8))
    for a, b in zip(render(planes()), render(back)):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert render(planes()).features.std() > 0.01


# --------------------------------------------------------------------------------------------------------------- diffusion


def test_the_shift_moves_log_snr_and_nothing_else():
    section = config().diffusion
    schedule = ganfusion_diffusion.make_schedule(section)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 50) ** 2
    alpha_bar = np.cumprod(1.0 - betas)
    np.testing.assert_allclose(schedule.log_snr, np.log(alpha_bar / (1 - alpha_bar)) - 2.0, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(schedule.signal**2 + schedule.noise**2, 1.0, atol=1e-6)
    assert schedule.prediction == 'x0' and schedule.clip == 5.0 and schedule.spacing == 'trailing'


def test_ddim_of_an_oracle_returns_its_planes_and_clips_beyond_the_limit():
    schedule = ganfusion_diffusion.make_schedule(config().diffusion)
    clean = model().normalise(planes())
    clean = clean.at[0, 0, 0, 0, 0].set(9.0)
    noise = jax.random.normal(jax.random.key(0), clean.shape)
    sample = samplers.ddim(lambda x, t: clean, schedule, noise, steps=5, rederive=True)
    np.testing.assert_allclose(sample, np.clip(clean, -5.0, 5.0), atol=1e-5)


@pytest.mark.parametrize('prediction', ['x0', 'v', 'eps'])
def test_the_loss_is_that_of_a_naive_pass(prediction):
    """Clipped normalised planes, noise at the drawn times, the target of the prediction, min-SNR weights, in numpy."""
    options = (f'diffusion.prediction={prediction}', 'diffusion.min_snr=5.0', 'drop_text=0.0', 'diffusion.clip=1.5')
    network = with_statistics(ganfusion_diffusion.Model(config(*options), generator()))
    seen, call = [], jax.jit(network.predict)
    network.predict = lambda *args: seen.append((*args[1:3], call(*args))) or seen[-1][-1]
    loss, metrics = network.loss(params(), frozen(), planes(), batch()['tokens'], jax.random.key(3))
    noisy, t, output = (np.asarray(value, np.float64) for value in seen[0])
    mean, std = (value.reshape(3, 1, 1, 4) for value in statistics())
    clean = np.clip((np.asarray(planes(), np.float64) - mean) / std, -1.5, 1.5)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 50) ** 2
    snr = np.cumprod(1 - betas) / (1 - np.cumprod(1 - betas)) * np.exp(-2.0)
    snr = snr[t.astype(int)].reshape(-1, 1, 1, 1, 1)
    a, s = np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))
    noise = (noisy - a * clean) / s
    assert abs(noise.std() - 1.0) < 0.1 and abs(noise.mean()) < 0.1  # moments of the draw
    target = {'x0': clean, 'v': a * noise - s * clean, 'eps': noise}[prediction]
    each, snr = np.mean((output - target) ** 2, axis=(1, 2, 3, 4)), snr.reshape(-1)
    weight = np.minimum(snr, 5.0) / {'x0': 1.0, 'v': snr + 1.0, 'eps': snr}[prediction]
    np.testing.assert_allclose(float(loss), np.mean(weight * each), rtol=2e-4)
    np.testing.assert_allclose(float(metrics['mse']), each.mean(), rtol=2e-4)
    np.testing.assert_allclose(float(metrics['clipped']), np.mean(np.abs(clean) >= 1.5), atol=1e-3)


def test_dropped_text_is_not_read():
    ids, _ = batch()['tokens'], planes()
    for share in (0.0, 1.0):
        network = model(f'drop_text={share}')
        loss = jax.jit(lambda ids, network=network: network.loss(params(), frozen(), planes(), ids, jax.random.key(2))[0])
        assert (loss(ids) == loss(np.roll(ids, 1, axis=0))) == (share == 1.0)


def test_the_auxiliary_loss_renders_what_is_predicted():
    network = model('aux.weight=0.1', 'aux.size=4')
    clean = model().normalise(planes())
    error = jax.jit(lambda x0, t: network.rendered_error(frozen(), clean, x0, t, jax.random.key(0)))
    early, late = np.array([0, 3, 11, 12]), np.array([13, 13, 30, 49])
    assert float(error(clean, early)) < 1e-10 and float(error(-clean, late)) == 0.0
    assert float(error(-clean, early)) > 1e-4
    loss, metrics = jax.jit(network.loss)(params(), frozen(), planes(), batch()['tokens'], jax.random.key(1))
    assert set(metrics) >= {'loss/aux', 'loss/planes'}
    np.testing.assert_allclose(loss, metrics['loss/aux'] + metrics['loss/planes'], rtol=1e-6)


def test_guidance_of_one_is_the_conditional_model_and_of_zero_the_unconditional():
    network, ids = model(), batch()['tokens'][:2]
    keys = jax.random.split(jax.random.key(4), 2)
    draw = lambda ids, scale: np.asarray(network.draw(params(), ids, keys, scale))
    plain, none = draw(ids, 1.0), draw(np.asarray(network.text.none(ids)), 1.0)
    assert plain.shape == (2, 3, 8, 8, 4)
    np.testing.assert_allclose(draw(ids, jnp.float32(1.0)), plain, atol=1e-4)
    np.testing.assert_allclose(draw(ids, 0.0), none, atol=1e-4)
    assert np.abs(plain - none).max() > 1e-3


# ---------------------------------------------------------------------------------------------------------------- training


@functools.cache
def trained():
    """(first state, state after 40 steps on one batch, losses, number of traces)."""
    made = system('steps=100', 'optimizer.warmup=1', 'optimizer.learning_rate=5e-3')
    rows, traces, losses = batch(), [], []
    first = state = jax.jit(made.init)(cheap_keys.key(0), rows, {'generator': frozen()})

    @jax.jit
    def step(state, key):
        traces.append(0)
        return made.train_step(state, rows, key, {'generator': frozen()})

    for n in range(40):
        state, metrics = step(state, jax.random.key(n % 4))
        losses.append(float(metrics['loss']))
    return first, state, losses, len(traces)


def test_one_batch_is_learnt_by_one_program():
    _, _, losses, traces = trained()
    assert traces == 1 and abs(np.mean(losses[:1]) - 1.0) < 0.3  # a new network says 0, planes have variance 1
    assert np.mean(losses[-4:]) < 0.6 * np.mean(losses[:4])


def test_every_parameter_moves_and_so_does_its_average():
    first, state, *_ = trained()
    for before, after in ((first.params, state.params), (first.ema, state.ema)):
        old, new = tree.flatten(before), tree.flatten(after)
        still = {name for name in old if np.all(np.asarray(old[name]) == np.asarray(new[name]))}
        assert still == {'text/layers/key/bias'}  # it has no gradient


def test_the_given_generator_is_no_part_of_the_state():
    first = jax.eval_shape(system().init, jax.random.key(0), batch(), {'generator': frozen()})
    assert set(first.params) == set(first.ema) == {'text', 'denoiser'}
    assert not [name for name in tree.flatten(first) if 'backbone' in name or 'mapping' in name]
    frozen_text = system('text.frozen=true')
    abstract = jax.eval_shape(frozen_text.init, jax.random.key(0), frozen_text.batch_spec, {'generator': frozen()})
    assert not [name for name in tree.flatten(abstract.opt_state) if 'text' in name]
    after, _ = jax.eval_shape(
        frozen_text.train_step, abstract, frozen_text.batch_spec, jax.random.key(0), {'generator': frozen()}
    )
    assert set(after.params) == {'text', 'denoiser'}


@pytest.mark.parametrize('overrides', [('layout=rollout',), ('layout=rollout_axis', 'cross_plane=true')])
def test_the_other_layouts_train(overrides):
    made, rows, others = system(*overrides), batch(), {'generator': frozen()}
    state = jax.eval_shape(made.init, jax.random.key(0), rows, others)
    after, metrics = jax.eval_shape(made.train_step, state, rows, jax.random.key(0), others)
    assert jax.tree.structure(after) == jax.tree.structure(state) and metrics['loss'].shape == ()


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(tmp_path):
    source = [{'tokens': tokens, 'seed': np.uint32(n)} for n, tokens in enumerate(np.tile(batch()['tokens'], (3, 1)))]
    data = (source, lambda record, random: record)
    run = functools.partial(loop.run, config(), system=system(), given=given(), data=data, log=lambda line: None)
    from t3d.checkpoint import store as stores

    def end(folder):
        store = stores.Store(folder / 'checkpoints', read_only=True)
        try:
            return jax.device_get(store.restore_weights())
        finally:
            store.close()

    run(tmp_path / 'whole')
    run(tmp_path / 'parts', stop_after=2)
    run(tmp_path / 'parts')
    jax.tree.map(np.testing.assert_array_equal, end(tmp_path / 'whole'), end(tmp_path / 'parts'))


# ------------------------------------------------------------------------------------------------------------------ assets


def test_generated_assets_do_not_depend_on_their_neighbours_and_render_as_the_generator_does():
    network, key, others = model(), jax.random.key(5), {'generator': frozen()}
    first, second = asked.generate(system(), params(), ['a red cube', 'a blue cone'], key, others)
    again, _ = asked.generate(system(), params(), ['a red cube', 'a cone'], key, others)
    np.testing.assert_allclose(first.scene['planes'], again.scene['planes'], atol=1e-4)
    assert second.prompt == 'a blue cone' and first.bound == pytest.approx(0.8) and first.camera['radius'] == pytest.approx(3.2)
    views = network.orbit(2)
    out = jax.jit(first.render)(first.scene, cameras.rays(views, 8, 8))
    scene = first.scene
    planes = jnp.broadcast_to(scene['planes'], (2, *scene['planes'].shape))
    expected = network.generator.render(frozen()['generator'], planes, cameras.to_eg3d(views), None, size=8)
    np.testing.assert_allclose(out.features, np.clip(0.5 + 0.5 * expected.features[..., :3], 0, 1), atol=1e-5)
    density, rgb = first.field(first.scene, np.zeros((5, 3), np.float32))
    assert density.shape == (5,) and np.all(density > 0) and rgb.shape == (5, 3)
    image = jax.jit(network.picture)(first.scene, views)
    assert image.shape == (2, 16, 16, 3) and image.min() >= 0 and image.max() <= 1 and image.std() > 0.01


def test_previews_show_upsampled_views_beside_raw_ones():
    images = jax.jit(system().preview)(params(), batch(), jax.random.key(0), {'generator': frozen()})
    assert images.shape == (4, 16, 4 * 16, 3)
    raw = np.asarray(images[:, :, 2 * 16 :])
    np.testing.assert_array_equal(raw[:, ::2, ::2], raw[:, 1::2, 1::2])  # pixels twice as large


@pytest.mark.parametrize('style, value', [('ones_w', 1.0), ('w_avg', 0.25)])
def test_styles_of_an_upsampler_that_reads_w(style, value):
    network = ganfusion_diffusion.Model(config(f'sr_style={style}'), generator('generator.sr_style=w'))
    scene = {'w_avg': jnp.full(8, 0.25), 'planes': jnp.zeros(network.shape)}
    np.testing.assert_allclose(network.style(scene, 3), np.full((3, 8), value))
    assert model().style(scene, 3) is None
    weights, _ = jax.jit(network.generator.init)(cheap_keys.key(0))
    features = jax.random.normal(jax.random.key(1), (3, 8, 8, 5))
    up = jax.jit(network.generator.upsample)
    image = up(weights, features, network.style(scene, 3))
    assert np.abs(image - up(weights, features, jnp.full((3, 8), -value))).max() > 1e-4
