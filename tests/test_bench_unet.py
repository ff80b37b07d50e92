"""`t3d bench unet`: the table, and the one weight for each name on both sides."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_unet import SMALL, STYLES

from t3d.bench import measure, table
from t3d.bench import unet as unet_bench
from t3d.core import tree
from t3d.nets.unet import UNet

SHAPE = {'config': {**SMALL, **STYLES['1.5']}, 'batch': 2, 'size': 8, 'tokens': 7}


def test_weights_and_inputs_are_those_of_the_peer():
    diffusers, torch_unet = pytest.importorskip('diffusers'), pytest.importorskip('peers.torch_unet')
    from peers import loading

    theirs = torch_unet.fill(diffusers.UNet2DConditionModel(**SHAPE['config']))
    inputs = unet_bench.inputs(SHAPE)
    abstract = loading.abstract_params(UNet.from_config(SHAPE['config']), *inputs)
    jax.tree.map(np.testing.assert_array_equal, unet_bench.weights(abstract), loading.params(theirs, abstract))
    half = tree.flatten(unet_bench.weights(abstract, jnp.bfloat16))
    assert {leaf.dtype for leaf in half.values()} == {jnp.dtype(jnp.bfloat16)}
    latents, t, text = torch_unet.inputs(SHAPE)
    np.testing.assert_array_equal(inputs[0], latents.permute(0, 2, 3, 1))
    np.testing.assert_array_equal(inputs[1], t)
    np.testing.assert_array_equal(inputs[2], text)


def test_the_table_without_a_peer(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(unet_bench, 'SIZES', {'tiny': SHAPE})
    monkeypatch.setattr(measure, 'PAUSE', 0.0)
    monkeypatch.setattr(measure, 'WARM', 0.0)
    file = tmp_path / 'bench.json'
    assert table.main(['unet', '--repeats', '2', '--batch', '1', '--no-peer', '--json', str(file)]) == 0
    printed, row = capsys.readouterr().out, json.loads(file.read_text())['figures']['tiny']
    assert '| tiny | float32 |' in printed and 'peer: not asked for' in printed and 'GFLOP' in printed
    assert row['peak_mib'] > 100 and row['tflop_per_s'] > 0 and row['difference'] is None


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_check_compares_with_diffusers(monkeypatch, capsys, dtype):
    pytest.importorskip('diffusers')
    monkeypatch.setattr(unet_bench, 'SIZES', {'tiny': SHAPE})
    assert table.main(['unet', '--check', '--dtype', dtype]) == 0
    assert f'| tiny | {dtype} |' in capsys.readouterr().out
    monkeypatch.setitem(unet_bench.TOLERANCE, dtype, 0.0)
    assert table.main(['unet', '--check', '--dtype', dtype]) == 1
    assert 'tiny: differs by more than' in capsys.readouterr().out


def test_what_the_check_allows_depends_on_what_is_run():
    """As the tests run: 1e-5. As users run on accelerators: what TF32 and bfloat16 products leave."""
    allowed = unet_bench.tolerance
    assert [allowed('float32', 'highest', backend) for backend in ('cpu', 'gpu', 'tpu')] == [1e-5] * 3
    assert [allowed('float32', 'default', backend) for backend in ('cpu', 'gpu', 'tpu')] == [1e-5, 1e-2, 5e-2]
    assert allowed('bfloat16', 'default', 'cpu') == allowed('bfloat16', 'highest', 'gpu') == 5e-2


@pytest.mark.parametrize(
    ('words', 'ours', 'theirs'),
    [
        ([], 'default', False),
        (['--check'], 'highest', True),
        (['--check', '--precision', 'default'], 'default', True),
        (['--precision', 'highest'], 'highest', False),
    ],
)
def test_precision_is_ours_and_the_peer_of_a_check_is_exact(monkeypatch, capsys, words, ours, theirs):
    seen = {}

    class Peer:
        def ask(self, request):
            seen.setdefault('exact', request.get('exact'))
            return {'is': 'a stand-in', 'ms': 1.0, 'peak_mib': 1.0}

        def close(self):
            pass

    def compiled(function, *arguments):
        seen['precision'] = jax.config.jax_default_matmul_precision
        return measure.Compiled(lambda *arguments: np.zeros(1), 1.0, 0)

    monkeypatch.setattr(unet_bench, 'SIZES', {'tiny': SHAPE})
    monkeypatch.setattr(measure, 'start_peer', lambda *arguments, **others: (Peer(), None))
    monkeypatch.setattr(measure, 'compiled', compiled)
    monkeypatch.setattr(measure, 'take_turns', lambda own, others, repeats: measure.Turns((1.0,), (others[0](),)))
    monkeypatch.setattr(unet_bench, '_difference', lambda *arguments: (0.0, 0.0))
    assert table.main(['unet', *words]) == 0
    assert (seen['precision'] == 'highest', seen['exact']) == (ours == 'highest', theirs)
    assert ('at highest precision' if ours == 'highest' else 'at default precision') in capsys.readouterr().out or not theirs


def test_wrong_requests_are_named(capsys):
    for request, message in ((['--sizes', 'sd3'], "unknown size 'sd3'"), (['--check', '--no-peer'], 'leave --no-peer out')):
        with pytest.raises(SystemExit):
            table.main(['unet', *request])
        assert message in capsys.readouterr().err
