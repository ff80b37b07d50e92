"""`t3d bench sds`: the table, and a peer whose gradient of the render is ours."""

import json

import jax
import numpy as np
import pytest
from test_bench_gan import uncompiled  # noqa: F401
from test_unet import SMALL, STYLES

from t3d.bench import measure, sds, table

VAE = {**sds.AUTOENCODER, 'block_out_channels': [8, 8, 16, 16], 'layers_per_block': 1, 'norm_num_groups': 4}
SHAPE = {**sds.SHAPE, 'unet': {**SMALL, **STYLES['1.5'], 'attention_head_dim': 4}, 'vae': VAE, 'pixels': 64, 'render': 24}
SHAPE = {**SHAPE, 'views': 2, 'tokens': 5}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(sds, 'SIZES', {'tiny': SHAPE})
    monkeypatch.setattr(measure, 'PAUSE', 0.0)
    monkeypatch.setattr(measure, 'WARM', 0.0)


def test_the_table_without_a_peer(small, uncompiled, tmp_path, capsys):  # noqa: F811
    file = tmp_path / 'bench.json'
    assert table.main(['sds', '--repeats', '2', '--no-peer', '--json', str(file)]) == 0
    printed, row = capsys.readouterr().out, json.loads(file.read_text())['figures']['tiny']
    assert '| tiny | ' in printed and 'peer: not asked for' in printed
    assert row['gflop'] > 0.0 and row['t3d_ms'][0] > 0.0 and row['difference'] is None


def test_the_peer_makes_the_gradient_that_ours_makes(small):
    pytest.importorskip('diffusers')
    from peers import torch_sds

    theirs = torch_sds.build(json.loads(json.dumps({**SHAPE, 'device': 'cpu', 'exact': True})))()
    function, abstract = sds.gradient(SHAPE)
    ours = np.asarray(jax.jit(function)(sds.weights(abstract), sds.inputs(SHAPE)))
    theirs = theirs.permute(0, 2, 3, 1).numpy()
    assert ours.shape == (2, 24, 24, 3)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_what_cannot_be_asked_is_refused(small, capsys):
    for words, message in ((['--sizes', 'huge'], "unknown size 'huge'"), (['--check', '--no-peer'], 'leave --no-peer out')):
        with pytest.raises(SystemExit):
            table.main(['sds', *words])
        assert message in capsys.readouterr().err
