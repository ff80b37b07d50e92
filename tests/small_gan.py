"""A GAN of stage 1 in a second: its config, networks, a batch and a state, for the tests of ganfusion_gan."""

import functools

import cheap_keys
import jax
import jax.numpy as jnp
import numpy as np
import random_weights

from t3d.core import config as configs
from t3d.data import sources
from t3d.systems import ganfusion_gan

GENERATOR = (  # what stage 2 takes over has the same sizes
    'generator.z=8',
    'generator.w=8',
    'generator.mapping_layers=2',
    'generator.plane_resolution=8',
    'generator.plane_channels=4',
    'generator.channel_base=64',
    'generator.channel_max=8',
    'generator.hidden=8',
    'generator.sr.input_size=8',
    'generator.sr.channels=(8,4)',
    'render.size=8',
    'render.importance=4',
    'data.size=16',
)
SMALL = (
    *GENERATOR,
    'batch=8',
    'micro_batch=2',
    'ladder=()',
    'fakes=new',
    'average.images=0',
    'discriminator.group=2',
    'discriminator.label_noise=1.0',
    'steps=5',
    'mesh.data=1',
    'generator.features=4',
    'discriminator.channel_base=64',
    'discriminator.channel_max=8',
    'render.samples=4',
    'blur.sigma=1.0',
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
def step(*overrides):
    return jax.jit(ganfusion_gan.make(config(*overrides)).train_step)
