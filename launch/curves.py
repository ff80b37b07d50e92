"""`python -m launch.curves RUN --out curves.png`: what a run logged, as one picture for documentation.

A panel for each name of metrics.jsonl; TensorBoard shows the same (`tensorboard --logdir RUN`). Names end in `*` for all that
begin alike.
"""

import argparse
import json
import pathlib

import numpy as np

from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.train import plots


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m launch.curves', description=__doc__)
    parser.add_argument('run', help='run folder')
    parser.add_argument('names', nargs='*', help='of the log (default: all but perf/*)')
    parser.add_argument('--smooth', type=int, default=15, help='logged points that the running mean spans (default: 15)')
    parser.add_argument('--title', help='(default: the name of the folder)')
    parser.add_argument('--out', default='curves.png')
    args = parser.parse_args(argv)
    try:
        series = chosen(history(args.run), args.names)
    except (UsageError, FileNotFoundError) as wrong:
        parser.exit(2, f'error: {wrong}\n')
    from PIL import Image

    title = args.title or pathlib.Path(args.run).resolve().name
    Image.fromarray(plots.histories(series, title, smooth=max(1, args.smooth))).save(args.out, optimize=True)
    print(f'{len(series)} curves in {args.out}')


def history(run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """name -> (steps, values) of a run folder; of a step that was logged twice (a run that resumed) the last counts.

    Raises:
      FileNotFoundError: no metrics.jsonl there.
    """
    path = pathlib.Path(run) / 'metrics.jsonl'
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist: give the folder of a run (t3d train ... --workdir RUN).')
    rows = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        rows[row.pop('step')] = row
    names = sorted({name for row in rows.values() for name in row})
    steps = sorted(rows)
    found = {name: [(step, rows[step][name]) for step in steps if name in rows[step]] for name in names}
    return {name: tuple(np.array(points, float).T) for name, points in found.items()}


def chosen(series: dict, names: list[str]) -> dict:
    """The curves asked for, in that order; none asked for: all but the machine's."""
    if not names:
        return {name: value for name, value in series.items() if not name.startswith('perf/')}
    found = {}
    for name in names:
        matches = [key for key in series if key == name or (name.endswith('*') and key.startswith(name[:-1]))]
        if not matches:
            raise UsageError(configs.unknown(name, series, 'name in the log'))
        found |= {key: series[key] for key in matches}
    return found


if __name__ == '__main__':
    main()
