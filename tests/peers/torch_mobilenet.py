"""MobileNetV2 in PyTorch, after arXiv 1801.04381, Table 2, with torchvision's names: a peer for t3d.nets.judges.mobilenet."""

import torch
from torch import nn


class Block(nn.Module):
    """Expansion (unless 1), depthwise convolution, projection; added to the input where shapes allow."""

    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        inner = expansion * inputs
        layers = [] if expansion == 1 else [activated(inputs, inner, 1)]
        layers += [activated(inner, inner, 3, stride, inner), nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv, self.added = nn.Sequential(*layers), stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.conv(x) if self.added else self.conv(x)


class MobileNetV2(nn.Module):
    """Images [B, 3, H, W] to (pooled [B, head], logits [B, classes]).

    Args:
      settings: rows of (expansion, channels, repeats, stride), as the paper has them.
    """

    def __init__(self, settings, stem, head, classes):
        super().__init__()
        layers, width = [activated(3, stem, 3, 2)], stem
        for expansion, channels, repeats, stride in settings:
            for k in range(repeats):
                layers.append(Block(width, channels, stride if k == 0 else 1, expansion))
                width = channels
        self.features = nn.Sequential(*layers, activated(width, head, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(head, classes))

    def forward(self, x):
        pooled = self.features(x).mean((2, 3))
        return pooled, self.classifier(pooled)


def activated(inputs, outputs, kernel, stride=1, groups=1):
    """Convolution, batch norm, ReLU6."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


def randomise(module, seed=0):
    """Weights that keep activations of order one, and batch norms with random statistics, of which some variances are small
    enough for an epsilon to show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                fan = part.weight[0].numel()
                part.weight.copy_(torch.randn(part.weight.shape, generator=generator) * fan**-0.5)
            if isinstance(part, nn.Linear):
                part.bias.copy_(torch.randn(part.bias.shape, generator=generator))
            if isinstance(part, nn.BatchNorm2d):
                count = part.weight.shape
                part.running_var.copy_(10.0 ** (2.3 * torch.rand(count, generator=generator) - 2.0))
                part.weight.copy_((1.0 + 0.3 * torch.randn(count, generator=generator)) * part.running_var.sqrt())
                part.bias.copy_(0.3 + 0.3 * torch.randn(count, generator=generator))
                part.running_mean.copy_(0.3 * torch.randn(count, generator=generator))
    return module.eval()
