"""Where rows lie on a mesh: what a step makes itself goes through a network as its batch does."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from t3d.core import spread
from t3d.nets import unet
from t3d.parallel import devices, sharding

ROWS, SIZE = 16, 8
NET = unet.UNet(
    block_out_channels=(32, 32),
    down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
    up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
    layers_per_block=1,
    attention_head_dim=4,
    cross_attention_dim=16,
    norm_num_groups=8,
)


@pytest.fixture(scope='module')
def mesh():
    return devices.make({'data': 4, 'fsdp': 2, 'tensor': 1}, jax.devices())


def test_rows_lie_on_the_axes_of_the_batch_where_they_divide(mesh):
    with jax.set_mesh(mesh):
        whole, some = (jax.jit(lambda n=n: spread.rows(jnp.ones((n, 3))))() for n in (16, 6))
    assert whole.sharding.spec == P(('data', 'fsdp'))
    assert some.sharding.is_fully_replicated
    np.testing.assert_array_equal(spread.rows(jnp.arange(6.0)), np.arange(6.0))  # without a mesh: the same


def test_a_network_of_noise_that_the_step_draws_runs_on_the_rows_of_each_device(mesh):
    """The convolutions of maps of the full size make 16 / 8 rows on each device, though the weights are sharded and the noise
    has no place."""
    text = jax.ShapeDtypeStruct((ROWS, 5, 16), jnp.float32)
    first = lambda key: NET.init(key, jnp.zeros((1, SIZE, SIZE, 4)), 0, jnp.zeros((1, 5, 16)))
    shapes = jax.eval_shape(first, jax.random.key(0))
    placed = sharding.shardings(shapes, unet.SHARDING, mesh, 1024)

    def loss(params, key, text):
        noise = jax.random.normal(key, (ROWS, SIZE, SIZE, 4), jnp.float32)
        return jnp.mean(jnp.square(NET.apply(params, noise, 7, text) - noise))

    with jax.set_mesh(mesh):
        weights, batch = sharding.abstract_with(shapes, placed), sharding.abstract_batch({'text': text}, mesh)
        found = jax.jit(loss).lower(weights, jax.random.key(0), batch['text']).compile().as_text()
    rows = [int(n) for n in re.findall(rf'= f32\[(\d+),{SIZE},{SIZE},\d+\]\S* convolution\(', found)]
    assert rows
    assert set(rows) == {ROWS // 8}
