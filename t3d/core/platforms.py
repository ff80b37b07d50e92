"""The platform that programs are traced for: JAX's own, or the one they are compiled for ahead of time on another machine."""

import contextlib
import contextvars

import jax

_planned = contextvars.ContextVar('planned', default=None)


def name() -> str:
    """'cpu', 'gpu' or 'tpu': what model code asks that has a formulation for each."""
    return _planned.get() or jax.default_backend()


@contextlib.contextmanager
def planned(platform: str):
    """Inside, programs are traced for `platform`, which this machine need not have."""
    token = _planned.set(platform)
    try:
        yield
    finally:
        _planned.reset(token)
