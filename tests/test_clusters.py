"""Environments of real launchers: which process this is, whom it meets, and which GPUs it drives.

The variables of SLURM are those that SLURM 22.05 set on an emulated cluster of two nodes with eight GPUs each; those of Open
MPI are of mpirun 4.1 inside and outside of such a job; the others follow the public documentation of their launchers. Ports are
those that `jax.distributed` would choose.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.core.errors import UsageError
from t3d.parallel import clusters

EIGHT = '0,1,2,3,4,5,6,7'
HNP = '1476984832.0;tcp://192.0.2.2:32977;tcp6://[fd00::2]:42797'
POD = {'KUBERNETES_SERVICE_HOST': '10.0.0.1'}


def slurm(rank, local, node, tasks, per_node, gpus=None, seen=None, nodes='n[1-2]', **more):
    """The variables of a task of a step of two nodes."""
    environment = {
        'SLURM_JOB_ID': '12',
        'SLURM_JOB_NODELIST': nodes,
        'SLURM_JOB_NUM_NODES': '2',
        'SLURM_LOCALID': local,
        'SLURM_NODEID': node,
        'SLURM_NTASKS': tasks,
        'SLURM_PROCID': rank,
        'SLURM_STEP_ID': 0,
        'SLURM_STEP_NODELIST': nodes,
        'SLURM_STEP_NUM_NODES': '2',
        'SLURM_STEP_NUM_TASKS': tasks,
        'SLURM_STEP_TASKS_PER_NODE': per_node,
        'SLURM_GPUS_ON_NODE': gpus,
        'CUDA_VISIBLE_DEVICES': seen,
        'SLURMD_NODENAME': 'n1',
    } | more
    return {name: str(value) for name, value in environment.items() if value is not None}


def mpirun(rank, size, local, local_size, **more):
    names = ('RANK', 'SIZE', 'LOCAL_RANK', 'LOCAL_SIZE')
    values = (rank, size, local, local_size)
    return {f'OMPI_COMM_WORLD_{name}': str(value) for name, value in zip(names, values)} | more


def hydra(rank, size, local, local_size, **more):
    names = ('PMI_RANK', 'PMI_SIZE', 'MPI_LOCALRANKID', 'MPI_LOCALNRANKS')
    return dict(zip(names, map(str, (rank, size, local, local_size)))) | more


def torch(rank, size, local=None, local_size=None, **more):
    variables = {'RANK': rank, 'WORLD_SIZE': size, 'LOCAL_RANK': local, 'LOCAL_WORLD_SIZE': local_size}
    variables |= {'MASTER_ADDR': 'host0', 'MASTER_PORT': 29500} | more
    return {name: str(value) for name, value in variables.items() if value is not None}


MIG = 'MIG-c7384736-a75d-5afc-978f-d2f1294409fd'
PARENT = 'GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f'

# environment, (address, processes, id), (positions among the visible GPUs, GPUs to see)
READ = {
    'one task a node, all GPUs': (slurm(1, 0, 1, 2, '1(x2)', 8, EIGHT), ('n1:61452', 2, 1), (None, 8)),
    'the same without a list of GPUs': (slurm(0, 0, 0, 2, '1(x2)', 8), ('n1:61452', 2, 0), (None, 8)),
    '--gpus-per-task=1': (slurm(9, 1, 1, 16, '8(x2)', 8, '1'), ('n1:61452', 16, 9), (None, 1)),
    '--gpus-per-task=2, four tasks': (slurm(5, 1, 1, 8, '4(x2)', 8, '2,3'), ('n1:61452', 8, 5), (None, 2)),
    '--gpus-per-task=1, counted a task': (
        slurm(9, 1, 1, 16, '8(x2)', 1, '0', SLURM_GPUS_PER_TASK='1'),
        ('n1:61452', 16, 9),
        (None, 1),
    ),
    'eight tasks that see all': (slurm(11, 3, 1, 16, '8(x2)', 8, EIGHT), ('n1:61452', 16, 11), ((3,), 1)),
    'two tasks that see all': (slurm(3, 1, 1, 4, '2(x2)', 8, EIGHT), ('n1:61452', 4, 3), ((4, 5, 6, 7), 4)),
    'GPUs 4 to 7 of a shared node': (slurm(1, 1, 0, 4, '2(x2)', 4, '4,5,6,7'), ('n1:61452', 4, 1), ((2, 3), 2)),
    'UUIDs': (slurm(0, 0, 0, 2, '1(x2)', 2, f'{PARENT},GPU-1'), ('n1:61452', 2, 0), (None, 2)),
    'one MIG instance a task': (slurm(1, 1, 0, 4, '2(x2)', 2, MIG), ('n1:61452', 4, 1), (None, 1)),
    'old names of MIG instances': (slurm(0, 0, 0, 2, '1(x2)', 1, f'MIG-{PARENT}/5/0'), ('n1:61452', 2, 0), (None, 1)),
    'no GPUs': (slurm(1, 0, 1, 2, '1(x2)'), ('n1:61452', 2, 1), (None, None)),
    'no GPUs, as old SLURM says it': (slurm(1, 0, 1, 2, '1(x2)', None, 'NoDevFiles'), ('n1:61452', 2, 1), (None, None)),
    'AMD': (
        slurm(1, 1, 0, 4, '2(x2)', 8, ROCR_VISIBLE_DEVICES=EIGHT),
        ('n1:61452', 4, 1),
        ((4, 5, 6, 7), 4),
    ),
    'nodes of unlike counts': (slurm(2, 0, 1, 3, '2,1', 1, '0'), ('n1:61452', 3, 2), (None, 1)),
    'a second step of the job': (slurm(0, 0, 0, 2, '1(x2)', 8, EIGHT, SLURM_STEP_ID=1), ('n1:61961', 2, 0), (None, 8)),
    'both groups of a heterogeneous job': (
        slurm(1, 0, 1, 2, '1(x2)', 4, '0,1,2,3', SLURM_HET_SIZE=2, SLURM_JOB_GPUS=EIGHT),
        ('n1:61452', 2, 1),
        (None, 4),
    ),
    'srun --mpi=pmi2': (slurm(3, 0, 1, 4, '3,1', 2, '0,1', PMI_RANK=3, PMI_SIZE=4), ('n1:61452', 4, 3), (None, 2)),
    'MASTER_ADDR exported in a job script': (
        slurm(1, 0, 1, 2, '1(x2)', 8, EIGHT, MASTER_ADDR='n1', MASTER_PORT='29500', WORLD_SIZE='16'),
        ('n1:61452', 2, 1),
        (None, 8),
    ),
    'a list of hosts of a dragonfly': (
        slurm(0, 0, 0, 2, '1(x2)', nodes='x[1-2]c[03-04]-ib'),
        ('x1c03-ib:61452', 2, 0),
        (None, None),
    ),
    'SLURM before 20.02': (slurm(0, 0, 0, 2, '1(x2)', None, '0,1', SLURM_STEP_NUM_TASKS=None), ('n1:61452', 2, 0), (None, 2)),
    'mpirun on one machine': (mpirun(1, 2, 1, 2, OMPI_MCA_orte_hnp_uri=HNP), ('192.0.2.2:61584', 2, 1), (None, None)),
    'mpirun, GPUs known by their files': (
        mpirun(1, 4, 1, 4, OMPI_MCA_orte_hnp_uri=HNP) | {'present': 8},
        ('192.0.2.2:61584', 4, 1),
        ((2, 3), 2),
    ),
    'mpirun with a wrapper that sets one GPU': (
        mpirun(5, 8, 1, 4, OMPI_MCA_orte_hnp_uri=HNP, CUDA_VISIBLE_DEVICES='1') | {'present': 4},
        ('192.0.2.2:61584', 8, 5),
        (None, 1),
    ),
    'mpirun over IPv6': (
        mpirun(0, 2, 0, 1, OMPI_MCA_orte_hnp_uri='1314521088.0;tcp6://[fe80::b9b,2620::2]:43370'),
        ('[fe80::b9b]:62880', 2, 0),
        (None, None),
    ),
    'Open MPI 5 on one machine': (
        mpirun(0, 2, 0, 2, PMIX_NAMESPACE='prterun-vm-77@1'),
        ('127.0.0.1:61517', 2, 0),
        (None, None),
    ),
    'mpirun in a SLURM job, a node each': (
        slurm(1, 0, 1, 2, '1(x2)', 8, EIGHT) | mpirun(1, 2, 0, 1, OMPI_MCA_orte_hnp_uri=HNP),
        ('n1:61584', 2, 1),
        (None, 8),
    ),
    'mpirun in a SLURM job, where both inherit id 0 of 1': (
        slurm(0, 0, 0, 1, '1', 8, EIGHT, nodes='n1') | mpirun(1, 2, 1, 2, OMPI_MCA_orte_hnp_uri=HNP),
        ('n1:61584', 2, 1),
        ((4, 5, 6, 7), 4),
    ),
    'Intel MPI on one machine': (hydra(1, 2, 1, 2, CUDA_VISIBLE_DEVICES='0,1'), ('127.0.0.1:61440', 2, 1), ((1,), 1)),
    'Intel MPI in a SLURM job': (slurm(0, 0, 0, 2, '1(x2)', 8, EIGHT) | hydra(9, 16, 1, 8), ('n1:61452', 16, 9), ((1,), 1)),
    'torchrun': (torch(9, 16, 1, 8, TORCHELASTIC_RUN_ID='none') | {'present': 8}, ('host0:29501', 16, 9), ((1,), 1)),
    'torchrun by srun': (
        slurm(1, 0, 1, 2, '1(x2)', 8, EIGHT) | torch(9, 16, 1, 8, TORCHELASTIC_RUN_ID='x'),
        ('host0:29501', 16, 9),
        ((1,), 1),
    ),
    'PyTorchJob of Kubeflow': (POD | torch(1, 4) | {'present': 8}, ('host0:29500', 4, 1), (None, None)),
    'JAX variables': (
        {'JAX_COORDINATOR_ADDRESS': 'h:1', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '1'},
        ('h:1', 2, 1),
        (None, None),
    ),
    'another port': (slurm(0, 0, 0, 2, '1(x2)', JAX_COORDINATOR_PORT=7777), ('n1:7777', 2, 0), (None, None)),
    'GPUs chosen by hand': (slurm(0, 0, 0, 2, '1(x2)', 8, EIGHT, JAX_LOCAL_DEVICE_IDS='0, 2'), ('n1:61452', 2, 0), ((0, 2), 2)),
    'no use of GPUs': (slurm(0, 0, 0, 2, '1(x2)', 8, EIGHT, JAX_PLATFORMS='cpu'), ('n1:61452', 2, 0), (None, None)),
}

REFUSED = {
    'nothing': ({}, 'outside a cluster.*SLURM_.*OMPI_.*RANK.*give --coordinator'),
    'a batch script': (
        slurm(0, 0, 0, 2, '1', SLURM_STEP_NODELIST=None),
        'SLURM job 12: .*not started by srun.*put srun before',
    ),
    'salloc': ({'SLURM_JOB_ID': '19', 'SLURM_JOB_NODELIST': 'n[1-2]'}, 'SLURM job 19: .*put srun before'),
    'the interactive step': (slurm(0, 0, 0, 1, '1', SLURM_STEP_ID=4294967290), 'not started by srun'),
    'narrowed by the user': (
        slurm(0, 0, 0, 2, '1(x2)', 8, '0'),
        'n1 has 8 GPUs, and CUDA_VISIBLE_DEVICES=0 shows this process 1',
    ),
    'all hidden': (slurm(0, 0, 0, 2, '1(x2)', 8, ''), 'CUDA_VISIBLE_DEVICES= shows this process 0: unset'),
    'hidden by -1': (slurm(0, 0, 0, 2, '1(x2)', 1, '-1'), 'n1 has 1 GPU, and CUDA_VISIBLE_DEVICES=-1 shows this process 0'),
    'ended by -1': (slurm(0, 0, 0, 2, '1(x2)', 4, '0,1,-1,3'), 'shows this process 2'),
    'other GPUs too': (slurm(0, 0, 0, 2, '1(x2)', 4, EIGHT), 'lists 8 GPUs, and the job has 4 there: unset CUDA'),
    'idle GPUs': (slurm(5, 1, 1, 8, '4(x2)', 8, '1'), 'has 8 GPUs, and its 4 processes see 1 each.*--ntasks-per-node=1'),
    'uneven': (slurm(1, 1, 0, 4, '2(x2)', 3, '0,1,2'), r'2 processes cannot share 3 GPUs evenly: start one of \[1, 3\]'),
    'more tasks than GPUs': (slurm(1, 1, 0, 16, '8(x2)', 2, '0,1'), r'8 processes cannot share 2 GPUs'),
    'several MIG instances': (
        slurm(0, 0, 0, 2, '1(x2)', 2, f'{MIG},{MIG}'),
        'one MIG instance.*--ntasks-per-node=2 --gpus-per-task=1',
    ),
    'a rank beyond': (slurm(2, 0, 1, 2, '1(x2)'), 'SLURM job 12: process 2 of 2: the ids go from 0 to 1'),
    'no number': (slurm('x', 0, 1, 2, '1(x2)'), "SLURM_PROCID='x': a whole number is wanted"),
    'an Arabic number': (slurm('١', 0, 1, 2, '1(x2)'), 'SLURM_PROCID=.*a whole number is wanted'),
    'a lost variable': (slurm(None, 0, 1, 2, '1(x2)'), 'SLURM did not set SLURM_PROCID'),
    'no list of counts': (slurm(0, 0, 1, 2, '(null)'), r"SLURM_STEP_TASKS_PER_NODE='\(null\)' is no list of counts"),
    'Open MPI 5 on two machines': (mpirun(0, 4, 0, 2), 'Open MPI does not say where process 0 of 4 runs: give --coordinator'),
    'Intel MPI by PBS': (hydra(0, 4, 0, 2, PBS_NODEFILE='f'), r'mpiexec.*does not say where.*\$PBS_NODEFILE'),
    'plain PMIx': ({'PMIX_RANK': '0'}, 'PMIX_RANK is set, by a launcher that names no host'),
    'PALS': ({'PALS_RANKID': '0'}, 'PALS_RANKID is set'),
    'half of the variables of PyTorch': (
        torch(0, 2, MASTER_ADDR=None, MASTER_PORT=None),
        'MASTER_ADDR and MASTER_PORT not: set them',
    ),
    'a local rank alone': (torch(3, 4, 3), 'MASTER_ADDR, RANK and WORLD_SIZE: local process 3 of 1 on this machine'),
    'no tasks on the node': (slurm(1, 0, 1, 2, '2,0'), 'SLURM job 12: local process 0 of 0 on this machine'),
    'port 0': (torch(0, 2, MASTER_PORT='0'), 'MASTER_PORT=0: a port from 1'),
    'Kubernetes without its package': (POD | {'JOB_COMPLETION_INDEX': '3'}, r'jax\[k8s\].*JOB_COMPLETION_INDEX'),
    'positions by hand': (slurm(0, 0, 0, 2, '1', JAX_LOCAL_DEVICE_IDS='all'), "JAX_LOCAL_DEVICE_IDS='all': positions"),
    'a position twice': (slurm(0, 0, 0, 2, '1', JAX_LOCAL_DEVICE_IDS='0,0'), 'positions among the visible GPUs'),
}

FLAGS = [
    (('host', 2, 0), 'HOST:PORT'),
    ((':80', 2, 0), 'HOST:PORT'),
    (('host:', 2, 0), 'HOST:PORT'),
    (('host:65536', 2, 0), 'HOST:PORT'),
    (('fd00::1:80', 2, 0), 'HOST:PORT'),
    (('host:80', 2, 2), 'process 2 of 2: the ids go from 0 to 1'),
    (('host:80', 2, -1), 'process -1 of 2'),
    (('host:80', 0, 0), '0 processes'),
    (('host:80', None, None), '--coordinator host:80 without --num-processes and --process-id'),
    ((None, None, 0), '--process-id 0 without --coordinator and --num-processes'),
]


def read(environment, *flags, **host):
    host = {'present': environment.get('present', 0)} | host
    return clusters.read({name: value for name, value in environment.items() if name != 'present'}, *flags, **host)


@pytest.mark.parametrize('name', READ)
def test_read(name):
    environment, meets, drives = READ[name]
    cluster = read(environment)
    assert (cluster.address, cluster.num_processes, cluster.process_id) == meets
    assert (cluster.local_device_ids, cluster.gpus) == drives


@pytest.mark.parametrize('name', REFUSED)
def test_refused(name):
    environment, says = REFUSED[name]
    with pytest.raises(UsageError, match=says):
        read(environment)


@pytest.mark.parametrize('flags, says', FLAGS)
def test_flags_that_cannot_be_meant(flags, says):
    with pytest.raises(UsageError, match=says):
        read({}, *flags)


def test_flags_take_the_place_of_what_the_launcher_says():
    """The launcher still says which GPUs."""
    cluster = read(slurm(11, 3, 1, 16, '8(x2)', 8, EIGHT), 'other:80', None, None)
    assert (cluster.address, cluster.num_processes, cluster.process_id) == ('other:80', 16, 11)
    assert cluster.local_device_ids == (3,)
    by_hand = read({'SLURM_JOB_ID': '19'}, '[fd00::1]:80', 2, 1)  # in salloc, without srun
    assert (by_hand.address, by_hand.num_processes, by_hand.process_id) == ('[fd00::1]:80', 2, 1)


@pytest.mark.parametrize('tasks', [1, 2, 4, 8])
@pytest.mark.parametrize('visible', [EIGHT, None])
def test_the_tasks_of_a_node_drive_each_gpu_once(tasks, visible):
    drives = [read(slurm(n, n, 0, tasks * 2, f'{tasks}(x2)', 8, visible)) for n in range(tasks)]
    taken = [position for cluster in drives for position in cluster.local_device_ids or range(8)]
    assert sorted(taken) == list(range(8))


def test_tpus_and_kubernetes_are_left_to_jax():
    nothing = (None, None, None)
    for cluster in (read({}, tpu=True), read(POD, kubernetes=True)):
        assert (cluster.address, cluster.num_processes, cluster.process_id) == nothing and cluster.local_device_ids is None
    index = read(POD | {'JOB_COMPLETION_INDEX': '3'}, 't3d-workers-0-0.t3d:61440', 16)
    assert index.process_id == 3


def test_what_leaves_a_part_of_the_job_idle_is_said():
    step = slurm(0, 0, 0, 2, '1(x2)', 2, '0,1', SLURM_GPUS_PER_NODE='h100:8')
    assert any('2 of the 8 GPUs' in note for note in read(step).notes)
    alone = slurm(0, 0, 0, 1, '1', 8, EIGHT, SLURM_STEP_NUM_NODES=1)
    assert any('has 2 nodes, and this step runs on 1' in line for line in clusters.lines(read(alone)))
    assert 'JAX_PLATFORMS=cpu: 8 GPUs' in read(slurm(0, 0, 0, 2, '1(x2)', 8, EIGHT, JAX_PLATFORMS='cpu')).notes[0]
    assert clusters.lines(read(slurm(0, 0, 0, 2, '1(x2)', 8, EIGHT))) == ['SLURM job 12: 2 processes, process 0 at n1:61452']


@pytest.mark.parametrize(
    'nodes, first',
    [
        ('node001', 'node001'),
        ('node001,host2', 'node001'),
        ('node[001-0015],host2', 'node001'),
        ('node[001,007-015],host2', 'node001'),
        ('gnode[10,20,25,37]', 'gnode10'),
        ('a-b[2-3].cluster.org', 'a-b2.cluster.org'),
        ('rack[2-3]n[01-16,20]-ib,login1', 'rack2n01-ib'),
    ],
)
def test_first_host_of_a_node_list(nodes, first):
    assert clusters.first_host(nodes) == first


def test_counts_of_each_node():
    assert [clusters.per_node('4(x2),1', n) for n in range(3)] == [4, 4, 1]
    assert clusters.per_node('8', 0) == 8


NAMES = sorted({name for environment, *_ in READ.values() for name in environment if name != 'present'})
VALUES = st.sampled_from(
    ['', '0', '1', '2', '8', '-1', '0,1', EIGHT, MIG, 'n1', 'n[1-2', '2(x2),1', '(x)', 'a100:8', ':', HNP, '99999999999']
)


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from([environment for environment, *_ in READ.values()]),
    st.dictionaries(st.sampled_from(NAMES), st.none() | VALUES | st.text(max_size=12), max_size=4),
    st.integers(0, 9),
    st.booleans(),
)
def test_any_environment_is_read_or_refused(environment, changes, present, tpu):
    environment = {name: value for name, value in (environment | changes).items() if value is not None and name != 'present'}
    try:
        cluster = clusters.read(environment, present=present, tpu=tpu, kubernetes=present > 4)
    except UsageError as error:
        assert len(str(error).splitlines()) == 1
        return
    if None not in (cluster.address, cluster.num_processes, cluster.process_id):
        assert 0 <= cluster.process_id < cluster.num_processes
    assert cluster.local_device_ids is None or len(set(cluster.local_device_ids)) == len(cluster.local_device_ids) > 0
