"""Mapping network, skip synthesis and super-resolution of EG3D (arXiv 2112.07945), of StyleGAN2's parts (arXiv 1912.04958).

Parameter paths follow EG3D's names, dots as slashes (`b8/conv0/affine/weight`); convolutions are HWIO, matrices [in, out]. The
learning rate is equalised: weights are stored at unit variance over `lr_multiplier` and scaled when used. Float32 whatever the
`dtype`: mapping, styles, demodulation, sums of the image path, parameters.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t3d.core.errors import UsageError
from t3d.core.typing import Array, Float, Key, typechecked
from t3d.nets import fir

LRELU_GAIN = float(np.sqrt(2.0))
SR_PRESETS = {  # output size: (input_size, channels, ups)
    512: (128, (256, 128), (True, True)),
    256: (128, (128, 64), (False, True)),
    128: (64, (128, 64), (False, True)),
}
NOISE = ('const', 'none', 'random')


def channels_at(resolution: int, base: int, most: int) -> int:
    """Width of a block: min(base // resolution, most)."""
    return min(base // resolution, most)


def num_ws(resolution: int) -> int:
    """Styles that a synthesis of this resolution reads: one for each convolution and one for the last toRGB; 14 at 256."""
    return 2 * int(np.log2(resolution)) - 2


def normalize(x: jax.Array) -> jax.Array:
    """Unit mean square along the last axis, epsilon 1e-8 inside the root."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-8)


def leaky(x: jax.Array, gain: float = LRELU_GAIN, clamp: float | None = None) -> jax.Array:
    """Leaky ReLU of slope 0.2, times `gain`, then clamped to +-clamp."""
    x = jnp.where(x >= 0, x, 0.2 * x) * gain
    return x if clamp is None else jnp.clip(x, -clamp, clamp)


class Linear(nn.Module):
    """x W / sqrt(in) m + b m, m the learning-rate multiplier; float32.

    Attributes:
      bias_init: the bias as it acts at the start.
      activate: leaky ReLU behind it.
    """

    features: int
    lr_multiplier: float = 1.0
    bias_init: float = 0.0
    activate: bool = False

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b i']) -> Float[Array, 'b o']:
        scale = self.lr_multiplier
        weight = self.param('weight', nn.initializers.normal(1.0 / scale), (x.shape[-1], self.features), jnp.float32)
        bias = self.param('bias', nn.initializers.constant(self.bias_init / scale), (self.features,), jnp.float32)
        x = x.astype(jnp.float32) @ (weight * (scale / math.sqrt(x.shape[-1]))) + bias * scale
        return leaky(x) if self.activate else x


class Mapping(nn.Module):
    """(z, c) to w: both normalised, side by side, through `layers` leaky linear layers.

    Attributes:
      z_dim: 0 for a network of the label alone (the discriminator's); c_dim: 0 for one without label.
    """

    z_dim: int
    c_dim: int
    w_dim: int
    layers: int = 2
    lr_multiplier: float = 0.01

    @nn.compact
    @typechecked
    def __call__(self, z: Float[Array, 'b z'] | None, c: Float[Array, 'b c'] | None) -> Float[Array, 'b w']:
        """z [B, z_dim] and c [B, c_dim], each None exactly where its width is 0; zeros for c switch the label off."""
        parts = []
        for name, value, width in (('z', z, self.z_dim), ('c', c, self.c_dim)):
            if (0 if value is None else value.shape[-1]) != width:
                kind = 'None' if value is None else f'shape {value.shape}'
                raise UsageError(f'the mapping network wants {name} of {width} numbers (None for 0), given {kind}.')
        if self.z_dim:
            parts.append(normalize(z.astype(jnp.float32)))
        if self.c_dim:
            parts.append(normalize(Linear(self.w_dim, name='embed')(c)))
        x = jnp.concatenate(parts, -1)
        for i in range(self.layers):
            x = Linear(self.w_dim, self.lr_multiplier, activate=True, name=f'fc{i}')(x)
        return x


def truncate(
    w: Float[Array, 'b w'], w_avg: jax.Array, num_ws: int, psi=1.0, cutoff: int | None = None
) -> Float[Array, 'b n w']:
    """The styles of all layers: w num_ws times, of which the first `cutoff` (all for None) are w_avg + psi (w - w_avg)."""
    cutoff = num_ws if cutoff is None else cutoff
    pulled = w_avg + psi * (w - w_avg)
    return jnp.where((jnp.arange(num_ws) < cutoff)[None, :, None], pulled[:, None], w[:, None])


def modulated_conv(
    x: Float[Array, 'b h w i'],
    weight: Float[Array, 'k k i o'],
    styles: Float[Array, 'b i'] | None,
    *,
    up: bool = False,
    demodulate: bool = True,
) -> Float[Array, 'b h2 w2 o']:
    """Convolution with per-sample weights W s, divided by their norm over (in, k, k) when `demodulate` (1912.04958, Sec. 2.2).

    Written as x s -> one convolution for all samples -> d, which is the same function; in x's dtype, s and d in float32.

    Args:
      styles: s; None for ones.
      up: twice the size, by a transposed convolution and the binomial filter.
    """
    if styles is None:
        styles = jnp.ones((1, x.shape[-1]), jnp.float32)
    out = x * styles[:, None, None, :].astype(x.dtype)
    kernel = weight.astype(x.dtype)
    if up:
        out = fir.smooth(fir.conv_transpose(out, kernel), 1, 4.0)
    else:
        out = fir.conv(out, kernel)
    if demodulate:
        energy = jnp.sum(jnp.square(weight), (0, 1))  # [I, O]
        power = jnp.matmul(jnp.square(styles), energy, precision='highest')
        out = out * jax.lax.rsqrt(power + 1e-8)[:, None, None, :].astype(x.dtype)
    return out


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU.

    Attributes:
      styled: False leaves the affine layer out and uses styles of 1.
      noise_size: side of the constant noise, kept in the collection 'buffers'; None for no noise at all.
    """

    channels: int
    up: bool = False
    styled: bool = True
    noise_size: int | None = None
    clamp: float | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(
        self, x: Float[Array, 'b h w c'], w: Float[Array, 'b d'] | None, noise: str = 'none', key: Key | None = None
    ) -> Float[Array, 'b h2 w2 o']:
        incoming = x.shape[-1]
        weight = self.param('weight', nn.initializers.normal(1.0), (3, 3, incoming, self.channels), jnp.float32)
        strength = self.param('noise_strength', nn.initializers.zeros, (), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (self.channels,), jnp.float32)
        styles = Linear(incoming, bias_init=1.0, name='affine')(w) if self.styled else None
        out = modulated_conv(x.astype(self.dtype), weight, styles, up=self.up)
        shift = bias
        if self.noise_size is not None and (noise == 'const' or self.is_initializing()):
            shape = (self.noise_size, self.noise_size)
            draw = lambda: jax.random.normal(self.make_rng('params'), shape, jnp.float32)
            const = self.variable('buffers', 'noise_const', draw)
            shift = shift + (const.value * strength)[..., None]
        elif self.noise_size is not None and noise == 'random':
            shift = shift + strength * jax.random.normal(key, (*out.shape[:3], 1), jnp.float32)
        return leaky(out + shift.astype(out.dtype), clamp=self.clamp)


class ToImage(nn.Module):
    """Modulated 1x1 convolution without demodulation, weights scaled by 1 / sqrt(in), bias; returns float32."""

    channels: int
    styled: bool = True
    clamp: float | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c'], w: Float[Array, 'b d'] | None) -> Float[Array, 'b h w o']:
        incoming = x.shape[-1]
        weight = self.param('weight', nn.initializers.normal(1.0), (1, 1, incoming, self.channels), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (self.channels,), jnp.float32)
        styles = Linear(incoming, bias_init=1.0, name='affine')(w) if self.styled else jnp.ones((1, incoming), jnp.float32)
        out = modulated_conv(x.astype(self.dtype), weight, styles / math.sqrt(incoming), demodulate=False)
        out = out.astype(jnp.float32) + bias
        return out if self.clamp is None else jnp.clip(out, -self.clamp, self.clamp)


class SynthesisBlock(nn.Module):
    """One resolution: (upsampled) convolution, convolution, and an image added to the upsampled one so far."""

    channels: int
    channels_out: int
    resolution: int
    clamp: float | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(
        self,
        x: Float[Array, 'b h h c'] | None,
        image: Float[Array, 'b h h o'] | None,
        ws: Float[Array, 'b n d'],
        noise: str,
        key: Key | None,
    ) -> tuple[Float[Array, 'b r r i'], Float[Array, 'b r r o']]:
        """x, image: None in the first block, which starts from a constant. ws [B, 2 or 3, w]: convolutions, then image."""
        options = {'noise_size': self.resolution, 'clamp': self.clamp, 'dtype': self.dtype}
        keys = (None, None) if key is None else jax.random.split(key)
        if x is None:
            const = self.param(
                'const', nn.initializers.normal(1.0), (self.resolution, self.resolution, self.channels), jnp.float32
            )
            x = jnp.broadcast_to(const, (ws.shape[0], *const.shape))
        else:
            x = StyledConv(self.channels, up=True, name='conv0', **options)(x, ws[:, 0], noise, keys[0])
        x = StyledConv(self.channels, name='conv1', **options)(x, ws[:, -2], noise, keys[1])
        out = ToImage(self.channels_out, clamp=self.clamp, dtype=self.dtype, name='torgb')(x, ws[:, -1])
        return x, out if image is None else fir.upsample2(image) + out


class Synthesis(nn.Module):
    """Styles to an image of `channels_out` channels, unbounded: blocks of 4, 8, ... `resolution` pixels joined by skips.

    Attributes:
      resolution: a power of two, at least 4.
      channel_base, channel_max: a block has min(channel_base // resolution, channel_max) channels.
      clamp: bound of every activation, None for none; dtype: of activations and convolutions.
    """

    resolution: int
    channels_out: int
    w_dim: int
    channel_base: int = 32768
    channel_max: int = 512
    clamp: float | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, ws: Float[Array, 'b n w'], noise: str = 'const', key: Key | None = None) -> Float[Array, 'b r r c']:
        """ws [B, num_ws(resolution), w_dim]; noise 'const' (the buffers), 'none' or 'random' (from `key`). Float32.

        Raises: UsageError for another number of styles, an unknown noise mode, or random noise without a key.
        """
        expected = (num_ws(self.resolution), self.w_dim)
        if ws.shape[1:] != expected:
            raise UsageError(f'synthesis at {self.resolution} wants ws [B, {expected[0]}, {expected[1]}], given {ws.shape}.')
        if noise not in NOISE:
            raise UsageError(f'noise is {noise!r}: give one of {", ".join(NOISE)}.')
        if noise == 'random' and key is None:
            raise UsageError("noise 'random' needs key=, a jax.random key.")
        x, image, at = None, None, 0
        for level in range(2, int(np.log2(self.resolution)) + 1):
            resolution = 2**level
            channels = channels_at(resolution, self.channel_base, self.channel_max)
            block = SynthesisBlock(
                channels, self.channels_out, resolution, clamp=self.clamp, dtype=self.dtype, name=f'b{resolution}'
            )
            count = 2 if x is None else 3  # the image's style is also that of the next block's first convolution
            block_key = None if noise != 'random' else jax.random.fold_in(key, level)
            x, image = block(x, image, ws[:, at : at + count], noise, block_key)
            at += count - 1
        return image


def sr_preset(size: int) -> dict:
    """`input_size`, `channels` and `ups` of EG3D's module for an output of 128, 256 or 512 pixels: keywords of SuperResolution.

    Raises: UsageError for another size.
    """
    if size not in SR_PRESETS:
        raise UsageError(f'no super-resolution preset for {size} pixels: give 128, 256 or 512, or the three values yourself.')
    return dict(zip(('input_size', 'channels', 'ups'), SR_PRESETS[size]))


class SuperResolutionBlock(nn.Module):
    """Two modulated convolutions, the first at twice the size when `up`, and their image added to `rgb`; no noise."""

    channels: int
    up: bool
    styled: bool = True
    clamp: float | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(
        self, x: Float[Array, 'b h w c'], rgb: Float[Array, 'b h w 3'], w: Float[Array, 'b d'] | None
    ) -> tuple[Float[Array, 'b h2 w2 o'], Float[Array, 'b h2 w2 3']]:
        """x [B, h, w, C], rgb [B, h, w, 3], w [B, W], one style for the three layers, or None (not styled)."""
        options = {'styled': self.styled, 'clamp': self.clamp, 'dtype': self.dtype}
        x = StyledConv(self.channels, up=self.up, name='conv0', **options)(x, w)
        x = StyledConv(self.channels, name='conv1', **options)(x, w)
        out = ToImage(rgb.shape[-1], name='torgb', **options)(x, w)
        return x, (fir.upsample2(rgb) if self.up else rgb) + out


class SuperResolution(nn.Module):
    """Features and raw colours to the image, at `input_size` times 2 for each True in `ups`.

    Attributes:
      input_size: both inputs are resized to it, bilinearly with antialiasing.
      channels, ups: of the blocks; see `sr_preset`.
      styled: False for an upsampler without style: all styles are 1 and the affine layers do not exist.
      clamp: bound of activations (256 in EG3D, with half precision); dtype: of activations and convolutions.
    """

    input_size: int
    in_channels: int
    channels: tuple[int, ...] = (128, 64)
    ups: tuple[bool, ...] = (False, True)
    w_dim: int = 512
    dtype: jnp.dtype = jnp.float32
    clamp: float | None = None
    styled: bool = True

    @nn.compact
    @typechecked
    def __call__(
        self, rgb: Float[Array, 'b h w 3'], features: Float[Array, 'b h w c'], w: Float[Array, 'b d'] | None
    ) -> Float[Array, 'b s s 3']:
        """rgb in [-1, 1]; w [B, w_dim], or None exactly when not `styled`. Float32, not clipped.

        Raises: UsageError for a width or a style that does not fit the attributes.
        """
        if features.shape[-1] != self.in_channels:
            raise UsageError(f'super-resolution wants {self.in_channels} feature channels, given {features.shape[-1]}.')
        if (w is not None) != self.styled or (self.styled and w.shape[-1] != self.w_dim):
            style = f'w [B, {self.w_dim}]' if self.styled else 'None'
            raise UsageError(f'super-resolution, styled={self.styled}: wants {style}, given {None if w is None else w.shape}.')
        rgb, x = fir.resize_aa(rgb, self.input_size), fir.resize_aa(features, self.input_size)
        for i, (channels, up) in enumerate(zip(self.channels, self.ups, strict=True)):
            block = SuperResolutionBlock(channels, up, self.styled, self.clamp, self.dtype, name=f'block{i}')
            x, rgb = block(x, rgb, w)
        return rgb
