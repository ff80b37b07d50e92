"""`t3d train`: trains a system; the same command again resumes."""

from t3d.commands import outputs
from t3d.core import parsing
from t3d.core.rules import Whole

RANGES = {'stop_after': Whole(1, 2**31 - 1, 'steps')}


def flags(command) -> None:
    command.add_argument('config', help='configs/<name>.py:<variant>, for example configs/instant3d.py:tiny')
    command.add_argument(
        'overrides', nargs='*', default=[], metavar='key=value', help='changed config keys, for example batch=8'
    )
    command.add_argument('--workdir', help='the run folder (default: the next runs/NNNN-...)')
    command.add_argument('--prompts', nargs='+', help='write the assets of these prompts at the end')
    command.add_argument('--init-from', metavar='DIR', help='a run or weights folder: a new run starts from its weights')
    command.add_argument('--stop-after', type=int, metavar='N', help='stop once this many steps are finished')
    command.add_argument('--dry-run', action='store_true', help='print the config, parameter counts and memory; train nothing')


def run(args) -> int:
    from t3d import systems
    from t3d.core import config as configs
    from t3d.data import sources
    from t3d.inference import loading
    from t3d.parallel import devices
    from t3d.plan import dry_run
    from t3d.train import checked, loop, signals, traced

    parsing.held(args, RANGES)
    if args.workdir is not None:
        parsing.run_folder(args.workdir)
    config = configs.load(args.config, args.overrides)
    systems.module(config.get('system', ''))  # before anything that takes long
    devices.compilation_cache()
    config = dry_run.resolve(config) if args.dry_run else sources.resolve(config)
    given = loading.open_given(config, args.workdir, kept_first=False)
    check_names(config)
    if args.dry_run:
        system = systems.make(config, given)
        if args.prompts or not dry_run.has_made_up_words(config):
            check_prompts(system, config, args.prompts)
        if args.init_from is not None:
            check_source(config, system, given, args.init_from, args.workdir)
        print(dry_run.describe(config, given))
        return 0
    system, data = checked.prepare(config, given)  # before the run: a wrong config leaves no folder
    check_prompts(system, config, args.prompts)
    stop = signals.Stop()
    options = {'stop_after': args.stop_after, 'init_from': args.init_from, 'traced_in': traced.folder(config, given)}
    workdir = loop.run(config, args.workdir, system=system, data=data, given=given, stop=stop, **options)
    if not stop.requested:
        finish(workdir, args.prompts or outputs.prompts_of(config))
    return 0


def check_names(config) -> None:
    """Raises UsageError for an evaluator, a writer or a lift that nobody has: `finish` would meet it after the last step."""
    from t3d.evaluate import table
    from t3d.inference import publish

    for name in config.get('evaluate', ()):
        table.find(name)
    publish.check(config)


def check_prompts(system, config, prompts: list[str] | None = None) -> None:
    """Raises UsageError for prompts, or those of the config, that `finish` could not make after the last step."""
    from t3d.core.errors import UsageError
    from t3d.core.outputs import Request

    try:
        system.check([Request(prompt) for prompt in prompts or outputs.prompts_of(config)])
    except UsageError as error:
        if prompts:
            raise
        raise UsageError(f'export.prompts, made after the last step: {error} Or set export.prompts=() for none.') from error


def check_source(config, system, given, init_from: str, workdir: str | None) -> None:
    """Raises UsageError where a run could not start from these weights: `loop.run` does so on the devices of its mesh."""
    from t3d.core.system import params_of
    from t3d.inference import loading
    from t3d.train import states

    target = states.shapes(config, system, params_of(given))
    states.check_source(config, system, target, loading.shipped().get(init_from, init_from), workdir)


def finish(workdir, prompts: list[str], *, log=print, score: bool = True) -> None:
    """After the last step: scores into `scores.json`, then the assets of the prompts into `assets/`. Before it: nothing."""
    import json
    import pathlib

    from t3d.core import files
    from t3d.core.errors import UsageError
    from t3d.evaluate import table
    from t3d.inference import loading, publish

    if '://' in str(workdir):  # assets are files that programs open
        run = files.quoted(workdir)
        log(f'scores of a remote run: `t3d eval {run}`; assets: `t3d generate PROMPT --run {run}`')
        return
    workdir = pathlib.Path(workdir)
    loaded = loading.load(workdir)
    if loaded.step < loaded.config.steps:
        return
    if score:
        try:
            scores = table.evaluate(loaded, log)
        except UsageError as reason:  # data without the labels that a score needs: the assets are made all the same
            log(f'no scores: {reason}')
        else:
            files.write(workdir / 'scores.json', json.dumps({'step': loaded.step, **scores}, indent=1))
            log(publish.table(scores))
    if prompts:
        for folder in publish.assets(loaded, prompts, workdir / 'assets', log=log, metrics=workdir / 'metrics.jsonl'):
            log(f'open {publish.to_open(folder)}')


def meant(rest: list[str], written: str = 'without dashes: ') -> str:
    """What to write in place of an option that `t3d train` does not have; '' where nothing is near.

    Config keys are written as key=value (`written` says how); people bring them as --key value.
    """
    from t3d.core import limits, words

    option, _, value = rest[0].partition('=')
    value = value or ' '.join(word for word in rest[1:2] if not word.startswith('--'))
    name = option.lstrip('-').removeprefix('config.')
    known = [key for key in limits.LIMITS if name.replace('-', '_') in (key, key.split('.')[-1])]
    key = known[0] if known else words.key(name)
    if words.advice(name) and not known:
        return f' {words.advice(name)}'
    if key is None:
        return ''
    key = next((whole for whole in limits.LIMITS if whole == key or whole.endswith(f'.{key}')), key)
    return f' Config keys are written {written}{key}={value or "VALUE"}.'
