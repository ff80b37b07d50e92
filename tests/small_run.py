"""A run of two steps that the tests of commands read: a small decoder with a ball in the middle, so that it has a mesh."""

import atexit
import fcntl
import functools
import os
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
    'decoder.channels=(8,8)',
    'decoder.heads=(2,0)',
    'decoder.groups=(4,4)',
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
    """The run folder; made once for all test processes, and copied for each. Tests add files to it, and change none."""
    parent = pathlib.Path(tempfile.mkdtemp(prefix='t3d-small-'))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    shared = pathlib.Path(os.environ.get('T3D_TESTS_SHARED', parent))  # set by conftest.py
    with open(shared / 'small.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / 'made' / 'small').exists():
            loop.run(config(), shared / 'making' / 'small', log=lambda line: None)
            (shared / 'making').rename(shared / 'made')
    return pathlib.Path(shutil.copytree(shared / 'made' / 'small', parent / 'small'))


@functools.cache
def loaded() -> loading.Loaded:
    return loading.load(folder())
