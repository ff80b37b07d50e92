"""Normals against closed forms and finite differences, light and losses against loops in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.core import prng
from t3d.fields import scene_fields
from t3d.geom import shading, volume

CENTRE = np.array([0.1, -0.2, 0.05], np.float32)
WAYS = {'autodiff': shading.with_normals, 'fd': functools.partial(shading.with_difference_normals, offset=1e-2)}


def ball(points):
    """Falls from the middle outwards, not linearly."""
    distance = jnp.sqrt(jnp.sum(jnp.square(points - CENTRE), -1) + 1e-12)
    return jax.nn.softplus(6.0 - 9.0 * distance**1.5), jnp.sin(points)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def directions(*shape, seed=0):
    way = normal(*shape, 3, seed=seed)
    return way / np.linalg.norm(way, axis=-1, keepdims=True)


@pytest.mark.parametrize('way', WAYS)
def test_normals_of_a_ball_are_radial(way):
    outward = directions(3, 7)
    points = CENTRE + np.random.default_rng(1).uniform(0.3, 0.7, (3, 7, 1)).astype(np.float32) * outward
    density, features, normals = jax.jit(lambda points: WAYS[way](ball, points))(points)
    np.testing.assert_allclose(normals, outward, atol=1e-3)
    np.testing.assert_allclose(density, ball(points)[0], rtol=1e-5)
    np.testing.assert_allclose(features, np.sin(points), rtol=1e-5)


def test_normals_of_nothing_are_zero_with_finite_gradients():
    flat = lambda scale, points: (scale * jnp.sum(jnp.square(points), -1), points)
    points = jnp.asarray(normal(5, 3))

    def total(scale):
        return jnp.sum(shading.with_normals(functools.partial(flat, scale), points)[2])

    value, gradient = jax.value_and_grad(total)(0.0)
    assert value == 0.0 and np.isfinite(gradient)
    assert np.all(np.isfinite(jax.grad(lambda points: jnp.sum(shading.unit(points)))(jnp.zeros((2, 3)))))


@pytest.mark.parametrize('kind', ['hash', 'triplane'])
def test_the_gradient_of_shaded_normals_reaches_the_table(kind):
    """A population's normals in one pass; a derivative of second order by its tables against a difference."""
    small = {'levels': 3, 'log2_rows': 9, 'base': 4, 'growth': 1.6, 'resolution': 5, 'channels': 2, 'hidden': 8}
    options = scene_fields.Options(kind, blob='none', **small)
    params = jax.vmap(lambda key: scene_fields.init(key, options))(prng.each(prng.key(0), 2))
    params['grid'] = 0.3 * normal(*params['grid'].shape)
    points = np.random.default_rng(2).uniform(-0.9, 0.9, (2, 6, 3)).astype(np.float32)
    mix = normal(2, 6, 3, seed=3)

    @jax.jit
    @jax.value_and_grad
    def value(grid):
        field = lambda points: scene_fields.raw_each({**params, 'grid': grid}, points, options)
        return jnp.sum(mix * shading.with_normals(field, jnp.asarray(points))[2])

    way = normal(*params['grid'].shape, seed=4)
    exact = np.sum(np.float64(value(params['grid'])[1]) * way)
    above, below = (float(value(params['grid'] + sign * 1e-3 * way)[0]) for sign in (1, -1))
    assert abs(exact) > 0.1
    np.testing.assert_allclose(exact, (above - below) / 2e-3, rtol=1e-3, atol=1e-3)


def test_shading_is_a_loop_over_views_and_points():
    views, count = 3, 5
    albedo = np.random.default_rng(0).uniform(size=(views, count, 3)).astype(np.float32)
    normals, points, lights = directions(views, count), normal(views, count, 3, seed=1), 2.0 * normal(views, 3, seed=2)
    ambient, diffuse = np.array([1.0, 0.1, 0.1], np.float32), np.array([0.0, 0.9, 0.9], np.float32)
    light = shading.Light(lights, ambient, diffuse, np.array([False, False, True]))
    colour = shading.shade(shading.light_at(jax.tree.map(jnp.asarray, light), 1), *map(jnp.asarray, (albedo, normals, points)))
    np.testing.assert_array_equal(colour[0], albedo[0])  # ambient 1, diffuse 0: exactly the albedo
    for v in (1, 2):
        for n in range(count):
            towards = np.float64(lights[v]) - points[v, n]
            lambert = max(0.0, normals[v, n] @ towards / np.linalg.norm(towards))
            own = albedo[v, n] if v == 1 else 1.0
            np.testing.assert_allclose(colour[v, n], own * (0.1 + 0.9 * lambert) * np.ones(3), rtol=1e-5)
    assert np.unique(colour[2]).size > 1
    dark = shading.shade(
        shading.light_at(jax.tree.map(jnp.asarray, light), 1),
        jnp.asarray(1 - albedo),
        jnp.asarray(normals),
        jnp.asarray(points),
    )
    np.testing.assert_array_equal(dark[2], colour[2])  # textureless: the albedo is not read


def test_modes_are_drawn_for_each_view_after_their_start():
    draw = jax.jit(lambda key, step: shading.modes(key, 4000, step, start=100))
    early, late = draw(prng.key(0), 99), draw(prng.key(0), 100)
    assert draw._cache_size() == 1
    assert np.all(early[0] == 1.0) and np.all(early[1] == 0.0) and not np.any(early[2])
    ambient, diffuse, textureless = late
    lit = diffuse > 0
    np.testing.assert_allclose([np.mean(lit), np.mean(textureless)], [0.75, 0.375], atol=0.025)  # three deviations
    np.testing.assert_allclose(ambient, np.where(lit, 0.1, 1.0), rtol=1e-6)
    np.testing.assert_allclose(diffuse, np.where(lit, 0.9, 0.0), rtol=1e-6)
    assert not np.any(textureless & ~lit)
    shown = {mode: [float(value[1]) for value in shading.fixed_mode(mode, 2)] for mode in shading.MODES}
    wanted = {'albedo': [1, 0, 0], 'lambertian': [0.1, 0.9, 0], 'textureless': [0.1, 0.9, 1]}
    for mode in shading.MODES:
        np.testing.assert_allclose(shown[mode], wanted[mode], rtol=1e-6)
    with pytest.raises(ValueError, match='choose one of albedo, lambertian, textureless'):
        shading.fixed_mode('phong', 1)


@pytest.mark.parametrize('camera', [(0.0, 0.0, 1.6), (1.0, -0.4, 0.9), (0.0, 1.5, 0.0), (0.0, -1.5, 0.0)])
def test_lights_of_magic3d_are_evenly_about_the_camera_within_a_cone(camera):
    places = jnp.broadcast_to(jnp.array(camera), (3000, 3))
    lights = np.asarray(jax.jit(functools.partial(shading.light_positions, 'cone'))(prng.key(1), places), np.float64)
    distance = np.linalg.norm(lights, axis=-1)
    assert 0.8 <= distance.min() < 0.82 and 1.48 < distance.max() <= 1.5001
    ahead = np.array(camera) / np.linalg.norm(camera)
    angle = np.degrees(np.arccos(np.clip(lights @ ahead / distance, -1, 1)))
    assert angle.max() < 60.01 and abs(angle.mean() - 30.0) < 1.0  # uniform in [0, 60]
    across = lights / distance[:, None] - (lights @ ahead / distance)[:, None] * ahead
    np.testing.assert_allclose(across.mean(0), 0.0, atol=0.03)  # every side alike


def test_lights_of_dreamfusion_are_a_noisy_camera():
    places = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.5]), (4000, 3))
    lights = np.asarray(shading.light_positions('camera', prng.key(2), places, (0.8, 1.5)))
    distance = np.linalg.norm(lights, axis=-1)
    assert 0.8 <= distance.min() < 0.82 and 1.48 < distance.max() <= 1.5001
    way = np.random.default_rng(0).normal(size=(200_000, 3)) + [0.0, 0.0, 1.5]
    wanted = (way / np.linalg.norm(way, axis=-1, keepdims=True)).mean(0)
    np.testing.assert_allclose((lights / distance[:, None]).mean(0), wanted, atol=0.03)
    with pytest.raises(ValueError, match='choose one of camera, cone'):
        shading.light_positions('sun', prng.key(2), places)


def test_the_orientation_loss_turns_normals_and_leaves_weights():
    rays = directions(4, seed=1)
    normals, weights = directions(4, 6, seed=2), np.random.default_rng(3).uniform(size=(4, 6)).astype(np.float32)
    seen = np.broadcast_to(rays[:, None], normals.shape)
    facing = -np.sign(np.sum(normals * seen, -1, keepdims=True)) * normals
    loss = lambda normals, weights: jnp.sum(
        shading.orientation_loss(weights, shading.facing_away(jnp.asarray(normals), jnp.asarray(seen)))
    )
    assert loss(facing, jnp.asarray(weights)) == 0.0
    wanted = sum(weights[r, s] * max(0.0, normals[r, s] @ rays[r]) ** 2 for r in range(4) for s in range(6))
    np.testing.assert_allclose(loss(normals, jnp.asarray(weights)), wanted, rtol=1e-5)
    to_normals, to_weights = jax.grad(loss, (0, 1))(jnp.asarray(normals), jnp.asarray(weights))
    assert np.all(to_weights == 0.0) and np.abs(to_normals).max() > 0.01


def test_orientation_through_a_renderer_is_the_loss_of_its_weights():
    """Value and both gradients: none by densities, that of constant weights by normals."""
    edges = np.sort(np.random.default_rng(0).uniform(size=(3, 8)), -1).astype(np.float32)
    density, away = np.abs(normal(3, 7)), np.abs(normal(3, 7, seed=1))

    def composited(density, away):
        out = volume.composite(density, shading.orientation_channels(away), jnp.asarray(edges))
        return jnp.sum(shading.orientation_of(out.features))

    def direct(density, away):
        weights = volume.composite(density, away[..., None], jnp.asarray(edges)).weights
        return jnp.sum(shading.orientation_loss(weights, away))

    both = [jax.value_and_grad(way, (0, 1))(jnp.asarray(density), jnp.asarray(away)) for way in (composited, direct)]
    np.testing.assert_allclose(both[0][0], both[1][0], rtol=1e-5)
    np.testing.assert_allclose(both[0][1][1], both[1][1][1], rtol=1e-5)
    assert np.all(both[0][1][0] == 0.0) and np.all(both[1][1][0] == 0.0)


def test_the_opacity_loss_waits_for_its_step_and_for_an_object():
    opacity = np.array([0.0, 0.3, 1.0, 0.1], np.float32)
    loss = jax.jit(lambda opacity, step: shading.opacity_loss(opacity, step, start=10))
    assert loss(opacity, 9) == 0.0
    np.testing.assert_allclose(loss(opacity, 10), np.mean(np.sqrt(np.float64(opacity) ** 2 + 0.01)), rtol=1e-6)
    assert loss(opacity * 0.05, 10) == 0.0  # mean .0175
    slope = jax.grad(loss)
    np.testing.assert_allclose(slope(opacity, 10), opacity / np.sqrt(opacity**2 + 0.01) / 4, rtol=1e-5)
    assert np.all(slope(opacity * 0.05, 10) == 0.0)


def test_smoothness_is_zero_on_a_plane_and_curvature_on_a_ball():
    """On a sphere of radius r a step across turns the normal by step / r: two of three axes count."""
    plane = lambda points: shading.with_normals(lambda p: (p @ jnp.array([1.0, 2.0, -1.0]), p), points)[2]
    points = jnp.asarray(CENTRE + 0.5 * directions(4000))
    np.testing.assert_allclose(shading.smoothness_loss(plane, prng.key(0), points), 0.0, atol=1e-10)
    round_ = lambda points: shading.with_normals(ball, points)[2]
    loss = jax.jit(lambda points: jnp.mean(shading.smoothness_loss(round_, prng.key(0), points, 1e-2)))(points)
    np.testing.assert_allclose(loss, 2 * (1e-2 / 0.5) ** 2, rtol=0.08)
