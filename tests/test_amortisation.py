"""One network for all prompts generalises to combinations it was not trained on: score distillation from an exact prior.

The prior knows the picture of every toy object from every camera, blurred by noise of 0.1, so what is tested is the network and
the optimisation alone: with 16 prompts a step, of a schedule of 1,600. Chance is 0.03.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import sds_table
from t3d.core import tokens
from t3d.core.system import Given
from t3d.data.sets import oracle, shapes, toy
from t3d.diffusion import schedules
from t3d.diffusion.prior import MultiViewPrior
from t3d.geom import cameras

SIZE, SPREAD = 16, 0.1
AROUND, HEIGHTS = 24, np.array([0.0, 0.2, 0.4, 0.6, 0.8])


def exact(config) -> dict[str, Given]:
    """{'prior'}: N(the true picture from the nearest of 120 cameras, SPREAD^2 I) for each of the 32 large objects."""
    azimuth, elevation = (part.ravel() for part in np.meshgrid(np.arange(AROUND) * (2 * np.pi / AROUND), HEIGHTS))
    things = [scene for scene in shapes.singles('all') if scene.attributes['size'] == 'large']
    read, schedule = tokens.make(config.text), schedules.cosine(clip=1.0)
    ids = np.stack([read([thing.captions[0]])[0] for thing in things])
    pictures = [oracle.composite(toy.record(thing, azimuth, elevation, SIZE, 1)['image'], 1.0) for thing in things]
    means = 2.0 * np.stack(pictures).astype(np.float32) - 1.0  # [32, 120, S, S, 3]

    def encode(params, prompt_ids):
        return jnp.all(prompt_ids[:, None] == ids, -1).astype(jnp.float32)[:, None]  # [B, 1, 32]

    def inputs(views, shape=None):
        around, up, _ = cameras.angles(views.world_from_cam)
        near = jnp.round(around / (2 * np.pi / AROUND)).astype(jnp.int32) % AROUND
        return jnp.argmin(jnp.abs(up[..., None] - HEIGHTS), -1) * AROUND + near  # [B, V]

    def predict(params, x, t, features, pose):
        mean = params['means'][jnp.argmax(features[:, 0], -1)[:, None], pose]
        signal, sigma = schedules.levels_like(schedule, t, x)
        return sigma * (x - signal * mean) / (signal**2 * SPREAD**2 + sigma**2)

    same = lambda params, images: 2.0 * images - 1.0
    made = MultiViewPrior(schedule, read, encode, predict, inputs, None, same, (SIZE, SIZE, 3), 1, None, 1.0)
    return {'prior': Given(made, {'means': jnp.asarray(means)}, name='exact')}


@pytest.mark.slow
def test_held_out_prompts_are_nearest_to_their_own_objects(tmp_path):
    large = [scene for scene in shapes.singles('train') if scene.attributes['size'] == 'large']
    file = tmp_path / 'prompts.txt'
    file.write_text('\n'.join(scene.captions[0] for scene in large))
    assert len(large) == 24
    options = ('distill.words=none', 'steps=1600', 'batch=16', f'render.size={SIZE}', 'cameras.elevation=(0.0,0.8)')
    trainer = sds_table.Trainer([*options, f'data.path={file}', 'data.split=all'], exact)
    rows = []
    for row in trainer.curve(0, 200):
        rows.append(row)
        if row['step'] == 400:
            break
    assert rows[-1]['nearest'] >= 0.9, rows
    start = trainer.measure(jax.jit(trainer.system.init)(jax.random.key(1), trainer._batch(range(8)), trainer.given).ema)
    assert start['nearest'] < 0.2 and start['seen'] > 4 * rows[-1]['seen']
