"""A small text-to-image pipeline with random weights, saved by diffusers itself: what users' folders look like."""

import functools
import json

import pytest

UNET = {
    'sample_size': 8,
    'block_out_channels': [16, 32],
    'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'],
    'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'],
    'layers_per_block': 1,
    'attention_head_dim': [2, 4],
    'cross_attention_dim': 24,
    'norm_num_groups': 8,
}
VAE = {
    'block_out_channels': [16, 32],
    'down_block_types': ['DownEncoderBlock2D'] * 2,
    'up_block_types': ['UpDecoderBlock2D'] * 2,
    'layers_per_block': 1,
    'norm_num_groups': 8,
    'sample_size': 16,
}
TEXT = {'hidden_size': 24, 'intermediate_size': 48, 'num_hidden_layers': 2, 'num_attention_heads': 4}
SCHEDULE = {
    'beta_start': 0.00085,
    'beta_end': 0.012,
    'beta_schedule': 'scaled_linear',
    'clip_sample': False,
    'set_alpha_to_one': False,
    'steps_offset': 1,
}
LETTERS = [chr(k) for k in range(ord('a'), ord('z') + 1)]
VOCABULARY = ['!', *LETTERS, *(f'{letter}</w>' for letter in LETTERS), 're', 'red</w>', '<|startoftext|>', '<|endoftext|>']


def unet(linear=False, **changes):
    """diffusers' UNet, filled with random values."""
    diffusers, fill = pytest.importorskip('diffusers'), pytest.importorskip('peers.torch_unet').fill
    return fill(diffusers.UNet2DConditionModel(**{**UNET, 'use_linear_projection': linear, **changes}))


def vae():
    """diffusers' autoencoder, filled with random values."""
    diffusers, fill = pytest.importorskip('diffusers'), pytest.importorskip('peers.torch_unet').fill
    return fill(diffusers.AutoencoderKL(**VAE))


def text(**changes):
    """transformers' text encoder, filled with random values."""
    transformers, fill = pytest.importorskip('transformers'), pytest.importorskip('peers.torch_unet').fill
    last = len(VOCABULARY) - 1
    marks = {'vocab_size': last + 1, 'bos_token_id': last - 1, 'eos_token_id': last, 'pad_token_id': 0}
    return fill(transformers.CLIPTextModel(transformers.CLIPTextConfig(**{**TEXT, **marks, **changes})))


def write_tokenizer(folder, pad='!'):
    """A CLIP tokenizer of letters and one word."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'vocab.json').write_text(json.dumps({piece: k for k, piece in enumerate(VOCABULARY)}))
    (folder / 'merges.txt').write_text('#version: 0.2\nr e\nre d</w>\n')
    marks = {'bos_token': '<|startoftext|>', 'eos_token': '<|endoftext|>', 'unk_token': '<|endoftext|>', 'pad_token': pad}
    config = {'tokenizer_class': 'CLIPTokenizer', 'model_max_length': 77, **marks}
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    (folder / 'special_tokens_map.json').write_text(json.dumps(marks))


def save(folder, *, linear=False, prediction='epsilon', **options):
    """Writes the folder; returns diffusers' pipeline. options: of save_pretrained (variant, max_shard_size)."""
    diffusers, transformers = pytest.importorskip('diffusers'), pytest.importorskip('transformers')
    diffusers.utils.logging.set_verbosity_error()
    write_tokenizer(folder / 'given')
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text(),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / 'given', local_files_only=True),
        unet=unet(linear),
        scheduler=diffusers.DDIMScheduler(**SCHEDULE, prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder, **options)
    return pipe


@functools.cache
def saved(root, linear=False, prediction='epsilon'):
    """(folder, pipeline) of `save`, once for each root and layout."""
    folder = root / f'{"linear" if linear else "conv"}_{prediction}'
    return folder, save(folder, linear=linear, prediction=prediction)


def save_single_file(folder, plain, whole):
    """Writes a folder's UNet and autoencoder as one file in ldm names, and a second with all that such files hold."""
    import numpy as np

    from t3d.checkpoint import convert, ldm_names, torch_files

    unet, vae = convert.load_unet(folder / 'unet')[1], convert.load_vae(folder / 'vae')[1]
    convert.save_ldm(plain, unet=unet, vae=vae)
    tensors = dict(torch_files.read(plain))
    prefix = ldm_names.PREFIXES['unet'][0]
    for key in [key for key in tensors if key.startswith(prefix)]:
        tensors[ldm_names.AVERAGE + key.removeprefix(prefix).replace('.', '')] = np.asarray(2 * tensors[key], np.float32)
    for key, value in torch_files.read(folder / 'text_encoder').items():
        tensors[f'cond_stage_model.transformer.text_model.{key.removeprefix("text_model.")}'] = value
    tensors['cond_stage_model.transformer.text_model.embeddings.position_ids'] = np.arange(77)
    for key in ('first_stage_model.loss.logvar', 'model_ema.decay', 'betas', 'cc_projection.weight'):
        tensors[key] = np.zeros(1, np.float32)
    torch_files.write(whole, tensors)
