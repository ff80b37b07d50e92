"""A plain PyTorch hash grid: the peer that `t3d.geom.hashgrid` is measured against and compared with.

Ordinary eager PyTorch in the manner of instant-ngp's ports: at each level the eight corners of a point, their rows in 64-bit
integers, `torch.nn.functional.embedding`, and the weighted sum. As a program it is the other half of `t3d bench hash`.
"""

import torch
import torch.nn.functional as F

PRIMES = (1, 2654435761, 805459861)


def encode(levels, table, points):
    """Features [N, L F] of points [N, 3] in [0, 1]; levels: (scale, resolution, rows, offset, hashed) of each."""
    features = []
    for scale, resolution, rows, offset, hashed in levels:
        position = torch.tensor(scale, dtype=torch.float32) * points + 0.5
        low = position.floor()
        fraction, low = position - low, low.long()
        total = 0.0
        for corner in range(8):
            bits = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2])
            x, y, z = (low + bits).unbind(-1)
            if hashed:
                row = ((x * PRIMES[0]) & 0xFFFFFFFF) ^ ((y * PRIMES[1]) & 0xFFFFFFFF) ^ ((z * PRIMES[2]) & 0xFFFFFFFF)
            else:
                row = x + y * resolution + z * resolution**2
            share = torch.where(bits.bool(), fraction, 1.0 - fraction).prod(-1, keepdim=True)
            total = total + share * F.embedding(row % rows + offset, table)
        features.append(total)
    return torch.cat(features, -1)


def workload(shape: dict):
    """{'forward': f, 'both': f}: closures over random points and a random table (see t3d.bench.hashgrid.SHAPES)."""
    device = 'cuda' if shape['device'] in ('gpu', 'cuda') else 'cpu'
    torch.set_default_device(device)
    points, table = torch.rand(shape['points'], 3), torch.randn(shape['rows'], shape['channels'])

    def forward():
        with torch.no_grad():
            return encode(shape['levels'], table, points)

    def both():
        table.requires_grad_(True)
        return torch.autograd.grad(encode(shape['levels'], table, points).square().mean(), [table])

    return {'forward': forward, 'both': both}


if __name__ == '__main__':
    import serving

    serving.serve(workload)
