"""`t3d train`: trains a system; the same command again resumes."""

from t3d.commands import parsing
from t3d.core.rules import Whole

RANGES = {'stop_after': Whole(1, 2**31 - 1, 'steps')}


def flags(command) -> None:
    command.add_argument('config', help='configs/<name>.py:<variant>, for example configs/instant3d.py:tiny')
    command.add_argument('overrides', nargs='*', metavar='key=value', help='changed config keys, for example batch=8')
    command.add_argument('--workdir', help='the run folder (default: the next runs/NNNN-...)')
    command.add_argument('--prompts', nargs='+', help='write the assets of these prompts at the end')
    command.add_argument('--init-from', metavar='DIR', help='a run or weights folder: a new run starts from its parameters')
    command.add_argument('--stop-after', type=int, metavar='N', help='stop once this many steps are finished')
    command.add_argument('--dry-run', action='store_true', help='print the config, parameter counts and memory; train nothing')


def run(args) -> int:
    from t3d import systems
    from t3d.core import config as configs
    from t3d.data import sources
    from t3d.parallel import devices
    from t3d.train import checked, inference, loop, plan, publish, traced

    parsing.held(args, RANGES)
    if args.workdir is not None:
        parsing.writable(args.workdir, '--workdir')
    config = configs.load(args.config, args.overrides)
    systems.known(config)
    devices.compilation_cache()
    config = plan.resolve(config) if args.dry_run else sources.resolve(config)
    if args.prompts:  # better refused now than after the last step
        inference.check_prompts(config, args.prompts)
    if args.dry_run:
        print(plan.describe(config))
        return 0
    system, data = checked.prepare(config)  # before the run: a wrong config leaves no folder
    options = {'stop_after': args.stop_after, 'init_from': args.init_from, 'traced_in': traced.folder()}
    workdir = loop.run(config, args.workdir, system=system, data=data, **options)
    publish.finish(workdir, list(args.prompts or config.export.prompts))
    return 0


def meant(given: list[str], written: str = 'without dashes: ') -> str:
    """What to write in place of an option that `t3d train` does not have; '' where nothing is near.

    Config keys are written as key=value (`written` says how); people bring them as --key value.
    """
    from t3d.core import limits, words

    option, _, value = given[0].partition('=')
    value = value or ' '.join(word for word in given[1:2] if not word.startswith('--'))
    name = option.lstrip('-')
    known = [key for key in limits.LIMITS if name.replace('-', '_') in (key, key.split('.')[-1])]
    key = known[0] if known else words.key(name)
    if words.advice(name) and not known:
        return f' {words.advice(name)}'
    if key is None:
        return ''
    key = next((whole for whole in limits.LIMITS if whole == key or whole.endswith(f'.{key}')), key)
    return f' Config keys are written {written}{key}={value or "VALUE"}.'
