"""Denoisers of triplanes: three layouts of the planes before an SD-shaped UNet, one of them aware of what planes share.

| layout | what the network sees, R / p texels a side | planes meet in |
|---|---|---|
| `stack` | [B, R/p, R/p, 3 p p C], planes in the channels | every layer: position (i, j) of the three, unrelated points |
| `rollout` | [B, R/p, 3 R/p, p p C], planes side by side | self attention and group norms; and at the two seams, see below |
| `rollout_axis` | [B, 3, R/p, R/p, p p C] | group norms, axis-pooled features in each residual block, cross-plane attention |

`rollout` is one wide picture to the network. Its 3x3 convolutions know no seams: the last column of plane k and the first of
plane k + 1 are neighbours, though far apart in space, and what crosses spreads by a texel of its level with each convolution.
The published roll-outs do the same (SSDNeRF, arXiv 2304.06714, tiled codes). A learned vector for each plane tells them apart.

`rollout_axis` convolves each plane by itself, padded with zeros, and to each convolution of a residual block adds what
Rodin's 3D-aware convolution adds (arXiv 2212.06135, Sec. 3.3): the two other planes, averaged along the axis this plane lacks,
spread along the axis that they lack. Such a map is constant along one of its axes, so three taps along the other are all that a
3x3 kernel can do there (but for the zero padding); that is how they are held. The weights do not know which plane they work on:
one set reads "the plane that shares my width axis", another "the one that shares my height axis".

`cross_plane` adds an attention to each transformer of `rollout_axis`: queries of a plane, keys and values of the two others
(cross-plane attention for consistency, as surveys of triplane diffusion draw it). Without it planes talk by pooled axes alone.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from t3d.core import spread
from t3d.core.errors import UsageError
from t3d.core.typing import Array, Bool, Float, PyTree, typechecked
from t3d.nets import convolution, flash_attention, patched_unet, unet
from t3d.nets.remat import again
from t3d.nets.unet_blocks import (
    TRANSFORMER_EPSILON,
    Attention,
    Downsample,
    FeedForward,
    Masked,
    Options,
    Text,
    Upsample,
    conv3,
    group_norm,
    join,
    layer_norm,
)

LAYOUTS = ('stack', 'rollout', 'rollout_axis')
SHARDING = (
    (r'resnets_\d+/conv1/plane/kernel$', P(None, None, 'fsdp', 'tensor')),
    (r'resnets_\d+/conv2/plane/kernel$', P(None, None, 'tensor', 'fsdp')),
    *unet.SHARDING,
)


class TriplaneDenoiser:
    """A network of triplanes in one of the layouts; holds no parameters.

    Args:
      section: a config's `unet` section, diffusers' keys and `attention_levels` (`patched_unet.from_section`).
      layout: one of LAYOUTS. patch: p; R must be a multiple, in the roll-outs of p 2^(levels - 1).
      resolution, channels: R and C of the planes.
      axes: (width, height) world axes of each plane, as geom.triplanes.PLANE_AXES has them.
      cross_plane: see the module; `rollout_axis` only.
    """

    def __init__(
        self,
        section: Mapping,
        *,
        layout: str,
        patch: int,
        resolution: int,
        channels: int,
        axes: tuple[tuple[int, int], ...],
        cross_plane: bool = False,
        dtype: jnp.dtype = jnp.float32,
        remat: bool | str = False,
    ):
        check(section, layout, patch, resolution, axes, cross_plane)
        self.layout, self.patch, self.shape = layout, patch, (3, resolution, resolution, channels)
        width = patch**2 * channels * (3 if layout == 'stack' else 1)
        if layout == 'rollout_axis':
            self.net = PlaneUNet(
                **_plain(section), channels=width, axes=axes, cross_plane=cross_plane, dtype=dtype, remat=remat
            )
        else:
            self.net = patched_unet.from_section(section, width, width, dtype=dtype, remat=remat)

    def init(self, key, text: Float[Array, 'b n d']) -> PyTree:
        """Parameters {'unet'[, 'planes']} whose output is 0."""
        x = self.arrange(
            {'planes': jnp.zeros((3, self.patch**2 * self.shape[-1]), jnp.float32)}, jnp.zeros((1, *self.shape), jnp.float32)
        )
        params = self.net.init(key, x, jnp.zeros((1,), jnp.int32), text[:1])['params']
        unet = {'unet': patched_unet.zero_output(params)}
        if self.layout == 'stack':
            return unet
        return {**unet, 'planes': jnp.zeros((3, self.patch**2 * self.shape[-1]), jnp.float32)}

    @typechecked
    def __call__(
        self,
        params: PyTree,
        planes: Float[Array, 'b 3 r r c'],
        t: unet.Time,
        text: Float[Array, 'b n d'],
        mask: Bool[Array, 'b n'] | None = None,
    ) -> Float[Array, 'b 3 r r c']:
        """The output for noisy planes at times t, a scalar or [B], under text features [B, N, D] with a mask [B, N] or None."""
        out = self.net.apply({'params': params['unet']}, self.arrange(params, planes), t, text, mask=mask)
        return self.planes_of(out.astype(jnp.float32))

    def arrange(self, params: PyTree, planes: Float[Array, 'b 3 r r c']) -> jax.Array:
        """The network's input, as the module's table has it."""
        batch, _, side, _, channels = planes.shape
        if self.layout == 'stack':
            stacked = jnp.moveaxis(planes, 1, 3).reshape(batch, side, side, 3 * channels)
            return patched_unet.to_patches(stacked, self.patch)
        x = patched_unet.to_patches(planes.reshape(-1, side, side, channels), self.patch)
        x = x.reshape(batch, 3, *x.shape[1:]) + params['planes'][:, None, None]
        return x if self.layout == 'rollout_axis' else _side_by_side(x)

    def planes_of(self, out: jax.Array) -> Float[Array, 'b 3 r r c']:
        """Planes from the network's output, undoing `arrange` but for the vectors of the planes."""
        batch, (_, side, _, channels) = out.shape[0], self.shape
        if self.layout == 'stack':
            stacked = patched_unet.from_patches(out, self.patch)
            return jnp.moveaxis(stacked.reshape(batch, side, side, 3, channels), 3, 1)
        if self.layout == 'rollout':
            out = jnp.stack(jnp.split(out, 3, axis=2), 1)
        return patched_unet.from_patches(out.reshape(-1, *out.shape[2:]), self.patch).reshape(batch, *self.shape)


def check(section: Mapping, layout: str, patch: int, resolution: int, axes, cross_plane: bool) -> None:
    """Raises UsageError for a layout that is not there or does not fit."""
    flash_attention.check(section.get('attention', 'xla'))
    if layout not in LAYOUTS:
        raise UsageError(f'unknown layout {layout!r}: choose one of {", ".join(LAYOUTS)}.')
    if cross_plane and layout != 'rollout_axis':
        raise UsageError(f"cross_plane=True needs layout 'rollout_axis': in {layout!r} attention sees all planes already.")
    if layout == 'rollout_axis':
        shared_axes(axes)
    unit = patch * (1 if layout == 'stack' else 2 ** (len(section['block_out_channels']) - 1))
    if resolution % unit:
        near = max(unit, round(resolution / unit) * unit)
        raise UsageError(f'planes of {resolution} texels with patch={patch} in layout {layout!r}: wanted {near}.')


def shared_axes(axes) -> tuple[tuple[tuple[int, bool], tuple[int, bool]], ...]:
    """For each plane and each of its (width, height) axes: (the other plane that has the axis, is it that one's width?).

    Raises: UsageError where no other plane, or both, have it: 'legacy' axes, whose third plane is the second one again.
    """
    shared = []
    for k, own in enumerate(axes):
        both = [[(q, other[0] == axis) for q, other in enumerate(axes) if q != k and axis in other] for axis in own]
        if any(len(places) != 1 for places in both):
            raise UsageError(
                f"layout 'rollout_axis' needs planes of which each two share one axis, and {tuple(axes)} are not: train "
                "stage 1 with plane_axes='orthogonal', or choose layout 'stack' or 'rollout'."
            )
        shared.append((both[0][0], both[1][0]))
    return tuple(shared)


def axis_pooled(x: Float[Array, 'b 3 h w c'], axes) -> tuple[Float[Array, 'b 3 w c'], Float[Array, 'b 3 h c']]:
    """What the two other planes know of each plane's width axis and of its height axis: their means over their other axis."""
    along = {True: jnp.mean(x, axis=2), False: jnp.mean(x, axis=3)}
    width, height = zip(*(tuple(along[is_width][:, q] for q, is_width in pair) for pair in shared_axes(axes)), strict=True)
    return jnp.stack(width, 1), jnp.stack(height, 1)


def other_planes(x: Float[Array, 'b 3 n c']) -> Float[Array, 'b 3 m c']:
    """Tokens of the two planes that each plane is not: [B, 3, 2 N, C]."""
    return jnp.stack([jnp.concatenate([x[:, q] for q in range(3) if q != k], axis=1) for k in range(3)], 1)


def folded(module, x, *rest):
    """A module of maps over the planes of each example: [B, 3, H, W, C] as 3 B maps."""
    out = module(x.reshape(-1, *x.shape[2:]), *rest)
    return out.reshape(*x.shape[:2], *out.shape[1:])


class AxisConv(nn.Module):
    """3x3 over each plane, plus three taps over the other planes' pooled features along each axis."""

    channels: int
    axes: tuple
    dtype: jnp.dtype

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b 3 h w c']) -> Float[Array, 'b 3 h w o']:
        width, height = axis_pooled(x, self.axes)

        def taps(name, line):
            conv = convolution.layer(self.channels, (3,), padding=1, use_bias=False, dtype=self.dtype, name=name)
            return folded(conv, line)

        out = folded(conv3(self.channels, self.dtype, 'plane'), x)
        return out + taps('width', width)[:, :, None] + taps('height', height)[:, :, :, None]


class AxisResnetBlock(nn.Module):
    """unet_blocks.ResnetBlock on planes, its convolutions aware of the other planes; norms over the three planes together."""

    channels: int
    axes: tuple
    options: Options

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b 3 h w c'], temb: Float[Array, 'b e']) -> Float[Array, 'b 3 h w o']:
        options = self.options
        h = nn.silu(group_norm(options, options.epsilon, 'norm1')(x))
        h = AxisConv(self.channels, self.axes, options.dtype, name='conv1')(h)
        h = h + nn.Dense(self.channels, dtype=options.dtype, name='time_emb_proj')(temb)[:, None, None, None, :]
        h = nn.silu(group_norm(options, options.epsilon, 'norm2')(h))
        h = AxisConv(self.channels, self.axes, options.dtype, name='conv2')(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=options.dtype, name='conv_shortcut')(x)
        return x + h


class PlaneTransformer(nn.Module):
    """unet_blocks.Transformer on planes: attention within each plane, over the two others if asked for, to the text; an MLP."""

    heads: int
    cross_plane: bool
    options: Options

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b 3 h w c'], text: Text) -> Float[Array, 'b 3 h w c']:
        options, (batch, _, height, width, channels) = self.options, x.shape
        h = group_norm(options, TRANSFORMER_EPSILON, 'norm')(x)
        h = nn.Dense(channels, dtype=options.dtype, name='proj_in')(h).reshape(batch, 3, height * width, channels)
        h = h + folded(Attention(self.heads, options, name='attn1'), layer_norm(options, 'norm1')(h))
        if self.cross_plane:
            tokens = layer_norm(options, 'norm_planes')(h)
            others = other_planes(tokens).reshape(3 * batch, -1, channels)
            h = h + folded(Attention(self.heads, options, name='attn_planes'), tokens, others)
        flat = h.reshape(batch, -1, channels)  # the text is one for the three planes
        flat = flat + Attention(self.heads, options, name='attn2')(layer_norm(options, 'norm2')(flat), text)
        flat = flat + FeedForward(options.dtype, name='ff')(layer_norm(options, 'norm3')(flat))
        return x + nn.Dense(channels, dtype=options.dtype, name='proj_out')(flat).reshape(x.shape)


class PlaneUNet(nn.Module):
    """nets.unet.UNet on [B, 3, H, W, C]: the same levels and keys of its config, axis-aware residual blocks."""

    channels: int  # of input and output
    block_out_channels: tuple[int, ...]
    attention_levels: tuple[bool, ...]
    axes: tuple
    layers_per_block: int = 2
    attention_head_dim: int | tuple[int, ...] = 8  # the number of heads, as diffusers has it
    cross_attention_dim: int = 768
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_plane: bool = False
    dtype: jnp.dtype = jnp.float32
    remat: bool | str = False
    attention: str = 'xla'

    @nn.compact
    @typechecked
    def __call__(
        self, x: Float[Array, 'b 3 h w c'], t: unet.Time, text: Float[Array, 'b n d'], mask: Bool[Array, 'b n'] | None = None
    ) -> Float[Array, 'b 3 h w c']:
        """Planes, time, text features and mask as in UNet; [B, 3, H, W, channels], float32."""
        options = Options(
            self.norm_num_groups, self.norm_eps, linear=True, attention=self.attention, remat=self.remat, dtype=self.dtype
        )
        temb = self.temb(t, x.shape[0])
        x, text = spread.rows(x), spread.rows(text)
        text = Masked(text.astype(self.dtype), jnp.ones(text.shape[:2], bool) if mask is None else mask)
        last = len(self.block_out_channels) - 1
        heads = self.attention_head_dim
        heads = heads if isinstance(heads, tuple) else (heads,) * (last + 1)
        resnet, attend = again(AxisResnetBlock, self.remat), again(PlaneTransformer, self.remat)

        def layer(x, where: str, level: int, k: int, attends: bool):
            x = resnet(self.block_out_channels[level], self.axes, options, name=f'{where}_resnets_{k}')(x, temb)
            if attends:
                x = attend(heads[level], self.cross_plane, options, name=f'{where}_attentions_{k}')(x, text)
            return x

        x = folded(conv3(self.block_out_channels[0], self.dtype, 'conv_in'), x)
        skips = [x]
        for level, attends in enumerate(self.attention_levels):
            for k in range(self.layers_per_block):
                x = layer(x, f'down_{level}', level, k, attends)
                skips.append(x)
            if level < last:
                x = folded(Downsample(options, name=f'down_{level}_downsampler'), x)
                skips.append(x)
        x = layer(layer(x, 'mid', last, 0, True), 'mid', last, 1, False)
        for level in reversed(range(last + 1)):
            for k in range(self.layers_per_block + 1):
                x = layer(join(x, skips.pop()), f'up_{level}', level, k, self.attention_levels[level])
            if level > 0:
                x = folded(Upsample(self.dtype, name=f'up_{level}_upsampler'), x)
        x = nn.silu(group_norm(options, self.norm_eps, 'conv_norm_out')(x))
        return folded(conv3(self.channels, self.dtype, 'conv_out'), x).astype(jnp.float32)

    def temb(self, t, batch: int):
        """SiLU of the time embedding [B, 4 * C0]."""
        width = self.block_out_channels[0]
        waves = unet.timestep_embedding(jnp.broadcast_to(jnp.asarray(t, jnp.float32), (batch,)), width)
        return nn.silu(unet.TimeEmbedding(4 * width, name='time_embedding')(waves))


def _side_by_side(x: Float[Array, 'b 3 h w c']) -> Float[Array, 'b h w3 c']:
    return jnp.concatenate([x[:, k] for k in range(3)], axis=2)


def _plain(section: Mapping) -> dict:
    """The section's keys that PlaneUNet has; it always projects by matrices."""
    return {name: value for name, value in section.items() if name != 'use_linear_projection'}
