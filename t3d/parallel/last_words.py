"""One sentence in place of a dump of the stack, when JAX ends a process because another one of the run has died.

JAX's coordination service does that from C++, which no handler in Python can catch. So the processes of a run write their
standard error through a second small program (this file, which imports nothing but the standard library): it passes everything
on, but for the service's own lines about a lost process.
"""

import os
import re
import select
import subprocess
import sys
import time

ABOUT_PEERS = re.compile(rb'[IWEF]\d{4} .*(coordination_service|preemption_sync_manager|client\.h:|coordination_client)')
FATAL = b'Terminating process because the JAX distributed service detected fatal errors'
PATIENCE = 10.0  # seconds after which such lines are passed on, if the process still lives


def guard(process: int, processes: int) -> None:
    """From here on, standard error of this process (of so many) passes through the filter."""
    reader, writer = os.pipe()
    command = [sys.executable, '-I', '-S', os.path.abspath(__file__), str(process), str(processes)]
    sys.stderr.flush()
    subprocess.Popen(command, stdin=reader, start_new_session=True)  # a session of its own: Ctrl-C is not for it
    os.close(reader)
    os.dup2(writer, 2)
    os.close(writer)


def sentence(said: bytes, process: int, processes: int) -> str:
    """What is told in place of the lines that the service said."""
    named = re.search(rb'unhealthy[^\n]*:\s*([\d,\s]+)', said)
    dead = [number for number in re.findall(r'\d+', named.group(1).decode())] if named else ['0']  # the service runs in 0
    who = f'process {dead[0]}' if len(dead) == 1 else f'processes {", ".join(dead)}'
    verb = 'answers' if len(dead) == 1 else 'answer'
    return (
        f'error: process {process} of {processes} stopped: {who} of the run no longer {verb} (ended, or the host or network is '
        'down; its own output says more). Start all processes again: they go on from the last checkpoint.\n'
    )


def _filter(process: int, processes: int) -> None:
    held, since, fatal, rest, open_ = [], 0.0, False, b'', True
    while open_:
        wait = max(0.0, since + PATIENCE - time.monotonic()) if held and not fatal else None
        if not select.select([0], [], [], wait)[0]:
            _put(b''.join(held))
            held = []
            continue
        data = os.read(0, 65536)
        open_ = bool(data)
        *lines, rest = (rest + data).splitlines(keepends=True) or [b'']
        if open_ and rest.endswith(b'\n'):
            lines, rest = [*lines, rest], b''
        if not open_:
            lines, rest = [*lines, rest], b''
        for line in lines:
            if not held and not ABOUT_PEERS.match(line):
                _put(line)
                continue
            since = time.monotonic() if not held else since
            held.append(line)
            fatal = fatal or FATAL in line
    if fatal:
        _put(b''.join(line for line in held if line.startswith(b'error: ')))
        _put(sentence(b''.join(held), process, processes).encode())
    else:
        _put(b''.join(held))


def _put(data: bytes) -> None:
    while data:
        data = data[os.write(2, data) :]


if __name__ == '__main__':
    import signal

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it ends with its process
        signal.signal(number, signal.SIG_IGN)
    _filter(int(sys.argv[1]), int(sys.argv[2]))
