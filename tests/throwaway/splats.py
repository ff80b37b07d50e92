"""Splats at a fixed capacity: what is saved for inference is the Gaussians and which of them are alive."""

import jax
import jax.numpy as jnp
import optax

from configs import common
from t3d.core.outputs import Splats, only_prompts
from t3d.core.system import System, TrainState

CAPACITY = 16


def get_config():
    config = common.defaults()
    config.update({'system': 'throwaway.splats', 'variant': 'tiny', 'steps': 4, 'batch': 8, 'evaluate': ('throwaway.judge',)})
    config.checkpoint = {'every': 2, 'keep': 3, 'keep_every': 0, 'best': 'loss'}
    config.data = {'name': 'toy', 'kind': 'views', 'split': 'train', 'scenes': 'singles', 'size': 8, 'views': 1, 'poses': 2}
    config.data.update({'seed': 0, 'supersample': 1, 'path': '', 'train_views': 0, 'variants': 0})
    config.text = {'words': (), 'length': 6, 'open_vocabulary': False, 'folder': ''}
    config.preview = {'rows': 2, 'views': 1}
    return config.lock()


def make(config, given) -> System:
    adam, batch, size = optax.adam(0.05), config.batch, config.data.size

    def init(key, batch, given):
        a, b = jax.random.split(key)
        means, rotations = (jax.random.normal(key, (CAPACITY, size), jnp.float32) for key, size in ((a, 3), (b, 4)))
        gaussians = {'means': means, 'rotations': rotations, 'scales': jnp.full((CAPACITY, 3), -2.0)}
        gaussians['opacities'] = jnp.linspace(-1.0, 1.0, CAPACITY)
        params = {'gaussians': {**gaussians, 'sh': jnp.zeros((CAPACITY, 1, 3))}}
        return TrainState(jnp.int32(0), params, adam.init(params), {}, {'alive': jnp.ones(CAPACITY, bool)})

    def train_step(state, batch, key, given):
        colour = jnp.mean(batch['image'][..., :3].astype(jnp.float32) / 255.0, (0, 1, 2, 3))

        def loss(params):
            each = params['gaussians']
            shade = 0.5 + 0.28 * each['sh'][:, 0] + 0.01 * jax.random.normal(key, (CAPACITY, 3), jnp.float32)
            return jnp.mean((shade - colour) ** 2) + 0.1 * jnp.mean(each['opacities'])

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = adam.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        alive = params['gaussians']['opacities'] > -0.5
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state, extras={'alive': alive}), {'loss': value}

    def generate(weights, requests, keys, given):
        each, alive = weights['params']['gaussians'], weights['extras']['alive']
        shape = each['means'], jnp.exp(each['scales']), each['rotations'], jax.nn.sigmoid(each['opacities']), each['sh']
        return [Splats(request.prompt, *shape, alive) for request in requests]

    spec = {'tokens': ((batch, 6), jnp.int32), 'image': ((batch, 1, size, size, 4), jnp.uint8)}
    spec |= {'world_from_cam': ((batch, 1, 4, 4), jnp.float32), 'intrinsics': ((batch, 1, 3, 3), jnp.float32)}
    paths, spec = ('params/gaussians', 'extras/alive'), {name: jax.ShapeDtypeStruct(*one) for name, one in spec.items()}
    return System(init, train_step, None, generate, lambda asked: only_prompts(asked, config.system), paths, (), spec)
