"""`t3d`: the command line. Each command parses its words and makes one call; nothing heavy is imported before that."""

import argparse
import os
import sys

from t3d import __version__
from t3d.train import flags


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 2 for wrong input, 130 when interrupted."""
    args = parse(argv)
    from t3d.core import errors

    try:
        status = args.call(args) or 0
        sys.stdout.flush()  # a closed pipe is met here, not at the interpreter's end
        return status
    except BrokenPipeError:  # the reader has left, as `head` does: what it did not want is not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a program that SIGPIPE ended
    except Exception as error:
        text = errors.line(error)
        if text is None:
            raise
    except KeyboardInterrupt:
        return 130
    sys.stderr.write(f'error: {text}\n')  # one write: other threads may speak too
    sys.stderr.flush()
    return 2


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The parsed words. Prompts of a command, and key=value of `t3d train`, may stand anywhere among the options."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    loose = [word for word in rest if not word.startswith('-')]
    if args.command == 'train':
        loose = [word for word in loose if _is_override(word)]
        args.overrides += loose + [word for word in args.prompts or () if _is_override(word)]
        args.prompts = [word for word in args.prompts or () if not _is_override(word)]
    elif hasattr(args, 'prompt'):
        args.prompt = args.prompt + loose
    else:
        loose = []
    rest = [word for word in rest if word not in loose]
    if rest:
        parser.error(f'unrecognized arguments: {" ".join(rest)}')
    return args


def _is_override(word: str) -> bool:
    name, equals, _ = word.partition('=')
    return bool(equals) and name.replace('.', '_').isidentifier()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='t3d', description='Text-to-3D in JAX.')
    parser.add_argument('--version', action='version', version=f't3d {__version__}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def add(name, call, text):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(call=call)
        return command

    generate = add('generate', _generate, 'prompts to textured meshes, turntables and reports')
    _prompts(generate)
    _source(generate)
    _mesh_outputs(_view_outputs(_common_outputs(generate)))

    train = add('train', _train, 'train a system; the same command again resumes')
    train.add_argument('config', help='configs/<name>.py:<variant>, for example configs/instant3d.py:tiny')
    train.add_argument('overrides', nargs='*', metavar='key=value', help='changed config keys, for example batch=8')
    train.add_argument('--workdir', help='the run folder (default: the next runs/NNNN-...)')
    train.add_argument('--prompts', nargs='+', help='write the assets of these prompts at the end')
    train.add_argument('--dry-run', action='store_true', help='print the config, parameter counts and memory; train nothing')

    for name, text, outputs in (
        ('export', 'the meshes of a run, in any format', _mesh_outputs),
        ('render', 'the turntables of a run', _view_outputs),
    ):
        command = add(name, _generate, text)
        command.add_argument('run', help='run folder, weights folder, or the name of shipped weights')
        _prompts(command)
        outputs(_common_outputs(command))

    view = add('view', _view, 'look at a prompt in the browser, live from a checkpoint')
    view.add_argument('run', nargs='?', help='run folder, weights folder, or the name of shipped weights')
    view.add_argument('prompt', nargs='*')
    view.add_argument('--port', type=int, default=8080)

    flags.evaluate(add('eval', _evaluate, 'scores of a run, with their controls'))
    flags.sample2d(add('sample2d', _sample2d, 'text to image, with Stable Diffusion weights of your own or image_diffusion'))

    weights = add('weights', _weights, 'a run as a folder to share; `t3d weights check DIR`: what real weights hold')
    weights.add_argument('run', help='run folder, or the word check')
    weights.add_argument('out', help='folder to write; after check, the folder or .safetensors to read')
    flags.settings(weights)
    weights.add_argument('--dtype', default='float32', choices=('float32', 'float16', 'bfloat16'))

    flags.bench(add('bench', _bench, 'throughput of this machine: `t3d bench render`, `t3d bench train --config ...`'))

    flags.data(add('data', _data, 'data sets: `t3d data build ...`, `t3d data single-view ...`'))

    add('configs', _configs, 'the configs there are')
    info = add('info', _info, 'what a run or weights folder holds')
    info.add_argument('run', nargs='?', help='default: the shipped weights')
    add('doctor', _doctor, 'what this machine has: the first thing to send with a report')
    return parser


def _prompts(command) -> None:
    command.add_argument('prompt', nargs='*', help='one prompt each, in quotes')
    command.add_argument('--prompts', metavar='FILE', help='a text file, one prompt a line')
    command.add_argument('--seeds', default='0', help='a number, a list 0,4 or a range 0-3')


def _source(command) -> None:
    command.add_argument('--system', help='choose among the shipped weights, for example instant3d')
    either = command.add_mutually_exclusive_group()
    either.add_argument('--run', help='a run folder')
    either.add_argument('--weights', help='a folder with model.safetensors and config.json (or T3D_WEIGHTS)')


def _common_outputs(command):
    command.add_argument('--out', default='out', help='folder to write (default: out/)')
    command.add_argument('--grid', type=int, help='cells per side of the density grid')
    command.add_argument('--dry-run', action='store_true', help='print what would be made, make nothing')
    return command


def _mesh_outputs(command):
    command.add_argument('--format', dest='formats', nargs='+', metavar='F', help='glb, obj, ply, stl')
    command.add_argument('--texture', type=int, help='texels per side, 0 for vertex colours')
    command.add_argument('--faces', type=int, help='triangles at most')
    command.add_argument('--threshold', type=float, help='density of the surface (default: the one that fits the renders)')
    return command


def _view_outputs(command):
    command.add_argument('--frames', type=int, help='of the turntable, 0 for none')
    command.add_argument('--size', type=int, help='pixels of the turntable')
    command.add_argument('--render-size', type=int, help='pixels rendered before scaling to --size')
    command.add_argument('--gif', action='store_true', default=None, help='also a gif')
    return command


def parse_seeds(text: str) -> list[int]:
    """[0, 1, 2, 3, 7] from '0-3,7'."""
    from t3d.core.errors import UsageError

    seeds = []
    for part in text.split(','):
        first, dash, last = part.strip().partition('-')
        good = all(number.isascii() and number.isdigit() and int(number) < 2**32 for number in (first, last if dash else first))
        if not good or (dash and int(last) < int(first)):
            raise UsageError(f'seeds {text!r}: wanted a number below 2^32, a list 0,4 or a range 0-3.')
        seeds += range(int(first), int(last if dash else first) + 1)
    return list(dict.fromkeys(seeds))


def _all_prompts(args, config) -> list[str]:
    from t3d.core.errors import UsageError

    prompts = list(args.prompt)
    if args.prompts:
        with open(args.prompts, encoding='utf-8') as lines:
            prompts += [line.strip() for line in lines if line.strip()]
    prompts = prompts or list(config.export.prompts)
    if not prompts:
        raise UsageError('no prompt: give one in quotes, or a file with --prompts FILE.')
    return prompts


def _generate(args) -> None:
    from t3d.parallel import devices
    from t3d.train import inference, publish

    devices.compilation_cache()
    folder = getattr(args, 'weights', None) or args.run
    seeds = parse_seeds(args.seeds)
    _check_outputs(args)
    loaded = inference.load(folder, getattr(args, 'system', None))
    prompts = _all_prompts(args, loaded.config)
    inference.check_prompts(loaded.config, prompts)
    names = ('formats', 'texture', 'faces', 'grid', 'threshold', 'frames', 'size', 'render_size', 'gif')
    options = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    if 'formats' in options:
        options['formats'] = tuple(options['formats'])
    print(f'{loaded.config.system} from {loaded.name}, step {loaded.step}: {len(prompts)} prompts, seeds {seeds} -> {args.out}')
    if args.dry_run:
        shown = {'prompts': prompts, **publish.options(args.command, loaded, options)}
        print('\n'.join(f'  {name} = {value}' for name, value in shown.items()))
        return
    if args.command == 'generate':
        paths = [publish.to_open(folder) for folder in publish.assets(loaded, prompts, args.out, seeds=seeds, **options)]
    else:
        make = {'export': publish.mesh_files, 'render': publish.turntables}[args.command]
        paths = make(loaded, prompts, args.out, seeds=seeds, **options)
    print('\n'.join(f'open {path}' for path in paths))


def _check_outputs(args) -> None:
    """What can be known before the weights are read."""
    from t3d.core.errors import UsageError
    from t3d.export import meshes

    unknown = [word for word in getattr(args, 'formats', None) or () if word not in meshes.FORMATS]
    if unknown:
        hint = ' Put prompts before --format.' if ' ' in unknown[0] else ''
        raise UsageError(f'unknown mesh format {unknown[0]!r}: choose from {", ".join(meshes.FORMATS)}.{hint}')
    for name, least in (('texture', 0), ('faces', 4), ('grid', 8), ('frames', 0), ('size', 16), ('render_size', 8)):
        value = getattr(args, name, None)
        if value is not None and value < least:
            raise UsageError(f'--{name.replace("_", "-")} {value}: wanted at least {least}.')


def _train(args) -> int:
    from t3d import systems
    from t3d.core import config as configs
    from t3d.data import sources
    from t3d.parallel import devices
    from t3d.train import inference, loop, plan, publish, traced

    config = configs.load(args.config, args.overrides)
    devices.compilation_cache()
    config = plan.resolve(config) if args.dry_run else sources.resolve(config)
    if args.prompts:  # better refused now than after the last step
        inference.check_prompts(config, args.prompts)
    if args.dry_run:
        print(plan.describe(config))
        return 0
    system = systems.make(config)  # with the data made before the run, a wrong config leaves no folder
    data = (*sources.make(config), sources.preview(config, system.batch_spec))
    workdir = loop.run(config, args.workdir, system=system, data=data, traced_in=traced.folder())
    publish.finish(workdir, list(args.prompts or config.export.prompts))
    return 0


def _view(args) -> None:
    from t3d import viewer

    words = list(args.prompt)
    if args.run and ' ' in args.run:  # `t3d view "a red cube"`: the shipped weights
        args.run, words = None, [args.run, *words]
    viewer.serve(args.run, ' '.join(words), port=args.port)


def _evaluate(args) -> None:
    import json

    from t3d.parallel import devices
    from t3d.train import evaluate, inference, publish, scores

    devices.compilation_cache()
    names = scores.check([name.strip() for name in args.metrics.split(',')]) if args.metrics else []
    loaded, which = inference.load(args.run), {'limit': args.limit, 'split': args.split}
    if names:
        weights = {name: getattr(args, name) for name in ('inception_weights', 'clip_weights', 'align_head')}
        found = scores.evaluate(loaded, names, print, **weights, **which)
    else:
        found = evaluate.evaluate(loaded, print, **which)
        print(publish.table({'step': loaded.step, **found}))
    if args.json:
        with open(args.json, 'w') as file:
            json.dump({'step': loaded.step, **found}, file, indent=1)


def _sample2d(args) -> None:
    from t3d.parallel import devices
    from t3d.train import sample2d

    devices.compilation_cache()
    settings = sample2d.Settings(args.steps, args.sampler, args.guidance, args.seed, args.size, args.negative)
    how = {'config': args.config, 'variant': args.variant, 'dtype': args.dtype}
    sample2d.run(' '.join(args.prompt), args.weights, args.out, settings, **how)


def _weights(args) -> int | None:
    if args.run == 'check':
        from t3d.train import weights_check

        return weights_check.run(args.out, config=args.config)
    from t3d.train import inference

    inference.save_weights(inference.load(args.run), args.out, args.dtype)
    print(f'wrote {args.out}/model.safetensors and {args.out}/config.json')


def _bench(args) -> int:
    from t3d.train import bench

    return bench.main(args.rest)


def _data(args) -> None:
    if args.action == 'single-view':
        from t3d.train import single_view_set

        return print(single_view_set.run(args))
    from t3d.data import furniture

    try:
        import embreex.mesh_construction  # noqa: F401
    except ImportError as error:
        raise ModuleNotFoundError(
            '`t3d data build` renders with Embree (package embreex): pip install "t3d[data]". Its wheels '
            'are for x86-64 Linux, Windows and macOS.'
        ) from error
    path = furniture.build(
        args.source,
        args.out,
        args.size,
        variants=args.variants,
        limit=args.limit,
        license=args.license,
        processes=args.processes,
    )
    print(f'built {path}')


def _configs(args) -> None:
    from t3d.train import plan

    print(plan.configs_table())


def _info(args) -> None:
    from t3d.train import plan

    print(plan.info(args.run))


def _doctor(args) -> None:
    from t3d.train import doctor

    print(doctor.report())


if __name__ == '__main__':
    sys.exit(main())
