"""`t3d generate`, `t3d export`, `t3d render`: prompts to assets, to meshes alone, to turntables alone."""

from t3d.commands import outputs

# of export.assets
OPTIONS = (
    *('formats', 'texture', 'faces', 'grid', 'threshold', 'origin', 'height', 'light'),
    *('frames', 'size', 'render_size', 'gif', 'images'),
)


def flags(command) -> None:
    """The flags of `t3d generate`."""
    outputs.prompts(command)
    either = command.add_mutually_exclusive_group()
    either.add_argument('--system', help='choose among the shipped weights, for example instant3d')
    either.add_argument('--run', help='a run folder')
    either.add_argument('--weights', help='a folder with model.safetensors and config.json (or T3D_WEIGHTS)')
    either.add_argument(
        '--config',
        help='of a system that only samples other models, or is trained for each prompt',
    )
    command.add_argument('--image', metavar='FILE', help='a picture, for systems that read one')
    command.add_argument('--views', metavar='FOLDER', help='pictures with their cameras: makes an object of them')
    command.add_argument('--given', nargs='+', metavar='NAME=MODEL', help='other models to use than those of the config')
    outputs.places(command)
    outputs.views(command)
    outputs.meshes(command)


def export_flags(command) -> None:
    """The flags of `t3d export`."""
    _of_run(command)
    outputs.meshes(command)


def render_flags(command) -> None:
    """The flags of `t3d render`."""
    _of_run(command)
    outputs.views(command)


def _of_run(command) -> None:
    command.add_argument('run', help='run folder, weights folder, or the name of shipped weights')
    outputs.prompts(command)
    outputs.places(command)


def run(args) -> None:
    """Runs `t3d generate`, `t3d export` or `t3d render`."""
    from t3d.inference import publish, requests
    from t3d.parallel import devices

    devices.compilation_cache()
    seeds = outputs.parse_seeds(args.seeds)
    outputs.check(args)
    if (loaded := _model(args, seeds)) is None:  # a dry run of one that would be trained first
        return
    image, views = getattr(args, 'image', None), getattr(args, 'views', None)
    named = (image is None and views is None) or args.prompt or args.prompts
    prompts = outputs.all_prompts(args, loaded.config) if named else []
    asked = requests.make(prompts, image, views)
    loaded.system.check(asked)
    options = {name: getattr(args, name) for name in OPTIONS if getattr(args, name, None) is not None}
    publish.check(loaded.config, options.get('light', 'baked'), loaded.given)  # what nobody has is said before anything is made
    if 'formats' in options:
        options['formats'] = tuple(options['formats'])
    print(f'{loaded.config.system} from {loaded.name}, step {loaded.step}: {len(asked)} prompts, seeds {seeds} -> {args.out}')
    if args.dry_run:
        settings = {'prompts': [request.prompt for request in asked], **publish.options(args.command, loaded, options)}
        print('\n'.join(f'  {name} = {value}' for name, value in settings.items()))
        return
    if args.command == 'generate':
        paths = [publish.to_open(folder) for folder in publish.assets(loaded, asked, args.out, seeds=seeds, **options)]
    else:
        make = {'export': publish.mesh_files, 'render': publish.turntables}[args.command]
        paths = make(loaded, asked, args.out, seeds=seeds, **options)
    print('\n'.join(f'open {path}' for path in paths))


def _model(args, seeds):
    """The model that the words name: a run, weights, or a config of a system that has no weights or is trained now.

    None where training it would come first and a dry run was asked for.
    """
    from t3d import systems
    from t3d.commands import per_prompt
    from t3d.core import config as configs
    from t3d.core.errors import UsageError
    from t3d.inference import given as givens
    from t3d.inference import loading

    others = givens.parse(getattr(args, 'given', None) or ())
    spec = getattr(args, 'config', None) or per_prompt.config_of(getattr(args, 'system', None))
    if getattr(args, 'views', None) and not (spec or args.system or args.run or args.weights):
        spec = systems.OF_VIEWS
    if spec:
        config = configs.load(spec)
        if per_prompt.trains(config):
            if args.image is not None:
                raise UsageError(f'--image {args.image}: {config.system} is trained for prompts: give one in quotes.')
            if args.views is not None:
                raise UsageError(f'--views {args.views}: {config.system} is trained for prompts: give one in quotes.')
            words = config, outputs.given_prompts(args), seeds, args.out, others
            if not args.dry_run:
                return per_prompt.model(*words)
            config, folder, *_ = per_prompt.prepared(*words)
            print(f'{config.system} would be trained {config.steps} steps in {folder}, then write {args.out}')
            print('\n'.join(f'  prompt {prompt!r}' for prompt in config.prompts))
            return None
        return loading.untrained(config, others)
    return loading.load(getattr(args, 'weights', None) or args.run, getattr(args, 'system', None), given=others)
