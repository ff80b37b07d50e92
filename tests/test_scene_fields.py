"""The four kinds of scene fields against their parts computed apart, blobs and densities against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.core import limits, limits_scenes, prng
from t3d.core.errors import UsageError
from t3d.fields import nerf_field, scene_fields, triplane_field
from t3d.fields.scene_fields import Options
from t3d.geom import hashgrid, shading

SMALL = {'levels': 4, 'log2_rows': 9, 'base': 4, 'growth': 1.6, 'resolution': 5, 'channels': 3, 'hidden': 8, 'features': 4}
SMALL |= {'first_levels': 2, 'start': 10, 'every': 5, 'octaves': 2, 'layers': 3, 'bias': -0.5}
OPTIONS = {kind: Options(kind, **SMALL) for kind in scene_fields.KINDS}
raw = jax.jit(scene_fields.raw, static_argnums=2)
raw_each = jax.jit(scene_fields.raw_each, static_argnums=2)


@functools.cache
def population(options, count=3, seed=0):
    """Parameters of scenes whose grids are not nearly zero."""
    params = jax.jit(jax.vmap(functools.partial(scene_fields.init, options=options)))(prng.each(prng.key(seed), count))
    return {**params, 'grid': params['grid'] * (1.0 if options.kind == 'triplane' else 3e3)} if 'grid' in params else params


def scene(params, p=0):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[p], params)


def points(*lead, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (*lead, 3)).astype(np.float32)


@pytest.mark.parametrize('kind', scene_fields.KINDS)
def test_scenes_at_once_are_each_alone(kind):
    params, places = population(OPTIONS[kind]), points(3, 2, 5)
    density, features = raw_each(params, places, OPTIONS[kind], jnp.int32(16))
    assert density.shape == (3, 2, 5) and features.shape == (3, 2, 5, 4) and np.std(features) > 1e-3
    for p in range(3):
        alone = raw(scene(params, p), places[p], OPTIONS[kind], jnp.int32(16))
        np.testing.assert_allclose(density[p], alone[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(features[p], alone[1], rtol=1e-5, atol=1e-5)


def test_a_hash_field_is_the_grid_and_relu_layers():
    options = OPTIONS['hash']._replace(blob='none')
    params, places = scene(population(options)), points(11)
    layout = hashgrid.layout(options.levels, options.log2_rows, options.base, options.growth)
    hidden = np.asarray(hashgrid.encode(layout, jnp.asarray(params['grid']), jnp.asarray(0.5 * (places + 1))), np.float64)
    assert hidden.std() > 0.05
    for n in range(3):
        hidden = np.maximum(hidden @ np.asarray(params['mlp'][str(n)]), 0.0)
    out = hidden @ np.asarray(params['mlp']['3'])
    density, features = raw(params, places, options)
    np.testing.assert_allclose(density, out[:, 0] - 0.5, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features, out[:, 1:], rtol=1e-4, atol=1e-5)
    masked = raw({**params, 'grid': params['grid'] * (np.arange(layout.total) < layout.offsets[2])[:, None]}, places, options)
    np.testing.assert_allclose(raw(params, places, options, jnp.int32(12))[1], masked[1], atol=1e-6)  # two levels


def test_a_dense_field_is_the_trilinear_mean_of_its_cells():
    """The faces of the cube are grid points; a loop over the eight corners."""
    options = OPTIONS['dense']._replace(layers=0, blob='none', bias=0.0)
    params, places = scene(population(options), 1), points(9)
    places[0], places[1] = 1.0, -1.0
    kernel, grid = np.asarray(params['mlp']['0'], np.float64), np.asarray(params['grid'], np.float64)
    density, features = raw(params, places, options)
    for n, point in enumerate(np.float64(places)):
        row = np.zeros(3)
        for cell in np.ndindex(5, 5, 5):  # z, y, x
            row += grid[cell] * np.prod(np.maximum(1.0 - np.abs(2.0 * (point + 1.0) - cell[::-1]), 0.0))
        np.testing.assert_allclose(np.append(density[n], features[n]), row @ kernel, rtol=1e-4, atol=1e-6)


def test_triplane_and_mlp_are_the_fields_of_their_files():
    places = points(6)
    options = OPTIONS['triplane']._replace(blob='none')
    params = scene(population(options))
    theirs = triplane_field.make(params['mlp'], jnp.asarray(params['grid']), bound=1.0, equalised=False, activation=lambda x: x)
    wanted, ours = theirs(jnp.asarray(places)), raw(params, places, options)
    np.testing.assert_allclose(ours[0], wanted[0] - 0.5, atol=1e-5)
    np.testing.assert_allclose(ours[1], wanted[1], atol=1e-5)
    options = OPTIONS['mlp']._replace(blob='none')
    params = scene(population(options))
    sizes = nerf_field.Sizes(point_octaves=2, width=8, layers=3, skip=2, colour_width=0, features=4)
    wanted = nerf_field.apply(params['mlp'], jnp.asarray(places), None, sizes)
    ours = raw(params, places, options)
    np.testing.assert_allclose(ours[0], wanted[0] - 0.5, atol=1e-5)
    np.testing.assert_allclose(ours[1], wanted[1], atol=1e-5)


def test_blobs_are_the_closed_forms_with_finite_gradients():
    at = np.array([[0, 0, 0], [0.3, 0, 0.4], [0, 0.2, 0], [1, 1, 1]], np.float32)
    distance = np.linalg.norm(at, axis=-1)
    cone = Options(blob='cone', blob_height=10.0, blob_width=0.5)
    gaussian = Options(blob='gaussian', blob_height=5.0, blob_width=0.2)
    np.testing.assert_allclose(scene_fields.blob(at, cone), 10 * (1 - distance / 0.5), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(scene_fields.blob(at, gaussian), 5 * np.exp(-(distance**2) / (2 * 0.2**2)), rtol=1e-5)
    assert np.all(np.asarray(scene_fields.blob(at, Options(blob='none'))) == 0.0)
    for options in (cone, gaussian):
        slopes = jax.jit(jax.grad(lambda at, options=options: jnp.sum(scene_fields.blob(at, options))))(at)
        assert np.all(np.isfinite(slopes)) and np.all(slopes[0] == 0.0)


def test_densities_and_albedo_and_the_field_of_the_renderer():
    values = np.array([-20.0, -1.0, 0.0, 3.0], np.float32)
    np.testing.assert_allclose(scene_fields.density(values, Options()), np.log1p(np.exp(np.float64(values))), rtol=1e-5)
    np.testing.assert_allclose(scene_fields.density(values, Options(activation='exp')), np.exp(values), rtol=1e-6)
    params, places = population(OPTIONS['mlp']), points(3, 7)
    density, colour = scene_fields.field(params, OPTIONS['mlp'], population=True)(jnp.asarray(places), None)
    wanted = raw_each(params, places, OPTIONS['mlp'])
    np.testing.assert_allclose(density, wanted[0], atol=1e-6)
    np.testing.assert_allclose(colour, 1 / (1 + np.exp(-np.float64(wanted[1][..., :3]))), atol=1e-6)


@pytest.mark.parametrize('kind', scene_fields.KINDS)
def test_second_derivatives_are_finite_differences(kind):
    """Of |d density / d point|^2 by the parameters, which normals need, along a direction; no blob, which has none."""
    options = OPTIONS[kind]._replace(blob='none', layers=1)
    params, places = scene(population(options)), points(8, seed=3)
    slope = jax.grad(lambda places, params: jnp.sum(scene_fields.raw(params, places, options)[0]))
    value = jax.jit(lambda params: jnp.sum(jnp.square(slope(places, params))))
    random = np.random.default_rng(5)
    way = jax.tree.map(lambda leaf: 0.1 * random.normal(size=leaf.shape).astype(np.float32), params)
    exact = sum(np.sum(np.float64(g) * w) for g, w in zip(*map(jax.tree.leaves, (jax.grad(value)(params), way))))
    step = 2e-3
    at = lambda step: float(value(jax.tree.map(lambda p, w: p + step * w, params, way)))
    above, below = at(step), at(-step)
    np.testing.assert_allclose(exact, (above - below) / (2 * step), rtol=5e-3)


def test_options_that_no_field_has_are_refused():
    for wrong in ({'kind': 'voxels'}, {'activation': 'relu'}, {'blob': 'ball'}):
        (name, value) = next(iter(wrong.items()))
        with pytest.raises(UsageError, match=f"scene.{name}='{value}': wanted one of "):
            scene_fields.check(Options(**wrong))
    with pytest.raises(UsageError, match='hash grid of 40 levels'):
        scene_fields.check(Options(levels=40))


def test_every_option_has_a_range_that_its_default_keeps_and_the_names_of_the_code():
    table = limits_scenes.SCENES
    defaults = {f'scene.{name}': value for name, value in Options()._asdict().items()}
    assert {name for name in table if name.startswith('scene.')} == set(defaults)
    assert all(table[name].accept(value) == value for name, value in defaults.items())
    names = (scene_fields.KINDS, scene_fields.ACTIVATIONS, scene_fields.BLOBS, shading.SAMPLERS)
    assert tuple(table[name].choices for name in ('scene.kind', 'scene.activation', 'scene.blob', 'shading.light')) == names
    assert not set(table) & set(limits.LIMITS) or set(table) <= set(limits.LIMITS)  # none, or all, are in the table of configs
