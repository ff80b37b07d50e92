"""The shell scripts of launch/, with commands of the cluster that print the words they were given."""

import os
import pathlib
import shutil
import subprocess

import pytest

from launch import pod
from t3d.core import errors

LAUNCH = pathlib.Path(__file__).parent.parent / 'launch'
BASH = shutil.which('bash')
WORDS = ['configs/instant3d.py:tiny', '/runs/a b$(id)', "--config.name=it's", '--config.data.path=*; [x]', '--config.a="q"']


@pytest.fixture
def cluster(tmp_path):
    """Runs a script where the cluster's commands print their words, one a line; the environment has only what is given.

    STATUS: what they end with; SCONTROL: what scontrol ends with.
    """
    commands = tmp_path / 'bin'
    commands.mkdir()
    for name in ('srun', 'gcloud', 'python', 'scontrol'):
        status = 'SCONTROL' if name == 'scontrol' else 'STATUS'
        (commands / name).write_text(f'#!{BASH}\nprintf "%s\\n" {name} "$@"\nexit "${{{status}:-0}}"\n')
        (commands / name).chmod(0o755)

    def run(script, *words, path=f'{commands}{os.pathsep}{os.environ["PATH"]}', **environment):
        command = [BASH, str(LAUNCH / script), *words]
        return subprocess.run(command, capture_output=True, text=True, env={'PATH': path} | environment, cwd=tmp_path)

    return run


def test_srun_gets_every_word_as_it_is(cluster):
    done = cluster('slurm.sh', *WORDS, SLURM_JOB_ID='12', SLURM_CPUS_PER_TASK='16')
    config, workdir, *rest = WORDS
    train = ['-m', 'launch.train', '--distributed', '--config', config, '--workdir', workdir, *rest]
    assert done.stdout.splitlines() == ['srun', '--kill-on-bad-exit=1', '--cpus-per-task=16', 'python', *train]
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize(
    ('status', 'restarts', 'again'),
    [(7, None, 1), (errors.AGAIN, '0', 1), (137, '9', 10), (1, '10', None), (1, '11', None), (pod.WRONG, None, None)],
)
def test_a_failing_job_is_requeued_ten_times_but_for_wrong_input(cluster, status, restarts, again):
    counted = {} if restarts is None else {'SLURM_RESTART_COUNT': restarts}
    done = cluster('slurm.sh', *WORDS, SLURM_JOB_ID='12', STATUS=str(status), **counted)
    lines = done.stdout.splitlines()
    assert done.returncode == status and lines[0] == 'srun'
    assert lines[lines.index('scontrol') :] == ['scontrol', 'requeue', '12'] if again else 'scontrol' not in lines
    said = f'srun ended with status {status}: the job is requeued, restart {again} of 10\n'
    assert done.stderr == (said if again else '')


def test_a_job_that_cannot_be_requeued_says_so(cluster):
    done = cluster('slurm.sh', *WORDS, SLURM_JOB_ID='12', STATUS='7', SCONTROL='1')
    assert done.returncode == 7 and done.stderr.endswith('error: not requeued: submit the same job again to go on\n')


def test_every_host_gets_every_word_as_it_is(cluster):
    done = cluster('tpu_pod.sh', 'pod', 'us-west4-a', *WORDS)
    *head, command = done.stdout.removesuffix('\n').split('\n')
    assert head == ['gcloud', *'compute tpus tpu-vm ssh pod --zone us-west4-a --worker=all --command'.split()]
    there = command.replace('cd ~/t3d && .venv/bin/python', 'printf "%s\\n"')  # what the shell of a host makes of it
    words = subprocess.run([BASH, '-c', there], capture_output=True, text=True, check=True).stdout
    config, workdir, *rest = WORDS
    train = ['-m', 'launch.train', '--distributed', '--config', config, '--workdir', workdir, *rest]
    assert words.splitlines() == train


def test_setup_of_the_hosts_comes_first(cluster):
    lines = cluster('tpu_pod.sh', 'pod', 'zone', *WORDS[:2], '--setup', *WORDS[2:]).stdout.splitlines()
    commands = [line for line in lines if line.startswith('cd ~/t3d')]
    assert 'pip install' in commands[0] and 'launch.train' in commands[1] and '--setup' not in commands[1]


@pytest.mark.parametrize(
    'script, words, says',
    [
        ('slurm.sh', [], 'CONFIG and WORKDIR are wanted after launch/slurm.sh, and 0 words were given'),
        ('slurm.sh', ['c.py'], '1 words were given'),
        ('slurm.sh', ['c.py', ''], 'is empty'),
        ('slurm.sh', ['--nodes=4', 'c.py', 'w'], 'before --nodes=4; options of sbatch stand before launch/slurm.sh'),
        ('slurm.sh', ['c.py', '--config.a=1'], 'before --config.a=1'),
        ('tpu_pod.sh', [], 'NAME, ZONE, CONFIG and WORKDIR are wanted, and 0 words were given'),
        ('tpu_pod.sh', ['n', 'z', 'c.py'], '3 words were given'),
        ('tpu_pod.sh', ['n', 'z', 'c.py', '--setup'], 'wanted before --setup'),
        ('tpu_pod.sh', ['n', '', 'c.py', 'w'], 'is empty'),
    ],
)
def test_missing_words(cluster, script, words, says):
    done = cluster(script, *words, SLURM_JOB_ID='12')
    error, usage = done.stderr.splitlines()
    assert done.returncode == 2 and error.startswith('error: ') and says in error and not done.stdout
    assert usage.startswith('usage: ') and script in usage


def test_outside_of_a_job_or_without_commands(cluster, tmp_path):
    assert 'submit it with sbatch' in cluster('slurm.sh', *WORDS).stderr
    job = {'SLURM_JOB_ID': '12', 'PYTHON': str(tmp_path / 'none/python')}
    assert f'there is no {tmp_path}/none/python on ' in cluster('slurm.sh', *WORDS, **job).stderr
    assert 'gcloud is not on the PATH' in cluster('tpu_pod.sh', 'pod', 'zone', *WORDS, path='/nowhere').stderr


def test_the_job_asks_for_what_it_needs():
    """sbatch reads the first comments of the script."""
    lines = (LAUNCH / 'slurm.sh').read_text().splitlines()
    asked = dict(line.removeprefix('#SBATCH --').partition('=')[::2] for line in lines if line.startswith('#SBATCH'))
    assert asked['ntasks-per-node'] == '1' and int(asked['cpus-per-task']) > 1 and asked['time'] and '%j' in asked['output']
    assert asked['open-mode'] == 'append'  # a requeued job goes on with its file
    assert asked['signal'] == f'TERM@{pod.GRACE}' and 'requeue' in asked
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith('#'))
    assert all(n < first_command for n, line in enumerate(lines) if line.startswith('#SBATCH'))
