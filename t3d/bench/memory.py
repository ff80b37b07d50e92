"""Memory of this process as the operating system counts it (Linux), and of an accelerator as its runtime does."""

import gc
import pathlib
import resource
from collections.abc import Callable

import jax

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


def forget_peak() -> None:
    """Starts the measurement of this process's peak memory again, where the system can (Linux)."""
    try:
        pathlib.Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        pass


def peak_mib() -> float:
    """Peak memory: that of the accelerator if there is one, else what this process held since `forget_peak`."""
    stats = jax.devices()[0].memory_stats() if jax.default_backend() != 'cpu' else None
    if stats and 'peak_bytes_in_use' in stats:
        return stats['peak_bytes_in_use'] / MIB
    try:
        return status('VmHWM') / MIB
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
