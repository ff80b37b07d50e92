"""The least time of a step: arithmetic, memory and links each at their full speed. An estimate, never a measurement.

The model of links: a collective of a group runs as a ring over each axis of the torus along which the group's chips differ, in
both directions at once. W, the sum over these axes of two links' bandwidth (of one where the axis is a line: its ends are not
joined, or the group has not all of it), moves the collective's bytes V on a group of N:

| kind | seconds |
|---|---|
| all-gather, reduce-scatter | V (N - 1) / N / W |
| all-reduce | twice that: a reduce-scatter and an all-gather |
| all-to-all | V N / 4 / W: each part goes a quarter of the ring on average, in each direction |
| collective-permute | V over one link, for each hop of the longest way |

V is the larger of what one device gives and gets. Latency, contention between groups, hosts and slices are left out. Source of
the ring arithmetic: "How to Scale Your Model" (jax-ml.github.io/scaling-book), chapters on TPUs and sharded matrices.
"""

from typing import NamedTuple

import numpy as np

from t3d.plan.chips import Topology
from t3d.plan.hlo_cost import Collective, Cost


class Roofline(NamedTuple):
    """Seconds of a step at full speed.

    Attributes:
      compute: of the FLOPs that run; memory: of the bytes; links: {kind: of the collectives}.
    """

    compute: float
    memory: float
    links: dict[str, float]

    @property
    def collectives(self) -> float:
        return sum(self.links.values())

    @property
    def least(self) -> float:
        """Seconds if all three run at once."""
        return max(self.compute, self.memory, self.collectives)

    @property
    def most(self) -> float:
        """Seconds if they run one after the other, each at full speed."""
        return self.compute + self.memory + self.collectives

    @property
    def bound(self) -> str:
        """What bounds the step: 'compute', 'memory' or 'links'."""
        times = {'compute': self.compute, 'memory': self.memory, 'links': self.collectives}
        return max(times, key=times.get)


def of(cost: Cost, topology: Topology, coordinates: np.ndarray) -> Roofline:
    """The roof line of one device's cost at a step.

    Args:
      topology: of chips; a processor's has none.
      coordinates: [devices, axes] of each place of the mesh in the torus.
    """
    chip, links = topology.chip, {}
    for one, count in cost.collectives.items():
        links[one.kind] = links.get(one.kind, 0.0) + count * seconds(one, topology, coordinates)
    return Roofline(cost.flops / chip.peak, cost.bytes / chip.bandwidth, links)


def seconds(one: Collective, topology: Topology, coordinates: np.ndarray) -> float:
    """Seconds of a collective, of the slowest of its groups."""
    if one.kind == 'collective-permute':
        hops = max((_hops(topology, *coordinates[list(pair)]) for pair in one.groups), default=0)
        return hops * one.bytes / topology.chip.link
    return max((_ring(one, topology, coordinates[list(group)]) for group in set(one.groups)), default=0.0)


def _ring(one: Collective, topology: Topology, places: np.ndarray) -> float:
    count = len(places)
    width = sum(_width(topology, axis, places[:, axis]) for axis in range(len(topology.sizes)))
    if count < 2 or not width:
        return 0.0
    if one.kind == 'all-to-all':
        return one.bytes * count / 4 / width
    once = one.bytes * (count - 1) / count / width
    return 2 * once if one.kind == 'all-reduce' else once


def _width(topology: Topology, axis: int, places: np.ndarray) -> float:
    """Bytes/s along an axis of the torus for a group that stands at these places of it; 0 where it does not spread there."""
    spread = len(set(places.tolist()))
    if spread < 2:
        return 0.0
    whole = spread == topology.sizes[axis] and topology.ring(axis)
    return topology.chip.link * (2 if whole else 1)


def _hops(topology: Topology, start: np.ndarray, end: np.ndarray) -> int:
    total = 0
    for axis, size in enumerate(topology.sizes):
        way = abs(int(start[axis]) - int(end[axis]))
        total += min(way, size - way) if topology.ring(axis) else way
    return total
