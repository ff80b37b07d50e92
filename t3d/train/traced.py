"""Traced functions kept on disk, beside the compilation cache.

Compiled programs outlive a process in JAX's cache, but to look one up there Python traces the function again: seconds for a
train step, most of the start of a run that has been compiled before. Here the traced function is kept too, as `jax.export`
writes it: StableHLO, data for XLA and nothing that Python executes. A file is found by a digest of what a trace of t3d's own
code depends on (see `digest`). So it is for functions that t3d makes from a config alone; anybody else's may close over what
no digest sees. The folder is to be trusted as far as JAX's own cache is, which holds machine code.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import pathlib
import platform
import tempfile

import flax
import jax

import t3d
from t3d.core import config as configs
from t3d.core import environment, files
from t3d.core import tree as trees
from t3d.systems import SYSTEMS

MANY = 256  # files in a folder that are looked at one by one
KEEP = 64  # files in a folder; those unused for longest go
TRACE_PACKAGES = (
    'opt_einsum',
    'ml_dtypes',
    'transformers',
    'tokenizers',
)  # packages that a trace may depend on, beside environment's
DEBUGGING = ('jax_disable_jit', 'jax_debug_nans', 'jax_debug_infs')  # these want the lines of the code
# JAX promises nothing of these in other versions than the one that wrote them; the digest holds the version.
CUDNN = ('__cudnn$fmhaSoftmax', '__cudnn$fmhaSoftmaxBackward')

log = logging.getLogger('t3d')


class Keep:
    """Where traced functions of a config are kept; without a folder nothing is."""

    def __init__(self, folder=None, config=None, given=None):
        """folder: made when needed. config: a resolved config. given: digests of the models that the system uses, by name."""
        self._folder = None if folder is None else pathlib.Path(folder)
        self._config = {
            **({} if config is None else configs.flatten(config)),
            **{f'given/{k}': v for k, v in (given or {}).items()},
        }

    def __call__(self, name: str, function, *arguments):
        """`function`, or what it was traced to before for such arguments: to be called within a jit, under the same mesh.

        Args:
          name: of the function, for the file.
          function: of pytrees made of tuples, lists and dictionaries; returns such.
          arguments: trees of ShapeDtypeStructs, with shardings where there are any.
        """
        if self._folder is None or jax.process_count() > 1 or any(getattr(jax.config, name) for name in DEBUGGING):
            return function
        key = digest(self._config, arguments)
        if key is None:
            return function
        path = self._folder / f'{name}-{key}.jaxexport'
        exported = _read(path)
        if exported is None:
            from jax import export

            try:
                checks = [export.DisabledSafetyCheck.custom_call(target) for target in CUDNN]
                exported = export.export(jax.jit(function), disabled_checks=checks)(*arguments)
                _write(path, exported.serialize())
            except Exception as error:  # a host callback, say; or a fault of the function, which its plain trace will raise
                log.warning('%s is traced at every start: %s', name, str(error).partition('\n')[0][:200])
                return function
        return exported.call


NOTHING = Keep()


def folder(config, given=None) -> pathlib.Path | None:
    """Beside JAX's compilation cache; None where there is none, and for systems whose code is not t3d's.

    Args:
      config: of a run.
      given: {name: core.system.Given}, the models that its system uses.
    """
    used = [config, *(one.config for one in (given or {}).values() if one.config is not None)]
    if not all(SYSTEMS.get(one.get('system'), '').startswith('t3d.') for one in used):  # no digest sees a change of it
        return None
    cache = jax.config.jax_compilation_cache_dir
    return pathlib.Path(cache) / 'traced' if cache and '://' not in cache and jax.config.jax_enable_compilation_cache else None


def digest(config: dict, arguments) -> str | None:
    """Hex digest of what a trace of a function of t3d depends on; None where that is not known.

    The source files of the package, the versions of Python and of packages, the settings of JAX and Flax, devices and mesh,
    the flat config and the state (names, sizes, times) of files and folders that it names, shapes and shardings of arguments.
    """
    if (of_code := code()) is None:
        return None
    shapes = {
        name: f'{leaf.shape} {leaf.dtype} {getattr(leaf, "sharding", None)}' for name, leaf in trees.flatten(arguments).items()
    }
    devices = jax.devices()
    settings = {name: str(getattr(jax.config, name, value)) for name, value in jax.config.values.items()}
    settings.pop('jax_compilation_cache_dir', None)
    parts = {
        'code': of_code,
        'versions': [platform.python_version(), environment.versions((*environment.PACKAGES, *TRACE_PACKAGES))],
        'settings': [settings, str(vars(flax.config).get('_values')), os.environ.get('T3D_TYPECHECK', '')],
        'devices': [devices[0].platform, devices[0].device_kind, len(devices), devices[0].client.platform_version],
        'mesh': str(jax.sharding.get_abstract_mesh()),
        'config': config,
        'files': {name: state for name, value in config.items() if (state := _state(value))},
        'arguments': shapes,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


@functools.cache
def code() -> str | None:
    """Hex digest of the package's source files; None if one has changed since the package was imported."""
    root, hasher = pathlib.Path(t3d.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob('*.py')):
        if path.stat().st_mtime > t3d.IMPORTED - 1.0:  # clocks of file systems are coarse
            return None
        data = path.read_bytes()
        hasher.update(f'{path.relative_to(root)} {len(data)}\n'.encode() + data)
    return hasher.hexdigest()


def _state(value) -> list:
    """Name, size and time of the file that a value of a config names, or of the files in a folder; [] if it names none."""
    if not isinstance(value, str) or not value:
        return []
    try:
        path = files.local(value)
        named = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
        named = named if len(named) <= MANY else [path]  # a set of pictures, not a tokenizer
        return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in named]
    except (OSError, ValueError):
        return []


def _read(path: pathlib.Path):
    """The Exported in a file; None if there is none that is whole."""
    from jax import export

    try:
        data = path.read_bytes()
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            return None
        exported = export.deserialize(bytearray(data[32:]))
    except Exception:  # no file, or what this JAX cannot read: traced anew, and written over
        return None
    with contextlib.suppress(OSError):  # the folder of somebody else
        os.utime(path)
    return exported


def _write(path: pathlib.Path, data) -> None:
    """Writes a file as a whole, behind its digest, and deletes those unused for longest. Errors of the system pass silently."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp('.part', dir=path.parent)
        try:
            with os.fdopen(handle, 'wb') as file:
                file.write(hashlib.sha256(data).digest() + bytes(data))
            os.replace(part, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
        others = sorted(path.parent.glob('*.jaxexport'), key=lambda other: other.stat().st_mtime)
        for other in others[:-KEEP]:
            other.unlink(missing_ok=True)
