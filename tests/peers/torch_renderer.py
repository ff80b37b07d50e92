"""A plain PyTorch triplane renderer: the peer that t3d's renderer is measured against and compared with.

Ordinary eager PyTorch: grid_sample on the three planes, mean, a two-layer MLP, two passes, sort and gather, cumprod. The same
maths as t3d.geom.volume with EG3D's activations; of t3d it imports nothing. As a program it is the other half of `t3d bench
render` (serving.py).
"""

import torch
import torch.nn.functional as F

AXES = {'orthogonal': ((0, 1), (0, 2), (2, 1)), 'legacy': ((0, 1), (0, 2), (2, 0))}


def sample_planes(planes, points, bound, plane_axes='orthogonal'):
    """Mean feature [B, N, C] of planes [B, 3, C, R, R] at points [B, N, 3]."""
    batch, count, channels, height, width = planes.shape
    q = points / bound
    grid = torch.stack([torch.stack([q[..., i], q[..., j]], -1) for i, j in AXES[plane_axes]], 1)  # [B, 3, N, 2]
    grid = grid.reshape(batch * count, 1, -1, 2)
    features = F.grid_sample(
        planes.reshape(batch * count, channels, height, width), grid, mode='bilinear', padding_mode='zeros', align_corners=False
    )
    return features.reshape(batch, count, channels, -1).mean(1).transpose(1, 2)


def decode(params, features):
    """(raw density [..., 1], colour [..., F]): linear, softplus, linear; the weights are used as they are."""
    hidden = F.softplus(features @ params['hidden_kernel'] + params['hidden_bias'])
    out = hidden @ params['out_kernel'] + params['out_bias']
    return out[..., :1], torch.sigmoid(out[..., 1:]) * 1.002 - 0.001


def halfway(x):
    """Means of neighbouring samples: [B, R, S - 1, .] of [B, R, S, .]."""
    return 0.5 * (x[:, :, 1:] + x[:, :, :-1])


def composite(colours, densities, depths):
    """(feature [B, R, F], depth [B, R], weights [B, R, S - 1]) of [B, R, S, .] sorted samples, the densities between them."""
    alpha = 1.0 - torch.exp(-densities * (depths[:, :, 1:] - depths[:, :, :-1]))
    shifted = torch.cat([torch.ones_like(alpha[:, :, :1]), 1.0 - alpha + 1e-10], 2)
    weights = alpha * torch.cumprod(shifted, 2)[:, :, :-1]
    total = weights.sum(2)
    depth = torch.nan_to_num((weights * halfway(depths)).sum(2) / total, float('inf'))
    return (weights * halfway(colours)).sum(2), depth.clamp(depths.min(), depths.max())[..., 0], weights[..., 0]


def march(colours, densities, depths):
    """EG3D's midpoint march of [B, R, S, .] sorted samples, its density softplus(raw - 1)."""
    return composite(colours, F.softplus(halfway(densities) - 1.0), depths)


@torch.no_grad()
def importance(depths, weights, u):
    """Fine depths [B, R, N] from depths [B, R, S, 1], weights [B, R, S - 1], u [B, R, N]."""
    batch, rays, samples = depths.shape[:3]
    weights = weights.reshape(batch * rays, 1, -1)
    weights = F.avg_pool1d(F.max_pool1d(weights, 2, 1, padding=1), 2, 1)[:, 0] + 0.01
    middle = 0.5 * (depths[:, :, 1:, 0] + depths[:, :, :-1, 0]).reshape(batch * rays, -1)
    pdf = weights[:, 1:-1] + 1e-5
    pdf = pdf / pdf.sum(-1, keepdim=True)
    cdf = torch.cat([torch.zeros_like(pdf[:, :1]), torch.cumsum(pdf, -1)], -1)
    u = u.reshape(batch * rays, -1).contiguous()
    place = torch.searchsorted(cdf, u, right=True)
    below, above = (place - 1).clamp(min=0), place.clamp(max=samples - 3)
    cdf_below, cdf_above = cdf.gather(1, below), cdf.gather(1, above)
    low, high = middle.gather(1, below), middle.gather(1, above)
    span = cdf_above - cdf_below
    span = torch.where(span < 1e-5, torch.ones_like(span), span)
    return (low + (u - cdf_below) / span * (high - low)).reshape(batch, rays, -1)


def render(params, planes, origins, directions, u_coarse, u_fine, *, near, far, bound, plane_axes='orthogonal'):
    """Two-pass render. planes [B, 3, C, R, R], origins and directions [B, R, 3], u_coarse [B, R, S], u_fine [B, R, N]."""
    batch = len(planes)

    def query(depths):
        points = origins[:, :, None] + depths * directions[:, :, None]
        density, colour = decode(params, sample_planes(planes, points.reshape(batch, -1, 3), bound, plane_axes))
        return density.reshape(*depths.shape), colour.reshape(*depths.shape[:3], -1)

    return two_passes(query, march, u_coarse, u_fine, near, far)


def two_passes(query, march, u_coarse, u_fine, near, far):
    """What `march` makes of coarse and fine samples. query: depths [B, R, S, 1] -> (densities, colours); near and far are
    numbers or [B, R, 1]."""
    samples = u_coarse.shape[-1]
    steps = torch.linspace(0.0, 1.0, samples, device=u_coarse.device) * (far - near) + near
    depths = (steps + u_coarse * ((far - near) / (samples - 1)))[..., None]
    densities, colours = query(depths)
    if u_fine.shape[-1] == 0:
        return march(colours, densities, depths)
    with torch.no_grad():
        _, _, weights = march(colours, densities, depths)
    fine = importance(depths, weights, u_fine)[..., None]
    fine_densities, fine_colours = query(fine)
    depths, order = torch.sort(torch.cat([depths, fine], 2), 2)
    colours = torch.cat([colours, fine_colours], 2)
    colours = colours.gather(2, order.expand(-1, -1, -1, colours.shape[-1]))
    densities = torch.cat([densities, fine_densities], 2).gather(2, order)
    return march(colours, densities, depths)


def workload(shape: dict):
    """{'forward': f, 'both': f}: closures over random inputs of the given sizes (see t3d.bench.render.SHAPES)."""
    device = 'cuda' if shape['device'] in ('gpu', 'cuda') else 'cpu'
    torch.set_default_device(device)
    randn = torch.randn
    batch, rays, channels, hidden, outputs = (shape[name] for name in ('batch', 'rays', 'channels', 'hidden', 'outputs'))
    params = {
        'hidden_kernel': randn(channels, hidden) / channels**0.5,
        'hidden_bias': torch.zeros(hidden),
        'out_kernel': randn(hidden, 1 + outputs) / hidden**0.5,
        'out_bias': torch.zeros(1 + outputs),
    }
    planes = randn(batch, 3, channels, shape['size'], shape['size'])
    origins, directions = (
        torch.tensor(shape[name]).reshape(1, rays, 3).expand(batch, -1, -1).contiguous() for name in ('origins', 'directions')
    )
    leaves = [planes, *params.values()]

    def forward():
        u = torch.rand(batch, rays, shape['coarse']), torch.rand(batch, rays, shape['fine'])
        return render(params, planes, origins, directions, *u, near=shape['near'], far=shape['far'], bound=shape['bound'])

    def forward_only():
        with torch.no_grad():
            return forward()[0]

    def both():
        for leaf in leaves:
            leaf.requires_grad_(True)
        feature, _, weights = forward()
        return torch.autograd.grad((feature.square().mean() + weights.sum(-1).square().mean()), leaves)

    return {'forward': forward_only, 'both': both}


if __name__ == '__main__':
    import serving

    serving.serve(workload)
