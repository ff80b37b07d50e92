"""Instant3D's conditional decoder: text tokens and noise to a triplane in one pass (arXiv 2311.08403, Sec. 3.2).

Three condition mechanisms, each of which a flag switches off for the ablation the paper asks for:
cross attention from feature map to tokens; style injection (adaptive group norm on text and Gaussian noise); token-to-plane
(the base map is predicted from the tokens instead of being a learned constant).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t3d.core import spread
from t3d.core.errors import UsageError
from t3d.core.rules import divides
from t3d.core.typing import Array, Float, typechecked
from t3d.nets import convolution
from t3d.nets.attention import ImageTransformer, TextMixer
from t3d.nets.layers import ResidualBlock, Upsample
from t3d.nets.remat import again


class DecoderLayer(nn.Module):
    """A residual block and, where asked for, an image transformer; (x, None) so that nn.scan can stack it."""

    channels: int
    groups: int
    heads: int  # 0 for no transformer
    cross: bool
    dtype: jnp.dtype

    @nn.compact
    @typechecked
    def __call__(
        self, x: Float[Array, 'b h w c'], style: Float[Array, 'b s'] | None, tokens: Float[Array, 'b n d']
    ) -> tuple[Float[Array, 'b h w o'], None]:
        x = ResidualBlock(self.channels, self.groups, dtype=self.dtype, name='block')(x, style)
        if self.heads:
            x = ImageTransformer(self.heads, self.groups, self.cross, dtype=self.dtype, name='transformer')(x, tokens)
        return x, None


class DecoderStage(nn.Module):
    """`layers` decoder layers at one width, then a doubling of the resolution. Layers after the first are one scan."""

    channels: int
    layers: int
    groups: int
    heads: int
    cross: bool
    remat: bool | str
    dtype: jnp.dtype

    @nn.compact
    @typechecked
    def __call__(
        self, x: Float[Array, 'b h w c'], style: Float[Array, 'b s'] | None, tokens: Float[Array, 'b n d']
    ) -> Float[Array, 'b h2 w2 o']:
        layer = again(DecoderLayer, self.remat)
        arguments = (self.channels, self.groups, self.heads, self.cross, self.dtype)
        x, _ = layer(*arguments, name='first')(x, style, tokens)
        if self.layers > 1:
            stack = nn.scan(
                layer, variable_axes={'params': 0}, split_rngs={'params': True}, in_axes=nn.broadcast, length=self.layers - 1
            )
            x, _ = stack(*arguments, name='rest')(x, style, tokens)
        return Upsample(dtype=self.dtype, name='upsample')(x)


class TextDecoder(nn.Module):
    """Tokens to planes.

    The output side is `base_size * 2 ** len(channels)`.

    Attributes:
      channels, heads, groups: for each stage; heads 0 means no attention there.
      layers: residual layers of a stage.
      mid_heads: heads of the transformer at the base resolution.
      base_size, base_channels: the base map that token-to-plane predicts.
      mixer_width, mixer_heads: of the text mixers of both text branches.
      style_width: text features and noise numbers that make the style, each; the style vector is `style_channels` wide.
      out_channels: plane channels in all, planes-major.
      out_groups: groups of the norm before the last convolution.
      cross_attention, style_injection, token_to_plane: the three mechanisms.
      remat: what of the layers is computed again in the backward pass (nets.remat).
    """

    channels: tuple[int, ...]
    heads: tuple[int, ...]
    groups: tuple[int, ...]
    layers: int
    mid_heads: int
    base_size: int
    base_channels: int
    mixer_width: int
    mixer_heads: int
    style_width: int
    style_channels: int
    out_channels: int
    out_groups: int
    cross_attention: bool = True
    style_injection: bool = True
    token_to_plane: bool = True
    remat: bool | str = False
    dtype: jnp.dtype = jnp.float32

    @property
    def out_size(self) -> int:
        return self.base_size * 2 ** len(self.channels)

    @nn.compact
    @typechecked
    def __call__(self, tokens: Float[Array, 'b n d'], noise: Float[Array, 'b z']) -> Float[Array, 'b r r c']:
        if noise.shape != (tokens.shape[0], self.style_width):
            raise ValueError(f'noise of shape {noise.shape}: wanted {(tokens.shape[0], self.style_width)}')
        tokens, noise = spread.rows(tokens.astype(self.dtype)), spread.rows(noise)
        style = self.style(tokens, noise) if self.style_injection else None
        x = convolution.layer(self.channels[0], (3, 3), dtype=self.dtype, name='conv_in')(self.base_map(tokens))
        x = self.middle(x, style, tokens)
        for k, (channels, heads, groups) in enumerate(zip(self.channels, self.heads, self.groups, strict=True)):
            stage = DecoderStage(
                channels, self.layers, groups, heads, self.cross_attention, self.remat, self.dtype, name=f'stage_{k}'
            )
            x = stage(x, style, tokens)
        x = nn.silu(nn.GroupNorm(self.out_groups, use_fast_variance=False, epsilon=1e-5, dtype=self.dtype, name='norm_out')(x))
        return convolution.layer(self.out_channels, (3, 3), dtype=self.dtype, name='conv_out')(x)

    def style(self, tokens, noise):
        """Style injection's vector [B, style_channels] from text features beside Gaussian noise."""
        text = TextMixer(self.mixer_width, self.mixer_heads, dtype=self.dtype, name='style_mixer')(tokens)
        text = nn.Dense(self.style_width, dtype=self.dtype, name='style_text')(text)
        style = jnp.concatenate([text, noise.astype(self.dtype)], -1)
        style = nn.silu(nn.Dense(self.style_channels, dtype=self.dtype, name='style_1')(style))
        return nn.Dense(self.style_channels, dtype=self.dtype, name='style_2')(style)

    def base_map(self, tokens):
        """The base map [B, base_size, base_size, base_channels]: predicted (token-to-plane) or learned."""
        side, channels = self.base_size, self.base_channels
        if not self.token_to_plane:
            constant = self.param('base_constant', nn.initializers.normal(1.0), (side, side, channels), jnp.float32)
            return jnp.broadcast_to(constant.astype(self.dtype), (tokens.shape[0], side, side, channels))
        x = TextMixer(self.mixer_width, self.mixer_heads, dtype=self.dtype, name='plane_mixer')(tokens)
        x = nn.Dense(side * side * channels, dtype=self.dtype, name='plane_text')(x)
        return x.reshape(-1, side, side, channels)

    def middle(self, x, style, tokens):
        """Residual block, transformer, residual block at the base resolution."""
        channels, groups = self.channels[0], self.groups[0]
        x = ResidualBlock(channels, groups, dtype=self.dtype, name='mid_1')(x, style)
        x = ImageTransformer(self.mid_heads, groups, self.cross_attention, dtype=self.dtype, name='mid_attention')(x, tokens)
        return ResidualBlock(channels, groups, dtype=self.dtype, name='mid_2')(x, style)


def check(section) -> None:
    """Raises UsageError for a `decoder` section whose numbers do not fit each other."""
    channels, heads, groups = section.channels, section.heads, section.groups
    for name in ('heads', 'groups'):
        if len(section[name]) != len(channels):
            raise UsageError(
                f'decoder.{name}={section[name]} has {len(section[name])} values, decoder.channels={channels} has '
                f'{len(channels)}: give one for each level.'
            )
    for k, width in enumerate(channels):
        for place in {max(k - 1, 0), k}:  # a level's norms see its own channels and those that enter
            divides(f'decoder.groups[{k}]', groups[k], f'decoder.channels[{place}]', channels[place])
        if heads[k]:
            divides(f'decoder.heads[{k}]', heads[k], f'decoder.channels[{k}]', width)
    divides('decoder.mid_heads', section.mid_heads, 'decoder.channels[0]', channels[0])
    divides('decoder.mixer_heads', section.mixer_heads, 'decoder.mixer_width', section.mixer_width)
    divides('decoder.out_groups', section.out_groups, f'decoder.channels[{len(channels) - 1}]', channels[-1])
    if section.out_channels % 3:
        near = max(3, round(section.out_channels / 3) * 3)
        raise UsageError(
            f'decoder.out_channels={section.out_channels}: wanted a multiple of 3, for three planes. '
            f'Nearest: decoder.out_channels={near}.'
        )


RELEASED = dict(  # the sizes of the released code; distil them into a config, never change them here
    channels=(320, 320, 160, 80, 80, 40),
    heads=(0, 20, 10, 5, 0, 0),
    groups=(8, 8, 8, 8, 4, 2),
    layers=13,
    mid_heads=20,
    base_size=4,
    base_channels=512,
    mixer_width=192,
    mixer_heads=8,
    style_width=768,
    style_channels=320,
    out_channels=96,
    out_groups=4,
)


def parameter_groups(params: dict) -> dict[str, int]:
    """Parameter counts of a decoder: each stage, `token_to_plane`, `style`, and `trunk` (all but the two text branches)."""

    def total(*prefixes):
        kept = {name: leaf for name, leaf in params.items() if name.startswith(prefixes)}
        return sum(leaf.size for leaf in jax.tree.leaves(kept))

    counts = {name: total(name) for name in params if name.startswith('stage_')}
    counts['token_to_plane'] = total('plane_', 'base_constant')
    counts['style'] = total('style_mixer', 'style_text')
    counts['total'] = sum(leaf.size for leaf in jax.tree.leaves(params))
    counts['trunk'] = counts['total'] - counts['token_to_plane'] - counts['style']
    return counts
