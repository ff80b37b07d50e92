"""Eight virtual CPU devices, checked shapes, exact products, and a compilation cache shared by the test processes."""

import gc
import os
import pathlib
import threading

import jaxlib

os.environ['T3D_TYPECHECK'] = '1'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
# Small programs are compiled once and run briefly: machine code that takes least to make, a third of the time of the default.
QUICK = ['--xla_backend_optimization_level=0']
if jaxlib.__version__.startswith('0.10.'):  # later ones do not know the first of these, and stop
    QUICK += ['--xla_cpu_use_fusion_emitters=false', '--xla_cpu_parallel_codegen_split_count=1']
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *QUICK]).strip()

import jax  # noqa: E402
import jax._src.interpreters.mlir as mlir  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from slow_tests import LONG, SLOW  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_default_matmul_precision', 'highest')
CACHE = pathlib.Path(__file__).parent.parent / '.jax_cache'
jax.config.update('jax_compilation_cache_dir', str(CACHE))
# Single operations, of which there are thousands, are kept where tests run again: keeping one takes a third of compiling it.
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0 if CACHE.exists() else 0.3)
jax.config.update('jax_traceback_in_locations_limit', 0)

gc.set_threshold(100_000, 50, 50)  # as in a run: a third of the time of tracing

# A context of MLIR takes longer to make than a small program to lower: one for each thread, until the end of the file.
CONTEXTS = {}


def one_context(make):
    def context():
        thread = threading.get_ident()
        if thread not in CONTEXTS:
            CONTEXTS[thread] = make()
        return CONTEXTS[thread]

    return context


if hasattr(mlir, 'make_ir_context'):
    mlir.make_ir_context = one_context(mlir.make_ir_context)

GOLDEN = pathlib.Path(__file__).parent / 'golden'


@pytest.fixture
def golden():
    """Loads a stored reference array file by name."""

    def load(name: str):
        return dict(np.load(GOLDEN / f'{name}.npz'))

    return load


@pytest.fixture(autouse=True, scope='session')
def shared_folder(tmp_path_factory):
    """`T3D_TESTS_SHARED`: a folder of all processes of this pytest, for what is made once (small_run.py)."""
    base = tmp_path_factory.getbasetemp()
    os.environ['T3D_TESTS_SHARED'] = str(base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base)


@pytest.fixture(autouse=True)
def one_compilation_cache(monkeypatch):
    """Commands that run within a test keep to the suite's cache, not the user's."""
    from t3d.parallel import devices

    monkeypatch.setattr(devices, 'compilation_cache', lambda: None)


@pytest.fixture(autouse=True, scope='module')
def bounded_memory():
    """Compiled programs are let go between files once this process holds more than 3 GiB; the compilation cache keeps them."""
    yield
    CONTEXTS.clear()
    statistics = pathlib.Path('/proc/self/statm')
    if statistics.exists() and int(statistics.read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') > 3 << 30:
        jax.clear_caches()
        gc.unfreeze()
        gc.collect()
    gc.freeze()  # what a file leaves is looked through no more: each pass over it took a third of a second


def pytest_collection_finish():
    """What the files of tests import stays: the collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks the tests of slow_tests.py, whole or one of their parameters; long files first, so that none is left for last."""
    order = {path: (path.name in LONG, path.stat().st_size, path) for path in {item.path for item in items}}
    items.sort(key=lambda item: order[item.path], reverse=True)
    for item in items:
        names = SLOW.get(item.path.name, ())
        if item.name in names or item.name.partition('[')[0] in names:
            item.add_marker(pytest.mark.slow)
