"""Traced functions kept on disk, beside the compilation cache.

Compiled programs outlive a process in JAX's cache, but to look one up there Python traces the function again: seconds for a
train step, most of the start of a run that has been compiled before. Here the traced function is kept too, as `jax.export`
writes it: StableHLO, data for XLA and nothing that Python executes. A file is found by a digest of all that a trace depends
on: the code of t3d, the config, the arguments, the mesh, the versions and the settings of JAX. So it is for functions that
t3d makes from a config alone; anybody else's may close over what no digest sees.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import platform

import jax

from t3d.core import config as configs
from t3d.core import environment
from t3d.core import tree as trees

CACHE = 'jax_compilation_cache_dir'
KEEP = 64  # files in a folder; those unused for longest go


class Keep:
    """Where traced functions of a config are kept; without a folder nothing is."""

    def __init__(self, folder=None, config=None):
        """folder: made when needed. config: a resolved config."""
        self._folder = None if folder is None else pathlib.Path(folder)
        self._config = None if config is None else configs.flatten(config)

    def __call__(self, name: str, function, *arguments):
        """`function`, or what it was traced to before for such arguments: to be called within a jit, under the same mesh.

        Args:
          name: of the function, for the file.
          function: of pytrees made of tuples, lists and dictionaries; returns such.
          arguments: trees of ShapeDtypeStructs, with shardings where there are any.
        """
        if self._folder is None or jax.process_count() > 1:
            return function
        from jax import export

        path = self._folder / f'{name}-{digest(self._config, arguments)}.jaxexport'
        found = _read(path)
        if found is None:
            try:
                found = export.export(jax.jit(function))(*arguments)
                _write(path, found.serialize())
            except Exception:  # what cannot be exported (a host callback), or a fault that the plain trace tells better
                return function
        return found.call


NOTHING = Keep()


def folder() -> pathlib.Path | None:
    """Beside JAX's compilation cache; None where there is none."""
    cache = getattr(jax.config, CACHE)
    return pathlib.Path(cache) / 'traced' if cache and '://' not in cache else None


def digest(config, arguments) -> str:
    """Hex digest of all that a trace of a function of t3d depends on."""
    shapes = {
        name: f'{leaf.shape} {leaf.dtype} {getattr(leaf, "sharding", None)}' for name, leaf in trees.flatten(arguments).items()
    }
    devices = jax.devices()
    parts = {
        'code': code(),
        'python': platform.python_version(),
        'versions': environment.versions(),
        'jax': {name: str(getattr(jax.config, name, value)) for name, value in jax.config.values.items() if name != CACHE},
        'devices': [devices[0].platform, devices[0].device_kind, len(devices)],
        'mesh': str(jax.sharding.get_abstract_mesh()),
        'typecheck': os.environ.get('T3D_TYPECHECK', ''),
        'config': config,
        'arguments': shapes,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


@functools.cache
def code() -> str:
    """Hex digest of the package's source files."""
    import t3d

    root, found = pathlib.Path(t3d.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob('*.py')):
        found.update(f'{path.relative_to(root)} {path.stat().st_size}\n'.encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def _read(path: pathlib.Path):
    """The Exported in a file; None if there is none that can be read."""
    from jax import export

    try:
        found = export.deserialize(bytearray(path.read_bytes()))
        os.utime(path)
    except FileNotFoundError:
        return None
    except Exception:  # half a file, or another version's: traced anew, and written over
        return None
    return found


def _write(path: pathlib.Path, data) -> None:
    """Writes a file as a whole, and deletes those that were unused for longest. A disk that is full costs nothing but time."""
    part = path.with_suffix(f'.{os.getpid()}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
        others = sorted(path.parent.glob('*.jaxexport'), key=lambda other: other.stat().st_mtime)
        for other in others[:-KEEP]:
            other.unlink(missing_ok=True)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
