"""The four training phases of EG3D in eager PyTorch: the other half of `t3d bench gan`.

As a program it reads one JSON request a line (`shape` builds networks and optimizers, `memory` and `run` name a phase) and
answers with one JSON line. Networks are those of torch_stylegan2, the renderer that of torch_renderer.
"""

import functools
import json
import math
import os
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import torch_renderer  # noqa: E402
import torch_stylegan2  # noqa: E402

from t3d.bench import memory  # noqa: E402

PHASES = ('generator', 'density', 'discriminator', 'r1')


def rays(label, size):
    """(origins, directions) [B, size^2, 3] of camera labels [B, 25]."""
    world, intrinsics = label[:, :16].reshape(-1, 4, 4), label[:, 16:].reshape(-1, 3, 3)
    centres = (torch.arange(size) + 0.5) / size
    v, u = torch.meshgrid(centres, centres, indexing='ij')
    get = lambda i, j: intrinsics[:, i, j, None, None]
    y = (v - get(1, 2)) / get(1, 1)
    x = (u - get(0, 2) - get(0, 1) * y) / get(0, 0)
    local = torch.stack([x, y, torch.ones_like(x)], -1).reshape(len(label), -1, 3)
    directions = F.normalize(local @ world[:, :3, :3].transpose(1, 2), dim=-1)
    return world[:, None, :3, 3].expand_as(directions), directions


def box_limits(origins, directions, bound):
    """near, far [B, R, 1] of the cube; both 0 where a ray misses it."""
    a, b = (-bound - origins) / directions, (bound - origins) / directions
    near, far = torch.minimum(a, b).amax(-1, keepdim=True), torch.maximum(a, b).amin(-1, keepdim=True)
    hit = near <= far
    return torch.where(hit, near, 0.0), torch.where(hit, far, 0.0)


def blur(x, sigma):
    """Gaussian of base 2, separable."""
    radius = int(3 * sigma)
    if radius < 1:
        return x
    taps = torch.exp2(-(torch.arange(-radius, radius + 1, dtype=torch.float32) / sigma).square())
    taps = (taps / taps.sum())[None, None, None].expand(x.shape[1], 1, 1, -1)
    x = F.conv2d(x, taps, padding=(0, radius), groups=x.shape[1])
    return F.conv2d(x, taps.transpose(2, 3), padding=(radius, 0), groups=x.shape[1])


class Training:
    """Networks, optimizers and a fixed batch; `run(phase)` is one step of it."""

    def __init__(self, shape):
        self.shape = shape
        self.g = torch_stylegan2.Generator(shape)
        self.d = torch_stylegan2.Discriminator(
            shape['image'], shape['d_base'], shape['d_max'], shape['d_mapping_layers'], shape['group']
        )
        adam = lambda net, rate, every: torch.optim.Adam(
            net.parameters(), rate * every / (every + 1), betas=(0.0, 0.99 ** (every / (every + 1))), eps=1e-8
        )
        self.g_adam, self.d_adam = adam(self.g, 0.0025, shape['density_every']), adam(self.d, 0.002, shape['r1_every'])
        size = shape['image']
        self.real = 2.0 * torch.rand(shape['batch'], 3, size, size) - 1.0
        self.label = torch.tensor(shape['labels'])

    def fake(self):
        """(image, raw, w) of new latents."""
        shape = self.shape
        z = torch.randn(shape['batch'], shape['z'])
        w = self.g.backbone.mapping(z, self.label)
        planes = self.g.planes(w, 'random')
        origins, directions = rays(self.label, shape['rays'])
        near, far = (
            (shape['near'], shape['far']) if shape['limits'] == 'fixed' else box_limits(origins, directions, shape['bound'])
        )
        u = (torch.rand(shape['batch'], shape['rays'] ** 2, count) for count in (shape['samples'], shape['importance']))
        options = {'near': near, 'far': far, 'bound': shape['bound'], 'plane_axes': shape['plane_axes']}
        colour, _, weights = torch_renderer.render(self.g.decoder.weights(), planes, origins, directions, *u, **options)
        colour = colour + (1.0 - weights.sum(-1, keepdim=True)) * shape['background']
        features = (2.0 * colour - 1.0).transpose(1, 2).reshape(shape['batch'], -1, shape['rays'], shape['rays'])
        return self.g.superresolution(features[:, :3], features, w), features[:, :3], w

    def generator(self):
        self.d.requires_grad_(False)
        image, raw, _ = self.fake()
        loss = F.softplus(-self.d(blur(image, self.shape['sigma']), raw, self.label)).mean()
        self.d.requires_grad_(True)
        return loss, self.g_adam

    def density(self):
        w = self.g.backbone.mapping(torch.randn(self.shape['batch'], self.shape['z']), self.label)
        planes = self.g.planes(w, 'random')
        points = 2.0 * torch.rand(len(w), 1000, 3) - 1.0
        points = torch.cat([points, points + 0.004 * torch.randn_like(points)], 1)
        features = torch_renderer.sample_planes(planes, points, self.shape['bound'], self.shape['plane_axes'])
        raw = torch_renderer.decode(self.g.decoder.weights(), features)[0]
        return 0.25 * self.shape['density_every'] * (raw[:, :1000] - raw[:, 1000:]).abs().mean(), self.g_adam

    def seen_reals(self):
        image = blur(self.real, self.shape['sigma'])
        return image, torch_stylegan2.resize(image, self.shape['rays'])

    def discriminator(self):
        with torch.no_grad():
            image, raw, w = self.fake()
            average = self.g.backbone.mapping.w_avg
            average.lerp_(w.mean(0), 0.002)
        fake = self.d(blur(image, self.shape['sigma']), raw, self.label)
        real = self.d(*self.seen_reals(), self.label)
        return F.softplus(fake).mean() + F.softplus(-real).mean(), self.d_adam

    def r1(self):
        pair = [x.requires_grad_() for x in self.seen_reals()]
        slopes = torch.autograd.grad(self.d(*pair, self.label).sum(), pair, create_graph=True)
        penalty = sum(gradient.square().sum((1, 2, 3)) for gradient in slopes).mean()
        return 0.5 * self.shape['gamma'] * self.shape['r1_every'] * penalty, self.d_adam

    def run(self, phase):
        """One Adam step; returns the loss."""
        loss, adam = getattr(self, phase)()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        return float(loss.detach())


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def main():
    training = None
    for line in sys.stdin:
        request = json.loads(line)
        if 'shape' in request:
            torch.manual_seed(0)
            torch.backends.cuda.matmul.allow_tf32 = True  # as JAX rounds by default
            torch.set_default_device('cuda' if request['shape']['device'] in ('gpu', 'cuda') else 'cpu')
            training = Training(request['shape'])
            answer = {
                'is': f'torch {torch.__version__}, {torch.get_default_device()}, eager',
                'parameters': [count(training.g), count(training.d)],
            }
        elif 'memory' in request:
            answer = {'mib': memory.peak_growth(functools.partial(training.run, request['memory']))}
        else:
            torch.set_num_threads(request['threads'])
            start = time.perf_counter()
            loss = training.run(request['run'])  # a number, so that everything has ended
            answer = {'ms': 1e3 * (time.perf_counter() - start), 'loss': loss if math.isfinite(loss) else None}
        print(json.dumps(answer), flush=True)


if __name__ == '__main__':
    main()
