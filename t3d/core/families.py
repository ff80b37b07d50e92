"""A program and all that it starts, run for a time and ended together."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Sequence

ENDS = (signal.SIGTERM, signal.SIGHUP)  # what ends this process; Ctrl-C raises by itself


def run(command: Sequence[str], seconds: float | None, **options) -> subprocess.CompletedProcess:
    """As `subprocess.run` with a timeout, but what the program has started is killed with it, and when this process ends.

    The program has a session of its own, so that a terminal's Ctrl-C comes here alone.

    Args:
      seconds: that it may take, None: for ever.
      options: of subprocess.Popen.
    Raises:
      subprocess.TimeoutExpired: it took longer, and has been killed.
    """
    with _raised(), subprocess.Popen(command, start_new_session=True, **options) as process:
        last = threading.Thread(target=_end_with, args=(process,), daemon=True)
        try:
            last.start()  # what the program leaves may hold a pipe open, which is read to its end
            out, error = process.communicate(timeout=seconds)
            last.join()
        except BaseException:
            _kill(process.pid)
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def _end_with(process: subprocess.Popen) -> None:
    process.wait()
    _kill(process.pid)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left
        os.killpg(group, signal.SIGKILL)


@contextlib.contextmanager
def _raised():
    """Signals that would end this process at once raise SystemExit in the block, with the status that a shell gives them."""

    def leave(number, frame):
        raise SystemExit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    mine = [number for number in ENDS if main and signal.getsignal(number) == signal.SIG_DFL]
    for number in mine:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)
