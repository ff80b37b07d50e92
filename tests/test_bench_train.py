"""`t3d bench train` of steps of several kinds, and of what runs once in N steps: what is timed is what is counted."""

import importlib
import itertools

import jax
import pytest

from t3d.bench import train as train_bench
from t3d.core import config as configs

OWN = """
import dummy_system
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from t3d.core import cadence

ran = []


def get_config():
    return ConfigDict(dummy_system.config(system='two_kinds')).lock()


def make(config, given):
    plain = dummy_system.make(config.batch)

    def kind(name, products):
        def train_step(state, batch, key, given=None):
            jax.debug.callback(lambda: ran.append(name))
            state, metrics = plain.train_step(state, batch, key, given)
            def work(x):
                for _ in range(products):
                    x = jnp.tanh(x @ jnp.ones((8, 8)))
                return jnp.sum(x)
            lazily = cadence.once_in(3, state.step, work, lambda x: 0.0, batch['x']) if products == 3 else work(batch['x'])
            return state, {**metrics, 'more': lazily}
        return train_step

    return plain._replace(train_step=kind('views', 3), other_steps=(kind('flat', 100),), choose=lambda step: 1)
"""
PLAIN = 2 * 16 * 32 * (8 + 3) * 3 - 2 * 16 * 32 * 8  # two layers forward and backward, no gradient of the batch
PRODUCT = 2 * 16 * 8 * 8


def rows(system):
    return train_bench.made_up(system.batch_spec)


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
    """(figures, the kinds that ran in their order): a config whose `choose` picks the other step at every number."""
    folder = tmp_path_factory.mktemp('bench')
    (folder / 'two_kinds.py').write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setattr(train_bench, 'batches', lambda config, system: (itertools.repeat(rows(system)), ''))
        config = configs.load('two_kinds.py')
        figures = train_bench.measured(config, repeats=2, steps=2)
        jax.effects_barrier()
        return figures, list(importlib.import_module('two_kinds').ran)


def test_each_kind_of_step_is_timed_by_itself_in_whole_cycles(measured):
    figures, ran = measured
    assert ran == ['views'] * (1 + 3 * 3) + ['flat'] * 3 * 2  # the first step; 2 + 1 repeats, the first of 3 steps for 2
    assert figures['steps in a repeat'] == 3 and figures['other steps']['train_step_1']['steps in a repeat'] == 2
    assert len(figures['row']['turns_ms']) == len(figures['other steps']['train_step_1']['row']['turns_ms']) == 2


def test_flops_are_those_of_the_step_that_is_timed(measured):
    figures, _ = measured
    other = figures['other steps']['train_step_1']
    assert (
        figures['row']['gflop'] == (PLAIN + 3 * PRODUCT // 3) / 1e9 and other['row']['gflop'] == (PLAIN + 100 * PRODUCT) / 1e9
    )
    for one in (figures, other):
        rate = one['row']['gflop'] / one['row']['t3d_ms'].median
        assert one['row']['tflop_per_s'] == pytest.approx(rate)
    assert other['row']['gbyte'] > figures['row']['gbyte'] > 0
