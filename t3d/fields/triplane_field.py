"""EG3D's field: plane features averaged, a two-layer MLP, raw density and features out; no view direction.

The plane features, the hidden layer and their gradients exist for one block of points at a time (`triplanes.map_sum`).
"""

import jax
import jax.numpy as jnp

from t3d.core.numerics import softplus
from t3d.core.typing import Array, Float, Key, PyTree, typechecked
from t3d.geom import triplanes


def init(key: Key, channels: int, *, hidden: int = 64, outputs: int = 32, equalised: bool = True) -> PyTree:
    """Weights {'hidden': {kernel [C, H], bias}, 'out': {kernel [H, 1 + outputs], bias}}.

    Equalised (EG3D): N(0, 1) weights, divided by sqrt(fan_in) at run time. Plain: the division is in the weights.
    """
    key_hidden, key_out = jax.random.split(key)
    gain = (lambda fan_in: 1.0) if equalised else (lambda fan_in: fan_in**-0.5)

    def linear(key, width, count):
        kernel = jax.random.normal(key, (width, count), jnp.float32) * gain(width)
        return {'kernel': kernel, 'bias': jnp.zeros(count, jnp.float32)}

    return {'hidden': linear(key_hidden, channels, hidden), 'out': linear(key_out, hidden, 1 + outputs)}


LOG1P = (  # log(1 + e) / e on [0, 1]: Chebyshev fit of degree 8, error 2e-8 (tests/test_triplane_field.py makes it again)
    0.9999999705,
    -0.4999950152,
    0.3331927134,
    -0.2484436989,
    0.1911143108,
    -0.136747697,
    0.07836166801,
    -0.02958850739,
    0.005253457796,
)


@jax.custom_vjp
def hidden_softplus(x: jax.Array) -> jax.Array:
    """softplus to 2e-7 absolute, for hidden layers: a polynomial for the logarithm, a gradient that needs the result alone.

    Three times as fast on a CPU as max(x, 0) + log1p(exp(-|x|)), which the densities keep for its relative accuracy.
    """
    e = jnp.exp(-jnp.abs(x))
    series = jnp.full_like(e, LOG1P[-1])
    for coefficient in LOG1P[-2::-1]:
        series = series * e + coefficient
    return jnp.maximum(x, 0.0) + series * e


hidden_softplus.defvjp(lambda x: (lambda y: (y, y))(hidden_softplus(x)), lambda y, gradient: (gradient * (1.0 - jnp.exp(-y)),))


def folded(params: PyTree, *, equalised: bool = True):
    """(kernel [C, H], bias, kernel [1 + outputs, H], bias) of the MLP on *sums* of plane features: gains and 1/3 included."""
    first, last = params['hidden'], params['out']
    gain = (lambda kernel: kernel.shape[0] ** -0.5) if equalised else (lambda kernel: 1.0)
    # The transposed kernel's gradient is [outputs, P] @ [P, H], on a CPU twice as fast as [H, P] @ [P, outputs].
    out_kernel = (last['kernel'] * gain(last['kernel'])).T
    return first['kernel'] * (gain(first['kernel']) / 3.0), first['bias'], out_kernel, last['bias']


@typechecked
def decode(params: PyTree, plane_sum: Float[Array, '*b c'], *, equalised: bool = True, dtype=jnp.float32):
    """(raw density [...], raw features [..., outputs]) of the *sum* of the plane features; the mean's 1/3 is in the weights."""
    kernel, bias, out_kernel, out_bias = (x.astype(dtype) for x in folded(params, equalised=equalised))
    hidden = hidden_softplus(plane_sum.astype(dtype) @ kernel + bias)
    density = (hidden @ out_kernel[:1].T)[..., 0] + out_bias[0]  # apart from the features: no slice to copy
    return density.astype(jnp.float32), jnp.einsum('...h,fh->...f', hidden, out_kernel[1:]) + out_bias[1:]


def colour(features: jax.Array) -> jax.Array:
    """sigmoid(x) * 1.002 - 0.001: reaches 0 and 1 at finite x (mip-NeRF, Sec. A; EG3D's decoder)."""
    return jax.nn.sigmoid(features) * 1.002 - 0.001


def make(
    params: PyTree,
    planes: Float[Array, '*b 3 r r c'],
    *,
    bound: float,
    plane_axes: str = 'orthogonal',
    equalised: bool = True,
    activation=colour,
    dtype=jnp.float32,
    block: int | None = None,
):
    """The field of these planes: `(points [*b, N, 3], directions) -> (raw density [*b, N], activation(features) [*b, N, F])`.

    EG3D's density is softplus(raw - 1) (`eg3d_density`, the renderer's `density_activation`). For `block` see
    `triplanes.map_sum`; it changes memory and speed, not the result.
    """
    padded = triplanes.pad(planes)

    def point_mlp(params, plane_sum):
        density, features = decode(params, plane_sum, equalised=equalised, dtype=dtype)
        return density, activation(features)

    def field(points, directions=None):
        return triplanes.map_sum(point_mlp, params, padded, points, bound, plane_axes, block=block)

    return field


def eg3d_density(raw: jax.Array) -> jax.Array:
    """softplus(raw - 1)."""
    return softplus(raw - 1.0)
