"""NeRF's MLP: Fourier features of points and view directions to density and colour (arXiv 2003.08934, Sec. 5.1 and App. A).

    h_1 = relu(W_1 gamma(p)), ..., h_S+1 = relu(W [h_S, gamma(p)]), ..., h_L        the skip after layer S = 5 of L = 8
    density = w h_L;   features = V relu(U [B h_L, gamma(d)])                        with directions
                       features = V h_L                                              without

As in the released code, gamma(x) begins with x itself, and the skip joins gamma(p) to the output of layer S. Outputs are raw:
the paper's density is their relu, its colour their sigmoid.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from t3d.core.typing import Array, Float, Key, PyTree, typechecked


class Sizes(NamedTuple):
    """Of the network; the defaults are the paper's.

    Attributes:
      point_octaves, direction_octaves: frequencies of the Fourier features, doubling from pi.
      width, layers: of the trunk; `skip`: the layer whose output the points join again, 0 for none.
      colour_width: of the hidden layer that reads the direction; 0: features do not depend on it.
      features: F outputs beside the density.
    """

    point_octaves: int = 10
    direction_octaves: int = 4
    width: int = 256
    layers: int = 8
    skip: int = 5
    colour_width: int = 128
    features: int = 3


@typechecked
def fourier(x: Float[Array, '*b c'], octaves: int) -> Float[Array, '*b f']:
    """[x, sin(pi x), cos(pi x), ..., sin(2^(K-1) pi x), cos(2^(K-1) pi x)] for K octaves (Eq. 4), C (1 + 2 K) in all."""
    angles = [math.pi * 2.0**octave * x for octave in range(octaves)]
    return jnp.concatenate([x, *(wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos))], -1)


def init(key: Key, sizes: Sizes) -> PyTree:
    """Weights {'trunk': {'0': {kernel, bias}, ...}, 'density', 'features', and with directions 'bottleneck', 'colour'}."""
    points, directions = (3 * (1 + 2 * octaves) for octaves in (sizes.point_octaves, sizes.direction_octaves))
    keys = iter(jax.random.split(key, sizes.layers + 4))

    def linear(inputs, outputs):  # Glorot's uniform initialisation, as in the released code
        limit = math.sqrt(6.0 / (inputs + outputs))
        kernel = jax.random.uniform(next(keys), (inputs, outputs), jnp.float32, -limit, limit)
        return {'kernel': kernel, 'bias': jnp.zeros(outputs, jnp.float32)}

    inputs = lambda layer: points if layer == 0 else sizes.width + (points if layer == sizes.skip else 0)
    params = {'trunk': {str(layer): linear(inputs(layer), sizes.width) for layer in range(sizes.layers)}}
    last = sizes.width + (points if sizes.skip == sizes.layers else 0)
    params['density'] = linear(last, 1)
    if not sizes.colour_width:
        return {**params, 'features': linear(last, sizes.features)}
    params['bottleneck'] = linear(last, sizes.width)
    params['colour'] = linear(sizes.width + directions, sizes.colour_width)
    return {**params, 'features': linear(sizes.colour_width, sizes.features)}


def apply(params: PyTree, points: jax.Array, directions: jax.Array | None, sizes: Sizes) -> tuple[jax.Array, jax.Array]:
    """(raw density [...], raw features [..., F]) at points [..., 3] in [-1, 1]^3 seen along unit directions [..., 3].

    Directions are not read where `colour_width` is 0. Parameters with a leading axis go through jax.vmap.
    """
    encoded = fourier(points, sizes.point_octaves)
    hidden = encoded
    for layer in range(sizes.layers):
        hidden = jax.nn.relu(_linear(params['trunk'][str(layer)], hidden))
        if layer + 1 == sizes.skip:
            hidden = jnp.concatenate([hidden, encoded], -1)
    density = _linear(params['density'], hidden)[..., 0]
    if not sizes.colour_width:
        return density, _linear(params['features'], hidden)
    seen = jnp.concatenate([_linear(params['bottleneck'], hidden), fourier(directions, sizes.direction_octaves)], -1)
    return density, _linear(params['features'], jax.nn.relu(_linear(params['colour'], seen)))


def _linear(layer, x):
    return x @ layer['kernel'] + layer['bias']
