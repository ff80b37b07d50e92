"""Mapping, synthesis and super-resolution against golden arrays, per-sample loops and parameter tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import eg3d_names
from peers.eg3d_names import modulated, nhwc

from t3d.core import tree
from t3d.core.errors import UsageError
from t3d.nets import fir
from t3d.nets import stylegan2 as sg


def largest(got, expected) -> float:
    return float(np.abs(np.asarray(got) - expected).max())


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def perturbed(params, scale=0.3):
    """The tree with random numbers added: no bias, strength or affine layer is at its initial value."""
    return tree.map_with_name(lambda name, leaf: np.asarray(leaf) + scale * random(*leaf.shape, seed=len(name)), params)


@pytest.mark.parametrize('demodulate', [False, True])
def test_modulated_convolution_is_the_golden_one(golden, demodulate):
    data = golden(f'modconv_up1_demod{int(demodulate)}')
    x, weight, noise = nhwc(data['x']), data['w'].transpose(2, 3, 1, 0), nhwc(data['noise'])
    got = sg.modulated_conv(x, weight, data['s'], demodulate=demodulate) + noise
    assert largest(got, nhwc(data['y'])) < 5e-6


@pytest.mark.parametrize('up', [False, True])
@pytest.mark.parametrize('demodulate', [False, True])
def test_modulated_convolution_is_a_loop_over_samples_and_pixels(up, demodulate):
    x, weight, styles = random(3, 5, 4, 6), 0.3 * random(3, 3, 6, 7, seed=1), random(3, 6, seed=2)
    expected = modulated(x, weight, styles, up=up, demodulate=demodulate)
    got = sg.modulated_conv(x, weight, styles, up=up, demodulate=demodulate)
    assert got.shape == expected.shape
    assert largest(got, expected) < 5e-6
    plain = sg.modulated_conv(x, weight, None, up=up, demodulate=demodulate)
    assert largest(plain, modulated(x, weight, np.ones((3, 6)), up=up, demodulate=demodulate)) < 5e-6


def test_the_epsilon_of_demodulation():
    """Styles so small that it acts: a tenfold one is far off."""
    x, weight, styles = random(2, 4, 4, 6), random(3, 3, 6, 7, seed=1), 2e-5 * random(2, 6, seed=2)
    got = sg.modulated_conv(x, weight, styles)
    assert largest(got, modulated(x, weight, styles)) < 5e-6
    assert largest(got, modulated(x, weight, styles, epsilon=1e-7)) > 1e-2


def test_demodulation_keeps_unit_variance_under_random_styles():
    x, weight, styles = random(8, 16, 16, 32), random(3, 3, 32, 64, seed=1), np.exp(random(8, 32, seed=2))
    inner = np.asarray(sg.modulated_conv(x, weight, styles))[:, 1:-1, 1:-1]
    variances = inner.var((1, 2, 3))
    assert np.abs(variances - 1).max() < 0.1
    loose = np.asarray(sg.modulated_conv(x, weight, styles, demodulate=False))[:, 1:-1, 1:-1]
    assert loose.var((1, 2, 3)).min() > 50


def test_gradients_of_the_upsampling_convolution():
    """Its hand-written backward pass, once and twice, against autodiff of zero insertion."""

    def explicit(x, weight):
        batch, height, width, channels = x.shape
        spread = jnp.zeros((batch, 2 * height + 3, 2 * width + 3, channels))
        spread = spread.at[:, 2 : 2 * height + 2 : 2, 2 : 2 * width + 2 : 2].set(x)
        return fir.conv(spread, weight[::-1, ::-1], padding='VALID')

    def loss(function, x, weight):
        return jnp.sum(jnp.sin(function(x, weight)))

    def slope(function, x, weight):
        first = jax.grad(lambda x: loss(function, x, weight))(x)
        return jnp.sum(jnp.square(first))

    x, weight = random(2, 3, 4, 5), random(3, 3, 5, 6, seed=1)
    for scalar in (loss, slope):
        got = jax.jit(lambda x, w, s=scalar: jax.grad(lambda *a: s(fir.conv_transpose, *a), (0, 1))(x, w))(x, weight)
        expected = jax.jit(lambda x, w, s=scalar: jax.grad(lambda *a: s(explicit, *a), (0, 1))(x, w))(x, weight)
        for one, other in zip(got, expected):
            assert largest(one, other) < 1e-5 * float(jnp.abs(other).max())


def test_mapping_and_truncation_are_the_golden_ones(golden):
    data = golden('mapping')
    params, _ = eg3d_names.trees(data)
    mapping = jax.jit(sg.Mapping(16, 25, 16, 2).apply)
    w = mapping({'params': params}, data['z'], data['c'])
    average = data['param/w_avg']
    assert largest(sg.truncate(w, average, 5), data['w']) < 2e-6
    assert largest(sg.truncate(w, average, 5, 0.5, 3), data['w_psi05_cut3']) < 2e-6
    assert largest(sg.truncate(w, average, 5, 0.5), data['w_psi05_cut3']) > 1e-2
    unlabelled = mapping({'params': params}, data['z'], np.zeros_like(data['c']))
    assert largest(unlabelled[:, None], data['w_c0']) < 2e-6
    assert largest(unlabelled, np.asarray(w)) > 1e-3


def test_the_epsilon_of_normalisation():
    z = 2e-4 * random(3, 8)
    expected = z.astype(np.float64) / np.sqrt(np.square(z.astype(np.float64)).mean(-1, keepdims=True) + 1e-8)
    assert largest(sg.normalize(z), expected) < 2e-6
    other = z / np.sqrt(np.square(z).mean(-1, keepdims=True) + 1e-7)
    assert largest(other, expected) > 1e-2


def test_mapping_of_a_label_alone_and_of_z_alone():
    """Eight layers as the discriminator has them, in float64."""
    c = random(3, 25)
    mapping = sg.Mapping(0, 25, 16, 8)
    params = perturbed(mapping.init(jax.random.key(0), None, c)['params'])
    x = c.astype(np.float64) @ params['embed']['weight'] / 5.0 + params['embed']['bias']
    x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-8)
    for i in range(8):
        layer = params[f'fc{i}']
        x = x @ layer['weight'] * (0.01 / 4.0) + 0.01 * np.asarray(layer['bias'])
        x = np.where(x > 0, x, 0.2 * x) * np.sqrt(2)
    assert largest(mapping.apply({'params': params}, None, c), x) < 2e-6 * np.abs(x).max()  # float32 through eight layers
    alone = sg.Mapping(16, 0, 16, 2)
    params = alone.init(jax.random.key(0), c[:, :16], None)['params']
    assert set(params) == {'fc0', 'fc1'} and params['fc0']['weight'].shape == (16, 16)
    with pytest.raises(UsageError, match='c of 25'):
        mapping.apply({'params': params}, None, None)
    with pytest.raises(UsageError, match='z of 0'):
        mapping.apply({'params': params}, c, c)


@pytest.fixture(scope='module')
def synthesis():
    """(module, apply) of the golden synthesis, compiled once for each noise mode."""
    module = sg.Synthesis(16, 24, 16, channel_base=128, channel_max=16)
    return module, jax.jit(module.apply, static_argnames='noise')


def test_synthesis_is_the_golden_one(golden, synthesis):
    data = golden('synthesis16')
    params, buffers = eg3d_names.trees(data)
    module, apply = synthesis
    abstract = jax.eval_shape(module.init, jax.random.key(0), data['ws'])
    assert tree.mismatch(tree.flatten(params), tree.flatten(abstract['params'])) == []
    assert tree.mismatch(tree.flatten(buffers), tree.flatten(abstract['buffers'])) == []
    assert sg.num_ws(16) == int(data['num_ws']) == 6
    assert sg.num_ws(256) == 14
    got = apply({'params': params}, data['ws'], noise='none')
    assert largest(got, nhwc(data['img_none'])) < 2e-5
    const = apply({'params': params, 'buffers': buffers}, data['ws'], noise='const')
    assert largest(const, nhwc(data['img_const'])) < 2e-5
    assert largest(const, np.asarray(got)) > 1e-2


@pytest.mark.parametrize('wrong', ['gain', 'pad', 'torgb gain', 'noise'])
def test_a_wrong_constant_fails_the_golden(golden, monkeypatch, wrong):
    data = golden('synthesis16')
    params, buffers = eg3d_names.trees(data)
    smooth, leaky, original = fir.smooth, sg.leaky, sg.modulated_conv
    if wrong == 'gain':
        monkeypatch.setattr(sg, 'leaky', lambda x, gain=1.414, clamp=None: leaky(x, gain, clamp))
    if wrong == 'pad':
        monkeypatch.setattr(fir, 'smooth', lambda x, pad, gain: smooth(x, pad + 1, gain)[:, 2:, 2:])
    if wrong == 'torgb gain':
        monkeypatch.setattr(sg, 'modulated_conv', lambda x, w, s, demodulate=True, **o: original(x, w, s, demodulate=True, **o))
    if wrong == 'noise':
        buffers = jax.tree.map(np.transpose, buffers)
    module = sg.Synthesis(16, 24, 16, channel_base=128, channel_max=16)
    apply = jax.jit(lambda v, ws: module.apply(v, ws))
    got = apply({'params': params, 'buffers': buffers}, data['ws'])
    assert largest(got, nhwc(data['img_const'])) > 1e-4


def test_random_noise_follows_its_key_and_strength(golden, synthesis):
    data = golden('synthesis16')
    params, _ = eg3d_names.trees(data)
    apply = synthesis[1]
    one, again, other = (apply({'params': params}, data['ws'], noise='random', key=jax.random.key(seed)) for seed in (0, 0, 1))
    assert largest(one, np.asarray(again)) == 0.0
    assert largest(one, np.asarray(other)) > 1e-2
    silent = tree.map_with_name(lambda name, leaf: 0 * leaf if name.endswith('strength') else leaf, params)
    none = apply({'params': silent}, data['ws'], noise='none')
    assert largest(apply({'params': silent}, data['ws'], noise='random', key=jax.random.key(0)), np.asarray(none)) < 1e-6


def test_noise_is_one_normal_number_for_each_sample_and_pixel():
    layer = sg.StyledConv(3, noise_size=8)
    x, w = np.zeros((4, 8, 8, 2), np.float32), random(4, 5)
    params = layer.init(jax.random.key(0), x, w)['params']
    params = {**params, 'noise_strength': jnp.float32(0.5)}
    out = layer.apply({'params': params}, x, w, 'random', jax.random.key(1))
    noise = np.where(out >= 0, out, out / 0.2) / np.sqrt(2) / 0.5
    assert largest(noise, noise[..., :1]) < 1e-6  # the same for all channels
    assert abs(noise.std() - 1) < 0.15 and abs(noise.mean()) < 0.15
    assert largest(noise[0], noise[1]) > 0.1


def test_synthesis_refuses_what_does_not_fit(synthesis):
    module, _ = synthesis
    ws = random(1, 6, 16)
    for arguments, message in (((ws[:, :5],), '6'), ((ws, 'some'), 'const'), ((ws, 'random'), 'key')):
        with pytest.raises(UsageError, match=message):
            jax.eval_shape(lambda a=arguments: module.init(jax.random.key(0), *a))


def test_the_superresolution_block_without_upsampling_is_the_golden_one(golden):
    data = golden('sr_block_noup')
    params, _ = eg3d_names.trees(data)
    block = sg.SuperResolutionBlock(12, up=False)
    x, rgb = jax.jit(block.apply)({'params': params}, nhwc(data['x']), nhwc(data['rgb']), data['w'][:, 0])
    assert largest(x, nhwc(data['x_out'])) < 2e-5
    assert largest(rgb, nhwc(data['rgb_out'])) < 2e-5
    assert largest(data['w'], data['w'][:, :1]) == 0.0  # one style for the three layers, as the block assumes


@pytest.mark.parametrize('styled', [False, True])
def test_a_superresolution_block_with_upsampling_is_a_loop_over_samples_and_pixels(styled):
    x, rgb, w = random(2, 4, 4, 6), random(2, 4, 4, 3, seed=1), random(2, 5, seed=2)
    block = sg.SuperResolutionBlock(7, up=True, styled=styled)
    params = perturbed(block.init(jax.random.key(0), x, rgb, w)['params'])

    def style(name, width):
        if not styled:
            return np.ones((2, width))
        return w @ params[name]['affine']['weight'] / np.sqrt(5) + params[name]['affine']['bias']

    def layer(name, x, up):
        out = modulated(x, params[name]['weight'], np.asarray(style(name, x.shape[-1])), up=up)
        out = out + np.asarray(params[name]['bias'])
        return np.where(out > 0, out, 0.2 * out) * np.sqrt(2)

    expected = layer('conv1', layer('conv0', x, True), False)
    torgb = np.asarray(style('torgb', 7)) / np.sqrt(7)
    colour = modulated(expected, params['torgb']['weight'], torgb, demodulate=False) + params['torgb']['bias']
    got, image = jax.jit(block.apply)({'params': params}, x, rgb, w)
    assert largest(got, expected) < 2e-5
    assert largest(image, np.asarray(fir.upsample2(rgb)) + np.asarray(colour)) < 2e-5
    assert ('affine' in params['conv0']) == styled


def test_superresolution_without_style_is_that_with_styles_of_one():
    rgb, features, w = random(2, 6, 6, 3), random(2, 6, 6, 4, seed=1), random(2, 5, seed=2)
    options = {'input_size': 8, 'in_channels': 4, 'channels': (6, 4), 'w_dim': 5}
    styled, plain = sg.SuperResolution(**options), sg.SuperResolution(**options, styled=False)
    params = perturbed(styled.init(jax.random.key(0), rgb, features, w)['params'])
    leaves = tree.flatten(params)
    ones = {name: 1.0 * name.endswith('bias') + 0 * leaf if 'affine' in name else leaf for name, leaf in leaves.items()}
    without = {name: leaf for name, leaf in leaves.items() if 'affine' not in name}
    abstract = jax.eval_shape(plain.init, jax.random.key(0), rgb, features, None)['params']
    assert tree.mismatch(without, tree.flatten(abstract)) == []
    expected = jax.jit(styled.apply)({'params': tree.unflatten(ones)}, rgb, features, w)
    got = jax.jit(plain.apply)({'params': tree.unflatten(without)}, rgb, features, None)
    assert got.shape == (2, 16, 16, 3)
    assert largest(got, np.asarray(expected)) < 2e-6
    for module, style in ((plain, w), (styled, None), (styled, w[:, :4])):
        with pytest.raises(UsageError, match='super-resolution'):
            module.apply({'params': {}}, rgb, features, style)
    with pytest.raises(UsageError, match='4 feature channels'):
        plain.apply({'params': {}}, rgb, features[..., :3], None)


def test_bfloat16_stays_close_and_clamps_hold():
    rgb, features, w = np.tanh(random(2, 16, 16, 3)), np.tanh(random(2, 16, 16, 8, seed=1)), random(2, 16, seed=2)
    options = {'input_size': 16, 'in_channels': 8, 'channels': (16, 8), 'w_dim': 16}
    exact, fast = sg.SuperResolution(**options), sg.SuperResolution(**options, dtype=jnp.bfloat16, clamp=256.0)
    params = exact.init(jax.random.key(0), rgb, features, w)['params']
    expected = np.asarray(jax.jit(exact.apply)({'params': params}, rgb, features, w))
    got = jax.jit(fast.apply)({'params': params}, rgb, features, w)
    assert got.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    error = np.square(np.asarray(got) - expected).mean()
    assert 40 < 10 * np.log10((expected.max() - expected.min()) ** 2 / error) < 80  # and it is not float32
    x = sg.leaky(jnp.asarray([-1e4, -1.0, 0.0, 1.0, 1e4]), clamp=256.0)
    assert largest(x, np.array([-256, -0.2 * np.sqrt(2), 0, np.sqrt(2), 256])) < 1e-5


def shapes_of(module, *inputs):
    """Shapes of the parameters for inputs of these shapes."""
    return jax.eval_shape(lambda key: module.init(key, *map(jnp.zeros, inputs)), jax.random.key(0))['params']


def test_parameter_counts():
    backbone = shapes_of(sg.Synthesis(256, 96, 512), (1, 14, 512))
    blocks = {'b4': 2_942_561, **dict.fromkeys(('b8', 'b16', 'b32', 'b64'), 5_556_834), 'b128': 2_319_970, 'b256': 717_666}
    assert {name: tree.count(block) for name, block in backbone.items()} == blocks
    mapping = tree.count(shapes_of(sg.Mapping(512, 25, 512, 2), (1, 512), (1, 25)))
    decoder = 32 * 64 + 64 + 64 * 33 + 33
    for size, count, total in ((512, 1_649_578, 30.66), (256, 574_954, 29.59), (128, 574_954, 29.59)):
        superres = sg.SuperResolution(in_channels=32, **sg.sr_preset(size))
        shapes = (1, 64, 64, 3), (1, 64, 64, 32), (1, 512)
        assert tree.count(shapes_of(superres, *shapes)) == count
        assert round((mapping + tree.count(backbone) + decoder + count) / 1e6, 2) == total
        out = jax.eval_shape(lambda m=superres, s=shapes: m.init_with_output(jax.random.key(0), *map(jnp.zeros, s))[0])
        assert out.shape == (1, size, size, 3)
    assert (mapping, round(tree.count(backbone) / 1e6, 3)) == (800_768, 28.208)
    with pytest.raises(UsageError, match='100'):
        sg.sr_preset(100)


def test_parameter_count_of_the_tiny_generator():
    parts = (
        shapes_of(sg.Mapping(64, 25, 64, 2), (1, 64), (1, 25)),
        shapes_of(sg.Synthesis(32, 24, 64, 1024, 64), (1, 8, 64)),
        shapes_of(sg.SuperResolution(32, 16, (32, 16), (False, True), 64), (1, 32, 32, 3), (1, 32, 32, 16), (1, 64)),
    )
    decoder = 8 * 64 + 64 + 64 * 17 + 17
    assert round((sum(map(tree.count, parts)) + decoder) / 1e6, 3) == 0.307
