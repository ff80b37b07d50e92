"""The PyTorch half of `t3d bench mv`: a UNet with self attention over all views, an epipolar block by grid_sample.

The UNet is that of diffusers, or one of PyTorch alone (`network`). Nothing of t3d is imported. As a program it reads one JSON
request a line (`build` makes one of the two, `run` times a pass, `save` writes its results) and answers with one JSON line.
Weights are functions of their names (torch_unet.draw).
"""

import json
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import torch_unet  # noqa: E402

OCTAVES = 6


def all_views(views: int):
    """A diffusers attention processor: self attention over the positions of all views of an object."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    class AllViews(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **rest):
            if encoder_hidden_states is not None:
                return super().__call__(attn, hidden_states, encoder_hidden_states, **rest)
            count, length, width = hidden_states.shape
            joined = hidden_states.reshape(count // views, views * length, width)
            return super().__call__(attn, joined, **rest).reshape(count, length, width)

    return AllViews()


class MultiView(nn.Module):
    """A UNet over views, the camera's embedding added to that of time; maps [B V, H, W, C], a text for each object."""

    def __init__(self, network: str, config: dict, views: int, camera: int):
        super().__init__()
        self.unet, width = torch_unet.network(network, config, views), 4 * config['block_out_channels'][0]
        if network == 'torch':
            self.unet.set_attn_processor(all_views(views))
        self.camera_embedding = nn.ModuleDict({'linear_1': nn.Linear(camera, width), 'linear_2': nn.Linear(width, width)})
        self.views, self.embedding = views, None
        self.unet.time_embedding.register_forward_hook(lambda module, inputs, out: out + self.embedding)

    def fill(self):
        """Every parameter drawn by its name in the network of ours."""
        torch_unet.fill(self.unet)
        with torch.no_grad():
            for key, parameter in self.camera_embedding.named_parameters():
                parameter.copy_(torch.from_numpy(torch_unet.draw(f'camera_embedding.{key}', tuple(parameter.shape))))
        return self

    def forward(self, latents, t, text, camera):
        layers = self.camera_embedding
        self.embedding = layers['linear_2'](F.silu(layers['linear_1'](camera)))
        x = latents.permute(0, 3, 1, 2).contiguous()
        return torch_unet.output(self.unet(x, t, text.repeat_interleave(self.views, 0))).permute(0, 2, 3, 1)


class EpipolarBlock(nn.Module):
    """The epipolar consistency block, maps channels-first for grid_sample; x [B V, h, w, C] and back.

    The faster of what was tried, on a CPU: keys and values projected before the lookup, attention over few keys by sums of
    products (scaled_dot_product_attention, einsum and matmul of one query with four keys are slower).
    """

    def __init__(self, channels: int, heads: int, widest: int):
        super().__init__()
        self.inner = inner = min(channels, widest) // heads * heads
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, inner) for _ in range(3))
        self.to_q_ray = nn.Linear(channels, inner)
        self.place = nn.Linear(6 * OCTAVES + 10, inner)
        self.to_out_views, self.to_k_ray, self.to_v_ray = (nn.Linear(inner, inner) for _ in range(3))
        self.norm_mlp, self.norm_ray = nn.LayerNorm(inner), nn.LayerNorm(inner)
        self.mlp_in, self.mlp_out = nn.Linear(inner, 2 * inner), nn.Linear(2 * inner, inner)
        self.to_out = nn.Linear(inner, channels)

    def attend(self, query, keys, values, axis, valid=None):
        """Attention of queries [..., d] over axis `axis` of keys and values, all broadcast to each other."""
        split = lambda x: x.unflatten(-1, (self.heads, -1))
        logits = (split(query) * split(keys)).sum(-1) * (self.inner // self.heads) ** -0.5
        weights = (logits if valid is None else logits.masked_fill(~valid[..., None], -1e30)).softmax(axis)
        return (weights[..., None] * split(values)).sum(axis).flatten(-2)

    def forward(self, x, rays):
        objects, views, height, width, samples = rays['depths'].shape
        own = self.norm(x).unflatten(0, (objects, views))
        maps = torch.cat([self.to_k(own), self.to_v(own)], -1).flatten(0, 1).permute(0, 3, 1, 2)
        grid = 2.0 * rays['uv'].transpose(1, 2).reshape(objects * views, views * height * width, samples, 2) - 1.0
        seen = F.grid_sample(maps, grid, mode='bilinear', padding_mode='border', align_corners=False)
        seen = seen.permute(0, 2, 3, 1).reshape(objects, views, views, height, width, samples, -1).transpose(1, 2)
        keys, values = seen.split(self.inner, -1)  # [B, V, S, h, w, M, d]
        place = self.place(encoding(rays))
        asked = self.to_q(own)[..., None, :] + place
        mixed = self.attend(asked[:, :, None], keys, values, 2, rays['valid'])
        tokens = self.to_v(own)[..., None, :] + place + self.to_out_views(mixed)
        tokens = self.norm_ray(tokens + self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(tokens)))))
        out = self.attend(self.to_q_ray(own)[..., None, :], self.to_k_ray(tokens), self.to_v_ray(tokens), 4)
        return x + self.to_out(out).flatten(0, 1)


def encoding(rays):
    """[B, V, h, w, M, e] of points, depths and rays."""
    octaves = torch.arange(OCTAVES, dtype=torch.float32, device=rays['points'].device)
    waves = rays['points'][..., None] * (0.5 * torch.pi * 2.0**octaves)
    waves = torch.cat([waves.sin(), waves.cos()], -1).flatten(-2)
    plucker = rays['plucker'][..., None, :].expand(*rays['points'].shape[:-1], 6)
    return torch.cat([waves, rays['points'], rays['depths'][..., None], plucker], -1)


class Passes:
    """One module with its inputs: 'forward' and 'both' passes, as ours."""

    def __init__(self, request: dict):
        device = 'cuda' if request['device'] in ('gpu', 'cuda') else 'cpu'
        torch_unet.rounded(not request['exact'])
        with np.load(request['inputs']) as file:
            arrays = {name: torch.from_numpy(file[name]).to(device) for name in file.files}
        self.x = arrays.pop('x')
        if request['build'] == 'dense':
            words = request.get('network', 'torch'), request['config'], request['views']
            self.module = MultiView(*words, arrays['camera'].shape[-1]).fill().to(device)
            self.arguments = (arrays['t'], arrays['text'], arrays['camera'])
        else:
            self.module = torch_unet.fill(EpipolarBlock(self.x.shape[-1], request['heads'], request['widest'])).to(device)
            self.arguments = (arrays,)

    def run(self, which: str):
        """The output; 'both' adds the gradient of half its squares' mean for the input, and makes those of all weights."""
        if which == 'forward':
            with torch.inference_mode():
                return (self.module(self.x, *self.arguments),)
        x = self.x.clone().requires_grad_()
        self.module.zero_grad(set_to_none=True)
        out = self.module(x, *self.arguments)
        (0.5 * out.square().mean()).backward()
        return out, x.grad


def main():
    threads, made = len(os.sched_getaffinity(0)), {}
    for line in sys.stdin:
        request = json.loads(line)
        if 'build' in request:
            made[request['build']] = Passes(request)
            answer = {'is': f'torch {torch.__version__}'}
        else:
            torch.set_num_threads(request.get('threads', threads))
            start = time.perf_counter()
            name, which = request['run'].split('/')
            results = made[name].run(which)
            if results[0].is_cuda:
                torch.cuda.synchronize()
            answer = {'ms': 1e3 * (time.perf_counter() - start)}
            if 'save' in request:
                np.savez(request['save'], *[x.detach().float().cpu().numpy() for x in results])
        print(json.dumps(answer), flush=True)


if __name__ == '__main__':
    main()
