import functools

import jax
import jax.numpy as jnp

from t3d.metrics import flops


def test_products_convolutions_and_loops():
    a, b = jnp.zeros((4, 5)), jnp.zeros((5, 7))
    assert flops.count(jnp.matmul, a, b) == 2 * 4 * 5 * 7
    x, k = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 6))

    def conv(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

    assert flops.count(conv, x, k) == 2 * 2 * 8 * 8 * 6 * 27

    def loop(a, b):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ (b @ b.T)), None), a, None, length=10)[0]

    assert flops.count(jax.jit(loop), a, jnp.zeros((5, 7))) == 10 * (2 * 5 * 7 * 5 + 2 * 4 * 5 * 5)


def test_a_gradient_costs_the_forward_pass_and_two_products_more():
    a, b = jnp.ones((4, 5)), jnp.ones((5, 7))
    grad = jax.grad(lambda a, b: jnp.sum(jnp.tanh(a @ b)), argnums=(0, 1))
    assert flops.count(grad, a, b) == 3 * 2 * 4 * 5 * 7


def test_what_is_computed_again_does_not_count():
    a, b = jnp.ones((4, 5)), jnp.ones((5, 5))

    def twice(a, b):
        return jnp.tanh(jnp.tanh(a @ b) @ b)

    def loss(layer):
        return lambda a, b: jnp.sum(jax.lax.scan(lambda c, _: (layer(c, b), None), layer(a, b), None, length=3)[0])

    counts = [flops.count(jax.grad(loss(layer), argnums=(0, 1)), a, b) for layer in (twice, jax.checkpoint(twice))]
    assert counts[0] == counts[1] == 4 * 2 * 3 * 2 * 4 * 5 * 5


def test_the_blocks_of_a_lookup_do_not_count_twice():
    from t3d.core import grids

    table, kernel = jnp.ones((16, 4)), jnp.ones((4, 8))
    points = jnp.linspace(0.0, 3.0, 24).reshape(12, 2)

    def corners(points):
        return grids.bilinear_corners(points[:, 0], points[:, 1], 4, 4)

    def loss(kernel, table, size):
        return jnp.sum(grids.lookup_map(lambda kernel, rows: jnp.tanh(rows @ kernel), kernel, table, corners, points, size))

    for size in (12, 4):
        of_block = functools.partial(loss, size=size)
        assert flops.count(jax.grad(of_block, argnums=(0, 1)), kernel, table) == 3 * 2 * 12 * 4 * 8


def test_peaks_are_known_by_kind_and_unknown_on_cpu():
    class Device:
        device_kind = 'NVIDIA H200'

    assert flops.peak(Device()) == 989e12 and flops.peak() is None
