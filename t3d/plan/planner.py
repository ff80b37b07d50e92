"""One plan: a config on a mesh of a topology, as plain data, with the smallest mesh that fits."""

import importlib.metadata
from collections.abc import Callable

import jax

from t3d.core import tree as trees
from t3d.plan import chips, givens, meshes, programs
from t3d.plan.chips import Topology
from t3d.plan.meshes import Sizes

TRIES = 3  # compilations in search of the smallest mesh that fits
HOPELESS = 1.25  # of a device's memory: an estimate above it is not compiled


def make(config, topology: Topology, wish: Sizes, *, tries: int = TRIES, quick: bool = False, log: Callable = print) -> dict:
    """The plan of a resolved config.

    Args:
      wish: sizes of the mesh, one of which may be -1.
      tries: how many programs are compiled at the most for the smallest mesh that fits; 0: it is estimated alone.
      quick: let the compiler optimise less.
      log: takes lines on what is going on.
    Returns:
      Plain data, ready for JSON: `programs` of each train step, `bytes` of each device, `fits`, `smallest`; see docs/pods.md.
    Raises:
      UsageError: a mesh or batch that does not divide, a topology that libtpu does not know.
    """
    sizes = meshes.resolve(wish, topology, 0)
    chips.prepare(topology)
    real = topology.chip is not None and chips.has_compiler()
    mesh = programs.mesh_of(sizes, chips.devices(topology))
    with programs.traced_for(mesh):
        one = programs.model(config, givens.abstract(config))
        rows = next((spec.shape[0] for spec in one.system.batch_spec.values()), 0)
        meshes.resolve(sizes, topology, rows)
        plan = {**_head(one, topology, sizes, rows, real), 'programs': {}}
        for name, work in programs.works(one).items():
            plan['programs'][name] = {'model_flops': work.flops, 'cadences': list(work.cadences)}
            log(f'{name}: {"compiling" if real or topology.chip is None else "lowering"} for {topology.count} devices ...')
            _program(plan, one, name, mesh, topology, real, quick)
        _fit(plan, topology)
        if topology.chip is not None:
            plan['smallest'] = smallest(plan, one, topology, sizes, rows, tries if real else 0, quick, log)
    return plan


def _head(one, topology: Topology, sizes: Sizes, rows: int, real: bool) -> dict:
    parts = programs.bytes_of(one, sizes)
    rules, floor = one.system.sharding, one.floor
    whole = meshes.undivided(one.state, rules, sizes, floor)
    better = (
        meshes.nearest(sizes, topology.count, rows, lambda other: not meshes.undivided(one.state, rules, other, floor))
        if whole
        else None
    )
    return {
        'system': one.config.system,
        'variant': one.config.get('variant', ''),
        'topology': topology.name,
        'devices': topology.count,
        'mesh': sizes,
        'batch': rows,
        'dtype': one.config.get('dtype', 'float32'),
        'compiler': compiler(topology, real),
        'parameters': {name: trees.count(part) for name, part in one.state.params.items()},
        'given_parameters': {name: trees.count(each.params) for name, each in one.given.items()},
        'state_bytes': trees.size_bytes(one.state),
        'bytes': parts,
        'host_bytes': programs.host_bytes_of(one, sizes),
        'undivided': {
            'arrays': len(whole),
            'bytes': sum(size for size, _ in whole),
            'largest': whole[0][1] if whole else '',
            'better': meshes.show(better) if better else '',
        },
    }


def compiler(topology: Topology, real: bool) -> str:
    """What compiles: 'libtpu 0.0.42.1, jax 0.10.2'."""
    name = f'libtpu {importlib.metadata.version("libtpu")}' if real else 'XLA:CPU' if topology.chip is None else 'none'
    return f'{name}, jax {jax.__version__}'


def _program(plan: dict, one, name: str, mesh, topology: Topology, real: bool, quick: bool) -> None:
    found = plan['programs'][name]
    if topology.chip is not None and not real:
        programs.lower(one, name, mesh)  # what does not trace or divide is met here
        return
    try:
        made = programs.compiled(one, name, mesh, quick)
    except programs.Overflow as error:
        found['overflow'] = {'need_bytes': error.need, 'have_bytes': error.have, 'text': str(error)}
        return
    cost, named = made.pop('cost'), made.pop('cadences')
    found['unnamed_cadences'] = sorted(set(found['cadences']) - named)  # counted as if they ran at every step
    found.update(made, collectives=programs.collectives(cost), roofline=programs.roof(cost, topology, mesh))


def _fit(plan: dict, topology: Topology) -> None:
    """Sets `need_bytes` of a device, `hbm_bytes` and `fits`: True, False, or None where no compiler for the chip says."""
    made = list(plan['programs'].values())
    needs = [one.get('need_bytes') or one.get('overflow', {}).get('need_bytes') for one in made]
    state = sum(plan['bytes'].values())
    plan['need_bytes'] = max((need for need in needs if need), default=None)
    plan['hbm_bytes'] = topology.chip.hbm if topology.chip else None
    if topology.chip is None:
        plan['fits'] = None
    elif any('overflow' in one for one in made) or state > topology.chip.hbm:
        plan['fits'] = False
    else:
        plan['fits'] = True if all('need_bytes' in one for one in made) else None


def smallest(plan, one, topology: Topology, sizes: Sizes, rows: int, tries: int, quick: bool, log: Callable) -> dict | None:
    """The smallest mesh of this chip that fits, among those with the same tensor axis; None: none of the table.

    What a device needs there is estimated: the arrays of its arguments by the rules, and temporaries in proportion to its rows
    of the batch, as they are on the planned mesh. Meshes are tried from the smallest that may fit, at most `tries` compiled. Of
    the planned slice, where the plan fits, it is the planned mesh, of which no estimate is needed.
    """
    arguments = sum(plan['bytes'].values())
    if plan['fits'] is None:  # no compiler for the chip: nothing is known of temporaries
        return None
    temporary = max((plan['need_bytes'] or 0) - arguments, 0)
    if plan['need_bytes'] is None and plan['fits'] is False and tries == 0 and arguments < topology.chip.hbm:
        return None
    ways = sizes['data'] * sizes['fsdp']
    estimates = []
    for other, mesh in meshes.candidates(topology, sizes, rows, wider=plan['fits'] is False):
        need = sum(programs.bytes_of(one, mesh).values()) + temporary * ways / (mesh['data'] * mesh['fsdp'])
        estimates.append((other.count, need, other, mesh))
    by_count = {}
    for count, need, other, mesh in sorted(estimates, key=lambda row: row[:2]):  # of a slice the mesh that needs least
        by_count.setdefault(count, (need, other, mesh))
    for need, other, mesh in by_count.values():
        row = {'topology': other.name, 'mesh': meshes.show(mesh), 'devices': other.count, 'need_bytes': need}
        if other.count == topology.count and plan['fits']:
            planned = {'topology': topology.name, 'mesh': meshes.show(sizes), 'need_bytes': plan['need_bytes']}
            return {**row, **planned, 'compiled': True}
        if need > topology.chip.hbm * (HOPELESS if tries else 1.0):
            continue
        if not tries:
            return {**row, 'compiled': False}
        tries -= 1
        log(f'trying {other.name} {meshes.show(mesh)}: {need / chips.GIB:.1f} GiB by estimate ...')
        tried = _tried(one, mesh, other, quick)
        if tried is not None:
            return {**row, 'need_bytes': tried, 'compiled': True}
    return None


def _tried(one, sizes: Sizes, topology: Topology, quick: bool) -> float | None:
    """Bytes that a device needs, None where it has not so many."""
    mesh = programs.mesh_of(sizes, chips.devices(topology))
    try:
        return max(programs.compiled(one, name, mesh, quick)['need_bytes'] for name in programs.steps_of(one))
    except programs.Overflow:
        return None
