"""The table of launch/sds_table.py: what it says of known curves, what it goes on from, and one short run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_instant3d_sds as sds

from launch import sds_table
from t3d.core.errors import UsageError
from t3d.fields.text_field import ALBEDOS, TextField


def curve(name, seed, errors, step=50):
    """Rows of a variant whose errors of seen prompts are given."""
    rows = [{'variant': name, 'seed': seed, 'step': step * k, 'views': 8.0 * k, 'seen': e} for k, e in enumerate(errors, 1)]
    return [{**row, 'held_out': 2 * row['seen'], 'nearest': 1.0 - row['seen']} for row in rows]


def test_the_table_says_when_and_where_curves_end():
    rows = [*curve('all', 0, (0.1, 0.04, 0.01)), *curve('all', 1, (0.04, 0.02, 0.005)), *curve('relu', 0, (0.1, 0.09, 0.08))]
    text = sds_table.table(rows, ['all', 'relu', 'swish']).splitlines()
    assert len(text) == 4
    assert text[2] == '| all | 2 | 22 [20, 24] | 0.0075 [0.0050, 0.0100] | 0.0150 [0.0100, 0.0200] | 99 % [99 %, 100 %] |'
    assert text[3] == '| relu | 1 | never | 0.0800 | 0.1600 | 92 % |'
    assert sds_table.spread([16.0, np.inf], '{:.0f}') == 'never [16, never]'


@pytest.mark.parametrize(
    ('errors', 'views'), [((0.1, 0.001), 12.0), ((0.01, 0.1), 8.0), ((0.02, 0.03, 0.02), np.inf), ((0.02, 0.04, 0.0025), 20.0)]
)
def test_views_to_an_error_lie_between_measurements(errors, views):
    """On the line through the logarithms: half-way from 0.1 to 0.001 is 0.01."""
    assert sds_table.views_to(curve('x', 0, errors), 0.01) == pytest.approx(views)


def test_plots_have_the_variants_that_were_run(tmp_path):
    sds_table.draw(curve('all', 0, (0.1, 0.02)), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {'mechanisms.png', 'outputs.png'}
    assert all(name in sds_table.VARIANTS for names in sds_table.PLOTS.values() for name in names)


def test_whole_runs_are_kept_and_other_settings_refused(tmp_path, monkeypatch):
    class Known:
        made = []

        def __init__(self, overrides):
            Known.made.append(overrides)

        def curve(self, seed, every):
            return [{name: row[name] for name in row if name not in ('variant', 'seed')} for row in curve('', seed, (0.1, 0.2))]

    monkeypatch.setattr(sds_table, 'Trainer', Known)
    first = sds_table.run(tmp_path, ['all', 'relu'], 100, 50, 1)
    assert len(first) == 4 and Known.made == [['steps=100'], ['field.albedo=relu', 'steps=100']]
    again = sds_table.run(tmp_path, ['all', 'relu'], 100, 50, 2)
    assert len(again) == 8 and len(Known.made) == 4 and [row['seed'] for row in again[4:]] == [1, 1, 1, 1]
    assert json.loads((tmp_path / 'curves.jsonl').read_text().splitlines()[0]) == {'steps': 100, 'every': 50, 'overrides': []}
    assert sds_table.run(tmp_path, ['all', 'relu'], 100, 50, 2) == again and len(Known.made) == 4
    with pytest.raises(UsageError, match='name another --out'):
        sds_table.run(tmp_path, ['all'], 200, 50, 1)


@pytest.mark.parametrize(
    ('words', 'message'),
    (
        (('--variants', 'al'), "unknown variant 'al'"),
        (('--steps', '7', '--every', '2'), 'no multiple of --every 2'),
        (('--seeds', '0'), '--seeds 0'),
    ),
)
def test_words_that_cannot_be_meant_are_refused(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        sds_table.main(['--out', str(tmp_path / 'out'), *words])
    assert stopped.value.code == 2 and message in capsys.readouterr().err and not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_a_short_run_measures_what_it_should(tmp_path):
    """Two steps of a small network: a row each, errors of renders in [0, 1], another seed another curve."""
    small = [line for line in sds.SMALL if not line.startswith(('text.', 'export.', 'batch'))]
    rows = sds_table.run(tmp_path, ['plain sigmoid'], 2, 1, 2, [*small, 'given.prior=toy:8', 'batch=3'])
    assert [(row['seed'], row['step']) for row in rows] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert all(0.0 < row[name] < 1.0 for row in rows for name in ('seen', 'held_out')) and rows[0]['seen'] != rows[2]['seen']
    assert rows[0]['views'] == pytest.approx(3 / 48)


def test_outputs_for_the_albedo_start_alike_and_go_on_differently():
    """Slope 1/4 at 0, whatever comes after; only the sigmoid saturates above, and ReLU cuts below."""
    for name, function in ALBEDOS.items():
        assert jax.grad(function)(0.0, 1.0) == pytest.approx(0.25, abs=1e-6), name
        assert float(function(jnp.float32(0.0), 1.0)) == pytest.approx(0.5, abs=1e-6), name
        assert np.isfinite(jax.grad(function)(-50.0, 0.5)) and np.isfinite(jax.grad(function)(50.0, 0.5))
    far = {name: float(function(jnp.float32(8.0), 1.0)) for name, function in ALBEDOS.items()}
    assert far['scaled_sigmoid'] < 1.0 < 2.4 < min(value for name, value in far.items() if name != 'scaled_sigmoid')
    low = {name: float(function(jnp.float32(-8.0), 1.0)) for name, function in ALBEDOS.items()}
    assert (
        low['linear'] == -1.5 and low['relu'] == 0.0 and low['leaky_relu'] == pytest.approx(-0.015) and 0.3 < low['swish'] < 0.5
    )
    with pytest.raises(UsageError, match='Nearest: field.albedo=relu'):
        TextField(sds.config('field.albedo=rellu'))
