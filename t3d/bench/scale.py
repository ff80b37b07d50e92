"""`t3d bench scale`: curves of throughput over rays, samples, views, batch and virtual devices, four points each.

    t3d bench scale                                # all five, some minutes
    t3d bench scale --axes rays,samples            # of the renderer, tiny planes, forward and backward
    t3d bench scale --axes devices --points 2      # a train step on 1 and 2 virtual devices of the processor, a process each

| axis | what is timed |
|---|---|
| `rays` | forward and backward of `t3d bench render` at `tiny`, one picture of 16 to 128 px |
| `samples` | the same, one picture of 32 px and 16 to 128 samples |
| `views` | a forward pass of the multi-view UNet, `dense` of `t3d bench mv`, one object of 1 to 8 views |
| `batch` | a forward pass of the UNet, `tiny` of `t3d bench unet`, of 1 to 8 latents |
| `devices` | a train step of DEVICES_CONFIG on 1 to 8 devices, batch and model the same: how much a machine gains by sharing |

A point says how many of its units (rays, samples, views, latents, pictures) a second makes. The rules of measurement are those
of t3d.bench.measure; there are no peers.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from t3d.bench import figures, measure
from t3d.core import parsing

DEVICES_CONFIG = 'configs/instant3d.py:tiny'
HEADER = ('| axis | value | ms: median [min, max] | units a second | times the first point |', '|---|---|---|---|---|')
AXES = {  # values; the unit of a second's rate
    'rays': ((256, 1024, 4096, 16384), 'rays'),
    'samples': ((16, 32, 64, 128), 'samples'),
    'views': ((1, 2, 4, 8), 'views'),
    'batch': ((1, 2, 4, 8), 'latents'),
    'devices': ((1, 2, 4, 8), 'pictures'),
}


def rendered(repeats: int, image: int = 32, samples: int = 32) -> dict:
    """The row of a training pass of the renderer, one picture of `image` px, half of the samples coarse ones."""
    from t3d.bench import render_workload
    from t3d.metrics import flops

    shape = {**render_workload.SHAPES['tiny'], 'batch': 1, 'image': image, 'coarse': samples // 2, 'fine': samples // 2}
    work = render_workload.render_workload(shape)
    program = measure.compiled(work.both, *work.args)
    turns = measure.all_turns([functools.partial(measure.once, program.call, *work.args)], repeats)[0]
    inputs = {'planes': work.args[1], 'samples': np.empty((image**2, samples), np.bool_)}
    return figures.row(turns, program, flops.count(work.both, *work.args), inputs, images=1, rays=image**2)


def viewed(repeats: int, views: int) -> dict:
    """The row of a forward pass of the multi-view UNet over the views of one object."""
    from t3d.bench import mv

    work = mv.form_work({**mv.SIZES['dense'], 'objects': 1, 'views': views}, 'dense')
    return work.row('forward', measure.all_turns([functools.partial(work.once, 'forward')], repeats)[0])


def batched(repeats: int, batch: int) -> dict:
    """The row of a forward pass of the UNet over a batch of latents."""
    from t3d.bench import unet

    return unet.measured({**unet.SIZES['tiny'], 'batch': batch}, 'float32', None, repeats, False)


def divided(repeats: int, count: int) -> dict:
    """The row of a train step on so many virtual devices, in a process of its own."""
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(count)}
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / 'train.json'
        words = ['train', '--config', DEVICES_CONFIG, '--repeats', str(repeats), '--json', str(file)]
        command = [sys.executable, '-m', 't3d.cli', 'bench', *words]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        if ended.returncode:
            raise RuntimeError(f'no step on {count} virtual devices: {ended.stderr[-2000:].strip()}')
        return json.loads(file.read_text())['figures']['row']


def point(axis: str, value: int, repeats: int) -> dict:
    """{'value', 'per_s': units a second, 'row'} of one point of a curve."""
    if axis == 'rays':
        row = rendered(repeats, image=round(value**0.5))
    elif axis == 'samples':
        row = rendered(repeats, samples=value)
    else:
        row = {'views': viewed, 'batch': batched, 'devices': divided}[axis](repeats, value)
    rate = row['rays_per_s'] if axis in ('rays', 'samples') else row['images_per_s']
    return {'value': value, 'per_s': rate * value if axis == 'samples' else rate, 'row': row}


def flags() -> parsing.Parser:
    """The flags of `t3d bench scale`."""
    parser = figures.parser('scale', __doc__)
    parser.add_argument('--axes', default=','.join(AXES), help=f'some of {",".join(AXES)}')
    parser.add_argument('--points', type=figures.COUNT, default=4, help='of each curve, from the smallest')
    return parser


def main(argv=None) -> int:
    """Prints a Markdown table; returns 0."""
    args = figures.parsed(flags(), argv, axes=AXES)
    print(figures.machine('float32'))
    print('\n'.join(HEADER), flush=True)
    curves = {}
    for axis in args.axes:
        values, unit = AXES[axis]
        points = curves.setdefault(axis, {'unit': unit, 'points': []})['points']
        for value in values[: args.points]:
            points.append(point(axis, value, args.repeats))
            rate, times = points[-1]['per_s'], points[-1]['per_s'] / points[0]['per_s']
            timing = measure.Timing(*points[-1]['row']['t3d_ms'])
            print(f'| {axis} | {value} | {timing} | {rate:.4g} {unit} | {times:.2f} |', flush=True)
    measure.warn_of_load()
    figures.write(args, 'scale', curves)
    return 0
