"""Sums that a CPU gets wrong: of numbers that are copies of each other along a last axis, where XLA hands them to YNNPACK.

jaxlib 0.10.2 counts some of them twice, at random, where two threads share the work (openxla/xla pull request 49085 mends it;
`XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=-LIBRARY_FUSION_TYPE_REDUCE` goes around it and costs up to 6 % of a step).
None of t3d's programs may hold such a sum.
"""

import re

import jax
import jax.numpy as jnp
import pytest
import test_contract

INSTRUCTION = re.compile(r'\s+(?:ROOT )?%?([\w.-]+) = (\S+) ([\w-]+)\(([^)]*)\)(.*)')
ARRANGES = ('reduce', 'parameter', 'constant', 'bitcast', 'dot', 'convolution', 'transpose', 'reshape', 'concatenate', 'iota')


def listed(text: str) -> set[int]:
    """Numbers of `dimensions={...}`."""
    found = re.search(r'dimensions=\{([\d,]*)\}', text)
    return {int(number) for number in found[1].split(',') if number} if found else set()


def sums_of_copies(program: str) -> tuple[list[str], int]:
    """(reductions over an axis along which their operand is copied, all reductions), of those handed to YNNPACK."""
    handed = set(re.findall(r'fusion\([^\n]*calls=%?([\w.-]+)[^\n]*__ynn_fusion', program))
    bad, count = [], 0
    for computation in re.split(r'\n(?=%?[\w.-]+ \(|ENTRY)', program):
        name = re.match(r'%?([\w.-]+) ', computation)
        copied = {}  # name of a value -> the axes along which it is one number
        for found in map(INSTRUCTION.match, computation.split('\n') if name and name[1] in handed else ()):
            if found is None:
                continue
            own, shape, kind, operands, rest = found.groups()
            of = [copied.get(operand.strip().lstrip('%'), set()) for operand in operands.split(',')]
            axes = set(range(len(re.findall(r'\d+', re.search(r'\[([\d,]*)\]', shape)[1]))))
            if kind == 'reduce':
                count += 1
                if of[0] & listed(rest):
                    bad.append(f'{own}: {shape} over {sorted(of[0] & listed(rest))}')
            if kind == 'broadcast':
                copied[own] = axes - listed(rest)
            else:
                copied[own] = set() if kind in ARRANGES else set.intersection(*of)
    return bad, count


def compiled(function, *args) -> str:
    return jax.jit(function).lower(*args).compile().as_text()


def test_what_is_looked_for_is_found():
    """The sum that comes out otherwise from call to call, and sums that do not."""
    column, whole = jax.ShapeDtypeStruct((1024, 1), jnp.float32), jax.ShapeDtypeStruct((2, 1024, 1024), jnp.float32)
    copies = compiled(lambda a: jnp.sum(jnp.exp(jnp.broadcast_to(a, (2, 1024, 1024)))), column)
    handed = copies.count('__ynn_fusion') > 0  # not by every jaxlib
    assert len(sums_of_copies(copies)[0]) == handed
    apart = compiled(lambda x, a: jnp.sum((x - a) ** 2), whole, column)
    assert sums_of_copies(apart) == ([], handed)


@pytest.mark.slow
@pytest.mark.parametrize('name', test_contract.LEARNERS)
def test_no_step_sums_copies(name):
    for step, shapes in test_contract.steps(test_contract.config(name), test_contract.described(name)):
        bad, count = sums_of_copies(compiled(step, *shapes))
        assert not bad and count
