"""One step of score distillation by diffusers' networks and PyTorch's autograd: the other half of `t3d bench sds`.

Nothing of t3d is imported. It reads one JSON request a line (`unet` builds the networks, `run` times one step, `save` writes
the gradient of the render) and answers with one JSON line.
"""

import json
import os
import pathlib
import resource
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from torch_unet import fill, rounded  # noqa: E402


def inputs(shape: dict) -> dict[str, torch.Tensor]:
    """Render [V, 3, S, S] in [0, 1], noise [V, 4, h, w], text and empty text [V, N, D]."""
    rng, side = np.random.default_rng(0), shape['pixels'] // 8
    lead, width = shape['views'], shape['unet']['cross_attention_dim']
    render = rng.uniform(size=(lead, shape['render'], shape['render'], 3)).astype(np.float32)
    noise = rng.standard_normal((lead, side, side, 4), np.float32)
    text, none = (rng.standard_normal((lead, shape['tokens'], width), np.float32) for _ in range(2))
    channels_first = lambda x: torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
    return {
        'render': channels_first(render),
        'noise': channels_first(noise),
        'text': torch.from_numpy(text),
        'none': torch.from_numpy(none),
    }


def build(shape: dict):
    """A closure that makes one step and returns the gradient of the render, [V, S, S, 3]."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    rounded(not shape['exact'])
    device = 'cuda' if shape['device'] in ('gpu', 'cuda') else 'cpu'
    with torch.device('meta'):
        unet = diffusers.UNet2DConditionModel(**shape['unet'])
        vae = diffusers.AutoencoderKL(**shape['vae'])
    unet, vae = (fill(model.to_empty(device='cpu')).to(device).requires_grad_(False) for model in (unet, vae))
    given = {name: value.to(device) for name, value in inputs(shape).items()}
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = float(torch.cumprod(1.0 - betas, 0)[shape['t']])
    signal, sigma = kept**0.5, (1.0 - kept) ** 0.5

    def run():
        render = given['render'].clone().requires_grad_()
        large = F.interpolate(render, (shape['pixels'],) * 2, mode='bilinear', align_corners=False)
        z = vae.config.scaling_factor * vae.encode(2.0 * large - 1.0).latent_dist.mean
        with torch.no_grad():
            noisy, t = signal * z + sigma * given['noise'], torch.full((len(z),), shape['t'], device=device)
            words = torch.cat([given['text'], given['none']])
            with_text, without = unet(torch.cat([noisy] * 2), torch.cat([t] * 2), encoder_hidden_states=words).sample.chunk(2)
            eps = without + shape['scale'] * (with_text - without)
            gradient = (1.0 - kept) * (eps - given['noise']) / len(z)  # of the mean over views
        z.backward(gradient)
        if device == 'cuda':
            torch.cuda.synchronize()
        return render.grad

    return run


def main():
    threads, run = len(os.sched_getaffinity(0)), None
    for line in sys.stdin:
        request = json.loads(line)
        if 'unet' in request:
            run = build(request)
            answer = {'is': f'diffusers UNet2DConditionModel and AutoencoderKL, torch {torch.__version__}, float32'}
        else:
            torch.set_num_threads(request.get('threads', threads))
            start = time.perf_counter()
            out = run()
            answer = {'ms': 1e3 * (time.perf_counter() - start)}
            if 'save' in request:
                np.save(request['save'], out.permute(0, 2, 3, 1).cpu().numpy())
        cuda = torch.cuda.is_available() and torch.cuda.max_memory_allocated()
        answer['peak_mib'] = cuda / 2**20 if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(answer), flush=True)


if __name__ == '__main__':
    main()
