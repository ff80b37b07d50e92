"""Layers against the PyTorch modules that the released models are made of, on random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.nets import attention, clip, layers

torch = pytest.importorskip('torch')


def randomize(module):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            offset = 1.0 if parameter.ndim == 1 and name.endswith('weight') else 0.0
            scale = 0.3 if parameter.ndim == 1 else (parameter[0].numel()) ** -0.5
            parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def array(value):
    return jnp.asarray(value.detach().numpy())


def dense(module):
    bias = {} if module.bias is None else {'bias': array(module.bias)}
    return {'kernel': array(module.weight).T, **bias}


def conv(module):
    return {'kernel': array(module.weight).transpose(2, 3, 1, 0), 'bias': array(module.bias)}


def norm(module):
    return {'scale': array(module.weight), 'bias': array(module.bias)}


def nhwc(x):
    return array(x).transpose(0, 2, 3, 1)


def test_the_image_transformer_is_that_of_diffusers():
    diffusers = pytest.importorskip('diffusers')
    theirs = randomize(
        diffusers.Transformer2DModel(
            4, 8, in_channels=32, num_layers=1, cross_attention_dim=20, norm_num_groups=8, use_linear_projection=True
        )
    )
    block = theirs.transformer_blocks[0]

    def attn(module):
        names = {'query': module.to_q, 'key': module.to_k, 'value': module.to_v, 'out': module.to_out[0]}
        return {name: dense(part) for name, part in names.items()}

    params = {
        'norm': norm(theirs.norm),
        'proj_in': dense(theirs.proj_in),
        'proj_out': dense(theirs.proj_out),
        'norm_self': norm(block.norm1),
        'norm_cross': norm(block.norm2),
        'norm_mlp': norm(block.norm3),
        'self_attention': attn(block.attn1),
        'cross_attention': attn(block.attn2),
        'mlp': {'in': dense(block.ff.net[0].proj), 'out': dense(block.ff.net[2])},
    }
    x, tokens = 1e-2 * torch.randn(2, 32, 4, 4), torch.randn(2, 5, 20)  # small variance, so that a wrong epsilon shows
    expected = nhwc(theirs(x, encoder_hidden_states=tokens).sample)
    got = attention.ImageTransformer(heads=4, groups=8).apply({'params': params}, nhwc(x), array(tokens))
    np.testing.assert_allclose(got, expected, atol=5e-6)


def test_the_residual_block_is_that_of_diffusers_with_ada_group_norm():
    resnet = pytest.importorskip('diffusers.models.resnet')
    theirs = randomize(
        resnet.ResnetBlockCondNorm2D(
            in_channels=16, out_channels=24, temb_channels=10, groups=8, eps=1e-5, time_embedding_norm='ada_group'
        )
    )
    params = {
        'norm_1': {'affine': dense(theirs.norm1.linear)},
        'norm_2': {'affine': dense(theirs.norm2.linear)},
        'conv_1': conv(theirs.conv1),
        'conv_2': conv(theirs.conv2),
        'shortcut': conv(theirs.conv_shortcut),
    }
    x, style = 1e-2 * torch.randn(2, 16, 6, 6), torch.randn(2, 10)
    expected = nhwc(theirs(x, style))
    got = layers.ResidualBlock(24, 8).apply({'params': params}, nhwc(x), array(style))
    np.testing.assert_allclose(got, expected, atol=5e-6)


def test_upsampling_is_that_of_diffusers():
    upsampling = pytest.importorskip('diffusers.models.upsampling')
    theirs = randomize(upsampling.Upsample2D(8, use_conv=True))
    x = torch.randn(2, 8, 5, 5)
    got = layers.Upsample().apply({'params': {'conv': conv(theirs.conv)}}, nhwc(x))
    np.testing.assert_allclose(got, nhwc(theirs(x)), atol=5e-6)


@pytest.mark.parametrize('activation', ['quick_gelu', 'gelu'])
def test_the_text_tower_is_that_of_transformers(activation):
    transformers = pytest.importorskip('transformers')
    config = transformers.CLIPTextConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=7,
        hidden_act=activation,
    )
    theirs = randomize(transformers.CLIPTextModel(config))
    body = getattr(theirs, 'text_model', theirs)

    def layer(module):
        names = {
            'query': module.self_attn.q_proj,
            'key': module.self_attn.k_proj,
            'value': module.self_attn.v_proj,
            'out': module.self_attn.out_proj,
            'mlp_in': module.mlp.fc1,
            'mlp_out': module.mlp.fc2,
        }
        norms = {'norm_1': norm(module.layer_norm1), 'norm_2': norm(module.layer_norm2)}
        return {**{name: dense(part) for name, part in names.items()}, **norms}

    params = {
        'token_embedding': {'embedding': array(body.embeddings.token_embedding.weight)},
        'position_embedding': array(body.embeddings.position_embedding.weight),
        'layers': jax.tree.map(lambda *leaves: jnp.stack(leaves), *[layer(module) for module in body.encoder.layers]),
        'final_norm': norm(body.final_layer_norm),
    }
    ids = torch.tensor([[3, 9, 20, 4, 1, 1, 1], [7, 7, 2, 40, 30, 11, 1]])
    expected = array(theirs(ids).last_hidden_state)
    tower = clip.TextTower(50, 7, 24, 3, 4, activation=activation)
    np.testing.assert_allclose(tower.apply({'params': params}, array(ids)), expected, atol=5e-6)
