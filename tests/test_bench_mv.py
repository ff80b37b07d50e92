"""`t3d bench mv`: the tables, and a peer that computes what ours does, values and gradients."""

import json

import jax
import numpy as np
import pytest
from test_bench_gan import uncompiled  # noqa: F401
from test_unet import SMALL, STYLES

from t3d.bench import measure, mv, table

SHAPE = {
    'config': {**SMALL, **STYLES['1.5'], 'attention_head_dim': 4},
    'forms': ('dense', 'masked', 'epipolar'),
    'objects': 2,
    'views': 3,
    'size': 8,
    'tokens': 7,
    'samples': 3,
}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(mv, 'SIZES', {'tiny': SHAPE})
    monkeypatch.setitem(mv.FORMS, 'epipolar', {**mv.FORMS['epipolar'], 'block_levels': (0,)})
    monkeypatch.setattr(measure, 'PAUSE', 0.0)
    monkeypatch.setattr(measure, 'WARM', 0.0)


def test_the_tables_without_a_peer(small, uncompiled, tmp_path, capsys):  # noqa: F811
    file = tmp_path / 'bench.json'
    call = ['mv', '--repeats', '2', '--no-peer', '--passes', 'forward', '--json', str(file)]
    assert table.main(call) == 0
    printed, report = capsys.readouterr().out, json.loads(file.read_text())['figures']['tiny']
    assert 'tiny: 2 x 3 views of 8^2 latents' in printed and 'peer: not asked for' in printed
    for network in ('plain', 'dense', 'masked', 'epipolar'):
        assert f'| tiny | {network} | forward |' in printed
    assert '| tiny | epipolar block | forward |' in printed
    rows = report['forms']
    assert (
        rows['plain']['forward']['gflop'] < rows['dense']['forward']['gflop'] and 'cameras_ms' not in rows['plain']['forward']
    )
    assert rows['masked']['forward']['cameras_ms'][0] > 0 and report['peer']['block']['forward']['difference'] is None


def test_the_plain_network_has_the_weights_of_the_form(small):
    work = mv.form_work(SHAPE, 'epipolar')
    plain = mv.plain_work(SHAPE, work.arguments[0]).arguments[0]
    np.testing.assert_array_equal(plain['conv_in']['kernel'], work.arguments[0]['conv_in']['kernel'])
    assert 'camera_embedding' in work.arguments[0] and 'camera_embedding' not in plain


@pytest.mark.parametrize('what', ['dense', 'block'])
def test_the_peer_computes_what_ours_does(small, what, tmp_path):
    pytest.importorskip('diffusers')
    torch_mv = pytest.importorskip('peers.torch_mv')
    work = mv.form_work(SHAPE, 'dense') if what == 'dense' else mv.block_work(SHAPE)
    theirs = torch_mv.Passes(json.loads(json.dumps(mv.request(what, SHAPE, work, str(tmp_path), True))))
    for a, b in zip(work.results('both'), theirs.run('both'), strict=True):
        a, b = a.reshape(b.shape), b.detach().numpy()
        assert np.abs(b).max() > 0 and np.abs(a - b).max() < 2e-5 * np.abs(b).max()


@pytest.mark.slow
def test_the_check_compares_with_pytorch(small, monkeypatch, capsys):
    pytest.importorskip('diffusers')
    assert table.main(['mv', '--check']) == 0
    assert '| tiny | dense | forward + backward |' in capsys.readouterr().out
    monkeypatch.setattr(mv, 'TOLERANCE', 0.0)
    assert table.main(['mv', '--check', '--passes', 'forward']) == 1
    assert 'tiny dense, tiny block: differs by more than' in capsys.readouterr().out


def test_wrong_requests_are_named(capsys):
    for request, message in (
        (['--sizes', 'sd3'], "unknown size 'sd3'"),
        (['--passes', 'backward'], "unknown pass 'backward'"),
        (['--check', '--no-peer'], 'leave --no-peer out'),
    ):
        with pytest.raises(SystemExit):
            table.main(['mv', *request])
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_objects_that_divide_are_shared_by_the_devices_and_give_the_same(small, monkeypatch):
    shape = {**SHAPE, 'objects': jax.device_count()}
    shared = mv.form_work(shape, 'dense')
    assert len(shared.arguments[1].sharding.device_set) == jax.device_count() > 1
    assert shared.arguments[1].addressable_shards[0].data.shape[0] == 1
    odd = mv.form_work({**shape, 'objects': 3}, 'dense')
    assert isinstance(odd.arguments[1], np.ndarray)
    monkeypatch.setattr(mv, 'placed', lambda *arguments: arguments)
    for ours, alone in zip(shared.results('both'), mv.form_work(shape, 'dense').results('both'), strict=True):
        np.testing.assert_allclose(ours, alone, atol=2e-5 * np.abs(alone).max())
