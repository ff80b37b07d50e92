"""t3d: text-to-3D in JAX. Importing the package loads nothing heavy; import the modules you use."""

import time

__version__ = '0.1.0'
IMPORTED = time.time()  # source files changed after this may differ from the code that runs


def __getattr__(name: str):
    """`t3d.load` is imported when it is asked for: the package alone stays light."""
    if name == 'load':
        from t3d.python import load

        return load
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
