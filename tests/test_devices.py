"""The device mesh."""

import collections
import pathlib
import socket
import subprocess
import sys
import time

import jax
import pytest
from jax.sharding import AxisType

from launch import train
from t3d.core.errors import UsageError
from t3d.parallel import devices
from t3d.parallel.clusters import Cluster

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize(
    'shape, sizes',
    [
        (None, (8, 1, 1)),
        ({'data': -1, 'fsdp': 2, 'tensor': 2}, (2, 2, 2)),
        ({'data': 1, 'fsdp': -1}, (1, 8, 1)),
        ({'data': 2, 'fsdp': 1, 'tensor': 1}, (2, 1, 1)),
    ],
)
def test_sizes_and_auto_axes(shape, sizes):
    mesh = devices.make(shape)
    assert tuple(mesh.shape.values()) == sizes and mesh.axis_names == devices.AXES
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    'shape, says',
    [
        ({'data': 3, 'fsdp': -1}, 'data=3 x fsdp=-1 x tensor=1 does not fit 8 devices'),
        ({'data': 16}, r'one of \[1, 2, 4, 8\]'),
        ({'data': -1, 'fsdp': -1}, 'at most one is -1'),
        ({'data': 0}, 'positive'),
        ({'model': 2}, "unknown mesh axis 'model'"),
    ],
)
def test_sizes_that_do_not_fit(shape, says):
    began = time.monotonic()
    with pytest.raises(UsageError, match=says):
        devices.make(shape)
    assert time.monotonic() - began < 10.0  # at once


def test_batch_names_the_nearest_sizes():
    mesh = devices.make({'data': 4, 'fsdp': 2})
    devices.check_batch(16, mesh)
    with pytest.raises(UsageError, match='batch 12 is not divisible by the 8 .*set batch=8 or 16'):
        devices.check_batch(12, mesh)
    with pytest.raises(UsageError, match='set batch=8,'):
        devices.check_batch(4, mesh)


def test_describe():
    assert devices.describe() == 'devices: 8 x CPU (no accelerator found)'
    assert devices.describe(devices.make({'data': 2})).endswith(', 2 used, mesh data=2 fsdp=1 tensor=1')


def test_hybrid_arrangement_is_chosen_for_tpus_only():
    assert devices.make({'data': 8}).devices.ravel().tolist() == jax.devices()


def test_fewer_devices_than_the_launcher_gave_are_refused(monkeypatch):
    """The eight virtual devices stand for GPUs, as in a rehearsal; without them JAX fell back to the processor."""
    devices.check_local(Cluster('SLURM job 12', gpus=8))
    devices.check_local(Cluster('SLURM job 12', gpus=None))
    with pytest.raises(UsageError, match='SLURM job 12: process 0 on .* has 16 GPUs, and JAX sees 8 of them: nvidia-smi'):
        devices.check_local(Cluster('SLURM job 12', gpus=16))
    one = jax.local_devices()[:1]
    monkeypatch.setattr(jax, 'local_devices', lambda: one)
    with pytest.raises(UsageError, match=r'has 1 GPU, and JAX sees none of them: .*jax\[cuda13\]'):
        devices.check_local(Cluster('SLURM job 12', gpus=1))


def test_processes_of_unlike_numbers_of_devices_are_refused(monkeypatch):
    device = collections.namedtuple('Device', 'process_index')
    devices.check_equal()
    monkeypatch.setattr(jax, 'devices', lambda: [device(0)] * 8 + [device(1)] * 4 + [device(2)] * 8)
    with pytest.raises(UsageError, match='the processes have 8, 4, 8 devices, .* give every one 4'):
        devices.check_equal()


@pytest.mark.parametrize(
    'flags, says',
    [
        (['--distributed'], 'error: --distributed outside a cluster: no variables of SLURM (SLURM_*)'),
        (['--num-processes', '2'], 'error: --num-processes 2 without --coordinator and --process-id'),
        (['--coordinator', 'node1', '--num-processes', '2', '--process-id', '0'], "error: coordinator 'node1': HOST:PORT"),
    ],
)
def test_the_command_says_what_is_lacking_and_leaves_nothing(flags, says, tmp_path, monkeypatch, capsys):
    for name in ('SLURM_JOB_ID', 'OMPI_COMM_WORLD_SIZE', 'RANK', 'KUBERNETES_SERVICE_HOST'):
        monkeypatch.delenv(name, raising=False)
    workdir = tmp_path / 'run'
    assert train.main(['--config', 'configs/instant3d.py:tiny', '--workdir', str(workdir), *flags]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(says) and len(printed.err.splitlines()) == 1
    assert not printed.out and not workdir.exists()


def test_a_port_in_use_is_said_before_jax_crashes_on_it(monkeypatch):
    monkeypatch.setattr(jax.distributed, 'initialize', lambda *_: pytest.fail('JAX was started'))
    with socket.create_server(('127.0.0.1', 0)) as other, pytest.raises(UsageError, match='in use.*JAX_COORDINATOR_PORT'):
        devices.start(f'127.0.0.1:{other.getsockname()[1]}', 2, 0)


START = 60.0  # seconds that Python and JAX take to start, at the most, beside other work
ALONE = """
import sys
from t3d.parallel import devices
devices.start(sys.argv[1], 2, int(sys.argv[2]), meet=1.0)
"""


@pytest.mark.parametrize('index', [0, 1])
def test_a_process_that_nobody_joins_ends_with_one_sentence(index):
    """Process 0 whose others do not come, and process 1 without process 0."""
    with socket.create_server(('127.0.0.1', 0)) as free:
        address = f'127.0.0.1:{free.getsockname()[1]}'
    command = [sys.executable, '-c', ALONE, address, str(index)]
    began = time.monotonic()
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert 1.0 <= time.monotonic() - began < 1.0 + START
    why = 'not all have come in 1 s' if index == 0 else 'nobody answers there after 1 s: Connection refused'
    assert ended.returncode == 2 and 'Check failure' not in ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith('error: ')]
    assert f'process {index} of 2 did not meet the others at {address} ({why}): do all run' in line
