"""What all processes of a run have to decide alike: each says what it has, and all hear it."""

import itertools
import sys
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from t3d.core import errors
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


def told(text: str, process: int = 0) -> str:
    """The text of one process, cut at LONGEST bytes, in all of them. To be called by every process."""
    said = text.encode('utf-8', 'replace')[:LONGEST]
    theirs = gathered([*said, *[0] * (LONGEST - len(said))])[process]
    return bytes(theirs[theirs > 0].tolist()).decode('utf-8', 'ignore')


def on_every_process(action: Callable):
    """What the action gives in this process, once it has succeeded in all of them. To be called by every process.

    Where it fails in one, all raise: those in which it failed their own error, the others a UsageError that names these and has
    what the first of them met. What process 0 did not meet, who met it prints beside.
    """
    error = result = None
    try:
        result = action()
    except Exception as caught:
        error = caught
    failed = np.flatnonzero(gathered([error is not None])[:, 0]).tolist()
    if not failed:
        return result
    line = None if error is None else errors.line(error)
    said = told('' if error is None else line or f'{type(error).__name__}: {error}', failed[0])
    if error is None:
        who = f'{named(failed)} of {jax.process_count()}'
        hint = 'The others do not meet this: do all hosts have the same files?'
        raise errors.UsageError(f'{who} cannot begin: {said.rstrip(".")}. {hint}')
    if 0 not in failed and line is not None:
        print(f'error: process {jax.process_index()}: {line}', file=sys.stderr, flush=True)
    raise error


def named(processes: Sequence[int]) -> str:
    """'process 1', 'processes 1, 2 and 5 more'."""
    if len(processes) == 1:
        return f'process {processes[0]}'
    more = f' and {len(processes) - 3} more' if len(processes) > 3 else ''
    return f'processes {", ".join(map(str, processes[:3]))}{more}'
