"""How alike seeds are: the PSNR over the right pairs, by hand, and refusals."""

import types

import numpy as np
import pytest
import small_run

from launch import seed_spread
from t3d.core.errors import UsageError
from t3d.core.outputs import Picture, Points, Views
from t3d.inference import loading


def test_pairs_of_seeds_and_of_prompts_are_told_apart(monkeypatch, capsys):
    """Prompts differ by 0.1, seeds by 0.01: 20 and 40 dB, one pair for each of the other."""

    def generate(loaded, prompts, seeds):
        level = {'a red cube': 0.2, 'a blue cone': 0.3}
        return [(s, Picture(p, np.full((4, 4, 3), level[p] + 0.01 * s))) for s in seeds for p in prompts]

    monkeypatch.setattr(loading, 'load', lambda run: None)
    monkeypatch.setattr(loading, 'generate', generate)
    seed_spread.main(['x', 'a red cube', 'a blue cone', '--seeds', '2'])
    assert capsys.readouterr().out.splitlines() == [
        'other seeds: PSNR 40.0 dB (mean of 2 pairs of objects, lowest 40.0)',
        'other prompts: PSNR 20.0 dB (mean of 2 pairs of objects, lowest 20.0)',
    ]


def test_views_of_objects_are_those_of_each_prompt_and_seed(monkeypatch):
    loaded = small_run.loaded()
    monkeypatch.setattr(loading, 'load', lambda run: loaded)
    pictures = seed_spread.views('x', ['a red cube', 'a blue cone'], 2, 16)
    assert pictures.shape == (2, 2, 4 * 16 * 16, 3) and 0.0 <= pictures.min() and pictures.max() <= 1.0
    assert np.ptp(pictures) > 0.05


def test_pictures_of_other_kinds_of_outputs(monkeypatch):
    """Views are compared as they are; points have no picture."""
    made = [Views('a', np.full((2, 4, 4, 4), 0.2), np.zeros((2, 4, 4)), np.zeros((2, 3, 3))), Points('a', np.zeros((3, 3)))]
    monkeypatch.setattr(loading, 'load', lambda run: types.SimpleNamespace(name='some'))
    monkeypatch.setattr(loading, 'generate', lambda loaded, prompts, seeds: [(0, made[0])])
    np.testing.assert_array_equal(seed_spread.views('x', ['a'], 1, 16), np.full((1, 1, 2 * 4 * 4, 3), 0.2))
    monkeypatch.setattr(loading, 'generate', lambda loaded, prompts, seeds: [(0, made[1])])
    with pytest.raises(UsageError, match='some makes points: pictures, views and fields are compared'):
        seed_spread.views('x', ['a'], 1, 16)


@pytest.mark.parametrize('words', [['a red cube'], ['a red cube', 'a red cube'], ['a red cube', 'a blue cone', '--seeds', '1']])
def test_fewer_than_two_of_each_are_refused(words, capsys):
    with pytest.raises(SystemExit) as stop:
        seed_spread.main(['x', *words])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count('\n') == 1
    assert 'pairs want two, in quotes' in error or '--seeds 1: wanted a whole number from 2' in error
