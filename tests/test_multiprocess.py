"""Two processes on loopback: killed, restarted, terminated; the result is that of an uninterrupted run, bit for bit."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import chex
import jax
import pytest
from dummy_system import make

from t3d.checkpoint import store as stores
from t3d.core import errors

HERE = pathlib.Path(__file__).parent
ENDS = 120  # seconds in which who is left has to end: 20 of the heartbeat, and much for a busy machine


def launch(*workdirs, count=2, local=2, total=12, delay=0.0, **settings):
    """Starts the processes of a run; their output goes to <last workdir>.<index>.txt. settings: of multiprocess_worker."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    cache = str(HERE.parent / '.jax_cache')
    environment = os.environ | {'JAX_COMPILATION_CACHE_DIR': cache, 'PYTHONPATH': f'{HERE.parent}{os.pathsep}{HERE}'}
    environment |= {f'T3D_TEST_{name.upper()}': str(value) for name, value in settings.items()}
    processes = []
    for index in range(count):
        output = open(f'{workdirs[-1]}.{index}.txt', 'a')  # noqa: SIM115
        command = [sys.executable, str(HERE / 'multiprocess_worker.py'), str(port), str(index), str(count), str(local)]
        command += [str(total), str(delay)]
        processes.append(subprocess.Popen([*command, *map(str, workdirs)], stdout=output, stderr=output, env=environment))
        output.close()
    return processes


def finish(processes, workdir, seconds=120):
    """Exit codes; prints what the processes said if one failed."""
    try:
        codes = [process.wait(seconds) for process in processes]
    finally:
        kill(processes)
    if any(codes):
        print(*(pathlib.Path(f'{workdir}.{n}.txt').read_text()[-3000:] for n in range(len(processes))))
    return codes


def kill(processes):
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def wait_for(condition, processes, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes), 'no such moment came'
        time.sleep(0.002)


def wait_for_text(path, text, seconds=20):
    """What a process said, once it is all there: its last lines come from a program of their own."""
    deadline = time.monotonic() + seconds
    while text not in (said := pathlib.Path(path).read_text()):
        assert time.monotonic() < deadline, said[-2000:]
        time.sleep(0.02)
    return said


def steps(workdir):
    """The steps of the complete checkpoints."""
    folder = workdir / 'checkpoints'
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []


def saving(workdir):
    """Unfinished checkpoints: they lie in folders with a suffix until they are complete."""
    folder = workdir / 'checkpoints'
    return [path.name for path in folder.iterdir() if not path.name.isdigit()] if folder.exists() else []


def final(workdir):
    store, system = stores.Store(workdir / 'checkpoints', read_only=True), make(ballast=2**21)
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.eval_shape(lambda: system.init(jax.random.key(0), None))
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), abstract)
    restored = store.restore(target)
    store.close()
    return jax.device_get(restored.state)


def same(left, right):
    assert int(left.step) == int(right.step)
    chex.assert_trees_all_equal(left, right)


def stop_in_a_save(victim, workdir, processes, after=1):
    """Freezes a process in the middle of a save, behind so many complete ones; the other cannot complete it alone."""
    while True:
        wait_for(lambda: len(steps(workdir)) >= after and saving(workdir), processes, 600)
        processes[victim].send_signal(signal.SIGSTOP)
        time.sleep(1.0)
        if saving(workdir):
            return
        processes[victim].send_signal(signal.SIGCONT)  # it had done its part: the next save


@pytest.mark.parametrize('victim', [0, 1])  # 0 completes checkpoints and runs the service, which waits for signs of life of 1
def test_killed_in_mid_save_restarts_exactly(tmp_path, victim):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    processes = launch(whole, broken, total=24, heartbeat=20)
    other = 1 - victim
    try:
        stop_in_a_save(victim, broken, processes, after=2)
        processes[victim].kill()
        processes[victim].wait()
        assert saving(broken), 'the save was complete before the kill'
        assert processes[other].wait(ENDS) != 0
        said = wait_for_text(f'{broken}.{other}.txt', f'error: process {other} of 2 stopped: ')
    finally:
        kill(processes)
    assert 'no longer answers' in said and 'stack trace' not in said
    assert steps(whole)[-1] == 24
    assert saving(broken), 'who was left has completed the save'
    before = steps(broken)[-1]
    assert 4 <= before < 24
    assert finish(launch(broken, total=24), broken) == [0, 0]
    assert f'resuming from step {before}' in (broken / 'log.txt').read_text() and not saving(broken)
    same(final(whole), final(broken))


@pytest.mark.slow
def test_killed_in_mid_run_and_terminated(tmp_path):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    assert finish(launch(whole, total=40), whole) == [0, 0]
    said = lambda text: (broken / 'log.txt').exists() and text in (broken / 'log.txt').read_text()
    processes = launch(broken, total=40, delay=0.02)
    try:
        wait_for(lambda: steps(broken), processes)
        processes[1].kill()
        processes[1].wait()
    finally:
        kill(processes)
    assert steps(broken)[-1] < 40

    processes = launch(broken, total=40, delay=0.04)  # SIGTERM to one process: both stop at the same step and exit 0
    wait_for(lambda: said('resuming from step'), processes)
    processes[1].send_signal(signal.SIGTERM)
    assert finish(processes, broken) == [0, 0]
    assert said(f'stopped at step {steps(broken)[-1]}: saved')

    assert finish(launch(broken, total=40), broken) == [0, 0]
    assert steps(broken)[-1] == 40
    same(final(whole), final(broken))


@pytest.mark.slow
def test_goes_on_with_another_number_of_processes(tmp_path):
    pair, single = tmp_path / 'pair', tmp_path / 'single'
    assert finish(launch(pair, total=40), pair) == [0, 0]
    processes = launch(single, total=40, delay=0.04)  # Ctrl-C at one process stops both
    wait_for(lambda: steps(single), processes)
    processes[0].send_signal(signal.SIGINT)
    assert finish(processes, single) == [0, 0] and steps(single)[-1] < 40
    assert finish(launch(single, count=1, local=4, total=40), single) == [0]
    one, two = final(pair), final(single)
    chex.assert_trees_all_close(one.params, two.params, rtol=1e-5, atol=1e-6)


def local_steps(tier):
    """The complete steps of the local tier of each process."""
    return [sorted(int(step.name) for step in place.iterdir() if step.name.isdigit()) for place in tier.glob('*/?-of-2')]


@pytest.mark.slow
def test_two_tiers_of_two_processes(tmp_path):
    """Killed between two saves of the run folder; then one process has lost its local folder, as on a new host."""
    whole, broken, tier = tmp_path / 'whole', tmp_path / 'broken', tmp_path / 'tier'
    assert finish(launch(whole, total=16), whole, 600) == [0, 0]
    said = lambda: (broken / 'log.txt').read_text()
    settings = {'tier': tier, 'every': 4}
    processes = launch(broken, total=16, delay=0.02, **settings)
    try:
        reached = lambda: steps(broken) and len(local_steps(tier)) == 2 and all(each[-1:] > [4] for each in local_steps(tier))
        wait_for(reached, processes, 600)
    finally:
        kill(processes)
    newest = max(*set.intersection(*map(set, local_steps(tier))), *steps(broken))
    processes = launch(broken, total=16, delay=0.02, **settings)
    wait_for(lambda: 'resuming from step' in said(), processes, 600)
    processes[1].send_signal(signal.SIGTERM)
    assert finish(processes, broken, 600) == [0, 0]
    last = steps(broken)[-1]
    assert f'resuming from step {newest}\n' in said()
    assert f'step {last} is saved in the local tier; the run folder comes next' in said()
    assert all(each[-1] == last for each in local_steps(tier))

    shutil.rmtree(next(tier.glob('*/1-of-2')))
    shutil.rmtree(broken / 'checkpoints' / f'{last:08d}' / 'state')
    before = steps(broken)[-2]
    assert finish(launch(broken, total=16, **settings), broken, 600) == [0, 0]
    assert 'local tier: no checkpoint of process 1 (a new host?) in ' in said() and f'step {last} is passed over' in said()
    assert f'resuming from step {before}\n' in said()
    same(final(whole), final(broken))


@pytest.mark.slow
def test_a_peer_that_hangs_ends_the_run(tmp_path):
    """It still gives signs of life: it ends by --patience, and so does who waits for it, if not by its end."""
    hung = tmp_path / 'hung'
    processes = launch(hung, total=10**6, patience=30, hangs=f'1 {tmp_path / "now"}')
    try:
        wait_for(lambda: (hung / 'metrics.jsonl').exists(), processes, 600)
        (tmp_path / 'now').write_text('')
        codes = [process.wait(600) for process in processes]
    finally:
        kill(processes)
    assert codes[0] != 0 and codes[1] == errors.AGAIN
    wait_for_text(f'{hung}.1.txt', 'error: process 1 of 2 stopped: for 30 s its own data have not come (--patience)')
    said = wait_for_text(f'{hung}.0.txt', 'error: process 0 of 2 stopped: ')
    assert 'for 30 s the step in flight has not ended' in said or 'no longer answers' in said


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_a_frozen_peer_ends_the_run_in_the_middle_of_a_save(tmp_path, victim):
    frozen, other = tmp_path / 'frozen', 1 - victim
    processes = launch(frozen, total=10**6, heartbeat=20)
    try:
        stop_in_a_save(victim, frozen, processes)
        assert processes[other].wait(ENDS) != 0
        assert saving(frozen) and processes[victim].poll() is None
    finally:
        kill(processes)
    said = wait_for_text(f'{frozen}.{other}.txt', f'error: process {other} of 2 stopped: ')
    assert f'process {victim} of the run no longer answers' in said


JOINS = """
import os
import jax
from t3d.parallel import devices
devices.start()
devices.check_equal()
print(jax.process_index(), jax.process_count(), jax.local_device_count(), jax.config.values['jax_cuda_visible_devices'])
"""


def joined(tasks):
    """What the tasks of a SLURM step on one node of eight GPUs print of JAX, in order of their ids."""
    processes = []
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    for index in range(tasks):
        step = {'JOB_ID': 12, 'PROCID': index, 'LOCALID': index, 'NODEID': 0, 'NTASKS': tasks, 'GPUS_ON_NODE': 8}
        step |= {'STEP_NODELIST': '127.0.0.1', 'STEP_NUM_TASKS': tasks, 'STEP_TASKS_PER_NODE': tasks, 'STEP_ID': 0}
        environment = {f'SLURM_{name}': str(value) for name, value in step.items()} | {'JAX_COORDINATOR_PORT': str(port)}
        environment |= {'PATH': os.environ['PATH'], 'PYTHONPATH': str(HERE.parent), 'CUDA_VISIBLE_DEVICES': '0,1,2,3,4,5,6,7'}
        environment |= {'XLA_FLAGS': f'--xla_force_host_platform_device_count={8 // tasks}'}
        command = [sys.executable, '-c', JOINS]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment))
    try:
        results = [process.communicate(timeout=120) for process in processes]
    finally:
        kill(processes)
    assert not any(process.returncode for process in processes), results
    return [out.splitlines()[-1] for out, _ in results]


def test_jax_shows_a_task_the_gpus_of_its_step():
    """`jax.distributed.initialize()` alone would show each the one of its local rank; virtual devices stand for the GPUs."""
    assert joined(1) == ['0 1 8 all']
    assert joined(2) == ['0 2 4 0,1,2,3', '1 2 4 4,5,6,7']
