import cheap_keys
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.core import tree
from t3d.nets import text_decoder

TINY = dict(
    channels=(32, 16),
    heads=(4, 0),
    groups=(8, 4),
    layers=3,
    mid_heads=4,
    base_size=4,
    base_channels=24,
    mixer_width=16,
    mixer_heads=4,
    style_width=12,
    style_channels=20,
    out_channels=24,
    out_groups=4,
)


def build(**changes):
    decoder = text_decoder.TextDecoder(**{**TINY, **changes})
    key_tokens, key_noise = jax.random.split(jax.random.key(0))
    tokens = jax.random.normal(key_tokens, (2, 6, 32))
    noise = jax.random.normal(key_noise, (2, 12))
    return decoder, jax.jit(decoder.init)(cheap_keys.key(0), tokens, noise), tokens, noise


def test_the_released_size_has_the_reference_counts():
    decoder = text_decoder.TextDecoder(**text_decoder.RELEASED)
    params = jax.eval_shape(decoder.init, jax.random.key(0), jnp.zeros((1, 77, 1024)), jnp.zeros((1, 768)))['params']
    counts = text_decoder.parameter_groups(params)
    assert decoder.out_size == 256
    sizes = {'trunk': 136.1, 'stage_0': 30.2, 'stage_1': 65.5, 'stage_2': 20.2, 'stage_3': 6.8, 'stage_4': 2.9, 'stage_5': 1.1}
    for name, millions in sizes.items():
        assert round(counts[name] / 1e6, 1) == millions, name
    assert params['plane_text']['kernel'].size == 77 * 192 * 512 * 16 == 121_110_528
    assert params['style_text']['kernel'].size == 77 * 192 * 768 == 11_354_112


def test_one_token_changes_every_plane_and_noise_is_heard():
    decoder, variables, tokens, noise = build()
    apply = jax.jit(decoder.apply)
    planes = apply(variables, tokens, noise)
    assert planes.shape == (2, 16, 16, 24)
    np.testing.assert_array_equal(planes, apply(variables, tokens, noise))
    changed = apply(variables, tokens.at[0, 3].add(1.0), noise)
    difference = jnp.abs(changed - planes).reshape(2, 16, 16, 3, 8).max((1, 2, 4))
    assert difference[0].min() > 1e-3 and difference[1].max() == 0.0
    assert jnp.abs(apply(variables, tokens, noise.at[1].add(1.0)) - planes)[1].max() > 1e-3


@pytest.mark.parametrize(
    'flag, gone',
    [
        ('cross_attention', 'cross_attention'),
        ('style_injection', 'affine'),
        ('token_to_plane', 'plane_text'),
    ],
)
def test_each_mechanism_switches_off_alone(flag, gone):
    _, variables, _, _ = build()
    decoder, without, tokens, noise = build(**{flag: False})
    names = tree.flatten(variables)
    assert any(gone in name for name in names) and not any(gone in name for name in tree.flatten(without))
    apply = jax.jit(decoder.apply)
    planes = apply(without, tokens, noise)
    assert jnp.abs(apply(without, tokens + 1.0, noise) - planes).max() > 1e-3  # the others still read the text


def test_without_every_mechanism_the_text_is_not_read():
    decoder, variables, tokens, noise = build(cross_attention=False, style_injection=False, token_to_plane=False)
    apply = jax.jit(decoder.apply)
    planes = apply(variables, tokens, noise)
    np.testing.assert_array_equal(apply(variables, tokens + 1.0, noise + 1.0), planes)


def test_rematerialisation_keeps_names_values_and_gradients():
    plain, variables, tokens, noise = build()
    remat, other, _, _ = build(remat=True)
    assert tree.flatten(variables).keys() == tree.flatten(other).keys()

    def loss(decoder):
        return lambda v: jnp.mean(jnp.square(decoder.apply(v, tokens, noise)))

    gradient = lambda decoder: jax.jit(jax.grad(loss(decoder)))(variables)
    one, two = gradient(plain), gradient(remat)
    for name, leaf in tree.flatten(one).items():
        np.testing.assert_allclose(leaf, tree.flatten(two)[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_noise_of_another_width_is_refused():
    decoder, variables, tokens, noise = build()
    with pytest.raises(ValueError, match=r'noise of shape \(2, 5\): wanted \(2, 12\)'):
        decoder.apply(variables, tokens, noise[:, :5])
