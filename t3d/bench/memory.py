"""Memory of this process as the operating system counts it (Linux)."""

import gc
from collections.abc import Callable

MIB = 2**20


def peak_growth(call: Callable[[], object]) -> float | None:
    """MiB by which resident memory rises, at its highest, while `call` runs; None where the system does not say.

    What earlier calls left with the allocator is in use again without a rise: measure a first call, or compare like with like.
    """
    gc.collect()
    try:
        with open('/proc/self/clear_refs', 'w') as file:
            file.write('5')  # the high-water mark starts anew
        before = status('VmRSS')
    except OSError:
        call()
        return None
    call()
    return (status('VmHWM') - before) / MIB


def status(field: str) -> float:
    """Bytes of a field of /proc/self/status, for example 'VmRSS' or 'VmHWM'."""
    with open('/proc/self/status') as lines:
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(f'{field}:'))
