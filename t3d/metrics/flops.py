"""Model FLOPs counted in a jaxpr, and the share of a device's peak that a step reaches.

Only matrix products and convolutions count, 2 per multiply-add, at their size in the program as traced (before the compiler):
the convention behind published MFU figures. Loops count as often as they run, what is spread over devices (`jax.shard_map`) on
all of them, Pallas kernels on each block of their grid. Of what runs once in N steps (t3d.core.cadence) an Nth counts, and of
its other branch the rest; any other conditional counts its dearest branch. What a backward pass computes again
(`jax.checkpoint`, our own rules under the same name, and the flash kernel) is work, but no model FLOP (PaLM, arXiv 2204.02311,
App. B), and neither are products that stand for a gather of rows.
"""

import math
from fractions import Fraction
from numbers import Rational
from typing import NamedTuple

import jax

from t3d.core import cadence

PEAK = {  # dense bf16 FLOP/s of one device, from the vendors' data sheets; matched on the start of device_kind
    'NVIDIA H200': 989e12,
    'NVIDIA H100': 989e12,
    'NVIDIA A100': 312e12,
    'NVIDIA L4': 121e12,
    'TPU v4': 275e12,
    'TPU v5 lite': 197e12,
    'TPU v5e': 197e12,
    'TPU v5p': 459e12,
    'TPU v5': 459e12,
    'TPU v6 lite': 918e12,
}


AGAIN = 'rematted_computation'  # the name jax.checkpoint gives to what it computes again
NONE = (AGAIN, 'look_up_by_products')  # the second: fields.fused_kernels
FLASH = {  # model FLOPs among the products of the flash kernel's passes, by the names that JAX gives them
    'flash_mha_bwd_dkv': 2 / 4,  # gradients of keys and values; again: logits and the gradient of weights
    'flash_mha_bwd_dq': 2 / 3,  # gradients of weights and queries; again: logits
}


class Work(NamedTuple):
    """Model FLOPs of one call, on average over calls in a row, and the N of all that runs once in N of them."""

    flops: int
    cadences: tuple[int, ...]


def work(function, *args) -> Work:
    """The work of a function of these arguments, which may be ShapeDtypeStructs."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return Work(round(_jaxpr(jaxpr)), tuple(sorted(_cadences(jaxpr))))


def count(function, *args) -> int:
    """Model FLOPs of one call, as in `work`."""
    return work(function, *args).flops


def peak(device=None) -> float | None:
    """Peak FLOP/s of a device in bf16, or None where it is not known (every CPU)."""
    kind = (device or jax.devices()[0]).device_kind
    return next((value for name, value in PEAK.items() if kind.startswith(name)), None)


def _cadences(jaxpr) -> set[int]:
    found = set()
    for equation in jaxpr.eqns:
        if every := _cadence(equation):
            found.add(every)
        for inner in _subjaxprs(equation.params):
            found |= _cadences(getattr(inner, 'jaxpr', inner))
    return found


def _cadence(equation) -> int | None:
    """N of a conditional of two branches that runs one of them once in N steps."""
    two = equation.primitive.name == 'cond' and len(equation.params['branches']) == 2
    return cadence.of(str(equation.source_info.name_stack)) if two else None


def _jaxpr(jaxpr) -> Rational:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation) -> Rational:
    name, parameters, stack = equation.primitive.name, equation.params, str(equation.source_info.name_stack)
    if any(name in stack for name in NONE):
        return 0
    if name == 'dot_general':
        (contracted, _), _ = parameters['dimension_numbers']
        inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return 2 * inner * equation.outvars[0].aval.size
    if name == 'conv_general_dilated':
        return _convolution(equation)
    inner = [_jaxpr(getattr(value, 'jaxpr', value)) for value in _subjaxprs(parameters)]
    if name == 'scan':
        return parameters['length'] * sum(inner)
    if name == 'pallas_call':
        blocks = math.prod(parameters['grid_mapping'].grid)
        return round(blocks * sum(inner) * next((share for part, share in FLASH.items() if part in stack), 1))
    if every := _cadence(equation):
        return min(inner) + Fraction(max(inner) - min(inner), every)
    if name == 'cond':
        return max(inner, default=0)
    if name == 'shard_map':  # each part of the arguments is work of its own; along other axes devices do the same
        specs = jax.tree.leaves(tuple(map(tuple, parameters['in_specs'])))
        return math.prod(parameters['mesh'].shape[axis] for axis in set(specs)) * sum(inner)
    return sum(inner)


def _convolution(equation) -> int:
    right = equation.invars[1].aval.shape
    numbers = equation.params['dimension_numbers']
    # Every output element sums over the kernel's window and input channels; dilated inputs hold zeros that are not counted.
    window = math.prod(right[axis] for axis in numbers.rhs_spec[1:])
    dilation = math.prod(equation.params['lhs_dilation'])
    return 2 * window * equation.outvars[0].aval.size // dilation


def _subjaxprs(parameters):
    for value in parameters.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, 'eqns') or hasattr(getattr(item, 'jaxpr', None), 'eqns'):
                yield item
