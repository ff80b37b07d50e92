"""Tasks in several processes of this machine, whose results come as they get done."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures

from t3d.core.errors import UsageError


def results(function: Callable, tasks: Iterable, processes: int, *, doing: str, done: str) -> Iterator:
    """`function(task)` of every task, in this process (in order) or in several (as they get done).

    Args:
      doing, done: what a process does and what then is, for the message: 'rendering', 'rendered'.
    Raises:
      UsageError: a process died; what a task raises passes.
    """
    if processes <= 1:
        yield from map(function, tasks)
        return
    pool = futures.ProcessPoolExecutor(
        processes, multiprocessing.get_context('spawn'), signal.signal, (signal.SIGINT, signal.SIG_IGN)
    )  # Ctrl-C is for the parent
    try:
        for one in futures.as_completed([pool.submit(function, task) for task in tasks]):
            yield one.result()
    except futures.process.BrokenProcessPool as error:
        raise UsageError(
            f'a {doing} process died, perhaps for want of memory: run the same command again (what is {done} is kept), '
            'with fewer processes.'
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
