"""Real weights from local folders in diffusers and transformers layout, as Flax modules with their parameters, and back.

    unet, params = convert.load_unet('stable-diffusion/unet')
    noise = unet.apply({'params': params}, latents, t, text)

Parameter trees carry the torch names (`convert_names`), so one rule, read from the tree that the module wants
(`jax.eval_shape`), loads UNet and autoencoder; nothing is filled in or dropped silently. CLIP's towers, whose layers are
stacked here, are `convert_clip`'s and can be had from here too.
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from t3d.checkpoint import convert_clip, ldm_names, torch_files
from t3d.checkpoint.convert_clip import load_clip_text, load_clip_vision
from t3d.checkpoint.convert_names import fit, refuse_non_finite, to_params, to_tensors
from t3d.checkpoint.torch_files import BadWeights, Stored
from t3d.core import prng, tokens
from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.core.typing import PyTree
from t3d.diffusion import schedules
from t3d.nets.unet import UNet
from t3d.nets.vae import VAE

__all__ = [
    'Pipeline',
    'doubt',
    'fit',
    'load_clip_text',
    'load_clip_vision',
    'load_pipeline',
    'load_schedule',
    'load_unet',
    'load_vae',
    'pipeline_shapes',
    'save_ldm',
    'save_unet',
    'save_vae',
    'to_params',
    'to_tensors',
]
VELOCITY = {'cross_attention_dim': 1024, 'sample_size': 96}  # of released UNets that predict velocity, and of no others
CLASSES = {'unet': 'UNet2DConditionModel', 'vae': 'AutoencoderKL'}  # diffusers' names, in config.json


class Pipeline(NamedTuple):
    """All that text to image wants. `params`: {'text', 'unet', 'vae'}; `native`: pixels the UNet was trained at, or None."""

    tokenize: object  # list of prompts -> int32 [B, N]
    text: nn.Module
    unet: UNet
    vae: VAE
    params: dict[str, PyTree]
    schedule: schedules.Schedule
    native: int | None


# -------------------------------------------------------------------------------------------------------- entry points


def load_unet(
    folder,
    *,
    config: Mapping | str | os.PathLike | None = None,
    variant: str | None = None,
    average: bool = False,
    dtype=jnp.float32,
    param_dtype=jnp.float32,
    sharding=None,
    **partial,
) -> tuple[UNet, PyTree]:
    """(module, params) of a UNet folder, or of a single-file checkpoint.

    Args:
      folder: a folder with config.json and safetensors, or one .safetensors file in diffusers or ldm names.
      config: the settings, or the folder that has them; wanted for a file, whose names do not tell the number of heads.
      variant: 'fp16' for files named `diffusion_pytorch_model.fp16.safetensors`.
      average: the moving average instead of the last weights, of a single file that has both.
      dtype, param_dtype: of computation and of parameters.
      sharding: where the parameters go: a Sharding, or a tree of them like the parameters.
      partial: `allowed` and `initial` of `to_params`, for nets with more or fewer parts than the file.
    Raises:
      UsageError: the folder, its config or its weights are not those of a UNet; the message names file and key.
    """
    config = settings_of(folder, config, 'unet')
    stored = stored_of(folder, 'unet', variant, average)
    unet = UNet.from_config(config, dtype=dtype)
    return unet, to_params(stored, unet_shapes(unet), dtype=param_dtype, sharding=sharding, **partial)


def load_vae(
    folder, *, config=None, variant: str | None = None, dtype=jnp.float32, param_dtype=jnp.float32, sharding=None, **partial
) -> tuple[VAE, PyTree]:
    """(module, params) of an AutoencoderKL folder, or of a single-file checkpoint; arguments as load_unet."""
    config = settings_of(folder, config, 'vae')
    stored = stored_of(folder, 'vae', variant, False)
    vae = VAE.from_config(config, dtype=dtype)
    return vae, to_params(stored, vae_shapes(vae), dtype=param_dtype, sharding=sharding, **partial)


def load_schedule(folder) -> schedules.Schedule:
    """The noise schedule and prediction type of a pipeline folder or its `scheduler/`, as its file says or means.

    A file without `prediction_type` means epsilon, as its class in diffusers does: that of Stable Diffusion 1.5 has none. Where
    the UNet makes that doubtful, `doubt` says so.
    """
    folder = pathlib.Path(folder)
    name = 'scheduler_config.json'
    within = folder if (folder / name).is_file() else folder / 'scheduler'
    if not (within / name).is_file():
        raise BadWeights(
            f'no scheduler/{name} in {folder}: it says at which noise levels the UNet was trained and whether it predicts '
            'noise or velocity, which the weights do not show and a wrong guess turns into noise. Copy it from where the '
            'weights came from.'
        )
    try:
        return schedules.from_config(torch_files.read_config(within, name))
    except BadWeights:
        raise
    except UsageError as error:
        raise BadWeights(f'{within / name}: {error}') from error


def doubt(folder) -> str:
    """The sentence on a folder whose scheduler says or means noise and whose UNet has the sizes of one of velocity; else ''.

    Of released models with text of 1024 features, those of latents of 96 positions (Stable Diffusion 2.0 and 2.1 at 768 px)
    predict velocity and those of 64 noise.
    """
    scheduler, unet = pathlib.Path(folder) / 'scheduler/scheduler_config.json', pathlib.Path(folder) / 'unet/config.json'
    if not (scheduler.is_file() and unet.is_file()):
        return ''
    said, sizes = torch_files.read_config(scheduler.parent, scheduler.name), torch_files.read_config(unet.parent)
    if said.get('prediction_type', 'epsilon') != 'epsilon' or any(sizes.get(key) != size for key, size in VELOCITY.items()):
        return ''
    how = 'says epsilon' if 'prediction_type' in said else 'has no prediction_type, which means epsilon'
    return (
        f'{scheduler} {how}, and {unet} has the sizes of Stable Diffusion 2 at 768 px, which predicts velocity '
        f'({", ".join(f"{key} {size}" for key, size in VELOCITY.items())}): if pictures are noise, set "prediction_type": '
        '"v_prediction" in the first.'
    )


def load_pipeline(
    folder, *, weights=None, variant: str | None = None, average: bool = False, dtype=jnp.float32, param_dtype=jnp.float32
) -> Pipeline:
    """A text-to-image folder as diffusers saves it: unet, vae, text_encoder, tokenizer and scheduler.

    Args:
      weights: a single .safetensors file to take UNet, autoencoder and text encoder from; `folder` then gives their configs,
        the tokenizer and the schedule, and may come without weights.
      variant, average, dtype, param_dtype: as load_unet.
    """
    folder = pathlib.Path(folder)
    if weights is not None and not ldm_names.is_ldm(torch_files.map_file(weights)):
        raise BadWeights(
            f'{weights} is no whole single-file checkpoint: wanted names that start with '
            f'{", ".join(heads[0] for heads in ldm_names.PREFIXES.values())}. If it is one part of a diffusers folder, give '
            'that folder; `t3d weights check` says what a file holds.'
        )
    _refuse_incomplete(folder, weights)
    schedule = load_schedule(folder)
    if doubtful := doubt(folder):
        print(f'note: {doubtful}', file=sys.stderr)
    options = dict(variant=variant, dtype=dtype, param_dtype=param_dtype)
    if weights is None:
        text, text_params = load_clip_text(folder / 'text_encoder', variant=variant, dtype=dtype)
    else:
        text, text_params = text_from_file(weights, folder / 'text_encoder', dtype)
    source = {part: weights or folder / part for part in ('unet', 'vae')}
    unet, unet_params = load_unet(source['unet'], config=folder / 'unet', average=average, **options)
    vae, vae_params = load_vae(source['vae'], config=folder / 'vae', **options)
    refuse_mismatch(folder, text, unet, vae)
    size = torch_files.read_config(folder / 'unet').get('sample_size')
    native = size * vae_factor(vae) if isinstance(size, int) else None
    tokenize = tokens.load_clip(str(folder / 'tokenizer'), text.length, text.vocabulary_size)
    text_params = jax.device_put(trees.cast(text_params, param_dtype))
    params = {'text': text_params, 'unet': unet_params, 'vae': vae_params}
    return Pipeline(tokenize, text, unet, vae, params, schedule, native)


def pipeline_shapes(folder, *, dtype=jnp.float32) -> Pipeline:
    """`load_pipeline` by the settings of a folder alone: its parameters are ShapeDtypeStructs; no weights are read."""
    folder = pathlib.Path(folder)
    folder = folder.parent if folder.is_file() else folder
    _refuse_incomplete(folder)
    unet = UNet.from_config(settings_of(folder / 'unet', None, 'unet'), dtype=dtype)
    vae = VAE.from_config(settings_of(folder / 'vae', None, 'vae'), dtype=dtype)
    text = convert_clip.text_module(torch_files.read_config(folder / 'text_encoder'), dtype, folder / 'text_encoder')
    refuse_mismatch(folder, text, unet, vae)
    size = torch_files.read_config(folder / 'unet').get('sample_size')
    native = size * vae_factor(vae) if isinstance(size, int) else None
    tokenize = tokens.load_clip(str(folder / 'tokenizer'), text.length, text.vocabulary_size)
    params = {'text': convert_clip.text_shapes(text), 'unet': unet_shapes(unet), 'vae': vae_shapes(vae)}
    return Pipeline(tokenize, text, unet, vae, params, load_schedule(folder), native)


def save_unet(folder, params: PyTree, config: Mapping | UNet) -> None:
    """Writes a folder that diffusers' UNet2DConditionModel.from_pretrained reads.

    Args:
      config: the settings of config.json (as read from a folder, say), or the module.
    """
    config = _settings(config, 'unet')
    _save(folder, params, unet_shapes(UNet.from_config(config)), config)


def save_vae(folder, params: PyTree, config: Mapping | VAE) -> None:
    """Writes a folder that diffusers' AutoencoderKL.from_pretrained reads; arguments as save_unet."""
    config = _settings(config, 'vae')
    _save(folder, params, vae_shapes(VAE.from_config(config)), config)


def save_ldm(path, *, unet: PyTree = None, vae: PyTree = None) -> None:
    """Writes UNet and autoencoder parameters as one .safetensors file in ldm names, which most image tools read.

    Raises: BadWeights for a tensor that these names have no place for; nothing is written then.
    """
    tensors = {}
    if unet is not None:
        tensors |= _in_ldm_names(to_tensors(unet), 'unet', ldm_names.unet_to_ldm)
    if vae is not None:
        tensors |= _in_ldm_names(to_tensors(vae, conv=(r'attentions\.0\.to_',)), 'vae', ldm_names.vae_to_ldm)
    torch_files.write(path, tensors)


def _in_ldm_names(tensors: dict, part: str, rename) -> dict:
    try:
        names = rename(tensors)
    except KeyError as error:
        raise BadWeights(
            f'single-file checkpoints have no name for {error.args[0]} of a {part}: save_{part} writes it.'
        ) from error
    if len(set(names.values())) != len(tensors):
        raise BadWeights(f'two tensors of the {part} would get one name in a single-file checkpoint: use save_{part}.')
    return {ldm_names.PREFIXES[part][0] + names[key]: value for key, value in tensors.items()}


def unet_shapes(unet: UNet) -> PyTree:
    """The parameter tree as ShapeDtypeStructs; costs no memory."""
    side = 2 ** (len(unet.block_out_channels) - 1)
    latents = jax.ShapeDtypeStruct((1, side, side, unet.in_channels), jnp.float32)
    text = jax.ShapeDtypeStruct((1, 2, unet.cross_attention_dim), jnp.float32)
    return jax.eval_shape(unet.init, prng.key(0), latents, jax.ShapeDtypeStruct((1,), jnp.float32), text)['params']


def vae_shapes(vae: VAE) -> PyTree:
    """The parameter tree of encoder and decoder as ShapeDtypeStructs; costs no memory."""
    images = jax.ShapeDtypeStruct((1, vae_factor(vae), vae_factor(vae), vae.in_channels), jnp.float32)
    return jax.eval_shape(vae.init, prng.key(0), images)['params']


def vae_factor(vae: VAE) -> int:
    """Pixels to a latent, along one side."""
    return 2 ** (len(vae.block_out_channels) - 1)


# ------------------------------------------------------------------------------------------------------------ folders


def settings_of(folder, config, part: str) -> dict:
    """The settings of a part, given, from a folder, or from beside the weights."""
    if config is None and pathlib.Path(folder).is_file():
        raise BadWeights(
            f'{folder} is one file, whose names do not tell all settings (the number of attention heads): give config=, the '
            f'{part} folder of a model of the same family.'
        )
    config = config if config is not None else folder
    where = 'the given config' if isinstance(config, Mapping) else config
    config = dict(config) if isinstance(config, Mapping) else torch_files.read_config(config)
    kind = config.get('_class_name', CLASSES[part])
    if kind != CLASSES[part] or 'model_type' in config:
        raise BadWeights(
            f'{where} is of class {config.get("model_type", kind)}: wanted the folder {part}/, of class {CLASSES[part]}.'
        )
    return config


def stored_of(folder, part: str, variant, average: bool) -> Stored:
    """The tensors of a part under diffusers' names, of a folder or of a single file."""
    stored = torch_files.open_stored(folder, variant=variant)
    if ldm_names.is_ldm(stored.tensors) or ldm_names.part_alone(stored.tensors):
        return ldm_names.component(stored, part, average=average)
    if average:
        raise BadWeights(f'{folder} is no ldm checkpoint: only those hold a moving average beside the weights.')
    return stored


def text_from_file(path, folder: pathlib.Path, dtype=jnp.float32):
    """(module, params) of the text encoder in a single-file checkpoint, with the settings of `folder`."""
    stored = ldm_names.component(torch_files.open_stored(path), 'text')
    for key, value in stored.tensors.items():
        refuse_non_finite(value, key, stored.sources[key])
    module = convert_clip.text_module(torch_files.read_config(folder), dtype, folder)
    shapes, names = convert_clip.text_shapes(module), convert_clip.text_names(module.layers)
    return module, convert_clip.to_ours(stored.tensors, names, shapes, path)


def _settings(config, part: str) -> dict:
    if isinstance(config, nn.Module):
        ours = ('parent', 'name', 'dtype', 'remat')
        config = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name not in ours}
    return {'_class_name': CLASSES[part], **settings_of('', config, part)}


def _save(folder, params: PyTree, target: PyTree, config: dict) -> None:
    problems = trees.mismatch(trees.flatten(params), trees.flatten(target))
    if problems:
        raise BadWeights(f'the parameters for {folder} are not those of the config:\n' + '\n'.join(problems))
    torch_files.write(pathlib.Path(folder) / 'diffusion_pytorch_model.safetensors', to_tensors(params))
    (pathlib.Path(folder) / 'config.json').write_text(json.dumps(config, indent=2) + '\n')


def _refuse_incomplete(folder: pathlib.Path, weights=None) -> None:
    parts = ('unet', 'vae', 'text_encoder', 'tokenizer')
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        hint = 'It is one part of such a folder: give the folder above it.' if (folder / 'config.json').is_file() else ''
        if weights is not None:
            hint = (
                f'{weights} holds numbers only: give --config DIR, a folder of the same family with these parts (its own '
                'weights may be left out).'
            )
        why = f'is no text-to-image folder: {", ".join(missing)} not in it' if folder.exists() else 'does not exist'
        raise BadWeights(
            f'{folder} {why}. Wanted unet/, vae/, text_encoder/, tokenizer/ and scheduler/, as diffusers saves them. {hint}'
        )


def refuse_mismatch(folder, text, unet: UNet, vae: VAE) -> None:
    if text.width != unet.cross_attention_dim:
        raise BadWeights(
            f'{folder}: text_encoder/ gives {text.width} features, unet/ reads {unet.cross_attention_dim}: parts of two models.'
        )
    if not vae.latent_channels == unet.in_channels == unet.out_channels:
        raise BadWeights(
            f'{folder}: unet/ takes {unet.in_channels} channels and gives {unet.out_channels}, vae/ has {vae.latent_channels}: '
            'text to image wants the same number (an inpainting or image-conditioned UNet takes more).'
        )
