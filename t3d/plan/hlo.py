"""Reading the text of a compiled XLA program: its computations, instructions, loops and groups of devices.

Only what `hlo_cost` counts is read. The text is that of `jax.stages.Compiled.as_text()`, of XLA:TPU and XLA:CPU alike: one
instruction a line, `%name = type opcode(%operand, ...), attribute=..., ...`.
"""

import math
import re
from typing import NamedTuple

import numpy as np

BITS = {'pred': 8, 's2': 2, 'u2': 2, 's4': 4, 'u4': 4, 's8': 8, 'u8': 8, 's16': 16, 'u16': 16, 's32': 32, 'u32': 32}
BITS |= {'s64': 64, 'u64': 64, 'bf16': 16, 'f16': 16, 'f32': 32, 'f64': 64, 'c64': 64, 'c128': 128}  # f8...: 8
HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$')
NAME = re.compile(r'%([\w.\-]+)')
ARRAY = re.compile(r'\b(pred|[subfc]+\d\w*)\[([\d,]*)\](\{[^}]*\})?')


class Shape(NamedTuple):
    """An array as an instruction makes it: name of its type, sizes, bytes, and whether it lies in the chip's fast memory."""

    dtype: str
    sizes: tuple[int, ...]
    bytes: int
    fast: bool


class Instruction(NamedTuple):
    """A line: `shapes` of what it makes (several of a tuple), `operands` names, `rest` the text of its attributes."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    rest: str
    arguments: str  # the text between the brackets: the number of a parameter, the value of a constant

    def called(self, key: str) -> list[str]:
        """Names of the computations that an attribute names: `calls`, `body`, `branch_computations`."""
        match = re.search(rf'\b{key}=(\{{[^}}]*\}}|%[\w.\-]+)', self.rest)
        return NAME.findall(match[1]) if match else []


class Program(NamedTuple):
    """{computation: {name: Instruction, in order}}, and the name of the one that starts."""

    computations: dict[str, dict[str, Instruction]]
    entry: str


def parse(text: str) -> Program:
    """The program of an HLO text.

    Raises:
      ValueError: it has no ENTRY computation.
    """
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        if not line.startswith(' '):
            header = HEADER.match(line)
            if header:
                current = computations.setdefault(header[2], {})
                entry = header[2] if header[1] else entry
            continue
        instruction = _instruction(line) if current is not None else None
        if instruction is not None:
            current[instruction.name] = instruction
    if entry is None:
        raise ValueError('no ENTRY computation in the text: wanted that of a compiled program.')
    return Program(computations, entry)


def shapes_of(text: str) -> tuple[Shape, ...]:
    """The arrays of a type, of a tuple in their order: 'f32[16,2048]{1,0:T(8,128)S(1)}'."""
    return tuple(_shape(*match) for match in ARRAY.findall(text))


def _shape(dtype: str, sizes: str, layout: str) -> Shape:
    numbers = tuple(int(size) for size in sizes.split(',') if size)
    return Shape(dtype, numbers, -(-math.prod(numbers) * BITS.get(dtype, 8) // 8), 'S(1)' in layout)


def _instruction(line: str) -> Instruction | None:
    left, equals, right = line.strip().partition(' = ')
    if not equals or not left.startswith(('%', 'ROOT %')):
        return None
    kind = right[: _closed(right)] if right.startswith('(') else right.partition(' ')[0]
    opcode, bracket, rest = right[len(kind) :].lstrip().partition('(')
    if not bracket:
        return None
    end = _closed(f'({rest}') - 1
    inside = rest[: end - 1]
    name = left.removeprefix('ROOT ').lstrip('%')
    return Instruction(name, opcode, shapes_of(kind), tuple(NAME.findall(inside)), rest[end:], inside)


def _closed(text: str) -> int:
    """The place after the bracket that closes the first character of a text."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == '(') - (character == ')')
        if depth == 0:
            return place + 1
    return len(text)


# ------------------------------------------------------------------------------------------------------------------- loops


def trips(program: Program, loop: Instruction) -> int | None:
    """How often a `while` runs: what the compiler knows, else the constant that its counter is compared with; None: unknown."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
    if known:
        return int(known[1])
    for name in loop.called('condition'):
        return _bound(program, program.computations.get(name, {}))
    return None


def _bound(program: Program, condition: dict[str, Instruction]) -> int | None:
    """The constant N of a condition `counter < N`, whose comparison may stand in a fusion."""
    for one in condition.values():
        if one.opcode == 'compare' and 'direction=LT' in one.rest:
            values = [_constant(condition.get(operand)) for operand in one.operands]
            return values[1] if len(values) == 2 else None
        for inner in one.called('calls') if one.opcode == 'fusion' else ():
            body = program.computations.get(inner, {})
            if any(each.opcode == 'compare' and 'direction=LT' in each.rest for each in body.values()):
                found = [_constant(condition.get(operand)) for operand in one.operands]
                found += [_constant(each) for each in body.values()]
                found = [value for value in found if value is not None]
                return found[0] if len(found) == 1 else None
    return None


def _constant(one: Instruction | None) -> int | None:
    return int(one.arguments) if one is not None and one.opcode == 'constant' and one.arguments.isdigit() else None


# ------------------------------------------------------------------------------------------------------ groups of devices


def groups(rest: str, count: int) -> np.ndarray:
    """The groups [G, N] of places in the mesh that a collective's attributes name; count: of all devices.

    Three notations: lists `{{0,1},{2,3}}`, an iota `[2,4]<=[4,2]T(1,0)`, and axes of a mesh
    `mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`. Empty groups are all devices.
    """
    mesh = re.search(r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*(?:\([\d,]*\))?)\))? \{([^}]*)\}', rest)
    if mesh:
        axes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        sizes = [int(size) for size in axes.values()]
        ids = _iota(mesh[2], count) if mesh[2] else np.arange(count)
        chosen = re.findall(r"'([^']+)'", mesh[3])
        names = list(axes)
        order = [names.index(name) for name in names if name not in chosen] + [names.index(name) for name in chosen]
        ways = math.prod(int(axes[name]) for name in chosen)
        return ids.reshape(sizes).transpose(order).reshape(-1, ways)
    iota = re.search(r'replica_groups=(\[[\d,]+\])<=(\[[\d,]+\](?:T\([\d,]+\))?)', rest)
    if iota:
        rows = [int(size) for size in re.findall(r'\d+', iota[1])]
        return _iota(iota[2], count).reshape(rows)
    listed = re.search(r'replica_groups=\{((?:\{[\d,]*\},?)+)\}', rest)
    if listed:
        return np.array([[int(one) for one in each.split(',')] for each in re.findall(r'\{([\d,]+)\}', listed[1])])
    return np.arange(count)[None]


def pairs(rest: str) -> np.ndarray:
    """[K, 2] senders and receivers of a collective-permute."""
    match = re.search(r'source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}', rest)
    numbers = re.findall(r'\{(\d+),(\d+)\}', match[1]) if match else []
    return np.array(numbers, int).reshape(-1, 2)


def _iota(text: str, count: int) -> np.ndarray:
    """'[4,2]T(1,0)': 0 ... 7 as 4 x 2, transposed, in one row."""
    sizes = [int(size) for size in re.findall(r'\d+', text.partition('T')[0])]
    turned = re.search(r'T\(([\d,]+)\)', text)
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return (ids.transpose([int(axis) for axis in turned[1].split(',')]) if turned else ids).reshape(-1)
