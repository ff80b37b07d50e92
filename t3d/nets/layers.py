"""Convolutional building blocks: adaptive group norm, residual block, nearest-neighbour upsampling."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t3d.core.typing import Array, Float, typechecked
from t3d.nets import convolution


class AdaptiveGroupNorm(nn.Module):
    """GroupNorm whose scale and shift come from a style vector: (1 + l_s(m)) (x - mean) / std + l_b(m).

    Instant3D's style injection (arXiv 2311.08403, Sec. 3.2.2; group statistics as in its released code). With `style` None it
    is a plain GroupNorm with learned scale and shift.
    """

    groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c'], style: Float[Array, 'b s'] | None) -> Float[Array, 'b h w c']:
        if style is None:
            return nn.GroupNorm(self.groups, use_fast_variance=False, epsilon=1e-5, dtype=self.dtype, name='norm')(x)
        affine = nn.Dense(2 * x.shape[-1], dtype=self.dtype, name='affine')(style)
        scale, shift = jnp.split(affine[:, None, None, :], 2, axis=-1)
        norm = nn.GroupNorm(
            self.groups, use_fast_variance=False, epsilon=1e-5, use_bias=False, use_scale=False, dtype=self.dtype, name='norm'
        )
        return norm(x) * (1.0 + scale) + shift


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each behind an adaptive norm and SiLU, with a 1x1 shortcut where the width changes."""

    channels: int
    groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c'], style: Float[Array, 'b s'] | None) -> Float[Array, 'b h w o']:
        def conv(name):
            return convolution.layer(self.channels, (3, 3), dtype=self.dtype, name=name)

        h = conv('conv_1')(nn.silu(AdaptiveGroupNorm(self.groups, dtype=self.dtype, name='norm_1')(x, style)))
        h = conv('conv_2')(nn.silu(AdaptiveGroupNorm(self.groups, dtype=self.dtype, name='norm_2')(h, style)))
        if x.shape[-1] != self.channels:
            x = convolution.layer(self.channels, (1, 1), dtype=self.dtype, name='shortcut')(x)
        return x + h


class Upsample(nn.Module):
    """Nearest neighbour to twice the size, then a 3x3 convolution."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
        batch, height, width, channels = x.shape
        x = jax.lax.broadcast_in_dim(x, (batch, height, 2, width, 2, channels), (0, 1, 3, 5))
        x = x.reshape(batch, 2 * height, 2 * width, channels)
        return convolution.layer(channels, (3, 3), dtype=self.dtype, name='conv')(x)
