"""Weights folders."""

import jax.numpy as jnp
import numpy as np
import pytest

from t3d.checkpoint import weights

PARAMS = {'a': {'kernel': np.arange(6.0, dtype=np.float32).reshape(2, 3)}, 'table': np.arange(3)}


def test_round_trip(tmp_path):
    weights.save(tmp_path / 'w', PARAMS, {'system': 'dummy', 'sizes': (1, 2)})
    params, config = weights.load(tmp_path / 'w')
    np.testing.assert_array_equal(params['a']['kernel'], PARAMS['a']['kernel'])
    assert config.system == 'dummy' and config.sizes == (1, 2) and params['table'].dtype == PARAMS['table'].dtype
    assert sorted(path.name for path in (tmp_path / 'w').iterdir()) == ['config.json', 'model.safetensors']


def test_half_precision_is_restored_to_the_model(tmp_path):
    weights.save(tmp_path, PARAMS, {}, dtype=jnp.bfloat16)
    params, _ = weights.load(tmp_path)
    assert params['a']['kernel'].dtype == jnp.bfloat16
    assert weights.check(params, PARAMS)['a']['kernel'].dtype == np.float32


def test_missing_files_folder_and_next_step(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        weights.load(tmp_path / 'nowhere')
    for part in ('model.safetensors and config.json', str(tmp_path / 'nowhere'), '--weights DIR', 'T3D_WEIGHTS'):
        assert part in str(error.value)
    weights.save(tmp_path, PARAMS, {})
    (tmp_path / 'config.json').unlink()
    with pytest.raises(FileNotFoundError, match='missing weights: config.json not found'):
        weights.load(tmp_path)


def test_damaged_file(tmp_path):
    weights.save(tmp_path, PARAMS, {})
    (tmp_path / 'model.safetensors').write_bytes((tmp_path / 'model.safetensors').read_bytes()[:-4])
    with pytest.raises(ValueError, match='model.safetensors is damaged .*: copy or download it again'):
        weights.load(tmp_path)


def test_names_and_shapes_must_fit():
    with pytest.raises(ValueError) as error:
        weights.check({'a': {'kernel': np.zeros((2, 2))}, 'b': np.zeros(1)}, PARAMS)
    assert str(error.value).splitlines()[1:] == [
        '  missing: table',
        '  unknown: b',
        '  other shape: a/kernel (2, 2) given, (2, 3) wanted',
    ]
