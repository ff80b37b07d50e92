"""Multi-view weights in foreign names: every key of MVDream's and SPAD's sizes, files both ways, new networks from folders."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_weights
import test_unet

from t3d.checkpoint import convert, convert_mv, ldm_names, torch_files
from t3d.checkpoint.convert_names import torch_name
from t3d.checkpoint.torch_files import BadWeights
from t3d.core import tree
from t3d.core.errors import UsageError
from t3d.nets.mv_unet import MultiViewUNet
from t3d.nets.unet import UNet
from t3d.nets.vae import VAE

CONFIG = {**test_unet.SMALL, **test_unet.STYLES['1.5'], 'attention_head_dim': 4, '_class_name': 'UNet2DConditionModel'}
FORMS = {
    'mvdream': dict(camera=16),
    'spad': dict(form='masked', camera=8, camera_zero=True, plucker=True),
}


@functools.cache
def made(name: str):
    unet = MultiViewUNet.from_config(CONFIG, **FORMS[name])
    return unet, random_weights.fan_in(convert_mv.mv_unet_shapes(unet))


@pytest.mark.parametrize('base', [test_unet.SD15, test_unet.SD21])
def test_all_690_keys_of_mvdream_have_ldm_names_and_come_back(base):
    shapes = convert_mv.mv_unet_shapes(MultiViewUNet.from_config(base, camera=16))
    keys = [torch_name(name) for name in tree.flatten(shapes)]
    names = ldm_names.unet_to_ldm(keys)
    assert len(keys) == 690 == len(set(names.values()))
    cameras = sorted(name for name in names.values() if 'camera' in name)
    assert cameras == [f'camera_embed.{k}.{leaf}' for k in (0, 2) for leaf in ('bias', 'weight')]
    assert [ldm_names.unet_name(names[key]) for key in keys] == keys
    assert len(tree.flatten(convert.vae_shapes(VAE()))) == 248


@pytest.mark.parametrize('name', FORMS)
def test_a_file_in_ldm_names_is_read_as_it_was_written(name, tmp_path):
    unet, params = made(name)
    convert_mv.save_mv_unet(tmp_path / 'mv.safetensors', params)
    assert all(key.startswith('model.diffusion_model.') for key in torch_files.map_file(tmp_path / 'mv.safetensors'))
    again, loaded = convert_mv.load_mv_unet(tmp_path / 'mv.safetensors', config=CONFIG)
    assert (again.form, again.camera, again.plucker) == (unet.form, unet.camera, unet.plucker)
    for key, leaf in tree.flatten(params).items():
        np.testing.assert_array_equal(tree.flatten(loaded)[key], leaf)


@pytest.mark.parametrize('form', [*FORMS.values(), dict(form='epipolar', block_levels=(0,))])
def test_a_new_network_grows_out_of_any_folder(form, tmp_path):
    plain = UNet.from_config({key: value for key, value in CONFIG.items() if key != '_class_name'})
    params = random_weights.fan_in(convert.unet_shapes(plain))
    convert.save_unet(tmp_path / 'unet', params, plain)
    unet, grown = convert_mv.grown_from(tmp_path / 'unet', **form)
    assert jax.tree.structure(grown) == jax.tree.structure(convert_mv.mv_unet_shapes(unet))
    for name, leaf in tree.flatten(params).items():
        new = np.asarray(tree.flatten(grown)[name])
        if new.shape != leaf.shape:
            assert name.endswith('proj_in/kernel') and not new[..., leaf.shape[-2] :, :].any()
        np.testing.assert_array_equal(new[..., : leaf.shape[-2], :] if new.ndim > 1 else new, leaf)
    with pytest.raises(BadWeights, match='epipolar blocks') if form.get('block_levels') else _nothing():
        convert_mv.save_mv_unet(tmp_path / 'mv.safetensors', grown)


def test_files_that_are_not_of_such_a_network_are_refused_by_key(tmp_path):
    unet, params = made('mvdream')
    plain = {name: part for name, part in params.items() if name != 'camera_embedding'}
    convert.save_ldm(tmp_path / 'plain.safetensors', unet=plain)
    with pytest.raises(UsageError, match='no camera_embed in the file: it is a text-to-image UNet'):
        convert_mv.load_mv_unet(tmp_path / 'plain.safetensors', config=CONFIG)
    less = jax.tree.map(jnp.asarray, params)
    del less['camera_embedding']['linear_2']
    convert_mv.save_mv_unet(tmp_path / 'less.safetensors', less)
    with pytest.raises(BadWeights, match=r'missing \(2\): camera_embedding.linear_2'):
        convert_mv.load_mv_unet(tmp_path / 'less.safetensors', config=CONFIG)


def _nothing():
    import contextlib

    return contextlib.nullcontext()
