"""The device mesh, and the start of many processes.

The mesh has the axes ('data', 'fsdp', 'tensor') of type Auto: the compiler propagates shardings from the annotations of
t3d.parallel.sharding. (`jax.make_mesh` would make them Explicit, which linen's convolutions refuse.)
"""

import collections
import contextlib
import gc
import glob
import importlib.util
import math
import os
import socket
import sys
import threading
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from t3d.core.errors import UsageError
from t3d.parallel import clusters, gpus, last_words
from t3d.parallel.clusters import Cluster

AXES = ('data', 'fsdp', 'tensor')
HEARTBEAT = 100  # seconds; JAX's own choice
MEET = 300  # seconds in which all processes of a run have to come; JAX's own choice


def make(shape: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The device mesh of `{'data': -1, 'fsdp': 1, 'tensor': 1}`; one size may be -1 and takes what is left.

    With one process the product may be smaller than the number of devices: the first ones are used.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = resolve(shape or {}, len(devices))
    used = math.prod(sizes)
    if used < len(devices) and jax.process_count() > 1:
        raise UsageError(
            f'mesh {_product(sizes)} uses {used} of {len(devices)} devices, and every process must take part: '
            'set one axis to -1.'
        )
    return Mesh(_arrange(devices[:used], sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def resolve(shape: Mapping[str, int], count: int) -> tuple[int, int, int]:
    """The sizes along AXES for `count` devices, -1 replaced."""
    unknown = sorted(set(shape) - set(AXES))
    if unknown:
        raise UsageError(f'unknown mesh axis {unknown[0]!r}: the axes are {", ".join(AXES)}.')
    sizes = [int(shape.get(axis, -1 if axis == 'data' else 1)) for axis in AXES]
    text = _product(sizes)
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UsageError(f'mesh {text}: sizes are positive, and at most one is -1 (= the rest of the devices).')
    rest = math.prod(size for size in sizes if size != -1)
    if rest > count or (-1 in sizes and count % rest):
        fits = [n for n in range(1, count + 1) if count % n == 0]
        raise UsageError(f'mesh {text} does not fit {count} devices: the fixed sizes must multiply to one of {fits}.')
    return tuple(count // rest if size == -1 else size for size in sizes)


def check_batch(batch: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises unless the batch axes ('data', 'fsdp') divide over the processes, and the global batch over both.

    Args:
      parts: in which a step takes the batch, one after the other (`accumulate`): each has rows for every device.
    """
    ways, processes = mesh.shape['data'] * mesh.shape['fsdp'], jax.process_count()
    if ways % processes:
        raise UsageError(
            f'data={mesh.shape["data"]} x fsdp={mesh.shape["fsdp"]} = {ways} parts of the batch do not divide over '
            f'{processes} processes, each of which loads its own: make data x fsdp a multiple of {processes}.'
        )
    if batch % (ways * parts):
        low, high = (count * ways * parts for count in (batch // (ways * parts), batch // (ways * parts) + 1))
        near = f'{low} or {high}' if low else f'{high}'
        over = f'{ways} devices of the batch axes (data={mesh.shape["data"]} x fsdp={mesh.shape["fsdp"]})'
        over, keys = (f'{over} times accumulate={parts}', ', accumulate') if parts > 1 else (over, '')
        raise UsageError(
            f'batch {batch} is not divisible by the {over}: set batch={near}, or change mesh.data, mesh.fsdp{keys}.'
        )


def start(
    address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat: int = HEARTBEAT,
    meet: float = MEET,
) -> Cluster:
    """Joins the other processes of a run, before any other use of JAX.

    Without arguments the launcher's variables say how (t3d.parallel.clusters).
    Args: address 'host:port' of process 0; num_processes in all; process_id from 0; heartbeat: seconds without a sign of life
    after which a process counts as dead and the others end; meet: seconds after which a process that waits for others to come
    ends, with one sentence and status 2.

    Raises UsageError where there is no cluster, the processes do not meet, or GPUs of the job would stay idle.
    """
    cluster = clusters.read(
        os.environ,
        address,
        num_processes,
        process_id,
        present=len(glob.glob('/dev/nvidia[0-9]*')),
        tpu='TPU_ML_PLATFORM' in os.environ,  # importing jax sets it on the hosts of TPUs
        kubernetes=importlib.util.find_spec('kubernetes') is not None,
    )
    process = (cluster.address, cluster.num_processes, cluster.process_id)
    if cluster.process_id == 0 and cluster.address:
        _check_port(cluster)
    method = None if None in process else 'deactivate'  # JAX's own reading of SLURM would choose one GPU
    try:
        settings = {'heartbeat_timeout_seconds': heartbeat, 'initialization_timeout': int(meet) + 60}
        with _meeting(cluster, meet):
            jax.distributed.initialize(*process, cluster.local_device_ids, method, **settings)
    except (RuntimeError, ValueError, OSError) as error:
        if 'must be called before' in str(error) or 'only be called once' in str(error):
            raise
        raise UsageError(_did_not_meet(cluster, error)) from error
    if jax.process_count() > 1:
        last_words.guard(jax.process_index(), jax.process_count())
    check_local(cluster)
    return cluster


@contextlib.contextmanager
def _meeting(cluster: Cluster, seconds: float):
    """Ends the process where the block takes longer: JAX would abort it from C++, with a dump of the stack."""
    met = threading.Event()

    def watch() -> None:
        if not met.wait(seconds):
            print(f'error: {_did_not_meet(cluster, _absent(cluster, seconds))}', file=sys.stderr, flush=True)
            os._exit(2)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        met.set()


def _absent(cluster: Cluster, seconds: float) -> Exception:
    """What is lacking after so many seconds: process 0, or others."""
    if cluster.process_id and cluster.address:
        host, _, port = cluster.address.rpartition(':')
        try:
            socket.create_connection((host.strip('[]'), int(port)), 5.0).close()
        except OSError as error:
            return OSError(f'nobody answers there after {seconds:.0f} s: {error.strerror or error}')
    return TimeoutError(f'not all have come in {seconds:.0f} s')


def _check_port(cluster: Cluster) -> None:
    """Raises if another program listens at the port of this process: JAX would crash, or two runs share it and mix."""
    if 'JAX_COORDINATOR_BIND_ADDRESS' in os.environ:
        return
    port = int(cluster.address.rpartition(':')[2])
    try:
        socket.create_server(('', port)).close()
        if socket.has_dualstack_ipv6():
            socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True).close()
    except OSError as error:
        raise UsageError(_did_not_meet(cluster, error)) from error


def _did_not_meet(cluster: Cluster, error: Exception) -> str:
    reason = (getattr(error, 'strerror', None) or str(error)).strip().partition('\n')[0].partition(' (while')[0][:200]
    if cluster.address is None:
        return f'{cluster.launcher}: the processes of the run are not to be found ({reason}): {clusters.BY_HAND}.'
    return (
        f'{cluster.launcher}: process {cluster.process_id} of {cluster.num_processes} did not meet the others at '
        f'{cluster.address} ({reason}): do all run, and is that port of that host free and open to the others? '
        'JAX_COORDINATOR_PORT chooses another, --coordinator another host.'
    )


def check_local(cluster: Cluster) -> None:
    """Raises unless this process sees the GPUs that are meant for it."""
    local, name = jax.local_devices(), socket.gethostname()
    asked = 'JAX_NUM_CPU_DEVICES' in os.environ or 'host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
    virtual = len(local) > 1 or asked  # devices of the processor that stand for GPUs in a rehearsal
    fell_back = local[0].platform == 'cpu' and not virtual
    seen = 0 if fell_back else len(local)
    if not cluster.gpus or seen >= cluster.gpus:
        return
    advice = 'nvidia-smi there shows which is lacking; leave the node out, or JAX_LOCAL_DEVICE_IDS=0,... says which to use'
    if fell_back:
        advice = 'has it a driver (nvidia-smi), and JAX for it (pip install "jax[cuda13]")? JAX_PLATFORMS=cpu trains without'
    raise UsageError(
        f'{cluster.launcher}: process {jax.process_index()} on {name} has {gpus.named(cluster.gpus)}, and JAX sees '
        f'{seen or "none"} of them: {advice}.'
    )


def check_equal() -> None:
    """Raises, in every process alike, unless all have the same number of devices."""
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        listed = ', '.join(f'{counts[index]}' for index in sorted(counts)[:16]) + (', ...' if len(counts) > 16 else '')
        raise UsageError(
            f'the processes have {listed} devices, and each loads an equal part of the batch: give every one '
            f'{min(counts.values())} (SLURM: --gpus-per-node={min(counts.values())}; else JAX_LOCAL_DEVICE_IDS).'
        )


def wait_for_all(what: str, seconds: int = 3600) -> None:
    """Waits until every process has come here; each name once in a run.

    Only process 0 fills JAX's cache of compiled programs, and processors do not find its entries in the others: these compile
    again, and the first collective of processors waits for them half a minute only.
    """
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        multihost.sync_global_processes(what, timeout=seconds, processes=set(range(jax.process_count())))


def compilation_cache(folder: str = '~/.cache/t3d/jax') -> None:
    """Keeps compiled programs between runs; JAX_COMPILATION_CACHE_DIR names another folder."""
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser(folder))
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory: fresh pages cost a CPU train step a quarter of its time (measured on two cores).

    Blocks above 32 MiB come from the heap, too, not from maps of their own that are given back at every step.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return
    trim_threshold, top_pad, mmap_threshold, mmap_max = -1, -2, -3, -4  # malloc.h
    mallopt(mmap_threshold, 32 * 2**20)
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**30)
    mallopt(top_pad, 64 * 2**20)


@contextlib.contextmanager
def collecting_seldom():
    """Python searches for unreachable cycles less often: tracing makes few, and a third of its time is the search."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def describe(mesh: Mesh | None = None) -> str:
    """The line of the log: 'devices: 1 x CPU (no accelerator found)'."""
    devices = jax.devices()
    kinds = sorted({device.device_kind.upper() if device.platform == 'cpu' else device.device_kind for device in devices})
    line = f'devices: {len(devices)} x {", ".join(kinds)}'
    if devices[0].platform == 'cpu':
        line += ' (no accelerator found)'
    if jax.process_count() > 1:
        line += f', {jax.process_count()} processes'
    if mesh is not None and len(devices) > 1:
        if mesh.size < len(devices):
            line += f', {mesh.size} used'
        line += ', mesh ' + ' '.join(f'{axis}={size}' for axis, size in mesh.shape.items())
    return line


def memory() -> tuple[float, float] | None:
    """Peak and available bytes of the first local device, where it says so (CPUs do not)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if 'peak_bytes_in_use' not in stats:
        return None
    return stats['peak_bytes_in_use'], stats.get('bytes_limit', 0)


def _arrange(devices: list, sizes: tuple[int, ...]) -> np.ndarray:
    """Devices as an array [data, fsdp, tensor]; neighbours on a TPU's network are neighbours on the last axes.

    Axes of the torus are split where a size asks for it: fsdp=8 on 16 x 16 chips is half a row.
    """
    if devices[0].platform != 'tpu':
        return np.array(devices).reshape(sizes)
    from jax.experimental import mesh_utils

    slices = len({getattr(device, 'slice_index', 0) for device in devices})
    if slices > 1 and sizes[0] % slices == 0:  # data parallel between slices, the rest inside one
        return mesh_utils.create_hybrid_device_mesh(
            (sizes[0] // slices, *sizes[1:]), (slices, 1, 1), devices=devices, allow_split_physical_axes=True
        )
    return mesh_utils.create_device_mesh(sizes, devices=devices, allow_split_physical_axes=True)


def _product(sizes: Sequence[int]) -> str:
    return ' x '.join(f'{axis}={size}' for axis, size in zip(AXES, sizes, strict=True))
