"""EG3D's field: plane features averaged, a two-layer MLP, raw density and features out; no view direction."""

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
    return {
        'hidden': {'kernel': jax.random.normal(key_hidden, (channels, hidden)) * gain(channels), 'bias': jnp.zeros(hidden)},
        'out': {'kernel': jax.random.normal(key_out, (hidden, 1 + outputs)) * gain(hidden), 'bias': jnp.zeros(1 + outputs)},
    }


@typechecked
def decode(params: PyTree, plane_sum: Float[Array, '*b c'], *, equalised: bool = True, dtype=jnp.float32):
    """(raw density [...], raw features [..., outputs]) from the *sum* of the plane features; the mean's 1/3 is in the weights."""
    first, last = params['hidden'], params['out']
    gain = (lambda kernel: kernel.shape[0] ** -0.5) if equalised else (lambda kernel: 1.0)
    kernel = (first['kernel'] * (gain(first['kernel']) / 3.0)).astype(dtype)
    hidden = softplus(plane_sum.astype(dtype) @ kernel + first['bias'].astype(dtype))
    out = hidden @ (last['kernel'] * gain(last['kernel'])).astype(dtype) + last['bias'].astype(dtype)
    return out[..., 0].astype(jnp.float32), out[..., 1:]


def colour(features: jax.Array) -> jax.Array:
    """sigmoid(x) * 1.002 - 0.001: reaches 0 and 1 at finite x (mip-NeRF, Sec. A; EG3D's decoder)."""
    return jax.nn.sigmoid(features) * 1.002 - 0.001


def make(
    params: PyTree, planes: Float[Array, '*b 3 r r c'], *, bound: float, plane_axes: str = 'orthogonal', equalised: bool = True,
    activation=colour, dtype=jnp.float32,
):
    """The field of these planes: `(points [*b, N, 3], directions) -> (raw density [*b, N], activation(features) [*b, N, outputs])`.

    EG3D's density is softplus(raw - 1) (`density_activation` of the renderer).
    """
    padded = triplanes.pad(planes)

    def field(points, directions=None):
        plane_sum = triplanes.sample_sum(padded, points, bound, plane_axes)
        density, features = decode(params, plane_sum, equalised=equalised, dtype=dtype)
        return density, activation(features)

    return field


def eg3d_density(raw: jax.Array) -> jax.Array:
    """softplus(raw - 1)."""
    return softplus(raw - 1.0)
