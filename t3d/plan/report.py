"""A plan as text: what `t3d plan` prints, and a row of its table."""

import math

from t3d.plan import chips, meshes
from t3d.plan.chips import GIB

COLUMNS = (
    'config',
    'topology',
    'mesh',
    'batch',
    'parameters, M',
    'arguments, GiB',
    'temporaries, GiB',
    'needed of HBM, GiB',
    'fits',
)
COLUMNS += (
    'model TFLOP a step',
    'run / model',
    'collectives, GiB',
    'compute / memory / links, ms',
    'bound',
    'compile, s',
    'smallest',
)
KEYS = 4  # of the columns: those that name a row
SHOWN = 4  # places of the code that move most


def text(plan: dict) -> str:
    """The lines of a plan (t3d.plan.planner.make)."""
    lines = [
        f'{plan["system"]} {plan["variant"]} on {plan["topology"]}: {plan["devices"]} devices, mesh '
        f'{meshes.show(plan["mesh"])}, batch {plan["batch"]}, {plan["dtype"]}; compiler: {plan["compiler"]}'
    ]
    if plan['compiler'].startswith('none'):
        lines.append(
            'libtpu is not installed: steps are traced, laid out and lowered, not compiled. Known are divisibility and the '
            f'bytes of arguments; temporaries, collectives and times are not. To have them: {chips.SETUP}.'
        )
    if plan['compiler'].startswith('XLA:CPU'):
        lines.append("virtual devices of this processor: bytes of arguments are those of any chip, the rest is XLA:CPU's own.")
    lines += ['parameters: ' + _counts(plan['parameters'])]
    if plan['given_parameters']:
        lines += ['given, not trained: ' + _counts(plan['given_parameters'])]
    parts = ', '.join(f'{name} {_bytes(size)}' for name, size in plan['bytes'].items() if size)
    lines += [
        f'each device holds: {parts}; together {_bytes(sum(plan["bytes"].values()))} '
        f'(state of all devices {_bytes(plan["state_bytes"])})'
    ]
    if host := plan.get('host_bytes'):
        listed = ', '.join(f'{name} {_bytes(size)}' for name, size in host.items())
        lines += [
            f"in the host's memory for each device: {listed}; a step moves it to the device and back, over a link that is not "
            'in the roof line'
        ]
    whole = plan['undivided']
    if whole['arrays']:
        better = f'; with --mesh {whole["better"]} all divide' if whole['better'] else ''
        lines += [
            f'not divided: {whole["arrays"]} arrays of {_bytes(whole["bytes"])} stay whole along an axis of their rule, the '
            f'largest {whole["largest"]}{better}'
        ]
    for name, one in plan['programs'].items():
        lines += _program(name, one, plan)
    lines += _fit(plan)
    return '\n'.join(lines)


def _program(name: str, one: dict, plan: dict) -> list[str]:
    work = one['model_flops']
    lines = [f'{name}: model FLOPs {work:.4g} a step, {work / plan["devices"]:.4g} for each device']
    if every := one.get('cadences'):
        lines += [f'  what runs once in {_listed(every)} steps counts by its share: figures are of a step on average']
    if lost := one.get('unnamed_cadences'):
        lines += [f'  the compiled program does not name what runs once in {_listed(lost)} steps: below it counts at each']
    if 'overflow' in one:
        return [*lines, f'  {one["overflow"]["text"]}']
    if 'need_bytes' not in one:
        return lines
    run = one['device_flops']
    lines += [
        f'  compiled in {one["compile_seconds"]:.0f} s (traced and lowered in {one["lower_seconds"]:.0f} s)',
        f'  each device: arguments {_bytes(one["argument_bytes"])}, results {_bytes(one["output_bytes"])} of which '
        f'{_bytes(one["aliased_bytes"])} in place of arguments, temporaries {_bytes(one["temporary_bytes"])}; needed '
        f'{_bytes(one["need_bytes"])}: at once at most {_bytes(one["peak_bytes"])}, and code',
        f"  each device runs {run:.4g} FLOPs, {_ratio(run * plan['devices'], work)} of its share of the model's (the compiler "
        f"counts {one['compiler_flops']:.4g}, each loop's body once), and moves {_bytes(one['memory_traffic_bytes'])}",
    ]
    if one['unknown_loops']:
        lines += [f'  {one["unknown_loops"]} loops whose length the program does not tell are counted once']
    for row in one['collectives']:
        lines += [f'  {row["kind"]} over {row["group"]} devices: {_often(row["count"])} of {_bytes(row["bytes"])} in all']
    for kind, words in (('compute', 'most products'), ('memory', 'most through memory'), ('links', 'most over links')):
        heavy = one.get('heaviest', {}).get(kind, ())[:SHOWN]  # not in plans of before it was counted
        told = [f'{each["place"]} {_amount(each)} ({_often(each["count"])})' for each in heavy]
        lines += [f'  {words}: {", ".join(told)}'] if told else []
    line = one['roofline']
    if line:
        links = ', '.join(f'{kind} {1e3 * seconds:.2f}' for kind, seconds in sorted(line['links_seconds'].items()))
        least, most = 1e3 * line['least_seconds'], 1e3 * line['most_seconds']
        lines += [
            f'  roof line, ms: compute {1e3 * line["compute_seconds"]:.2f}, memory {1e3 * line["memory_seconds"]:.2f}, links '
            f'{1e3 * sum(line["links_seconds"].values()):.2f}{f" ({links})" if links else ""}',
            f'  a step takes at least {least:.2f} ms, bound by {line["bound"]}; {most:.2f} ms if nothing overlaps. MFU at most '
            f'{work / plan["devices"] / chips.topology(plan["topology"]).chip.peak / line["least_seconds"]:.0%}',
        ]
    return lines


def _fit(plan: dict) -> list[str]:
    if plan['hbm_bytes'] is None:
        return []
    need, have, small = plan['need_bytes'], plan['hbm_bytes'], plan.get('smallest')
    kind = plan['topology'].partition(':')[0]
    if plan['fits']:
        lines = [f'fits: {_bytes(need)} of the {_bytes(have)} that a program may have on {kind}, {_bytes(have - need)} free']
    elif plan['fits'] is False:
        short = need or sum(plan['bytes'].values())
        lines = [f'does not fit: {_bytes(short)} needed, {_bytes(short - have)} more than the {_bytes(have)} of {kind}']
    else:
        lines = [f'arguments fit the {_bytes(have)} of {kind}; whether temporaries do is not known without libtpu']
    if small is None and plan['fits'] is None:
        return lines
    if small:
        how = 'compiled' if small['compiled'] else 'by estimate, not compiled'
        lines += [
            f'smallest mesh that fits this batch: {small["topology"]} --mesh {small["mesh"]}, {small["devices"]} devices, '
            f'{_bytes(small["need_bytes"])} each ({how})'
        ]
    else:
        lines += [
            f'smallest mesh that fits this batch: none found on {kind}; a smaller batch, or remat=true where the config has it'
        ]
    return lines


def row(spec: str, plan: dict) -> list[str]:
    """The cells of a plan in the table, in the order of COLUMNS.

    Of several train steps temporaries are those of the one that needs most memory; FLOPs, collectives, times and bound those of
    the slowest, which is the one of most model FLOPs where times are not known; seconds of compiling are those of all.
    """
    programs = list(plan['programs'].values())
    largest = max(programs, key=lambda each: math.inf if 'overflow' in each else each.get('need_bytes') or 0)
    one, known = _slowest(programs), all(each.get('roofline') for each in programs)
    giga = lambda size: '-' if size is None else f'{size / GIB:.2f}'
    line, small = one.get('roofline') if known else None, plan.get('smallest')
    fits = {True: 'yes', False: 'no', None: '?'}[plan['fits']]
    if plan['fits'] is False:
        short = (plan['need_bytes'] or sum(plan['bytes'].values())) - plan['hbm_bytes']
        fits = f'**no**, {giga(short)} GiB too much'
    times = '-'
    if line:
        seconds = line['compute_seconds'], line['memory_seconds'], sum(line['links_seconds'].values())
        times = ' / '.join(f'{1e3 * second:.1f}' for second in seconds)
    run, seconds = one.get('device_flops'), [each['compile_seconds'] for each in programs if 'compile_seconds' in each]
    return [
        *key(spec, plan['topology'], meshes.show(plan['mesh']), plan['batch']),
        f'{sum(plan["parameters"].values()) / 1e6:.1f}' + _given(plan),
        giga(sum(plan['bytes'].values())),
        giga(largest.get('temporary_bytes')),
        f'{giga(plan["need_bytes"])} of {giga(plan["hbm_bytes"])}',
        fits,
        f'{one["model_flops"] / 1e12:.4g}',
        _ratio(run * plan['devices'], one['model_flops']) if run else '-',
        giga(sum(each['bytes'] for each in one['collectives'])) if 'collectives' in one else '-',
        times,
        line['bound'] if line else '-',
        f'{sum(seconds):.0f}' if seconds else '-',
        f'{small["topology"]} {small["mesh"]}{"" if small["compiled"] else " (estimate)"}'
        if small
        else 'none found'
        if plan['fits'] is False
        else '-',
    ]


def _slowest(programs: list[dict]) -> dict:
    """Of several train steps the one whose least time is the longest; of most model FLOPs where not all times are known."""
    if all(each.get('roofline') for each in programs):
        return max(programs, key=lambda each: each['roofline']['least_seconds'])
    return max(programs, key=lambda each: each['model_flops'])


def key(spec: str, topology: str, mesh: str, batch) -> list[str]:
    """The cells that name a row."""
    return [f'`{spec}`', topology, mesh, str(batch)]


def _given(plan: dict) -> str:
    return f' + {sum(plan["given_parameters"].values()) / 1e6:.1f} given' if plan['given_parameters'] else ''


def _counts(parts: dict) -> str:
    listed = ', '.join(f'{name} {count:,}' for name, count in parts.items())
    return listed if len(parts) == 1 else f'{listed}; together {sum(parts.values()):,}'


def _ratio(one: float, other: float) -> str:
    return f'{one / other:.2f}' if other else '-'


def _listed(cadences: list[int]) -> str:
    return ' and '.join(map(str, cadences))


def _often(count: float) -> str:
    """How often a step does something: '12', '2.25'."""
    return f'{count:.2f}'.rstrip('0').rstrip('.')


def _amount(place: dict) -> str:
    return _bytes(place['bytes']) if 'bytes' in place else f'{place["flops"]:.3g} FLOPs'


def _bytes(size: float) -> str:
    for unit, name in ((GIB, 'GiB'), (2**20, 'MiB'), (2**10, 'KiB')):
        if abs(size) >= unit:
            return f'{size / unit:.2f} {name}'
    return f'{size:.0f} bytes'
