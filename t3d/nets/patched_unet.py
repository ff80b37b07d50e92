"""The SD-shaped UNet on patches: p x p neighbours of a map are one position of the network, p p C channels wide.

With p the sides of all maps inside shrink, and with them the cost, at the price of a stem that is narrower than its input.
"""

from collections.abc import Mapping

import jax.numpy as jnp

from t3d.core.typing import Array, Float
from t3d.nets.unet import UNet


def to_patches(x: Float[Array, 'b h w c'], patch: int) -> Float[Array, 'b h2 w2 pc']:
    """[B, H, W, C] -> [B, H / p, W / p, p p C], rows of a patch first, channels last."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // patch, width // patch, -1)


def from_patches(x: Float[Array, 'b h w pc'], patch: int) -> Float[Array, 'b h2 w2 c']:
    """The inverse of `to_patches`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, patch, patch, channels // patch**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * patch, width * patch, -1)


def from_section(section: Mapping, inputs: int, outputs: int, *, kind: type[UNet] = UNet, **ours) -> UNet:
    """The UNet of a config's `unet` section: keys of diffusers' config.json, and `attention_levels` for the kinds of blocks.

    Args: inputs and outputs, channels of the patches; kind, the class of the network; `ours` as in UNet.from_config. Raises:
      UsageError as there.
    """
    down = ['CrossAttnDownBlock2D' if attends else 'DownBlock2D' for attends in section['attention_levels']]
    up = ['CrossAttnUpBlock2D' if attends else 'UpBlock2D' for attends in reversed(section['attention_levels'])]
    plain = {name: value for name, value in section.items() if name != 'attention_levels'}
    kinds = {'down_block_types': down, 'up_block_types': up}
    return kind.from_config({**plain, **kinds, 'in_channels': inputs, 'out_channels': outputs}, **ours)


def zero_output(params):
    """The parameters of a UNet with a last convolution of zeros: a new network says 0, whatever it is given."""
    return {**params, 'conv_out': {name: jnp.zeros_like(leaf) for name, leaf in params['conv_out'].items()}}
