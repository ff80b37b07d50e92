"""The UNet of PyTorch alone, the peer of machines without diffusers: its values, its size, and what is said without a peer."""

import json
import shutil

import jax
import numpy as np
import pytest
from test_unet import FOUR, SMALL, STYLES

from t3d.bench import measure, mv, sds, table
from t3d.bench import unet as unet_bench
from t3d.nets.unet import UNet

ODD = {**FOUR, 'attention_head_dim': [2, 4, 4, 8], 'use_linear_projection': True}
CONFIGS = {'1.5': ({**SMALL, **STYLES['1.5']}, 8), '2.1': ({**SMALL, **STYLES['2.1']}, 8), 'odd': (ODD, 9)}


@pytest.fixture
def small(monkeypatch):
    shape = {'config': CONFIGS['1.5'][0], 'batch': 2, 'size': 8, 'tokens': 7}
    monkeypatch.setattr(unet_bench, 'SIZES', {'tiny': shape})
    monkeypatch.setattr(measure, 'PAUSE', 0.0)
    monkeypatch.setattr(measure, 'WARM', 0.0)
    return shape


@pytest.fixture
def without_diffusers(monkeypatch):
    import importlib.util

    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *more: None if name == 'diffusers' else there(name, *more))


def request(shape: dict, network: str) -> dict:
    return {**shape, 'dtype': 'float32', 'device': 'cpu', 'exact': True, 'network': network}


@pytest.mark.parametrize('name', CONFIGS)
def test_it_computes_what_ours_does_of_the_same_weights(name):
    torch_unet = pytest.importorskip('peers.torch_unet')
    from peers import loading

    config, size = CONFIGS[name]
    shape = {'config': config, 'batch': 2, 'size': size, 'tokens': 7}
    run, what = torch_unet.build(request(shape, 'plain'))
    unet, inputs = UNet.from_config(config), unet_bench.inputs(shape)
    abstract = loading.abstract_params(unet, *inputs)
    loading.params(torch_unet.network('plain', config), abstract)  # the same names and shapes, no more
    ours = np.asarray(jax.jit(unet.apply)({'params': unet_bench.weights(abstract)}, *inputs))
    theirs = loading.nhwc(run())
    assert what == 'PlainUNet' and np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.slow
def test_the_multi_view_one_computes_what_ours_does(tmp_path):
    torch_mv = pytest.importorskip('peers.torch_mv')
    shape = {'config': CONFIGS['1.5'][0], 'objects': 2, 'views': 3, 'size': 8, 'tokens': 7, 'samples': 3, 'network': 'plain'}
    work = mv.form_work(shape, 'dense')
    theirs = torch_mv.Passes(json.loads(json.dumps(mv.request('dense', shape, work, str(tmp_path), True))))
    assert type(theirs.module.unet).__name__ == 'PlainUNet'
    for a, b in zip(work.results('both'), theirs.run('both'), strict=True):
        a, b = a.reshape(b.shape), b.detach().numpy()
        assert np.abs(b).max() > 0 and np.abs(a - b).max() < 2e-5 * np.abs(b).max()


def test_the_full_networks_have_the_published_sizes_and_stay_on_their_device():
    """On tensors without data, which PyTorch refuses to mix with others."""
    torch = pytest.importorskip('torch')
    from peers import torch_mv, torch_unet

    with torch.device('meta'):
        for config, count in ((unet_bench.SD15, 859_520_964), (unet_bench.SD21, 865_910_724)):
            unet = torch_unet.network('plain', config)
            assert sum(value.numel() for value in unet.parameters()) == count
        assert unet(torch.zeros(2, 4, 32, 32), torch.zeros(2), torch.zeros(2, 77, 1024)).shape == (2, 4, 32, 32)
        lead, rays = (1, 4, 8, 8, 3), {'uv': (1, 4, 4, 8, 8, 3, 2), 'valid': (1, 4, 4, 8, 8, 3), 'plucker': (1, 4, 8, 8, 6)}
        rays = {name: torch.zeros(shape) for name, shape in rays.items()}
        rays |= {'points': torch.zeros(*lead, 3), 'depths': torch.zeros(lead), 'valid': rays['valid'].bool()}
        block = torch_mv.EpipolarBlock(64, 4, 64)
    assert block(torch.zeros(4, 8, 8, 64, device='meta'), rays).shape == (4, 8, 8, 64)


@pytest.mark.slow
def test_the_check_compares_with_it_where_diffusers_is_not_installed(small, without_diffusers, monkeypatch, capsys):
    pytest.importorskip('torch')
    assert table.main(['unet', '--check', '--vs', 'plain']) == 0
    assert 'peer: PlainUNet, torch ' in capsys.readouterr().out
    monkeypatch.setitem(unet_bench.TOLERANCE, 'float32', 0.0)
    assert table.main(['unet', '--check', '--vs', 'plain']) == 1


def test_without_its_peer_a_check_measures_ours_and_says_so(small, without_diffusers, tmp_path, capsys):
    pytest.importorskip('torch')
    file = tmp_path / 'bench.json'
    assert table.main(['unet', '--check', '--json', str(file)]) == 0
    said, line = capsys.readouterr().out, json.loads(file.read_text())
    assert 'no peer: diffusers is not installed' in said and 'allowed' not in said
    assert line['no peer'].startswith('diffusers is not installed') and line['figures']['tiny']['t3d_ms'][0] > 0


@pytest.mark.parametrize('module', [mv, sds])
def test_the_others_neither_fail_without_diffusers(module, without_diffusers, monkeypatch, tmp_path, capsys):
    row = {'t3d_ms': measure.timing([1.0]), 'peer_ms': None, 'tflop_per_s': 1.0, 'compile_s': 1.0, 'temp_mib': 1.0}
    row |= {'peak_mib': 1.0, 'parameters': 1, 'gflop': 1.0, 'peer': None, 'difference': None}
    monkeypatch.setattr(sds, 'measured', lambda *arguments: row)
    monkeypatch.setattr(mv, '_measured', lambda *arguments: {'peer': {'dense': {'forward': row}}})
    file = tmp_path / 'bench.json'
    assert module.main(['--check', '--json', str(file)]) == 0
    assert 'no peer: diffusers is not installed' in capsys.readouterr().out and 'no peer' in json.loads(file.read_text())


@pytest.mark.slow
def test_compiled_it_computes_the_same():
    torch_unet = pytest.importorskip('peers.torch_unet')
    if not (shutil.which('g++') or shutil.which('clang++')):
        pytest.skip('torch.compile needs a C++ compiler')
    shape = {'config': {**CONFIGS['2.1'][0], 'block_out_channels': [8, 16]}, 'batch': 1, 'size': 4, 'tokens': 3}
    eager, _ = torch_unet.build(request(shape, 'plain'))
    run, what = torch_unet.build(request(shape, 'compiled'))
    assert what.startswith('PlainUNet by torch.compile in ')
    expected = eager()
    assert (run() - expected).abs().max() < 1e-4 * expected.abs().max()


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so(monkeypatch):
    torch = pytest.importorskip('torch')
    from peers import torch_unet

    def refuses(*arguments, **options):
        raise RuntimeError('no C++ compiler')

    monkeypatch.setattr(torch, 'compile', refuses)
    shape = {'config': CONFIGS['1.5'][0], 'batch': 1, 'size': 4, 'tokens': 3}
    run, what = torch_unet.build(request(shape, 'compiled'))
    assert what == 'PlainUNet, not compiled: RuntimeError: no C++ compiler' and run().shape == (1, 4, 4, 4)
