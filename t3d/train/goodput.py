"""What the time of a run went to, over all its starts: `goodput.jsonl` in the run folder, and its summary for `t3d info`.

The loop says what it turns to (`Clock.to`), on the host alone: nothing waits for a device. Steps are dispatched ahead, so a
record's last steps may be still running; every save and preview waits for them. What a killed process had not yet written, and
the time until the next start, is `down`.
"""

import collections
import datetime
import json
import time
from typing import NamedTuple

from t3d.train import log as logs

NAME = 'goodput.jsonl'
# In the order in which they are shown. down and lost are found afterwards: between two starts, and steps that ran twice.
PARTS = ('step', 'data', 'compile', 'startup', 'checkpoint', 'preview', 'lost', 'down')


class Clock:
    """The clock of one start. Fields for others: `part`, what the loop is at; `turns`, how often that changed."""

    def __init__(self):
        self._seconds, self._log = collections.Counter(), logs.SILENT
        self._since, self._began = time.perf_counter(), time.time()
        self.part, self.turns = 'startup', 0

    def to(self, part: str) -> float:
        """From now on time counts for `part`; returns the seconds of the one before."""
        now = time.perf_counter()
        passed = now - self._since
        self._seconds[self.part] += passed
        self.part, self._since, self.turns = part, now, self.turns + 1
        return passed

    def start(self, log: logs.Log, step: int, processes: int, devices: int) -> None:
        """Writes that this start goes on from `step`; records go to the files of `log` from here on."""
        self._log = log
        now = datetime.datetime.fromtimestamp(self._began, datetime.UTC).strftime('%Y-%m-%d %H:%M:%S UTC')
        record = {'start': now, 'time': self._began, 'step': step, 'processes': processes, 'devices': devices}
        self._log.record(NAME, json.dumps(record))

    def write(self, step: int) -> None:
        """Writes the seconds since the last record, which end with `step`."""
        self.to(self.part)
        seconds = {part: round(value, 4) for part, value in self._seconds.items()}
        self._log.record(NAME, json.dumps({'time': time.time(), 'step': step, 'seconds': seconds}))
        self._seconds.clear()


class Goodput(NamedTuple):
    """Of a whole run: starts, seconds by part (PARTS), steps that ran twice."""

    starts: int
    seconds: dict[str, float]
    repeated: int


def read(path) -> Goodput | None:
    """The sums of a `goodput.jsonl`; None where there is none. Lines that are cut or damaged are passed over."""
    if not path.exists():
        return None
    seconds, starts, repeated = collections.Counter(), 0, 0
    kept = []  # (first step, last step, seconds) of records whose steps count
    at, last = 0, None
    for record in map(_parsed, path.read_bytes().decode('utf-8', 'replace').splitlines()):
        if record is None:
            continue
        step, when, spent = record
        if spent is None:
            starts += 1
            seconds['down'] += max(0.0, when - last) if last is not None else 0.0
            lost = [(first, end, value) for first, end, value in kept if end > step]
            kept = [(first, end, value) for first, end, value in kept if end <= step]
            for first, end, value in lost:
                share = (end - max(first, step)) / (end - first)
                seconds['lost'] += share * value
                repeated += end - max(first, step)
                if first < step:
                    kept.append((first, step, (1.0 - share) * value))
        else:
            seconds.update({part: value for part, value in spent.items() if part != 'step'})
            if step > at:
                kept.append((at, step, spent.get('step', 0.0)))
            else:
                seconds['step'] += spent.get('step', 0.0)
        at, last = step, when
    seconds['step'] += sum(value for _, _, value in kept)
    return Goodput(starts, {part: seconds[part] for part in PARTS}, repeated)


def describe(goodput: Goodput) -> str:
    """'goodput over 3 starts, 12:31: step 81.2%  data 0.4%  ...  lost 2.0% (14 steps ran twice)'."""
    total = sum(goodput.seconds.values())
    shares = [f'{part} {100 * value / total:.1f}%' for part, value in goodput.seconds.items() if value > 0.0]
    starts = f'{goodput.starts} start' + ('s' if goodput.starts != 1 else '')
    twice = f' ({goodput.repeated} steps ran twice)' if goodput.repeated else ''
    return f'goodput over {starts}, {logs.clock(total)}: {"  ".join(shares)}{twice}'


def _parsed(line: str) -> tuple[int, float, dict[str, float] | None] | None:
    """(step, unix time, seconds by part or None for a start) of a line."""
    try:
        record = json.loads(line)
        spent = record.get('seconds')
        if spent is not None:
            spent = {part: float(value) for part, value in spent.items() if part in PARTS}
        return int(record['step']), float(record['time']), spent
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
