"""The text-conditioned UNet of Stable Diffusion 1.5 and 2.1, and any smaller one with the same configuration keys.

`UNet.from_config` reads the config.json of a released folder; parameter names follow its weights (t3d.nets.unet_blocks).
Noisy latents, a diffusion time and text features go in; what the schedule's prediction type says (noise, v, x0) comes out.
Source: arXiv 2112.10752, Sec. 3.3 and App. E; layouts and epsilons of the released files.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from t3d.core import spread
from t3d.core.errors import UsageError
from t3d.core.typing import Array, Bool, Float, PyTree, Shaped, typechecked
from t3d.nets import configs, flash_attention
from t3d.nets.unet_blocks import DownBlock, Masked, Options, UpBlock, conv3, group_norm, residual, transformer

ATTENTION = {'CrossAttnDownBlock2D': True, 'DownBlock2D': False, 'CrossAttnUpBlock2D': True, 'UpBlock2D': False}
FIXED = {  # keys of config.json that t3d reads with these values only, the first is the one to name
    'center_input_sample': (False,),
    'mid_block_type': ('UNetMidBlock2DCrossAttn',),
    'only_cross_attention': (False,),
    'mid_block_only_cross_attention': (None, False),
    'mid_block_scale_factor': (1,),
    'dropout': (0.0,),
    'act_fn': ('silu', 'swish'),
    'transformer_layers_per_block': (1,),
    'reverse_transformer_layers_per_block': (None,),
    'encoder_hid_dim': (None,),
    'encoder_hid_dim_type': (None,),
    'num_attention_heads': (None,),
    'dual_cross_attention': (False,),
    'class_embed_type': (None,),
    'addition_embed_type': (None,),
    'addition_time_embed_dim': (None,),
    'num_class_embeds': (None,),
    'resnet_time_scale_shift': ('default',),
    'resnet_skip_time_act': (False,),
    'resnet_out_scale_factor': (1,),
    'time_embedding_type': ('positional',),
    'time_embedding_dim': (None,),
    'time_embedding_act_fn': (None,),
    'timestep_post_act': (None,),
    'time_cond_proj_dim': (None,),
    'conv_in_kernel': (3,),
    'conv_out_kernel': (3,),
    'projection_class_embeddings_input_dim': (None,),
    'attention_type': ('default',),
    'class_embeddings_concat': (False,),
    'cross_attention_norm': (None,),
}
IGNORED = ('sample_size', 'addition_embed_type_num_heads')
INWARD, OUTWARD = r'/(to_q|to_k|to_v|proj)/kernel$', r'/(to_out_0|net_2)/kernel$'
SHARDING = (  # proj_in and proj_out, matrices or convolutions by layout, go by the fallback rule
    (INWARD, P('fsdp', 'tensor')),
    (OUTWARD, P('tensor', 'fsdp')),
    (r'resnets_\d+/conv1/kernel$', P(None, None, 'fsdp', 'tensor')),
    (r'resnets_\d+/conv2/kernel$', P(None, None, 'tensor', 'fsdp')),
    (r'resnets_\d+/time_emb_proj/kernel$', P('fsdp', 'tensor')),
    (r'time_embedding/linear_1/kernel$', P('fsdp', 'tensor')),
    (r'time_embedding/linear_2/kernel$', P('tensor', 'fsdp')),
)

Time = Shaped[Array, ''] | Shaped[Array, ' b'] | float | int  # one for all examples, or one for each


def timestep_embedding(t: jax.Array, width: int, *, cos_first: bool = True, shift: float = 0.0) -> Float[Array, 'b c']:
    """Cosines and sines of t [B] times 10000 ** (-i / (width / 2 - shift)), i < width / 2, in float32."""
    half = width // 2
    frequencies = np.exp(-np.log(10000.0) * np.arange(half, dtype=np.float32) / np.float32(half - shift), dtype=np.float32)
    phase = t.astype(jnp.float32)[:, None] * frequencies
    parts = (jnp.cos(phase), jnp.sin(phase)) if cos_first else (jnp.sin(phase), jnp.cos(phase))
    return jnp.concatenate(parts, axis=-1)


class TimeEmbedding(nn.Module):
    """Linear, SiLU, linear; float32."""

    width: int

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b c']) -> Float[Array, 'b e']:
        return nn.Dense(self.width, name='linear_2')(nn.silu(nn.Dense(self.width, name='linear_1')(x)))


class MidBlock(nn.Module):
    """ResNet, transformer, ResNet at the lowest resolution."""

    heads: int
    options: Options

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c'], temb: Float[Array, 'b e'], text: PyTree) -> Float[Array, 'b h w c']:
        channels, options = x.shape[-1], self.options
        x = residual(options)(channels, options, name='resnets_0')(x, temb)
        x = transformer(options)(self.heads, options, name='attentions_0')(x, text)
        return residual(options)(channels, options, name='resnets_1')(x, temb)


class UNet(nn.Module):
    """Denoiser of latents, conditioned on text.

    Attributes, named and defaulted as in config.json:
      attention_head_dim: the NUMBER of heads, for all levels or each; the released key is misnamed.
      use_linear_projection: True in 2.1; upcast_attention: True in the 768-pixel v model of 2.1.
    Attributes of ours:
      dtype: of products and convolutions; float32 are parameters, norm statistics, softmax and the time embedding.
      remat: what of ResNets and transformers is computed again in the backward pass (nets.remat), for all levels or each (the
        middle goes with the last).
      attention: 'xla', 'flash' for the kernel on TPUs (nets.flash_attention), or 'plain' for none of cuDNN on a GPU.
    """

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = ('CrossAttnDownBlock2D',) * 3 + ('DownBlock2D',)
    up_block_types: tuple[str, ...] = ('UpBlock2D',) + ('CrossAttnUpBlock2D',) * 3
    layers_per_block: int | tuple[int, ...] = 2
    attention_head_dim: int | tuple[int, ...] = 8
    cross_attention_dim: int = 1280
    use_linear_projection: bool = False
    upcast_attention: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    downsample_padding: int = 1
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    dtype: jnp.dtype = jnp.float32
    remat: bool | str | tuple[bool | str, ...] = False
    attention: str = 'xla'

    @classmethod
    def from_config(cls, config: Mapping, **ours) -> 'UNet':
        """The module of a diffusers config.json; `ours` are dtype and remat.

        Raises: UsageError for a key that t3d does not know, or a value of one that it does not implement.
        """
        unet = cls(**configs.fields(cls, config, FIXED, IGNORED), **ours)
        unet.check()
        return unet

    def check(self) -> None:
        """Raises UsageError if the attributes do not fit each other."""
        levels = len(self.block_out_channels)
        for name in ('down_block_types', 'up_block_types'):
            kinds, known = getattr(self, name), [kind for kind in ATTENTION if name[:2].title() in kind]
            if len(kinds) != levels:
                raise UsageError(f'{name} has {len(kinds)} entries: the {levels} levels of block_out_channels want {levels}.')
            for kind in kinds:
                if kind not in known:
                    raise UsageError(f'{name} has {kind!r}: t3d implements {" and ".join(known)}.')
        flash_attention.check(self.attention)
        configs.refuse_zero(self, 'in_channels', 'out_channels', 'layers_per_block', 'attention_head_dim', 'norm_num_groups')
        configs.refuse_lists(self, 'in_channels', 'out_channels', 'cross_attention_dim', 'norm_num_groups', 'norm_eps')
        for name in ('layers_per_block', 'attention_head_dim', 'remat'):
            if isinstance(getattr(self, name), tuple) and len(getattr(self, name)) != levels:
                raise UsageError(f'{name}={getattr(self, name)}: give one value, or {levels}, one for each level.')
        for channels, heads in zip(self.block_out_channels, self.per_level('attention_head_dim'), strict=True):
            if channels % self.norm_num_groups or channels % heads or channels % 2:
                raise UsageError(
                    f'block_out_channels has {channels}: wanted an even multiple of norm_num_groups={self.norm_num_groups} and '
                    f'of the {heads} heads that attention_head_dim names.'
                )

    def per_level(self, name: str) -> tuple:
        """An attribute that is one value or one for each level, as the latter."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    def options_of(self, level: int) -> Options:
        """What the blocks of a level share; the middle is of the last one."""
        return self.options(self.per_level('remat')[level])

    def options(self, remat: bool | str) -> Options:
        """`options_of` a level that is computed again in the backward pass, or not."""
        return Options(
            groups=self.norm_num_groups,
            epsilon=self.norm_eps,
            linear=self.use_linear_projection,
            upcast=self.upcast_attention,
            attention=self.attention,
            padding=self.downsample_padding,
            remat=remat,
            dtype=self.dtype,
        )

    @nn.compact
    @typechecked
    def __call__(
        self,
        latents: Float[Array, 'b h w c'],
        t: Time,
        text: Float[Array, 'b n d'],
        embedding: Float[Array, 'b e'] | None = None,
        mask: Bool[Array, 'b n'] | None = None,
    ) -> Float[Array, 'b h w o']:
        """Args:
          latents: noisy, at the schedule's scale; odd sides are rounded up on the way down and cut on the way up.
          t: diffusion time, scalar or [B], 0 to 999 in the released models; may be fractional.
          text: features [B, N, cross_attention_dim] of the text tower.
          embedding: [B, 4 * block_out_channels[0]], added to the time embedding (a camera, say).
          mask: [B, N] bool, True for the tokens that count; None for all, as the released models have it.
        Returns: [B, H, W, out_channels], float32.
        """
        self.check_call(latents, text)
        temb = self.temb(t, latents.shape[0], embedding)
        latents, text = spread.rows(latents), spread.rows(text)
        return self.denoise(latents, temb, text.astype(self.dtype) if mask is None else Masked(text.astype(self.dtype), mask))

    def denoise(self, latents, temb, text):
        """The pass through all blocks; `text` is whatever their transformers read."""
        channels, heads = self.block_out_channels, self.per_level('attention_head_dim')
        layers, levels = self.per_level('layers_per_block'), range(len(channels))
        x = conv3(channels[0], self.dtype, 'conv_in')(latents)
        skips = (x,)
        for k in levels:
            count = heads[k] if ATTENTION[self.down_block_types[k]] else 0
            block = DownBlock(channels[k], layers[k], count, k == levels[-1], self.options_of(k), name=f'down_blocks_{k}')
            x, new = block(x, temb, text)
            skips += new
        x = MidBlock(heads[-1], self.options_of(levels[-1]), name='mid_block')(x, temb, text)
        for k in levels:
            level = levels[-1] - k
            count = heads[level] if ATTENTION[self.up_block_types[k]] else 0
            depth = layers[level] + 1
            skips, own = skips[:-depth], skips[-depth:]
            block = UpBlock(channels[level], depth, count, level == 0, self.options_of(level), name=f'up_blocks_{k}')
            x = block(x, own, temb, text, skips[-1].shape[1:3] if skips else None)
        x = nn.silu(group_norm(self.options(False), self.norm_eps, 'conv_norm_out')(x))
        return conv3(self.out_channels, self.dtype, 'conv_out')(x).astype(jnp.float32)

    def temb(self, t, batch: int, embedding):
        """SiLU of the time embedding [B, 4 * C] and what is added to it: all ResNets start from it."""
        width = self.block_out_channels[0]
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), (batch,))
        waves = timestep_embedding(t, width, cos_first=self.flip_sin_to_cos, shift=self.freq_shift)
        temb = TimeEmbedding(4 * width, name='time_embedding')(waves)
        return nn.silu(temb if embedding is None else temb + embedding.astype(jnp.float32))

    def check_call(self, latents, text) -> None:
        """Raises UsageError if the inputs are not of this network."""
        if latents.ndim != 4 or latents.shape[-1] != self.in_channels:
            raise UsageError(f'latents of shape {latents.shape}: wanted [B, H, W, {self.in_channels}].')
        if text.ndim != 3 or text.shape[0] != latents.shape[0] or text.shape[-1] != self.cross_attention_dim:
            raise UsageError(
                f'text of shape {text.shape}: wanted [{latents.shape[0]}, N, {self.cross_attention_dim}], the features of the '
                'text tower that belongs to this UNet (768 for Stable Diffusion 1.5, 1024 for 2.1).'
            )
