"""A random triplane generator, as a trained one is loaded, for tests of what is made with it."""

import functools

import cheap_keys
import jax
import jax.numpy as jnp
import random_weights

from t3d.core import config as configs
from t3d.core.system import Given, System, anything
from t3d.fields import triplane_generator
from t3d.inference import loading

GENERATOR = dict(
    z=16,
    w=16,
    mapping_layers=2,
    pose_conditioning=False,
    plane_resolution=8,
    plane_channels=4,
    channel_base=128,
    channel_max=16,
    hidden=16,
    features=8,
    clamp=0.0,
    sr_style='unit',
    sr=dict(input_size=16, channels=(8, 8), ups=(False, True)),
)
RENDER = dict(
    size=16,
    box_warp=2.0,
    plane_axes='orthogonal',
    background=0.5,
    limits='box',
    near=2.0,
    far=4.5,
    samples=6,
    importance=6,
    radius=3.2,
    fov=0.7027699,
)
DATA = dict(
    name='toy',
    kind='single_view',
    mode='posed-known',
    split='train',
    scenes='singles',
    size=32,
    poses=2,
    seed=0,
    supersample=1,
    path='',
)


def config(**changes):
    """The run's config; changes are overrides by dotted name."""
    tree = dict(
        system='ganfusion_gan', name='small', steps=5, batch=4, dtype='float32', seed=0, evaluate=('generated_objects',)
    )
    made = configs.from_dict({**tree, 'generator': GENERATOR, 'render': RENDER, 'data': DATA})
    with made.unlocked():
        for name, value in changes.items():
            section, key = name.split('__')
            made[section][key] = value
    return made


@functools.cache
def _params(seed: int, size: int, style: str):
    made = config(generator__plane_resolution=size, generator__sr_style=style)
    params, buffers = jax.jit(triplane_generator.Generator(made).init)(cheap_keys.key(seed))
    # Nothing at zero or one: strengths of the noise, biases and the average of w are all trained.
    return {
        'generator': random_weights.shaken(params, 0.2, seed + 100),
        'buffers': {**buffers, 'w_avg': 0.3 * jnp.ones_like(buffers['w_avg'])},
    }


def loaded(seed: int = 0, name: str = 'small', **changes) -> loading.Loaded:
    """The generator of a seed."""
    made = config(**changes)
    params = _params(seed, made.generator.plane_resolution, made.generator.sr_style)
    offers = triplane_generator.Generator(made)
    system = System(None, None, None, None, anything, ('ema',), (), {}, functions=offers)
    return loading.Loaded(made, system, params, name, 5)


def given(**changes) -> dict[str, Given]:
    """The same as what stage 2 is given."""
    whole = loaded(**changes)
    return {'generator': Given(whole.system.functions, whole.weights, whole.config, whole.name)}
