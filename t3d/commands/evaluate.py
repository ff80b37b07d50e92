"""`t3d eval`: scores of a run, with their controls."""

from t3d.core import parsing
from t3d.core.rules import Whole

RANGES = {'limit': Whole(2, 2**31 - 1, 'objects or scenes; a control needs another one of each')}


def flags(command) -> None:
    command.add_argument(
        'run', help='run folder, weights folder, name of shipped weights, or a config of a system without weights'
    )
    command.add_argument('overrides', nargs='*', default=[], metavar='KEY=VALUE', help='of that config')
    command.add_argument('--metrics', metavar='A,B', help='psnr, ssim, fid, kid, fid_tiny, fd_effnet, clip, align, ...')
    command.add_argument('--inception-weights', metavar='FILE', help='FID Inception-v3 as safetensors, for fid and kid')
    command.add_argument('--clip-weights', metavar='DIR', help='folder of a CLIPModel, for clip')
    command.add_argument('--align-head', metavar='DIR', help='of python -m launch.align_head, for align (default: no training)')
    command.add_argument('--given', nargs='+', metavar='NAME=MODEL', help='other models to use than those of the run')
    command.add_argument('--evaluate', metavar='A,B', help='evaluators to use (default: those that the config names)')
    command.add_argument('--limit', type=int, help='at most this many objects or scenes')
    command.add_argument('--split', help='of a built data set: train (default), val, test, test_combo')
    command.add_argument('--data', metavar='DIR', help="the data set, where the run's own data.path is not here")
    command.add_argument('--json', type=parsing.json_file, help='also write the scores here')


def model(name: str, overrides: list[str], given: dict[str, str]):
    """The model that a word names; of a config, a system that samples given models and has no weights itself."""
    from t3d.core import config as configs
    from t3d.core.errors import UsageError
    from t3d.inference import given as givens
    from t3d.inference import loading

    if givens.is_config(name):
        return loading.untrained(configs.load(name, overrides), given)
    if overrides:
        raise UsageError(f'{overrides[0]}: what a run was made with is not changed; only a config takes KEY=VALUE.')
    return loading.load(name, given=given)


def run(args) -> None:
    import json

    from t3d.evaluate import scores, table
    from t3d.inference import given as givens
    from t3d.inference import loading, publish
    from t3d.parallel import devices

    parsing.held(args, RANGES)
    devices.compilation_cache()
    names = scores.check([name.strip() for name in args.metrics.split(',')]) if args.metrics else []
    loaded = model(args.run, args.overrides, givens.parse(args.given or ()))
    loaded, which = loading.with_data(loaded, args.data), {'limit': args.limit, 'split': args.split}
    if args.evaluate:
        loaded = table.with_evaluators(loaded, tuple(name.strip() for name in args.evaluate.split(',')))
    if names:
        weights = {name: getattr(args, name) for name in ('inception_weights', 'clip_weights', 'align_head')}
        results = scores.evaluate(loaded, names, print, **weights, **which)
    else:
        results = table.evaluate(loaded, print, **which)
        print(publish.table({'step': loaded.step, **results}))
    if args.json:
        with open(args.json, 'w') as file:
            json.dump({'step': loaded.step, **results}, file, indent=1)
