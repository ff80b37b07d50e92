"""A line every few seconds while a single long call goes on that cannot say how far it is."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

EVERY = 10.0  # seconds


@contextlib.contextmanager
def telling(log: Callable[[str], None], what: str, every: float = EVERY) -> Iterator[None]:
    """Inside, `log` gets '`what`: 10 s so far' every `every` seconds, from a thread that ends with the block."""
    ended, began = threading.Event(), time.monotonic()

    def tell() -> None:
        while not ended.wait(every):
            log(f'{what}: {time.monotonic() - began:.0f} s so far')

    thread = threading.Thread(target=tell, daemon=True, name=what)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
