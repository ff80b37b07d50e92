"""Convolution whose gradients stay fast inside conditions and loops on CPUs.

The gradient of a convolution is a convolution again, with batch, channels and window in other places. XLA's CPU compiler turns
such a one into the arrangement that its fast routine wants (NHWC by HWIO), but only at the top of a program: in a branch of
`lax.cond`, a rung of `lax.switch` or the body of `lax.scan` it runs as naive loops, 20 to 50 times as long. Here the gradients
are written in that arrangement, with the transpositions said. Other compilers choose for themselves and get JAX's own.
"""

import functools
from typing import NamedTuple

import jax
from flax import linen as nn
from jax import lax
from jax.custom_derivatives import SymbolicZero

from t3d.core import platforms

LAYOUT, LINE = ('NHWC', 'HWIO', 'NHWC'), ('NWC', 'WIO', 'NWC')
Pair = tuple[int, int]


class Geometry(NamedTuple):
    """How a window of weights goes over the pixels; each for rows and columns."""

    strides: Pair = (1, 1)
    pads: tuple[Pair, Pair] = ((0, 0), (0, 0))  # zeros before and after, negative: pixels cut off
    lhs_dilation: Pair = (1, 1)  # of the pixels: zeros between them
    rhs_dilation: Pair = (1, 1)  # of the weights


@jax.tree_util.register_static
class Sides(NamedTuple):
    """Rows and columns of the pixels and of the window of weights."""

    pixels: Pair
    window: Pair


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides,
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision=None,
) -> jax.Array:
    """As `lax.conv_general_dilated`, of which it is the sibling to give to `flax.linen.Conv`; reverse mode only on CPUs.

    Args:
      lhs: [B, H, W, I] or [B, W, I]; rhs: [h, w, I, O] or [w, I, O]. Other layouts, grouped channels and other numbers of
        axes go to JAX as they are.
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    ours = lax.conv_dimension_numbers(lhs.shape, rhs.shape, LINE if lhs.ndim == 3 else LAYOUT) if lhs.ndim in (3, 4) else None
    if platforms.name() != 'cpu' or numbers != ours or (feature_group_count, batch_group_count, precision) != (1, 1, None):
        words = dict(lhs_dilation=lhs_dilation, rhs_dilation=rhs_dilation, dimension_numbers=numbers, precision=precision)
        groups = dict(feature_group_count=feature_group_count, batch_group_count=batch_group_count)
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **words, **groups)
    if lhs.ndim == 3:  # a line is a picture of one row
        row = lambda values, one: values if isinstance(values, str) else (one, *(values or (one,)))
        given = row(window_strides, 1), row(padding, (0, 0)), row(lhs_dilation, 1), row(rhs_dilation, 1), LAYOUT
        return conv_general_dilated(lhs[:, None], rhs[None], *given)[:, 0]
    spread, apart = tuple(lhs_dilation or (1, 1)), tuple(rhs_dilation or (1, 1))
    if isinstance(padding, str):
        sides = [dilated(lhs.shape[1 + k], spread[k]) for k in (0, 1)]
        windows = [dilated(rhs.shape[k], apart[k]) for k in (0, 1)]
        padding = lax.padtype_to_pads(sides, windows, window_strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    return canonical(lhs, rhs, Geometry(tuple(window_strides), pads, spread, apart))


def dilated(size: int, by: int) -> int:
    """How long `size` places are with `by - 1` zeros between any two."""
    return (size - 1) * by + 1 if size else 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def canonical(x: jax.Array, weight: jax.Array, geometry: Geometry) -> jax.Array:
    """Cross-correlation of [B, H, W, I] by [h, w, I, O], whose gradients are calls of itself, as often as they are taken."""
    strides, pads, spread, apart = geometry
    options = dict(lhs_dilation=spread, rhs_dilation=apart, dimension_numbers=LAYOUT)
    return lax.conv_general_dilated(x, weight, strides, pads, **options)


def _forward(x, weight, geometry):
    """Keeps what the gradients that are asked for read: of pixels the weights, of weights the pixels."""
    sides = Sides(x.value.shape[1:3], weight.value.shape[:2])
    kept = x.value if weight.perturbed else None, weight.value if x.perturbed else None
    return canonical(x.value, weight.value, geometry), (*kept, sides)


def _backward(geometry: Geometry, saved, gradient):
    """Of pixels: the gradient by the turned weights, pixels and outputs in each other's place. Of weights: x by the gradient,
    channels as the batch and the batch as channels.
    """
    (x, weight, sides), (strides, pads, spread, apart) = saved, geometry
    if isinstance(gradient, SymbolicZero):
        return None, None
    of_pixels, of_weights = [], []
    for k in (0, 1):
        pixels, window = dilated(sides.pixels[k], spread[k]), dilated(sides.window[k], apart[k])
        outputs, low = dilated(gradient.shape[1 + k], strides[k]), pads[k][0]
        before = window - 1 - low
        of_pixels.append((before, pixels + window - 1 - outputs - before))
        of_weights.append((low, outputs - pixels + before))
    to_x = to_weight = None
    if weight is not None:
        turned = weight[::-1, ::-1].swapaxes(2, 3)
        to_x = canonical(gradient, turned, Geometry(spread, tuple(of_pixels), strides, apart))
    if x is not None:
        by_channel, by_pixel = x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3)
        to_weight = canonical(by_channel, by_pixel, Geometry(apart, tuple(of_weights), spread, strides))
        to_weight = to_weight.transpose(1, 2, 0, 3)
    return to_x, to_weight


canonical.defvjp(_forward, _backward, symbolic_zeros=True)


def layer(channels: int, window: tuple[int, ...], **options) -> nn.Conv:
    """A flax convolution whose gradients are these; options as of flax.linen.Conv."""
    return nn.Conv(channels, window, conv_general_dilated=conv_general_dilated, **options)
