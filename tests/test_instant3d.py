import functools

import asked
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d import systems
from t3d.core import config as configs
from t3d.core import tree
from t3d.data import sources
from t3d.systems import instant3d_supervision

SMALL = (
    'batch=2',
    'decoder.channels=(16,8,8)',
    'decoder.heads=(2,2,0)',
    'decoder.groups=(4,4,4)',
    'decoder.mid_heads=2',
    'decoder.base_channels=8',
    'decoder.mixer_width=8',
    'decoder.mixer_heads=2',
    'decoder.style_width=8',
    'decoder.style_channels=8',
    'decoder.out_channels=12',
    'decoder.out_groups=4',
    'text.width=16',
    'text.heads=2',
    'loss.rays=16',
    'render.samples=8',
    'render.samples_shown=8',
    'data.size=16',
    'field.hidden=8',
)


@functools.cache
def small(*overrides):
    config = sources.resolve(configs.load('configs/instant3d.py:tiny', [*SMALL, *overrides]))
    return config, systems.make(config)


@functools.cache
def started():
    """(config, system, batch, state) of the plain small system; never donated."""
    config, system = small()
    batch = a_batch(config)
    return config, system, batch, jax.jit(system.init)(jax.random.key(0), batch)


def a_batch(config):
    source, transform = sources.make(config, None, instant3d_supervision.batch_spec(config))
    random = np.random.default_rng(0)
    examples = [transform(source[k], random) for k in range(config.batch)]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def test_the_data_delivers_what_the_system_asks_for():
    config, system = small('loss.depth=0.1')
    batch = a_batch(config)
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in system.batch_spec.items()
    }


def test_a_step_traces_once_learns_and_moves_every_parameter():
    config, system = small('loss.depth=0.1')
    batch = a_batch(config)
    state = jax.jit(system.init)(jax.random.key(0), batch)
    before = tree.copy(state)
    step = jax.jit(chex.assert_max_traces(system.train_step, n=1))
    losses = []
    for k in range(30):
        state, metrics = step(state, batch, jax.random.key(k))
        losses.append(float(metrics['loss']))
    assert int(state.step) == 30 and np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    np.testing.assert_allclose(metrics['loss'], sum(metrics[f'loss/{part}'] for part in ('rgb', 'mask', 'depth')), rtol=1e-6)
    old = tree.flatten(before.params)
    assert old.pop('field/alpha') == np.float32(0.7) and 0.7 <= state.params['field']['alpha'] < 0.71  # scheduled, not learned
    still = [name for name, leaf in tree.flatten(state.params).items() if name in old and np.array_equal(leaf, old[name])]
    assert still == ['text/layers/key/bias']  # which softmax cancels
    for name, leaf in tree.flatten(state.ema).items():
        assert name in ('field/alpha', *still) or not np.array_equal(leaf, tree.flatten(state.params)[name]), name


def test_the_same_key_gives_the_same_step_and_another_key_another():
    _, system, batch, state = started()
    step = jax.jit(system.train_step)
    one, two, other = (step(state, batch, jax.random.key(k))[1]['loss'] for k in (5, 5, 6))
    assert one == two != other


def test_a_frozen_text_tower_gets_no_gradient():
    config, system = small('text.frozen=true')
    batch = a_batch(config)
    state = jax.jit(system.init)(jax.random.key(0), batch)
    after, _ = jax.jit(system.train_step)(state, batch, jax.random.key(1))
    for name, leaf in tree.flatten(after.params['text']).items():
        np.testing.assert_array_equal(leaf, tree.flatten(state.params['text'])[name], err_msg=name)


def test_preview_shows_renders_beside_targets():
    config, system, _, state = started()
    batch, labels = sources.preview(config, system.batch_spec)
    params = state.params
    images = jax.jit(system.preview)(params, batch, jax.random.key(0))
    views = config.preview.views
    assert images.shape == (len(labels), 16, 2 * views * 16, 3) and images.min() >= 0 and images.max() <= 1
    expected = instant3d_supervision.over(batch['image'], config.render.background)  # [B, V, H, W, 3]
    strip = np.concatenate(list(np.moveaxis(np.asarray(expected), 1, 0)), 2)
    np.testing.assert_allclose(images[:, :, views * 16 :], strip, atol=1e-6)


def test_an_asset_renders_its_own_field():
    config, system, _, state = started()
    params = state.params
    asset, other = asked.generate(system, params, ['a red cube', 'a small blue cone'], jax.random.key(0))
    from t3d.geom import cameras

    rays = cameras.rays(cameras.orbit(0.3, 0.2, 3.2, 0.7), 6, 6)
    out = jax.jit(asset.render)(asset.scene, rays)
    assert out.features.shape == (6, 6, 3) and out.opacity.shape == (6, 6)
    density, rgb = asset.field(asset.scene, jnp.zeros((5, 3)))
    assert density.shape == (5,) and rgb.shape == (5, 3) and density.min() >= 0 and 0 <= rgb.min() and rgb.max() <= 1
    assert asset.render == other.render and asset.field == other.field  # equal keys of the jit cache: one compiled program
    alone = asked.generate(system, params, ['a red cube'], jax.random.key(0))[0]
    np.testing.assert_allclose(alone.scene['planes'], asset.scene['planes'], atol=1e-5)
    assert np.abs(other.scene['planes'] - asset.scene['planes']).max() > 1e-3


def test_rays_that_miss_the_box_show_the_background():
    config, system, _, state = started()
    params = state.params
    asset = asked.generate(system, params, ['a red cube'], jax.random.key(0))[0]
    from t3d.geom.rays import Rays

    origins = jnp.array([[0.0, 3.0, 3.0], [0.0, 0.0, 3.0], [0.0, 0.0, 3.0]])
    rays = Rays(origins, jnp.array([[0.0, 0.0, -1.0], [0.0, 0.0, -1.0], [0.0, 0.0, 1.0]]))
    out = asset.render(asset.scene, rays)
    assert out.opacity[0] == out.opacity[2] == 0.0 and out.opacity[1] > 0.0  # beside the box, into it, away from it
    np.testing.assert_array_equal(out.features[::2], config.render.background)


def test_steps_from_views_are_those_from_before_there_was_another_supervision():
    """Numbers of the system when it knew posed views alone: two steps on its first two records."""
    _, system, batch, state = started()
    step = jax.jit(system.train_step)
    for k in range(2):
        state, metrics = step(state, batch, jax.random.key(k))
    np.testing.assert_allclose(metrics['loss'], 0.0981262922, rtol=1e-5)
    np.testing.assert_allclose(metrics['grad_norm'], 0.1744041592, rtol=1e-4)
    np.testing.assert_allclose(sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(state.params)), 7939.09667, rtol=1e-6)


def test_pixels_are_drawn_near_the_object_in_the_asked_share():
    alpha = np.zeros((1, 1, 32, 32), np.uint8)
    alpha[0, 0, 10:14, 20:24] = 255
    pixels = instant3d_supervision.draw_pixels(jax.random.key(0), alpha, 4000, 0.5)[0, 0]
    rows, columns = pixels // 32, pixels % 32
    near = (rows >= 8) & (rows < 16) & (columns >= 18) & (columns < 26)
    assert abs(float(near.mean()) - (0.5 + 0.5 * 64 / 1024)) < 0.01
    uniform = instant3d_supervision.draw_pixels(jax.random.key(0), alpha, 4096, 0.0)[0, 0]
    assert len(np.unique(uniform)) == 1024  # stratified: every pixel is hit
    empty = instant3d_supervision.draw_pixels(jax.random.key(0), np.zeros_like(alpha), 64, 0.5)[0, 0]
    assert empty.min() >= 0 and empty.max() < 1024 and len(np.unique(empty)) > 32


def test_unknown_systems_and_words_are_refused_with_the_choices():
    _, system = small()
    with pytest.raises(ValueError, match="there are .*instant3d.* Did you mean 'instant3d'?"):
        systems.make({'system': 'instant3e'})
    with pytest.raises(ValueError, match='"corgi"'):
        asked.generate(system, {}, ['a corgi'], jax.random.key(0))
