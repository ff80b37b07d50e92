"""The train steps of a config, compiled for a mesh of devices that need not be here, and what each costs.

Nothing of the model's size is made: states, batches and given models are ShapeDtypeStructs throughout.
"""

import contextlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from t3d import systems
from t3d.core import platforms, prng
from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.core.system import Given, System, params_of
from t3d.core.typing import PyTree
from t3d.metrics import flops
from t3d.parallel import devices, offload, sharding
from t3d.plan import hlo_cost, meshes, places, roofline
from t3d.plan.chips import GIB, Topology
from t3d.plan.meshes import Sizes

QUICK = {'exec_time_optimization_effort': -1.0}  # XLA's option: half the time to compile, about the same memory
PARTS = ('params', 'opt_state', 'ema', 'extras')  # of the state
UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40, '': 1}


class Model(NamedTuple):
    """A config's system and the shapes of all that its steps take."""

    config: object
    system: System
    state: PyTree
    given: Mapping[str, Given]

    @property
    def floor(self) -> int:
        return self.config.get('fsdp_floor', sharding.FLOOR)

    @property
    def offload(self) -> str:
        return self.config.get('offload', '')


class Overflow(UsageError):
    """A program needs more memory than a device has; `need` and `have` in bytes, None where the compiler does not say."""

    def __init__(self, text: str, need: float | None, have: float | None):
        super().__init__(text)
        self.need, self.have = need, have


def model(config, given: Mapping[str, Given]) -> Model:
    """The shapes of a config.

    Raises:
      UsageError: its system has nothing to train.
    """
    system = systems.make(config, given)
    if system.train_step is None:
        raise UsageError(f'{config.system} has nothing to train, so there is no step to plan: plan the systems it samples.')
    state = jax.eval_shape(system.init, prng.key(0), system.batch_spec, params_of(given))
    return Model(config, system, state, given)


def bytes_of(one: Model, sizes: Sizes) -> dict[str, int]:
    """Bytes that each device has of the parts of a step's arguments, by the rules alone; without what lies on the host."""
    found = _bytes_of_state(one, sizes, lambda name, leaf: not offload.on_host(name, leaf, one.offload, one.floor))
    found['given'] = sum(meshes.bytes_each(each.params, each.sharding, sizes, one.floor) for each in one.given.values())
    found['batch'] = trees.size_bytes(one.system.batch_spec) // (sizes['data'] * sizes['fsdp'])
    return found


def host_bytes_of(one: Model, sizes: Sizes) -> dict[str, int]:
    """Bytes that lie in the host's memory for each device, of the parts of the state that are there; {} without `offload`."""
    found = _bytes_of_state(one, sizes, lambda name, leaf: offload.on_host(name, leaf, one.offload, one.floor))
    return {name: size for name, size in found.items() if size}


def _bytes_of_state(one: Model, sizes: Sizes, counts: Callable[[str, Any], bool]) -> dict[str, int]:
    """Bytes for each device of the leaves that count, by part of the state."""
    leaves = {name: leaf for name, leaf in trees.flatten(one.state).items() if counts(name, leaf)}
    parts = {part: {name: leaf for name, leaf in leaves.items() if name.startswith(f'{part}/')} for part in PARTS}
    return {part: meshes.bytes_each(tree, one.system.sharding, sizes, one.floor) for part, tree in parts.items()}


def steps_of(one: Model) -> dict:
    """{name: train step}, of systems with several all of them."""
    others = {f'train_step_{number}': step for number, step in enumerate(one.system.other_steps, 1)}
    return {'train_step': one.system.train_step, **others}


def works(one: Model) -> dict[str, flops.Work]:
    """Model FLOPs of each step, of all devices, and what in it runs once in N steps (t3d.metrics.flops)."""
    key, others = jax.eval_shape(lambda: prng.key(0)), params_of(one.given)
    return {name: flops.work(step, one.state, one.system.batch_spec, key, others) for name, step in steps_of(one).items()}


def lower(one: Model, name: str, mesh):
    """A step lowered for a mesh: sharded, its state donated, as the loop runs it."""
    placed = sharding.shardings(one.state, one.system.sharding, mesh, one.floor)
    placed = offload.place(one.state, placed, one.offload, one.floor)
    given = {
        each: sharding.abstract_with(model.params, sharding.shardings(model.params, model.sharding, mesh, one.floor))
        for each, model in one.given.items()
    }
    state, batch = sharding.abstract_with(one.state, placed), sharding.abstract_batch(one.system.batch_spec, mesh)
    key = jax.eval_shape(lambda: prng.key(0))
    plain = steps_of(one)[name]

    def train_step(state, batch, key, given):
        state, metrics = plain(offload.fetched(state), batch, key, given)
        return offload.returned(state, placed), metrics

    with jax.set_mesh(mesh):
        step = jax.jit(train_step, donate_argnums=0, out_shardings=(placed, sharding.replicated(mesh)))
        return step.lower(state, batch, key, given)


def compiled(one: Model, name: str, mesh, quick: bool = False) -> dict:
    """A step compiled for a mesh, as plain data: seconds, bytes for each device, FLOPs, collectives.

    Raises:
      Overflow: it does not fit the memory of a device.
    """
    began = time.perf_counter()
    lowered = lower(one, name, mesh)
    half = time.perf_counter()
    with jax.set_mesh(mesh), _overflows(sum(bytes_of(one, dict(mesh.shape)).values())):
        program = lowered.compile(compiler_options=QUICK if quick and _platform(mesh) == 'tpu' else None)
    end = time.perf_counter()
    memory, reader = memory_of(one, program, mesh), hlo_cost.read(program.as_text(), mesh.size)
    cost = reader.computation(None)
    return {
        'lower_seconds': half - began,
        'compile_seconds': end - half,
        **memory,
        'compiler_flops': float((program.cost_analysis() or {}).get('flops', 0.0)),
        'device_flops': cost.flops,
        'memory_traffic_bytes': cost.bytes,
        'unknown_loops': cost.unknown,
        'heaviest': places.heaviest(places.of(reader)),
        'cadences': reader.cadences(),
        'cost': cost,
    }


def memory_of(one: Model, program, mesh) -> dict[str, int]:
    """Bytes of a compiled step on each device: arguments, results and what takes the place of these, temporaries, all it needs.

    It needs what is there at once at the most, and its code. Temporaries are the compiler's sum, which can be more than a
    device has of a program that fits: not all of them are there together.
    What lies on the host is left out. XLA:TPU counts it apart but in the peak; XLA:CPU has one memory and counts it everywhere.
    """
    memory, there = program.memory_analysis(), sum(host_bytes_of(one, dict(mesh.shape)).values())
    apart = 0 if _platform(mesh) == 'cpu' else memory.host_argument_size_in_bytes
    mixed = there if _platform(mesh) == 'cpu' else 0
    found = {
        'argument_bytes': memory.argument_size_in_bytes - mixed,
        'output_bytes': memory.output_size_in_bytes - mixed,
        'aliased_bytes': memory.alias_size_in_bytes - mixed,
        'temporary_bytes': memory.temp_size_in_bytes,
        'peak_bytes': memory.peak_memory_in_bytes - mixed - apart,
    }
    least = found['argument_bytes'] + found['output_bytes'] - found['aliased_bytes']  # where no peak is told
    return {**found, 'need_bytes': max(found['peak_bytes'], least) + memory.generated_code_size_in_bytes}


def collectives(cost: hlo_cost.Cost) -> list[dict]:
    """The collectives of a step by kind and size of group, those of most bytes first."""
    rows = {}
    for one, count in cost.collectives.items():
        row = rows.setdefault((one.kind, len(one.groups[0]) if one.groups else 0), [0, 0])
        row[0], row[1] = row[0] + count, row[1] + count * one.bytes
    ordered = sorted(rows.items(), key=lambda item: -item[1][1])
    return [{'kind': kind, 'group': group, 'count': count, 'bytes': size} for (kind, group), (count, size) in ordered]


def roof(cost: hlo_cost.Cost, topology: Topology, mesh) -> dict | None:
    """Seconds of a step at full speed, by t3d.plan.roofline; None for devices that are no chips of the table."""
    if topology.chip is None or _platform(mesh) != 'tpu':
        return None
    places = np.array([device.coords[: len(topology.sizes)] for device in mesh.devices.flat])
    line = roofline.of(cost, topology, places)
    return {
        'compute_seconds': line.compute,
        'memory_seconds': line.memory,
        'links_seconds': line.links,
        'least_seconds': line.least,
        'most_seconds': line.most,
        'bound': line.bound,
    }


def mesh_of(sizes: Sizes, found: list):
    """The mesh that a run would make of these devices.

    Raises:
      UsageError: the torus cannot be cut so.
    """
    try:
        return devices.make(sizes, found)
    except NotImplementedError as error:
        reason = str(error).partition('\n')[0][:160]
        raise UsageError(
            f'mesh {meshes.show(sizes)} cannot be laid on this torus ({reason}): choose axes that are products of its sizes.'
        ) from error


@contextlib.contextmanager
def traced_for(mesh):
    """Inside, model code takes the formulation of the mesh's platform."""
    with platforms.planned(_platform(mesh)):
        yield


def _platform(mesh) -> str:
    return mesh.devices.flat[0].platform


@contextlib.contextmanager
def _overflows(arguments: int):
    """Turns the compiler's refusal of a program that is too large into Overflow."""
    try:
        yield
    except Exception as error:
        text = str(error)
        if 'RESOURCE_EXHAUSTED' not in text:
            raise
        raise overflow(text, arguments) from error


def overflow(text: str, arguments: int = 0) -> Overflow:
    """The error for a compiler's text, with the bytes that it says; `arguments`: those of the step, for texts without."""
    used = re.search(r'[Uu]sed ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm', text)
    alone = re.search(r'temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)', text)
    match = used or alone
    if match is None:
        return Overflow(f'does not fit a device: {" ".join(text.split())[:200]}', None, None)
    size, have = (float(match[k]) * UNITS[match[k + 1]] for k in (1, 3))
    said = (
        f'temporaries of {size / GIB:.2f} GiB and arguments of {arguments / GIB:.2f} GiB' if alone else f'{size / GIB:.2f} GiB'
    )
    return Overflow(f'does not fit a device: {said} of {have / GIB:.2f} GiB.', size + (arguments if alone else 0), have)
