"""The policy of number formats: what a config's `dtype` changes in the steps of systems, and what it leaves."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_contract as contract
from test_half_precision import normal

from t3d import systems
from t3d.core import config as configs
from t3d.core import precision, prng, tree

COMPUTING = [name for name in contract.LEARNERS if name != 'dreamfusion']  # its fields are float32, its prior is given


def test_of_a_config_and_what_a_network_hands_on():
    assert precision.policy({}) == (np.float32, np.float32)
    half = precision.policy(configs.from_dict({'dtype': 'bfloat16'}))
    assert half == (jnp.bfloat16, np.float32)
    x = normal(3).astype(half.compute)
    assert precision.result(half, x).dtype == np.float32
    np.testing.assert_array_equal(precision.result(half, x), np.asarray(x, np.float32))


def products(jaxpr, counts=None):
    """{format: number} of the products and convolutions of a jaxpr, those of inner ones too."""
    counts = collections.Counter() if counts is None else counts
    for equation in jaxpr.eqns:
        if equation.primitive.name in ('dot_general', 'conv_general_dilated'):
            counts[equation.invars[0].aval.dtype.name] += 1
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: hasattr(value, 'eqns')):
            inner = getattr(inner, 'jaxpr', inner)
            if hasattr(inner, 'eqns'):
                products(inner, counts)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize('name', COMPUTING)
def test_products_follow_the_dtype_and_what_is_kept_does_not(name):
    counts, kept = [], []
    for dtype in ('float32', 'bfloat16'):
        config = configs.from_dict({**contract.config(name).to_dict(), 'dtype': dtype})
        given = contract.described(name)
        system = systems.make(config, given)
        key, others = jax.eval_shape(lambda: prng.key(0)), {name: one.params for name, one in given.items()}
        state = jax.eval_shape(system.init, key, system.batch_spec, others)
        traced, shapes = jax.make_jaxpr(system.train_step, return_shape=True)(state, system.batch_spec, key, others)
        counts.append(products(traced.jaxpr))
        kept.append({key: (leaf.shape, leaf.dtype) for key, leaf in tree.flatten((state, *shapes)).items()})
    assert kept[0] == kept[1]
    assert not any(jnp.issubdtype(dtype, jnp.floating) and dtype != np.float32 for _, dtype in kept[1].values())
    full, half = counts
    assert set(full) == {'float32'} and set(half) == {'float32', 'bfloat16'}
    assert half['bfloat16'] > 20 and half.total() == full.total()
