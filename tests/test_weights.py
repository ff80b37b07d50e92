"""Weights folders."""

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from t3d.checkpoint import weights
from t3d.core.errors import UsageError

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


@pytest.mark.parametrize(
    ('value', 'dtype', 'message'),
    [
        (1e5, 'float16', 'a/kernel would hold infinity: 1e.05 is beyond 65504, the largest number of float16. Write float32'),
        (-7e4, 'float16', 'a/kernel would hold infinity'),
        (3.4e38, 'bfloat16', r'a/kernel would hold infinity: 3.4e.38 is beyond 3.3895e.38, the largest number of bfloat16'),
        (np.inf, 'float32', 'a/kernel holds NaN or infinity'),
        (np.nan, None, 'a/kernel holds NaN or infinity'),
        (1e-9, 'float16', r'a/kernel would vanish: its values \(at most 1e-09\) are too small for float16. Write float32'),
        (1.5e-7, 'float16', 'a/kernel would vanish'),
    ],
)
def test_values_that_a_type_cannot_hold_are_refused_by_name(tmp_path, value, dtype, message):
    params = {'a': {'kernel': np.full((2, 3), value, np.float32)}, 'b': np.ones(4, np.float32)}
    with pytest.raises(UsageError, match=message):
        weights.save(tmp_path / 'w', params, {}, dtype=dtype)
    assert not (tmp_path / 'w').exists()


def test_values_that_a_type_holds_are_written(tmp_path):
    kernel = np.float32([65504.0, 1.0, 1e-9, 0.0])  # one small value among others is no loss
    for dtype in ('float16', 'bfloat16', 'float32', None):
        weights.save(
            tmp_path, {'kernel': kernel, 'zero': np.zeros(3, np.float32), 'none': np.zeros((0, 3), np.float32)}, {}, dtype
        )
        np.testing.assert_allclose(weights.load(tmp_path)[0]['kernel'].astype(np.float32), kernel, rtol=2**-8, atol=1e-7)


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


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_named_when_they_are_read(tmp_path, value, dtype):
    weights.save(tmp_path, PARAMS, {}, dtype)
    assert np.isfinite(np.float32(weights.load(tmp_path)[0]['a']['kernel'])).all()
    stored = safetensors.numpy.load_file(tmp_path / 'model.safetensors')
    stored['a/kernel'] = stored['a/kernel'].copy()
    stored['a/kernel'][0, 1] = value
    safetensors.numpy.save_file(stored, tmp_path / 'model.safetensors')
    with pytest.raises(UsageError, match=r'model.safetensors holds NaN or infinity in a/kernel: copy it again'):
        weights.load(tmp_path)


def test_names_and_shapes_must_fit():
    with pytest.raises(ValueError) as error:
        weights.check({'a': {'kernel': np.zeros((2, 2))}, 'b': np.zeros(1)}, PARAMS)
    assert str(error.value).splitlines()[1:] == [
        '  missing: table',
        '  unknown: b',
        '  other shape: a/kernel (2, 2) given, (2, 3) wanted',
    ]
