"""Instant3D's conditional decoder and a view of its planes in plain eager PyTorch: the other half of `t3d bench decoder`.

Written from the definition of t3d.nets.text_decoder; of t3d nothing is imported but what torch_renderer does. As a program it
reads one JSON request a line (`weights` builds the networks, `run` times one pass, `save` writes its output) and answers with
one JSON line. Weights are functions of their names in our flattened tree.
"""

import json
import math
import os
import re
import sys
import time
import zlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import torch_renderer  # noqa: E402

CHUNK = {'cpu': 2**10, 'cuda': 2**14}  # rays at once; on a CPU the fastest of 2^7 to 2^14
LEAVES = {'kernel': 'weight', 'scale': 'weight'}
CONV, DENSE = (3, 2, 0, 1), (1, 0)  # ours [H, W, I, O] and [I, O] to torch's O, I, ...


def draw(name: str, shape) -> np.ndarray:
    """The float32 values of a leaf: kernels by fan-in, biases 0.1, norm scales 1 +- 0.3, else N(0, 1)."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    leaf = name.rpartition('/')[2]
    if leaf == 'kernel':
        return values * np.float32(math.prod(shape['/rest/' in name : -1]) ** -0.5)  # 'rest': one kernel for each layer
    return {'bias': 0.1 * values, 'scale': 1 + 0.3 * values}.get(leaf, values)


def state(leaves: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The state of a Decoder from the leaves of ours; layers that ours scans over lie in one array."""
    out = {}
    for name, value in leaves.items():
        *modules, leaf = re.sub(r'^stage_(\d+)/first/', r'stages/\1/layers/0/', name).split('/')
        rest = re.fullmatch(r'stage_(\d+)/rest/(.*)', '/'.join(modules))
        if rest:
            stage, path = rest.groups()
            each = [(f'stages/{stage}/layers/{i + 1}/{path}', part) for i, part in enumerate(value)]
        else:
            each = [(re.sub(r'^stage_(\d+)', r'stages/\1', '/'.join(modules)), value)]
        for path, part in each:
            if leaf == 'kernel':
                part = part.transpose(CONV if part.ndim == 4 else DENSE)
            key = '.'.join([*path.split('/'), LEAVES.get(leaf, leaf)])
            out[key] = torch.from_numpy(np.array(part, order='C'))
    return out


class AdaptiveGroupNorm(nn.Module):
    def __init__(self, channels: int, groups: int, style: int):
        super().__init__()
        self.affine, self.groups = nn.Linear(style, 2 * channels), groups

    def forward(self, x, style):
        scale, shift = self.affine(style)[:, :, None, None].chunk(2, 1)
        return F.group_norm(x, self.groups, eps=1e-5) * (1.0 + scale) + shift


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, channels: int, groups: int, style: int):
        super().__init__()
        self.norm_1, self.norm_2 = AdaptiveGroupNorm(inputs, groups, style), AdaptiveGroupNorm(channels, groups, style)
        self.conv_1, self.conv_2 = nn.Conv2d(inputs, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, channels, 1) if inputs != channels else nn.Identity()

    def forward(self, x, style):
        h = self.conv_1(F.silu(self.norm_1(x, style)))
        return self.shortcut(x) + self.conv_2(F.silu(self.norm_2(h, style)))


class Attention(nn.Module):
    def __init__(self, heads: int, channels: int, context: int):
        super().__init__()
        self.query, self.heads = nn.Linear(channels, channels, bias=False), heads
        self.key, self.value = (nn.Linear(context, channels, bias=False) for _ in range(2))
        self.out = nn.Linear(channels, channels)

    def forward(self, x, context):
        split = lambda value: value.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, d]
        out = F.scaled_dot_product_attention(split(self.query(x)), split(self.key(context)), split(self.value(context)))
        return self.out(out.transpose(1, 2).flatten(2))


class GatedMLP(nn.ModuleDict):
    def __init__(self, channels: int):
        super().__init__({'in': nn.Linear(channels, 8 * channels), 'out': nn.Linear(4 * channels, channels)})

    def forward(self, x):
        value, gate = self['in'](x).chunk(2, -1)
        return self['out'](value * F.gelu(gate))


class ImageTransformer(nn.Module):
    def __init__(self, heads: int, groups: int, channels: int, context: int):
        super().__init__()
        self.norm, self.proj_in = nn.GroupNorm(groups, channels, eps=1e-6), nn.Linear(channels, channels)
        self.norm_self, self.norm_cross, self.norm_mlp = (nn.LayerNorm(channels, eps=1e-5) for _ in range(3))
        self.self_attention, self.cross_attention = Attention(heads, channels, channels), Attention(heads, channels, context)
        self.mlp, self.proj_out = GatedMLP(channels), nn.Linear(channels, channels)

    def forward(self, x, tokens):
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        own = self.norm_self(h)
        h = h + self.self_attention(own, own)
        h = h + self.cross_attention(self.norm_cross(h), tokens)
        h = h + self.mlp(self.norm_mlp(h))
        return x + self.proj_out(h).transpose(1, 2).unflatten(2, x.shape[2:])


class DistanceAttention(nn.Module):
    """Queries that are the keys too, logits of distances, a null key before them, no token attending to itself."""

    def __init__(self, heads: int, width: int):
        super().__init__()
        self.norm, self.heads = nn.RMSNorm(width, eps=1e-24), heads
        self.query_key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.null = nn.Parameter(torch.empty(2, heads, width // heads))

    def forward(self, x):
        x = self.norm(x)
        split = lambda value: value.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, d]
        null_key, null_value = self.null[:, None, :, None].expand(-1, len(x), -1, -1, -1)
        query, value = split(self.query_key(x)), torch.cat([null_value, split(self.value(x))], 2)
        key = torch.cat([null_key, query], 2)
        logits = -torch.cdist(query, key) * query.shape[-1] ** -0.5
        itself = torch.eye(x.shape[1] + 1, dtype=torch.bool, device=x.device)[1:]
        weights = logits.masked_fill(itself, -1e2).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).flatten(2))


class TextMixer(nn.Module):
    def __init__(self, width: int, heads: int, context: int):
        super().__init__()
        self.proj_in, self.attention = nn.Linear(context, width), DistanceAttention(heads, width)
        self.norm_mlp, self.norm_out = (nn.RMSNorm(width, eps=1e-24) for _ in range(2))
        self.mlp_in, self.mlp_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens):
        x = self.proj_in(tokens)
        x = x + self.attention(x)
        x = x + self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x))))
        return self.norm_out(x).flatten(1)


class DecoderLayer(nn.Module):
    def __init__(self, inputs: int, channels: int, groups: int, heads: int, style: int, context: int):
        super().__init__()
        self.block = ResidualBlock(inputs, channels, groups, style)
        self.transformer = ImageTransformer(heads, groups, channels, context) if heads else None

    def forward(self, x, style, tokens):
        x = self.block(x, style)
        return x if self.transformer is None else self.transformer(x, tokens)


class DecoderStage(nn.Module):
    def __init__(self, inputs: int, channels: int, layers: int, *rest):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(channels if k else inputs, channels, *rest) for k in range(layers))
        self.upsample = nn.ModuleDict({'conv': nn.Conv2d(channels, channels, 3, padding=1)})

    def forward(self, x, style, tokens):
        for layer in self.layers:
            x = layer(x, style, tokens)
        return self.upsample['conv'](F.interpolate(x, scale_factor=2, mode='nearest'))


class Decoder(nn.Module):
    """Text [B, N, D] and noise [B, Z] to planes [B, 3, C, R, R]; `options` are a config's `decoder`, all mechanisms on."""

    def __init__(self, options: dict, count: int, context: int):
        super().__init__()
        channels, groups, style = options['channels'], options['groups'], options['style_channels']
        mixer, first, side = (options['mixer_width'], options['mixer_heads'], context), channels[0], options['base_size']
        self.base = (options['base_channels'], side, side)
        self.style_mixer, self.plane_mixer = TextMixer(*mixer), TextMixer(*mixer)
        self.style_text = nn.Linear(count * mixer[0], options['style_width'])
        self.style_1, self.style_2 = nn.Linear(2 * options['style_width'], style), nn.Linear(style, style)
        self.plane_text = nn.Linear(count * mixer[0], math.prod(self.base))
        self.conv_in = nn.Conv2d(self.base[0], first, 3, padding=1)
        self.mid_1, self.mid_2 = (ResidualBlock(first, first, groups[0], style) for _ in range(2))
        self.mid_attention = ImageTransformer(options['mid_heads'], groups[0], first, context)
        sizes = zip([first, *channels], channels, groups, options['heads'])
        self.stages = nn.ModuleList(DecoderStage(a, b, options['layers'], g, h, style, context) for a, b, g, h in sizes)
        self.norm_out = nn.GroupNorm(options['out_groups'], channels[-1], eps=1e-5)
        self.conv_out = nn.Conv2d(channels[-1], options['out_channels'], 3, padding=1)

    def forward(self, tokens, noise):
        style = torch.cat([self.style_text(self.style_mixer(tokens)), noise], -1)
        style = self.style_2(F.silu(self.style_1(style)))
        channels, height, width = self.base
        x = self.plane_text(self.plane_mixer(tokens)).reshape(-1, height, width, channels).permute(0, 3, 1, 2)
        x = self.mid_2(self.mid_attention(self.mid_1(self.conv_in(x), style), tokens), style)
        for stage in self.stages:
            x = stage(x, style, tokens)
        return self.conv_out(F.silu(self.norm_out(x))).unflatten(1, (3, -1))


def view(field: dict, planes, origins, directions, options: dict):
    """Colours [B, R, 3] over the background of rays [B, R, 3], some at a time.

    Args:
      field: the point MLP's {'hidden/kernel', 'hidden/bias', 'out/kernel', 'out/bias'}.
      planes: [B, 3, C, R, R] in the box [-1, 1]^3.
      options: a config's `render` and `field` sections in one.
    """
    parts = zip(*(rays.split(CHUNK[rays.device.type], 1) for rays in (origins, directions)))
    return torch.cat([_view(field, planes, *part, options) for part in parts], 1)


def _view(field, planes, origins, directions, options):
    a, b = (-1.0 - origins) / directions, (1.0 - origins) / directions
    near, far = torch.minimum(a, b).amax(-1, keepdim=True), torch.maximum(a, b).amin(-1, keepdim=True)
    near, far = (torch.where(near <= far, limit, 0.0) for limit in (near, far))  # [B, R, 1]
    samples, extra, alpha = options['samples_shown'], options['importance'], options['alpha']

    def query(depths):
        points = origins[:, :, None] + depths * directions[:, :, None]
        features = torch_renderer.sample_planes(planes, points.flatten(1, 2), 1.0, options['plane_axes'])
        hidden = F.softplus(features @ field['hidden/kernel'] + field['hidden/bias'])
        out = (hidden @ field['out/kernel'] + field['out/bias']).unflatten(1, depths.shape[1:3])
        blob = options['blob'] * (1.0 - points.norm(dim=-1, keepdim=True) / 0.6)
        return out[..., :1] + options['density_bias'] + blob, torch.sigmoid(alpha * out[..., 1:]) / alpha

    def march(colours, densities, depths):
        densities = options['density_scale'] * F.softplus(torch_renderer.halfway(densities))
        return torch_renderer.composite(colours, densities, depths)

    u_fine = ((torch.arange(extra, device=near.device) + 0.5) / max(extra, 1)).expand(*near.shape[:2], extra)
    drawn = near.new_zeros(*near.shape[:2], samples), u_fine
    colour, _, weights = torch_renderer.two_passes(query, march, *drawn, near, far)
    return colour + (1.0 - weights.sum(-1, keepdim=True)) * options['background']


class Work:
    """The networks of a request with its inputs; `run` gives arrays in the layout of ours."""

    def __init__(self, request: dict):
        device = 'cuda' if request['device'] in ('gpu', 'cuda') else 'cpu'
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not request['exact']  # as JAX rounds
        with np.load(request['inputs']) as file:
            self.inputs = {name: torch.from_numpy(file[name]).to(device) for name in file.files}
        leaves = {name: draw(name, shape) for name, shape in request['weights'].items()}
        part = lambda which: {name.partition('/')[2]: value for name, value in leaves.items() if name.startswith(f'{which}/')}
        with torch.device('meta'):
            self.decoder = Decoder(request['decoder'], *self.inputs['tokens'].shape[1:])
        self.decoder.load_state_dict(state(part('decoder')), assign=True)
        self.decoder = self.decoder.to(device).eval()
        self.field = {name: torch.from_numpy(value).to(device) for name, value in part('field').items()}
        self.options, self.planes = {**request['render'], **request['field']}, None

    @torch.inference_mode()
    def run(self, name: str):
        """'planes' [1, 3, R, R, C], or of the planes that were made last the 'view' [1, H, W, 3]."""
        if name == 'planes' or self.planes is None:
            self.planes = self.decoder(self.inputs['tokens'], self.inputs['noise'])
        if name == 'planes':
            return self.planes.permute(0, 1, 3, 4, 2)
        origins, directions = (self.inputs[key].flatten(1, 2) for key in ('origins', 'directions'))
        return view(self.field, self.planes, origins, directions, self.options).unflatten(1, self.inputs['origins'].shape[1:3])


def main():
    threads, work = len(os.sched_getaffinity(0)), None
    for line in sys.stdin:
        request = json.loads(line)
        if 'weights' in request:
            work = Work(request)
            where = work.inputs['tokens'].device.type
            answer = {'is': f'torch {torch.__version__}, {where}, float32, best of 1 and {threads} threads'}
        else:
            torch.set_num_threads(request.get('threads', threads))
            start = time.perf_counter()
            out = work.run(request['run'])
            if out.device.type == 'cuda':
                torch.cuda.synchronize()
            answer = {'ms': 1e3 * (time.perf_counter() - start)}
            if 'save' in request:
                np.save(request['save'], out.cpu().numpy())
        print(json.dumps(answer), flush=True)


if __name__ == '__main__':
    main()
