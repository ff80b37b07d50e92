"""Flags of commands that have many. Imports nothing heavy: `t3d --help` reads this."""


def sample2d(command) -> None:
    """Of `t3d sample2d`, added to its argparse parser."""
    command.add_argument('prompt', nargs='*', help='in quotes')
    command.add_argument('--weights', metavar='DIR', help='diffusers layout, one .safetensors, a run or a weights folder')
    settings(command)
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


def settings(command) -> None:
    """`--config` of commands that take a single-file checkpoint."""
    text = 'beside a single .safetensors: the folder with settings, tokenizer and schedule (default: where the file lies)'
    command.add_argument('--config', metavar='DIR', help=text)


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


def bench(command) -> None:
    """Of `t3d bench`, added to its argparse parser: the benchmarks parse their own words."""
    import argparse

    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = """benchmarks, each with a --help of its own:
  render  rays a second of the volume renderer, beside a PyTorch peer
  train   steps and images a second, TFLOP/s and MFU of the train step of any config
  start   seconds to the end of the first train step of any config, with an empty and a filled cache
  unet    a forward pass of the Stable Diffusion UNet, beside diffusers
  gan     the four training phases of a triplane GAN, beside PyTorch modules of the same shapes"""
    command.add_argument('rest', nargs=argparse.REMAINDER, metavar='BENCHMARK ...', help='one of those below and its words')


def data(command) -> None:
    """Of `t3d data`, added to its argparse parser."""
    actions = command.add_subparsers(dest='action', required=True, metavar='ACTION')
    text = 'render the furniture library: `t3d data build furniture --source PATH --size 64`'
    build = actions.add_parser('build', help=text, description=text)
    build.add_argument('name', choices=('furniture',))
    build.add_argument('--source', required=True, help='the .deb, a .sh3f library, or a folder of them')
    build.add_argument('--size', type=int, default=64, help='pixels of the square views')
    build.add_argument('--out', help='where built data sets live (default: $T3D_DATA or ~/.cache/t3d/data)')
    build.add_argument('--variants', type=int, default=0, help='recoloured variants of each object, up to 7')
    build.add_argument('--limit', type=int, help='only this many objects')
    build.add_argument('--processes', type=int, default=2, help='that render at once')
    build.add_argument('--license', default='all', choices=('all', 'cc0'))
    text = 'one posed picture a record as an EG3D folder or zip: `t3d data single-view toy --out toy.zip`'
    write = actions.add_parser('single-view', help=text, description=text)
    write.add_argument(
        'name', choices=('toy', 'furniture', 'eg3d'), help='eg3d: a set that is checked, mirrored or made smaller'
    )
    write.add_argument('--out', required=True, help='a .zip, or a folder that is not there yet')
    write.add_argument('--source', default='', help='of eg3d: its folder or zip; of furniture: the build (default: $T3D_DATA)')
    write.add_argument('--split', default='train', help='train (default), test, ...')
    write.add_argument('--size', type=int, help='pixels of the square images (default: 64; of eg3d as they are)')
    write.add_argument('--poses', type=int, default=64, help='of toy: pictures of each scene')
    write.add_argument('--scenes', default='singles', help='of toy: singles, pairs, both')
    write.add_argument('--supersample', type=int, default=3, help='of toy: rays for each side of a pixel, odd')
    write.add_argument('--variants', type=int, default=0, help='of furniture: recoloured variants the build has')
    write.add_argument('--background', type=float, default=0.5, help='grey from 0 to 1 behind transparent pixels')
    write.add_argument('--seed', type=int, default=0, help='of the poses')
    write.add_argument('--mirror', action='store_true', help='every picture a second time, mirrored, its label too')
    write.add_argument('--limit', type=int, help='only this many pictures, spread over the set')
