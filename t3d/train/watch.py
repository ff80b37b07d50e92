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
WAITS = {
    'data': 'its own data have not come',
    'step': 'the step in flight has not ended: a device, or another process of the run, is stuck',
    'checkpoint': 'the checkpoint is not written: the file system, or another process of the run, is stuck',
    'preview': 'the preview is not done: a device, or another process of the run, is stuck',
}


class Watch:
    """A context that ends this process after `patience` seconds in which the loop has not turned; one process is not watched.

    Args:
      clock: of the loop; patience: seconds, as this process ran: a machine that was asleep is not stuck.
    """

    def __init__(self, clock: Clock, patience: float, poll: float = 1.0, end=None):
        self._clock, self._patience, self._poll = clock, patience, poll
        self._end = end or _end
        self._done = threading.Event()

    def __enter__(self):
        if jax.process_count() > 1:
            threading.Thread(target=self.watch, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._done.set()

    def watch(self) -> None:
        """Returns when the context is left, or after it has ended the process."""
        silent, turns, last = 0.0, -1, time.monotonic()
        while not self._done.wait(self._poll):
            now = time.monotonic()
            silent, last = silent + min(now - last, 2 * self._poll), now
            if turns != self._clock.turns or self._clock.part not in WAITS:
                silent, turns = 0.0, self._clock.turns
            if silent > self._patience:
                why = WAITS[self._clock.part]
                who = f'process {jax.process_index()} of {jax.process_count()}'
                again = 'Start all processes again: they go on from the last checkpoint.'
                self._end(f'error: {who} stopped: for {self._patience:.0f} s {why} (--patience). {again}\n')
                return


def _end(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
    os._exit(errors.AGAIN)  # the thread that is stuck can raise nothing
