"""Stable Diffusion by its sizes alone, as what is given to a system: `given.prior=shapes:sd21`.

It has every function of a prior and no weights: enough for `t3d plan`, a dry run, and a benchmark with random ones. A run with
it is refused with the next step, a folder of Stable Diffusion. Texts are read as the system reads them (its section `text`).

| value | UNet | text tower | autoencoder | predicts | pixels |
|---|---|---|---|---|---|
| `shapes:sd15` | 859.5 M | CLIP ViT-L/14, 123.1 M | 83.7 M | eps | 512 |
| `shapes:sd21` | 865.9 M | OpenCLIP ViT-H/14, 340.4 M | 83.7 M | eps (the 512 px model, `base`) | 512 |

Sizes: the config.json files of runwayml/stable-diffusion-v1-5 and stabilityai/stable-diffusion-2-1-base.
"""

import difflib

import jax
import jax.numpy as jnp

from t3d.checkpoint import convert, convert_clip
from t3d.core import prng, tokens
from t3d.core.errors import UsageError
from t3d.core.system import Given
from t3d.diffusion import schedules
from t3d.nets import clip
from t3d.nets.unet import UNet
from t3d.nets.vae import VAE

NAME = 'shapes'
UNET = {
    'in_channels': 4,
    'out_channels': 4,
    'block_out_channels': [320, 640, 1280, 1280],
    'down_block_types': ['CrossAttnDownBlock2D'] * 3 + ['DownBlock2D'],
    'up_block_types': ['UpBlock2D'] + ['CrossAttnUpBlock2D'] * 3,
    'layers_per_block': 2,
    'norm_num_groups': 32,
}
AUTOENCODER = {
    'down_block_types': ['DownEncoderBlock2D'] * 4,
    'up_block_types': ['UpDecoderBlock2D'] * 4,
    'block_out_channels': [128, 256, 512, 512],
    'layers_per_block': 2,
    'norm_num_groups': 32,
}
MODELS = {  # name: (settings of the UNet, of the text tower)
    'sd15': ({**UNET, 'attention_head_dim': 8, 'cross_attention_dim': 768, 'use_linear_projection': False}, 'L/14'),
    'sd21': (
        {**UNET, 'attention_head_dim': [5, 10, 20, 20], 'cross_attention_dim': 1024, 'use_linear_projection': True},
        'H/14',
    ),
}
NATIVE = 512  # pixels per side


def is_shapes(value) -> bool:
    """Whether a value names a model by its sizes."""
    return str(value).partition(':')[0] == NAME


def open_shapes(value: str, text=None, *, random: bool = False, dtype=jnp.float32) -> Given:
    """The prior of a name, its parameters abstract, or random for benchmarks.

    Args:
      text: section `text` of the system that it is given to; None: it reads every text as empty.
      dtype: of computation.
    Raises:
      UsageError: unknown name, or texts of another length than its tower has positions.
    """
    from t3d.inference import priors

    name = str(value).partition(':')[2]
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, 1, 0.3) or list(MODELS)[-1:]
        listed = ', '.join(f'{NAME}:{each}' for each in MODELS)
        raise UsageError(f'{value!r}: the sizes known by name are {listed}. Nearest: {NAME}:{near[0]}.')
    settings, tower = MODELS[name]
    text_tower = clip.TextTower(**clip.TEXT[tower], dtype=dtype)
    tokenize = tokens.make(text) if text else tokens.WordTokenizer((), text_tower.length, open_vocabulary=True)
    if tokenize.length != text_tower.length:
        raise UsageError(
            f'{value!r} reads {text_tower.length} tokens, and the section `text` has text.length={tokenize.length}: set '
            f'text.length={text_tower.length}.'
        )
    unet, vae = UNet.from_config(settings, dtype=dtype), VAE.from_config(AUTOENCODER, dtype=dtype)
    shapes = {'text': convert_clip.text_shapes(text_tower), 'unet': convert.unet_shapes(unet), 'vae': convert.vae_shapes(vae)}
    params = jax.jit(lambda: _drawn(shapes))() if random else shapes
    pipe = convert.Pipeline(tokenize, text_tower, unet, vae, params, schedules.scaled_linear(), NATIVE)
    return priors.of_pipeline(pipe, str(value))


def _drawn(shapes):
    """Normal numbers of deviation 0.02."""
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(prng.key(0), len(leaves))
    drawn = [0.02 * jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)
