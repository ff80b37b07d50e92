"""A system that reads an image: points in its mean colour, learned from single pictures."""

import jax
import jax.numpy as jnp
import optax

from configs import common
from t3d.core import tree
from t3d.core.outputs import Points, only_images
from t3d.core.system import System, TrainState

COUNT = 32


def get_config():
    config = common.defaults()
    config.update({'system': 'throwaway.pictured', 'variant': 'tiny', 'steps': 4, 'batch': 8, 'render': {'background': 1.0}})
    config.checkpoint = {'every': 2, 'keep': 3, 'keep_every': 0, 'best': 'loss'}
    config.data = {'name': 'toy', 'kind': 'single_view', 'mode': 'posed-known', 'split': 'train', 'scenes': 'singles'}
    config.data.update({'size': 8, 'poses': 2, 'seed': 0, 'supersample': 1, 'path': '', 'mirror': False})
    config.preview = {'rows': 2, 'views': 1}
    return config.lock()


def make(config, given) -> System:
    adam, batch, size = optax.adam(0.05), config.batch, config.data.size

    def init(key, batch, given):
        params = {
            'map': 0.1 * jax.random.normal(key, (3, 3), jnp.float32),
            'where': jax.random.normal(key, (COUNT, 3), jnp.float32),
        }
        return TrainState(jnp.int32(0), params, adam.init(params), tree.copy(params), {})

    def train_step(state, batch, key, given):
        mean = jnp.mean(batch['image'].astype(jnp.float32) / 255.0, (1, 2))

        def loss(params):
            noisy = mean + 0.01 * jax.random.normal(key, mean.shape, jnp.float32)
            return jnp.mean((noisy @ params['map'] - mean) ** 2) + jnp.mean(
                (jnp.linalg.norm(params['where'], axis=-1) - 0.5) ** 2
            )

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = adam.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state, tree.ema(state.ema, params, 0.5), {}), {'loss': value}

    def preview(weights, batch, key, given):
        return jnp.clip(batch['image'] / 255.0 @ weights['map'], 0.0, 1.0)

    def generate(weights, requests, keys, given):
        means = [jnp.mean(image[..., :3], (0, 1)) for image in only_images(requests, config.system)]
        colours = [jnp.broadcast_to(jnp.clip(mean @ weights['map'], 0.0, 1.0), (COUNT, 3)) for mean in means]
        return [Points(one.prompt, weights['where'], colour) for one, colour in zip(requests, colours)]

    spec = {'image': ((batch, size, size, 3), jnp.uint8), 'label': ((batch, 25), jnp.float32)}
    spec = {name: jax.ShapeDtypeStruct(*one) for name, one in spec.items()}
    spec['fake_labels'] = jax.ShapeDtypeStruct((batch, 3, 25), jnp.float32)
    return System(init, train_step, preview, generate, lambda asked: only_images(asked, config.system), ('ema',), (), spec)
