"""The device mesh."""

import jax
import pytest
from jax.sharding import AxisType

from t3d.core.errors import UsageError
from t3d.parallel import devices


@pytest.mark.parametrize(
    'shape, sizes',
    [
        (None, (8, 1, 1)),
        ({'data': -1, 'fsdp': 2, 'tensor': 2}, (2, 2, 2)),
        ({'data': 1, 'fsdp': -1}, (1, 8, 1)),
        ({'data': 2, 'fsdp': 1, 'tensor': 1}, (2, 1, 1)),
    ],
)
def test_sizes_and_auto_axes(shape, sizes):
    mesh = devices.make(shape)
    assert tuple(mesh.shape.values()) == sizes and mesh.axis_names == devices.AXES
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    'shape, says',
    [
        ({'data': 3, 'fsdp': -1}, 'data=3 x fsdp=-1 x tensor=1 does not fit 8 devices'),
        ({'data': 16}, r'one of \[1, 2, 4, 8\]'),
        ({'data': -1, 'fsdp': -1}, 'at most one is -1'),
        ({'data': 0}, 'positive'),
        ({'model': 2}, "unknown mesh axis 'model'"),
    ],
)
def test_sizes_that_do_not_fit(shape, says):
    with pytest.raises(UsageError, match=says):
        devices.make(shape)


def test_batch_names_the_nearest_sizes():
    mesh = devices.make({'data': 4, 'fsdp': 2})
    devices.check_batch(16, mesh)
    with pytest.raises(UsageError, match='batch 12 is not divisible by the 8 .*set batch=8 or 16'):
        devices.check_batch(12, mesh)
    with pytest.raises(UsageError, match='set batch=8,'):
        devices.check_batch(4, mesh)


def test_describe():
    assert devices.describe() == 'devices: 8 x CPU (no accelerator found)'
    assert devices.describe(devices.make({'data': 2})).endswith(', 2 used, mesh data=2 fsdp=1 tensor=1')


def test_hybrid_arrangement_is_chosen_for_tpus_only():
    assert devices.make({'data': 8}).devices.ravel().tolist() == jax.devices()
