"""Starts a training on several processes, one shape of command everywhere; `--dry-run` prints what would run, and runs nothing:

    python -m launch.pod local  --processes 2 --devices 4           CONFIG WORKDIR [--config.a.b=value ...] [--dry-run]
    python -m launch.pod slurm  --nodes 4 --gpus 8 --time 24:00:00  CONFIG WORKDIR ...
    python -m launch.pod tpu-vm --name pod --zone us-west4-a        CONFIG WORKDIR ...
    python -m launch.pod gke    --topology v5e:8x8 --image IMAGE    CONFIG WORKDIR ...

Words that are not its own go to launch.train on every process. The same command again goes on (gke: once the ended JobSet is
gone, a minute after its end).
"""

import json
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

from launch import train
from t3d.core import config as configs
from t3d.core import parsing
from t3d.core.errors import UsageError
from t3d.core.rules import Whole
from t3d.plan import chips

HERE = pathlib.Path(__file__).resolve().parent
PORT = 8471  # of process 0 in a JobSet
GRACE = 300  # seconds that Kubernetes leaves between SIGTERM and SIGKILL, for the last save
KEPT = 60  # seconds that an ended JobSet is kept: while it is there, `kubectl apply` starts none of its name
RESTARTS = {'gke': 10}  # where --restarts is not given; elsewhere 0
WRONG = 2  # status of wrong input, which another start does not mend
PLACES = ('local', 'slurm', 'tpu-vm', 'gke')
SELECTORS = {  # of nodes of GKE, by chip; each node is a host of 4 chips
    'v4': 'tpu-v4-podslice',
    'v5e': 'tpu-v5-lite-podslice',
    'v5p': 'tpu-v5p-slice',
    'v6e': 'tpu-v6e-slice',
}
CHIPS_OF_A_HOST = 4
RANGES = {
    'processes': Whole(1, 256, 'processes on this machine'),
    'devices': Whole(0, 1024, 'virtual devices of the processor for each process; 0: as JAX finds them'),
    'nodes': Whole(1, 2**16, 'nodes of the job'),
    'gpus': Whole(1, 64, 'GPUs of a node'),
    'restarts': Whole(0, 10_000, 'of all processes after a failure'),
}


def main(argv: list[str] | None = None) -> int:
    parser = parsing.Parser(prog='python -m launch.pod', description=__doc__)
    parser.add_argument('place', choices=PLACES, help='where')
    parser.add_argument('config', help='configs/<name>.py:<variant>')
    parser.add_argument('workdir', help='the run folder, which all processes share')
    parser.add_argument('--dry-run', action='store_true', help='print what would run')
    parser.add_argument('--processes', type=int, default=2, help='local: on this machine (2)')
    parser.add_argument('--devices', type=int, default=0, help='local: virtual devices of each (0: as JAX finds them)')
    parser.add_argument('--nodes', type=int, default=1, help='slurm: nodes (1)')
    parser.add_argument('--gpus', type=int, default=8, help='slurm: GPUs of a node (8)')
    parser.add_argument('--time', default='24:00:00', help='slurm: limit of the job (24:00:00)')
    parser.add_argument('--name', default='t3d', help='tpu-vm: of the slice; gke: of the JobSet (t3d)')
    parser.add_argument('--zone', default='', help='tpu-vm: of the slice')
    parser.add_argument('--topology', default='', help='gke: v5e:8x8, as of t3d plan')
    parser.add_argument('--image', default='', help='gke: with this checkout in /t3d and its packages')
    text = 'of all processes after a failure; gke: after any (10), local: but for wrong input (0)'
    parser.add_argument('--restarts', type=int, help=text)
    overrides, words = train.split(sys.argv[1:] if argv is None else argv)
    args, rest = parser.parse_known_args(words)
    with parsing.refusing(parser):
        parsing.held(args, RANGES)
        args.restarts = RESTARTS.get(args.place, 0) if args.restarts is None else args.restarts
        if args.place == 'local' and not args.dry_run:
            parsing.run_folder(args.workdir, 'WORKDIR')
        configs.load(args.config, overrides)  # a wrong name is said here, and not on every host
        rest = [f'--config.{override}' for override in overrides] + rest
        commands, given = COMMANDS[args.place](args, rest)
        if args.dry_run:
            print('\n'.join(shown(command) for command in commands), *([given] if given else []), sep='\n')
            return 0
        needed = commands[0][0]
        if shutil.which(needed) is None:
            raise UsageError(f'{needed} is not on the PATH: run this where it is, or see the commands with --dry-run.')
        if args.place == 'local':
            return together(commands, pathlib.Path(args.workdir), args.restarts)
        return subprocess.run(commands[0], input=given or None, text=True, check=False).returncode


def shown(command: list[str]) -> str:
    """A command as a shell takes it."""
    return shlex.join(command)


# ------------------------------------------------------------------------------------------- (commands, what the first reads)


def local(args, rest: list[str]) -> tuple[list[list[str]], str]:
    """One command for each process of this machine."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    virtual = ['env', f'JAX_NUM_CPU_DEVICES={args.devices}', 'JAX_PLATFORMS=cpu'] if args.devices else []
    base = [*virtual, sys.executable, '-m', 'launch.train', '--config', args.config, '--workdir', args.workdir, *rest]
    where = ['--coordinator', f'127.0.0.1:{port}', '--num-processes', str(args.processes), '--process-id']
    return [[*base, *where, str(index)] for index in range(args.processes)], ''


def everywhere(args, rest: list[str]) -> list[str]:
    """What Python runs on every host of a cluster, which says who each process is."""
    return ['-m', 'launch.train', '--distributed', '--config', args.config, '--workdir', args.workdir, *rest]


def slurm(args, rest: list[str]) -> tuple[list[list[str]], str]:
    """sbatch of the job script."""
    options = [f'--nodes={args.nodes}', f'--gpus-per-node={args.gpus}', f'--time={args.time}']
    return [['sbatch', *options, str(HERE / 'slurm.sh'), args.config, args.workdir, *rest]], ''


def tpu_vm(args, rest: list[str]) -> tuple[list[list[str]], str]:
    """ssh to every host of a slice, as launch/tpu_pod.sh does it (which also sets hosts up)."""
    if not args.zone:
        raise UsageError('tpu-vm: give --zone, and --name of the slice (`gcloud compute tpus tpu-vm list --zone ZONE`).')
    words = shlex.join(['.venv/bin/python', *everywhere(args, rest)])
    ssh = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', args.name, '--zone', args.zone, '--worker=all']
    return [[*ssh, '--command', f'cd ~/t3d && {words}']], ''


def gke(args, rest: list[str]) -> tuple[list[list[str]], str]:
    """kubectl, which reads a JobSet."""
    if not (args.topology and args.image):
        raise UsageError('gke: give --topology, for example v5e:8x8, and --image, with this checkout in /t3d.')
    return [['kubectl', 'apply', '-f', '-']], json.dumps(job_set(args, rest), indent=1)


def job_set(args, rest: list[str]) -> dict:
    """The JobSet (jobset.x-k8s.io) of one slice: a pod for each host, all started anew when one fails."""
    topology = chips.topology(args.topology)
    if topology.chip is None:
        raise UsageError(f'gke: --topology {args.topology} is no slice of TPUs: for example v5e:8x8.')
    kind, _, shape = topology.name.partition(':')
    hosts, tpus = topology.count // CHIPS_OF_A_HOST, {'google.com/tpu': CHIPS_OF_A_HOST}
    container = {'name': 't3d', 'image': args.image, 'workingDir': '/t3d', 'command': ['python', *everywhere(args, rest)]}
    container |= {'ports': [{'containerPort': PORT}], 'resources': {'requests': tpus, 'limits': tpus}}
    selector = {'cloud.google.com/gke-tpu-accelerator': SELECTORS[kind], 'cloud.google.com/gke-tpu-topology': shape}
    pod = {'restartPolicy': 'Never', 'terminationGracePeriodSeconds': GRACE, 'nodeSelector': selector}
    pods = {'parallelism': hosts, 'completions': hosts, 'backoffLimit': 0}
    pods['template'] = {'spec': pod | {'containers': [container]}}
    workers = {'name': 'workers', 'replicas': 1, 'template': {'spec': pods}}
    spec = {'ttlSecondsAfterFinished': KEPT, 'failurePolicy': {'maxRestarts': args.restarts}, 'replicatedJobs': [workers]}
    return {'apiVersion': 'jobset.x-k8s.io/v1alpha2', 'kind': 'JobSet', 'metadata': {'name': args.name}, 'spec': spec}


COMMANDS = {'local': local, 'slurm': slurm, 'tpu-vm': tpu_vm, 'gke': gke}


# ------------------------------------------------------------------------------------------------------------ on this machine


def together(commands: list[list[str]], workdir: pathlib.Path, restarts: int = 0) -> int:
    """Runs the processes of one machine, all again after a failure; returns the last start's first status that is not 0.

    Nothing is started again after a signal to this process, wrong input, or `restarts` times.
    """
    for left in range(restarts, -1, -1):
        status, signalled = _once(commands, workdir)
        if status in (0, WRONG) or signalled or not left:
            return status
        print(f'status {status}: all processes start again, restart {restarts - left + 1} of {restarts}', file=sys.stderr)
    raise AssertionError('the last start returns')


def _once(commands: list[list[str]], workdir: pathlib.Path) -> tuple[int, bool]:
    """(the first status that is not 0 of processes that run at once, whether this process was sent a signal).

    The first one speaks here; what the others say goes to WORKDIR.<process>.txt. A signal is passed on to all, which save and
    end; where one fails the others are ended, as srun does.
    """
    workdir.parent.mkdir(parents=True, exist_ok=True)
    waiting, signalled, processes = [], False, [subprocess.Popen(commands[0], start_new_session=True)]
    for index, command in enumerate(commands[1:], 1):
        with open(f'{workdir}.{index}.txt', 'a') as said:
            processes.append(subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: waiting.append(number))
    try:
        while any(process.poll() is None for process in processes):
            for number in [waiting.pop() for _ in range(len(waiting))]:
                signalled = True
                for process in processes:
                    process.send_signal(number)
            if any(
                process.poll() for process in processes
            ):  # the others would wait for it; what they have to say, they say now
                _wait(processes, 10.0)
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    codes = [process.returncode for process in processes]
    failed = [index for index, code in enumerate(codes) if code > 0] or [index for index, code in enumerate(codes) if code]
    if failed and failed[0]:
        print(
            f'error: process {failed[0]} ended with status {codes[failed[0]]}: see {workdir}.{failed[0]}.txt', file=sys.stderr
        )
    return abs(codes[failed[0]]) if failed else 0, signalled or bool(waiting)


def _wait(processes, seconds: float) -> None:
    end = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        time.sleep(0.1)


if __name__ == '__main__':
    sys.exit(main())
