"""A population without data: a grid of colour for each prompt, pulled to what a given prior says of its picture."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from configs import common
from t3d.core.errors import UsageError
from t3d.core.outputs import Field, only_prompts
from t3d.core.system import System, TrainState, require
from t3d.diffusion import schedules
from t3d.diffusion.prior import Prior
from t3d.geom.volume import RenderOutput


def get_config():
    config = common.defaults()
    config.update({'system': 'throwaway.population', 'variant': 'tiny', 'steps': 4, 'prompts': ('a red cube', 'a cube')})
    config.update({'given': {'prior': ''}, 'checkpoint': {'every': 2, 'keep': 3, 'keep_every': 0, 'best': ''}})
    return config.lock()


def make(config, given) -> System:
    prior = require(given, 'prior', Prior, 'a text-to-image model').functions
    prompts, size, adam = tuple(config.prompts), prior.native, optax.adam(0.05)
    ids = jnp.asarray(prior.tokenize(list(prompts)))

    def init(key, batch, given):
        params = {'grid': 0.1 * jax.random.normal(key, (len(prompts), size, size, size, 4))}
        return TrainState(jnp.int32(0), params, adam.init(params), {}, {})

    def train_step(state, batch, key, given):
        def loss(params):
            x, t = jnp.mean(params['grid'][..., :3], 3), jnp.full((len(prompts),), prior.schedule.length // 2)
            noisy = schedules.q_sample(prior.schedule, x, t, jax.random.normal(key, x.shape))
            output = prior.predict(given['prior'], noisy, t, prior.encode(given['prior'], ids))
            residual = jax.lax.stop_gradient(x - schedules.to_x0(prior.schedule, output, noisy, t))
            return jnp.sum(residual * x) + jnp.sum(params['grid'][..., 3] ** 2)

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt = adam.update(grads, state.opt_state)
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt, {}, {}), {'loss': value}

    def field(scene, points):
        return 9.0 * (jnp.linalg.norm(points, axis=-1) < 0.5), jnp.ones_like(points) * jax.nn.sigmoid(scene['rgb'])

    def render(scene, rays):
        ones = jnp.ones(rays.origins.shape[:-1])
        return RenderOutput(ones[..., None] * jax.nn.sigmoid(scene['rgb']), ones, ones, None)

    def generate(weights, requests, keys, given):
        scene = lambda text: {'rgb': weights['grid'][prompts.index(text), ..., :3].mean((0, 1, 2))}
        return [Field(text, scene(text), field, render, 1.0, {'radius': 3.0, 'fov': 0.7}) for text, *_ in requests]

    def check(requests):
        if not set(only_prompts(requests, config.system)) <= set(prompts):
            raise UsageError(f'not trained: this run has {", ".join(prompts)}.')

    return System(init, train_step, None, generate, check, ('params',), ((r'grid', P(('data', 'fsdp'))),), {}, functions=field)
