"""A run of many processes ends where it is stuck: a peer that is alive and does nothing would be waited for without an end.

A process that is dead or frozen sends no more signs of life, and JAX's service ends the others (`devices.start`, heartbeat).
One that hangs in its data, in a driver or on a file system goes on sending them. So each process watches whether its own loop
turns.
"""

import os
import sys
import threading
import time

import jax

from t3d.core import errors
from t3d.train.goodput import Clock

PATIENCE = 1800.0  # seconds; longer than a preview compiles and a checkpoint is written
ONCE = 3600.0  # seconds at the least for what a start does once: a large state comes from a bucket, a large step is compiled
FIRST = ('startup', 'compile')  # the parts of that
WAITS = {
    'startup': 'the run has not started: a file system, a device, or another process of the run, is stuck',
    'compile': 'the first step has not ended: the compiler, a device, or another process of the run, is stuck',
    'data': 'its own data have not come',
    'step': 'the step in flight has not ended: a device, or another process of the run, is stuck',
    'checkpoint': 'the checkpoint is not written: the file system, or another process of the run, is stuck',
    'preview': 'the preview is not done: a device, or another process of the run, is stuck',
}


def bound(part: str, patience: float) -> float:
    """Seconds that a part may last without a turn of the loop."""
    return max(patience, ONCE) if part in FIRST else patience


class Watch:
    """A context that ends this process where the loop has not turned for the `bound` of its part; one process is not watched.

    Args:
      clock: of the loop; patience: seconds, as this process ran: a machine that was asleep is not stuck.
    """

    def __init__(self, clock: Clock, patience: float, poll: float = 1.0, end=None):
        self._clock, self._patience, self._poll = clock, patience, poll
        self._end = end or _end
        self._done = threading.Event()
        self._silent, self._turns, self._last = 0.0, -1, 0.0

    def __enter__(self):
        if jax.process_count() > 1:
            threading.Thread(target=self.watch, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._done.set()

    def watch(self) -> None:
        """Returns when the context is left, or after it has ended the process."""
        while not self._done.wait(self._poll):
            why = self.look(time.monotonic())
            if why is not None:
                self._end(why)
                return

    def look(self, now: float) -> str | None:
        """What to end the process with at this time, in seconds; None as long as it need not end."""
        if self._turns != self._clock.turns:
            self._silent, self._turns = 0.0, self._clock.turns
        else:
            self._silent += min(now - self._last, 2 * self._poll)
        self._last = now
        seconds = bound(self._clock.part, self._patience)
        if self._silent <= seconds:
            return None
        who = f'process {jax.process_index()} of {jax.process_count()}'
        again = 'Start all processes again: they go on from the last checkpoint.'
        return f'error: {who} stopped: for {seconds:.0f} s {WAITS[self._clock.part]} (--patience). {again}\n'


def _end(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
    os._exit(errors.AGAIN)  # the thread that is stuck can raise nothing
