"""The table of launch/fronts_table.py: its variants, what it says of known scores, what it goes on from, and one short run."""

import json

import numpy as np
import pytest

from launch import fronts_table, sds_table
from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.data.sets import shapes
from t3d.evaluate import marked_fronts, view_reading
from t3d.inference import toy_pictures


def test_the_table_has_mean_and_range_of_the_seeds():
    rows = [
        {'variant': 'none', 'seed': k, 'janus': 0.5 + 0.1 * k, 'front': 1.0, 'one_front': 0.0, 'error': 0.02} for k in range(2)
    ]
    text = fronts_table.table(rows, ['no preference', 'none']).splitlines()
    assert len(text) == 3 and text[0].count('|') == text[1].count('|') == text[2].count('|')
    assert text[2] == ('| none | 2 | 55 % [50 %, 60 %] | 100 % [100 %, 100 %] | 0 % [0 %, 0 %] | 0.0200 [0.0200, 0.0200] |')


@pytest.mark.parametrize(('name', 'weights'), (('half', (0.5, 0.5)), ('quarter', (0.25, 0.25)), ('adaptive', (0.25, 0.5))))
def test_variants_are_the_shares_of_the_weights_that_they_say(name, weights):
    """Times least + C more, at a severity of 0 and of 1."""
    bias, overrides = fronts_table.VARIANTS[name]
    distill = configs.load(sds_table.BASE, list(overrides)).distill
    assert bias is None and (distill.least, distill.least + distill.more) == weights


def test_a_prior_has_the_share_of_fronts_that_it_is_given():
    """Of the pictures that '..., back view' may be: those of the front count `bias`."""
    for bias, given in ((0.0, fronts_table.prior(0.0)), (toy_pictures.BIAS, fronts_table.prior(None))):
        one = given['prior']
        ids = one.functions.tokenize(['a red cube, back view'])
        features = one.functions.encode(one.params, ids)
        x = np.zeros((1, fronts_table.SIZE, fronts_table.SIZE, 3), np.float32)
        noisiest = one.functions.schedule.length - 1
        eps = np.asarray(one.functions.predict(one.params, x, noisiest, features))
        place = [scene.captions[0] for scene in shapes.singles('all')].index('a red cube')
        front, back = (one.params['means'][place, sector].mean(0) for sector in (0, 2))
        # at pure noise the mean is that of the mixture, eps = (x - a x_0) / sigma
        signal, noise = (np.asarray(level)[-1] for level in (one.functions.schedule.signal, one.functions.schedule.noise))
        expected = -signal * (bias * front + (1.0 - bias) * back) * noise / (signal**2 * 0.05**2 + noise**2)
        np.testing.assert_allclose(eps[0], expected, atol=2e-2 * np.abs(expected).max())


def test_whole_runs_are_kept_and_other_settings_refused(tmp_path, monkeypatch):
    class Known:
        made = []

        def __init__(self, name, overrides, out):
            Known.made.append((name, overrides))

        def scores(self, seed):
            return {'janus': 0.1 * seed, 'front': 1.0, 'one_front': 0.5, 'error': 0.01}

    monkeypatch.setattr(fronts_table, 'Fronts', Known)
    first = fronts_table.run(tmp_path, ['none', 'half'], 100, 1)
    assert [(row['variant'], row['seed']) for row in first] == [('none', 0), ('half', 0)]
    assert Known.made == [('none', ['steps=100']), ('half', ['steps=100'])]
    again = fronts_table.run(tmp_path, ['none', 'half'], 100, 2)
    assert len(again) == 4 and len(Known.made) == 4
    assert fronts_table.run(tmp_path, ['none', 'half'], 100, 2) == again and len(Known.made) == 4
    assert json.loads((tmp_path / 'fronts.jsonl').read_text().splitlines()[0]) == {'steps': 100, 'overrides': []}
    with pytest.raises(UsageError, match='name another --out'):
        fronts_table.run(tmp_path, ['none'], 200, 1)


def test_true_views_have_one_front():
    scenes = view_reading.some_objects(3)
    render = configs.load(sds_table.BASE).render
    truth = marked_fronts.true_views(scenes, render)
    assert marked_fronts.fronts(scenes, truth, render) == {'janus': 0.0, 'front': 1.0, 'one_front': 1.0}
    around = np.repeat(truth[:, :1], truth.shape[1], 1)  # the front, whatever the camera
    assert marked_fronts.fronts(scenes, around, render) == {'janus': 1.0, 'front': 1.0, 'one_front': 0.0}


@pytest.mark.slow
def test_a_few_steps_end_to_end(tmp_path, capsys):
    fronts_table.main(['--out', str(tmp_path), '--steps', '3', '--seeds', '1', '--variants', 'no preference,adaptive'])
    rows = [json.loads(line) for line in (tmp_path / 'fronts.jsonl').read_text().splitlines()][1:]
    assert [row['variant'] for row in rows] == ['no preference', 'adaptive'] and all(row['error'] > 0.0 for row in rows)
    assert (tmp_path / 'table.md').read_text() in capsys.readouterr().out
    assert (tmp_path / 'no_preference.png').exists() and (tmp_path / 'adaptive.png').exists()
