"""Ctrl-C and SIGTERM: the first asks the loop to finish its step and save, the second ends the program at once.

"At once" for Ctrl-C is after a compilation that is under way: the interpreter waits for it.
"""

import os
import signal
import threading

import jax

# A shell starts programs in the background with SIGINT ignored: here it counts all the same.
AT_ONCE = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class Stop:
    """A context in which SIGINT and SIGTERM set `requested`.

    With many processes the stop must fall on the same step everywhere: SIGTERM stays with JAX's preemption service (see
    `Store.reached_preemption`), and SIGINT is passed on to it.
    """

    def __init__(self):
        self.requested = False
        self._old = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            many = jax.process_count() > 1
            for number in (signal.SIGINT,) if many else (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._forward if many else self._handle)
        return self

    def __exit__(self, *_):
        self._restore()

    def _handle(self, number, frame):
        self.requested = True
        for which, handler in self._old.items():  # the second signal does what it does by default
            signal.signal(which, AT_ONCE[which] if handler == signal.SIG_IGN else handler)
        print('\nstopping after this step; press again to stop at once', flush=True)

    def _forward(self, number, frame):
        self._handle(number, frame)
        os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self):
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}
