"""Each tolerance of test_unet.py and test_vae.py bites: single mistakes of the kind people make are all found.

`pytest -m slow -s tests/test_backbone_mutations.py` prints the size of each mistake beside the tolerance.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_unet
import test_vae
from test_unet import relative

from t3d.nets import unet as unets
from t3d.nets import unet_blocks
from t3d.nets import vae as vaes
from t3d.nets.unet import UNet

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def unet():
    return test_unet.Pair({**test_unet.SMALL, **test_unet.STYLES['2.1']})


@pytest.fixture(scope='module')
def vae():
    return test_vae.Pair(test_vae.SMALL)


class Epsilons:
    """A module whose norms take their epsilons as an argument: one compiled program for all of them."""

    def __init__(self, module, method='__call__'):
        self.module, self.method, self.names = module, method, []
        self.apply = jax.jit(self._apply)

    def find(self, params, *inputs) -> dict[str, float]:
        """The epsilon of every norm, by its path."""
        epsilons = {}

        def note(call, args, kwargs, context):
            if isinstance(context.module, (nn.GroupNorm, nn.LayerNorm)):
                epsilons['/'.join(context.module.path)] = context.module.epsilon
            return call(*args, **kwargs)

        with nn.intercept_methods(note):
            jax.eval_shape(functools.partial(self.module.apply, method=self.method), {'params': params}, *inputs)
        return epsilons

    def _apply(self, epsilons, params, *inputs):
        def change(call, args, kwargs, context):
            if isinstance(context.module, (nn.GroupNorm, nn.LayerNorm)):
                object.__setattr__(context.module, 'epsilon', epsilons['/'.join(context.module.path)])
            return call(*args, **kwargs)

        with nn.intercept_methods(change):
            return self.module.apply({'params': params}, *inputs, method=self.method)


def faults(epsilons: dict[str, float], error):
    """{norm: error with its epsilon exchanged}, and the error with none; `error` of {norm: epsilon}."""
    errors = {}
    for name, right in epsilons.items():
        errors[name] = error({**epsilons, name: 1e-5 if right < 5e-6 else 1e-6})
    return errors, error(epsilons)


def show(title, errors, right, tolerance):
    print(f'\n{title}: {right:.1e} right, tolerance {tolerance:.0e}')
    print('\n'.join(f'  {value:.1e}  {name}' for name, value in sorted(errors.items(), key=lambda item: item[1])))


def test_the_probe_finds_the_epsilon_of_every_norm_of_the_unet(unet):
    low, inputs = unet.quiet(), unet.inputs(scale=3e-3)
    program = Epsilons(unet.ours)
    _, expected = low.run(*inputs)
    epsilons = program.find(low.params, *inputs)
    assert len(epsilons) == 33
    errors, right = faults(epsilons, lambda changed: relative(program.apply(changed, low.params, *inputs), expected))
    show('UNet, one epsilon', errors, right, 1e-5)
    assert right < 1e-5 < min(errors.values())


@pytest.mark.parametrize('method', ['encode', 'decode'])
def test_the_probe_finds_the_epsilon_of_every_norm_of_the_autoencoder(vae, method):
    low, program = vae.quiet(), Epsilons(vae.ours, method)
    x = 3e-3 * (test_vae.images(3, 16, 8) if method == 'encode' else test_vae.latents(3, 8))
    expected = low.encodings(x)[1][0] if method == 'encode' else low.decodings(x)[1]

    def error(epsilons):
        got = program.apply(epsilons, low.params, x)
        return relative(got[0] if method == 'encode' else got, expected)

    epsilons = program.find(low.params, x)
    assert len(epsilons) == (10 if method == 'encode' else 14) and set(epsilons.values()) == {1e-6}
    errors, right = faults(epsilons, error)
    show(f'autoencoder, {method}, one epsilon', errors, right, 1e-5)
    assert right < 1e-5 < min(errors.values())


def bilinear(x):
    return jax.image.resize(x, (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]), 'bilinear')


def gated(activation, swapped=False):
    def apply(x):
        value, gate = jnp.split(x, 2, axis=-1)
        return gate * activation(value) if swapped else value * activation(gate)

    return apply


def unscaled(query, key, value, *, upcast=False, mask=None, kernel='xla'):
    return jax.nn.dot_product_attention(query, key, value, scale=1.0)


def without_maximum(waves):
    return lambda t, width, **kwargs: waves(t / 1000.0, width, **kwargs)


exact = functools.partial(nn.gelu, approximate=False)
UNET_MISTAKES = {  # what is replaced: (owner, name, value), or changes of the configuration
    'tanh GELU': (unet_blocks, 'geglu', gated(nn.gelu)),
    'quick GELU': (unet_blocks, 'geglu', gated(lambda x: x * jax.nn.sigmoid(1.702 * x))),
    'GEGLU halves swapped': (unet_blocks, 'geglu', gated(exact, swapped=True)),
    'skip before map': (unet_blocks, 'join', lambda x, skip: jnp.concatenate([skip, x], -1)),
    'bilinear up-sampling': (unet_blocks, 'upsample', bilinear),
    'attention without scale': (unet_blocks, 'dot_product_attention', unscaled),
    'time in [0, 1]': (unets, 'timestep_embedding', without_maximum(unets.timestep_embedding)),
    'sine before cosine': {'flip_sin_to_cos': False},
    'frequencies over half - 1': {'freq_shift': 1},
    'far padding of stride 2': {'downsample_padding': 0},
    'twice the heads': {'attention_head_dim': [4, 8]},
    'head count read as head width': {'attention_head_dim': [16, 16]},
    'group norms over 4 groups': {'norm_num_groups': 4},
}


@pytest.mark.parametrize('name', UNET_MISTAKES)
def test_parity_of_the_unet_finds(unet, name, monkeypatch):
    mistake, config = UNET_MISTAKES[name], unet.config
    if isinstance(mistake, dict):
        config = {**config, **mistake}
    else:
        monkeypatch.setattr(*mistake)
    inputs = unet.inputs()
    got = jax.jit(UNet.from_config(config).apply)({'params': unet.params}, *inputs)
    right, expected = unet.run(*inputs)
    error = np.abs(got - expected).max()
    right = np.abs(right - expected).max()
    print(f'\n{name}: {error:.1e}, {relative(got, expected):.1e} relative (right {right:.1e}, tolerance 2e-5)')
    assert error > 4e-5


def heads(count):
    plain = vaes.attention
    return lambda x, context, _, options, *, bias=False: plain(x, context, count, options, bias=bias)


VAE_MISTAKES = {
    'padding on both sides': (vaes, 'Options', lambda *args, **kwargs: unet_blocks.Options(*args, **{**kwargs, 'padding': 1})),
    'eight heads': (vaes, 'attention', heads(8)),
    'bilinear up-sampling': (unet_blocks, 'upsample', bilinear),
    'all epsilons 1e-3': (vaes, 'EPSILON', 1e-3),
}


@pytest.mark.parametrize('name', VAE_MISTAKES)
def test_parity_of_the_autoencoder_finds(vae, name, monkeypatch):
    monkeypatch.setattr(*VAE_MISTAKES[name])
    x, z = test_vae.images(3, 16, 8), test_vae.latents(3, 8)
    _, (mean, logvar) = vae.encodings(x)
    _, decoded = vae.decodings(z)

    @jax.jit
    def both(params, x, z):
        return vae.ours.apply(params, x, method='encode'), vae.ours.apply(params, z, method='decode')

    (got_mean, got_logvar), got = both({'params': vae.params}, x, z)
    errors = [float(np.abs(a - b).max()) for a, b in ((got_mean, mean), (got_logvar, logvar), (got, decoded))]
    print(f'\n{name}: mean {errors[0]:.1e}, logvar {errors[1]:.1e} (3e-5), image {errors[2]:.1e} (1e-4)')
    assert errors[0] > 6e-5 or errors[2] > 2e-4
