"""TPU chips and the shapes they are sold in: memory, peak, bandwidths and links, and their devices as a compiler sees them.

Figures are the vendor's: docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e (read 2026-11), the link of v4 from arXiv
2304.01433, Table 4. A page gives the bandwidth of all links of a chip in both directions; one link in one direction has that
over twice the number of links. `hbm` is what XLA:TPU lets a program have, asked of the compiler of jax 0.10.2.
"""

import difflib
import importlib.util
import math
import os
import re
from typing import NamedTuple

from t3d.core.errors import UsageError

GIB = 2**30
FLAT = ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')  # of chips with links in two directions
DEEP = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8')  # and in three
HOST = 'cpu'  # `cpu:8`: virtual devices of this processor, a rehearsal
MOST = 1024  # virtual devices
VARIABLES = {  # of libtpu, read when it is loaded, so that it looks for no machine around it
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # else a second process ends at the lock file of the first
}
SETUP = '`make setup-plan`, then `.venv-plan/bin/t3d plan ...` (or pip install "t3d[tpu]" in an environment of its own)'


class Chip(NamedTuple):
    """A kind of TPU.

    Attributes:
      hbm: bytes that a program may have. peak: dense bf16 FLOP/s. bandwidth: of that memory, bytes/s.
      link: bytes/s of one link in one direction. shapes: of the slices, smallest first.
      cores: that the vendor counts in a name: v5p-128 has 64 chips of 2.
      options: of the topology, for the compiler.
    """

    hbm: float
    peak: float
    bandwidth: float
    link: float
    shapes: tuple[str, ...]
    cores: int
    options: dict


CHIPS = {
    'v4': Chip(30.75 * GIB, 275e12, 1200e9, 50e9, DEEP, 2, {'chip_config_name': 'megacore'}),
    'v5e': Chip(15.75 * GIB, 197e12, 819e9, 400e9 / 8, FLAT, 1, {}),
    'v5p': Chip(95.74 * GIB, 459e12, 2765e9, 1200e9 / 12, DEEP, 2, {}),
    'v6e': Chip(31.25 * GIB, 918e12, 1638e9, 800e9 / 8, FLAT, 1, {}),
}


class Topology(NamedTuple):
    """A slice of chips, or the virtual devices of this processor.

    Attributes:
      name: 'v5e:16x16', 'cpu:8'. sizes: (16, 16). chip: None for a processor.
    """

    name: str
    sizes: tuple[int, ...]
    chip: Chip | None

    @property
    def count(self) -> int:
        """Devices: one for each chip."""
        return math.prod(self.sizes)

    def ring(self, axis: int) -> bool:
        """Whether the ends of an axis are joined: in two dimensions those of 16, in three if all are multiples of 4."""
        if len(self.sizes) == 2:
            return self.sizes[axis] == 16
        return all(size % 4 == 0 for size in self.sizes)


def topology(text: str) -> Topology:
    """The slice that a text names: 'v5e:16x16', the vendor's 'v5e-256', 'cpu:8'.

    Raises:
      UsageError: no such chip or shape; the message has the nearest.
    """
    kind, _, shape = text.strip().lower().partition(':')
    if kind == HOST:
        if not (shape.isdigit() and 1 <= int(shape) <= MOST):
            raise UsageError(f'--topology {text}: wanted {HOST}:N with 1 to {MOST} virtual devices, for example {HOST}:8.')
        return Topology(f'{HOST}:{int(shape)}', (int(shape),), None)
    if not shape and (vendor := re.fullmatch(r'(v\d+[a-z]*|v5litepod)-(\d+)', kind)):
        return _of_vendor(text, 'v5e' if vendor[1] == 'v5litepod' else vendor[1], int(vendor[2]))
    if kind not in CHIPS:
        near = difflib.get_close_matches(kind, CHIPS, 1, 0.3)
        example = f'{near[0]}:{_nearest(shape, CHIPS[near[0]])}' if near else 'v5e:16x16'
        raise UsageError(
            f'--topology {text}: unknown chip {kind!r}: there are {", ".join(CHIPS)}, and {HOST}:N for a rehearsal. '
            f'Nearest: {example}.'
        )
    chip = CHIPS[kind]
    if shape not in chip.shapes:
        raise UsageError(f'--topology {text}: {kind} has {", ".join(chip.shapes)}. Nearest: {kind}:{_nearest(shape, chip)}.')
    return Topology(f'{kind}:{shape}', tuple(map(int, shape.split('x'))), chip)


def smaller(large: Topology) -> list[Topology]:
    """The slices of the same chip that have at most as many devices, smallest first."""
    if large.chip is None:
        return [topology(f'{HOST}:{n}') for n in range(1, large.count + 1) if large.count % n == 0]
    kind = large.name.partition(':')[0]
    every = [topology(f'{kind}:{shape}') for shape in large.chip.shapes]
    return [one for one in every if one.count <= large.count]


def larger(small: Topology) -> list[Topology]:
    """The slices of the same chip that have more devices, smallest first."""
    if small.chip is None:
        return [topology(f'{HOST}:{small.count * 2**k}') for k in range(1, 6) if small.count * 2**k <= MOST]
    kind = small.name.partition(':')[0]
    every = [topology(f'{kind}:{shape}') for shape in small.chip.shapes]
    return [one for one in every if one.count > small.count]


def _of_vendor(text: str, kind: str, number: int) -> Topology:
    if kind not in CHIPS:
        raise UsageError(f'--topology {text}: unknown chip {kind!r}: there are {", ".join(CHIPS)}. Nearest: v5e:16x16.')
    chip = CHIPS[kind]
    by_count = {chip.cores * math.prod(map(int, shape.split('x'))): shape for shape in chip.shapes}
    if number not in by_count:
        near = min(by_count, key=lambda count: abs(count - number))
        counts = ', '.join(f'{kind}-{count}' for count in by_count)
        raise UsageError(f'--topology {text}: there are {counts}. Nearest: {kind}-{near}, which is {kind}:{by_count[near]}.')
    return topology(f'{kind}:{by_count[number]}')


def _nearest(shape: str, chip: Chip) -> str:
    """The shape of about as many chips, of as many axes where numbers are not to be read."""
    numbers = [int(size) for size in re.findall(r'\d+', shape)]
    wanted = math.prod(numbers) if numbers else 1
    return min(chip.shapes, key=lambda other: abs(math.log(math.prod(map(int, other.split('x'))) / max(wanted, 1))))


# ------------------------------------------------------------------------------------------------------------------ devices


def has_compiler() -> bool:
    """Whether libtpu, the compiler for TPUs, is installed."""
    return importlib.util.find_spec('libtpu') is not None


def prepare(one: Topology) -> None:
    """Sets what JAX must know before it starts: the processor alone, and as many virtual devices of it as are needed.

    Raises:
      UsageError: JAX has started with fewer devices.
    """
    import jax

    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    try:
        jax.config.update('jax_platforms', 'cpu')
        if one.chip is None or not has_compiler():
            jax.config.update('jax_num_cpu_devices', one.count)
    except RuntimeError as error:
        if len(jax.devices()) < one.count:
            raise UsageError(
                f'{one.name} wants {one.count} devices, and JAX has started with {len(jax.devices())}: plan in its own process.'
            ) from error


def devices(one: Topology) -> list:
    """The devices of a topology, to compile for: TPUs where libtpu is installed, else virtual ones of this processor.

    Raises:
      UsageError: libtpu is there and does not know the topology.
    """
    import jax

    if one.chip is None or not has_compiler():
        return jax.devices('cpu')[: one.count]
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(one.name, 'tpu', **one.chip.options).devices)
    except Exception as error:  # of several kinds, by the version of libtpu
        reason = str(error).partition('\n')[0][:200]
        raise UsageError(
            f'libtpu does not make the topology {one.name} ({reason}): {SETUP} installs the one tested.'
        ) from error
