"""What a result depends on beside its config: versions, commit, devices."""

import importlib.metadata
import pathlib
import platform
import subprocess

import jax

import t3d

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'grain')


def environment() -> dict:
    """Versions, commit and devices of this process, JSON-ready."""
    return {
        't3d': t3d.__version__,
        'python': platform.python_version(),
        'platform': platform.platform(terse=True),
        'packages': versions(),
        'commit': commit(),
        'devices': [f'{device.device_kind} {device.id}' for device in jax.devices()],
        'processes': jax.process_count(),
    }


def versions(names=PACKAGES) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def summary() -> dict[str, str]:
    """The same in a few words, for a page that people read."""
    found = environment()
    kinds = [device.device_kind for device in jax.devices()]
    return {
        't3d': found['t3d'],
        'jax': jax.__version__,
        'python': found['python'],
        'system': found['platform'],
        'devices': f'{len(kinds)} x {kinds[0]}',
        **({'commit': found['commit']} if found['commit'] else {}),
    }


def commit() -> str | None:
    """The commit of the checkout, with '+' if files differ; None outside one."""

    def git(*args):
        return subprocess.run(
            ['git', '--no-optional-locks', '-C', str(CHECKOUT), *args], capture_output=True, text=True, timeout=10
        )

    if not (CHECKOUT / '.git').exists():  # installed: a repository further up is another one
        return None
    try:
        head = git('rev-parse', 'HEAD')
        dirty = git('status', '--porcelain', '--untracked-files=no')
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ('+' if dirty.stdout.strip() else '') if head.returncode == 0 else None
