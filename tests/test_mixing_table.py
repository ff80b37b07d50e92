"""The table of launch/mixing_table.py: what it says of known scores, what it goes on from, and one short run."""

import json

import numpy as np
import pytest

from launch import mixing_table
from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.diffusion import joint


def row(setting, share=0.5, **others):
    """Scores of a setting whose shares are all alike."""
    shares = {f'{prefix}{score}': share for prefix in ('patterns/',) for score in mixing_table.SHARES}
    controls = {f'{prefix}{score}': 1.0 for prefix in ('control/patterns/true_renders/',) for score in mixing_table.SHARES}
    plain = {f'control/patterns/plain/{score}': 0.0 for score in mixing_table.SHARES}
    numbers = {
        'patterns/frechet_pixels': 4.5,
        'patterns/psnr': 24.31,
        'patterns/mvc_rmse': 0.0541,
        'control/patterns/true_renders/mvc_rmse': 0.022,
        'control/patterns/true_renders/psnr': 160.0,
        'control/patterns/true_renders/frechet_pixels': 0.0,
        'control/patterns/plain/psnr': 19.8,
        'control/patterns/plain/frechet_pixels': 15.8,
        'control/patterns/plain/mvc_rmse': 0.012,
    }
    return {'setting': setting, **shares, **controls, **plain, **numbers, **others}


def test_the_table_has_a_line_for_each_setting_and_for_true_views():
    lines = mixing_table.table([row('0.5'), row('0', 0.25, **{'patterns/mvc_rmse': 0.1})]).splitlines()
    assert lines[2] == f'| 0.5 | {"50 % | " * 6}4.5 | 24.3 | 0.054 |'
    assert lines[3] == f'| 0 | {"25 % | " * 6}4.5 | 24.3 | 0.100 |'
    assert lines[4] == f'| true views | {"100 % | " * 6}0.0 | - | 0.022 |'
    assert lines[5] == f'| true views without the pattern | {"0 % | " * 6}15.8 | 19.8 | 0.012 |'
    assert len({line.count('|') for line in lines}) == 1


@pytest.mark.parametrize(
    ('name', 'ends'),
    (
        ('1, the multi-view model alone', (1.0, 1.0, 1.0)),
        ('0 to 1, rising', (0.0, 0.5, 1.0)),
        ('0.5 to 1, rising', (0.5, 0.75, 1.0)),
        ('0.5', (0.5, 0.5, 0.5)),
        ('1 to 0, falling', (1.0, 0.5, 0.0)),
        ('1 until t = 0.75 T, then 0', (1.0, 0.0, 0.0)),
        ('1 until t = 0.9 T, then 0', (1.0, 0.0, 0.0)),
        ('0, pictures of their own', (0.0, 0.0, 0.0)),
    ),
)
def test_settings_are_the_schedules_that_they_are_called(name, ends):
    """lambda at t = T - 1, half-way and 0."""
    mixing = configs.load(mixing_table.BASE, list(mixing_table.SETTINGS[name])).mixing
    assert mixing.form == 'mix'
    weight = joint.weights(mixing.schedule, mixing.first, mixing.last, 1001, power=mixing.power, at=mixing.at)
    np.testing.assert_allclose([weight(1000), weight(500), weight(0)], ends, atol=1e-6)
    if mixing.schedule == 'step':
        assert weight(round(1000 * mixing.at) + 1) == 1.0 and weight(round(1000 * mixing.at) - 1) == 0.0
        assert f'{mixing.at:g} T' in name


def test_scores_are_kept_and_other_settings_refused(tmp_path, monkeypatch):
    asked = []

    def scores(overrides, given, samples, captions, known):
        asked.append((overrides, given, samples, captions, known.get('setting')))
        return {name: value for name, value in row('').items() if name != 'setting'}

    monkeypatch.setattr(mixing_table, 'scores', scores)
    names = list(mixing_table.SETTINGS)[:2]
    first = mixing_table.run(tmp_path, names[:1], ['pictures=toy_patterns'], 2, 8)
    both = mixing_table.run(tmp_path, names, ['pictures=toy_patterns'], 2, 8)
    assert both[0] == first[0] and [one['setting'] for one in both] == names
    assert [one[0] for one in asked] == [mixing_table.SETTINGS[name] for name in names]
    assert asked[0][1:] == (['pictures=toy_patterns'], 2, 8, None) and asked[1][-1] == names[0]
    assert mixing_table.run(tmp_path, names, ['pictures=toy_patterns'], 2, 8) == both and len(asked) == 2
    assert json.loads((tmp_path / 'scores.jsonl').read_text().splitlines()[0])['samples'] == 2
    with pytest.raises(UsageError, match='name another --out'):
        mixing_table.run(tmp_path, names, ['pictures=RUN'], 2, 8)
    mixing_table.draw(both, tmp_path)
    assert (tmp_path / 'realism.png').stat().st_size > 1000


def test_settings_are_chosen_by_number():
    every = list(mixing_table.SETTINGS)
    assert mixing_table.chosen(None) == every and mixing_table.chosen('3, 1') == [every[2], every[0]]
    for words in ('0', '10', 'x', '1,', '٣', ''):
        with pytest.raises(UsageError, match='wanted numbers of 1 1, the multi-view model alone; 2'):
            mixing_table.chosen(words)


@pytest.mark.slow
def test_one_setting_end_to_end(tmp_path, capsys):
    mixing_table.main(['--out', str(tmp_path), '--settings', '1,8', '--samples', '1', '--captions', '2'])
    rows = [json.loads(line) for line in (tmp_path / 'scores.jsonl').read_text().splitlines()][1:]
    assert rows[0]['patterns/with_pattern'] == 0.0 and rows[0]['patterns/shape'] > 0.9  # plain objects alone
    assert rows[1]['patterns/with_pattern'] > 0.2
    floors = [[row[f'{prefix}mvc_rmse'] for prefix in mixing_table.CONTROLS.values()] for row in rows]
    assert floors[0] == floors[1] and floors[0][1] < floors[0][0] < rows[1]['patterns/mvc_rmse']
    assert (tmp_path / 'table.md').read_text() in capsys.readouterr().out
