"""What a result depends on beside its config: versions, commit, devices."""

import difflib
import importlib.metadata
import pathlib
import platform
import subprocess

import jax

import t3d

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
BACKENDS = ('jax-cuda13-plugin', 'jax-cuda12-plugin', 'jax-rocm7-plugin', 'jax-rocm60-plugin', 'libtpu')  # beside the CPU's
CUDA = 'Give it a GPU that nvidia-smi shows and `pip install "t3d[cuda]"`'
INSTALL = {  # platform -> what lets JAX use it
    'cpu': '',
    'cuda': CUDA,
    'gpu': CUDA,
    'rocm': "Install the plugin that JAX's installation page names for AMD",
    'tpu': 'On a TPU host `pip install "t3d[tpu]"`',
}
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'grain')


def environment(*written) -> dict:
    """Versions, commit and devices of this process, JSON-ready; `written` as of `commit`."""
    return {
        't3d': t3d.__version__,
        'python': platform.python_version(),
        'platform': platform.platform(terse=True),
        'packages': versions(),
        'commit': commit(*written),
        'devices': [f'{device.device_kind} {device.id}' for device in jax.devices()],
        'processes': jax.process_count(),
    }


def versions(names=PACKAGES) -> dict[str, str]:
    """Versions of those packages that are installed."""
    installed = {}
    for name in names:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def unavailable() -> str | None:
    """Why JAX finds none of the platforms that it is told to use; None where it finds one."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # an empty AssertionError for cuda where there is no GPU
        return str(error).partition('\n')[0].partition(" (set JAX_PLATFORMS=''")[0].rstrip('.') or 'there is no such device'
    return None


def platform_refused(asked: str, reason: str) -> str:
    """The sentence for JAX_PLATFORMS=`asked` where JAX finds none of these: what is installed, and what to do."""
    packages = [f'{name} {version}' for name, version in versions(('jax', *BACKENDS)).items()]
    installed = ', '.join(packages) + ('' if len(packages) > 1 else ', for the CPU alone')
    first = asked.split(',')[0].strip().lower()
    near = difflib.get_close_matches(first, INSTALL, 1)
    hint = f'Did you mean {near[0]!r}? ' if first not in INSTALL and near else ''
    first = near[0] if near else first
    get = f'{INSTALL[first]}, or ' if INSTALL.get(first) else '' if first in INSTALL else f'Known are {", ".join(INSTALL)}: '
    return (
        f'JAX_PLATFORMS={asked}: JAX cannot use it here ({reason}; installed: {installed}). {hint}{get}unset JAX_PLATFORMS '
        'to take what there is.'
    )


def summary() -> dict[str, str]:
    """The same in a few words, for a page that people read."""
    facts = environment()
    kinds = [device.device_kind for device in jax.devices()]
    return {
        't3d': facts['t3d'],
        'jax': jax.__version__,
        'python': facts['python'],
        'system': facts['platform'],
        'devices': f'{len(kinds)} x {kinds[0]}',
        **({'commit': facts['commit']} if facts['commit'] else {}),
    }


def commit(*written) -> str | None:
    """The commit of the checkout, with '+' if files differ other than those `written` by what asks; None outside one."""

    def git(*args):
        return subprocess.run(
            ['git', '--no-optional-locks', '-C', str(CHECKOUT), *args], capture_output=True, text=True, timeout=10
        )

    if not (CHECKOUT / '.git').exists():  # installed: a repository further up is another one
        return None
    own = [pathlib.Path(path).resolve() for path in written]
    inside = [path.relative_to(CHECKOUT) for path in own if path.is_relative_to(CHECKOUT)]
    try:
        head = git('rev-parse', 'HEAD')
        others = ['.', *(f':(exclude,literal){path}' for path in inside)]
        dirty = git('status', '--porcelain', '--untracked-files=no', '--', *others)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ('+' if dirty.stdout.strip() else '') if head.returncode == 0 else None
