"""Run folders: numbered or given, held by one training at a time, with config, command and environment beside the results."""

import json
import pathlib
import re
import shlex
import sys
import time

import jax
import numpy as np
from etils import epath

from t3d.checkpoint import around_orbax, run_configs, tiers
from t3d.core import config as configs
from t3d.core import environment, errors, files
from t3d.core.errors import UsageError
from t3d.parallel import agreement
from t3d.train import locks
from t3d.train import log as logs

SHARED = 75.0  # seconds in which all processes have to see what process 0 wrote; file systems may hold 60 back


def prepare(workdir, config, line=print):
    """(the run folder, made or accepted, with config.json, command.txt and environment.json in it; its `locks.Lock`, held)."""
    path = _numbered(config) if workdir is None else files.path(workdir)
    around_orbax.literal(path)  # refuses names that cannot hold checkpoints
    agreement.on_every_process(lambda: check(path, config))  # process 0 writes only after all have read
    lock = locks.Lock(path, line)
    _on_process_0(lambda: _fill(path, config, lock))
    try:
        refuse_unshared(path, lock.token)
    except BaseException:
        if jax.process_index() == 0:
            lock.release()
        raise
    return path, lock


def refuse_unshared(path, token: str, seconds: float | None = None) -> None:
    """Raises, in every process alike, unless each sees the lock that process 0 has written into the run folder.

    Args:
      token: 32 hexadecimal digits, of the lock of this process; that of process 0 counts.
      seconds: that a file system may take to show a new file to another host; None: SHARED.
    """
    if jax.process_count() == 1:
        return
    seconds = SHARED if seconds is None else seconds
    words = [int(token[k : k + 8], 16) - 2**31 for k in range(0, 32, 8)]  # as int32
    first = agreement.gathered(words)[0]
    wanted = ''.join(f'{int(word) + 2**31:08x}' for word in first)
    end = time.monotonic() + seconds
    while not (seen := locks.token_in(path) == wanted) and time.monotonic() < end:
        time.sleep(0.2)
    blind = np.flatnonzero(agreement.gathered([seen])[:, 0] == 0).tolist()
    if blind:
        who = f'{agreement.named(blind)} of {jax.process_count()}'
        raise UsageError(
            f'workdir {path} is not one folder for all processes: {who} did not see in {seconds:.0f} s the {locks.NAME} that '
            'process 0 wrote there. Give the same folder of a file system that all hosts share, or gs://BUCKET/FOLDER.'
        )


def _fill(path, config, lock: locks.Lock) -> None:
    path.mkdir(parents=True, exist_ok=True)
    lock.take()
    try:
        files.write(path / 'config.json', configs.to_json(config))
        if config.get('checkpoint', {}).get('local'):
            tiers.make_token(path)
        command = shlex.join([pathlib.Path(sys.executable).name, *sys.orig_argv[1:]]) + '\n'
        before = (path / 'command.txt').read_bytes() if (path / 'command.txt').exists() else b''
        files.write(path / 'command.txt', before + command.encode('utf-8', 'surrogateescape'))  # one line for each start
        if not (path / 'environment.json').exists():  # of the start that made the folder
            files.write(path / 'environment.json', json.dumps(environment.environment(), indent=2) + '\n')
    except BaseException:
        lock.release()
        raise


def _on_process_0(action) -> None:
    """Runs the action on process 0 alone; if it fails there, every process raises what process 0 met."""
    error = None
    if jax.process_index() == 0:
        try:
            action()
        except (UsageError, OSError) as caught:
            error = caught
    if jax.process_count() > 1:
        met = '' if error is None else errors.line(error) or type(error).__name__
        said = agreement.told(met)  # process 0 may watch the lock of another host for a minute
        if said and error is None:
            raise UsageError(said)
    if error is not None:
        raise error


def _numbered(config):
    """A new folder of the next number, of which others that start now take another."""
    while True:
        path = number(config)
        around_orbax.literal(path)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path


def number(config, root='runs'):
    """runs/0007-<system>-<name>: one more than the highest number there."""
    if jax.process_count() > 1:
        raise UsageError('with many processes the run folder must be given: add --workdir DIR (shared by all processes).')
    root = epath.Path(root)
    runs = [re.match(r'(\d{4,})-', path.name) for path in root.iterdir()] if root.exists() else []
    used = [int(match.group(1)) for match in runs if match]
    name = config.get('name') or config.get('variant') or 'run'
    text = re.sub(r'[^A-Za-z0-9.]+', '_', f'{name}').strip('_')[:48]
    return root / f'{max(used, default=0) + 1:04d}-{config.system or "system"}-{text}'


def check(path, config) -> None:
    """Raises if a folder is in use by another config."""
    stored = path / 'config.json'
    if not stored.exists():
        others = (
            [child.name for child in path.iterdir() if child.suffix != '.part' and not child.name.startswith(locks.NAME)]
            if path.exists()
            else []
        )
        if others:
            raise UsageError(
                f'workdir {path} holds {", ".join(sorted(others)[:5])} but no config.json: it is no run. Choose another.'
            )
        return
    old = run_configs.read(path)
    refuse_lost_checkpoints(path, old)
    changed = run_configs.changed(old, config)
    if changed:
        lines = '\n'.join(f'  {key}: {old!r} there, {new!r} given' for key, (old, new) in list(changed.items())[:10])
        more = f'\n  and {len(changed) - 10} more' if len(changed) > 10 else ''
        raise UsageError(
            f'workdir {path} is of another config:\n{lines}{more}\nChoose another --workdir, or give the same values to resume.'
        )


def refuse_lost_checkpoints(path, config) -> None:
    """Raises UsageError where a run is past its first checkpoint and has none: from step 0 it would write over its results."""
    metrics, saved = path / 'metrics.jsonl', path / 'checkpoints'
    children = list(saved.iterdir()) if saved.is_dir() else []
    unfinished = [child for child in children if child.name.endswith(around_orbax.UNFINISHED)]  # killed in its first save
    complete = [child for child in children if child.name.isdigit() and around_orbax.is_checkpoint(child)]
    if unfinished or complete or not metrics.exists():
        return
    steps = [logs.step_of(line) for line in metrics.read_bytes().decode('utf-8', 'replace').splitlines()]
    last = max((step for step in steps if isinstance(step, int)), default=0)
    every = config.get('checkpoint', {}).get('every', 0) or config.get('steps', 0)
    if 0 < min(every, config.get('steps', every)) <= last:
        raise UsageError(
            f'workdir {path} is at step {last} by its metrics.jsonl, but {saved} holds no checkpoint: were they moved or '
            f'deleted? Put them back, train anew in another --workdir, or delete {files.quoted(metrics)} to start here at '
            'step 0.'
        )
