"""Flags of commands that have many. Imports nothing heavy: `t3d --help` reads this."""


def sample2d(command) -> None:
    """Of `t3d sample2d`, added to its argparse parser."""
    command.add_argument('prompt', nargs='*', help='in quotes')
    command.add_argument('--weights', metavar='DIR', help='a folder in diffusers layout, a run, or a weights folder')
    for name, kind, default, text in (
        ('--steps', int, 30, 'of the sampler'),
        ('--sampler', str, 'ddim', 'ddim, ddpm, dpm'),
        ('--guidance', float, None, "1 for none (default: the model's own, 7.5 for Stable Diffusion)"),
        ('--seed', int, 0, 'of the noise'),
        ('--size', int, None, "pixels per side (default: the model's own)"),
        ('--negative', str, '', 'what to steer away from'),
        ('--variant', str, None, 'of the files, for example fp16'),
        ('--dtype', str, 'float32', 'of the computation: float32, bfloat16, float16'),
        ('--out', str, 'image.png', 'the PNG to write; prompt and settings are in its metadata'),
    ):
        command.add_argument(name, type=kind, default=default, help=f'{text} (default: {default})' if default else text)


def evaluate(command) -> None:
    """Of `t3d eval`, added to its argparse parser."""
    command.add_argument('run', help='run folder, weights folder, or the name of shipped weights')
    command.add_argument('--metrics', metavar='A,B', help='psnr, ssim, fid, kid, fid_tiny, fd_effnet, clip, align, ...')
    command.add_argument('--inception-weights', metavar='FILE', help='FID Inception-v3 as safetensors, for fid and kid')
    command.add_argument('--clip-weights', metavar='DIR', help='folder of a CLIPModel, for clip')
    command.add_argument('--align-head', metavar='DIR', help='of python -m launch.align_head, for align (default: no training)')
    command.add_argument('--limit', type=int, help='at most this many objects or scenes')
    command.add_argument('--split', help='of a built data set: train (default), val, test, test_combo')
    command.add_argument('--json', help='also write the scores here')
