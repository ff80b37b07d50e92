"""Work that a step does once in N steps, under a name by which those who count the work of a step know it.

`once_in` puts its `lax.cond` into the scope `every_N`. The name stands in the jaxpr and in the compiled program, so that FLOPs,
bytes and collectives of the two branches are weighed by how often each runs (t3d.metrics.flops, t3d.plan.hlo_cost). Any other
conditional says nothing of how often, and counts as its dearest branch.
"""

import math
import re
from collections.abc import Callable, Iterable

import jax

SCOPE = re.compile(r'(?:^|[/(])every_(\d+)\)*$')  # last of a path of scopes, inside transformations or not: 'a/jvp(every_4)'


def once_in(every: int, step, work: Callable, rest: Callable, *operands):
    """`work(*operands)` at steps that `every` divides, `rest(*operands)` at all others."""
    with jax.named_scope(f'every_{every}'):
        return jax.lax.cond(step % every == 0, work, rest, *operands)


def of(scopes: str) -> int | None:
    """N of a conditional whose path of scopes ends in `every_N`; None: it names none, or one that is due at every step."""
    match = SCOPE.search(scopes)
    return int(match[1]) if match and int(match[1]) > 1 else None


def cycle(cadences: Iterable[int]) -> int:
    """The number of steps after which all comes round again: so many in a row hold each piece of work as often as it runs."""
    return math.lcm(*cadences)
