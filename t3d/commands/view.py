"""`t3d view`: a prompt in the browser, live from a checkpoint."""

from t3d.core import parsing
from t3d.core.rules import Whole

RANGES = {'port': Whole(0, 65535, '8080 is usual, 0 takes any that is free')}


def flags(command) -> None:
    command.add_argument('run', nargs='?', help='run folder, weights folder, or the name of shipped weights')
    command.add_argument('prompt', nargs='*')
    command.add_argument('--port', type=int, default=8080, help='default: 8080, or the next that is free')
    command.add_argument('--host', default='127.0.0.1', help='address to listen on; 0.0.0.0 lets other machines in')


def run(args) -> None:
    from t3d import viewer

    parsing.held(args, RANGES)
    words = list(args.prompt)
    if args.run and ' ' in args.run:  # `t3d view "a red cube"`: the shipped weights
        args.run, words = None, [args.run, *words]
    viewer.serve(args.run, ' '.join(words), port=args.port, host=args.host)
