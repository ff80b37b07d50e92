"""What all processes of a run have to decide alike: each says what it has, and all hear it."""

import itertools
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from t3d.parallel import devices

LONGEST = 2000
_QUESTIONS = itertools.count(1)  # of this process; all processes ask the same ones


def gathered(numbers: Sequence[int]) -> np.ndarray:
    """What each process gives: int32 [processes, n], the same in all of them. To be called by every process."""
    numbers = np.asarray(numbers, np.int32)
    if jax.process_count() == 1:
        return numbers[None]
    devices.wait_for_all(f't3d_agreement_{next(_QUESTIONS)}')  # the first collective of processors waits half a minute only
    return np.asarray(multihost_utils.process_allgather(numbers)).reshape(jax.process_count(), -1)


def told(text: str) -> str:
    """The text of process 0, cut at LONGEST bytes, in all of them. To be called by every process."""
    said = text.encode('utf-8', 'replace')[:LONGEST]
    first = gathered([*said, *[0] * (LONGEST - len(said))])[0]
    return bytes(first[first > 0].tolist()).decode('utf-8', 'ignore')


def named(processes: Sequence[int]) -> str:
    """'process 1', 'processes 1, 2 and 5 more'."""
    if len(processes) == 1:
        return f'process {processes[0]}'
    more = f' and {len(processes) - 3} more' if len(processes) > 3 else ''
    return f'processes {", ".join(map(str, processes[:3]))}{more}'
