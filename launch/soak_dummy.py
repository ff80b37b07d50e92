"""A system of two layers for launch/soak.py, and its config: it says which records a batch holds (launch/soak_data.py)."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from configs import common
from t3d.core import tree
from t3d.core.system import System, TrainState, anything

WIDTH, BALLAST = 32, 2**18


def get_config(variant='tiny'):
    """config.delay: seconds that a record takes, so that a signal lands where it is sent."""
    config = common.defaults()
    config.update({'system': 'launch.soak_dummy', 'variant': variant, 'steps': 40, 'batch': 16, 'seed': 1, 'delay': 0.01})
    config.update({'log_every': 1, 'preview_every': 0, 'fsdp_floor': 64})
    config.mesh = {'data': -1, 'fsdp': 2, 'tensor': 1}
    config.data = {'name': 'numbered', 'kind': 'launch.soak_data', 'split': 'train', 'path': ''}
    return config.lock()


def make(config, given=None) -> System:
    """Fits a fixed map, with noise drawn inside the step. Metric data/order: of the records of a batch and their rows."""
    adam = optax.adam(1e-2)

    def init(key, batch, given=None):
        key_in, key_out = jax.random.split(key)
        params = {
            'layer_in': {'kernel': 0.3 * jax.random.normal(key_in, (8, WIDTH), jnp.float32)},
            'layer_out': {'kernel': 0.3 * jax.random.normal(key_out, (WIDTH, 3), jnp.float32)},
        }
        extras = {'ballast': jnp.arange(BALLAST, dtype=jnp.float32)}  # so that a save takes a while
        return TrainState(jnp.int32(0), params, adam.init(params), tree.copy(params), extras)

    def train_step(state, batch, key, given=None):
        x = batch['x'] + 0.01 * jax.random.normal(key, batch['x'].shape, jnp.float32)

        def loss(params):
            y = jnp.tanh(x @ params['layer_in']['kernel']) @ params['layer_out']['kernel']
            return jnp.mean(jnp.square(y - jnp.sin(batch['x'][:, :3])))

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = adam.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        order = jnp.sum((1 + jnp.arange(config.batch)) * batch['number']).astype(jnp.float32)  # below 2^24: exact
        new = TrainState(state.step + 1, params, opt_state, tree.ema(state.ema, params, 0.9), state.extras)
        return new, {'loss': value, 'data/order': order}

    spec = {'x': ((config.batch, 8), jnp.float32), 'number': ((config.batch,), jnp.int32)}
    rules = ((r'layer_in/kernel', P(None, 'fsdp')), (r'layer_out/kernel', P('fsdp', None)))
    spec = {name: jax.ShapeDtypeStruct(*shape) for name, shape in spec.items()}
    return System(init, train_step, None, None, anything, ('ema',), rules, spec)
