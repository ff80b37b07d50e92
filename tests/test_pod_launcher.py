"""`python -m launch.pod`: what it would run in four places, word for word, and what several processes of a machine do."""

import json
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from launch import pod
from t3d.core import errors
from t3d.core.errors import UsageError

ROOT = pathlib.Path(__file__).parent.parent
CONFIG, WORK = 'configs/instant3d.py:tiny', '/runs/a b$(id)'
REST = ['--config.data.path=it is', '--config.batch', '4', '--heartbeat', '20']
PASSED = ['--config.data.path=it is', '--config.batch=4', '--heartbeat', '20']  # the same words
TRAIN = ['-m', 'launch.train', '--distributed', '--config', CONFIG, '--workdir', WORK, *PASSED]


def dry(capsys, place, *words):
    """The lines of a dry run."""
    assert pod.main([place, CONFIG, WORK, *REST, '--dry-run', *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_processes_of_this_machine(capsys):
    lines = [shlex.split(line) for line in dry(capsys, 'local', '--processes', '3', '--devices', '2')]
    assert len(lines) == 3 and len({tuple(words[: words.index('--process-id')]) for words in lines}) == 1
    for index, words in enumerate(lines):
        head = ['env', 'JAX_NUM_CPU_DEVICES=2', 'JAX_PLATFORMS=cpu', sys.executable, '-m', 'launch.train', '--config', CONFIG]
        assert words[: len(head)] == head and words[-2:] == ['--process-id', str(index)]
        assert words[len(head) : -6] == ['--workdir', WORK, *PASSED]
        assert words[-6:-2][0::2] == ['--coordinator', '--num-processes'] and words[-3] == '3'
    assert shlex.split(dry(capsys, 'local')[1])[:3] == [sys.executable, '-m', 'launch.train']  # devices as JAX finds them


def test_a_job_of_slurm(capsys):
    (line,) = dry(capsys, 'slurm', '--nodes', '4', '--gpus', '8', '--time', '2:00:00')
    script = str(ROOT / 'launch' / 'slurm.sh')
    options = ['--nodes=4', '--gpus-per-node=8', '--time=2:00:00']
    assert shlex.split(line) == ['sbatch', *options, script, CONFIG, WORK, *PASSED]


def test_hosts_of_a_slice_get_every_word_as_it_is(capsys):
    (line,) = dry(capsys, 'tpu-vm', '--name', 'pod', '--zone', 'us-west4-a')
    *head, command = shlex.split(line)
    assert head == 'gcloud compute tpus tpu-vm ssh pod --zone us-west4-a --worker=all --command'.split()
    there = command.replace('cd ~/t3d && .venv/bin/python', 'printf "%s\\n"')
    words = subprocess.run([shutil.which('bash'), '-c', there], capture_output=True, text=True, check=True).stdout
    assert words.splitlines() == TRAIN


@pytest.mark.parametrize(
    ('topology', 'hosts', 'kind'), [('v5e:8x8', 16, 'tpu-v5-lite-podslice'), ('v5p:4x4x4', 16, 'tpu-v5p-slice')]
)
def test_a_job_set_asks_for_the_hosts_of_the_slice(capsys, topology, hosts, kind):
    first, *rest = dry(capsys, 'gke', '--topology', topology, '--image', 'registry/t3d:1', '--restarts', '3')
    assert first == 'kubectl apply -f -'
    spec = json.loads('\n'.join(rest))['spec']
    (job,) = spec['replicatedJobs']
    pods = job['template']['spec']
    (container,) = pods['template']['spec']['containers']
    assert container['command'] == ['python', *TRAIN] and container['image'] == 'registry/t3d:1'
    assert pods['parallelism'] == pods['completions'] == hosts and spec['failurePolicy'] == {'maxRestarts': 3}
    assert spec['ttlSecondsAfterFinished'] == pod.KEPT and pods['template']['spec']['terminationGracePeriodSeconds'] == 300
    nodes = pods['template']['spec']['nodeSelector']
    assert nodes['cloud.google.com/gke-tpu-accelerator'] == kind
    assert nodes['cloud.google.com/gke-tpu-topology'] == topology.partition(':')[2]
    assert container['resources']['limits']['google.com/tpu'] == 4


def test_the_manifest_beside_it_has_the_same_keys():
    """launch/gke.yaml, which is filled in by hand."""
    lines = (ROOT / 'launch' / 'gke.yaml').read_text().splitlines()
    text = [line.strip().removeprefix('- ').partition(':')[0] for line in lines if ':' in line and not line.startswith('#')]
    args = type(
        'args', (), {'config': CONFIG, 'workdir': WORK, 'image': 'i', 'name': 'n', 'topology': 'v5e:8x8', 'restarts': 1}
    )

    def keys(tree):
        for name, value in tree.items() if isinstance(tree, dict) else ():
            yield name
            for part in value if isinstance(value, list) else (value,):
                yield from keys(part)

    made = set(keys(pod.job_set(args, []))) - {'google.com/tpu'}
    assert made == {name for name in text if name}
    numbers = dict(re.findall(r'(\w+Seconds\w*): (\d+)', '\n'.join(lines)))
    assert numbers == {'ttlSecondsAfterFinished': str(pod.KEPT), 'terminationGracePeriodSeconds': str(pod.GRACE)}


@pytest.mark.parametrize(
    ('words', 'says'),
    [
        (['moon', CONFIG, WORK], "invalid choice: 'moon'"),
        (['slurm', CONFIG], 'workdir'),
        (['slurm', 'configs/instant4d.py:tiny', WORK, '--dry-run'], 'instant3d'),
        (['slurm', CONFIG, WORK, '--config.bach=4', '--dry-run'], "Did you mean 'batch'"),
        (['slurm', CONFIG, WORK, '--nodes', '0', '--dry-run'], '--nodes 0: wanted a whole number from 1'),
        (['tpu-vm', CONFIG, WORK, '--dry-run'], 'tpu-vm: give --zone'),
        (['gke', CONFIG, WORK, '--topology', 'v5e:8x8', '--dry-run'], '--image'),
        (['gke', CONFIG, WORK, '--topology', 'v5e:8x9', '--image', 'i', '--dry-run'], 'Nearest: v5e:8x8'),
        (['gke', CONFIG, WORK, '--topology', 'cpu:8', '--image', 'i', '--dry-run'], 'is no slice of TPUs'),
    ],
)
def test_what_cannot_be_started_is_refused_in_one_sentence(capsys, words, says):
    with pytest.raises(SystemExit) as stop:
        pod.main(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and says in error and error.startswith('error: ') and len(error.splitlines()) == 1


def test_commands_that_are_not_here_are_named(capsys, monkeypatch):
    monkeypatch.setenv('PATH', '/nowhere')
    with pytest.raises(SystemExit):
        pod.main(['slurm', CONFIG, WORK])
    assert 'sbatch is not on the PATH' in capsys.readouterr().err


def python(text):
    return [sys.executable, '-c', text]


def test_the_first_status_that_is_not_0_ends_all(tmp_path, capfd):
    waits, fails = python('import time; time.sleep(600)'), python('import sys; print("no room"); sys.exit(3)')
    assert pod.together([python(''), python('')], tmp_path / 'fine') == 0
    short = lambda processes, seconds: real(processes, 0.2)
    real, pod._wait = pod._wait, short
    try:
        assert pod.together([waits, fails], tmp_path / 'run') == 3
    finally:
        pod._wait = real
    assert (tmp_path / 'run.1.txt').read_text() == 'no room\n'
    assert f'process 1 ended with status 3: see {tmp_path}/run.1.txt' in capfd.readouterr().err


FAILS_AT_FIRST = """
import pathlib, sys
starts = pathlib.Path(sys.argv[1])
starts.write_text(starts.read_text() + '.' if starts.exists() else '.')
sys.exit(int(sys.argv[2]) if len(starts.read_text()) <= int(sys.argv[3]) else 0)
"""


@pytest.mark.parametrize(
    ('status', 'fails', 'restarts', 'starts', 'ends'),
    [(7, 2, 3, 3, 0), (errors.AGAIN, 9, 2, 3, errors.AGAIN), (7, 1, 0, 1, 7), (pod.WRONG, 1, 3, 1, pod.WRONG)],
)
def test_all_start_again_so_many_times_but_not_after_wrong_input(tmp_path, capfd, status, fails, restarts, starts, ends):
    counted = tmp_path / 'starts'
    command = [*python(FAILS_AT_FIRST), str(counted), str(status), str(fails)]
    assert pod.together([command], tmp_path / 'run', restarts) == ends
    assert counted.read_text() == '.' * starts
    assert capfd.readouterr().err.count(f'status {status}: all processes start again, restart ') == starts - 1


ENDS_BADLY = """
import signal, sys
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(9))
open(sys.argv[1], 'a').write('.')
while True:
    signal.pause()
"""


def test_nothing_starts_again_after_a_signal(tmp_path):
    program = 'import pathlib, sys; from launch import pod; command = [sys.executable, "-c", *sys.argv[1:3]]; '
    program += 'sys.exit(pod.together([command], pathlib.Path(sys.argv[3]), 5))'
    words = [*python(program), ENDS_BADLY, str(tmp_path / 'starts'), str(tmp_path / 'run')]
    with subprocess.Popen(words, cwd=ROOT) as running:
        while not (tmp_path / 'starts').exists():
            assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 9
    assert (tmp_path / 'starts').read_text() == '.'


SAVES = """
import signal, sys
def save(number, frame):
    open(sys.argv[1], 'w').write('saved')
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
open(sys.argv[1], 'w').write('ready')
while True:
    signal.pause()
"""


def test_a_signal_is_passed_on_to_all(tmp_path):
    places = [tmp_path / 'a', tmp_path / 'b']
    program = 'import pathlib, sys; from launch import pod; sys.exit(pod.together([[sys.executable, "-c", sys.argv[1], place] '
    program += 'for place in sys.argv[2:4]], pathlib.Path(sys.argv[4])))'
    words = [sys.executable, '-c', program, SAVES, *map(str, places), str(tmp_path / 'run')]
    with subprocess.Popen(words, cwd=ROOT) as running:
        while not all(place.exists() and place.read_text() == 'ready' for place in places):
            assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
    assert [place.read_text() for place in places] == ['saved', 'saved']


def test_places_are_those_that_have_commands():
    assert set(pod.PLACES) == set(pod.COMMANDS)
    with pytest.raises(UsageError):
        pod.tpu_vm(type('args', (), {'zone': ''}), [])
