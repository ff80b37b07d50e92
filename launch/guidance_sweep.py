"""`python -m launch.guidance_sweep RUN --scales 0 1 2 3 5 8 --out sweep.png`: scores of a text-to-image run by guidance."""

import argparse
import json
import pathlib

from t3d.parallel import devices
from t3d.train import evaluate_pictures, inference, plots, preview


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m launch.guidance_sweep', description=__doc__)
    parser.add_argument('run', help='run folder, weights folder, or the name of shipped weights')
    parser.add_argument('--scales', type=float, nargs='+', default=[0.0, 1.0, 2.0, 3.0, 5.0, 8.0])
    parser.add_argument('--samples', type=int, default=16, help='of each caption')
    parser.add_argument('--out', default='sweep.png', help='the plot; the figures go beside it as .json')
    args = parser.parse_args()
    devices.compilation_cache()
    loaded = inference.load(args.run)
    rows = evaluate_pictures.sweep(loaded, args.scales, print, samples=args.samples)
    curves = {
        'seen: shape': 'seen/shape',
        'seen: colour': 'seen/colour',
        'held out: shape': 'held_out/shape',
        'held out: colour': 'held_out/colour',
        'held out: both': 'held_out/both',
    }
    series = {title: (args.scales, [row[name] for row in rows]) for title, name in curves.items()}
    title = f'{loaded.name}, step {loaded.step}: samples right by the oracle, {args.samples} of each caption'
    preview.write(args.out, plots.lines(series, title, 'guidance scale'))
    pathlib.Path(args.out).with_suffix('.json').write_text(json.dumps(rows, indent=1))
    print(f'open {args.out}')


if __name__ == '__main__':
    main()
