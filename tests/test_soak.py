"""The soak: its checks fail where they should; a small form of it holds (slow)."""

import argparse
import json

import numpy as np
import pytest

from launch import soak

STEPS = 6


@pytest.fixture
def two(tmp_path):
    """A soak with the metrics of two runs, `change(records)` of the second before they are written."""

    def make(change=lambda records: records):
        made = soak.Soak(argparse.Namespace(seed=0, minutes=1.0, steps=STEPS), tmp_path)
        records = [{'step': step, 'loss': 1.0 / step, 'data/order': 7.0 * step} for step in range(1, STEPS + 1)]
        for name, some in (('whole', records), ('same', change([dict(record) for record in records]))):
            (tmp_path / name).mkdir()
            (tmp_path / name / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, some)) + '\n{"cut')
        return made

    return make


def test_equal_runs_pass(two):
    assert soak.same_steps(two(), 'same', 0.0) == 0.0


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (lambda records: records[:3] + records[4:], 'steps .4. are lost or too many'),
        (lambda records: records[:4] + records[3:], 'step 4 is in metrics.jsonl twice'),
        (lambda records: [*records[:-1], records[-1] | {'data/order': 1.0}], 'other records at step 6'),
        (lambda records: [records[0] | {'loss': 1.001}, *records[1:]], 'a loss is 1.0e-03 apart'),
        (lambda records: [*records[:-1], records[-1] | {'loss': float('nan')}], 'a loss is nan apart'),
    ],
)
def test_what_is_lost_repeated_or_another_fails(two, change, says):
    with pytest.raises(soak.Failed, match=says):
        soak.same_steps(two(change), 'same', 1e-6)


def test_states_are_compared_leaf_by_leaf():
    state = {'a': np.float32([1.0, -4.0]), 'b': np.float32([0.5]), 'c': np.zeros((0, 3))}
    assert soak.apart(state, state) == 0.0
    assert soak.apart(state, state | {'a': np.float32([1.5, -4.0])}) == pytest.approx(0.5 / 4.0)
    assert soak.apart(state, state | {'b': np.float32([0.75])}) == pytest.approx(0.25)
    assert np.isnan(soak.apart(state, state | {'b': np.float32([np.nan])}))


@pytest.mark.slow
def test_a_small_soak(tmp_path):
    words = ['--steps', '14', '--kills', '2', '--turns', '3', '--every', '5', '--local-every', '2', '--flips', '12']
    assert soak.main([*words, '--minutes', '40', '--out', str(tmp_path)]) == 0
