"""Names of single-file checkpoints: every tensor of the real layouts, against diffusers' own reading of such files."""

import jax
import numpy as np
import pytest
import small_pipeline

from t3d.checkpoint import convert, convert_names, ldm_names, torch_files
from t3d.checkpoint.torch_files import BadWeights, Stored
from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.nets.unet import UNet
from t3d.nets.vae import VAE

UNETS = {
    'sd15': UNet(cross_attention_dim=768),
    'sd21': UNet(cross_attention_dim=1024, use_linear_projection=True, attention_head_dim=(5, 10, 20, 20)),
}
CAMERA = [f'camera_embed.{k}.{leaf}' for k in (0, 2) for leaf in ('weight', 'bias')]
# As the checkpoints have them: one of each kind of name, from MVDream's and Stable Diffusion's files.
KNOWN = {
    'time_embed.2.weight': 'time_embedding.linear_2.weight',
    'camera_embed.0.bias': 'camera_embedding.linear_1.bias',
    'input_blocks.0.0.weight': 'conv_in.weight',
    'input_blocks.1.0.in_layers.0.weight': 'down_blocks.0.resnets.0.norm1.weight',
    'input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight': (
        'down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight'
    ),
    'input_blocks.3.0.op.weight': 'down_blocks.0.downsamplers.0.conv.weight',
    'input_blocks.4.0.skip_connection.weight': 'down_blocks.1.resnets.0.conv_shortcut.weight',
    'input_blocks.9.0.op.bias': 'down_blocks.2.downsamplers.0.conv.bias',
    'input_blocks.11.0.out_layers.3.weight': 'down_blocks.3.resnets.1.conv2.weight',
    'middle_block.0.emb_layers.1.weight': 'mid_block.resnets.0.time_emb_proj.weight',
    'middle_block.1.proj_in.weight': 'mid_block.attentions.0.proj_in.weight',
    'middle_block.2.out_layers.0.bias': 'mid_block.resnets.1.norm2.bias',
    'output_blocks.2.1.conv.weight': 'up_blocks.0.upsamplers.0.conv.weight',
    'output_blocks.5.2.conv.weight': 'up_blocks.1.upsamplers.0.conv.weight',
    'output_blocks.5.1.norm.weight': 'up_blocks.1.attentions.2.norm.weight',
    'output_blocks.11.1.proj_out.bias': 'up_blocks.3.attentions.2.proj_out.bias',
    'out.0.weight': 'conv_norm_out.weight',
    'out.2.bias': 'conv_out.bias',
}
KNOWN_VAE = {
    'encoder.down.0.block.1.norm1.weight': 'encoder.down_blocks.0.resnets.1.norm1.weight',
    'encoder.down.2.downsample.conv.bias': 'encoder.down_blocks.2.downsamplers.0.conv.bias',
    'encoder.down.1.block.0.nin_shortcut.weight': 'encoder.down_blocks.1.resnets.0.conv_shortcut.weight',
    'decoder.up.3.block.0.conv1.weight': 'decoder.up_blocks.0.resnets.0.conv1.weight',
    'decoder.up.1.upsample.conv.weight': 'decoder.up_blocks.2.upsamplers.0.conv.weight',
    'decoder.mid.block_2.conv2.bias': 'decoder.mid_block.resnets.1.conv2.bias',
    'decoder.mid.attn_1.proj_out.weight': 'decoder.mid_block.attentions.0.to_out.0.weight',
    'encoder.mid.attn_1.norm.bias': 'encoder.mid_block.attentions.0.group_norm.bias',
    'encoder.norm_out.weight': 'encoder.conv_norm_out.weight',
    'post_quant_conv.weight': 'post_quant_conv.weight',
}


def keys(shapes) -> list[str]:
    return [convert_names.torch_name(name) for name in trees.flatten(shapes)]


@pytest.fixture(scope='module')
def single_file():
    """diffusers' functions that turn ldm checkpoints into its own names."""
    pytest.importorskip('torch'), pytest.importorskip('diffusers')
    from diffusers.loaders import single_file_utils

    return single_file_utils


@pytest.mark.parametrize('layout', UNETS)
def test_every_name_of_the_real_unets_both_ways(layout, single_file):
    import diffusers
    import torch

    unet = UNETS[layout]
    ours = keys(convert.unet_shapes(unet))
    there = ldm_names.unet_to_ldm(ours)
    assert len(ours) == 686 == len(set(there.values()))
    renamed, origin = ldm_names.unet_from_ldm({key: key for key in [*there.values(), *CAMERA]})  # MVDream's 690
    assert len(renamed) == 690 and {renamed[name]: name for name in ours} == {key: name for name, key in there.items()}
    assert origin == renamed and ldm_names.unet_layers(there.values()) == (2, 2, 2, 2)
    for key, name in KNOWN.items():
        assert renamed[name] == key
    with torch.device('meta'):
        config = dict(cross_attention_dim=unet.cross_attention_dim, use_linear_projection=unet.use_linear_projection)
        theirs = diffusers.UNet2DConditionModel(**config, attention_head_dim=unet.attention_head_dim)
    marked = {f'model.diffusion_model.{key}': torch.tensor(k) for k, key in enumerate(there.values())}
    read = single_file.convert_ldm_unet_checkpoint(marked, theirs.config)
    assert {name: int(mark) for name, mark in read.items()} == {name: k for k, name in enumerate(there)}
    assert set(theirs.state_dict()) == set(ours)


def test_every_name_of_the_real_autoencoder_both_ways(single_file):
    import diffusers
    import torch

    ours = keys(convert.vae_shapes(VAE()))
    there = ldm_names.vae_to_ldm(ours)
    assert len(ours) == 248 == len(set(there.values()))
    renamed, _ = ldm_names.vae_from_ldm({key: key for key in there.values()})
    assert {key: name for name, key in renamed.items()} == {key: name for name, key in there.items()}
    for key, name in KNOWN_VAE.items():
        assert renamed[name] == key
    levels = dict(block_out_channels=(128, 256, 512, 512), down_block_types=('DownEncoderBlock2D',) * 4, layers_per_block=2)
    with torch.device('meta'):
        theirs = diffusers.AutoencoderKL(**levels, up_block_types=('UpDecoderBlock2D',) * 4)
    marked = {f'first_stage_model.{key}': torch.full((4, 4, 1, 1), k) for k, key in enumerate(there.values())}
    read = single_file.convert_ldm_vae_checkpoint(marked, theirs.config)
    assert {name: int(mark.flatten()[0]) for name, mark in read.items()} == {name: k for k, name in enumerate(there)}
    assert set(theirs.state_dict()) == set(ours)


def test_unknown_names_are_refused():
    for function, key in ((ldm_names.unet_name, 'label_emb.0.weight'), (ldm_names.vae_name, 'bottleneck.weight')):
        with pytest.raises(KeyError, match=key):
            function(key)
    stored = Stored({'model.diffusion_model.strange.weight': np.zeros(1)}, {}, ('file',))
    with pytest.raises(BadWeights, match='strange.weight is no known name of a unet'):
        ldm_names.component(stored, 'unet')


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """(folder in diffusers layout, the same weights as one file in ldm names, with averages and what else such files hold)."""
    root = tmp_path_factory.mktemp('ldm')
    folder, pipe = small_pipeline.saved(root)
    small_pipeline.save_single_file(folder, root / 'plain.safetensors', root / 'whole.safetensors')
    return folder, root / 'whole.safetensors', root / 'plain.safetensors'


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_single_file_gives_the_parts_of_the_folder(whole):
    folder, path, plain = whole
    same(convert.load_unet(path, config=folder / 'unet')[1], convert.load_unet(folder / 'unet')[1])
    same(convert.load_vae(plain, config=folder / 'vae')[1], convert.load_vae(folder / 'vae')[1])
    pipe = convert.load_pipeline(folder, weights=path)
    same(pipe.params, convert.load_pipeline(folder).params)
    with pytest.raises(BadWeights, match='plain.safetensors has no text'):
        convert.load_pipeline(folder, weights=plain)


@pytest.mark.parametrize('key', ['encoder.layers.1.mlp.fc1.bias', 'conv_in.bias', 'decoder.conv_out.bias'])
def test_a_single_file_with_a_broken_value(whole, tmp_path, key):
    folder, path, _ = whole
    tensors = {name: np.array(value) for name, value in torch_files.read(path).items()}
    names = {'conv_in.bias': 'model.diffusion_model.input_blocks.0.0.bias'}
    names['encoder.layers.1.mlp.fc1.bias'] = 'cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.bias'
    names['decoder.conv_out.bias'] = 'first_stage_model.decoder.conv_out.bias'
    tensors[names[key]][1] = np.nan
    torch_files.write(tmp_path / 'bad.safetensors', tensors)
    with pytest.raises(BadWeights, match=f'bad.safetensors: {key} has 1 of'):
        convert.load_pipeline(folder, weights=tmp_path / 'bad.safetensors')


def test_diffusers_reads_the_single_file_we_write(whole, single_file):
    import torch

    folder, _, plain = whole
    pipe = small_pipeline.saved(folder.parent)[1]
    checkpoint = {key: torch.from_numpy(np.array(value)) for key, value in torch_files.read(plain).items()}
    for model, function in (
        (pipe.unet, single_file.convert_ldm_unet_checkpoint),
        (pipe.vae, single_file.convert_ldm_vae_checkpoint),
    ):
        theirs, state = function(dict(checkpoint), model.config), model.state_dict()
        assert set(theirs) == set(state)
        assert all(torch.equal(theirs[key], state[key]) for key in state)


def test_the_moving_average_is_asked_for(whole):
    folder, path, plain = whole
    average = convert.load_unet(path, config=folder / 'unet', average=True)[1]
    same(average, jax.tree.map(lambda leaf: 2 * leaf, convert.load_unet(folder / 'unet')[1]))
    with pytest.raises(BadWeights, match='has no unet average'):
        convert.load_unet(plain, config=folder / 'unet', average=True)
    with pytest.raises(BadWeights, match='no ldm checkpoint'):
        convert.load_unet(folder / 'unet', average=True)


def test_a_single_file_needs_a_config(whole):
    with pytest.raises(UsageError, match='is one file, whose names do not tell'):
        convert.load_unet(whole[1])


def test_open_clip_text_is_split_and_ends_before_the_last_layer(single_file):
    """Stable Diffusion 2's text encoder, narrow: 24 layers in the file, 23 read, as diffusers reads it."""
    import torch
    import transformers

    rng, width = np.random.default_rng(0), 4
    block = {
        'attn.in_proj_weight': (3 * width, width),
        'attn.in_proj_bias': (3 * width,),
        'attn.out_proj.weight': (width, width),
        'mlp.c_fc.weight': (4 * width, width),
        'mlp.c_fc.bias': (4 * width,),
        'mlp.c_proj.weight': (width, 4 * width),
    }
    block |= {name: (width,) for name in ('attn.out_proj.bias', 'mlp.c_proj.bias')}
    block |= {f'ln_{k}.{leaf}': (width,) for k in (1, 2) for leaf in ('weight', 'bias')}
    shapes = {f'transformer.resblocks.{k}.{name}': shape for k in range(24) for name, shape in block.items()}
    shapes |= {'positional_embedding': (77, width), 'token_embedding.weight': (9, width), 'text_projection': (width, width)}
    shapes |= {'ln_final.weight': (width,), 'ln_final.bias': (width,), 'attn_mask': (77, 77), 'logit_scale': ()}
    stored = {f'cond_stage_model.model.{key}': np.asarray(rng.normal(size=shape)) for key, shape in shapes.items()}
    tensors = ldm_names.component(Stored(stored, dict.fromkeys(stored, 'file'), ('file',)), 'text').tensors
    sizes = dict(vocab_size=9, hidden_size=width, intermediate_size=16, num_hidden_layers=23, num_attention_heads=2)
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes))
    own = {key.removeprefix('text_model.'): tuple(value.shape) for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in tensors.items()} == own and len(own) == 372
    read = single_file.convert_open_clip_checkpoint(model, {key: torch.from_numpy(value) for key, value in stored.items()})
    read = {key.removeprefix('text_model.'): value.numpy() for key, value in read.items()}
    for key, value in tensors.items():
        np.testing.assert_array_equal(value, read[key], err_msg=key)
    assert set(read) - set(tensors) <= {'text_projection.weight', 'embeddings.position_ids'}
