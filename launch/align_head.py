"""`python -m launch.align_head --out weights/align_head`: trains the head of the offline judge on built furniture.

Build the data first: `t3d data build furniture --source PATH --variants 7`. Use the head by
`t3d eval RUN --metrics align --align-head DIR`.
"""

import argparse

from t3d.core.errors import UsageError
from t3d.parallel import devices
from t3d.train import align_head


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m launch.align_head', description=__doc__)
    parser.add_argument('--out', required=True, help='the weights folder to write')
    parser.add_argument('--data', help='folder of built furniture (default: $T3D_DATA or ~/.cache/t3d/data)')
    parser.add_argument('--limit', type=int, help='at most this many examples to learn from')
    parser.add_argument('--unseen', type=int, help='at most this many examples of val and of test to report on')
    parser.add_argument('--steps', type=int, default=1500, help='of training')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    devices.compilation_cache()
    try:
        align_head.train(args.out, args.data, seed=args.seed, limit=args.limit, unseen=args.unseen, steps=args.steps)
    except (UsageError, FileNotFoundError) as wrong:
        parser.exit(2, f'error: {wrong}\n')


if __name__ == '__main__':
    main()
