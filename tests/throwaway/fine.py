"""The second of two runs: a mesh that begins where a given coarse run ended, and is trained on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import common
from t3d.core.outputs import Mesh, only_prompts
from t3d.core.system import System, TrainState, require

CORNERS = np.float32([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
FACES = np.int32([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])


def get_config():
    config = common.defaults()
    config.update({'system': 'throwaway.fine', 'variant': 'tiny', 'steps': 4, 'given': {'coarse': ''}})
    config.checkpoint = {'every': 2, 'keep': 3, 'keep_every': 0, 'best': 'loss'}
    return config.lock()


def make(config, given) -> System:
    coarse = require(given, 'coarse', object, 'a run of the coarse stage')
    adam, colour = optax.adam(0.1), lambda grid: jax.nn.sigmoid(grid[0, ..., :3].mean((0, 1, 2)))
    del coarse

    def init(key, batch, given):
        params = {'corners': jnp.asarray(CORNERS), 'rgb': colour(given['coarse']['weights']['grid'])}  # beside its prior
        return TrainState(jnp.int32(0), params, adam.init(params), {}, {})

    def train_step(state, batch, key, given):
        def loss(params):
            rough = 0.01 * jax.random.normal(key, params['corners'].shape, jnp.float32)
            far = jnp.mean((jnp.linalg.norm(params['corners'] + rough, axis=-1) - 0.5) ** 2)
            return far + jnp.mean((params['rgb'] - 0.5) ** 2)

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = adam.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), {'loss': value}

    def preview(weights, batch, key, given):
        return jnp.broadcast_to(jnp.clip(weights['rgb'], 0.0, 1.0), (1, 8, 8, 3))

    def generate(weights, requests, keys, given):
        colors = jnp.broadcast_to(jnp.clip(weights['rgb'], 0.0, 1.0), (len(CORNERS), 3))
        return [Mesh(request.prompt, weights['corners'], FACES, colors) for request in requests]

    def check(requests):
        only_prompts(requests, config.system)

    return System(init, train_step, preview, generate, check, ('params',), (), {})
