"""`t3d doctor`: versions, devices, memory, optional parts and weights found."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil

from t3d import __version__
from t3d.core import errors

EXTRAS = {
    'embreex': ('data', 'building the furniture data set'),
    'viser': ('view', 't3d view'),
    'torch': ('test', 'parity tests and the renderer peer of t3d bench'),
    'diffusers': ('test', 'parity tests'),
}
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'tensorflow-datasets', 'numpy', 'trimesh', 'xatlas')
SUPPORTED = {'jax': ('0.10.2', '0.11.3'), 'flax': ('0.12.8', '0.13')}  # tested from the first, below the second


def report() -> str:
    """The lines to send with a bug report."""
    lines = [f't3d {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}']
    lines += [f'  {name} {_version(name) or "MISSING: pip install t3d"}{_warning(name)}' for name in PACKAGES]
    lines += ['', *_try('devices', _devices), '', 'optional parts:']
    for module, (extra, use) in EXTRAS.items():
        installed = importlib.util.find_spec(module) is not None
        lines.append(f'  {module}: ' + ('found' if installed else f'missing; for {use}: pip install "t3d[{extra}]"'))
    ffmpeg = importlib.util.find_spec('imageio_ffmpeg') is not None
    lines.append(f'  ffmpeg: {"found" if ffmpeg else "missing, no mp4: pip install imageio-ffmpeg"}')
    return '\n'.join([*lines, '', *_try('weights', _weights), *_try('data sets', _data)])


def _try(name: str, part) -> list[str]:
    """The lines of a part, or why there are none: a broken installation is what the report is for."""
    try:
        return part()
    except Exception as error:
        return [f'{name}: FAILED, {type(error).__name__}: {str(error) or errors.line(error)}']


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _warning(name: str) -> str:
    if name not in SUPPORTED or not _version(name):
        return ''

    def numbers(text):
        return tuple(int(part) for part in text.split('.')[:3] if part.isdigit())

    low, high = SUPPORTED[name]
    inside = numbers(low) <= numbers(_version(name)) < numbers(high)
    return '' if inside else f'  (outside the tested range: at least {low}, below {high})'


def _devices() -> list[str]:
    import jax

    from t3d.parallel import devices

    devices.compilation_cache()
    visible = jax.devices()
    lines = [f'backend: {jax.default_backend()}, {len(visible)} devices of kind {visible[0].device_kind}']
    memory = devices.memory()
    lines.append(f'device memory: {memory}' if memory else f'processor cores: {os.cpu_count()}')
    free = shutil.disk_usage('.').free / 2**30
    lines.append(f'free disk here: {free:.0f} GiB; compilation cache: {jax.config.jax_compilation_cache_dir}')
    return lines


def _weights() -> list[str]:
    from t3d.inference import loading

    lines = [f'  {name}: {folder}' for name, folder in loading.shipped().items()]
    chosen = os.environ.get('T3D_WEIGHTS')
    if chosen:
        state = 'found' if os.path.exists(os.path.join(chosen, 'model.safetensors')) else 'no model.safetensors there'
        lines.append(f'  T3D_WEIGHTS={chosen}: {state}')
    return ['weights:', *(lines or ['  none'])]


def _data() -> list[str]:
    from t3d.data import sources

    folder = sources.default_folder()
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [f'data sets in {folder}: {", ".join(names) or "none"}']
