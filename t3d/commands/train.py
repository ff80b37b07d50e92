"""`t3d train`: trains a system; the same command again resumes."""


def flags(command) -> None:
    command.add_argument('config', help='configs/<name>.py:<variant>, for example configs/instant3d.py:tiny')
    command.add_argument('overrides', nargs='*', metavar='key=value', help='changed config keys, for example batch=8')
    command.add_argument('--workdir', help='the run folder (default: the next runs/NNNN-...)')
    command.add_argument('--prompts', nargs='+', help='write the assets of these prompts at the end')
    command.add_argument('--dry-run', action='store_true', help='print the config, parameter counts and memory; train nothing')


def run(args) -> int:
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
