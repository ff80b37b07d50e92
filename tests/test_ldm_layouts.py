"""Single-file checkpoints of any UNet and autoencoder: every tensor has one name, and comes back by it."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.checkpoint import convert, ldm_names, torch_files
from t3d.checkpoint.torch_files import BadWeights
from t3d.core import tree as trees
from t3d.inference import weights_check
from t3d.nets.unet import UNet
from t3d.nets.vae import VAE

RESNET = ('norm1', 'conv1', 'time_emb_proj', 'norm2', 'conv2', 'conv_shortcut')
ATTENTION = ('norm', 'proj_in', 'proj_out', 'transformer_blocks.0.attn1.to_q', 'transformer_blocks.0.ff.net.2')
OUTER = ('conv_in', 'conv_norm_out', 'conv_out', 'time_embedding.linear_1', 'time_embedding.linear_2')


def unet_names(layers, down, up):
    """diffusers' names of a UNet, written down from its structure: layers[k], and whether levels have attention."""
    levels, blocks = len(layers), []
    for k in range(levels):
        blocks += [(f'down_blocks.{k}', layers[k], down[k], 'downsamplers' if k < levels - 1 else None)]
        blocks += [(f'up_blocks.{k}', layers[levels - 1 - k] + 1, up[k], 'upsamplers' if k < levels - 1 else None)]
    stems = [f'{block}.resnets.{n}.{part}' for block, count, _, _ in blocks for n in range(count) for part in RESNET]
    stems += [
        f'{block}.attentions.{n}.{part}' for block, count, has, _ in blocks if has for n in range(count) for part in ATTENTION
    ]
    stems += [f'{block}.{sampler}.0.conv' for block, _, _, sampler in blocks if sampler]
    stems += [f'mid_block.resnets.{n}.{part}' for n in (0, 1) for part in RESNET]
    stems += [f'mid_block.attentions.0.{part}' for part in ATTENTION]
    return [f'{stem}.{leaf}' for stem in [*stems, *OUTER] for leaf in ('weight', 'bias')]


LEVELS = st.integers(1, 5).flatmap(
    lambda n: st.tuples(*(st.lists(kind, min_size=n, max_size=n) for kind in (st.integers(1, 4), st.booleans(), st.booleans())))
)


@settings(max_examples=150, deadline=None)
@given(LEVELS)
def test_names_of_any_unet_are_unique_complete_and_come_back(levels):
    names = unet_names(*levels)
    there = ldm_names.unet_to_ldm(names)
    assert set(there) == set(names) and len(set(there.values())) == len(names)
    assert ldm_names.unet_layers(there.values()) == tuple(levels[0])
    back, origin = ldm_names.unet_from_ldm({name: name for name in there.values()})
    assert set(back) == set(names) and all(there[name] == origin[name] for name in names)


ODD = dict(
    block_out_channels=[8, 16, 16],
    down_block_types=['DownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'],
    up_block_types=['CrossAttnUpBlock2D', 'UpBlock2D', 'CrossAttnUpBlock2D'],
    layers_per_block=[1, 3, 2],
    attention_head_dim=[2, 4, 4],
    cross_attention_dim=8,
    norm_num_groups=4,
)
SMALL_VAE = dict(
    block_out_channels=[8, 8, 16],
    down_block_types=['DownEncoderBlock2D'] * 3,
    up_block_types=['UpDecoderBlock2D'] * 3,
    layers_per_block=1,
    norm_num_groups=4,
)


def drawn(shapes):
    """Every leaf another number, so that a swap shows."""
    flat = trees.flatten(shapes)
    return trees.unflatten({name: np.full(leaf.shape, k, np.float32) for k, (name, leaf) in enumerate(flat.items())})


@pytest.fixture(scope='module')
def parts():
    return drawn(convert.unet_shapes(UNet.from_config(ODD))), drawn(convert.vae_shapes(VAE.from_config(SMALL_VAE)))


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_levels_of_different_depth_come_back_from_one_file(parts, tmp_path):
    unet, vae = parts
    convert.save_ldm(tmp_path / 'both.safetensors', unet=unet, vae=vae)
    assert len(torch_files.read(tmp_path / 'both.safetensors')) == len(trees.flatten(unet)) + len(trees.flatten(vae))
    same(convert.load_unet(tmp_path / 'both.safetensors', config=ODD)[1], unet)
    same(convert.load_vae(tmp_path / 'both.safetensors', config=SMALL_VAE)[1], vae)


def test_parts_without_prefix_load_alone(parts, tmp_path):
    convert.save_ldm(tmp_path / 'both.safetensors', unet=parts[0], vae=parts[1])
    tensors = torch_files.read(tmp_path / 'both.safetensors')
    for part, params, config, load in (
        ('unet', parts[0], ODD, convert.load_unet),
        ('vae', parts[1], SMALL_VAE, convert.load_vae),
    ):
        prefix, path = ldm_names.PREFIXES[part][0], tmp_path / f'{part}.safetensors'
        alone = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        torch_files.write(path, alone | ({'loss.logvar': np.zeros(1, np.float32)} if part == 'vae' else {}))
        same(load(path, config=config)[1], params)
        other = {'unet': (convert.load_vae, SMALL_VAE), 'vae': (convert.load_unet, ODD)}[part]
        with pytest.raises(BadWeights, match='has no'):
            other[0](path, config=other[1])
        (checked,) = weights_check.check(path)
        assert checked.good and f'{part} alone' in ' '.join(checked.lines)


def test_what_has_no_name_there_is_refused_and_nothing_is_written(parts, tmp_path):
    more = {**parts[0], 'class_embedding': {'linear_1': {'kernel': np.zeros((2, 2), np.float32)}}}
    with pytest.raises(BadWeights, match='no name for class_embedding.linear_1.weight of a unet: save_unet writes it'):
        convert.save_ldm(tmp_path / 'x.safetensors', unet=more)
    assert not list(tmp_path.iterdir())
