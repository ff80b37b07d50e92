"""Variational distillation in small: pictures as particles, and beside them a second network with an optimizer of its own."""

import jax
import jax.numpy as jnp
import optax

from configs import common
from t3d.core.outputs import Picture, only_prompts
from t3d.core.system import System, TrainState

SIZE, COUNT = 8, 3


def get_config():
    config = common.defaults()
    config.update({'system': 'throwaway.particles', 'variant': 'tiny', 'steps': 4})
    config.checkpoint = {'every': 2, 'keep': 3, 'keep_every': 0, 'best': 'loss'}
    return config.lock()


def make(config, given) -> System:
    adam, slow = optax.adam(0.05), optax.adam(0.01)

    def init(key, batch, given):
        first, second = jax.random.split(key)
        params = {'pictures': jax.random.normal(first, (COUNT, SIZE, SIZE, 3), jnp.float32)}
        lora = {'down': 0.1 * jax.random.normal(second, (3, 2), jnp.float32), 'up': jnp.zeros((2, 3))}
        extras = {'lora': lora, 'lora_opt': slow.init(lora)}
        return TrainState(jnp.int32(0), params, adam.init(params), {}, extras)

    def train_step(state, batch, key, given):
        noise = jax.random.normal(key, (COUNT, SIZE, SIZE, 3), jnp.float32)
        pictures, lora = state.params['pictures'], state.extras['lora']

        def error(lora):  # the second network learns the noise of the particles
            return jnp.mean(((pictures + noise) @ lora['down'] @ lora['up'] - noise) ** 2)

        other, lora_grads = jax.value_and_grad(error)(lora)
        score = pictures - ((pictures + noise) @ lora['down'] @ lora['up'])
        loss, grads = jax.value_and_grad(lambda p: jnp.mean(jax.lax.stop_gradient(score) * p['pictures']))(state.params)
        updates, opt_state = adam.update(grads, state.opt_state)
        lora_updates, lora_opt = slow.update(lora_grads, state.extras['lora_opt'])
        extras = {'lora': optax.apply_updates(lora, lora_updates), 'lora_opt': lora_opt}
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state, {}, extras), {'loss': loss + other, 'loss/lora': other}

    def preview(weights, batch, key, given):
        return jax.nn.sigmoid(weights['pictures'])

    def generate(weights, requests, keys, given):
        chosen = [int(jax.random.randint(key, (), 0, COUNT)) for key in keys]
        return [Picture(one.prompt, jax.nn.sigmoid(weights['pictures'][k])) for one, k in zip(requests, chosen)]

    return System(init, train_step, preview, generate, lambda asked: only_prompts(asked, config.system), ('params',), (), {})
