"""`t3d plan`: does a config fit a pod, and what bounds its step. Nothing is trained, and no TPU is needed."""

import argparse

from t3d.core import parsing
from t3d.core.rules import Real, Whole

RANGES = {
    'tries': Whole(0, 64, 'programs compiled for the smallest mesh'),
    'limit': Real(1.0, 1e6, 'seconds for each plan'),
    'mfu': Real(0.001, 1.0, 'model FLOPs over the bf16 peak'),
}
BATCH = Whole(1, 2**31 - 1, 'rows of a global batch')
EXAMPLES = """examples:
  t3d plan --config configs/instant3d.py:pod --topology v5e:16x16 --mesh data=64,fsdp=4
  t3d plan --config configs/mvdiffusion.py:pod batch=512 --topology v5p:4x4x4 --mesh data=8,fsdp=8 --json plan.json
  t3d plan --config A B --topology v5e:16x16 v6e:16x16 --mesh data=32,fsdp=8 --batch 256 512 --table plans.md
  t3d plan --costs plans.jsonl --price v5e=1.5 v6e=3 --mfu 0.4
The compiler for TPUs is libtpu, in an environment of its own: `make setup-plan`, then .venv-plan/bin/t3d plan ..."""


def flags(command) -> None:
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = EXAMPLES
    command.add_argument(
        'words',
        nargs='*',
        default=[],
        metavar='CONFIG|key=value',
        help='a config, and changed keys of it, for example batch=256',
    )
    command.add_argument('--config', nargs='+', default=[], metavar='CONFIG', help='the same; several with --table')
    command.add_argument('--topology', nargs='+', default=[], help='v5e:16x16, v5p:4x4x8, v6e:8x8, v4:4x4x4, or cpu:8')
    command.add_argument('--mesh', nargs='+', default=[], metavar='MESH', help='data=16,fsdp=16; one axis may be -1')
    command.add_argument(
        '--batch', nargs='+', type=int, default=[], help="with --table: global batches (default: the config's)"
    )
    command.add_argument(
        '--table',
        metavar='FILE.md',
        type=parsing.table_file,
        help='write a table of all combinations; rows that are there are kept',
    )
    command.add_argument(
        '--tries', type=int, help='programs compiled for the smallest mesh (default 3, with --table 0: estimated)'
    )
    command.add_argument('--quick', action='store_true', help='optimise less: half the time to compile, about the same memory')
    command.add_argument('--limit', type=float, default=3600.0, help='with --table: seconds for each plan')
    command.add_argument(
        '--price', nargs='+', default=[], metavar='DOLLARS', help='of an hour of one chip, as you pay it: 1.5, or v5e=1.5 v6e=3'
    )
    command.add_argument('--mfu', type=float, help='with --price: a guess of the MFU, to be priced beside the bounds: 0.4')
    command.add_argument('--costs', metavar='FILE', help='with --price: of plans that were made, a file of --json or --table')
    command.add_argument('--json', type=parsing.json_file, help='also write the plan to this file')


def run(args) -> int:
    import json
    import pathlib

    from t3d.core import config as configs
    from t3d.core import rules
    from t3d.core.errors import UsageError
    from t3d.plan import chips, costs, meshes

    parsing.held(args, RANGES)
    batches = [rules.held('--batch', batch, BATCH) for batch in args.batch] or [0]
    prices = costs.prices(args.price)
    if args.mfu and not prices:
        raise UsageError(f'--mfu {args.mfu:g} is for costs: give --price DOLLARS of a chip-hour too.')
    if args.costs:
        return _costs(args, prices)
    specs, overrides = _divided(args)
    if not (args.topology and args.mesh):
        lacking = (
            '--mesh MESH, for example --mesh data=-1,fsdp=8' if args.topology else '--topology NAME, for example v5e:16x16'
        )
        raise UsageError(f'a plan is for a slice of chips and a mesh of them: give {lacking}.')
    topologies = [chips.topology(text) for text in args.topology]
    wishes = [meshes.parse(text) for text in args.mesh]
    loaded = [configs.load(spec, overrides) for spec in specs]  # a wrong name, before anything that takes long
    if args.table:
        if prices:
            raise UsageError('--price is of one plan: make the table, then `t3d plan --costs FILE.jsonl --price ...` of it.')
        return _table(args, specs, loaded, overrides, topologies, wishes, batches)
    if len(specs) * len(topologies) * len(wishes) > 1 or args.batch:
        raise UsageError('several configs, topologies, meshes or batches make a table: say where, --table FILE.md.')
    meshes.resolve(wishes[0], topologies[0], 0)
    price = costs.price_of({'topology': topologies[0].name}, prices)
    if prices and (price is None or topologies[0].chip is None):
        raise UsageError(f'--price {" ".join(args.price)}: none is for a chip of {topologies[0].name}.')
    chips.prepare(topologies[0])  # before anything starts JAX
    from t3d import systems
    from t3d.plan import dry_run, planner, report

    systems.module(loaded[0].get('system', ''))
    config = dry_run.resolve(loaded[0])
    tries = planner.TRIES if args.tries is None else args.tries
    plan = planner.make(config, topologies[0], wishes[0], tries=tries, quick=args.quick)
    plan = {'config': specs[0], 'overrides': overrides, **plan}
    print(report.text(plan))
    if price is not None:
        print('\n'.join(costs.text(plan, price, config.get('steps'), args.mfu)))
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(plan, indent=1) + '\n')
    return 1 if plan['fits'] is False else 0


def _costs(args, prices: dict[str, float]) -> int:
    """Prints what plans of a file cost."""
    from t3d.core.errors import UsageError
    from t3d.plan import costs

    if not prices:
        raise UsageError(f'--costs {args.costs}: give --price DOLLARS, of an hour of one chip as you pay it.')
    if args.words or args.config or args.topology or args.mesh or args.table:
        raise UsageError(f'--costs {args.costs} is of plans that were made: leave config, --topology, --mesh and --table out.')
    print(costs.table(costs.read(args.costs), prices, args.mfu))
    print('Bounds, no forecast: hosts, data, latency, checkpoints, restarts and idle chips come on top (docs/pods.md).')
    return 0


def _divided(args) -> tuple[list[str], list[str]]:
    """(configs, overrides) of the words, which may stand before the options or after --config."""
    from t3d.core.errors import UsageError

    words = [*args.words, *args.config]
    overrides = [word for word in words if '=' in word]
    specs = [word for word in words if '=' not in word]
    if not specs:
        raise UsageError('no config: give one, for example --config configs/instant3d.py:pod (`t3d configs` lists them).')
    return specs, overrides


def _table(args, specs, loaded, overrides, topologies, wishes, batches: list[int]) -> int:
    from t3d.core.errors import UsageError
    from t3d.plan import meshes, sweep

    if args.json:
        raise UsageError('--json is of one plan, --table of many: leave one out.')
    cells = []
    for spec, config in zip(specs, loaded, strict=True):
        of_config = [batch or config.get('batch', 0) for batch in batches]
        for topology in topologies:
            for wish in wishes:
                mesh = meshes.show(meshes.resolve(wish, topology, 0)) if len(topologies) == 1 else _on(wish, topology)
                cells += [sweep.Cell(spec, tuple(overrides), topology.name, mesh, batch) for batch in of_config if mesh]
    made = sweep.run(cells, args.table, tries=args.tries or 0, quick=args.quick, limit=args.limit)
    print(f'{args.table}: {made} rows made, {len(cells) - made} were there')
    failed = sweep.failed(cells, args.table)
    if failed:
        print(f'{len(failed)} not planned, each row says why; delete it to have it made again')
    return 1 if failed else 0


def _on(wish, topology) -> str:
    """The mesh on one of several topologies, '' for one that it does not divide: another one's."""
    from t3d.core.errors import UsageError
    from t3d.plan import meshes

    try:
        return meshes.show(meshes.resolve(wish, topology, 0))
    except UsageError as error:
        print(f'left out: {error}')
        return ''
