"""Kills and restarts a small run at random steps and checks that nothing of it is lost: `python -m launch.soak`.

Three runs of one config on loopback, four virtual devices in all: `whole` is left alone; `same` is killed and terminated at
random steps and started again with two processes each time; `turns` with one, two and four processes by turns. Then single
bytes of the checkpoints of both tiers are changed. The status is 0 if all of this holds:

- the final state of `same` is that of `whole`, bit for bit; of `turns` to within --tolerance of the largest number of a leaf;
- metrics.jsonl of each has every step once, with the losses of `whole` and its batches (metric data/order, which
  launch/soak_witness.py adds to a system of the table);
- each changed byte is refused, or what is loaded is bit for bit what was saved;
- as many signals as were asked for met a living process of a run that then had to be started again.

What does not hold is said at the end, after everything was tried.
A set of processes of which one has gone is ended as launchers do (srun --kill-on-bad-exit): at once.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

from launch import soak_witness
from launch.soak_witness import WITNESSED
from t3d.core.errors import UsageError

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEVICES = 4
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
ROOM = 6  # last steps that no signal waits for: the run would end first
ENDED = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 0}  # the status of a process that got it


class Failed(Exception):
    """A check that does not hold, or a time that is over."""


class Soak:
    """The runs of one soak, in a folder; all random numbers from one seed."""

    def __init__(self, args, out: pathlib.Path):
        self.args, self.out, self.random = args, out, np.random.default_rng(args.seed)
        self.end = time.monotonic() + 60 * args.minutes
        self.counts = {'starts': 0, 'SIGKILL': 0, 'SIGTERM': 0}

    def start(self, name: str, count: int) -> list[subprocess.Popen]:
        """The processes of one start of a run; their output goes to NAME.<process>.txt."""
        args, self.counts['starts'] = self.args, self.counts['starts'] + 1
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        command = [sys.executable, '-m', 'launch.train', '--config', args.config, '--workdir', str(self.out / name)]
        values = {
            'steps': args.steps,
            'log_every': 1,
            'checkpoint.every': args.every,
            'checkpoint.local_every': args.local_every,
            'checkpoint.local': self.out / f'{name}-local',
            'preview_every': 0,
            'evaluate': '()',
        }
        if WITNESSED in os.environ:
            values['system'] = soak_witness.__name__
        command += [f'--config.{override}' for override in args.set]
        command += [f'--config.{key}={value}' for key, value in values.items()]
        environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(DEVICES // count)}
        processes = []
        for index in range(count):
            alone = ['--coordinator', f'127.0.0.1:{port}', '--num-processes', str(count), '--process-id', str(index)]
            with open(self.out / f'{name}.{index}.txt', 'a') as said:
                words = [*command, *(alone if count > 1 else [])]
                processes.append(subprocess.Popen(words, cwd=ROOT, env=environment, stdout=said, stderr=said))
        return processes

    def run(self, name: str, interrupted: list[int], last: int = 2) -> int:
        """A run that is interrupted with each of these numbers of processes, and ends with `last` of them (0: it does not).

        Returns how many interruptions met a living process of a run that then had to be started again.
        """
        steps = sorted(self.random.choice(np.arange(2, self.args.steps - ROOM), len(interrupted), replace=False).tolist())
        met = 0
        for number, count in enumerate([*interrupted, last] if last else interrupted):
            later = self.step(name) + 1  # than what was told of before: a start that has not begun a step has nothing to lose
            processes, began, victim = self.start(name, count), time.monotonic(), None
            sent = SIGNALS[(number + (not last)) % 2]
            try:
                if number < len(steps):
                    victim = self.interrupt(name, processes, max(steps[number], later), sent)
                elif (codes := self.wait(processes)) != [0] * count:
                    raise Failed(f'{name} ended with {codes}: {self.said(name)}')
            finally:
                for process in processes:
                    process.kill()
                    process.wait()
            if victim and victim.returncode == ENDED[sent] and not self.finished(name):
                self.counts[sent.name], met = self.counts[sent.name] + 1, met + 1
            print(f'{name}: {count} processes, {time.monotonic() - began:.0f} s, at step {self.step(name)}', flush=True)
        return met

    def interrupt(self, name: str, processes, step: int, number: signal.Signals) -> subprocess.Popen | None:
        """Sends a signal to one process once a step is told of, some time within the next one.

        Returns that process, None where the run had ended before.
        """
        while self.step(name) < step:
            self.check_time()
            if any(process.poll() not in (None, 0) for process in processes):
                raise Failed(f'{name} ended before step {step}: {self.said(name)}')
            if all(process.poll() == 0 for process in processes):  # the run was faster than this program
                return None
            time.sleep(0.005)
        time.sleep(self.random.uniform(0.0, 0.3))
        victim = processes[self.random.integers(len(processes))]
        if victim.poll() is not None:
            return None
        victim.send_signal(number)
        if number == signal.SIGTERM and (codes := self.wait(processes)) != [0] * len(processes):
            raise Failed(f'{name}: after SIGTERM at step {step} the statuses are {codes}: {self.said(name)}')
        if number == signal.SIGKILL:
            victim.wait()
        return victim

    def finished(self, name: str) -> bool:
        """Whether the last step is saved in the run folder: started again, the run would have nothing to do."""
        return (self.out / name / 'checkpoints' / f'{self.args.steps:08d}').exists()

    def wait(self, processes) -> list[int]:
        """The statuses, once all have ended."""
        while any(process.poll() is None for process in processes):
            self.check_time()
            if any(process.poll() for process in processes):  # the others would wait for it
                break
            time.sleep(0.05)
        return [process.poll() for process in processes]

    def check_time(self) -> None:
        if time.monotonic() > self.end:
            raise Failed(f'{self.args.minutes} minutes are over')

    def step(self, name: str) -> int:
        """The last step that a run told of."""
        return max(self.metrics(name), default=0)

    def metrics(self, name: str) -> dict[int, dict]:
        """{step: record} of metrics.jsonl. Raises: Failed where a step is there twice."""
        path, records = self.out / name / 'metrics.jsonl', {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:  # a line that is being written
                continue
            if record['step'] in records:
                raise Failed(f'{name}: step {record["step"]} is in metrics.jsonl twice')
            records[record['step']] = record
        return records

    def said(self, name: str) -> str:
        """The last words of the processes of a run."""
        return ' | '.join(path.read_text()[-600:] for path in sorted(self.out.glob(f'{name}.*.txt')))


def same_steps(soak: Soak, name: str) -> float:
    """The largest difference of the losses of a run and `whole`, relative. Raises: Failed for steps or records that differ."""
    whole, other = soak.metrics('whole'), soak.metrics(name)
    wanted = list(range(1, soak.args.steps + 1))
    if sorted(whole) != wanted or sorted(other) != wanted:
        raise Failed(f'{name}: steps {sorted(set(wanted) ^ set(other))[:5]} are lost or too many')
    if not all('data/order' in records[step] for records in (whole, other) for step in wanted):
        raise Failed(f'{name}: the system does not say which batches it saw: metric data/order')
    for step in wanted:
        if whole[step]['data/order'] != other[step]['data/order']:
            raise Failed(f'{name}: other records at step {step}')
    return float(np.max([abs(whole[n]['loss'] - other[n]['loss']) / max(abs(whole[n]['loss']), 1e-3) for n in wanted]))


def target_of(folder: pathlib.Path):
    """(shapes of the state of a run, on one device; its paths of weights)."""
    import jax

    from t3d import systems
    from t3d.core import config as configs
    from t3d.core.system import params_of
    from t3d.inference import loading
    from t3d.train import states

    config = configs.read(folder / 'config.json')
    given = loading.open_given(config, folder, kept_first=False)
    system = systems.make(config, given)
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = states.shapes(config, system, params_of(given))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes)


def state_of(folder: pathlib.Path, target, step: int | None = None):
    """{leaf: array} of a step in a folder of checkpoints."""
    import jax

    from t3d.checkpoint import store as stores
    from t3d.core import tree

    store = stores.Store(folder, read_only=True)
    try:
        return tree.flatten(jax.device_get(store.restore(target, step).state))
    finally:
        store.close()


def apart(left: dict, right: dict) -> float:
    """The largest difference of two states, of each leaf relative to its largest number (at least 1)."""

    def one(a, b):
        return np.max(np.abs(np.float64(a) - np.float64(b)), initial=0.0) / np.max(np.abs(a), initial=1.0)

    return float(np.max([one(left[name], right[name]) for name in left]))  # NaN where there is one


def flips(soak: Soak, folders: list[pathlib.Path], target) -> dict[str, int]:
    """Changes single bytes of checkpoints: {refused, harmless, files}. Raises: Failed where other numbers are loaded."""
    from t3d.checkpoint import store as stores

    counts = {'refused': 0, 'harmless': 0, 'files': 0}
    for folder in folders:
        step = int(max(path.name for path in folder.iterdir() if path.name.isdigit()))
        saved = state_of(folder, target, step)
        every = sorted(path for path in (folder / f'{step:08d}').rglob('*') if path.is_file() and path.stat().st_size)
        counts['files'] += len(every)
        chosen = [every[n % len(every)] for n in range(max(len(every), -(-soak.args.flips // len(folders))))]
        for path in chosen:
            soak.check_time()
            raw = path.read_bytes()
            place = int(soak.random.integers(len(raw)))
            path.write_bytes(raw[:place] + bytes([raw[place] ^ (1 << int(soak.random.integers(8)))]) + raw[place + 1 :])
            try:
                loaded = state_of(folder, target, step)
            except stores.CorruptCheckpoint:
                counts['refused'] += 1
            else:
                if not all(np.array_equal(loaded[name], saved[name]) for name in saved):
                    raise Failed(f'byte {place} of {path} was changed, and other numbers were loaded')
                counts['harmless'] += 1
            path.write_bytes(raw)
    return counts


def check(soak: Soak, figures: dict, wrong: list[str]) -> None:
    """Runs everything; `figures` is given what was counted and measured, `wrong` what does not hold, as soon as it is known."""
    args = soak.args
    soak.run('whole', [])
    target = target_of(soak.out / 'whole')
    whole = state_of(soak.out / 'whole' / 'checkpoints', target)
    figures['leaves'] = len(whole)

    def tried(what, *words) -> None:
        try:
            what(*words)
        except (Failed, UsageError) as failure:
            wrong.append(str(failure))

    def interrupted_as_asked(name: str, interrupted: list[int], **how) -> bool:
        met = soak.run(name, interrupted, **how)
        if met < len(interrupted):
            longer = 'let it take longer (--steps, or slower steps)'
            wrong.append(f'{name}: {met} of {len(interrupted)} interruptions met the run before its end: {longer}')
        return met == len(interrupted)

    def compare(name: str, interrupted: list[int], tolerance: float) -> None:
        interrupted_as_asked(name, interrupted)
        other = state_of(soak.out / name / 'checkpoints', target)
        figures[f'{name}_state'], figures[f'{name}_loss'] = apart(whole, other), same_steps(soak, name)
        differing = [leaf for leaf in whole if not np.array_equal(whole[leaf], other[leaf])]
        figures[f'{name}_bit_equal'] = len(whole) - len(differing)
        if not max(figures[f'{name}_state'], figures[f'{name}_loss']) <= tolerance or differing and not tolerance:
            far = f'state {figures[f"{name}_state"]:.1e}, losses {figures[f"{name}_loss"]:.1e} from those of `whole`'
            raise Failed(f'{name}: {far}; {len(differing)} leaves differ, as {differing[:1]}')

    def flip() -> None:
        if not interrupted_as_asked('alone', [1], last=0):  # SIGTERM: one process has whole arrays in its local tier
            return
        folders = [soak.out / 'whole' / 'checkpoints', next((soak.out / 'alone-local').glob('*/0-of-1'))]
        figures['flips'] = flips(soak, folders, target)

    tried(compare, 'same', [2] * args.kills, 0.0)
    if args.turns:
        tried(compare, 'turns', [(2, 1, 4)[n % 3] for n in range(args.turns)], args.tolerance)
    if args.flips:
        tried(flip)


def witness(args) -> dict[str, str]:
    """What the processes are told where the system is one of the table, which says nothing of its batches."""
    from t3d import systems
    from t3d.core import config as configs

    system = configs.load(args.config, args.set).system
    return {WITNESSED: system} if system in systems.SYSTEMS else {}


def main(argv=None) -> int:
    """Runs the soak; 0 if everything holds."""
    parser = argparse.ArgumentParser(
        prog='python -m launch.soak', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--config', default='launch/soak_dummy.py')
    parser.add_argument('--set', nargs='*', default=[], metavar='key=value', help='changed config keys')
    parser.add_argument('--steps', type=int, default=40)
    parser.add_argument('--kills', type=int, default=4, help='interruptions of `same`, SIGKILL and SIGTERM by turns')
    parser.add_argument('--turns', type=int, default=6, help='interruptions of `turns`; 0: no such run')
    parser.add_argument('--flips', type=int, default=40, help='bytes to change; at least one of every file')
    parser.add_argument('--every', type=int, default=8, help='steps between checkpoints in the run folder')
    parser.add_argument('--local-every', type=int, default=3, help='steps between checkpoints in the local tier')
    parser.add_argument('--tolerance', type=float, default=1e-6, help='of `turns`, relative')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--minutes', type=float, default=30.0, help='it fails after so long')
    parser.add_argument('--out', help='keep the runs here, in a new folder (default: a temporary one)')
    args = parser.parse_args(argv)
    out = pathlib.Path(args.out or tempfile.mkdtemp(prefix='t3d-soak-')).absolute()
    out.mkdir(parents=True, exist_ok=True)
    began, figures, wrong = time.monotonic(), {}, []
    os.environ.pop(WITNESSED, None)
    os.environ.update(witness(args))
    soak = Soak(args, out)
    try:
        check(soak, figures, wrong)
    except (Failed, UsageError) as failure:
        wrong.append(str(failure))
    words = {'config': args.config, 'set': args.set, 'steps': args.steps} | soak.counts
    print(json.dumps(words | figures | {'wrong': wrong, 'seconds': round(time.monotonic() - began)}))
    if wrong:
        print(f'failed: {"; ".join(wrong)} (the runs are in {out})', file=sys.stderr)
        return 1
    if not args.out:
        shutil.rmtree(out)
    return 0


if __name__ == '__main__':
    sys.exit(main())
