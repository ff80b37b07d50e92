"""What a compiled program does at each step on one device: FLOPs, bytes of memory, and collectives, loops counted in full.

XLA's own analysis counts the body of a loop once, and a network whose layers are scanned is mostly loops. Here a body counts as
often as it runs. Of a conditional that names its cadence (`every_N`, t3d.core.cadence) the branch that does the most counts an
Nth and the other one the rest, so that collectives too can be fractions; of any other the branch counts that does the most.

- FLOPs: 2 for each multiply-add of a matrix product or convolution, padding and the holes of dilation left out. Of kernels
  (Pallas) those of t3d's own are known (kernel_cost.py); the bytes of a kernel are those of its operands and results, once.
- Bytes: what instructions read and write in the device's main memory; those of a fusion at its border, and of an array of
  which it takes a slice the slice alone. Arrays that the compiler keeps in the chip's fast memory count nothing. The
  caches of a chip are not modelled: this is an estimate from above for what is read twice, from below for nothing.
- Collectives: by kind, with the larger of what one device gives and gets.
"""

import collections
import functools
import math
import re
from typing import NamedTuple

import numpy as np

from t3d.core import cadence
from t3d.plan import hlo, kernel_cost
from t3d.plan.hlo import Instruction, Program, Shape

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute', 'collective-broadcast')
FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call', 'after-all', 'iota'}
FREE |= {'partition-id', 'replica-id', 'opt-barrier', 'domain', 'add-dependency'}
SLICES = {'dynamic-slice', 'gather', 'slice'}


class Collective(NamedTuple):
    """A communication of devices.

    Attributes:
      kind: one of KINDS.
      bytes: the larger of what one device gives and gets.
      groups: the places in the mesh that take part together, as tuples of tuples; pairs of a permute.
    """

    kind: str
    bytes: int
    groups: tuple[tuple[int, ...], ...]


class Cost(NamedTuple):
    """One device's work at a step, on average over steps; `unknown` loops had no count and are in it once.

    collectives: {Collective: how often}, a fraction of what does not run at every step.
    """

    flops: float
    bytes: float
    collectives: dict[Collective, float]
    unknown: int

    def times(self, count: float) -> 'Cost':
        many = {one: number * count for one, number in self.collectives.items()}
        return Cost(self.flops * count, self.bytes * count, many, self.unknown)

    def plus(self, other: 'Cost') -> 'Cost':
        both = collections.Counter(self.collectives)
        both.update(other.collectives)
        return Cost(self.flops + other.flops, self.bytes + other.bytes, dict(both), self.unknown + other.unknown)


NOTHING = Cost(0.0, 0.0, {}, 0)


def of(text: str, devices: int) -> Cost:
    """The cost of the text of a compiled program on one of so many devices."""
    return read(text, devices).computation(None)


def read(text: str, devices: int) -> 'Reader':
    """What counts the work of the text of a compiled program on one of so many devices."""
    return Reader(hlo.parse(text), devices)


class Reader:
    """The costs of a program's computations, each counted once."""

    def __init__(self, program: Program, devices: int):
        self.program, self.devices = program, devices
        self.computation = functools.lru_cache(None)(self._computation)

    def _computation(self, name: str | None) -> Cost:
        body = self.program.computations.get(name or self.program.entry, {})
        total = NOTHING
        for one in body.values():
            total = total.plus(self.instruction(one, body))
        return total

    def instruction(self, one: Instruction, body) -> Cost:
        if one.opcode == 'while':
            count = hlo.trips(self.program, one)
            inner = self.sum(one.called('body') + one.called('condition')).times(1 if count is None else count)
            return inner._replace(unknown=inner.unknown + (count is None))
        if one.opcode == 'conditional':
            total = NOTHING
            for name, share in self.shares(one).items():
                total = total.plus(self.computation(name).times(share))
            return total
        if one.opcode == 'call':
            return self.sum(one.called('to_apply'))
        kind = _kind(one)
        if kind:
            return Cost(0.0, self.border(one, body), {self.collective(kind, one, body): 1}, 0)
        if one.opcode == 'copy-start':  # (copy, original, ...): between main and fast memory
            return NOTHING._replace(bytes=float(sum(shape.bytes for shape in one.shapes[:2] if not shape.fast)))
        if one.opcode == 'fusion' or one.opcode == 'async-start':
            return self.fusion(one, body)
        flops = 0.0
        if one.opcode in ('dot', 'convolution'):
            shapes = [body[name].shapes[0] for name in one.operands]
            flops = (dot if one.opcode == 'dot' else convolution)(one.rest, *shapes, one.shapes[0])
        if one.opcode == 'custom-call' and 'custom_call_target="tpu_custom_call"' in one.rest:
            flops = kernel_cost.flops(one.rest, [body[name].shapes[0] for name in one.operands], one.shapes)
        if one.opcode in FREE or one.opcode.endswith(('-done', '-update')):
            return NOTHING
        return Cost(flops, self.border(one, body), {}, 0)

    def shares(self, one: Instruction) -> dict[str, float]:
        """{branch of a conditional: at what share of the steps it runs}: of one without a cadence the dearest, at each step."""
        costs = {name: self.computation(name) for name in _branches(one)}
        rising = sorted(costs, key=lambda name: (costs[name].flops, costs[name].bytes))
        every = _cadence(one)
        if every and len(rising) == 2:
            return {rising[1]: 1 / every, rising[0]: 1 - 1 / every}
        return {name: 1 for name in rising[-1:]}

    def cadences(self) -> set[int]:
        """N of all that the program names to run once in N steps."""
        every = (one for body in self.program.computations.values() for one in body.values() if one.opcode == 'conditional')
        return {_cadence(one) for one in every} - {None}

    def fusion(self, one: Instruction, body) -> Cost:
        (name,) = one.called('calls') or [None]
        if name is None:
            return Cost(0.0, self.border(one, body), {}, 0)
        inner = self.computation(name)
        if one.opcode == 'async-start':
            return inner
        together = inner.collectives
        if name.startswith('all-reduce-scatter'):  # XLA:TPU's: an all-reduce of which each keeps a part
            together = {each._replace(kind='reduce-scatter'): count for each, count in together.items()}
        return Cost(inner.flops, self.border(one, body, self.program.computations[name]), together, inner.unknown)

    def sum(self, names) -> Cost:
        total = NOTHING
        for name in names:
            total = total.plus(self.computation(name))
        return total

    def collective(self, kind: str, one: Instruction, body) -> Collective:
        given = sum(shape.bytes for name in one.operands if name in body for shape in body[name].shapes)
        shapes = one.shapes
        if one.opcode.endswith('-start') and len(shapes) > 1:  # (operands, results, ...)
            sizes = [shape.bytes for shape in shapes]
            got = max(sizes) if len(one.operands) == 1 else sum(sizes) - given
        else:
            got = sum(shape.bytes for shape in shapes)
        together = hlo.pairs(one.rest) if kind == 'collective-permute' else hlo.groups(one.rest, self.devices)
        return Collective(kind, max(given, got), tuple(map(tuple, together.tolist())))

    def border(self, one: Instruction, body, inside=None) -> float:
        """Bytes read and written in main memory."""
        if one.opcode in FREE or one.opcode.endswith(('-done', '-update')):
            return 0.0
        written = sum(shape.bytes for shape in one.shapes if not shape.fast)
        root = list(inside.values())[-1] if inside else one
        target = None
        if root.opcode == 'dynamic-update-slice' and len(root.operands) > 1:  # written in place: the update alone
            update = (inside or body).get(root.operands[1])
            if update is not None and len(one.shapes) == 1:
                written, target = (0 if one.shapes[0].fast else update.shapes[0].bytes), root.operands[0]
        read = 0.0
        for number, name in enumerate(one.operands):
            for shape in body[name].shapes if name in body else ():
                if not shape.fast:
                    read += self._read(one, number, shape, inside, target)
        return read + written

    def _read(self, one: Instruction, number: int, shape: Shape, inside, target) -> float:
        """Bytes of an operand that are read: slices of it, where only slices are taken."""
        if inside is None:
            if one.opcode in SLICES and number == 0:
                return min(shape.bytes, one.shapes[0].bytes)
            return 0.0 if one.opcode == 'dynamic-update-slice' and number == 0 else shape.bytes
        parameters = {each.arguments: each.name for each in inside.values() if each.opcode == 'parameter'}
        name = parameters.get(str(number))
        if name is None or name == target:
            return 0.0 if name is not None else shape.bytes
        taken = 0.0
        for each in inside.values():
            for place, operand in enumerate(each.operands):
                if operand == name:
                    if each.opcode not in SLICES or place:
                        return shape.bytes
                    taken += each.shapes[0].bytes
        return min(taken, shape.bytes)


def _branches(one: Instruction) -> list[str]:
    return one.called('branch_computations') or one.called('true_computation') + one.called('false_computation')


def _cadence(one: Instruction) -> int | None:
    """N of a conditional that JAX named `.../every_N/cond`."""
    name = re.search(r'op_name="([^";:]*)', one.rest)
    return cadence.of(name[1].removesuffix('/cond')) if name and name[1].endswith('/cond') else None


def _kind(one: Instruction) -> str | None:
    """The kind of collective that an instruction is; None for others, and for the end of one that began before."""
    name = one.opcode.removesuffix('-start')
    return next((kind for kind in KINDS if name == kind or name == f'ragged-{kind}'), None)


def dot(rest: str, left: Shape, right: Shape, out: Shape) -> float:
    """FLOPs of a matrix product."""
    match = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', rest)
    inner = math.prod(left.sizes[int(axis)] for axis in match[1].split(',') if axis) if match else 1
    return 2.0 * inner * math.prod(out.sizes)


def convolution(rest: str, left: Shape, right: Shape, out: Shape) -> float:
    """FLOPs of a convolution: multiply-adds of numbers that are there, neither padding nor the holes of dilation.

    XLA:TPU writes products of batches of matrices as convolutions whose windows meet one number at each place.
    """
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', rest)
    kernel = dict(zip(labels[2], right.sizes))
    image, made = dict(zip(labels[1], left.sizes)), dict(zip(labels[3], out.sizes))
    axes = sorted(axis for axis in kernel if axis.isdigit())
    window = _window(rest, len(axes))
    pairs = math.prod(_valid(image[axis], made[axis], *[values[place] for values in window]) for place, axis in enumerate(axes))
    groups = re.search(r'batch_group_count=(\d+)', rest)
    batch = made['b'] / (int(groups[1]) if groups else 1)
    return 2.0 * pairs * batch * made['f'] * kernel['i']


def _window(rest: str, count: int) -> tuple[list[int], ...]:
    """(size, stride, low padding, dilation of the image, of the kernel) for each axis."""
    match = re.search(r'window=\{([^}]*)\}', rest)
    words = dict(word.split('=') for word in match[1].split() if '=' in word) if match else {}
    numbers = lambda name, usual: [int(each) for each in words[name].split('x')] if name in words else [usual] * count
    low = [int(each.split('_')[0]) for each in words['pad'].split('x')] if 'pad' in words else [0] * count
    return numbers('size', 1), numbers('stride', 1), low, numbers('lhs_dilate', 1), numbers('rhs_dilate', 1)


@functools.lru_cache(4096)
def _valid(image: int, made: int, size: int, stride: int, low: int, holes: int, spread: int) -> int:
    """How many pairs of a place of the result and one of the window meet a number of the image, along one axis."""
    total = 0
    for place in range(size):
        at = np.arange(made) * stride - low + place * spread
        total += int(np.sum((at >= 0) & (at <= (image - 1) * holes) & (at % holes == 0)))
    return total
