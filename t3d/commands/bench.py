"""`t3d bench`: throughput of this machine. The benchmarks parse their own words."""

import argparse

BENCHMARKS = """benchmarks, each with a --help of its own:
  render   rays a second of the volume renderer, beside a PyTorch peer
  train    steps and images a second, TFLOP/s and MFU of the train step of any config
  start    seconds to the end of the first train step of any config, with an empty and a filled cache
  unet     a forward pass of the Stable Diffusion UNet, beside diffusers
  gan      the four training phases of a triplane GAN, beside PyTorch modules of the same shapes
  mv       the three forms of the multi-view UNet, beside the plain UNet and PyTorch
  sds      a step of score distillation through Stable Diffusion's networks, beside diffusers and PyTorch
  decoder  Instant3D's decoder from text to triplane, and a view of it, beside PyTorch
  hash     points a second of a hash grid, beside PyTorch
  roof     what products, streams of memory and gathered rows reach at best
  scale    curves over rays, samples, views, batch and virtual devices
  goals    those that have goals on a processor, and the curves, into one file within an hour
  gpu      all of these that say something of an accelerator, into one file within ten minutes"""


def flags(command) -> None:
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = BENCHMARKS
    scale = 'the same as the benchmark `scale`, with its words'
    command.add_argument('--scale', nargs=argparse.REMAINDER, metavar='WORD', help=scale)
    command.add_argument('rest', nargs=argparse.REMAINDER, metavar='BENCHMARK ...', help='one of those below and its words')


def run(args) -> int:
    from t3d.bench import table

    return table.main(args.rest if args.scale is None else ['scale', *args.scale])
