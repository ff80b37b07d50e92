"""What the loop knows of the steps behind it: metrics read late, intervals of the log, the first loss that is not finite."""

import collections
import math
import time

import jax
import numpy as np

from t3d.checkpoint import store as stores
from t3d.core.errors import diverged
from t3d.parallel import devices
from t3d.train import log as logs

AHEAD = 3  # steps dispatched beyond the one running


class Window:
    """Metrics on the device, fetched when they are surely there: AHEAD steps late, or at a save."""

    def __init__(self, log: logs.Log, store: stores.Store):
        self._log, self._store = log, store
        self._steps = collections.deque()  # (step, metrics on the device) not yet read
        self._running = collections.deque()
        self._cuts = collections.deque()
        self._last = {}
        self.begin(0)

    def begin(self, step: int) -> None:
        """Starts the clock after a pause."""
        self._began, self._from, self._wait = time.perf_counter(), step, 0.0

    def waited(self, seconds: float) -> None:
        self._wait += seconds

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step; returns once at most AHEAD steps are running."""
        self._steps.append((step, metrics))
        self._running.append(metrics)
        if len(self._running) > AHEAD:
            jax.block_until_ready(self._running.popleft())
        if self._cuts and self._cuts[0] <= step - AHEAD:
            self._read(self._cuts.popleft())

    def cut(self, step: int) -> None:
        """Asks for a line of the log at this step."""
        self._cuts.append(step)

    def flush(self, step: int) -> dict[str, float]:
        """Waits, reads everything, and returns the mean values of the last interval."""
        while self._cuts:
            self._read(self._cuts.popleft())
        if self._steps:
            self._read(step)
        return self._last

    def _read(self, step: int) -> None:
        chosen = []
        while self._steps and self._steps[0][0] <= step:
            chosen.append(self._steps.popleft())
        if not chosen:
            return
        rows = jax.device_get([metrics for _, metrics in chosen])
        for (number, _), row in zip(chosen, rows, strict=True):
            check_finite(number, row, self._store)
        self._last = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        now = time.perf_counter()
        timing = {'seconds': now - self._began, 'steps': step - self._from, 'wait': self._wait}
        self._log.progress(step, self._last, **timing, memory=devices.memory())
        self.begin(step)


def check_finite(step: int, metrics: dict[str, np.ndarray], store: stores.Store) -> None:
    """Raises for the first step with a loss that is not finite, naming the part and the last good checkpoint."""
    bad = [name for name, value in metrics.items() if name.startswith('loss') and not math.isfinite(float(value))]
    if not bad:
        return
    parts = [name for name in bad if name != 'loss'] or bad
    store.wait()
    what = f'{", ".join(parts)} is {float(metrics[parts[0]])} at step {step} (first bad step)'
    raise diverged(what, store.latest(), store.folder)
