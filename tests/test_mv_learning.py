"""What multi-view diffusion learns: two objects by heart, each view from its own camera; and what the shipped weights show."""

import cheap_keys
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_mvdiffusion

from t3d import systems
from t3d.core import config as configs
from t3d.core import prng
from t3d.data import sources
from t3d.data.sets import shapes, toy
from t3d.evaluate import drawing, view_reading
from t3d.geom.cameras import Cameras
from t3d.inference import loading
from t3d.systems import mvdiffusion

STEPS = 600
LEARNER = (
    *test_mvdiffusion.SMALL,
    'patch=1',
    'data.size=8',
    'unet.block_out_channels=(32,48)',
    'unet.attention_levels=(True,True)',
    'unet.norm_num_groups=8',
    'data.views=4',
    'flat_share=0.0',
    'drop_text=0.0',
    'sample.steps=10',
    'diffusion.min_snr=0.0',  # all times alike: at the noisiest ones the camera decides
    f'steps={STEPS}',
    'optimizer.learning_rate=0.003',
    'optimizer.warmup=20',
    'optimizer.weight_decay=0.0',
    'ema_decay=0.98',
)
COPIES = 4  # of both objects in a batch, each at a time of its own


def psnr(images, truth):
    return -10.0 * np.log10(np.mean((np.asarray(images) - truth) ** 2, (2, 3, 4)))


@pytest.mark.slow
def test_two_objects_of_four_views_are_learned_by_heart_each_view_from_its_camera():
    """Two pairs of cubes that look different from every side, traced in closed form; a prompt for each."""
    config = sources.resolve(configs.load('configs/mvdiffusion.py:tiny', list(LEARNER)))
    system, model = systems.make(config, {}), mvdiffusion.Model(config, {})
    scenes = [
        shapes.pair(('cube', 'red'), 'to the left of', ('cube', 'green')),
        shapes.pair(('cube', 'blue'), 'in front of', ('cube', 'yellow')),
    ]
    poses = toy.camera_arrays(np.arange(4) * np.pi / 2, np.full(4, 0.3), shapes.RADIUS, shapes.FOV)
    both = {
        'tokens': model.tokenize(['a red cube', 'a blue cube']),
        'image': np.stack([toy.render(scene, *poses, 8, 3)['image'] for scene in scenes]),
        'world_from_cam': np.stack([poses[0]] * 2),
        'intrinsics': np.stack([poses[1]] * 2),
    }
    batch = {name: jnp.asarray(np.concatenate([value] * COPIES)) for name, value in both.items()}
    truth = np.asarray(model.composite(jnp.asarray(both['image'])))

    state = jax.jit(system.init)(cheap_keys.key(0), batch, {})
    step = jax.jit(system.train_step, donate_argnums=0)
    for count in range(STEPS):
        state, _ = step(state, batch, jax.random.fold_in(jax.random.key(1), count), {})

    loss = jax.jit(lambda params, batch, key: model.loss(params, {}, batch, key)[0])
    sample = jax.jit(lambda cameras, keys: model.sample(state.ema, {}, jnp.asarray(both['tokens']), cameras, keys))
    other = {**batch, 'world_from_cam': jnp.roll(batch['world_from_cam'], 1, axis=1)}  # each camera at the next view
    keys = [jax.random.key(seed) for seed in range(8)]
    learned, shuffled = (np.mean([loss(state.ema, rows, key) for key in keys]) for rows in (batch, other))
    assert learned < 0.05 and shuffled > 2.0 * learned
    cameras, each = Cameras(jnp.asarray(both['world_from_cam']), jnp.asarray(both['intrinsics'])), prng.each(prng.key(5), 2)
    turned = Cameras(jnp.roll(cameras.world_from_cam, 1, axis=1), cameras.intrinsics)
    views, of_others = sample(cameras, each), sample(turned, each)
    assert (psnr(views, truth) > 20.0).all() and psnr(of_others, truth).mean() < psnr(views, truth).mean() - 5.0
    nearest = np.argmax([psnr(views, np.roll(truth, k, 1)) for k in range(4)], axis=0)
    assert not nearest.any()  # no view is nearer to another's truth: opposite ones are 16 to 21 dB apart
    assert psnr(of_others, np.roll(truth, 1, 1)).mean() > 20.0  # they are the views of those cameras


@pytest.mark.slow
def test_shipped_weights_show_what_is_asked_in_every_view():
    """8 objects, held-out combinations among them, read by the nearest true render of the 64 from the same camera."""
    loaded = loading.load('mvdiffusion-toy')
    things, held_out = view_reading.objects()
    chosen = np.concatenate([np.flatnonzero(held_out)[::4], np.flatnonzero(~held_out)[::4]])
    assert len(chosen) == 8 and len({things[k].attributes['shape'] for k in chosen}) == 4
    prompts = [things[k].captions[0] for k in chosen]
    images, cameras = drawing.views(loaded, prompts, evaluator='view_sets', batch=8)
    for k, views in zip(chosen, view_reading.read(images, cameras, **view_reading.appearance(loaded)), strict=True):
        asked = {name: things[k].attributes[name] for name in ('shape', 'colour', 'size')}
        for view in views:
            assert {name: view.labels[name] for name in asked} == asked, prompts
            assert view.distance < 0.15
