"""EG3D's networks as plain PyTorch modules with the names of its state dictionaries: the peer of t3d.nets.stylegan2.

Eager PyTorch, NCHW, unfused modulation, transposed convolutions for upsampling and depthwise ones for the filters; renderer and
decoder are those of torch_renderer. Written from the networks' published facts; the stored arrays of tests/golden test it
(tests/test_convert_eg3d.py) before it tests anything. Nothing of t3d's networks is imported.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

TAPS, ROOT2 = (1.0, 3.0, 3.0, 1.0), math.sqrt(2.0)


def fir() -> torch.Tensor:
    """[4, 4], sums to 1."""
    taps = torch.tensor(TAPS) / sum(TAPS)
    return torch.outer(taps, taps)


def filtered(x, kernel, pad, gain=1.0, stride=1):
    """Each channel padded by (before, after) on both axes and correlated with gain * kernel."""
    x = F.pad(x, (*pad, *pad))
    kernel = (gain * kernel)[None, None].expand(x.shape[1], 1, -1, -1)
    return F.conv2d(x, kernel, stride=stride, groups=x.shape[1])


def upsample2(x, kernel):
    batch, channels, height, width = x.shape
    zeros = x.new_zeros(batch, channels, height, 2, width, 2)
    zeros[:, :, :, 0, :, 0] = x
    return filtered(zeros.reshape(batch, channels, 2 * height, 2 * width), kernel, (2, 1), 4.0)


def resize(x, size):
    if x.shape[-1] == size:
        return x
    return F.interpolate(x, size=(size, size), mode='bilinear', align_corners=False, antialias=True)


def activate(x, gain=ROOT2, clamp=None):
    x = F.leaky_relu(x, 0.2) * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def normalise(x):
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class Linear(nn.Module):
    def __init__(self, inputs, outputs, multiplier=1.0, bias=0.0, active=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.multiplier, self.active = multiplier, active

    def forward(self, x):
        x = F.linear(x, self.weight * (self.multiplier / math.sqrt(self.weight.shape[1])), self.bias * self.multiplier)
        return activate(x) if self.active else x


class Mapping(nn.Module):
    """w_avg is there for generators only, whose z_dim is not 0."""

    def __init__(self, z_dim, c_dim, w_dim, layers, multiplier=0.01):
        super().__init__()
        self.z_dim, self.c_dim, self.layers = z_dim, c_dim, layers
        if c_dim:
            self.embed = Linear(c_dim, w_dim)
        for i in range(layers):
            inputs = w_dim if i else (w_dim if c_dim else 0) + z_dim
            setattr(self, f'fc{i}', Linear(inputs, w_dim, multiplier, active=True))
        if z_dim:
            self.register_buffer('w_avg', torch.zeros(w_dim))

    def forward(self, z, c):
        parts = ([normalise(z)] if self.z_dim else []) + ([normalise(self.embed(c))] if self.c_dim else [])
        x = torch.cat(parts, 1)
        for i in range(self.layers):
            x = getattr(self, f'fc{i}')(x)
        return x


class Ones(nn.Module):
    """In place of an affine layer: the style 1 whatever w is."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, w):
        return w.new_ones(1, self.outputs)


def affine(w_dim, outputs):
    return Linear(w_dim, outputs, bias=1.0) if w_dim else Ones(outputs)


def modulated_conv(x, weight, styles, kernel=None, demodulate=True):
    """`kernel`: the filter behind a transposed convolution to twice the size; None for a plain convolution."""
    out = x * styles[:, :, None, None]
    if kernel is None:
        out = F.conv2d(out, weight, padding=weight.shape[-1] // 2)
    else:
        out = filtered(F.conv_transpose2d(out, weight.transpose(0, 1), stride=2), kernel, (1, 1), 4.0)
    if not demodulate:
        return out
    return out * torch.rsqrt(styles.square() @ weight.square().sum((2, 3)).T + 1e-8)[:, :, None, None]


class SynthesisLayer(nn.Module):
    def __init__(self, inputs, outputs, w_dim, resolution, up=False):
        super().__init__()
        self.affine = affine(w_dim, inputs)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer('resample_filter', fir())
        self.register_buffer('noise_const', torch.randn(resolution, resolution))
        self.up = up

    def forward(self, x, w, noise):
        x = modulated_conv(x, self.weight, self.affine(w), self.resample_filter if self.up else None)
        if noise == 'const':
            x = x + self.noise_const * self.noise_strength
        elif noise == 'random':
            x = x + torch.randn_like(x[:, :1]) * self.noise_strength
        return activate(x + self.bias[:, None, None])


class ToRGB(nn.Module):
    def __init__(self, inputs, outputs, w_dim):
        super().__init__()
        self.affine = affine(w_dim, inputs)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x, w):
        styles = self.affine(w) / math.sqrt(self.weight.shape[1])
        return modulated_conv(x, self.weight, styles, demodulate=False) + self.bias[:, None, None]


class SynthesisBlock(nn.Module):
    """inputs 0: the first block, from a constant. up False: EG3D's block without upsampling."""

    def __init__(self, inputs, outputs, w_dim, resolution, image_channels, up=True):
        super().__init__()
        self.inputs, self.up = inputs, up
        self.register_buffer('resample_filter', fir())
        if inputs:
            self.conv0 = SynthesisLayer(inputs, outputs, w_dim, resolution, up)
        else:
            self.const = nn.Parameter(torch.randn(outputs, resolution, resolution))
        self.conv1 = SynthesisLayer(outputs, outputs, w_dim, resolution)
        self.torgb = ToRGB(outputs, image_channels, w_dim)

    def forward(self, x, image, ws, noise):
        """ws: a list of the styles of this block's layers."""
        ws = iter(ws)
        if self.inputs:
            x = self.conv0(x, next(ws), noise)
        else:
            x = self.const.expand(x.shape[0], -1, -1, -1)
        x = self.conv1(x, next(ws), noise)
        out = self.torgb(x, next(ws))
        if image is not None:
            out = (upsample2(image, self.resample_filter) if self.up else image) + out
        return x, out


class Synthesis(nn.Module):
    def __init__(self, resolution, channels_out, w_dim, base, most):
        super().__init__()
        self.levels = [2**i for i in range(2, int(math.log2(resolution)) + 1)]
        width = lambda size: min(base // size, most)
        for size in self.levels:
            inputs = width(size // 2) if size > 4 else 0
            setattr(self, f'b{size}', SynthesisBlock(inputs, width(size), w_dim, size, channels_out))

    def forward(self, ws, noise='const'):
        """ws [B, 2 log2(R) - 2, W]."""
        x, image, start = ws, None, 0
        for size in self.levels:
            count = 1 if size == 4 else 2
            x, image = getattr(self, f'b{size}')(x, image, ws[:, start : start + count + 1].unbind(1), noise)
            start += count
        return image


class SuperResolution(nn.Module):
    def __init__(self, input_size, in_channels, channels, ups, w_dim):
        super().__init__()
        self.input_size, size = input_size, input_size
        for i, (outputs, up) in enumerate(zip(channels, ups)):
            size = 2 * size if up else size
            setattr(self, f'block{i}', SynthesisBlock(in_channels, outputs, w_dim, size, 3, up))
            in_channels = outputs

    def forward(self, rgb, x, w, noise='none'):
        rgb, x = resize(rgb, self.input_size), resize(x, self.input_size)
        for block in (self.block0, self.block1):
            x, rgb = block(x, rgb, [w, w, w], noise)
        return rgb


class Decoder(nn.Module):
    """Linear, softplus, linear; `net.0` and `net.2`."""

    def __init__(self, channels, hidden, outputs):
        super().__init__()
        self.net = nn.Sequential(Linear(channels, hidden), nn.Softplus(), Linear(hidden, 1 + outputs))

    def weights(self):
        """For torch_renderer.decode, which uses weights as they are."""
        first, last = self.net[0], self.net[2]
        scaled = lambda layer: layer.weight.T / math.sqrt(layer.weight.shape[1])
        return {
            'hidden_kernel': scaled(first),
            'hidden_bias': first.bias,
            'out_kernel': scaled(last),
            'out_bias': last.bias,
        }


class Backbone(nn.Module):
    def __init__(self, shape):
        super().__init__()
        label = 25 if shape.get('pose', True) else 0
        self.mapping = Mapping(shape['z'], label, shape['w'], shape['mapping_layers'])
        channels = 3 * shape['channels']
        self.synthesis = Synthesis(shape['planes'], channels, shape['w'], shape['channel_base'], shape['channel_max'])


class Generator(nn.Module):
    """The whole generator of `shape`: z, w, mapping_layers, planes (side), channels (of a plane), channel_base, channel_max,
    hidden, features, sr_input, sr_channels, sr_ups; optional pose (True) and sr_styled (True)."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.backbone = Backbone(shape)
        self.superresolution = SuperResolution(
            shape['sr_input'],
            shape['features'],
            shape['sr_channels'],
            shape['sr_ups'],
            shape['w'] * shape.get('sr_styled', True),
        )
        self.decoder = Decoder(shape['channels'], shape['hidden'], shape['features'])

    def planes(self, w, noise='const'):
        """Planes [B, 3, C, R, R] of styles w [B, W], the same for all layers."""
        count = 2 * int(math.log2(self.shape['planes'])) - 2
        out = self.backbone.synthesis(w[:, None].expand(-1, count, -1), noise)
        return out.reshape(out.shape[0], 3, -1, *out.shape[2:])


class Conv2d(nn.Module):
    def __init__(self, inputs, outputs, size, down=False, active=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        if active:
            self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer('resample_filter', fir())
        self.down, self.active = down, active

    def forward(self, x, gain=1.0):
        size = self.weight.shape[-1]
        weight = self.weight / math.sqrt(self.weight[0].numel())
        if not self.down:
            x = F.conv2d(x, weight, padding=size // 2)
        elif size == 1:
            x = F.conv2d(filtered(x, self.resample_filter, (1, 1), stride=2), weight)
        else:
            x = F.conv2d(filtered(x, self.resample_filter, (2, 2)), weight, stride=2)
        return activate(x + self.bias[:, None, None], gain * ROOT2) if self.active else x * gain


class DiscriminatorBlock(nn.Module):
    def __init__(self, image_channels, channels, outputs):
        super().__init__()
        self.register_buffer('resample_filter', fir())
        if image_channels:
            self.fromrgb = Conv2d(image_channels, channels, 1)
        self.conv0 = Conv2d(channels, channels, 3)
        self.conv1 = Conv2d(channels, outputs, 3, down=True)
        self.skip = Conv2d(channels, outputs, 1, down=True, active=False)

    def forward(self, x):
        x = self.fromrgb(x) if hasattr(self, 'fromrgb') else x
        return self.skip(x, math.sqrt(0.5)) + self.conv1(self.conv0(x), math.sqrt(0.5))


def minibatch_std(x, group=4):
    """One more channel. Sample i is grouped with i + B / G, i + 2 B / G, ..."""
    group = min(group, x.shape[0])
    y = x.reshape(group, -1, *x.shape[1:])
    y = (y - y.mean(0)).square().mean(0).add(1e-8).sqrt().mean((1, 2, 3))  # [B / G]
    return torch.cat([x, y.repeat(group)[:, None, None, None].expand(-1, 1, *x.shape[2:])], 1)


class Epilogue(nn.Module):
    def __init__(self, channels, group):
        super().__init__()
        self.conv = Conv2d(channels + 1, channels, 3)
        self.fc = Linear(16 * channels, channels, active=True)
        self.out = Linear(channels, channels)
        self.group = group

    def forward(self, x, label):
        x = self.conv(minibatch_std(x, self.group))
        x = self.out(self.fc(x.flatten(1)))
        return (x * label).sum(1) / math.sqrt(x.shape[1])


class Discriminator(nn.Module):
    """EG3D's dual discriminator. The image [B, 3, S, S], raw [B, 3, s, s], the label [B, 25] to logits [B]."""

    def __init__(self, size, base, most, mapping_layers=8, group=4):
        super().__init__()
        self.register_buffer('resample_filter', fir())
        self.sizes, width = [2**i for i in range(int(math.log2(size)), 2, -1)], lambda size: min(base // size, most)
        for i, side in enumerate(self.sizes):
            setattr(self, f'b{side}', DiscriminatorBlock(0 if i else 6, width(side), width(side // 2)))
        self.b4 = Epilogue(width(4), group)
        self.mapping = Mapping(0, 25, width(4), mapping_layers)

    def forward(self, image, raw, c):
        x = torch.cat([image, resize(raw, image.shape[-1])], 1)
        for side in self.sizes:
            x = getattr(self, f'b{side}')(x)
        return self.b4(x, self.mapping(None, c))


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Noise on everything that starts at a constant: biases, noise strengths, w_avg."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if name.rpartition('.')[2] in ('bias', 'noise_strength', 'w_avg'):
            lr = 100.0 if 'mapping.fc' in name and name.endswith('bias') else 1.0
            value.add_(0.2 * lr * torch.randn(value.shape, generator=generator))
    return model
