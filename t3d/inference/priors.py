"""Text-to-image models as what is given to a system: Stable Diffusion folders of the user's, and trained systems of t3d."""

import os
import pathlib

import jax.numpy as jnp

from t3d.core.errors import UsageError
from t3d.core.system import Given
from t3d.diffusion.prior import Prior
from t3d.nets import unet as unet_rules

PARTS = ('unet', 'vae', 'text_encoder')  # folders of diffusers' layout


def is_pipeline(value: str | os.PathLike) -> bool:
    """Whether a path is a Stable Diffusion folder in diffusers' layout, or one file of weights in ldm names."""
    path = pathlib.Path(value)
    return path.is_file() or any((path / part).is_dir() for part in PARTS)


def open_pipeline(
    folder: str | os.PathLike, *, file: pathlib.Path | None = None, variant: str | None = None, dtype=jnp.float32
) -> Given:
    """Stable Diffusion's parts as a prior.

    Args:
      folder: of diffusers' layout, or one .safetensors file in ldm names beside the folder's settings.
      file: weights in ldm names, in place of those of the folder.
      variant: of the files, for example 'fp16'.
      dtype: of computation.
    Raises:
      UsageError: it does not load; the message names file and key.
    """
    from t3d.checkpoint import convert

    path = pathlib.Path(folder)
    if path.is_file():
        path, file = path.parent, path
    pipe = convert.load_pipeline(path, weights=file, variant=variant, dtype=dtype)
    return of_pipeline(pipe, path.resolve().name if file is None else file.name)


def of_pipeline(pipe, name: str) -> Given:
    """A `convert.Pipeline` as a prior; its parameters may be abstract."""
    from t3d.checkpoint import convert
    from t3d.nets import vae as autoencoder

    factor = convert.vae_factor(pipe.vae)

    def encode(params, ids):
        return pipe.text.apply({'params': params['text']}, ids)

    def predict(params, x, t, features):
        return pipe.unet.apply({'params': params['unet']}, x, t, features)

    def decode(params, x):
        return autoencoder.to_images(pipe.vae, params['vae'], x)

    def latents(params, images):
        return autoencoder.to_latents(pipe.vae, params['vae'], images)

    def shape(size: int):
        if size < factor or size % factor:
            raise UsageError(f'--size {size}: wanted a multiple of {factor}, for example {pipe.native or 64 * factor}.')
        return (size // factor, size // factor, pipe.unet.in_channels)

    prior = Prior(pipe.schedule, pipe.tokenize, encode, predict, decode, shape, latents, pipe.native or 64 * factor)
    return Given(prior, pipe.params, None, name, sharding=unet_rules.SHARDING)


def digest_of_files(value: str | os.PathLike) -> str:
    """SHA-256 (16 hex digits) over the weight files of a folder, or of one file, by name and content."""
    import hashlib

    from t3d.checkpoint import torch_files

    path, hasher = pathlib.Path(value), hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.glob('*/*.safetensors')):
        hasher.update(f'{file.name} {torch_files.digest(file)}\n'.encode())
    return hasher.hexdigest()[:16]
