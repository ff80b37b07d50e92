"""Every network computes in half precision on a CPU, near its float32 result; other names of types get the nearest one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_weights

from t3d.core import limits
from t3d.core.errors import UsageError
from t3d.geom import triplanes
from t3d.inference import sample2d
from t3d.nets import attention, stylegan2, stylegan2_discriminator, text_decoder, triplane_unet, vae
from t3d.nets.clip import TextTower
from t3d.nets.judges import bert, clip_vision
from t3d.nets.unet import UNet

UNET = dict(
    block_out_channels=[16],
    down_block_types=['CrossAttnDownBlock2D'],
    up_block_types=['CrossAttnUpBlock2D'],
    layers_per_block=1,
    attention_head_dim=2,
    cross_attention_dim=24,
    norm_num_groups=8,
)
DISCRIMINATOR = dict(channel_base=128, channel_max=16, c_dim=25, mapping_layers=2, group=2)


def ids(*shape):
    return jnp.asarray(np.random.default_rng(1).integers(0, 50, shape), jnp.int32)


def normal(*shape):
    return jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.float32)


def planes(dtype):
    section = {**UNET, 'attention_levels': (True,), 'axes': triplanes.PLANE_AXES['orthogonal'], 'cross_plane': True}
    names = ('block_out_channels', 'attention_levels', 'axes', 'layers_per_block', 'attention_head_dim', 'cross_plane')
    kept = {name: tuple(section[name]) if isinstance(section[name], list) else section[name] for name in names}
    return triplane_unet.PlaneUNet(channels=6, cross_attention_dim=24, norm_num_groups=8, dtype=dtype, **kept)


def decoder(dtype):
    sizes = dict(channels=(16,), heads=(2,), groups=(4,), layers=1, mid_heads=2, base_size=4, base_channels=8)
    sizes |= dict(mixer_width=8, mixer_heads=2, style_width=8, style_channels=8, out_channels=12, out_groups=4)
    return text_decoder.TextDecoder(**sizes, dtype=dtype)


def autoencoder(dtype):
    levels = dict(down_block_types=('DownEncoderBlock2D',) * 2, up_block_types=('UpDecoderBlock2D',) * 2)
    return vae.VAE(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, dtype=dtype, **levels)


NETWORKS = {  # name -> (dtype -> module, inputs)
    'unet': (lambda dtype: UNet.from_config(UNET, dtype=dtype), (normal(1, 8, 8, 4), normal(1), normal(1, 7, 24))),
    'planes': (planes, (normal(1, 3, 8, 8, 6), normal(1), normal(1, 7, 24))),
    'vae': (autoencoder, (normal(1, 8, 8, 3),)),
    'clip text': (lambda dtype: TextTower(50, 8, 32, 1, 2, dtype=dtype), (ids(2, 8),)),
    'clip image': (lambda dtype: clip_vision.VisionTower(8, 4, 32, 1, 2, 64, dtype=dtype), (normal(1, 8, 8, 3),)),
    'bert': (lambda dtype: bert.Bert(50, 8, 32, 1, 2, 64, dtype=dtype), (ids(2, 8), jnp.arange(16).reshape(2, 8) % 8 < 5)),
    'attention': (lambda dtype: attention.MultiHeadAttention(2, 8, dtype=dtype), (normal(1, 5, 16), normal(1, 3, 12))),
    'decoder': (decoder, (normal(2, 6, 16), normal(2, 8))),
    'backbone': (lambda dtype: stylegan2.Synthesis(8, 6, 16, 64, 16, dtype=dtype), (normal(1, 4, 16),)),
    'upsampler': (
        lambda dtype: stylegan2.SuperResolution(8, 8, (8, 8), (False, True), 16, dtype=dtype),
        (normal(1, 8, 8, 3), normal(1, 8, 8, 8), normal(1, 16)),
    ),
    'discriminator': (
        lambda dtype: stylegan2_discriminator.Discriminator(16, dtype=dtype, **DISCRIMINATOR),
        (normal(2, 16, 16, 3), normal(2, 16, 16, 3), normal(2, 25)),
    ),
}


@functools.cache
def whole(name):
    """(variables, the float32 result) of a network."""
    make, inputs = NETWORKS[name]
    module = make(jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    variables = jax.tree.map(lambda x: jnp.asarray(x), random_weights.drawn(shapes, 0.2))
    return variables, jax.tree.leaves(jax.jit(module.apply)(variables, *inputs))


BFLOAT16 = ('clip text', 'bert', 'attention', 'upsampler')  # that CPUs have everywhere, and other tests run


@pytest.mark.parametrize('name, dtype', [(name, 'float16') for name in NETWORKS] + [(name, 'bfloat16') for name in BFLOAT16])
def test_a_network_computes_in_half_precision_on_a_cpu(name, dtype):
    variables, exact_leaves = whole(name)
    make, inputs = NETWORKS[name]
    leaves = jax.tree.leaves(jax.jit(make(jnp.dtype(dtype)).apply)(variables, *inputs))
    for value, exact in zip(leaves, exact_leaves, strict=True):
        error = np.abs(np.asarray(value, np.float32) - exact)
        assert error.max() > 0.0 or name == 'discriminator'  # the type was used
        assert error.max() < (0.08 if dtype == 'bfloat16' else 0.012) * np.abs(exact).max()


def test_causal_and_masked_attention_in_float16():
    q, k, v = normal(1, 4, 2, 8), normal(1, 4, 2, 8) + 1.0, normal(1, 4, 2, 8) - 1.0
    mask = (jnp.arange(4) < 3)[None, None, None]
    for options in ({'is_causal': True}, {'mask': mask}):
        exact = attention.softmax_attention(q, k, v, **options)
        half = attention.softmax_attention(*(x.astype(jnp.float16) for x in (q, k, v)), **options)
        assert half.dtype == jnp.float16
        np.testing.assert_allclose(half.astype(jnp.float32), exact, atol=4e-3)


@pytest.mark.parametrize(
    'name, nearest',
    [('fp16', 'float16'), ('bf16', 'bfloat16'), ('float64', 'float32'), ('Float16', 'float16'), ('int8', None)],
)
def test_another_name_of_a_type_gets_the_nearest(name, nearest):
    hint = f' Nearest: --dtype {nearest}.' if nearest else ''
    with pytest.raises(UsageError) as refused:
        sample2d.run('a red cube', 'image_diffusion-toy', 'none.png', sample2d.Settings(), dtype=name)
    assert str(refused.value) == f'--dtype {name}: choose one of {", ".join(limits.DTYPES)}.{hint}'
