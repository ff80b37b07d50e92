"""The FID Inception-v3 of 2015-12-05 in PyTorch, as a table of convolutions and functional pooling.

Written from the published layer table and the names of pt_inception-2015-12-05-6726825d.pth; one flat state dict, no modules.
`deviate` takes single properties back to torchvision's, to show that a test would notice.
"""

import torch
import torch.nn.functional as F


def _mixed5(width, pooled):
    return {
        'branch1x1': (width, 64, 1, 1),
        'branch5x5_1': (width, 48, 1, 1),
        'branch5x5_2': (48, 64, 5, 5),
        'branch3x3dbl_1': (width, 64, 1, 1),
        'branch3x3dbl_2': (64, 96, 3, 3),
        'branch3x3dbl_3': (96, 96, 3, 3),
        'branch_pool': (width, pooled, 1, 1),
    }


def _mixed6(c):
    return {
        'branch1x1': (768, 192, 1, 1),
        'branch7x7_1': (768, c, 1, 1),
        'branch7x7_2': (c, c, 1, 7),
        'branch7x7_3': (c, 192, 7, 1),
        'branch7x7dbl_1': (768, c, 1, 1),
        'branch7x7dbl_2': (c, c, 7, 1),
        'branch7x7dbl_3': (c, c, 1, 7),
        'branch7x7dbl_4': (c, c, 7, 1),
        'branch7x7dbl_5': (c, 192, 1, 7),
        'branch_pool': (768, 192, 1, 1),
    }


def _mixed7(width):
    return {
        'branch1x1': (width, 320, 1, 1),
        'branch3x3_1': (width, 384, 1, 1),
        'branch3x3_2a': (384, 384, 1, 3),
        'branch3x3_2b': (384, 384, 3, 1),
        'branch3x3dbl_1': (width, 448, 1, 1),
        'branch3x3dbl_2': (448, 384, 3, 3),
        'branch3x3dbl_3a': (384, 384, 1, 3),
        'branch3x3dbl_3b': (384, 384, 3, 1),
        'branch_pool': (width, 192, 1, 1),
    }


BLOCKS = {
    'Mixed_5b': _mixed5(192, 32),
    'Mixed_5c': _mixed5(256, 64),
    'Mixed_5d': _mixed5(288, 64),
    'Mixed_6a': {
        'branch3x3': (288, 384, 3, 3),
        'branch3x3dbl_1': (288, 64, 1, 1),
        'branch3x3dbl_2': (64, 96, 3, 3),
        'branch3x3dbl_3': (96, 96, 3, 3),
    },
    'Mixed_6b': _mixed6(128),
    'Mixed_6c': _mixed6(160),
    'Mixed_6d': _mixed6(160),
    'Mixed_6e': _mixed6(192),
    'Mixed_7a': {
        'branch3x3_1': (768, 192, 1, 1),
        'branch3x3_2': (192, 320, 3, 3),
        'branch7x7x3_1': (768, 192, 1, 1),
        'branch7x7x3_2': (192, 192, 1, 7),
        'branch7x7x3_3': (192, 192, 7, 1),
        'branch7x7x3_4': (192, 192, 3, 3),
    },
    'Mixed_7b': _mixed7(1280),
    'Mixed_7c': _mixed7(2048),
}
STEM = {
    'Conv2d_1a_3x3': (3, 32, 3, 3),
    'Conv2d_2a_3x3': (32, 32, 3, 3),
    'Conv2d_2b_3x3': (32, 64, 3, 3),
    'Conv2d_3b_1x1': (64, 80, 1, 1),
    'Conv2d_4a_3x3': (80, 192, 3, 3),
}
LAYERS = {**STEM, **{f'{block}.{name}': shape for block, names in BLOCKS.items() for name, shape in names.items()}}


def random_weights(seed: int = 0) -> dict:
    """A state dict of the file's names and shapes; convolutions small, so that the norms' epsilon counts."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    weights = {}
    for name, (inputs, outputs, height, width) in LAYERS.items():
        weights[f'{name}.conv.weight'] = 0.05 * normal(outputs, inputs, height, width) / (inputs * height * width) ** 0.5
        weights[f'{name}.bn.weight'] = 1.0 + 0.3 * normal(outputs)
        weights[f'{name}.bn.bias'] = 0.3 * normal(outputs)
        weights[f'{name}.bn.running_mean'] = torch.zeros(outputs)
        weights[f'{name}.bn.running_var'] = torch.ones(outputs)
    weights['fc.weight'], weights['fc.bias'] = normal(1008, 2048), normal(1008)
    return weights


class Twin:
    """`Twin(weights)(x)`: images [B, 3, H, W], already resized and scaled, to [B, 2048].

    Args:
      deviate: any of 'epsilon' (1e-5), 'pool' (padding counts in averages), 'last' (average in the last block).
    """

    def __init__(self, weights: dict, deviate=()):
        self.weights, self.deviate, self.calibrating = weights, deviate, False

    def calibrate(self, x):
        """Takes the norms' statistics from a batch, so that activations have the size they have in a trained network."""
        self.calibrating = True
        self(x)
        self.calibrating = False

    def layer(self, x, name, stride=1, padding=None):
        get = lambda leaf: self.weights[f'{name}.{leaf}']
        kernel = get('conv.weight')
        padding = tuple(k // 2 for k in kernel.shape[2:]) if padding is None else padding
        x = F.conv2d(x, kernel, stride=stride, padding=padding)
        if self.calibrating:
            self.weights[f'{name}.bn.running_mean'] = x.mean((0, 2, 3))
            self.weights[f'{name}.bn.running_var'] = x.var((0, 2, 3))
        epsilon = 1e-5 if 'epsilon' in self.deviate else 1e-3
        mean, var = get('bn.running_mean'), get('bn.running_var')
        return F.relu(F.batch_norm(x, mean, var, get('bn.weight'), get('bn.bias'), eps=epsilon))

    def chain(self, x, *names, last=1):
        for name in names[:-1]:
            x = self.layer(x, name)
        return self.layer(x, names[-1], last, 0 if last == 2 else None)

    def average(self, x):
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad='pool' in self.deviate)

    @torch.no_grad()
    def __call__(self, x):
        x = self.layer(self.layer(x, 'Conv2d_1a_3x3', 2, 0), 'Conv2d_2a_3x3', 1, 0)
        x = F.max_pool2d(self.layer(x, 'Conv2d_2b_3x3'), 3, 2)
        x = F.max_pool2d(self.layer(self.layer(x, 'Conv2d_3b_1x1'), 'Conv2d_4a_3x3', 1, 0), 3, 2)
        for block in BLOCKS:
            names = [f'{block}.{name}' for name in BLOCKS[block]]
            if block.endswith('a'):
                split = 1 if block == 'Mixed_6a' else 2
                branches = [self.chain(x, *some, last=2) for some in (names[:split], names[split:])]
                x = torch.cat([*branches, F.max_pool2d(x, 3, 2)], 1)
                continue
            last = block == 'Mixed_7c' and 'last' not in self.deviate
            pooled = self.layer(F.max_pool2d(x, 3, 1, 1) if last else self.average(x), names[-1])
            if block.startswith('Mixed_7'):
                short, long = self.layer(x, names[1]), self.chain(x, *names[4:6])
                branches = [self.layer(short, names[2]), self.layer(short, names[3])]
                branches += [self.layer(long, names[6]), self.layer(long, names[7])]
            else:
                split = 3 if block.startswith('Mixed_5') else 4
                branches = [self.chain(x, *names[1:split]), self.chain(x, *names[split:-1])]
            x = torch.cat([self.layer(x, names[0]), *branches, pooled], 1)
        return x.mean((2, 3))
