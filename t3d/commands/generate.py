"""`t3d generate`, `t3d export`, `t3d render`: prompts to assets, to meshes alone, to turntables alone."""

from t3d.commands import outputs

# of export.assets
OPTIONS = ('formats', 'texture', 'faces', 'grid', 'threshold', 'frames', 'size', 'render_size', 'gif', 'images')


def flags(command) -> None:
    """Of `t3d generate`."""
    outputs.prompts(command)
    command.add_argument('--system', help='choose among the shipped weights, for example instant3d')
    either = command.add_mutually_exclusive_group()
    either.add_argument('--run', help='a run folder')
    either.add_argument('--weights', help='a folder with model.safetensors and config.json (or T3D_WEIGHTS)')
    outputs.places(command)
    outputs.views(command)
    outputs.meshes(command)


def export_flags(command) -> None:
    """Of `t3d export`."""
    _of_run(command)
    outputs.meshes(command)


def render_flags(command) -> None:
    """Of `t3d render`."""
    _of_run(command)
    outputs.views(command)


def _of_run(command) -> None:
    command.add_argument('run', help='run folder, weights folder, or the name of shipped weights')
    outputs.prompts(command)
    outputs.places(command)


def run(args) -> None:
    """Of the three."""
    from t3d.parallel import devices
    from t3d.train import inference, publish

    devices.compilation_cache()
    folder = getattr(args, 'weights', None) or args.run
    seeds = outputs.parse_seeds(args.seeds)
    outputs.check(args)
    loaded = inference.load(folder, getattr(args, 'system', None))
    prompts = outputs.all_prompts(args, loaded.config)
    inference.check_prompts(loaded.config, prompts)
    options = {name: getattr(args, name) for name in OPTIONS if getattr(args, name, None) is not None}
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
