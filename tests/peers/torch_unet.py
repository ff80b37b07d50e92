"""UNets and autoencoders on weights that are a function of their names: the peers of t3d.nets.unet and t3d.nets.vae.

Nothing of t3d is imported. As a program it is the other half of `t3d bench unet`: it reads one JSON request a line (`config`
builds the model (`network` says which: 'torch' is diffusers', 'plain' torch_plain_unet's, 'compiled' that by torch.compile),
`run` times one forward pass, `save` writes the output) and answers with one JSON line.
"""

import json
import math
import os
import resource
import sys
import time
import zlib

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from torch_plain_unet import PlainUNet  # noqa: E402


def draw(key: str, shape) -> np.ndarray:
    """The float32 values of a parameter: normal, by fan-in; biases 0.1, norm scales 1 +- 0.3. Any process draws the same."""
    values = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape, np.float32)
    if key.endswith('.bias'):
        return np.float32(0.1) * values
    if len(shape) == 1:
        return 1 + np.float32(0.3) * values
    return values * np.float32(math.prod(shape[1:]) ** -0.5)


@torch.no_grad()
def fill(model: torch.nn.Module) -> torch.nn.Module:
    """The model in eval mode, every parameter drawn by its name."""
    for key, parameter in model.named_parameters():
        parameter.copy_(torch.from_numpy(draw(key, tuple(parameter.shape))))
    return model.eval()


def inputs(shape: dict):
    """(latents [B, C, H, W], t [B], text [B, N, D]) of {'batch', 'size', 'tokens'} and the model's configuration."""
    rng, config = np.random.default_rng(0), shape['config']
    latents = rng.standard_normal((shape['batch'], shape['size'], shape['size'], config['in_channels']), np.float32)
    t = np.linspace(999, 1, shape['batch']).round().astype(np.float32)
    text = rng.standard_normal((shape['batch'], shape['tokens'], config['cross_attention_dim']), np.float32)
    return torch.from_numpy(latents).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(t), torch.from_numpy(text)


def build(shape: dict):
    """(closure that runs the UNet once and returns its output [B, C, H, W], what it is)."""
    rounded(not shape['exact'])
    dtype, device = getattr(torch, shape['dtype']), 'cuda' if shape['device'] in ('gpu', 'cuda') else 'cpu'
    with torch.device('meta'):
        unet = network(shape.get('network', 'torch'), shape['config'])
    unet = fill(unet.to_empty(device='cpu')).to(device, dtype)
    latents, t, text = (x.to(device) for x in inputs(shape))
    latents, text = latents.to(dtype), text.to(dtype)
    if shape.get('network', 'torch') != 'torch' and device == 'cuda':
        unet, latents = (x.to(memory_format=torch.channels_last) for x in (unet, latents))

    def closure(call):
        @torch.inference_mode()
        def run():
            out = output(call(latents, t, text))
            if device == 'cuda':
                torch.cuda.synchronize()
            return out

        return run

    run, what = closure(unet), type(unet).__name__
    if shape.get('network') == 'compiled':
        return compiled(unet, closure, run, device)
    return run, what


def compiled(unet, closure, eager, device: str):
    """(closure of the network by torch.compile, what it is); the eager one, and why, where it cannot be compiled."""
    start, name = time.perf_counter(), type(unet).__name__
    try:
        run = closure(torch.compile(unet, dynamic=False, mode='reduce-overhead' if device == 'cuda' else None))
        run()
    except Exception as error:
        return eager, f'{name}, not compiled: {type(error).__name__}: {" ".join(str(error).split())[:200]}'
    return run, f'{name} by torch.compile in {time.perf_counter() - start:.0f} s'


def network(word: str, config: dict, views: int = 1) -> torch.nn.Module:
    """A UNet without weights; `views` are for those of PyTorch alone."""
    if word == 'torch':
        import diffusers

        diffusers.utils.logging.set_verbosity_error()
        return diffusers.UNet2DConditionModel(**config)
    return PlainUNet(config, views)


def output(out) -> torch.Tensor:
    """What either network returns, as a tensor."""
    return out if isinstance(out, torch.Tensor) else out.sample


def rounded(yes: bool) -> None:
    """Whether a GPU rounds float32 products to TF32: by default JAX rounds all, PyTorch those of convolutions alone."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = yes


def main():
    threads, run = len(os.sched_getaffinity(0)), None
    for line in sys.stdin:
        request = json.loads(line)
        if 'config' in request:
            run, what = build(request)
            origin = 'diffusers ' if request.get('network', 'torch') == 'torch' else ''
            answer = {'is': f'{origin}{what}, torch {torch.__version__}, {request["dtype"]}'}
        else:
            if not torch.cuda.is_available():  # elsewhere nothing waits for them, and a compiled network is compiled again
                torch.set_num_threads(request.get('threads', threads))
            start = time.perf_counter()
            out = run()
            answer = {'ms': 1e3 * (time.perf_counter() - start)}
            if 'save' in request:
                np.save(request['save'], out.float().permute(0, 2, 3, 1).cpu().numpy())
        cuda = torch.cuda.is_available() and torch.cuda.max_memory_allocated()
        answer['peak_mib'] = cuda / 2**20 if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(answer), flush=True)


if __name__ == '__main__':
    main()
