"""EG3D's dual discriminator (arXiv 2112.07945, Sec. 4.3): the image and the raw render, six channels, seen by StyleGAN2's
residual discriminator with the camera label projected on its output. Parameter paths follow EG3D's names, dots as slashes."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t3d.core.errors import UsageError
from t3d.core.typing import Array, Float, typechecked
from t3d.nets import fir
from t3d.nets.stylegan2 import LRELU_GAIN, Linear, Mapping, channels_at, leaky


def minibatch_std(x: Float[Array, 'b h w c'], group: int = 4, micro_batch: int | None = None) -> Float[Array, 'b h w d']:
    """x with one more channel: how much its group of samples differs (arXiv 1710.10196, Sec. 3).

    The batch is cut into contiguous micro-batches, and sample i of one is in a group with i + m / g, i + 2 m / g, ..., where
    g = min(group, m). A micro-batch must lie on one device to be local, but the result is that of any mesh.

    Args:
      group: samples of a group; micro_batch: m, None for the whole batch given.
    Raises: UsageError if the batch is no multiple of m, or m none of g.
    """
    batch = x.shape[0]
    micro = batch if micro_batch is None else min(micro_batch, batch)
    members = min(group, micro)
    if batch % micro or micro % members:
        raise UsageError(f'a batch of {batch} does not fall into micro-batches of {micro} and groups of {members}.')
    grouped = x.astype(jnp.float32).reshape(batch // micro, members, micro // members, *x.shape[1:])
    centred = grouped - jnp.mean(grouped, 1, keepdims=True)
    deviation = jnp.sqrt(jnp.mean(jnp.square(centred), 1, keepdims=True) + 1e-8)
    statistic = jnp.mean(deviation, (3, 4, 5))  # [batch // micro, 1, micro // members]
    statistic = jnp.broadcast_to(statistic, grouped.shape[:3]).reshape(batch, 1, 1, 1)
    return jnp.concatenate([x, jnp.broadcast_to(statistic, (*x.shape[:3], 1)).astype(x.dtype)], -1)


class Conv(nn.Module):
    """Convolution at equalised learning rate; with `activate`, bias, leaky ReLU and clamp.

    Attributes:
      down: half the size, filtered first.
      gain: of the output and of the clamp.
    """

    channels: int
    kernel: int = 3
    down: bool = False
    activate: bool = True
    gain: float = 1.0
    clamp: float | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 o']:
        incoming = x.shape[-1]
        weight = self.param(
            'weight', nn.initializers.normal(1.0), (self.kernel, self.kernel, incoming, self.channels), jnp.float32
        )
        weight = (weight / math.sqrt(incoming * self.kernel**2)).astype(self.dtype)
        x = x.astype(self.dtype)
        if not self.down:
            x = fir.conv(x, weight)
        elif self.kernel == 1:
            x = fir.conv(fir.downsample2(x), weight)
        else:
            x = fir.conv(fir.smooth(x, 2), weight, stride=2, padding='VALID')
        if not self.activate:
            return x * self.gain
        bias = self.param('bias', nn.initializers.zeros, (self.channels,), jnp.float32)
        clamp = None if self.clamp is None else self.clamp * self.gain
        return leaky(x + bias.astype(x.dtype), LRELU_GAIN * self.gain, clamp)


class DiscriminatorBlock(nn.Module):
    """Residual block to half the size; the first one starts from the image by a 1x1 convolution."""

    channels: int
    channels_out: int
    first: bool = False
    clamp: float | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 o']:
        options, half = {'clamp': self.clamp, 'dtype': self.dtype}, float(np.sqrt(0.5))
        if self.first:
            x = Conv(self.channels, 1, name='fromrgb', **options)(x)
        skip = Conv(self.channels_out, 1, down=True, activate=False, gain=half, name='skip', dtype=self.dtype)(x)
        x = Conv(self.channels, name='conv0', **options)(x)
        return Conv(self.channels_out, down=True, gain=half, name='conv1', **options)(x) + skip


class Epilogue(nn.Module):
    """4x4 features to one number for each sample, or `features` of them to be projected on a label; float32."""

    features: int
    group: int
    micro_batch: int | None
    clamp: float | None = None

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b o']:
        channels = x.shape[-1]
        x = minibatch_std(x.astype(jnp.float32), self.group, self.micro_batch)
        x = Conv(channels, clamp=self.clamp, name='conv')(x)
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # channels first, the order of released weights
        return Linear(self.features, name='out')(Linear(channels, activate=True, name='fc')(x))


def check(name: str, size: int) -> None:
    """Raises UsageError where `Discriminator` cannot halve images of `size` pixels (the value of the key `name`) down to 4."""
    if size < 8 or size & (size - 1):
        near = max(8, 2 ** round(math.log2(size)))
        raise UsageError(f'{name}={size}: the discriminator wants a power of two from 8. Nearest: {name}={near}.')


class Discriminator(nn.Module):
    """Logits of an image and its raw render.

    Attributes:
      size: of the image, a power of two, at least 8.
      in_channels: 6 for image and raw, 3 for the image alone (raw is then None).
      c_dim: width of the label; 0 for an unconditional one, without mapping network.
      group, micro_batch: see `minibatch_std`.
      clamp: bound of activations (256 in EG3D, with half precision).
      dtype: of the `low_precision` highest resolutions; the others and the end stay in float32.
    """

    size: int
    in_channels: int = 6
    channel_base: int = 32768
    channel_max: int = 512
    c_dim: int = 25
    mapping_layers: int = 8
    group: int = 4
    micro_batch: int | None = None
    clamp: float | None = None
    dtype: jnp.dtype = jnp.float32
    low_precision: int = 4

    @nn.compact
    @typechecked
    def __call__(
        self, image: Float[Array, 'b s s 3'], raw: Float[Array, 'b r r 3'] | None, c: Float[Array, 'b c'] | None
    ) -> Float[Array, ' b']:
        """image and raw in [-1, 1], raw of any size; c [B, c_dim], unused when c_dim is 0. Float32.

        Raises: UsageError for an image of another size, or inputs that do not make `in_channels`.
        """
        x = image if raw is None else jnp.concatenate([image, fir.resize_aa(raw, image.shape[1])], -1)
        if x.shape[1:] != (self.size, self.size, self.in_channels):
            raise UsageError(f'the discriminator wants {self.size} x {self.size} x {self.in_channels}, given {x.shape[1:]}.')

        def width(resolution):
            return channels_at(resolution, self.channel_base, self.channel_max)

        top = int(np.log2(self.size))
        for level in range(top, 2, -1):
            dtype = self.dtype if top - level < self.low_precision else jnp.float32
            block = DiscriminatorBlock(
                width(2**level), width(2 ** (level - 1)), level == top, self.clamp, dtype, name=f'b{2**level}'
            )
            x = block(x)
        features = width(4) if self.c_dim else 1
        x = Epilogue(features, self.group, self.micro_batch, self.clamp, name='b4')(x)
        if not self.c_dim:
            return x[:, 0]
        label = Mapping(0, self.c_dim, features, self.mapping_layers, name='mapping')(None, c)
        return jnp.sum(x * label, -1) / math.sqrt(features)


def r1(discriminate: Callable, image: jax.Array, raw: jax.Array | None) -> Float[Array, ' b']:
    """|d logit / d image|^2 + |d logit / d raw|^2 of each sample, summed over pixels (arXiv 1801.04406; both inputs count).

    `discriminate(image, raw) -> logits [B]`. The penalty is gamma / 2 times the mean; differentiable once more.
    """
    gradients = jax.grad(lambda pair: jnp.sum(discriminate(*pair)))((image, raw))
    return sum(jnp.sum(jnp.square(gradient), (1, 2, 3)) for gradient in jax.tree.leaves(gradients))


def r1_gamma(size: int, batch: int) -> float:
    """The weight of R1 by StyleGAN2-ADA's rule, 0.0002 * pixels / batch; from 64 images on at least 0.3."""
    rule = 0.0002 * size**2 / batch
    return max(rule, 0.3) if batch >= 64 else rule
