"""Stable Diffusion's KL autoencoder: images to latents of an eighth of the side with 4 channels, and back.

`VAE.from_config` reads the config.json of a released folder; parameter names follow its weights (t3d.nets.unet_blocks). The
networks work on unscaled latents; diffusion works on `scaling_factor` times these: `to_latents` and `to_images` do both.
Gradients reach the images through the encoder, which score distillation needs.
Source: arXiv 2112.10752, Sec. 3.1 and App. G; layout and epsilons of the released files.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from t3d.core import spread
from t3d.core.errors import UsageError
from t3d.core.typing import Array, Float, Key, PyTree, typechecked
from t3d.nets import configs, convolution
from t3d.nets.unet_blocks import DownBlock, Options, UpBlock, attention, conv3, group_norm, residual

EPSILON = 1e-6  # of every norm; the UNet's ResNets have 1e-5
LOGVAR = (-30.0, 20.0)  # clip of the log variance
FIXED = {
    'act_fn': ('silu', 'swish'),
    'shift_factor': (None, 0.0),
    'latents_mean': (None,),
    'latents_std': (None,),
    'use_quant_conv': (True,),
    'use_post_quant_conv': (True,),
    'mid_block_add_attention': (True,),
}
IGNORED = ('sample_size', 'force_upcast')
SHARDING = (
    (r'/(to_q|to_k|to_v)/kernel$', P('fsdp', 'tensor')),
    (r'/to_out_0/kernel$', P('tensor', 'fsdp')),
    (r'resnets_\d+/conv1/kernel$', P(None, None, 'fsdp', 'tensor')),
    (r'resnets_\d+/conv2/kernel$', P(None, None, 'tensor', 'fsdp')),
)


class MidAttention(nn.Module):
    """Single-head self attention over the pixels of a map behind a group norm, added to its input."""

    options: Options

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
        h = group_norm(self.options, self.options.epsilon, 'group_norm')(x)
        h = h.reshape(x.shape[0], -1, x.shape[-1])  # [B, H W, C]
        return x + attention(h, h, 1, self.options, bias=True).reshape(x.shape)


class MidBlock(nn.Module):
    """ResNet, attention, ResNet at the lowest resolution."""

    options: Options

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
        x = residual(self.options)(x.shape[-1], self.options, name='resnets_0')(x)
        x = MidAttention(self.options, name='attentions_0')(x)
        return residual(self.options)(x.shape[-1], self.options, name='resnets_1')(x)


class Encoder(nn.Module):
    """Images to the unscaled moments before `quant_conv`."""

    channels: tuple[int, ...]
    layers: int
    outputs: int
    options: Options

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h8 w8 o']:
        dtype, last = self.options.dtype, len(self.channels) - 1
        x = conv3(self.channels[0], dtype, 'conv_in')(x)
        for k, channels in enumerate(self.channels):
            x, _ = DownBlock(channels, self.layers, 0, k == last, self.options, name=f'down_blocks_{k}')(x)
        x = MidBlock(self.options, name='mid_block')(x)
        x = nn.silu(group_norm(self.options, self.options.epsilon, 'conv_norm_out')(x))
        return conv3(self.outputs, dtype, 'conv_out')(x)


class Decoder(nn.Module):
    """Latents after `post_quant_conv` to images; one ResNet more on each level than the encoder."""

    channels: tuple[int, ...]
    layers: int
    outputs: int
    options: Options

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h8 w8 o']:
        dtype, last = self.options.dtype, len(self.channels) - 1
        x = conv3(self.channels[-1], dtype, 'conv_in')(x)
        x = MidBlock(self.options, name='mid_block')(x)
        for k, channels in enumerate(reversed(self.channels)):
            x = UpBlock(channels, self.layers + 1, 0, k == last, self.options, name=f'up_blocks_{k}')(x)
        x = nn.silu(group_norm(self.options, self.options.epsilon, 'conv_norm_out')(x))
        return conv3(self.outputs, dtype, 'conv_out')(x)


class VAE(nn.Module):
    """The autoencoder; call `encode` or `decode` by `vae.apply(variables, x, method='encode')`.

    Attributes, named as in config.json and with the values of Stable Diffusion (a folder's file names them all but, in old
    ones, scaling_factor):
      block_out_channels: of the levels, highest resolution first; the side shrinks by 2 ** (levels - 1).
      scaling_factor: brings latents to about unit variance.
    Attributes of ours:
      dtype: of products and convolutions; parameters, norm statistics, softmax and results are float32. float16 overflows in
        released weights; bfloat16 does not.
      remat: what of ResNets is computed again in the backward pass (nets.remat).
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    down_block_types: tuple[str, ...] = ('DownEncoderBlock2D',) * 4
    up_block_types: tuple[str, ...] = ('UpDecoderBlock2D',) * 4
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    dtype: jnp.dtype = jnp.float32
    remat: bool | str = False

    @classmethod
    def from_config(cls, config: Mapping, **ours) -> 'VAE':
        """The module of a diffusers config.json; `ours` are dtype and remat.

        Raises: UsageError for a key that t3d does not know, or a value of one that it does not implement.
        """
        vae = cls(**configs.fields(cls, config, FIXED, IGNORED), **ours)
        vae.check()
        return vae

    def check(self) -> None:
        """Raises UsageError if the attributes do not fit each other."""
        levels = len(self.block_out_channels)
        configs.refuse_zero(self, 'in_channels', 'out_channels', 'latent_channels', 'layers_per_block', 'norm_num_groups')
        configs.refuse_lists(self, 'in_channels', 'latent_channels', 'layers_per_block', 'norm_num_groups', 'scaling_factor')
        for name, kind in (('down_block_types', 'DownEncoderBlock2D'), ('up_block_types', 'UpDecoderBlock2D')):
            if getattr(self, name) != (kind,) * levels:
                raise UsageError(f'{name}={getattr(self, name)}: t3d implements {levels} times {kind!r}, one for each level.')
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise UsageError(
                    f'block_out_channels has {channels}: wanted a multiple of norm_num_groups={self.norm_num_groups}.'
                )

    def setup(self):
        options = Options(self.norm_num_groups, EPSILON, padding=0, remat=self.remat, dtype=self.dtype)
        shared = {'channels': self.block_out_channels, 'layers': self.layers_per_block, 'options': options}
        self.encoder = Encoder(outputs=2 * self.latent_channels, **shared)
        self.decoder = Decoder(outputs=self.out_channels, **shared)
        self.quant_conv = convolution.layer(2 * self.latent_channels, (1, 1), dtype=self.dtype)
        self.post_quant_conv = convolution.layer(self.latent_channels, (1, 1), dtype=self.dtype)

    def encode(self, images: Float[Array, 'b h w 3']) -> tuple[Float[Array, 'b h8 w8 c'], Float[Array, 'b h8 w8 c']]:
        """Mean and clipped log variance, unscaled float32, of images in [-1, 1] whose sides divide by 2 ** (levels - 1)."""
        factor = 2 ** (len(self.block_out_channels) - 1)
        if images.ndim != 4 or images.shape[-1] != self.in_channels or images.shape[1] % factor or images.shape[2] % factor:
            raise UsageError(
                f'images of shape {images.shape}: wanted [B, H, W, {self.in_channels}], H and W multiples of {factor}.'
            )
        mean, logvar = jnp.split(self.quant_conv(self.encoder(spread.rows(images))).astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR)

    def decode(self, latents: Float[Array, 'b h w c']) -> Float[Array, 'b h8 w8 3']:
        """Images, about [-1, 1] and not clipped, float32, of unscaled latents."""
        if latents.ndim != 4 or latents.shape[-1] != self.latent_channels:
            raise UsageError(f'latents of shape {latents.shape}: wanted [B, H, W, {self.latent_channels}].')
        return self.decoder(self.post_quant_conv(spread.rows(latents))).astype(jnp.float32)

    @typechecked
    def __call__(self, images: Float[Array, 'b h w c']) -> Float[Array, 'b h w o']:
        """Reconstruction of images from their mean: for `init`, which so makes all parameters."""
        return self.decode(self.encode(images)[0])


def to_latents(vae: VAE, params: PyTree, images: jax.Array, key: Key | None = None) -> jax.Array:
    """Latents at the scale of diffusion, from images in [-1, 1]: the mean, or a sample of the posterior if there is a key."""
    mean, logvar = vae.apply({'params': params}, images, method='encode')
    if key is not None:
        mean = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, jnp.float32)
    return vae.scaling_factor * mean


def to_images(vae: VAE, params: PyTree, latents: jax.Array) -> jax.Array:
    """Images, about [-1, 1] and not clipped, from latents at the scale of diffusion."""
    return vae.apply({'params': params}, latents / vae.scaling_factor, method='decode')
