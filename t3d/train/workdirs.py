"""Run folders: numbered or given, with the config, the command and the environment beside the results."""

import json
import pathlib
import re
import shlex
import sys

import jax
from etils import epath
from jax.experimental import multihost_utils

from t3d.core import config as configs
from t3d.core import environment
from t3d.core.errors import UsageError

FREE = ('steps', 'log_every', 'preview_every', 'checkpoint', 'mesh', 'fsdp_floor', 'loader', 'export', 'sample')  # on resume


def prepare(workdir, config):
    """The run folder, made or accepted, with config.json, command.txt and environment.json in it."""
    path = number(config) if workdir is None else epath.Path(workdir)
    check(path, config)
    if jax.process_count() > 1:  # all have read before one writes
        multihost_utils.sync_global_devices('workdir')
    if jax.process_index() == 0:
        path.mkdir(parents=True, exist_ok=True)
        _write(path / 'config.json', configs.to_json(config))
        command = shlex.join([pathlib.Path(sys.executable).name, *sys.orig_argv[1:]]) + '\n'
        before = (path / 'command.txt').read_text() if (path / 'command.txt').exists() else ''
        _write(path / 'command.txt', before + command)  # one line for each start
        if not (path / 'environment.json').exists():  # of the start that made the folder
            _write(path / 'environment.json', json.dumps(environment.environment(), indent=2) + '\n')
    return path


def _write(path, text: str) -> None:
    """Whole or not at all, whenever the process is killed."""
    part = path.parent / f'{path.name}.part'
    part.write_text(text)
    part.replace(path)


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
        others = [child.name for child in path.iterdir() if child.suffix != '.part'] if path.exists() else []
        if others:
            raise UsageError(
                f'workdir {path} holds {", ".join(sorted(others)[:5])} but no config.json: it is no run. Choose another.'
            )
        return
    changed = {
        key: pair
        for key, pair in configs.differences(configs.from_json(stored.read_text()), config).items()
        if key.split('.')[0] not in FREE
    }
    if changed:
        lines = '\n'.join(f'  {key}: {old!r} there, {new!r} given' for key, (old, new) in list(changed.items())[:10])
        more = f'\n  and {len(changed) - 10} more' if len(changed) > 10 else ''
        raise UsageError(
            f'workdir {path} is of another config:\n{lines}{more}\nChoose another --workdir, or give the same values to resume.'
        )
