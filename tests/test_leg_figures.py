"""Figures of legs: a table in closed form whose legs are known, bodies without any, captions, the table, and refusals."""

import analytic_assets
import numpy as np
import pytest
from test_sides import BOXES, lengths

from launch import leg_figures
from t3d.core import config as configs
from t3d.core.outputs import Picture
from t3d.data import sets
from t3d.export import sides
from t3d.inference import loading

EXPORT = {'grid': 96, 'faces': 20_000, 'texture': 64}


def test_the_body_alone_lacks_the_legs_and_the_mesh_does_not():
    figures = leg_figures.measure(analytic_assets.table(4.0), EXPORT)
    top, *legs = lengths(analytic_assets.table(4.0), BOXES)
    below = (1.0 - np.exp(-4.0 * np.sum(legs, 0)) >= sides.SHOWN) & (top == 0.0)
    exact = below.sum() / (below | (top > 0.0)).sum()
    assert figures['body alone lacks'] == pytest.approx(exact, rel=0.2) and exact > 0.1
    assert figures['mesh lacks'] < 0.01 and figures['thin parts'] == 1.0
    assert figures['mesh adds'] < 0.01 and figures['body alone adds'] < 0.01


@pytest.mark.parametrize('texture', [0, 64])
def test_of_a_body_without_thin_parts_both_say_the_same(texture):
    figures = leg_figures.measure(analytic_assets.sphere(), {**EXPORT, 'grid': 32, 'texture': texture})
    assert figures['mesh lacks'] == figures['body alone lacks'] < 0.02 and figures['thin parts'] == 0.0
    assert figures['mesh adds'] == figures['body alone adds'] < 0.02


def test_a_threshold_of_the_config_is_that_of_the_exporter():
    """The legs are 4 dense: at 2 everywhere both have them, without thin parts."""
    figures = leg_figures.measure(analytic_assets.table(4.0), {**EXPORT, 'threshold': 2.0})
    assert figures['thin parts'] == 0.0 and figures['body alone lacks'] == figures['mesh lacks'] < 0.03


def test_captions_are_the_longest_of_different_objects(monkeypatch):
    texts = [('a chair', 'a low oak chair')] * 3 + [('a table',), ('a lamp', 'lamp')]
    monkeypatch.setattr(sets, 'open_set', lambda data, split: [{'captions': one} for one in texts])
    config = configs.load('configs/instant3d.py:tiny')
    assert sorted(leg_figures.captions(config, 9)) == ['a lamp', 'a low oak chair', 'a table']
    assert leg_figures.captions(config, 2) == leg_figures.captions(config, 9)[:2]


def test_means_and_the_worst_are_told():
    shares = [0.0, 0.01, 0.05, 0.02, 0.04, 0.03, 0.2]
    rows = [dict(zip(leg_figures.COLUMNS, (lack, 0.01, 2 * lack, 0.0))) | {'thin parts': float(lack > 0.1)} for lack in shares]
    lines = leg_figures.table([f'thing {k}' for k in range(7)], rows)
    assert lines[2:6] == [
        '| mean of 7 captions | 5.0% | 1.0% | 10.0% | 0.0% |',
        '| median of 7 captions | 3.0% | 1.0% | 6.0% | 0.0% |',
        '| mean of the 1 with thin parts | 20.0% | 1.0% | 40.0% | 0.0% |',
        '| median of the 1 with thin parts | 20.0% | 1.0% | 40.0% | 0.0% |',
    ]
    assert [line.split('"')[1] for line in lines[6:]] == ['thing 6', 'thing 2', 'thing 4', 'thing 5', 'thing 3']


def test_the_command_tells_what_it_measured(monkeypatch, capsys):
    asset = analytic_assets.sphere()
    config = configs.load('configs/instant3d.py:tiny', ['export.grid=32', 'data.size=8'])
    loaded = loading.Loaded(config, None, {}, 'fake', 1)
    monkeypatch.setattr(loading, 'load', lambda run: loaded)
    monkeypatch.setattr(loading, 'generate', lambda loaded, prompts, seeds: [(0, asset._replace(prompt=prompts[0]))])
    leg_figures.main(['my_run', '--captions', '2'])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith('  1/2 a ') and 'mesh lacks 0.' in printed[0] and printed[1].startswith('  2/2 a ')
    assert printed[2].startswith('| share of what the field shows | mesh lacks |') and len(printed) == 2 + 2 + 2 + 2
    with pytest.raises(SystemExit):
        leg_figures.main(['my_run', '--captions', '0'])
    assert 'captions' in capsys.readouterr().err
    monkeypatch.setattr(loading, 'generate', lambda loaded, prompts, seeds: [(0, Picture(prompts[0], np.zeros((4, 4, 3))))])
    with pytest.raises(SystemExit):
        leg_figures.main(['my_run'])
    assert 'fake makes picture: fields are compared with their meshes' in capsys.readouterr().err
