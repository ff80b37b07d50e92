"""Trains a system: `python -m launch.train --config configs/instant3d.py:tiny --workdir DIR --config.batch=16`.

Rerunning the command resumes. Many processes: the same command on every host with `--distributed` (TPU pods, SLURM, Open
MPI, Kubernetes are recognised), or with `--coordinator HOST:PORT --num-processes N --process-id I`.
"""

import os
import sys

from t3d.commands import train
from t3d.core import config as configs
from t3d.core import errors, files, parsing
from t3d.core.rules import Whole

RANGES = {
    'stop_after': Whole(1, 2**31 - 1, 'steps'),
    'num_processes': Whole(1, 2**20, 'processes in all'),
    'process_id': Whole(0, 2**20, 'of this process, from 0'),
    'heartbeat': Whole(10, 86_400, 'seconds'),
    'meet': Whole(10, 86_400, 'seconds'),
    'patience': Whole(10, 864_000, 'seconds'),
}


def main(argv=None) -> int:
    """Parses flags, joins the other processes, runs the loop."""
    parser = parsing.Parser(prog='python -m launch.train', description=__doc__)
    parser.add_argument('--config', required=True, help='configs/<name>.py:<variant>; --config.a.b=value changes a key')
    parser.add_argument('--workdir', help='the run folder (default: the next runs/NNNN-...)')
    parser.add_argument('--stop-after', type=int, help='stop once this many steps are finished')
    parser.add_argument('--init-from', help='a run or weights folder: a new run starts from its parameters')
    parser.add_argument('--distributed', action='store_true', help='join the processes of the cluster')
    parser.add_argument('--coordinator', help='HOST:PORT of process 0')
    parser.add_argument('--num-processes', type=int)
    parser.add_argument('--process-id', type=int)
    parser.add_argument('--heartbeat', type=int, default=100, help='seconds after which a silent process counts as dead (100)')
    parser.add_argument('--meet', type=int, default=300, help='seconds in which all processes have to come (300)')
    text = 'seconds without progress after which processes that are alive count as stuck (1800); an hour at least for a start'
    parser.add_argument('--patience', type=int, default=1800, help=text)
    overrides, argv = split(sys.argv[1:] if argv is None else argv)
    args, rest = parser.parse_known_args(argv)
    if rest:
        parser.refuse(rest, train.meant(rest, 'as --config.'))
    speaks, joining = True, False  # until the processes have met, each speaks for itself
    try:
        parsing.held(args, RANGES)
        if args.workdir is not None:
            parsing.run_folder(args.workdir)
        config = configs.load(args.config, overrides)

        import jax

        from t3d import systems
        from t3d.data import sources
        from t3d.inference import loading
        from t3d.parallel import agreement, clusters, devices
        from t3d.train import checked, loop, signals, traced

        systems.module(config.get('system', ''))
        devices.compilation_cache()
        by_hand = (args.coordinator, args.num_processes, args.process_id)
        if args.distributed or any(value is not None for value in by_hand):
            joining = True
            cluster = devices.start(*by_hand, heartbeat=args.heartbeat, meet=args.meet)
            joining = False
            if jax.process_index() == 0:
                print(*clusters.lines(cluster), sep='\n', flush=True)
        speaks = jax.process_index() == 0
        devices.check_equal()

        def opened():
            whole = sources.resolve(config)
            given = loading.open_given(whole, args.workdir, kept_first=False)
            train.check_names(whole)
            return whole, given, *checked.prepare(whole, given)

        # Before the run: a wrong config leaves no folder. Files of one host may be missing on another.
        config, given, system, data = agreement.on_every_process(opened)
        if jax.process_count() == 1:  # many leave the assets to `t3d generate`
            train.check_prompts(system, config)
        options = {
            'system': system,
            'data': data,
            'given': given,
            'stop_after': args.stop_after,
            'init_from': args.init_from,
            'traced_in': traced.folder(config, given),
            'patience': args.patience,
            'stop': signals.Stop(),
        }
        workdir = loop.run(config, args.workdir, **options)
        if options['stop'].requested:
            return 0
        if jax.process_count() == 1:
            train.finish(workdir, list(config.get('export', {}).get('prompts', ())))
        elif jax.process_index() == 0:
            run = files.quoted(workdir)
            print(f'after the last step: `t3d eval {run}`, `t3d generate PROMPT --run {run}`', flush=True)
    except Exception as error:
        text = errors.line(error)
        if text is None:
            raise
        alone = joining or isinstance(error, errors.OneProcess)
        if speaks or alone:
            print(f'error: {text}', file=sys.stderr, flush=True)
        if alone and jax.distributed.is_initialized():
            os._exit(2 if joining else errors.AGAIN)  # the others know nothing of it: an ordinary exit would wait
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """(overrides 'a.b=value' of --config.a.b=value or --config.a.b value, the other arguments)."""
    overrides, rest, argv = [], [], list(argv)
    while argv:
        word = argv.pop(0)
        if not word.startswith('--config.'):
            rest.append(word)
        elif '=' in word:
            overrides.append(word.removeprefix('--config.'))
        else:
            overrides.append(f'{word.removeprefix("--config.")}={argv.pop(0) if argv else ""}')
    return overrides, rest


if __name__ == '__main__':
    sys.exit(main())
