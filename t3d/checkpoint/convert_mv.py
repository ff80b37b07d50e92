"""Weights of multi-view UNets: MVDream's and SPAD's single files, both ways, and new networks from any Stable Diffusion folder.

    unet, params = convert_mv.load_mv_unet('mvdream.safetensors', config='stable-diffusion-2-1-base/unet')
    unet, params = convert_mv.grown_from('stable-diffusion-v1-5/unet', form='masked', camera=8, camera_zero=True, plucker=True)

MVDream's file has the 686 tensors of its UNet and four of `camera_embed`; SPAD's six more input channels in each `proj_in`.
Both are in ldm names; text encoder and autoencoder are those of Stable Diffusion 2.1-base and 1.5 and load with `convert`.
"""

import os
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from t3d.checkpoint import convert, ldm_names, torch_files
from t3d.checkpoint.convert_names import to_params, to_tensors
from t3d.checkpoint.torch_files import BadWeights
from t3d.core import prng
from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.core.typing import PyTree
from t3d.geom.epipolar import RayPoints
from t3d.nets import mv_unet
from t3d.nets.mv_unet import MultiViewUNet, ViewInputs


def load_mv_unet(
    folder,
    *,
    config: Mapping | str | os.PathLike | None = None,
    variant: str | None = None,
    average: bool = False,
    dtype=jnp.float32,
    param_dtype=jnp.float32,
    sharding=None,
    **form,
) -> tuple[MultiViewUNet, PyTree]:
    """(module, params) of trained multi-view weights: every tensor of the file is used, none is filled in.

    Args:
      folder, config, variant, average, dtype, param_dtype, sharding: as convert.load_unet; config is that of the plain UNet.
      form: attributes of MultiViewUNet; those left out are read from the names: a camera vector of as many numbers as
        `camera_embed` reads, Plücker coordinates and the form 'masked' where `proj_in` has six more inputs.
    Raises:
      UsageError: the file is not that of such a network; the message names the keys.
    """
    settings = convert.settings_of(folder, config, 'unet')
    stored = convert.stored_of(folder, 'unet', variant, average)
    unet = MultiViewUNet.from_config(settings, dtype=dtype, **{**described(stored.tensors), **form})
    return unet, to_params(stored, mv_unet_shapes(unet), dtype=param_dtype, sharding=sharding)


def grown_from(
    folder, *, config=None, variant: str | None = None, key=None, dtype=jnp.float32, param_dtype=jnp.float32, **form
) -> tuple[MultiViewUNet, PyTree]:
    """(module, params) of a new multi-view UNet with all weights of a text-to-image UNet; new layers as `init` makes them.

    Args:
      folder, config, variant, dtype, param_dtype: as convert.load_unet.
      key: of the new layers; None for the seed 0.
      form: attributes of MultiViewUNet.
    """
    plain, params = convert.load_unet(folder, config=config, variant=variant, dtype=dtype, param_dtype=param_dtype)
    ours = ('parent', 'name', 'dtype')
    settings = {name: getattr(plain, name) for name in plain.__dataclass_fields__ if name not in ours}
    unet = MultiViewUNet(**settings, dtype=dtype, **form)
    unet.check()
    made = jax.jit(lambda key: unet.init(key, *arguments(unet))['params'])(prng.key(0) if key is None else key)
    return unet, mv_unet.graft(trees.cast(made, param_dtype), params)


def save_mv_unet(path, params: PyTree) -> None:
    """Writes one .safetensors file in ldm names, as MVDream's and SPAD's releases are: the inverse of `load_mv_unet`.

    Raises:
      BadWeights: these names have no place for a tensor: epipolar blocks are saved as a weights folder of t3d.
    """
    if any('epipolar' in name for name in trees.flatten(params)):
        raise BadWeights('single-file checkpoints have no names for epipolar blocks: `t3d weights` writes a folder that has.')
    tensors = to_tensors(params)
    names = ldm_names.unet_to_ldm(tensors)
    prefix = ldm_names.PREFIXES['unet'][0]
    torch_files.write(pathlib.Path(path), {prefix + names[name]: value for name, value in tensors.items()})


def described(tensors: Mapping) -> dict:
    """Attributes of a MultiViewUNet that names and shapes of its tensors (diffusers' names) tell."""
    camera = tensors.get('camera_embedding.linear_1.weight')
    if camera is None:
        raise UsageError('no camera_embed in the file: it is a text-to-image UNet; `grown_from` makes a multi-view UNet of it.')
    wider = [
        key
        for key, value in tensors.items()
        if key.endswith('proj_in.weight') and value.shape[1] == value.shape[0] + mv_unet.PLUCKER
    ]
    plucker = dict(form='masked', plucker=True, camera_zero=True) if wider else {}
    return {'camera': int(camera.shape[1]), **plucker}


def arguments(unet: MultiViewUNet) -> tuple:
    """Zeros of the shapes that `unet` is called with: one object of two views."""
    side = 2 ** (len(unet.block_out_channels) - 1)
    views = ViewInputs(camera=jnp.zeros((1, 2, unet.camera))) if unet.camera else mv_unet.NO_VIEWS
    if unet.form == 'epipolar':
        sizes = [(side >> level, side >> level) for level in unet.block_levels]
        views = views._replace(rays={mv_unet.level_name(*size): _rays(*size) for size in sizes})
    latents = jnp.zeros((1, 2, side, side, unet.in_channels))
    return latents, jnp.zeros((1,)), jnp.zeros((1, 2, unet.cross_attention_dim)), views


def mv_unet_shapes(unet: MultiViewUNet) -> PyTree:
    """The parameter tree as ShapeDtypeStructs; costs no memory."""
    return jax.eval_shape(lambda: unet.init(prng.key(0), *arguments(unet))['params'])


def _rays(height: int, width: int) -> RayPoints:
    """Of one object of two views and one point a ray."""
    shape = (1, 2, height, width)
    seen = (1, 2, 2, height, width, 1)
    arrays = (*seen, 2), seen, (*shape, 1, 3), (*shape, 1), (*shape, 6)
    uv, valid, points, depths, plucker = (jnp.zeros(one) for one in arrays)
    return RayPoints(uv, valid == 0.0, points, depths, plucker)
