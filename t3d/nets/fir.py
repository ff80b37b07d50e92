"""Fixed filters of StyleGAN2: up- and downsampling by two, Gaussian blur, antialiased resize; and the convolutions beside them.

The binomial filter [1, 3, 3, 1] x [1, 3, 3, 1] / 64 of arXiv 1912.04958 (after Zhang, arXiv 1904.11486), written as separable
sums of shifted views: XLA runs that far faster than a grouped convolution. Everything outside an image is zero. Images are
[B, H, W, C]; each filter has gain 1 for a constant away from the border.
"""

import jax
import jax.numpy as jnp

from t3d.core.errors import UsageError
from t3d.core.typing import Array, Float
from t3d.nets import convolution

TAPS = (0.125, 0.375, 0.375, 0.125)  # sums to 1


def pad_axis(x: jax.Array, axis: int, before: int, after: int) -> jax.Array:
    """Zeros before and after along one axis."""
    return jnp.pad(x, [(before, after) if i == axis % x.ndim else (0, 0) for i in range(x.ndim)])


def _up_axis(x, axis):
    """Twice as long: out[2i] = x[i-1] / 4 + 3 x[i] / 4, out[2i+1] = 3 x[i] / 4 + x[i+1] / 4."""
    size = x.shape[axis]
    padded = pad_axis(x, axis, 1, 1)
    near = 0.75 * x
    before = 0.25 * jax.lax.slice_in_dim(padded, 0, size, axis=axis)
    after = 0.25 * jax.lax.slice_in_dim(padded, 2, size + 2, axis=axis)
    out = jnp.stack([before + near, near + after], axis + 1)
    return out.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])


def _down_axis(x, axis):
    """Half as long: out[i] = (x[2i-1] + 3 x[2i] + 3 x[2i+1] + x[2i+2]) / 8."""
    half = x.shape[axis] // 2
    pairs = x.reshape(*x.shape[:axis], half, 2, *x.shape[axis + 1 :])
    even, odd = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    before = jax.lax.slice_in_dim(pad_axis(odd, axis, 1, 0), 0, half, axis=axis)
    after = jax.lax.slice_in_dim(pad_axis(even, axis, 0, 1), 1, half + 1, axis=axis)
    return TAPS[0] * (before + after) + TAPS[1] * (even + odd)


def upsample2(x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
    """Twice the size: zeros inserted after each pixel, padded by (2, 1), correlated with four times the filter."""
    return _up_axis(_up_axis(x, 1), 2)


def downsample2(x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
    """Half the size: padded by (1, 1), correlated with the filter, every second pixel. Both sides must be even.

    Raises: UsageError for an odd side.
    """
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise UsageError(f'downsample2 was given {x.shape[1]} x {x.shape[2]} pixels: both sides must be even.')
    return _down_axis(_down_axis(x, 1), 2)


def filter_taps(x: jax.Array, taps, pad: int) -> jax.Array:
    """Correlates both image axes of x [B, H, W, C] with `taps` behind `pad` zeros all round: sides grow by 2 pad + 1 - taps."""
    x, count = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))), len(taps)
    for axis in (1, 2):
        size = x.shape[axis] - count + 1
        x = sum(taps[i] * jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(count))
    return x


def smooth(x: Float[Array, 'b h w c'], pad: int, gain: float = 1.0) -> Float[Array, 'b h2 w2 c']:
    """The binomial filter at stride 1 behind `pad` zeros on each side: sides grow by 2 pad - 3. `gain` multiplies it."""
    return filter_taps(x, [gain**0.5 * tap for tap in TAPS], pad)


def blur(x: Float[Array, 'b h w c'], sigma, radius: int | None = None) -> Float[Array, 'b h w c']:
    """Gaussian blur with taps 2 ** -(k / sigma)^2, |k| <= floor(3 sigma), normalised; base 2, as EG3D trains its discriminator.

    Args:
      x: images.
      sigma: pixels, >= 0; a number, or a traced scalar. Nothing happens where floor(3 sigma) = 0.
      radius: for a traced sigma only, the largest floor(3 sigma) to come; the work is that of this radius.
    Raises: UsageError for a traced sigma without radius.
    """
    traced = isinstance(sigma, jax.core.Tracer) or radius is not None
    if not traced:
        radius = int(3 * float(sigma))
        if radius < 1:
            return x
    if radius is None:
        raise UsageError('blur was given a traced sigma: say radius=, the largest floor(3 sigma) of the schedule.')
    offsets = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    reach = jnp.floor(3.0 * jnp.asarray(sigma, jnp.float32))
    inside = jnp.abs(offsets) <= reach
    taps = jnp.where(inside, jnp.exp2(-jnp.square(offsets / jnp.maximum(sigma, 1e-6))), 0.0)
    taps = jnp.where(reach < 1, (offsets == 0).astype(jnp.float32), taps / jnp.sum(taps))
    return filter_taps(x, [taps[i].astype(x.dtype) for i in range(2 * radius + 1)], radius)


def resize_aa(x: Float[Array, 'b h w c'], size: int) -> Float[Array, 'b h2 w2 c']:
    """Bilinear resize to size x size pixels, half-pixel centres, the triangle widened by the ratio when shrinking."""
    if x.shape[1:3] == (size, size):
        return x
    return jax.image.resize(x, (x.shape[0], size, size, x.shape[3]), 'bilinear', antialias=True)


def conv(x: jax.Array, weight: jax.Array, stride: int = 1, padding='SAME') -> jax.Array:
    """Cross-correlation, NHWC by HWIO."""
    return convolution.conv_general_dilated(x, weight, (stride, stride), padding, dimension_numbers=convolution.LAYOUT)


@jax.custom_vjp
def conv_transpose(x: Float[Array, 'b h w i'], weight: Float[Array, '3 3 i o']) -> Float[Array, 'b h2 w2 o']:
    """out[2 h + k, 2 w + l] += x[h, w] weight[k, l]: 3x3 at stride 2, H x W to (2 H + 1) x (2 W + 1) pixels.

    Its gradients are written as those of the stride-2 convolution that it is the transpose of: what autodiff makes of a dilated
    input, dilated twice for the weights, takes XLA's CPU compiler ten times as long to run. Reverse mode only.
    """
    pads = ((2, 2), (2, 2))
    numbers = convolution.LAYOUT
    return jax.lax.conv_general_dilated(x, weight[::-1, ::-1], (1, 1), pads, lhs_dilation=(2, 2), dimension_numbers=numbers)


def _conv_transpose_bwd(saved, gradient):
    x, weight = saved
    down, pull = jax.vjp(lambda weight: conv(gradient, weight.swapaxes(2, 3), 2, 'VALID'), weight)
    return down, pull(x)[0]


conv_transpose.defvjp(lambda x, weight: (conv_transpose(x, weight), (x, weight)), _conv_transpose_bwd)
