"""Stable Diffusion's UNet in PyTorch alone: a peer for machines that have no diffusers, and one that torch.compile takes whole.

Nothing of t3d is imported. Modules have the names of the released files, so that weights are functions of the same names as
those of diffusers (torch_unet.draw). Maps are [B, C, H, W]. Source: arXiv 2112.10752, Sec. 3.3 and App. E.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Attention of x [B, N, C] over `context` [B, M, D]; without one over itself, `views` rows together."""

    def __init__(self, channels: int, context: int, heads: int, views: int = 1, upcast: bool = False):
        super().__init__()
        self.heads, self.views, self.upcast = heads, views, upcast
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k, self.to_v = (nn.Linear(context, channels, bias=False) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x, context=None):
        shape = x.shape
        if context is None:
            context = x = x.reshape(shape[0] // self.views, self.views * shape[1], shape[2])
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        parts = [split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context))]
        if self.upcast:
            parts = [part.float() for part in parts]
        out = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2).to(x.dtype)
        return self.to_out[0](out).reshape(shape)


class Gated(nn.Module):
    """Linear to twice `width`, the first half times GELU of the second."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * width)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.ModuleList([Gated(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, x):
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    def __init__(self, channels: int, heads: int, config: dict, views: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        upcast = config.get('upcast_attention', False)
        self.attn1 = Attention(channels, channels, heads, views, upcast)
        self.attn2 = Attention(channels, config['cross_attention_dim'], heads, upcast=upcast)
        self.ff = FeedForward(channels)

    def forward(self, x, text):
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """A transformer block over the positions of a map, between projections, added to the map."""

    def __init__(self, channels: int, heads: int, config: dict, views: int):
        super().__init__()
        self.norm = nn.GroupNorm(config['norm_num_groups'], channels, eps=1e-6)
        # Matrices and 1x1 convolutions are the same products of positions; only the shapes of their weights differ.
        linear = config.get('use_linear_projection', False)
        projection = (lambda: nn.Linear(channels, channels)) if linear else (lambda: nn.Conv2d(channels, channels, 1))
        self.linear, self.proj_in, self.proj_out = linear, projection(), projection()
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, heads, config, views)])

    def forward(self, x, text):
        height = x.shape[2]
        tokens = lambda y: y.flatten(2).transpose(1, 2)
        maps = lambda y: y.transpose(1, 2).unflatten(2, (height, -1))
        h = self.norm(x)
        h = self.proj_in(tokens(h)) if self.linear else tokens(self.proj_in(h))
        h = self.transformer_blocks[0](h, text)
        return x + (maps(self.proj_out(h)) if self.linear else self.proj_out(maps(h)))


class Resnet(nn.Module):
    def __init__(self, inputs: int, outputs: int, config: dict):
        super().__init__()
        groups, eps = config['norm_num_groups'], config.get('norm_eps', 1e-5)
        self.norm1, self.norm2 = nn.GroupNorm(groups, inputs, eps), nn.GroupNorm(groups, outputs, eps)
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(4 * config['block_out_channels'][0], outputs)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x, temb):
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(temb)[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Sampler(nn.Module):
    """The convolution between two levels: to half the size, or behind an enlargement to twice the size."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=1)

    def forward(self, x):
        return self.conv(x)


class Level(nn.Module):
    """ResNets of these widths, each with a transformer if `heads`."""

    def __init__(self, inputs: list[int], outputs: int, heads: int, config: dict, views: int):
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(width, outputs, config) for width in inputs])
        count = len(inputs) if heads else 0
        self.attentions = nn.ModuleList([Transformer(outputs, heads, config, views) for _ in range(count)])

    def layer(self, k: int, x, temb, text):
        x = self.resnets[k](x, temb)
        return self.attentions[k](x, text) if len(self.attentions) else x


class Middle(nn.Module):
    def __init__(self, channels: int, heads: int, config: dict, views: int):
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(channels, channels, config) for _ in range(2)])
        self.attentions = nn.ModuleList([Transformer(channels, heads, config, views)])

    def forward(self, x, temb, text):
        return self.resnets[1](self.attentions[0](self.resnets[0](x, temb), text), temb)


class PlainUNet(nn.Module):
    """The network of a config.json of Stable Diffusion 1.5, 2.1 or smaller ones: latents [B, C, H, W], t [B], text [B, N, D].

    views: rows that are views of one object, whose self attentions are over the positions of all of them.
    """

    def __init__(self, config: dict, views: int = 1):
        super().__init__()
        widths, layers = config['block_out_channels'], config['layers_per_block']
        heads = config['attention_head_dim']  # the number of heads, by the name that the released files give it
        heads = heads if isinstance(heads, list) else [heads] * len(widths)
        last = len(widths) - 1
        self.width, self.views = widths[0], views
        self.conv_in = nn.Conv2d(config['in_channels'], widths[0], 3, padding=1)
        self.time_embedding = nn.Sequential()
        self.time_embedding.add_module('linear_1', nn.Linear(widths[0], 4 * widths[0]))
        self.time_embedding.add_module('act', nn.SiLU())
        self.time_embedding.add_module('linear_2', nn.Linear(4 * widths[0], 4 * widths[0]))
        self.down_blocks, self.up_blocks, skips, width = nn.ModuleList(), nn.ModuleList(), [widths[0]], widths[0]
        for k, kind in enumerate(config['down_block_types']):
            block = Level([width] + [widths[k]] * (layers - 1), widths[k], heads[k] * ('Attn' in kind), config, views)
            block.downsamplers = nn.ModuleList([Sampler(widths[k], 2)] if k < last else [])
            skips += [widths[k]] * (layers + (k < last))
            width = widths[k]
            self.down_blocks.append(block)
        self.mid_block = Middle(width, heads[last], config, views)
        for k, kind in enumerate(config['up_block_types']):
            level, inputs = last - k, []
            for _ in range(layers + 1):
                inputs.append(width + skips.pop())
                width = widths[level]
            block = Level(inputs, width, heads[level] * ('Attn' in kind), config, views)
            block.upsamplers = nn.ModuleList([Sampler(width, 1)] if k < last else [])
            self.up_blocks.append(block)
        self.conv_norm_out = nn.GroupNorm(config['norm_num_groups'], widths[0], config.get('norm_eps', 1e-5))
        self.conv_out = nn.Conv2d(widths[0], config['out_channels'], 3, padding=1)

    def forward(self, latents, t, text):
        half = self.width // 2
        rates = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
        phase = t.float()[:, None] * rates
        temb = F.silu(self.time_embedding(torch.cat([phase.cos(), phase.sin()], -1).to(latents.dtype)))
        x = self.conv_in(latents)
        skips = [x]
        for block in self.down_blocks:
            for k in range(len(block.resnets)):
                x = block.layer(k, x, temb, text)
                skips.append(x)
            for sampler in block.downsamplers:
                x = sampler(x)
                skips.append(x)
        x = self.mid_block(x, temb, text)
        for block in self.up_blocks:
            for k in range(len(block.resnets)):
                x = block.layer(k, torch.cat([x, skips.pop()], 1), temb, text)
            for sampler in block.upsamplers:
                height, width = skips[-1].shape[2:]
                x = sampler(F.interpolate(x, scale_factor=2.0, mode='nearest')[:, :, :height, :width])
        return self.conv_out(F.silu(self.conv_norm_out(x)))
