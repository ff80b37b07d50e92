"""Convolutions with gradients of our own against those of JAX, over sizes, strides, paddings, dilations; and their uses."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_contract
from flax import linen as nn
from jax import lax

from t3d.core import config as configs
from t3d.core import platforms
from t3d.nets import convolution

SIZES, WINDOWS, STRIDES = ((7, 9), (8, 8)), ((3, 3), (1, 1), (2, 4)), ((1, 1), (2, 2), (2, 1))
PADDINGS, OF_PIXELS, OF_WEIGHTS = ('SAME', 'VALID', ((2, 1), (0, 3))), (None, (2, 2)), (None, (2, 1))
CASES = [
    case
    for case in itertools.product(SIZES, WINDOWS, STRIDES, PADDINGS, OF_PIXELS, OF_WEIGHTS)
    if not (isinstance(case[3], str) and case[4])  # JAX refuses words of padding beside dilated pixels
]
LOOPS = ('cond', 'scan', 'while')
FAST = ('ganfusion_gan', 'image_diffusion', 'instant3d')  # the others take half a minute together, and are `slow`
NAMES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in test_contract.LEARNERS]
WHOLE = ('instant3d:toy_imle', 'instant3d:toy_codes')  # their steps remember objects, and take no batch in parts


def random(number, *shape):
    return jax.random.normal(jax.random.key(number), shape)


def by(function, strides, padding, spread, apart):
    words = dict(lhs_dilation=spread, rhs_dilation=apart, dimension_numbers=convolution.LAYOUT)
    return lambda x, weight: function(x, weight, strides, padding, **words)


def gradients(function, x, weight):
    """The result, both gradients, and those of a squared gradient, as R1 has them."""
    out, pull = jax.vjp(function, x, weight)
    slope = jax.grad(lambda x, weight: jnp.sum(jnp.tanh(function(x, weight))))
    twice = jax.grad(lambda x, weight: jnp.sum(jnp.square(slope(x, weight))), (0, 1))(x, weight)
    return out, pull(random(3, *out.shape)), twice


@pytest.mark.parametrize('case', CASES[::5], ids=str)
def test_its_gradients_and_theirs_are_those_of_jax(case):
    (height, width), window, *options = case
    x, weight = random(1, 2, height, width, 3), random(2, *window, 3, 5)
    ours = gradients(by(convolution.conv_general_dilated, *options), x, weight)
    jaxs = gradients(by(lax.conv_general_dilated, *options), x, weight)
    np.testing.assert_array_equal(ours[0], jaxs[0])
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(jaxs), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ('shape', 'window', 'options'), [((2, 9, 3), (3,), {'padding': 1}), ((2, 9, 8, 3), (3, 3), {'strides': 2})]
)
def test_a_layer_is_that_of_flax(shape, window, options):
    x = random(1, *shape)
    ours, flaxs = convolution.layer(4, window, **options), nn.Conv(4, window, **options)
    params = flaxs.init(jax.random.key(0), x)
    loss = lambda module: jax.value_and_grad(lambda params: jnp.sum(jnp.sin(module.apply(params, x))))(params)
    for one, other in zip(jax.tree.leaves(loss(ours)), jax.tree.leaves(loss(flaxs)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_grouped_ones_are_left_to_jax():
    x, weight = random(1, 2, 8, 8, 4), random(2, 3, 3, 2, 4)
    words = dict(dimension_numbers=convolution.LAYOUT, feature_group_count=2)
    ours, jaxs = (of(x, weight, (1, 1), 'SAME', **words) for of in (convolution.conv_general_dilated, lax.conv_general_dilated))
    np.testing.assert_array_equal(ours, jaxs)


def arranged(jaxpr, inside=False):
    """(convolutions that the CPU compiler runs fast, others), of those inside conditions and loops."""
    good, bad = 0, []
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'conv_general_dilated' and inside:
            numbers = equation.params['dimension_numbers']
            shapes = [value.aval.shape for value in equation.invars]
            fits = numbers == lax.conv_dimension_numbers(*shapes, convolution.LAYOUT) if len(shapes[0]) == 4 else False
            good, bad = good + fits, bad + ([] if fits else [(shapes, numbers)])
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda value: hasattr(value, 'eqns')):
            inner = getattr(value, 'jaxpr', value)
            if hasattr(inner, 'eqns'):
                more, worse = arranged(inner, inside or equation.primitive.name in LOOPS)
                good, bad = good + more, bad + worse
    return good, bad


def test_what_is_looked_for_is_found():
    """JAX's own gradient in a branch is not arranged; ours is, and so is JAX's outside, where the compiler arranges it."""
    x, weight = random(1, 2, 8, 8, 3), random(2, 3, 3, 3, 4)

    def branch(of):
        loss = lambda weight: jnp.sum(jnp.square(of(x, weight, (1, 1), 'SAME', dimension_numbers=convolution.LAYOUT)))
        return lambda weight: lax.cond(weight[0, 0, 0, 0] > 0, jax.grad(loss), jnp.zeros_like, weight)

    ours, jaxs = (jax.make_jaxpr(branch(of))(weight) for of in (convolution.conv_general_dilated, lax.conv_general_dilated))
    assert arranged(ours.jaxpr) == (2, [])  # no gradient of x, which is not asked for
    assert arranged(jaxs.jaxpr)[0] == 1 and len(arranged(jaxs.jaxpr)[1]) == 1
    with platforms.planned('tpu'):
        assert len(arranged(jax.make_jaxpr(branch(convolution.conv_general_dilated))(weight).jaxpr)[1]) == 1


@pytest.mark.parametrize('name', NAMES)
def test_no_step_hides_a_convolution_that_the_compiler_cannot_arrange(name):
    """The steps of every system, in parts where they can be: what stands in their conditions and loops."""
    loaded = test_contract.config(name)
    if 'accumulate' in loaded and name not in WHOLE:
        words = (test_contract.WORDS, 'accumulate=2', 'batch=8')
        loaded = configs.load(test_contract.file_of(name), [*test_contract.SMALL[name], *words])
    good = 0
    for step, shapes in test_contract.steps(loaded, test_contract.described(name)):
        found, bad = arranged(jax.make_jaxpr(step)(*shapes).jaxpr)
        assert not bad, bad[:3]
        good += found
    assert good or name != 'ganfusion_gan'
