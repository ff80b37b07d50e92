"""EfficientNet-Lite0 (TensorFlow's EfficientNet-lite, after arXiv 1905.11946): ImageNet classes and 1280 pooled features.

EfficientNet-B0's blocks with ReLU6 and without squeeze-and-excitation; 4,652,008 parameters. Batch norms run on stored
statistics only. `t3d.checkpoint.judges` reads trained weights from an installed package.
"""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from t3d.core.typing import Array, Float, typechecked
from t3d.nets import pil_resize

SIZE = 224  # pixels a side that the released weights were trained at
BLOCKS = (  # repeats, kernel, stride, expansion, channels: Table 1 of arXiv 1905.11946
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


@flax.struct.dataclass
class Features:
    """What the network says of B images."""

    pooled: jax.Array  # [B, 1280], not negative
    logits: jax.Array  # [B, 1000], ImageNet-1k in its usual order


class Block(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise convolution, 1x1 projection; added to the input where shapes allow."""

    channels: int
    kernel: int
    stride: int
    expansion: int
    dtype: jnp.dtype
    epsilon: float
    symmetric: bool

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 o']:
        conv, norm, inner, h = *_layers(self), self.expansion * x.shape[-1], x
        if self.expansion > 1:
            h = nn.relu6(norm('expand_norm')(conv('expand', inner, 1)(h)))
        h = nn.relu6(norm('depthwise_norm')(conv('depthwise', inner, self.kernel, self.stride, groups=inner)(h)))
        h = norm('project_norm')(conv('project', self.channels, 1)(h))
        return x + h if self.stride == 1 and x.shape[-1] == self.channels else h


class EfficientNetLite(nn.Module):
    """Images to pooled features and class logits.

    Attributes:
      blocks: rows of (repeats, kernel, stride, expansion, channels).
      stem, head: channels of the first and the last convolution.
      classes: number of logits.
      epsilon: of the batch norms.
      symmetric: convolutions pad alike on both sides, as PyTorch does. False pads as TensorFlow does, where the released
        weights come from: with stride 2 more at the end than at the start.
    """

    blocks: tuple[tuple[int, int, int, int, int], ...] = BLOCKS
    stem: int = 32
    head: int = 1280
    classes: int = 1000
    dtype: jnp.dtype = jnp.float32
    epsilon: float = 1e-3
    symmetric: bool = False

    @nn.compact
    @typechecked
    def __call__(self, images: Float[Array, 'b h w 3']) -> Features:
        """images as `prepare` returns them, of any size; variables are `params` and `batch_stats`."""
        conv, norm = _layers(self)
        x = nn.relu6(norm('stem_norm')(conv('stem', self.stem, 3, 2)(images)))
        index = 0
        for repeats, kernel, stride, expansion, channels in self.blocks:
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                sizes = (channels, kernel, step, expansion)
                x = Block(*sizes, self.dtype, self.epsilon, self.symmetric, name=f'block_{index}')(x)
                index += 1
        x = nn.relu6(norm('head_norm')(conv('head', self.head, 1)(x)))
        pooled = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        return Features(pooled=pooled, logits=nn.Dense(self.classes, name='classes')(pooled))


def prepare(images: Float[Array, 'b h w 3'], size: int = SIZE) -> Float[Array, 'b s s 3']:
    """Images at `size` (see resize), then (255 x - 127) / 128 as the weights were trained with."""
    return (255.0 * resize(images, size) - 127.0) / 128.0


def resize(images: Float[Array, 'b h w 3'], size: int) -> Float[Array, 'b s s 3']:
    """Square images in [0, 1] at `size` pixels a side, bicubic as PIL has it; as they are where they have that size."""
    return pil_resize.bicubic(images, size, size)


def _layers(module):
    """(convolution, batch norm) as the module's attributes want them; each is called with its name first."""
    norm = functools.partial(
        nn.BatchNorm, use_running_average=True, use_fast_variance=False, epsilon=module.epsilon, dtype=module.dtype
    )

    def conv(name, channels, kernel, stride=1, groups=1):
        return nn.Conv(
            channels,
            (kernel, kernel),
            (stride, stride),
            padding=kernel // 2 if module.symmetric else 'SAME',
            use_bias=False,
            feature_group_count=groups,
            dtype=module.dtype,
            name=name,
        )

    return conv, lambda name: norm(name=name)
