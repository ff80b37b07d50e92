"""The pixel-space text-to-image system: patches, text dropping, guidance, samples that do not depend on their neighbours."""

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
from t3d.core.outputs import Picture
from t3d.data import sources
from t3d.data.sets import oracle, shapes, toy
from t3d.evaluate import drawing, table, toy_pictures
from t3d.inference import loading, publish
from t3d.nets import patched_unet
from t3d.systems import image_diffusion

SMALL = (
    'batch=4',
    'steps=4',
    'text.width=16',
    'text.layers=1',
    'text.heads=2',
    'unet.block_out_channels=(8,16)',
    'unet.attention_head_dim=2',
    'unet.cross_attention_dim=16',
    'unet.norm_num_groups=4',
    'data.size=16',
    'data.supersample=1',
    'data.poses=2',
    'sample.steps=3',
    'diffusion.timesteps=50',
)


@functools.cache
def config(*overrides):
    loaded = configs.load('configs/image_diffusion.py:tiny', [*SMALL, *overrides])
    return loaded if loaded.data.name == 'furniture' else sources.resolve(loaded)


@functools.cache
def loaded():
    """The small system with random weights: nothing starts at zero, so that every input matters."""
    system = systems.make(config())
    batch = {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in system.batch_spec.items()}
    params = random_weights.shaken(jax.jit(system.init)(cheap_keys.key(0), batch).params)
    return loading.Loaded(config(), system, params, 'small', 0)


@functools.cache
def model():
    return image_diffusion.Model(config())


def batch():
    source, transform = sources.make(config())
    examples = [transform(source[k], np.random.default_rng(k)) for k in range(4)]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def test_patches_are_squares_of_pixels_and_come_back():
    x = np.random.default_rng(0).normal(size=(2, 6, 8, 3)).astype(np.float32)
    patches = np.asarray(patched_unet.to_patches(x, 2))
    assert patches.shape == (2, 3, 4, 12)
    np.testing.assert_array_equal(patches[1, 2, 3].reshape(2, 2, 3), x[1, 4:6, 6:8])
    np.testing.assert_array_equal(patched_unet.from_patches(patches, 2), x)


def test_dropped_text_is_not_read():
    examples = batch()
    other = {**examples, 'tokens': np.roll(examples['tokens'], 1, axis=0)}
    network, params = image_diffusion.Model(config()), loaded().weights

    @jax.jit
    def loss(batch, share):
        network.drop_text = share
        return network.loss(params, batch, jax.random.key(2))[0]

    assert loss(examples, 1.0) == loss(other, 1.0) and loss(examples, 0.0) != loss(other, 0.0)


def test_the_loss_is_that_of_v_with_min_snr_weights():
    """One naive pass in numpy around the network's own outputs."""
    examples, key = batch(), jax.random.key(3)
    seen = []
    naive = image_diffusion.Model(config('drop_text=0.0'))
    predict = jax.jit(naive.predict)
    naive.predict = lambda params, x, t, features: seen.append((x, t, predict(params, x, t, features))) or seen[-1][2]
    loss, metrics = naive.loss(loaded().weights, examples, key)
    noisy, t, output = (np.asarray(value, np.float64) for value in seen[0])
    rgba = examples['image'][:, 0].astype(np.float64) / 255.0
    clean = 2.0 * (rgba[..., :3] * rgba[..., 3:] + 1.0 - rgba[..., 3:]) - 1.0
    betas = 1.0 - np.cos((np.arange(1, 51) / 50 + 0.008) / 1.008 * np.pi / 2) ** 2 / (
        np.cos((np.arange(50) / 50 + 0.008) / 1.008 * np.pi / 2) ** 2
    )
    alpha_bar = np.cumprod(1.0 - np.minimum(betas, 0.999))[t.astype(int)]
    a, s = (np.sqrt(value)[:, None, None, None] for value in (alpha_bar, 1.0 - alpha_bar))
    noise = (noisy - a * clean) / s
    each = np.mean((output - (a * noise - s * clean)) ** 2, axis=(1, 2, 3))
    ratio = alpha_bar / (1.0 - alpha_bar)
    np.testing.assert_allclose(float(loss), np.mean(each * np.minimum(ratio, 5.0) / (ratio + 1.0)), rtol=1e-4)
    np.testing.assert_allclose(float(metrics['mse']), each.mean(), rtol=1e-4)


def test_a_sample_does_not_depend_on_its_neighbours_and_reads_its_text():
    system, params, key = loaded().system, loaded().weights, jax.random.key(4)
    pictures = asked.generate(system, params, ['a red cube', 'a blue cone'], key)
    assert [type(picture) for picture in pictures] == [Picture, Picture] and pictures[1].prompt == 'a blue cone'
    first = np.asarray(pictures[0].image)
    assert first.shape == (16, 16, 3) and first.min() >= 0.0 and first.max() <= 1.0 and first.std() > 0.01
    again = asked.generate(system, params, ['a red cube', 'a white sphere'], key)
    np.testing.assert_allclose(again[0].image, first, atol=1e-5)
    assert np.abs(np.asarray(again[1].image) - np.asarray(pictures[1].image)).max() > 1e-4


def test_guidance_of_one_is_the_conditional_model_and_of_zero_the_unconditional():
    ids = jnp.asarray(batch()['tokens'][:2])
    noise = jax.random.normal(jax.random.key(5), (2, 16, 16, 3))
    network, params = model(), loaded().weights
    draw = jax.jit(lambda ids, scale: network.sample_from(params, ids, noise, steps=3, scale=scale))
    empty = jnp.broadcast_to(model().text.empty, ids.shape)
    np.testing.assert_allclose(draw(ids, 0.0), draw(empty, 1.0), atol=1e-5)
    alone = jax.jit(lambda ids: network.sample_from(params, ids, noise, steps=3, scale=1.0))
    np.testing.assert_allclose(draw(ids, 1.0), alone(ids), atol=1e-5)
    assert np.abs(draw(ids, 1.0) - draw(empty, 1.0)).max() > 1e-4


def test_a_step_learns_and_previews():
    system, examples = systems.make(config('optimizer.warmup=1', 'optimizer.learning_rate=5e-3')), batch()
    state = jax.jit(system.init)(cheap_keys.key(0), examples)
    step = jax.jit(system.train_step)
    losses = []
    for n in range(12):
        state, metrics = step(state, examples, jax.random.key(n % 3))
        losses.append(float(metrics['loss']))
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    images = jax.jit(system.preview)(state.ema, examples, jax.random.key(0))
    assert images.shape == (4, 16, 4 * 16, 3)


def test_frozen_text_does_not_move():
    system = systems.make(config('text.frozen=true', 'optimizer.warmup=1', 'optimizer.weight_decay=0.5'))
    state = jax.jit(system.init)(cheap_keys.key(0), batch())
    after, _ = jax.jit(system.train_step)(state, batch(), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, after.params['text'], state.params['text'])
    moved = [np.any(a != b) for a, b in zip(jax.tree.leaves(after.params['unet']), jax.tree.leaves(state.params['unet']))]
    assert np.mean(moved) > 0.9


def test_a_split_of_pictures_is_refused_and_data_without_labels_end_without_scores(tmp_path):
    with pytest.raises(ValueError, match='toy is scored on held-out and on seen captions at once'):
        table.evaluate(loaded(), split='test')
    with pytest.raises(ValueError, match="pictures of 'furniture' have no exact labels"):
        table.evaluate(loaded()._replace(config=config('data.name=furniture')))


def test_the_oracle_reads_true_pictures_from_cameras_of_its_own():
    judge = oracle.PictureOracle(24, azimuths=12, elevations=4)
    source = toy.ToySource('all', scenes='singles', size=24, poses=2, seed=5)
    records = [source[k] for k in range(0, len(source), 3)]
    labels, distance = judge.read(np.concatenate([oracle.composite(record['image']) for record in records]))
    for name in ('shape', 'colour', 'size'):
        assert np.mean([a[name] == record['attributes'][name] for a, record in zip(labels, records)]) > 0.95, name
    noise = np.random.default_rng(0).uniform(size=(4, 24, 24, 3))
    assert distance.mean() < 0.06 and judge.read(noise)[1].min() > 0.3


def test_scores_of_samples_have_their_controls(monkeypatch):
    monkeypatch.setattr(oracle, 'PictureOracle', functools.partial(oracle.PictureOracle, azimuths=4, elevations=2))
    things, held_out = toy_pictures.pairs_of_toy(loaded())
    assert len(things) == 32 and held_out.sum() == 8
    truth = {
        scene.captions[0]: oracle.composite(toy.record(scene, np.zeros(1), np.full(1, -0.2), 16)['image'])[0]
        for scene in shapes.singles('all')
    }
    exact = loaded().system._replace(
        generate=lambda weights, requests, keys, given: [Picture(r.prompt, truth[r.prompt]) for r in requests]
    )
    scores = toy_pictures.evaluate(loaded()._replace(system=exact), limit=2)
    assert scores['held_out/both'] == scores['seen/both'] == 1.0 and scores['held_out/n'] == 16 and scores['seen/n'] == 48
    assert scores['seen/distance'] < 1e-3 and scores['control/seen/both_shuffled'] < 0.1
    drawn = toy_pictures.evaluate(loaded(), limit=1)  # random weights
    assert drawn['seen/both'] < 0.3 and drawn['seen/distance'] > 0.05


def test_sampling_options_are_checked():
    assert drawing.with_sampling(loaded(), guidance=7.0).config.sample.guidance == 7.0
    with pytest.raises(ValueError, match="unknown sampling option 'scale'"):
        drawing.with_sampling(loaded(), scale=7.0)


def test_pictures_are_written_as_pictures(tmp_path):
    folders = publish.assets(loaded(), ['a red cube', 'a blue cone'], tmp_path, log=lambda line: None)
    assert [publish.to_open(folder).name for folder in folders] == ['image.png', 'image.png']
    assert {path.name for path in folders[0].iterdir()} == {'image.png'}
    with pytest.raises(ValueError, match='a picture has no mesh'):
        publish.mesh_files(loaded(), ['a red cube'], tmp_path, log=lambda line: None)
