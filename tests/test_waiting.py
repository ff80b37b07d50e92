"""Lines while a long call goes on: they come, end with it, and are said where views become an object."""

import threading

import jax.numpy as jnp
import pytest

from t3d.core import waiting
from t3d.core.outputs import Views
from t3d.inference import publish


def running(name):
    return any(thread.name == name for thread in threading.enumerate())


def test_lines_come_while_a_block_runs_and_none_after_it():
    lines, some = [], threading.Event()

    def log(line):
        lines.append(line)
        if len(lines) >= 3:
            some.set()

    with waiting.telling(log, 'a long part', every=0.001):
        assert some.wait(60.0)
    assert lines[0] == 'a long part: 0 s so far' and not running('a long part')


def test_an_error_passes_and_the_lines_end():
    with pytest.raises(KeyError), waiting.telling(lambda line: None, 'a part that fails', every=0.001):
        raise KeyError
    assert not running('a part that fails')


def test_a_short_block_says_nothing():
    lines = []
    with waiting.telling(lines.append, 'short'):
        pass
    assert lines == []


def test_lifting_tells_that_it_goes_on(monkeypatch):
    """A lift that lasts until it was told of once."""
    lines, told = [], threading.Event()

    def log(line):
        lines.append(line)
        if 'so far' in line:
            told.set()

    class Lifting:
        class system:
            check = staticmethod(lambda requests: None)

        def generate(requests, keys):
            assert told.wait(60.0)
            return [jnp.zeros(())]

    class Loaded:
        config = {'export': {'lift': 'a config'}}

    monkeypatch.setattr(publish, '_lifting', lambda spec: Lifting)
    real = waiting.telling
    monkeypatch.setattr(waiting, 'telling', lambda log, what: real(log, what, every=0.001))
    views = Views('a cube', *(jnp.zeros(()),) * 3)._replace(images=jnp.zeros((4, 8, 8, 3)))
    _, kept = publish.lifted(Loaded, None, views, 0, log)
    assert kept is views and lines[0].startswith('lift: 4 views to an object') and lines[1] == 'lift: 0 s so far'
