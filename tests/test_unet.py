"""The Stable Diffusion UNet against diffusers on weights that are random throughout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.nets.unet import UNet

SMALL = {  # two levels, both kinds of block, a decoder with and without transformers
    'in_channels': 4,
    'out_channels': 4,
    'block_out_channels': [32, 64],
    'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'],
    'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'],
    'layers_per_block': 1,
    'cross_attention_dim': 24,
    'norm_num_groups': 8,
}
STYLES = {
    '1.5': {'attention_head_dim': 8, 'use_linear_projection': False},
    '2.1': {'attention_head_dim': [2, 4], 'use_linear_projection': True, 'upcast_attention': True},
}


def peer(config):
    diffusers = pytest.importorskip('diffusers')
    torch_unet = pytest.importorskip('peers.torch_unet')
    return torch_unet.fill(diffusers.UNet2DConditionModel(**config))


def batch(config, size=(8, 8), scale=1.0, count=2):
    rng = np.random.default_rng(1)
    latents = scale * rng.standard_normal((count, *size, config['in_channels']))
    text = rng.standard_normal((count, 7, config['cross_attention_dim']))
    return latents.astype(np.float32), np.linspace(981, 1, count).round().astype(np.float32), text.astype(np.float32)


def wanted(model, latents, t, text):
    import torch
    from peers import loading

    with torch.no_grad():
        x = torch.from_numpy(latents).permute(0, 3, 1, 2).contiguous()
        return loading.nhwc(model(x, torch.from_numpy(t), encoder_hidden_states=torch.from_numpy(text)).sample)


def load(model, unet, inputs):
    from peers import loading

    return loading.params(model, loading.abstract_params(unet, *inputs))


@pytest.mark.parametrize('style', STYLES)
def test_two_levels_equal_diffusers(style):
    config = {**SMALL, **STYLES[style]}
    model, unet, inputs = peer(config), UNet.from_config(config), batch(config)
    params = load(model, unet, inputs)
    got = jax.jit(unet.apply)({'params': params}, *inputs)
    assert got.shape == inputs[0].shape and got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted(model, *inputs), atol=2e-5)
