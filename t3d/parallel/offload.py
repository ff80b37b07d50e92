"""Parts of the training state that lie in the host's memory between steps: the config's `offload`.

With `offload='optimizer'` the arrays of the optimizer's state have JAX's memory kind 'pinned_host'. A compiled step copies them
to the devices, updates them there and copies them back, so the mathematics is untouched. Arrays smaller than the config's
`fsdp_floor` stay on the devices: each copy has a latency. With Adam the devices hold two numbers less for each parameter, and
every step moves these over the link to the host, once in each direction. XLA:TPU has a few copies in flight at once, so few of
the arrays are on the device together. On a CPU both memories are the same one: the bits are tested there, nothing is saved.
"""

import jax
from jax.sharding import NamedSharding

from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.core.typing import PyTree
from t3d.parallel.sharding import HOST, size_bytes

PARTS = {'': (), 'optimizer': ('opt_state/',)}  # value of the key: how names of the leaves begin


def on_host(name: str, leaf, what: str, floor: int) -> bool:
    """Whether a leaf of the state (anything with shape and dtype) lies on the host.

    Args:
      name: its path. what, floor: the config's `offload` and `fsdp_floor`, in bytes of the whole array.
    """
    return bool(leaf.shape) and name.startswith(PARTS[what]) and size_bytes(leaf) >= floor


def place(abstract: PyTree, placed: PyTree, what: str, floor: int) -> PyTree:
    """Shardings of a state, those of its offloaded leaves with the host's memory kind.

    Args:
      abstract: a TrainState of ShapeDtypeStructs. placed: its NamedShardings. what, floor: as for `on_host`.
    Raises:
      UsageError: the devices have no such memory.
    """
    if not what:
        return placed

    def one(name: str, leaf, where: NamedSharding) -> NamedSharding:
        if not on_host(name, leaf, what, floor):
            return where
        _check(where.mesh, what)
        return where.with_memory_kind(HOST)

    return trees.map_with_name(one, abstract, placed)


def fetched(tree: PyTree) -> PyTree:
    """Inside a jitted function: the leaves on the devices, copied there where they lie on the host; else as they are."""

    def one(leaf):
        there = jax.typeof(leaf).memory_space == jax.memory.Space.Host
        return jax.device_put(leaf, jax.memory.Space.Device) if there else leaf

    return jax.tree.map(one, tree)


def returned(tree: PyTree, placed: PyTree) -> PyTree:
    """Inside a jitted function: its result with the leaves whose sharding in `placed` is of the host copied there.

    The barrier keeps the compiler from writing parts of an array to the host one by one, which XLA:TPU begins and then refuses
    ("Lane slice updating is not supported in async dynamic update slice").
    """

    def one(leaf, where):
        if where.memory_kind != HOST:
            return leaf
        whole = jax.lax.with_sharding_constraint(leaf, where.with_memory_kind('device'))
        return jax.device_put(jax.lax.optimization_barrier(whole), jax.memory.Space.Host)

    return jax.tree.map(one, tree, placed)


def of_device(tree: PyTree) -> PyTree:
    """ShapeDtypeStructs with shardings as `fetched` makes the arrays."""

    def one(leaf):
        if leaf.sharding.memory_kind != HOST:
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding.with_memory_kind('device'))

    return jax.tree.map(one, tree)


def _check(mesh, what: str) -> None:
    device = mesh.devices.flat[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise UsageError(
            f'offload={what!r}: devices of the platform {device.platform} have the memories {", ".join(kinds) or "none"}, and '
            f'{HOST} is wanted: set offload= (nothing), or fewer bytes for each device by mesh.fsdp.'
        )
