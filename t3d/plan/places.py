"""Which parts of the model's code a compiled step spends its products, its memory traffic and its collectives on.

XLA keeps the path of names by which an instruction came to be (`op_name`): functions, flax modules, the operation. Instructions
of one path, numbers of layers left out, are added up; loops are counted in full. A fusion has the name of one of the operations
in it, so a place stands for its neighbours too. What the compiler put in by itself, copies for example, has no path:
it is told by its kind.
"""

import collections
import re
from typing import NamedTuple

from t3d.plan import hlo, hlo_cost

TOP = 6  # places of each kind that are told
UNNAMED = 'without a name: {}'
TRANSFORMS = {'jit', 'pjit', 'jvp', 'transpose', 'vmap', 'checkpoint', 'rematted_computation', 'shard_map'}
CONTROL = {'while', 'body', 'cond', 'closed_call', 'branch_0_fun', 'branch_1_fun', 'checkpoint', 'rematted_computation', ''}
CONTROL |= {'every', 'core_call', 'custom_jvp_call', 'custom_vjp_call', 'custom_vjp_call_jaxpr', 'shard_map', 'pjit'}


class Place(NamedTuple):
    """What the instructions of one place do in a step on one device: their `count`, FLOPs, bytes in memory and over links.

    All are averages over steps: of what runs once in N steps an Nth.
    """

    name: str
    count: float
    flops: float
    memory_bytes: float
    links_bytes: float


def of(reader: hlo_cost.Reader) -> list[Place]:
    """The places of a compiled program (`hlo_cost.read`)."""
    found = collections.defaultdict(lambda: [0, 0.0, 0.0, 0.0])
    _walk(reader, reader.program.entry, 1, found)
    return [Place(name, *values) for name, values in found.items()]


def heaviest(places: list[Place], top: int = TOP) -> dict[str, list[dict]]:
    """{'compute': [{'place', 'count', 'flops'}, ...], 'memory': [{..., 'bytes'}, ...], 'links': ...}: those that do most."""
    kinds = {'compute': ('flops', 'flops'), 'memory': ('memory_bytes', 'bytes'), 'links': ('links_bytes', 'bytes')}
    found = {}
    for kind, (field, unit) in kinds.items():
        some = sorted((one for one in places if getattr(one, field)), key=lambda one: (-getattr(one, field), one.name))
        found[kind] = [{'place': one.name, 'count': one.count, unit: getattr(one, field)} for one in some[:top]]
    return found


def name_of(rest: str, opcode: str) -> str:
    """The place of an instruction by its attributes and kind: 'UNet.denoise/up_blocks/attn1/to_v/dot_general backward'.

    Transformations and control flow are left out of the path, numbers of layers too; a gradient is marked.
    """
    match = re.search(r'op_name="([^"]*)"', rest)
    path = re.split('[;:]', match[1])[0] if match else ''  # of several that were put together the first
    if '/' not in path:  # an argument of the step, or the compiler's own
        return UNNAMED.format(opcode)
    kept = []
    for part in path.split('/')[1:]:
        inner = part.lstrip('(')
        while (wrapped := re.fullmatch(r'(\w+)\((.*)\)', inner)) and wrapped[1] in TRANSFORMS:
            inner = wrapped[2]
        inner = re.sub(r'_\d+', '', inner)
        if inner in CONTROL or (kept and kept[-1].partition('.')[0] == inner):
            continue
        if inner in kept and '.' in inner:  # computed again: the path starts anew
            kept = kept[: kept.index(inner)]
        if kept and inner.startswith(f'{kept[-1]}.'):  # a module, then its method
            kept.pop()
        kept.append(inner)
    return '/'.join(kept) + (' backward' if 'transpose(' in path else '') if kept else UNNAMED.format(opcode)


def _walk(reader: hlo_cost.Reader, name: str, times: float, found) -> None:
    """Adds up the instructions of a computation that runs so many times."""
    body = reader.program.computations.get(name, {})
    for one in body.values():
        if one.opcode == 'while':
            inner = times * (hlo.trips(reader.program, one) or 1)
            for each in one.called('body') + one.called('condition'):
                _walk(reader, each, inner, found)
        elif one.opcode == 'call':
            for each in one.called('to_apply'):
                _walk(reader, each, times, found)
        elif one.opcode == 'conditional':
            for each, share in reader.shares(one).items():
                _walk(reader, each, times * share, found)
        else:
            cost = reader.instruction(one, body)
            sent = sum(each.bytes * number for each, number in cost.collectives.items())
            if cost.flops or cost.bytes or sent:
                row = found[name_of(one.rest, one.opcode)]
                for number, value in enumerate((1, cost.flops, cost.bytes, sent)):
                    row[number] += times * value
