"""A small system for tests of the loop: two dense layers learn a fixed map, with noise drawn inside the step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from t3d.core import replicas, tree
from t3d.core.system import System, TrainState, anything


def make(
    batch: int = 16,
    rate: float = 1e-2,
    poison: int | None = None,
    noise: float = 0.01,
    ballast: int = 0,
    width: int = 32,
) -> System:
    """`poison`: the step whose loss/fit becomes NaN; `noise`: deviation of what is added to x; `ballast`: floats to save;
    `width`: of the hidden layer."""
    optimizer, batch_size = optax.adam(rate), batch

    def init(key, batch, given=None):
        key_in, key_out = jax.random.split(key)
        params = {
            'layer_in': {'kernel': jax.random.normal(key_in, (8, width)) * 0.3, 'bias': jnp.zeros(width)},
            'layer_out': {'kernel': jax.random.normal(key_out, (width, 3)) * 0.3, 'bias': jnp.zeros(3)},
        }
        extras = {'ballast': jnp.arange(ballast, dtype=jnp.float32)} if ballast else {}
        return TrainState(jnp.int32(0), params, optimizer.init(params), tree.copy(params), extras)

    def model(params, x):
        h = jnp.tanh(x @ params['layer_in']['kernel'] + params['layer_in']['bias'])
        return h @ params['layer_out']['kernel'] + params['layer_out']['bias']

    def train_step(state, batch, key, given=None):
        added = noise * jax.random.normal(key, batch['x'].shape)

        def loss_fn(params):
            fit = jnp.mean(jnp.square(model(params, batch['x'] + added) - batch['y']))
            if poison is not None:
                fit = jnp.where(state.step + 1 >= poison, jnp.nan, fit)
            size = 1e-4 * sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params))
            return fit + size, {'loss/fit': fit, 'loss/size': size}

        (loss, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        metrics = {'loss': loss, **parts, 'lr': jnp.float32(rate)}
        grads, metrics = replicas.mean((grads, metrics))
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        ema = tree.ema(state.ema, params, 0.9)
        metrics['count/rays'] = jnp.float32(batch_size)
        return TrainState(state.step + 1, params, opt_state, ema, state.extras), metrics

    def preview(params, batch, key, given=None):
        rgb = jax.nn.sigmoid(model(params, batch['x']))[:4]
        return jnp.broadcast_to(rgb[:, None, None], (rgb.shape[0], 8, 8, 3))

    spec = {'x': jax.ShapeDtypeStruct((batch, 8), jnp.float32), 'y': jax.ShapeDtypeStruct((batch, 3), jnp.float32)}
    rules = ((r'layer_in/kernel', P(None, ('fsdp', 'tensor'))), (r'layer_out/kernel', P('fsdp', 'tensor')))
    return System(init, train_step, preview, None, anything, ('ema',), rules, spec)


class Source:
    """64 records; a class, so that its repr is short."""

    def __len__(self):
        return 64

    def __getitem__(self, i):
        return {'name': f'{i}', 'x': np.random.default_rng(i).normal(size=8).astype(np.float32)}

    def __repr__(self):
        return 'dummy source'


def transform(record, rng):
    """x with a random scale, y a fixed function of it."""
    x = record['x'] * rng.uniform(0.9, 1.1)
    return {'x': x.astype(np.float32), 'y': np.sin(x[:3]).astype(np.float32)}


def config(**changes):
    """A config for the dummy, with fast intervals."""
    base = {
        'system': 'dummy',
        'name': 'test',
        'seed': 1,
        'steps': 6,
        'batch': 16,
        'dtype': 'float32',
        'mesh': {'data': 1, 'fsdp': 1, 'tensor': 1},
        'fsdp_floor': 64,
        'log_every': 2,
        'preview_every': 0,
        'checkpoint': {'every': 2, 'keep': 3, 'keep_every': 0, 'best': 'loss'},
        'loader': {'threads': 1, 'prefetch': 2},
    }
    return base | changes


DATA = (Source(), transform)
