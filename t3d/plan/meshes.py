"""Device meshes for a topology: reading one, whether a batch and the arrays divide, and the smallest that fits.

`--mesh data=16,fsdp=16` gives the axes; one that is left out has size 1, and one may be -1 for the rest.
"""

import math
from collections.abc import Callable, Iterable

from jax.sharding import AbstractMesh

from t3d.core import tree as trees
from t3d.core.config import unknown
from t3d.core.errors import UsageError
from t3d.core.typing import PyTree
from t3d.parallel import sharding
from t3d.parallel.devices import AXES
from t3d.plan import chips
from t3d.plan.chips import Topology

Sizes = dict[str, int]


def parse(text: str) -> Sizes:
    """{'data': 16, 'fsdp': 16, 'tensor': 1} of 'data=16,fsdp=16'.

    Raises:
      UsageError: an unknown axis, one given twice, no whole number, more than one -1.
    """
    sizes, named = dict.fromkeys(AXES, 1), []
    for part in text.replace(' ', '').split(','):
        name, _, size = part.partition('=')
        if name not in AXES:
            raise UsageError(f'--mesh {text}: {unknown(name, AXES, "mesh axis")} Wanted for example data=16,fsdp=16.')
        if size != '-1' and not (size.isdigit() and int(size) > 0):
            raise UsageError(f'--mesh {text}: {part}: wanted a whole number from 1, or -1 for the rest.')
        sizes[name] = int(size)
        named.append(name)
    if twice := [name for name in AXES if named.count(name) > 1]:
        raise UsageError(f'--mesh {text}: {twice[0]} has two sizes: give each axis once.')
    if (free := [name for name in named if sizes[name] == -1])[1:]:
        raise UsageError(f'--mesh {text}: {" and ".join(free)} are -1, and the rest is one number: give one of them a size.')
    return sizes


def show(sizes: Sizes) -> str:
    """'data=16,fsdp=16': the axes above 1."""
    return ','.join(f'{name}={size}' for name, size in sizes.items() if size > 1) or 'data=1'


def resolve(sizes: Sizes, topology: Topology, batch: int) -> Sizes:
    """The sizes with -1 replaced; their product is the topology's devices, and the batch divides.

    Raises:
      UsageError: they do not; the message has the nearest mesh that does.
    """
    count, text = topology.count, show(sizes)
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) == 1 and count % fixed == 0:
        sizes = {**sizes, free[0]: count // fixed}
    if -1 in sizes.values() or math.prod(sizes.values()) != count:
        near = nearest(sizes, count, batch)
        hint = f' Nearest: --mesh {show(near)}.' if near else ''
        raise UsageError(f'--mesh {text}: {fixed if not free else "no"} devices, and {topology.name} has {count}.{hint}')
    ways = sizes['data'] * sizes['fsdp']
    if batch and batch % ways:
        near, low = nearest(sizes, count, batch), batch // ways * ways
        hint = f'--mesh {show(near)}, or ' if near else ''
        rows = f'batch={low} or batch={low + ways}' if low else f'batch={ways}'
        raise UsageError(
            f'batch {batch} does not divide over data x fsdp = {sizes["data"]} x {sizes["fsdp"]} = {ways} devices. Nearest: '
            f'{hint}{rows}.'
        )
    return sizes


def every(count: int, batch: int) -> Iterable[Sizes]:
    """The meshes of so many devices over which a batch divides (0: any)."""
    for fsdp in _divisors(count):
        for tensor in _divisors(count // fsdp):
            data = count // fsdp // tensor
            if not batch or batch % (data * fsdp) == 0:
                yield {'data': data, 'fsdp': fsdp, 'tensor': tensor}


def nearest(wish: Sizes, count: int, batch: int, fits: Callable = lambda sizes: True) -> Sizes | None:
    """The mesh of so many devices nearest to a wish, in ratios, over which the batch divides; None: there is none."""

    def distance(sizes):
        return sum(abs(math.log2(sizes[name] / max(wish[name], 1))) * (3 if name == 'tensor' else 1) for name in AXES)

    return min((sizes for sizes in every(count, batch) if sizes != wish and fits(sizes)), key=distance, default=None)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


# ------------------------------------------------------------------------------------------------------------------- arrays


def without_devices(sizes: Sizes) -> AbstractMesh:
    """A mesh that rules of sharding can be asked of."""
    return AbstractMesh(tuple(sizes.values()), tuple(sizes))


def bytes_each(tree: PyTree, rules: tuple, sizes: Sizes, floor: int) -> int:
    """Bytes that one device has of a tree, laid out by rules on a mesh."""
    mesh, total = without_devices(sizes), 0
    for name, leaf in trees.flatten(tree).items():
        placement = sharding.place(name, leaf, rules, mesh, floor)
        total += trees.size_bytes(leaf) // sharding.ways(placement.spec, mesh)
    return total


def undivided(tree: PyTree, rules: tuple, sizes: Sizes, floor: int) -> list[tuple[int, str]]:
    """(bytes of the whole array, what does not divide) of arrays that stay whole along an axis of their rule, largest first."""
    mesh, rows = without_devices(sizes), []
    for name, leaf in trees.flatten(tree).items():
        dropped = sharding.place(name, leaf, rules, mesh, floor).dropped
        if dropped:
            axes = ', '.join(f'{axis}={sizes[axis]}' for axis in dict.fromkeys(dropped))
            rows.append((trees.size_bytes(leaf), f'{name} {tuple(leaf.shape)} over {axes}'))
    return sorted(rows, reverse=True)


# ---------------------------------------------------------------------------------------------------------------- searching


def candidates(topology: Topology, sizes: Sizes, batch: int, wider: bool) -> Iterable[tuple[Topology, Sizes]]:
    """Meshes to try for the smallest that fits: of this slice and smaller ones, or, `wider`, of larger ones; smallest first.

    Of each slice all meshes whose tensor axis is that of `sizes`, over which the batch divides; `wider` is for one that does
    not fit, which is left out.
    """
    for other in [topology, *chips.larger(topology)] if wider else chips.smaller(topology):
        for mesh in every(other.count, batch):
            if mesh['tensor'] == sizes['tensor'] and not (wider and mesh == sizes):
                yield other, mesh
