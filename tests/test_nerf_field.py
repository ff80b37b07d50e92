"""NeRF's MLP against a loop in numpy, point by point."""

import math

import jax
import numpy as np
import pytest

from t3d.core import prng, tree
from t3d.fields import nerf_field

SIZES = nerf_field.Sizes(point_octaves=3, direction_octaves=2, width=7, layers=5, skip=3, colour_width=5, features=4)


def loop(params, point, direction, sizes):
    """(density, features) of one point in float64."""
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    relu = lambda x: [max(value, 0.0) for value in x]

    def gamma(x, octaves):
        out = list(x)
        for octave in range(octaves):
            out += [math.sin(2**octave * math.pi * value) for value in x]
            out += [math.cos(2**octave * math.pi * value) for value in x]
        return out

    def linear(layer, x):
        kernel, bias = layer['kernel'], layer['bias']
        assert kernel.shape == (len(x), len(bias))
        return [sum(x[i] * kernel[i, o] for i in range(len(x))) + bias[o] for o in range(len(bias))]

    encoded = gamma(point, sizes.point_octaves)
    hidden = encoded
    for layer in range(sizes.layers):
        hidden = relu(linear(wide['trunk'][str(layer)], hidden))
        if layer == sizes.skip - 1:
            hidden = hidden + encoded
    (density,) = linear(wide['density'], hidden)
    if not sizes.colour_width:
        return density, linear(wide['features'], hidden)
    seen = linear(wide['bottleneck'], hidden) + gamma(direction, sizes.direction_octaves)
    return density, linear(wide['features'], relu(linear(wide['colour'], seen)))


@pytest.mark.parametrize(
    'sizes', [SIZES, SIZES._replace(colour_width=0), SIZES._replace(skip=5), SIZES._replace(skip=0)], ids=str
)
def test_the_network_is_a_loop_over_its_layers(sizes):
    params = jax.jit(nerf_field.init, static_argnums=1)(prng.key(0), sizes)
    random = np.random.default_rng(0)
    noisy = jax.tree.map(lambda leaf: leaf + 0.3 * random.normal(size=leaf.shape).astype(np.float32), params)  # biases too
    points = random.uniform(-1, 1, (2, 3, 3)).astype(np.float32)
    directions = random.normal(size=(2, 3, 3)).astype(np.float32)
    density, features = jax.jit(nerf_field.apply, static_argnums=3)(noisy, points, directions, sizes)
    assert density.shape == (2, 3) and features.shape == (2, 3, 4)
    for place in np.ndindex(2, 3):
        wanted = loop(noisy, points[place], directions[place], sizes)
        np.testing.assert_allclose(density[place], wanted[0], rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(features[place], wanted[1], rtol=2e-5, atol=2e-5)


def test_the_papers_sizes():
    """63 and 27 inputs, 8 layers of 256 with the skip into the sixth, 128 for the colour."""
    params = jax.eval_shape(lambda: nerf_field.init(prng.key(0), nerf_field.Sizes()))
    trunk = 63 * 256 + 4 * 256 * 256 + (256 + 63) * 256 + 2 * 256 * 256 + 8 * 256
    heads = (256 + 1) + (256 * 256 + 256) + (256 + 27) * 128 + 128 + 128 * 3 + 3
    assert tree.count(params) == trunk + heads == 595_844  # as the released code's
    assert params['trunk']['5']['kernel'].shape == (319, 256)


def test_directions_change_features_and_not_density():
    params = jax.jit(nerf_field.init, static_argnums=1)(prng.key(1), SIZES)
    points, ways = np.full((2, 3), 0.2, np.float32), np.array([[0, 0, 1], [0, 1, 0]], np.float32)
    density, features = jax.jit(nerf_field.apply, static_argnums=3)(params, points, ways, SIZES)
    assert density[0] == density[1] and np.abs(features[0] - features[1]).min() > 1e-4
