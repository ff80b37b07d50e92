"""`python -m launch.curves RUN --out curves.png`: what a run logged, as one picture for documentation.

A panel for each name of metrics.jsonl; TensorBoard shows the same (`tensorboard --logdir RUN`). Names end in `*` for all that
begin alike.
"""

import pathlib

from t3d.core import parsing
from t3d.core.rules import Whole
from t3d.export import plots


def main(argv: list[str] | None = None) -> None:
    parser = parsing.Parser(prog='python -m launch.curves', description=__doc__)
    parser.add_argument('run', help='run folder')
    parser.add_argument('names', nargs='*', help='of the log (default: all but perf/*)')
    parser.add_argument('--smooth', type=int, default=15, help='logged points that the running mean spans (default: 15)')
    parser.add_argument('--title', help='(default: the name of the folder)')
    parser.add_argument('--out', default='curves.png')
    args = parser.parse_args(argv)
    with parsing.refusing(parser):
        parsing.held(args, {'smooth': Whole(1, 10**6, 'logged points')})
        parsing.picture(args.out)
        series = plots.chosen(plots.history(args.run), args.names)
    from PIL import Image

    title = args.title or pathlib.Path(args.run).resolve().name
    Image.fromarray(plots.histories(series, title, smooth=args.smooth)).save(args.out, optimize=True)
    print(f'{len(series)} curves in {args.out}')


if __name__ == '__main__':
    main()
