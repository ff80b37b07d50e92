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


def test_peaks_are_known_by_kind_and_unknown_on_cpu():
    class Device:
        device_kind = 'NVIDIA H200'

    assert flops.peak(Device()) == 989e12 and flops.peak() is None
