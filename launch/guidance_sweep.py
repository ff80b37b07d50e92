"""`python -m launch.guidance_sweep RUN --scales 1 2 3 5 7.5 --out sweep.png`: scores of a run by its guidance scale.

Beside the plot of what is right, its figures as .json; for systems that make 3D objects also a plot of FID-tiny (KID-tiny with
few samples), with what the stage-1 generator reaches.
"""

import json
import pathlib

from t3d.core import parsing
from t3d.core.errors import UsageError
from t3d.core.rules import Real, Several, Whole
from t3d.evaluate import table
from t3d.export import plots, sheets
from t3d.inference import loading
from t3d.parallel import devices

RANGES = {
    'scales': Several(Real(0.0, 1e3), 1, 100, 'scales of guidance'),
    'samples': Whole(1, 2**20, 'of each caption'),
}


def main(argv: list[str] | None = None) -> None:
    parser = parsing.Parser(prog='python -m launch.guidance_sweep', description=__doc__)
    parser.add_argument('run', help='run folder, weights folder, or the name of shipped weights')
    parser.add_argument('--scales', type=float, nargs='+', help='default: 1 2 3 5 7.5, of pictures 0 1 2 3 5 8')
    parser.add_argument('--samples', type=int, help='of each caption (default: 4, of pictures 16)')
    parser.add_argument('--out', default='sweep.png', help='the plot; the figures go beside it as .json')
    args = parser.parse_args(argv)
    devices.compilation_cache()
    with parsing.refusing(parser):
        parsing.held(args, RANGES)
        parsing.picture(args.out)
        loaded = loading.load(args.run)
        evaluator = table.first(loaded.config)
        if not hasattr(evaluator, 'sweep'):
            raise UsageError(f'{loaded.config.system} has no guidance to sweep.')
        scales, samples = args.scales or evaluator.SCALES, args.samples or evaluator.SWEPT
        rows = evaluator.sweep(loaded, scales, print, samples=samples)
    out = pathlib.Path(args.out)
    out.with_suffix('.json').write_text(json.dumps(rows, indent=1))
    what = f'{loaded.name}, step {loaded.step}'
    for name, image in plots.guidance(rows, scales, what, samples).items():
        path = out.with_stem(f'{out.stem}-{name}') if name else out
        sheets.write(path, image)
        print(f'open {path}')


if __name__ == '__main__':
    main()
