"""`t3d bench gpu`: every benchmark that says something of an accelerator, one after the other, into one file within a time.

    t3d bench gpu --json figures.jsonl                # on the accelerator: ten minutes
    t3d bench gpu --json rehearsal.jsonl --small      # the same words at small sizes, on any machine: is nothing misspelt?

Each benchmark is a process of its own (t3d/bench/series.py). What is worth most comes first; what the time left does not reach
is listed at the end, with the command that goes on.

Peers of the UNets are in PyTorch alone; that of `sds` needs diffusers. Where the packages of a peer are missing, a benchmark
measures ours and says `no peer`; its check then compares nothing. Without grain or the data of a config the batch of its train
step is made up, and the figures say so. The configs need ml_collections: docs/benchmarks.md brings it along.
`python -m launch.gpu_page figures.jsonl` makes tables of the file.
"""

import shlex

from t3d.bench import series
from t3d.core import parsing

SIZE = {'sd21': 'tiny', 'mvdream': 'tiny', 'released': 'tiny', 'tiny,64,128': 'tiny', 'base': 'tiny'}  # in a rehearsal
PLAN = (  # most telling first; a step of each system at `base` size in bfloat16 has its MFU
    'unet --sizes sd21 --dtype bfloat16 --vs plain',
    'train --config configs/image_diffusion.py:base',
    'train --config configs/mvdiffusion.py:base',
    'train --config configs/ganfusion_diffusion.py:base',
    'train --config configs/instant3d.py:base',
    'train --config configs/ganfusion_gan.py:base',
    'train --config configs/renderdiffusion.py:base',
    'train --config configs/image_diffusion.py:base unet.attention=plain',  # beside the first, which may have cuDNN's
    'roof --dtype bfloat16',
    'roof',
    'render --sizes tiny,64,128',
    'unet --sizes sd21 --dtype bfloat16 --vs compiled',  # the peer compiles for minutes
    'hash',
    'unet --sizes sd21 --check --precision default --vs plain',
    'unet --sizes sd21 --vs plain',
    'mv --sizes mvdream --vs plain',
    'decoder --sizes released',
    'start --repeats 1',
    'sds --sizes sd21 --repeats 3',
    'gan --size 128',
    'decoder --check',
    'mv --check --vs plain',
    'sds --check',
)


def flags() -> parsing.Parser:
    """The flags of `t3d bench gpu`."""
    return series.flags('gpu', __doc__, seconds=560, small='tiny sizes, two repeats', file='gpu.jsonl')


def plan(small: bool) -> list[list[str]]:
    """The words of each benchmark."""
    if not small:
        return [shlex.split(line) for line in PLAN]
    return [[*map(_small, shlex.split(line)), '--repeats', '2'] for line in PLAN]


def _small(word: str) -> str:
    head, colon, variant = word.rpartition(':')
    return f'{head}:tiny' if colon and variant == 'base' else SIZE.get(word, word)


def main(argv=None) -> int:
    """Runs what time allows; returns 1 if a benchmark failed or was not reached, else 0."""
    return series.main('gpu', flags(), plan, argv)
