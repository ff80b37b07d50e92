"""Which axis of which array lies on which axis of the device mesh.

Rules are data: `((regex, PartitionSpec), ...)`, searched in the path name of every leaf of the training state; the first
match wins. As the rules see the whole state, Adam's moments and the moving average follow their parameters. An axis of a
rule is dropped where the dimension does not divide (of several for one dimension, those that do not); a leaf without a rule
is sharded over 'fsdp' along its largest divisible axis if it is above a size floor, and replicated otherwise.
"""

import logging
import math
import re
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.core.typing import PyTree

FLOOR = 2**20  # bytes
BATCH = P(('data', 'fsdp'))
HOST = 'pinned_host'  # memory kind of arrays in the host's memory, which the devices reach (t3d.parallel.offload)

log = logging.getLogger('t3d')


class Placement(NamedTuple):
    """Where one leaf goes, and why."""

    spec: P
    reason: str  # 'rule', 'fsdp', 'small', 'replicated'
    dropped: tuple[str, ...]  # mesh axes of the rule that did not divide


def place(name: str, leaf, rules: tuple, mesh: Mesh, floor: int = FLOOR) -> Placement:
    """The placement of one leaf (anything with shape and dtype)."""
    for pattern, spec in rules:
        if re.search(pattern, name):
            return _by_rule(name, leaf.shape, spec, mesh)
    ways = mesh.shape['fsdp']
    size = size_bytes(leaf)
    axes = [axis for axis, length in enumerate(leaf.shape) if length % ways == 0 and length > 0]
    if ways == 1 or not axes:
        return Placement(P(), 'replicated', ())
    if size < floor:
        return Placement(P(), 'small', ())
    axis = max(axes, key=lambda axis: leaf.shape[axis])
    return Placement(P(*[None] * axis, 'fsdp'), 'fsdp', ())


def shardings(abstract: PyTree, rules: tuple, mesh: Mesh, floor: int = FLOOR) -> PyTree:
    """NamedShardings for a tree of arrays or ShapeDtypeStructs; says in the log which rules did not divide."""

    def one(name, leaf):
        placement = place(name, leaf, rules, mesh, floor)
        if placement.dropped:
            log.warning(
                'sharding: %s %s is not divisible along %s: replicated there', name, leaf.shape, ', '.join(placement.dropped)
            )
        return NamedSharding(mesh, placement.spec)

    return trees.map_with_name(one, abstract)


def abstract_with(abstract: PyTree, placed: PyTree) -> PyTree:
    """ShapeDtypeStructs that carry their shardings: the target of a restore, or the arguments of `lower`."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, placed)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The batch axis over 'data' and 'fsdp'."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())


def global_batch(local: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of the batch, as global arrays sharded over the batch axes."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(local, sharding)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows, (rows.shape[0] * jax.process_count(), *rows.shape[1:]))
        for name, rows in local.items()
    }


def abstract_batch(specs: dict[str, jax.ShapeDtypeStruct], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The global batch of these shapes as `global_batch` lays it out."""
    place = batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=place) for name, spec in specs.items()}


def whole_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch that every process holds in full: sharded over the batch axes if its rows divide, else replicated."""
    if not batch:
        return {}
    rows = min(len(value) for value in batch.values())
    sharding = batch_sharding(mesh) if rows % ways(BATCH, mesh) == 0 else replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return {
        name: jax.make_array_from_callback(np.shape(value), sharding, lambda index, value=value: np.asarray(value)[index])
        for name, value in batch.items()
    }


def report(abstract: PyTree, rules: tuple, mesh: Mesh, floor: int = FLOOR) -> str:
    """A table of the sharded leaves, largest first, and the bytes per device."""
    rows, total, each, host = [], 0, 0, 0
    for name, leaf in trees.flatten(abstract).items():
        placement = place(name, leaf, rules, mesh, floor)
        size = size_bytes(leaf)
        local = size // ways(placement.spec, mesh)
        total, each = total + size, each + local
        host += local if getattr(getattr(leaf, 'sharding', None), 'memory_kind', None) == HOST else 0
        if local < size or placement.dropped:
            note = placement.reason + (f', dropped {" ".join(placement.dropped)}' if placement.dropped else '')
            rows.append((size, f'{name}  {tuple(leaf.shape)}  {placement.spec}  {note}'))
    lines = [line for _, line in sorted(rows, key=lambda row: -row[0])]
    lines.append(
        f'state: {total / 2**20:.1f} MiB in all, {each / 2**20:.1f} MiB per device, '
        + (f'{host / 2**20:.1f} MiB of these in the memory of its host, ' if host else '')
        + f'{len(rows)} of {len(trees.flatten(abstract))} leaves sharded'
    )
    return '\n'.join(lines)


def ways(spec: P, mesh: Mesh) -> int:
    """Into how many parts a spec cuts an array."""
    axes = [axis for entry in spec if entry for axis in (entry if isinstance(entry, tuple) else (entry,))]
    return math.prod(mesh.shape[axis] for axis in axes)


def size_bytes(leaf) -> int:
    """Bytes of a whole array, or of what only has its shape and dtype; typed keys too."""
    typed = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return math.prod(leaf.shape) * (leaf.dtype if typed else np.dtype(leaf.dtype)).itemsize


def _by_rule(name: str, shape: tuple[int, ...], spec, mesh: Mesh) -> Placement:
    entries = tuple(spec)
    if len(entries) > len(shape):
        raise UsageError(f'sharding rule {spec} has {len(entries)} axes, {name} has shape {tuple(shape)}: shorten the rule.')
    kept, dropped = [], []
    for length, entry in zip(shape, entries):
        axes = () if entry is None else entry if isinstance(entry, tuple) else (entry,)
        unknown = [axis for axis in axes if axis not in mesh.shape]
        if unknown:
            raise UsageError(f'sharding rule {spec} for {name}: no mesh axis {unknown[0]!r}, wanted one of {list(mesh.shape)}.')
        fits, parts = [], 1
        for axis in axes:
            if length % (parts * mesh.shape[axis]):
                dropped.append(axis)
            else:
                fits.append(axis)
                parts *= mesh.shape[axis]
        kept.append(tuple(fits) or None)
    while kept and kept[-1] is None:
        kept.pop()
    return Placement(P(*kept), 'rule', tuple(dropped))
