"""One process of runs of the dummy on loopback: PORT INDEX COUNT DEVICES STEPS DELAY WORKDIR..., one folder after the other."""

import sys
import time

import jax

port, index, count, local, steps, delay, *workdirs = sys.argv[1:]
jax.config.update('jax_num_cpu_devices', int(local))
jax.config.update('jax_default_matmul_precision', 'highest')

from dummy_system import Source, config, make, transform  # noqa: E402

from t3d.parallel import devices  # noqa: E402
from t3d.train import loop  # noqa: E402


def slow(record, rng):
    """Waits DELAY seconds for each row, so that a kill lands where it should."""
    time.sleep(float(delay))
    return transform(record, rng)


if __name__ == '__main__':
    devices.start(f'127.0.0.1:{port}', int(count), int(index))
    for workdir in workdirs:
        changes = {'mesh': {'data': -1, 'fsdp': 2, 'tensor': 1}, 'steps': int(steps), 'log_every': 1, 'name': 'pair'}
        loop.run(config(**changes), workdir, system=make(ballast=2**21), data=(Source(), slow))
