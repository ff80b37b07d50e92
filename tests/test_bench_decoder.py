"""`t3d bench decoder`: the table, and a peer that decodes and shows what ours does."""

import json

import jax
import numpy as np
import pytest
from test_bench_gan import uncompiled  # noqa: F401

from t3d.bench import decoder, measure, table
from t3d.core import tree
from t3d.nets import text_decoder

NARROW = (  # every mechanism, layers that are scanned over, and importance samples
    'text.length=5',
    'text.width=24',
    'decoder.channels=(16, 24)',
    'decoder.heads=(2, 0)',
    'decoder.groups=(4, 8)',
    'decoder.layers=3',
    'decoder.mid_heads=4',
    'decoder.base_size=3',
    'decoder.base_channels=12',
    'decoder.mixer_width=16',
    'decoder.style_width=10',
    'decoder.style_channels=14',
    'decoder.out_channels=18',
    'field.hidden=9',
    'field.blob=3.0',
    'field.alpha=0.6',
    'render.samples_shown=7',
    'render.importance=6',
    'render.fov=1.2',
    'render.background=0.2',
)
SHAPE = {'config': 'configs/instant3d.py:tiny', 'overrides': NARROW, 'pixels': 19}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(decoder, 'SIZES', {'tiny': SHAPE})
    monkeypatch.setattr(measure, 'PAUSE', 0.0)
    monkeypatch.setattr(measure, 'WARM', 0.0)


def test_the_released_size_is_the_released_network_and_rig():
    made = decoder.work(decoder.SIZES['released'])
    config = made.config
    assert {name: config.decoder[name] for name in text_decoder.RELEASED} == text_decoder.RELEASED
    assert (config.render.samples_shown, config.render.importance, made.inputs[0].shape) == (64, 64, (1, 77, 1024))
    assert 4 * 2 ** len(config.decoder.channels) == 256 and made.abstract['decoder']['conv_out']['bias'].shape == (96,)
    assert round(tree.count(made.abstract) / 1e6, 1) == 269.8


def test_the_table_without_a_peer(small, uncompiled, tmp_path, capsys):  # noqa: F811
    file = tmp_path / 'bench.json'
    assert table.main(['decoder', '--repeats', '2', '--no-peer', '--json', str(file)]) == 0
    printed, report = capsys.readouterr().out, json.loads(file.read_text())['figures']['tiny']
    assert '| tiny | planes | ' in printed and '| tiny | view | ' in printed and 'peer: not asked for' in printed
    points = 19 * 19 * (7 + 6)
    assert report['view']['gflop'] * 1e9 == pytest.approx(2 * points * 9 * (6 + 4), rel=0.1)  # the point MLP
    assert report['planes']['gflop'] > 0.0 and report['view']['t3d_ms'][0] > 0.0 and report['view']['difference'] is None


def test_the_peer_decodes_and_shows_what_ours_does(tmp_path):
    torch_text_decoder = pytest.importorskip('peers.torch_text_decoder')
    made = decoder.work(SHAPE)
    theirs = torch_text_decoder.Work(json.loads(json.dumps(decoder.request(made, str(tmp_path), True))))
    params, (tokens, noise, rays) = made.weights(), made.inputs
    assert params['decoder']['stage_0']['rest']['transformer']['mlp']['in']['kernel'].shape == (2, 16, 128)
    planes = jax.jit(made.planes)(params['decoder'], tokens, noise)
    view = jax.jit(made.view)(params['field'], planes, rays)
    assert planes.shape == (1, 3, 12, 12, 6) and view.shape == (1, 19, 19, 3)
    for name, ours in (('planes', planes), ('view', view)):
        expected = theirs.run(name).numpy()
        assert np.std(expected) > 0.05 and expected.shape == ours.shape
        np.testing.assert_allclose(ours, expected, atol=4e-6 * np.abs(expected).max(), err_msg=name)  # a wrong epsilon: 6e-6
    seen = np.abs(view - made.config.render.background).max(-1) > 1e-3
    assert 0.1 < seen.mean() < 0.9  # some rays miss


def test_the_check_compares_with_pytorch(small, monkeypatch, capsys):
    pytest.importorskip('torch')
    monkeypatch.setattr(measure, 'THREADS', [1])
    assert table.main(['decoder', '--check']) == 0
    lines = [line.split('|') for line in capsys.readouterr().out.splitlines() if line.startswith('| tiny')]
    assert len(lines) == 2 and all(0.0 < float(line[-2]) < 1e-4 for line in lines)


def test_a_difference_that_is_too_large_ends_with_1(small, uncompiled, monkeypatch, capsys):  # noqa: F811
    class Peer:
        def ask(self, request):
            return {'is': 'another', 'ms': 1.0}

        def runs(self, name):
            return [lambda: 1.0]

        def close(self):
            pass

    monkeypatch.setattr(measure, 'start_peer', lambda *arguments: (Peer(), None))
    monkeypatch.setattr(decoder, '_difference', lambda ours, peer, name, folder: {'planes': 1e-6, 'view': float('nan')}[name])
    assert table.main(['decoder', '--check']) == 1
    printed = capsys.readouterr().out
    assert 'tiny view differs by more than 1e-04' in printed and 'tiny planes differs' not in printed


def test_what_cannot_be_asked_is_refused(small, capsys):
    for words, message in ((['--sizes', 'huge'], "unknown size 'huge'"), (['--check', '--no-peer'], 'leave --no-peer out')):
        with pytest.raises(SystemExit):
            table.main(['decoder', *words])
        assert message in capsys.readouterr().err
