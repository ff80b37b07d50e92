"""JAX_ENABLE_X64: every system trains, draws and is judged as without it; what is not said to be wide stays of 32 bits."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_gan
import test_ganfusion_diffusion
import test_image_diffusion
import test_instant3d
import test_renderdiffusion

from t3d import systems
from t3d.core import config as configs
from t3d.core import prng
from t3d.core.system import params_of
from t3d.data import sources
from t3d.diffusion import samplers, schedules
from t3d.geom import cameras
from t3d.inference import loading
from t3d.metrics import fid

SMALL = {
    'instant3d': test_instant3d.SMALL,
    'image_diffusion': test_image_diffusion.SMALL,
    'renderdiffusion': test_renderdiffusion.SMALL,
    'ganfusion_gan': (*small_gan.SMALL, 'augment.on=True', 'blur.sigma=2.0', 'discriminator.label_noise=0.1'),
    'ganfusion_diffusion': (*test_ganfusion_diffusion.SMALL, 'aux.weight=0.1'),
}


@contextlib.contextmanager
def wide():
    jax.config.update('jax_enable_x64', True)
    try:
        yield
    finally:
        jax.config.update('jax_enable_x64', False)


def small(name):
    made = configs.load(f'configs/{name}.py:tiny', [*SMALL[name]])
    return made if name == 'ganfusion_diffusion' else sources.resolve(made)


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)


@pytest.mark.parametrize('name', SMALL)
def test_a_system_keeps_to_32_bits(name):
    """Traced, not run: the state is that of its step, and nothing in it or among the metrics is wide."""
    with wide():
        config, key = small(name), jax.eval_shape(lambda: prng.key(0))
        given = loading.open_given(config)  # of a config: shapes
        system, others = systems.make(config, given), params_of(given)
        state = jax.eval_shape(system.init, key, system.batch_spec, others)
        after, metrics = jax.eval_shape(system.train_step, state, system.batch_spec, key, others)
        assert types(after) == types(state)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(state)} <= {'float32', 'int32', 'bool'}
        assert {name: str(leaf.dtype) for name, leaf in metrics.items()} == dict.fromkeys(metrics, 'float32')
        if name == 'renderdiffusion':  # its sampler renders at each step
            images = jax.eval_shape(system.preview, state.ema, system.batch_spec, key, others)
            assert images.dtype == jnp.float32


def picture(sampler):
    """Four steps of a sampler around a network in closed form."""
    schedule = schedules.cosine(100, prediction='v', spacing='trailing', clip=1.0)
    predict = lambda x, t: 0.3 * x * jnp.cos(jnp.asarray(t, jnp.float32) / 100.0)
    noise = jax.random.normal(prng.key(3), (1, 4, 4, 3), jnp.float32)
    options = {'key': prng.key(4)} if sampler in ('ddpm',) else {}
    return getattr(samplers, sampler)(predict, schedule, noise, steps=4, **options)


CLOSED = {
    **{name: lambda name=name: picture(name) for name in ('ddim', 'ddpm', 'dpm_solver_2m', 'heun', 'ddim_invert')},
    'rays': lambda: cameras.rays(cameras.turntable(3, elevation=0.3, radius=2.0, fov=0.7), 5, 7),
    'labels': lambda: cameras.to_eg3d(cameras.orbit(jnp.array([0.1, 0.2], jnp.float32), 0.3, 2.0, 0.7)),
    'fid': lambda: fid.extract(fid.tiny(), np.linspace(0.0, 1.0, 2 * 32 * 32 * 3, dtype=np.float32).reshape(2, 32, 32, 3)),
}


@pytest.mark.parametrize('name', CLOSED)
def test_values_are_those_of_32_bits(name):
    plain = jax.device_get(CLOSED[name]())
    with wide():
        values = jax.device_get(CLOSED[name]())
    assert types(values) == types(plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), values, plain)
