"""What the loop knows of the steps behind it: metrics read late, intervals of the log, numbers that are not finite."""

import collections
import math
import time

import jax
import numpy as np

from t3d.checkpoint import store as stores
from t3d.core import system
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
        self._zeroed = Zeroed()
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
            self._zeroed.take(number, row, self._log, self._store)
            check_finite(number, row, self._store)
        self._last = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | self._zeroed.counts()
        now = time.perf_counter()
        timing = {'seconds': now - self._began, 'steps': step - self._from, 'wait': self._wait}
        self._log.progress(step, self._last, **timing, memory=devices.memory())
        self.begin(step)


class Zeroed:
    """Steps with numbers that were not finite and count as 0, by the metrics '<part>/not_finite' (t3d.core.system)."""

    def __init__(self):
        self._all, self._row = {}, {}  # name -> such steps since the start, and without a good one between them

    def take(self, step: int, metrics: dict[str, np.ndarray], log: logs.Log, store: stores.Store) -> None:
        """Counts a step. Raises NonFinite for too large a share of it, or where too many steps in a row have some."""
        for name in [name for name in metrics if name.endswith('/not_finite')]:
            share = float(metrics[name])
            self._row[name] = self._row.get(name, 0) + 1 if share else 0
            if not share:
                continue
            self._all[name] = self._all.get(name, 0) + 1
            if share > system.NOT_FINITE or self._row[name] >= system.STEPS_NOT_FINITE:
                store.wait()
                raise diverged(_too_many(name, share, step, self._all[name], self._row[name]), store.latest(), store.folder)
            if self._all[name] == 1:
                log.line(
                    f'note: {_percent(share)} of the numbers of {name.rpartition("/")[0]} at step {step} are not finite and '
                    f'count as 0: a run stops at more than {system.NOT_FINITE:.0%} of one step, or at any in '
                    f'{system.STEPS_NOT_FINITE} steps in a row; {name}_steps counts the steps.'
                )

    def counts(self) -> dict[str, float]:
        """{'<part>/not_finite_steps': steps since the start that had some}, where there were any."""
        return {f'{name}_steps': float(count) for name, count in self._all.items()}


def _too_many(name: str, share: float, step: int, count: int, row: int) -> str:
    limit = f'more than {system.NOT_FINITE:.0%} of a step' if share > system.NOT_FINITE else f'some in {row} steps in a row'
    return (
        f'{_percent(share)} of the numbers of {name.rpartition("/")[0]} at step {step} are NaN or infinite ({limit}; '
        f'{count} steps had some): a model that is given answers them (`t3d weights check` looks at its weights), '
        'or what it is shown has diverged'
    )


def _percent(share: float) -> str:
    return f'{100 * share:.2g} %'


def check_finite(step: int, metrics: dict[str, np.ndarray], store: stores.Store) -> None:
    """Raises for the first step with a loss that is not finite, naming the part and the last good checkpoint."""
    bad = [name for name, value in metrics.items() if name.startswith('loss') and not math.isfinite(float(value))]
    if not bad:
        return
    parts = [name for name in bad if name != 'loss'] or bad
    store.wait()
    what = f'{", ".join(parts)} is {float(metrics[parts[0]])} at step {step} (first bad step)'
    raise diverged(what, store.latest(), store.folder)
