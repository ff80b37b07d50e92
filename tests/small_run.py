"""A run of two steps that the tests of commands read: a small decoder with a ball in the middle, so that it has a mesh."""

import atexit
import functools
import pathlib
import shutil
import tempfile

from test_instant3d import SMALL

from t3d.core import config as configs
from t3d.data import sources
from t3d.inference import loading
from t3d.train import loop

CONFIG = 'configs/instant3d.py:tiny'
OVERRIDES = (
    *SMALL,
    'steps=2',
    'mesh.data=1',
    'text.length=12',
    'field.blob=10.0',
    'field.density_bias=-1.0',
    'preview.rows=2',
    'preview.views=1',
    'export.prompts=("a red cube",)',
    'export.texture=64',
    'export.faces=500',
    'export.grid=24',
    'export.frames=2',
    'export.size=64',
    'export.render_size=32',
)


def config(*overrides):
    """The run's config with further changes."""
    return sources.resolve(configs.load(CONFIG, [*OVERRIDES, *overrides]))


@functools.cache
def folder() -> pathlib.Path:
    """The run folder; made once in a process. Tests add files to it, and change none."""
    parent = pathlib.Path(tempfile.mkdtemp(prefix='t3d-small-'))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    return pathlib.Path(loop.run(config(), parent / 'small', log=lambda line: None))


@functools.cache
def loaded() -> loading.Loaded:
    return loading.load(folder())
