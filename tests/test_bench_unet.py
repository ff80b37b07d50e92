"""`t3d bench unet`: the table, and the one weight for each name on both sides."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_unet import SMALL, STYLES

from t3d.core import tree
from t3d.nets.unet import UNet
from t3d.train import bench, bench_unet

SHAPE = {'config': {**SMALL, **STYLES['1.5']}, 'batch': 2, 'size': 8, 'tokens': 7}


def test_weights_and_inputs_are_those_of_the_peer():
    diffusers, torch_unet = pytest.importorskip('diffusers'), pytest.importorskip('peers.torch_unet')
    from peers import loading

    theirs = torch_unet.fill(diffusers.UNet2DConditionModel(**SHAPE['config']))
    inputs = bench_unet.inputs(SHAPE)
    abstract = loading.abstract_params(UNet.from_config(SHAPE['config']), *inputs)
    jax.tree.map(np.testing.assert_array_equal, bench_unet.weights(abstract), loading.params(theirs, abstract))
    half = tree.flatten(bench_unet.weights(abstract, jnp.bfloat16))
    assert {leaf.dtype for leaf in half.values()} == {jnp.dtype(jnp.bfloat16)}
    latents, t, text = torch_unet.inputs(SHAPE)
    np.testing.assert_array_equal(inputs[0], latents.permute(0, 2, 3, 1))
    np.testing.assert_array_equal(inputs[1], t)
    np.testing.assert_array_equal(inputs[2], text)


def test_the_table_without_a_peer(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench_unet, 'SIZES', {'tiny': SHAPE})
    monkeypatch.setattr(bench, 'PAUSE', 0.0)
    monkeypatch.setattr(bench, 'WARM', 0.0)
    file = tmp_path / 'bench.json'
    assert bench.main(['unet', '--repeats', '2', '--batch', '1', '--no-peer', '--json', str(file)]) == 0
    printed, row = capsys.readouterr().out, json.loads(file.read_text())['tiny']
    assert '| tiny | float32 |' in printed and 'peer: not asked for' in printed and 'GFLOP' in printed
    assert row['peak_mib'] > 100 and row['tflop_per_s'] > 0 and row['difference'] is None


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_check_compares_with_diffusers(monkeypatch, capsys, dtype):
    pytest.importorskip('diffusers')
    monkeypatch.setattr(bench_unet, 'SIZES', {'tiny': SHAPE})
    assert bench.main(['unet', '--check', '--dtype', dtype]) == 0
    assert f'| tiny | {dtype} |' in capsys.readouterr().out
    monkeypatch.setitem(bench_unet.TOLERANCE, dtype, 0.0)
    assert bench.main(['unet', '--check', '--dtype', dtype]) == 1
    assert 'tiny: differs by more than' in capsys.readouterr().out


def test_wrong_requests_are_named(capsys):
    for request, message in ((['--sizes', 'sd3'], "unknown size 'sd3'"), (['--check', '--no-peer'], 'leave --no-peer out')):
        with pytest.raises(SystemExit):
            bench.main(['unet', *request])
        assert message in capsys.readouterr().err
