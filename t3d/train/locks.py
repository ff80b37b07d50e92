"""One training in a run folder: a file says which process on which host holds it.

A file that is created, not a lock of the operating system: network file systems lose those, and no other host could read who
holds one. What a killed process leaves is recovered: on the same machine by asking whether that process still lives, from
another one by watching whether it still counts up the `beat` of its file. No clocks are compared.
"""

import datetime
import json
import os
import pathlib
import socket
import threading
import time
import uuid

from t3d.core import files
from t3d.core.errors import UsageError

NAME = 'run.lock'
BEAT = 10.0  # seconds between two signs of life
WATCH = 75.0  # seconds without one after which a process on another host counts as dead; file systems may hold 60 back

SETTLE = 0.5  # seconds in which a process that writes the file has written it


class Lock:
    """The right to write into a run folder; `line` is told of locks that are recovered.

    Raises (on `take`): UsageError with host and process if another training holds it.
    """

    def __init__(self, folder, line=print):
        self._path, self._line = folder / NAME, line
        self._mine = {
            'host': socket.gethostname(),
            'process': os.getpid(),
            'started': _started(os.getpid()),
            'machine': _machine(),
        }
        self._mine |= {'since': datetime.datetime.now().isoformat(' ', 'seconds'), 'token': uuid.uuid4().hex, 'beat': 0}
        self._done = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._lost = None

    @property
    def token(self) -> str:
        """32 hexadecimal digits, of this lock alone."""
        return self._mine['token']

    def take(self) -> None:
        """Makes the file, or recovers the one of a training that has ended."""
        if not self._create():
            other = self._read()
            if other is not None and _lives(other, self._mine, self._read, self._line):
                raise UsageError(self._in_use(other))
            self._line(f'recovering {self._path}: {_who(other)} has ended without removing it')
            if not self._recover(other):
                raise UsageError(self._in_use(self._read()))
        self._keeper.start()

    def check(self) -> None:
        """Raises UsageError if another training has recovered the file meanwhile: this one must write no more."""
        if self._lost is not None:
            raise UsageError(f'stopped: {_who(self._lost)} trains in {self._path.parent} now; it took this process for dead.')

    def release(self) -> None:
        """Removes the file if it is ours."""
        self._done.set()
        if self._keeper.is_alive():
            self._keeper.join(BEAT)  # a sign of life that is being written would put the file back
        other = self._read()
        if other is not None and other.get('token') == self._mine['token']:
            self._path.unlink(missing_ok=True)

    def _create(self) -> bool:
        if '://' in str(self._path):  # buckets cannot refuse to write what is there: what was written last counts
            if self._path.exists():
                return False
            self._write()
            return True
        try:
            with open(self._path, 'x', encoding='utf-8') as file:
                file.write(json.dumps(self._mine))
        except FileExistsError:
            return False
        return True

    def _recover(self, dead: dict | None) -> bool:
        """Puts this lock in the place of a dead one; False if another process was first.

        The dead file is moved aside, which only one of many can do, then made anew. What was moved is looked at again: the lock
        of a process that was faster goes back.
        """
        if '://' in str(self._path):  # buckets can neither move nor refuse: of many, the one that wrote last goes on
            self._write()
            time.sleep(SETTLE)
            return (self._read() or self._mine).get('token') == self._mine['token']
        aside = pathlib.Path(f'{os.fspath(self._path)}.{self._mine["token"]}')
        try:
            os.rename(self._path, aside)
        except FileNotFoundError:
            return self._create()
        if _record(aside) != dead:
            _put_back(aside, self._path)
            return False
        aside.unlink()
        return self._create()

    def _read(self) -> dict | None:
        """What the file says; None if it is not there, empty or damaged."""
        for pause in (0.0, SETTLE):  # another process may be writing it
            time.sleep(pause)
            record = _record(self._path)
            if record is not None:
                return record
        return None

    def _write(self) -> None:
        files.write(self._path, json.dumps(self._mine))

    def _keep(self) -> None:
        while not self._done.wait(BEAT):
            other = self._read()
            if other is not None and other.get('token') != self._mine['token']:
                self._lost = other
                return
            self._mine['beat'] += 1
            try:
                self._write()
            except OSError:  # a full disk, for one: said where it stops the run
                continue

    def _in_use(self, other: dict | None) -> str:
        since = (other or {}).get('since', '?')
        return (
            f'workdir {self._path.parent} is in use: {_who(other)} trains there since {since}. '
            f'Choose another --workdir, or stop that process; if it is known to have ended, delete {files.quoted(self._path)}.'
        )


def token_in(folder) -> str:
    """The token of the lock that is in a run folder; '' where there is none that can be read."""
    return str((_record(folder / NAME) or {}).get('token', ''))


def _lives(other: dict, mine: dict, read, line) -> bool:
    """Whether the process that wrote `other` still runs."""
    if other.get('machine') == mine['machine']:
        started = _started(other.get('process'))
        return started is not None and started == other.get('started')
    line(f'{_who(other)} holds the run folder: watching for {WATCH:.0f} s whether it still runs')
    end = time.monotonic() + WATCH
    while time.monotonic() < end:
        time.sleep(min(1.0, WATCH / 10))
        now = read()
        if now is None:  # it has ended
            return False
        if (now.get('token'), now.get('beat')) != (other.get('token'), other.get('beat')):
            return True
    return False


def _record(path) -> dict | None:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _put_back(aside: pathlib.Path, path) -> None:
    """Moves a lock back unless a newer one is there."""
    try:
        os.link(aside, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        os.rename(aside, path)
        return
    aside.unlink()


def _who(lock: dict | None) -> str:
    return f'process {lock.get("process", "?")} on host {lock.get("host", "?")}' if lock else 'a process that left no name'


def _started(process) -> str | None:
    """When a process of this machine began, in the kernel's ticks; '' where the system does not say; None if it has ended."""
    try:
        fields = pathlib.Path(f'/proc/{int(process)}/stat').read_text().rpartition(')')[2].split()
        return None if fields[0] in 'ZX' else fields[19]
    except (OSError, ValueError, TypeError, IndexError):
        pass
    try:
        os.kill(int(process), 0)
    except PermissionError:
        return ''
    except (OSError, ValueError, TypeError, OverflowError):
        return None
    return ''


def _machine() -> str:
    """Host, start of its system and container: processes with the same can ask for each other."""
    parts = [socket.gethostname()]
    for read in (
        lambda: pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip(),
        lambda: os.readlink('/proc/self/ns/pid'),
    ):
        try:
            parts.append(read())
        except OSError:
            parts.append('')
    return ' '.join(parts)
