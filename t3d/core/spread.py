"""Model code on the device mesh of the context (`jax.set_mesh`): where arrays lie, and functions spread over an axis of it.

Without a mesh, or inside of `jax.pmap` and `jax.shard_map`, nothing is constrained or spread.
"""

import functools
from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from t3d.core.typing import PyTree

BATCH = ('data', 'fsdp')  # mesh axes of the rows of a batch
KEPT = 'kept for the backward pass'


def axes() -> dict[str, int]:
    """Sizes of the context's mesh axes that the compiler shards over; those that are manual are not among them."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name: mesh.shape[name] for name, kind in kinds if kind == AxisType.Auto}


def constrain(x: jax.Array, *spec) -> jax.Array:
    """`with_sharding_constraint` on the mesh of the context, for model code.

    Axes that the mesh lacks, or that are manual (inside shard_map or pmap), are dropped; without a mesh nothing happens.
    """
    auto = axes()

    def keep(entry):
        if isinstance(entry, tuple):
            return tuple(axis for axis in entry if axis in auto) or None
        return entry if entry in auto else None

    kept = [keep(entry) for entry in spec]
    return jax.lax.with_sharding_constraint(x, P(*kept)) if any(kept) else x


def batch_axes(rows: int, without: str = '') -> tuple[str, ...]:
    """The mesh axes that `rows` of a batch lie on, () where they do not divide."""
    sizes, ways = axes(), 1
    names = tuple(name for name in BATCH if name in sizes and name != without)
    for name in names:
        ways *= sizes[name]
    return names if rows % ways == 0 else ()


def rows_here(rows: int) -> int:
    """How many `rows` of a batch each device has."""
    sizes = axes()
    for name in batch_axes(rows):
        rows //= sizes[name]
    return rows


def rows(x: jax.Array) -> jax.Array:
    """x [B, ...], its rows on the mesh axes of the batch: where a network reads them.

    What is drawn or made inside of a step lies nowhere in particular, and the compiler may then bring all rows to a part of the
    weights, on every device, instead of the weights to the rows of each.
    """
    return constrain(x, batch_axes(x.shape[0]))


def keep(x: jax.Array) -> jax.Array:
    """x, marked: what `over` keeps of a function's intermediate results."""
    return checkpoint_name(x, KEPT)


def over(function: Callable, axis: str, own: PyTree, others: PyTree, *, check_vma: bool = True) -> jax.Array:
    """function(own, others) with axis 1 of every array [B, N, ...] spread over a mesh axis, and that of `others` gathered.

    Each device calls it with its part of `own` and all of `others`; of the result [B, N, ...] it makes its part. Rows stay on
    the mesh axes of the batch. The backward pass gathers and computes again all but what `function` marks with `keep`, so that
    no device keeps what others have. Where the mesh has no such axis, it is the function itself. check_vma: as of
    `jax.shard_map`, False for a function with a Pallas kernel that does not say over which axes its results vary.
    """
    rows, sizes = jax.tree.leaves(own)[0].shape[0], axes()
    if axis not in sizes:
        return function(own, others)
    spec = P(batch_axes(rows, axis) or None, axis)

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(KEPT))
    def local(own, others):
        gather = lambda x: jax.lax.all_gather(x, axis, axis=1, tiled=True)
        return function(own, jax.tree.map(gather, others))

    return jax.shard_map(local, in_specs=spec, out_specs=spec, axis_names=set(sizes), check_vma=check_vma)(own, others)
