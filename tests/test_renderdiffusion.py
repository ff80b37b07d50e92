"""RenderDiffusion: which pixels are rendered, what the loss compares, sampling, and that it learns."""

import functools

import asked
import cheap_keys
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_weights

from t3d import systems
from t3d.core import config as configs
from t3d.core import tree
from t3d.core.errors import UsageError
from t3d.core.system import params_of
from t3d.geom import cameras
from t3d.inference import loading
from t3d.systems import renderdiffusion

SMALL = (
    'batch=4',
    'steps=4',
    'text.width=16',
    'text.layers=1',
    'text.heads=2',
    'text.words=("a","red","blue","cube","cone")',
    'unet.block_out_channels=(8,16)',
    'unet.attention_head_dim=2',
    'unet.cross_attention_dim=16',
    'unet.norm_num_groups=4',
    'unet.attention_levels=(False,True)',
    'data.size=16',
    'planes.resolution=8',
    'planes.channels=4',
    'planes.hidden=16',
    'render.samples=6',
    'render.importance=0',
    'sample.steps=2',
    'loss.stride=2',
    'diffusion.timesteps=50',
    'preview.views=2',
)


@functools.cache
def config(*overrides):
    return configs.load('configs/renderdiffusion.py:tiny', [*SMALL, *overrides])


@functools.cache
def model():
    return renderdiffusion.Model(config())


@functools.cache
def params():
    """Random weights, none of them zero."""
    return random_weights.shaken(jax.jit(model().init)(cheap_keys.key(0), batch()['tokens'][:1]))


@pytest.fixture(autouse=True, scope='module')
def ready():
    """What is made once must not first be asked for while something else is traced."""
    params()


def batch():
    """Four noisy discs on grey from random sides."""
    rng = np.random.default_rng(0)
    views = cameras.orbit(rng.uniform(-3, 3, 4), rng.uniform(0, 0.6, 4), 3.2, 0.7)
    row, column = np.mgrid[:16, :16] - 7.5
    inside = (row**2 + column**2 < 25.0)[None, ..., None]
    image = np.where(inside, rng.integers(0, 256, (4, 1, 1, 3)), 128) + rng.integers(0, 4, (4, 16, 16, 3))
    words = ['a red cube', 'a blue cone', 'a cube', 'blue cube']
    image = np.clip(image, 0, 255).astype(np.uint8)
    return {'tokens': model().text.tokenize(words), 'image': image, 'label': np.asarray(cameras.to_eg3d(views))}


@pytest.mark.parametrize('stride', [1, 2, 4])
def test_one_pixel_of_each_cell_is_drawn_and_all_alike(stride):
    index = np.asarray(jax.jit(renderdiffusion.draw_pixels, static_argnums=(1, 2, 3))(jax.random.key(1), 4000, 8, stride))
    assert index.shape == (4000, (8 // stride) ** 2)
    row, column = index // 8, index % 8
    cell = row // stride * (8 // stride) + column // stride
    np.testing.assert_array_equal(cell, np.broadcast_to(np.arange((8 // stride) ** 2), cell.shape))
    share = np.bincount(index.reshape(-1), minlength=64) / 4000 * stride**2
    np.testing.assert_allclose(share, 1.0, atol=0.25)


@pytest.mark.parametrize('stride', [1, 2])
def test_each_pixel_is_compared_with_the_ray_through_its_centre(stride):
    """A renderer that paints its rays' directions, and pictures of these directions by a naive loop: no error is left."""
    loaded, examples = config(f'loss.stride={stride}'), batch()
    network = renderdiffusion.Model(loaded)

    class Painted:
        def __init__(self, rays):
            self.features = 0.5 + 0.5 * rays.directions

    network.colour = lambda decoder, planes, rays, key: Painted(rays)
    image = np.zeros((4, 16, 16, 3))
    for b, i, j in np.ndindex(4, 16, 16):
        pose, lens = examples['label'][b, :16].reshape(4, 4), examples['label'][b, 16:].reshape(3, 3)
        at = np.linalg.solve(lens.astype(np.float64), [(j + 0.5) / 16, (i + 0.5) / 16, 1.0])
        direction = pose[:3, :3].astype(np.float64) @ at
        image[b, i, j] = direction / np.linalg.norm(direction)
    examples['image'] = np.round(127.5 * (image + 1.0)).astype(np.uint8)
    find = jax.jit(lambda some: network.loss(params(), some, jax.random.key(0)))
    loss, metrics = find(examples)
    assert float(loss) < (1.0 / 255) ** 2 and metrics['count/rays'] == 4 * (16 // stride) ** 2
    examples['image'] = examples['image'][:, :, ::-1]
    assert float(find(examples)[0]) > 0.01


def test_text_and_camera_are_read_and_dropped_text_is_not():
    examples, network = batch(), model()
    other = {**examples, 'tokens': np.roll(examples['tokens'], 1, axis=0)}
    for share in (0.0, 1.0):
        some = renderdiffusion.Model(config(f'drop_text={share}'))
        loss = jax.jit(lambda batch, some=some: some.loss(params(), batch, jax.random.key(2))[0])
        assert (loss(examples) == loss(other)) == (share == 1.0)
    x, t = jnp.zeros((4, 16, 16, 3)), jnp.full(4, 7)
    condition = network.text.features(params()['text'], examples['tokens'])
    planes = jax.jit(network.planes)
    first = planes(params(), x, t, condition, examples['label'])
    assert first.shape == (4, 3, 8, 8, 4)
    second = planes(params(), x, t, condition, np.roll(examples['label'], 1, axis=0))
    assert np.abs(first - second).max() > 1e-3
    blind = renderdiffusion.Model(config('camera_embedding=false'))
    assert 'camera' not in jax.eval_shape(blind.init, jax.random.key(0), examples['tokens'][:1])


def test_the_planes_of_the_last_step_are_what_was_last_seen_and_the_asset_renders_them():
    network, examples = model(), batch()
    noise = jax.random.normal(jax.random.key(3), (2, 16, 16, 3))
    sample = jax.jit(lambda ids, noise: network.sample_from(params(), ids, noise, None, 2))
    picture, planes = sample(examples['tokens'][:2], noise)
    assert np.abs(picture).max() <= 1.0 and picture.std() > 0.01
    view = network.orbit(1, config().sample.elevation)
    render = jax.jit(network.render_rays)
    for k in range(2):
        out = render(network.scene(params(), planes[k]), cameras.rays(view, 16, 16))
        np.testing.assert_allclose(2.0 * out.features[0] - 1.0, picture[k], atol=1e-5)
        assert out.opacity.shape == (1, 16, 16) and 0.0 < out.opacity.mean() < 1.0


def test_guidance_of_one_is_the_conditional_model_and_of_zero_the_unconditional():
    network, ids = model(), batch()['tokens'][:2]
    keys = jax.random.split(jax.random.key(4), 2)
    draw = lambda ids, scale: np.asarray(network.draw(params(), ids, keys, scale))
    plain = draw(ids, 1.0)
    np.testing.assert_allclose(draw(ids, jnp.float32(1.0)), plain, atol=1e-4)
    # planes are of the text's pass: without text they are those that no text gives
    none = draw(np.asarray(network.text.none(ids)), 1.0)
    np.testing.assert_allclose(draw(np.asarray(network.text.none(ids)), 3.0), none, atol=1e-4)
    assert np.abs(draw(ids, 3.0) - plain).max() > 1e-4 and np.abs(none - plain).max() > 1e-3


def test_generated_assets_do_not_depend_on_their_neighbours():
    system, key = systems.make(config()), jax.random.key(5)
    first, second = asked.generate(system, params(), ['a red cube', 'a blue cone'], key)
    again, _ = asked.generate(system, params(), ['a red cube', 'a cone'], key)
    np.testing.assert_allclose(first.scene['planes'], again.scene['planes'], atol=1e-5)
    assert second.prompt == 'a blue cone' and first.bound == pytest.approx(0.8) and first.camera['radius'] == pytest.approx(3.2)
    points = np.random.default_rng(0).uniform(-1, 1, (7, 3)).astype(np.float32)
    density, rgb = first.field(first.scene, points)
    assert density.shape == (7,) and np.all(density >= 0) and rgb.shape == (7, 3) and np.all((rgb >= 0) & (rgb <= 1))


def test_steps_learn_move_every_parameter_and_compile_once():
    system = systems.make(config('steps=100', 'optimizer.warmup=1', 'optimizer.learning_rate=5e-3', 'drop_text=0.3'))
    examples, traces = batch(), []
    state = start = jax.jit(system.init)(cheap_keys.key(0), examples)

    @jax.jit
    def step(state, key):
        traces.append(0)
        return system.train_step(state, examples, key)

    losses = []
    for n in range(40):
        state, metrics = step(state, jax.random.key(n % 4))
        losses.append(float(metrics['loss']))
    assert len(traces) == 1 and np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])
    still = [name for name, leaf in tree.flatten(state.params).items() if np.all(leaf == tree.flatten(start.params)[name])]
    assert [name for name in still if 'embedding' not in name] == ['text/layers/key/bias']  # which softmax cancels
    images = jax.jit(system.preview)(state.ema, examples, jax.random.key(0))
    assert images.shape == (4, 16, 2 * 16, 3) and images.min() >= 0.0 and images.max() <= 1.0


@pytest.mark.parametrize(
    'variant', ['tiny', pytest.param('base', marks=pytest.mark.slow), pytest.param('pod', marks=pytest.mark.slow)]
)
def test_parameters_are_matched_to_those_of_ganfusion(variant):
    """All but the text tower against GANFusion's denoiser and generator."""

    def count(name):
        loaded = configs.load(f'configs/{name}.py:{variant}', ['text.words=("a",)'])
        given = loading.open_given(loaded)  # of a config: shapes
        system = systems.make(loaded, given)
        params = jax.eval_shape(system.init, jax.random.key(0), system.batch_spec, params_of(given)).params
        generator = given['generator'].params['generator'] if given else None
        return {part: tree.count(value) for part, value in params.items()}, generator

    (ours, _), (theirs, generator) = count('renderdiffusion'), count('ganfusion_diffusion')
    assert ours['text'] == theirs['text']
    expected = theirs['denoiser'] + tree.count(generator)
    assert abs(sum(ours.values()) - ours['text'] - expected) < 0.01 * expected


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match='planes.resolution=10: the network has 4 positions a side'):
        renderdiffusion.Model(config('planes.resolution=10'))
    with pytest.raises(UsageError, match='loss.stride=3 does not divide data.size=16'):
        renderdiffusion.Model(config('loss.stride=3'))
