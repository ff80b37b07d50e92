"""Which process of which run this one is, from the variables that launchers set: pure functions of an environment.

`jax.distributed.initialize()` reads SLURM and Open MPI itself, but gives every process one GPU, the one of its local rank. Here
a process drives what its launcher means for it (t3d.parallel.gpus), so one process a node has all GPUs of the node. TPU hosts
and Kubernetes stay with JAX, which asks their servers.
"""

import dataclasses
import re
from collections.abc import Mapping

from t3d.core.errors import UsageError
from t3d.parallel import gpus

PORTS = range(61440, 65536)  # process 0 listens at one of these, as jax.distributed chooses them
NOT_STARTED_BY_SRUN = range(2**32 - 10, 2**32)  # ids of steps that srun did not make: batch, extern, interactive
OTHERS = ('PMIX_RANK', 'PMI_RANK', 'PALS_RANKID', 'FLUX_TASK_RANK', 'LSF_PM_TASKID')  # ranks that say no more
BY_HAND = 'give --coordinator HOST:PORT --num-processes N --process-id I'


@dataclasses.dataclass(frozen=True)
class Task:
    """What a launcher says of this process.

    Fields: launcher for messages; size and rank in the run; local_size and local_rank on this machine; host of process 0
    ('': not said) and the port it should listen at; node, where known; note: what the user should know, or ''.
    """

    launcher: str
    size: int
    rank: int
    local_size: int
    local_rank: int
    host: str
    port: int
    node: str = ''
    note: str = ''


@dataclasses.dataclass(frozen=True)
class Cluster:
    """How this process joins the others.

    Fields: launcher for messages; address 'host:port' of process 0, num_processes and process_id (None: JAX asks the cluster);
    local_device_ids, positions among the visible GPUs (None: all of them); gpus that this process must then see (None: not
    known); notes, lines for the user.
    """

    launcher: str
    address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_device_ids: tuple[int, ...] | None = None
    gpus: int | None = None
    notes: tuple[str, ...] = ()


def read(
    environment: Mapping[str, str],
    address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    present: int = 0,
    tpu: bool = False,
    kubernetes: bool = False,
) -> Cluster:
    """How this process joins the others of its run.

    Args:
      environment: the variables of the process.
      address, num_processes, process_id: given by the user; each takes the place of what the launcher says.
      present: GPUs of this machine. tpu: this is a TPU host. kubernetes: JAX can ask the Kubernetes server.

    Raises UsageError where no launcher is found, or where it leaves processes or GPUs out.
    """
    address = address or environment.get('JAX_COORDINATOR_ADDRESS')
    num_processes = _number(environment, 'JAX_NUM_PROCESSES') if num_processes is None else num_processes
    process_id = _number(environment, 'JAX_PROCESS_ID') if process_id is None else process_id
    settings = (address, num_processes, process_id)
    _check(*settings)
    if tpu:
        return Cluster('TPU', *settings)
    task = None
    try:
        task = next((task for task in (find(environment) for find in LAUNCHERS) if task), None)
    except UsageError:
        if None in settings:
            raise
    if task is None:
        if 'KUBERNETES_SERVICE_HOST' in environment and None in settings:
            settings = _kubernetes(environment, settings, kubernetes)
            if None in settings:
                return Cluster('Kubernetes', *settings)
            address, num_processes, process_id = settings
        if None in settings:
            raise UsageError(_nothing_found(environment, settings))
        task = Task('the flags', num_processes, process_id, 1, 0, '', 0)
    if address is None:
        address = f'{_host(task, environment)}:{_number(environment, "JAX_COORDINATOR_PORT") or task.port}'
    size = task.size if num_processes is None else num_processes
    rank = task.rank if process_id is None else process_id
    _check(address, size, rank, task.launcher)
    if task.local_rank >= task.local_size:
        raise UsageError(
            f'{task.launcher}: local process {task.local_rank} of {task.local_size} on this machine: the ids go from 0 to the '
            f'count - 1; start each process by its launcher, or {BY_HAND}.'
        )
    ids, count, note = gpus.share(environment, task.local_rank, task.local_size, present, task.launcher, task.node)
    return Cluster(task.launcher, address, size, rank, ids, count, tuple(filter(None, (task.note, note))))


def lines(cluster: Cluster) -> list[str]:
    """What process 0 prints once the processes have met."""
    if cluster.address is None:
        return [f'{cluster.launcher}: the processes have met', *cluster.notes]
    return [f'{cluster.launcher}: {cluster.num_processes} processes, process 0 at {cluster.address}', *cluster.notes]


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list: 'rack2n01-ib' of 'rack[2-3]n[01-16,20]-ib,login1'."""
    first = re.match(r'(?:[^,\[]|\[[^\]]*\])*', nodes).group()
    return re.sub(r'\[([^\]]*)\]', lambda match: re.split('[,-]', match.group(1))[0], first).strip()


def per_node(counts: str, index: int) -> int:
    """The count of one node of a SLURM list of them: 1 at index 2 of '4(x2),1'."""
    each = []
    for part in counts.split(','):
        match = re.fullmatch(r'\s*(\d+)(?:\(x(\d+)\))?\s*', part)
        if not match:
            raise UsageError(f'SLURM_STEP_TASKS_PER_NODE={counts!r} is no list of counts, as 4(x2),1: start the step by srun.')
        each += [int(match.group(1))] * min(int(match.group(2) or 1), 2**20)
    return each[index] if index < len(each) else each[-1]


def _torchrun(environment: Mapping[str, str]) -> Task | None:
    """torchrun starts its workers inside whatever started torchrun, so it is asked first."""
    task = _torch_variables(environment) if 'TORCHELASTIC_RUN_ID' in environment else None
    # torchrun itself listens at MASTER_PORT.
    return task and dataclasses.replace(task, launcher='torchrun', port=task.port + 1)


def _open_mpi(environment: Mapping[str, str]) -> Task | None:
    """mpirun inside a SLURM job: SLURM's numbers are then those of mpirun's daemons, one on each node."""
    if 'OMPI_COMM_WORLD_SIZE' not in environment:
        return None
    ints = lambda *names: [_needed(environment, f'OMPI_COMM_WORLD_{name}', 'Open MPI') for name in names]
    size, rank, local_size, local_rank = ints('SIZE', 'RANK', 'LOCAL_SIZE', 'LOCAL_RANK')
    uri = environment.get('OMPI_MCA_orte_hnp_uri', '')  # '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911': of mpirun, before 5
    server = re.search(r'tcp://([^,:]+)|tcp6://\[([^,\]]+)', uri)
    host = _nodes(environment) or (server and (server.group(1) or f'[{server.group(2)}]')) or ''
    job = re.sub(r'\D.*', '', uri or environment.get('PMIX_NAMESPACE', '').rpartition('-')[2]) or '0'
    number = int(job) // 2**12 if uri else int(job)  # Open MPI 4 counts its jobs in steps of 2^12
    return Task('Open MPI', size, rank, local_size, local_rank, host, _pick(number))


def _hydra(environment: Mapping[str, str]) -> Task | None:
    """mpiexec of Intel MPI and MPICH."""
    if 'MPI_LOCALRANKID' not in environment:
        return None
    ints = [_needed(environment, name, 'mpiexec') for name in ('PMI_SIZE', 'PMI_RANK', 'MPI_LOCALNRANKS', 'MPI_LOCALRANKID')]
    return Task('mpiexec (Intel MPI, MPICH)', *ints, _nodes(environment), _pick(_number(environment, 'SLURM_JOB_ID') or 0))


def _slurm(environment: Mapping[str, str]) -> Task | None:
    if 'SLURM_JOB_ID' not in environment:
        return None
    job = _needed(environment, 'SLURM_JOB_ID', 'SLURM')
    launcher = f'SLURM job {job}'
    step = _number(environment, 'SLURM_STEP_ID')
    if 'SLURM_STEP_NODELIST' not in environment or step in NOT_STARTED_BY_SRUN:
        raise UsageError(
            f'{launcher}: this process was not started by srun, so it would train alone on one node: put srun before python '
            '(launch/slurm.sh does), or leave --distributed out.'
        )
    size = _number(environment, 'SLURM_STEP_NUM_TASKS') or _needed(environment, 'SLURM_NTASKS', 'SLURM')
    rank, node = _needed(environment, 'SLURM_PROCID', 'SLURM'), _number(environment, 'SLURM_NODEID') or 0
    counts = environment.get('SLURM_STEP_TASKS_PER_NODE') or environment.get('SLURM_TASKS_PER_NODE') or '1'
    nodes, used = _number(environment, 'SLURM_JOB_NUM_NODES'), _number(environment, 'SLURM_STEP_NUM_NODES')
    idle = nodes and used and used < nodes
    note = f'{launcher} has {nodes} nodes, and this step runs on {used}: `srun --nodes={nodes}` takes them all.' if idle else ''
    return Task(
        launcher,
        size,
        rank,
        per_node(counts, node),
        _needed(environment, 'SLURM_LOCALID', 'SLURM'),
        first_host(environment['SLURM_STEP_NODELIST']),
        _pick(job + 509 * (step or 0)),  # two steps of a job may run side by side
        environment.get('SLURMD_NODENAME', ''),
        note,
    )


def _torch_variables(environment: Mapping[str, str]) -> Task | None:
    """The variables of PyTorch's `env://`, set by Kubeflow, by Azure ML and in scripts."""
    names = ('WORLD_SIZE', 'RANK', 'MASTER_ADDR', 'MASTER_PORT')
    if 'RANK' not in environment or 'WORLD_SIZE' not in environment:
        return None
    lacking = [name for name in names if name not in environment]
    if lacking:
        raise UsageError(f'RANK and WORLD_SIZE are set, and {" and ".join(lacking)} not: set them, or {BY_HAND}.')
    size, rank = (_needed(environment, name, 'PyTorch') for name in names[:2])
    local_size, local_rank = _number(environment, 'LOCAL_WORLD_SIZE') or 1, _number(environment, 'LOCAL_RANK') or 0
    host = environment['MASTER_ADDR']
    return Task('MASTER_ADDR, RANK and WORLD_SIZE', size, rank, local_size, local_rank, host, _port(environment, 'MASTER_PORT'))


LAUNCHERS = (_torchrun, _open_mpi, _hydra, _slurm, _torch_variables)  # the innermost first


def _kubernetes(environment: Mapping[str, str], settings: tuple, asks: bool) -> tuple:
    """What is given, with the index of an Indexed Job; what is None then, JAX asks of the server."""
    address, num_processes, process_id = settings
    index = _number(environment, 'JOB_COMPLETION_INDEX')
    process_id = index if process_id is None else process_id
    if asks or None not in (address, num_processes, process_id):
        return address, num_processes, process_id
    raise UsageError(
        'a Kubernetes pod, and the package that asks its server for the other pods is not here: pip install "jax[k8s]", or '
        f'{BY_HAND} (in an Indexed Job the id is JOB_COMPLETION_INDEX; of a JobSet, process 0 is at NAME-workers-0-0.NAME).'
    )


def _nothing_found(environment: Mapping[str, str], settings: tuple) -> str:
    flags = ('--coordinator', '--num-processes', '--process-id')
    have = [f'{flag} {value}' for flag, value in zip(flags, settings) if value is not None]
    lacking = [flag for flag, value in zip(flags, settings) if value is None]
    if have:
        return f'{" ".join(have)} without {" and ".join(lacking)}, and no cluster to read the rest from: {BY_HAND}.'
    pmi = next(
        (name for name in ('PMIX_RANK', 'PMI_RANK', 'PALS_RANKID', 'FLUX_TASK_RANK', 'LSF_PM_TASKID') if name in environment),
        '',
    )
    if pmi:
        return f'{pmi} is set, by a launcher that names no host of process 0: {BY_HAND}.'
    return (
        '--distributed outside a cluster: no variables of SLURM (SLURM_*), mpirun (OMPI_*, PMI_*), torchrun (RANK) or '
        'Kubernetes are set, and no TPU is here. Without the flag one process drives all GPUs of a machine; for several, '
        f'{BY_HAND} on each.'
    )


def _host(task: Task, environment: Mapping[str, str]) -> str:
    if task.host:
        return task.host
    if task.size == task.local_size:
        return '127.0.0.1'
    nodes = ': the first line of $PBS_NODEFILE' if 'PBS_NODEFILE' in environment else ''
    raise UsageError(
        f'{task.launcher} does not say where process 0 of {task.size} runs: give --coordinator HOST:PORT with its host{nodes} '
        'and a free port.'
    )


def _nodes(environment: Mapping[str, str]) -> str:
    """The first host of a SLURM allocation, '' outside of one."""
    return first_host(environment.get('SLURM_JOB_NODELIST') or environment.get('SLURM_NODELIST') or '')


def _check(address: str | None, size: int | None, rank: int | None, launcher: str = 'the flags') -> None:
    if address is not None:
        host, _, port = address.rpartition(':')
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16 or (':' in host and not re.fullmatch(r'\[.*\]', host)):
            raise UsageError(f'coordinator {address!r}: HOST:PORT of process 0 is wanted, as node1:61440 or [fd00::2]:61440.')
    if size is not None and size < 1:
        raise UsageError(f'{launcher}: {size} processes: at least 1 is wanted.')
    if rank is not None and (rank < 0 or (size is not None and rank >= size)):
        last = 'N - 1' if size is None else size - 1
        raise UsageError(f'{launcher}: process {rank} of {"N" if size is None else size}: the ids go from 0 to {last}.')


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, '').strip()
    if text and not re.fullmatch(r'\d{1,18}', text, re.ASCII):
        raise UsageError(f'{name}={environment[name]!r}: a whole number is wanted; unset it, or set it right.')
    return int(text) if text else None


def _needed(environment: Mapping[str, str], name: str, launcher: str) -> int:
    value = _number(environment, name)
    if value is None:
        raise UsageError(f'{launcher} did not set {name}: start each process by its launcher, or {BY_HAND}.')
    return value


def _port(environment: Mapping[str, str], name: str) -> int:
    port = _needed(environment, name, 'the launcher')
    if not 0 < port < 2**16 - 1:
        raise UsageError(f'{name}={port}: a port from 1 to {2**16 - 2} is wanted.')
    return port


def _pick(number: int) -> int:
    return PORTS[number % len(PORTS)]
