"""`t3d configs`, `t3d info`, `t3d doctor`: what can be trained, what a run holds, what this machine has."""


def no_flags(command) -> None:
    """The flags of `t3d configs` and `t3d doctor`: none."""


def info_flags(command) -> None:
    """The flags of `t3d info`."""
    command.add_argument('run', nargs='?', help='default: the shipped weights')


def configs(args) -> None:
    from t3d.plan import dry_run

    print(dry_run.configs_table())


def info(args) -> None:
    from t3d.plan import dry_run

    print(dry_run.info(args.run))


def doctor(args) -> None:
    from t3d.commands import doctor

    print(doctor.report())
