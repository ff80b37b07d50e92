"""`t3d sample2d`: text to image, with Stable Diffusion weights of the user's own or image_diffusion."""

from t3d.commands import weights
from t3d.core import parsing
from t3d.core.rules import Real, Whole

RANGES = {
    'steps': Whole(1, 10**5, 'of the sampler'),
    'guidance': Real(-1e3, 1e3, '1 is none, 7.5 is usual'),
    'seed': Whole(0, 2**32 - 1, 'of the noise'),
    'size': Whole(8, 8192, 'pixels per side'),
}


def flags(command) -> None:
    command.add_argument('prompt', nargs='*', help='in quotes')
    command.add_argument('--weights', metavar='DIR', help='diffusers layout, one .safetensors, a run or a weights folder')
    weights.settings(command)
    for name, kind, default, text in (
        ('--steps', int, 30, 'of the sampler'),
        ('--sampler', str, 'ddim', 'ddim, ddpm, dpm, dpm-karras'),
        ('--guidance', float, None, "1 for none (default: the model's own, 7.5 for Stable Diffusion)"),
        ('--seed', int, 0, 'of the noise'),
        ('--size', int, None, "pixels per side (default: the model's own)"),
        ('--negative', str, '', 'what to steer away from'),
        ('--variant', str, None, 'of the files, for example fp16'),
        ('--dtype', str, 'float32', 'of the computation: float32, bfloat16, float16'),
        ('--out', str, 'image.png', 'the PNG to write; prompt and settings are in its metadata'),
    ):
        command.add_argument(name, type=kind, default=default, help=f'{text} (default: {default})' if default else text)


def run(args) -> None:
    from t3d.inference import sample2d
    from t3d.parallel import devices

    parsing.held(args, RANGES)
    parsing.writable(args.out, file=True)
    devices.compilation_cache()
    settings = sample2d.Settings(args.steps, args.sampler, args.guidance, args.seed, args.size, args.negative)
    how = {'config': args.config, 'variant': args.variant, 'dtype': args.dtype}
    sample2d.run(' '.join(args.prompt), args.weights, args.out, settings, **how)
