"""What is computed again in the backward pass: the same gradients, fewer numbers kept, and no product twice for 'products'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_weights

from t3d.core import config as configs
from t3d.nets import remat, unet_blocks

OPTIONS = unet_blocks.Options(groups=4, epsilon=1e-5)
RANDOM = np.random.default_rng(0)
X, TEMB = (np.float32(RANDOM.normal(size=shape)) for shape in ((2, 8, 8, 8), (2, 6)))
TEXT = unet_blocks.Masked(np.float32(RANDOM.normal(size=(2, 5, 8))), np.ones((2, 5), bool))
MODULES = {
    'resnet': (lambda options: unet_blocks.residual(options)(12, options), (X, TEMB)),
    'transformer': (lambda options: unet_blocks.transformer(options)(2, options), (X, TEXT)),
}


def parts(kind, word):
    """(loss, parameters) of a module whose backward pass goes by the word."""
    make, inputs = MODULES[kind]
    module = make(OPTIONS._replace(remat=word))
    params = random_weights.fan_in(jax.eval_shape(module.init, jax.random.key(0), *inputs)['params'])
    return lambda params, x: jnp.sum(jnp.sin(module.apply({'params': params}, x, *inputs[1:]))), params


def kept(loss, params):
    """Numbers that the backward pass keeps from the forward pass, beside parameters and inputs."""
    pull = jax.eval_shape(lambda *args: jax.vjp(loss, *args)[1], params, X)
    known = [leaf.shape for leaf in jax.tree.leaves((params, X))]
    found = 0
    for leaf in jax.tree.leaves(pull):
        if leaf.shape in known:
            known.remove(leaf.shape)
        else:
            found += leaf.size
    return found


def products(loss, params):
    """(convolutions, matrix products) of a loss and its gradient."""
    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(params, X))
    return text.count('conv_general_dilated['), text.count('dot_general[')


@pytest.mark.parametrize('kind', MODULES)
def test_gradients_are_the_same_and_less_is_kept(kind):
    losses = {word: parts(kind, word) for word in (False, remat.PRODUCTS, True)}
    (plain, params), *others = losses.values()
    expected = jax.jit(jax.grad(plain, (0, 1)))(params, X)
    for loss, same in others:
        assert jax.tree.structure(same) == jax.tree.structure(params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max()),
            jax.jit(jax.grad(loss, (0, 1)))(params, X),
            expected,
        )
    none, some, least = (kept(*each) for each in losses.values())
    assert none > some > least


def test_convolutions_are_computed_twice_by_true_and_once_by_products():
    counts = {word: products(*parts('resnet', word)) for word in (False, remat.PRODUCTS, True)}
    assert counts[remat.PRODUCTS] == counts[False]
    assert counts[True][0] > counts[False][0] and counts[True][1] >= counts[False][1]


def test_products_with_weights_are_computed_once_and_those_of_attention_again():
    plain, some, whole = (products(*parts('transformer', word))[1] for word in (False, remat.PRODUCTS, True))
    assert plain < some < whole


@pytest.mark.parametrize('spec', ['mvdiffusion:tiny', 'ganfusion_diffusion:tiny', 'renderdiffusion:tiny'])
def test_a_config_says_which(spec):
    assert configs.load(spec, ['remat=products']).remat == remat.PRODUCTS
    assert configs.load(spec, ['remat=true']).remat is True
