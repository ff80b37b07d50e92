"""One process of runs of the dummy on loopback: PORT INDEX COUNT DEVICES STEPS DELAY WORKDIR..., one folder after the other.

T3D_TEST_TIER: a folder for the local tier, where a save comes at every step; T3D_TEST_EVERY: steps between saves in the run
folder; T3D_TEST_HEARTBEAT, T3D_TEST_PATIENCE, T3D_TEST_SHARED: seconds; T3D_TEST_HANGS 'INDEX FILE': its data end when FILE is
there. {index} in a WORKDIR is the number of the process.
"""

import os
import sys
import time

import jax

port, index, count, local, steps, delay, *folders = sys.argv[1:]
jax.config.update('jax_num_cpu_devices', int(local))
jax.config.update('jax_default_matmul_precision', 'highest')

from dummy_system import Source, config, make, transform  # noqa: E402

from t3d.core import errors  # noqa: E402
from t3d.core.errors import UsageError  # noqa: E402
from t3d.parallel import devices  # noqa: E402
from t3d.train import loop, watch, workdirs  # noqa: E402

LOCAL = os.environ.get('T3D_TEST_TIER', '')
hangs, when = os.environ.get('T3D_TEST_HANGS', '-1 none').split()


def slow(record, rng):
    """Waits DELAY seconds for each row, so that a kill lands where it should."""
    time.sleep(float(delay))
    while index == hangs and os.path.exists(when):
        time.sleep(1.0)
    return transform(record, rng)


if __name__ == '__main__':
    heartbeat = int(os.environ.get('T3D_TEST_HEARTBEAT', devices.HEARTBEAT))
    devices.start(f'127.0.0.1:{port}', int(count), int(index), heartbeat=heartbeat)
    changes = {'mesh': {'data': -1, 'fsdp': 2, 'tensor': 1}, 'steps': int(steps), 'log_every': 1, 'name': 'pair'}
    if LOCAL:
        every = int(os.environ.get('T3D_TEST_EVERY', 10**6))
        changes['checkpoint'] = {'every': every, 'keep': 3, 'best': '', 'local': LOCAL, 'local_every': 1}
    patience = float(os.environ.get('T3D_TEST_PATIENCE', watch.PATIENCE))
    workdirs.SHARED = float(os.environ.get('T3D_TEST_SHARED', workdirs.SHARED))
    try:
        for workdir in folders:
            workdir = workdir.replace('{index}', index)
            loop.run(config(**changes), workdir, system=make(ballast=2**21), data=(Source(), slow), patience=patience)
    except UsageError as error:  # as launch.train
        print(f'error: {errors.line(error)}', file=sys.stderr, flush=True)
        os._exit(2)
