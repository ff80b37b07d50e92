"""What a run says: the console, log.txt, metrics.jsonl, TensorBoard.

On a terminal one bar (rich), else one line per interval; only process 0 writes. Names in the metrics of a system: 'loss'
and 'loss/<part>' are shown as such, 'lr' or 'learning_rate' as the learning rate, '<part>/not_finite' where it is not 0,
'count/<unit>' (per step and over all devices, say 'count/rays') becomes 'perf/<unit>_per_sec', everything else goes to files.
"""

import contextlib
import datetime
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable

import numpy as np
from etils import epath

from t3d.core import files
from t3d.train import board


def here() -> str:
    """Where and when: 'host NAME, process 4711, 2026-11-28 02:30:00 UTC'."""
    now = datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M:%S UTC')
    return f'host {platform.node()}, process {os.getpid()}, {now}'


class Log:
    """The log of one run.

    Args:
      workdir: the run folder, or None for the console alone.
      total: the steps of the run; batch: images (examples) per step.
      write: a function for lines of text in place of the console; active: False writes nothing (processes other than 0).
    """

    def __init__(
        self,
        workdir=None,
        *,
        total: int,
        batch: int,
        write: Callable[[str], None] | None = None,
        active: bool = True,
    ):
        self.total, self.batch, self.active = total, batch, active
        self._workdir = epath.Path(workdir) if workdir is not None else None
        self._write = write
        self._bar = self._board = None
        self._files = {}

    def line(self, text: str) -> None:
        """Writes a line to the console and to log.txt."""
        if not self.active:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)
        elif self._write is not None:
            self._write(text)
        else:
            print(text, flush=True)
        self._append('log.txt', text)

    def resume(self, step: int) -> bool:
        """Drops from metrics.jsonl the lines after `step`: those steps will run again. Whether there were any."""
        path = self._workdir / 'metrics.jsonl' if self._workdir is not None else None
        if not self.active or path is None or not path.exists():
            return False
        lines = path.read_bytes().decode('utf-8', 'replace').splitlines()
        kept = [line for line in lines if step_of(line) is not None and step_of(line) <= step]
        if len(kept) < len(lines):
            files.write(path, ''.join(f'{line}\n' for line in kept))
        return len(kept) < len(lines)

    def progress(
        self,
        step: int,
        values: dict[str, float],
        *,
        seconds: float,
        steps: int,
        wait: float = 0.0,
        memory: tuple[float, float] | None = None,
    ) -> None:
        """One interval: mean values over `steps` steps that took `seconds`, of which `wait` for data; no rates for 0 steps."""
        if not self.active:
            return
        record = {name: value for name, value in values.items() if not name.startswith('count/')}
        if steps:
            rate = steps / max(seconds, 1e-9)
            record |= {'perf/steps_per_sec': rate, 'perf/examples_per_sec': rate * self.batch}
            record |= {'perf/data_wait_seconds': wait / steps}  # per step
            counts = {name.removeprefix('count/'): value for name, value in values.items() if name.startswith('count/')}
            record |= {f'perf/{unit}_per_sec': value * rate for unit, value in counts.items()}
        if memory:
            record['perf/memory_gib'] = memory[0] / 2**30
        self._append('metrics.jsonl', json.dumps({'step': step} | {k: _number(v) for k, v in record.items()}))
        self._tensorboard(step, record)
        text = progress_line(step, self.total, record, memory)
        if self._write is None and sys.stdout.isatty():
            self._show(step, text)
            self._append('log.txt', text)
        else:
            self.line(text)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes other numbers of a step (an evaluation) to the files."""
        if self.active:
            self._append('metrics.jsonl', json.dumps({'step': step} | {k: _number(v) for k, v in values.items()}))
            self._tensorboard(step, values)

    def image(self, step: int, image: np.ndarray) -> None:
        """Writes a contact sheet, uint8 [H, W, 3], to TensorBoard."""
        if self.active and self._tensorboard(step, {}):
            self._guarded(self._board.image, step, image)

    def record(self, name: str, text: str) -> None:
        """Appends a line to another file of the run folder."""
        if self.active:
            self._append(name, text)

    def close(self) -> None:
        """Closes the progress bar and the files."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._board:
            self._guarded(self._board.close)
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a failed write was reported when it happened
                file.close()
        self._files = {}

    def _append(self, name: str, text: str) -> None:
        if self._workdir is None:
            return
        path = self._workdir / name
        if name not in self._files:
            path.parent.mkdir(parents=True, exist_ok=True)
            if '://' in str(path):  # buckets have no append: keep what is there, write it again with the rest
                self._files[name] = _Rewritten(path)
            else:
                self._files[name] = open(path, 'a', buffering=1, encoding='utf-8', errors='backslashreplace')  # noqa: SIM115
        try:
            self._files[name].write(text + '\n')
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error

    def _tensorboard(self, step: int, values: dict[str, float]) -> bool:
        if self._workdir is None or self._board is False:
            return False
        if self._board is None:
            self._board = self._guarded(board.make, str(self._workdir / 'tensorboard'), step) or False
        if self._board:
            self._guarded(self._board.scalars, step, values)
        return bool(self._board)

    def _guarded(self, call, *args):
        """What the call returns; where TensorBoard's files, a copy of metrics.jsonl, cannot be written, the run goes on."""
        try:
            return call(*args)
        except OSError as error:
            self._board = False
            self.line(f'no more TensorBoard files: {error.strerror or error}; metrics.jsonl has all numbers')
            return None

    def _show(self, step: int, text: str) -> None:
        from rich import progress

        if self._bar is None:
            self._bar = progress.Progress(
                progress.BarColumn(bar_width=24), progress.TextColumn('{task.description}', markup=False), transient=False
            )
            self._bar.start()
            self._task = self._bar.add_task('', total=self.total)
        self._bar.update(self._task, completed=step, description=text)


SILENT = Log(total=0, batch=0, active=False)


class _Rewritten:
    """An append-only text file where files can only be replaced."""

    def __init__(self, path, every: float = 10.0):
        self._path, self._every, self._last = path, every, 0.0
        self._text = path.read_text() if path.exists() else ''

    def write(self, text: str) -> None:
        self._text += text
        if time.monotonic() - self._last > self._every:
            self.close()
            self._last = time.monotonic()

    def close(self) -> None:
        self._path.write_text(self._text)


def progress_line(step: int, total: int, values: dict[str, float], memory: tuple[float, float] | None = None) -> str:
    """'step  2400/10000  24%  eta 12:31  10.1 it/s  41.4 Mray/s  loss 0.183 (sds 0.161 sparsity 0.022)  lr 1.0e-02 ...'."""
    rate = values.get('perf/steps_per_sec', 0.0)
    eta = clock((total - step) / rate) if rate else '?'
    parts = [f'step {step:>{len(str(total))}}/{total}', f'{100 * step // max(total, 1):3d}%', f'eta {eta}']
    parts += [f'{rate:.3g} it/s'] if rate else []
    for name, value in values.items():
        unit = name.removeprefix('perf/').removesuffix('_per_sec')
        if name == f'perf/{unit}_per_sec' and unit not in ('steps', 'examples'):
            parts.append(f'{si(value)}{unit.removesuffix("s")}/s')
    losses = [f'{name[5:]} {value:.3g}' for name, value in values.items() if name.startswith('loss/')]
    if 'loss' in values:
        parts.append(f'loss {values["loss"]:.4g}' + (f' ({" ".join(losses)})' if losses else ''))
    parts += [f'{name} {100 * value:.2g} %' for name, value in values.items() if name.endswith('/not_finite') and value > 0]
    for name in ('lr', 'learning_rate'):
        if name in values:
            parts.append(f'lr {values[name]:.1e}')
    if memory:
        limit = f'/{memory[1] / 2**30:.0f}' if memory[1] else ''
        parts.append(f'mem {memory[0] / 2**30:.1f}{limit} GiB')
    return '  '.join(parts)


def clock(seconds: float) -> str:
    """'12:31', '1:02:03', '3d 01:02:03'."""
    if not math.isfinite(seconds):
        return '?'
    minutes, secs = divmod(int(round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f'{days}d {hours:02d}:{minutes:02d}:{secs:02d}'
    return f'{hours}:{minutes:02d}:{secs:02d}' if hours else f'{minutes:02d}:{secs:02d}'


def si(value: float) -> str:
    """'41.4 M' of 41.4e6: a number with the prefix of its unit."""
    for factor, prefix in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if abs(value) >= factor:
            return f'{value / factor:.3g} {prefix}'
    return f'{value:.3g} '


def _number(value) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None  # JSON has no NaN


def step_of(line: str) -> int | None:
    try:
        return json.loads(line)['step']
    except (ValueError, KeyError):
        return None  # a line cut by a kill
