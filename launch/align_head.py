"""`python -m launch.align_head --out weights/align_head`: trains the head of the offline judge on built furniture.

Build the data first: `t3d data build furniture --source PATH --variants 7`. Use the head by
`t3d eval RUN --metrics align --align-head DIR`.
"""

from t3d.core import parsing
from t3d.core.rules import Whole
from t3d.evaluate import align_head
from t3d.parallel import devices

RANGES = {
    'limit': Whole(1, 2**31 - 1, 'examples to learn from'),
    'unseen': Whole(1, 2**31 - 1, 'examples of val and of test'),
    'steps': Whole(1, 2**31 - 1, 'of training'),
    'seed': Whole(0, 2**32 - 1, 'of the training'),
}


def main(argv: list[str] | None = None) -> None:
    parser = parsing.Parser(prog='python -m launch.align_head', description=__doc__)
    parser.add_argument('--out', required=True, help='the weights folder to write')
    parser.add_argument('--data', help='folder of built furniture (default: $T3D_DATA or ~/.cache/t3d/data)')
    parser.add_argument('--limit', type=int, help='at most this many examples to learn from')
    parser.add_argument('--unseen', type=int, help='at most this many examples of val and of test to report on')
    parser.add_argument('--steps', type=int, default=1500, help='of training')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    devices.compilation_cache()
    with parsing.refusing(parser):
        parsing.held(args, RANGES)
        parsing.writable(args.out)
        align_head.train(args.out, args.data, seed=args.seed, limit=args.limit, unseen=args.unseen, steps=args.steps)


if __name__ == '__main__':
    main()
