import jax
import jax.numpy as jnp
import numpy as np

from t3d.geom import rays


def test_ray_box_matches_the_reference(golden):
    data = golden('ray_box')  # hit, miss, oblique hit, origin inside
    bundle = rays.Rays(jnp.asarray(data['o']), jnp.asarray(data['d']))
    near, far = rays.ray_box(bundle, float(data['side']))
    np.testing.assert_allclose(near, data['tmin'][..., 0], atol=1e-6)
    np.testing.assert_allclose(far, data['tmax'][..., 0], atol=1e-6)


def test_ray_box_against_the_points_it_names():
    key_origin, key_direction = jax.random.split(jax.random.key(0))
    origins = 3.0 * jax.random.normal(key_origin, (400, 3))
    directions = jax.random.normal(key_direction, (400, 3)) - 0.5 * origins
    directions = directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)
    near, far = rays.ray_box(rays.Rays(origins, directions), 2.0)
    distances = jnp.linspace(-20.0, 20.0, 4001)
    inside = jnp.all(jnp.abs(origins[:, None] + distances[:, None] * directions[:, None]) <= 1.0, -1)
    hit = near <= far
    assert 50 < int(hit.sum()) < 350
    np.testing.assert_array_equal(near[~hit], -1.0)
    np.testing.assert_array_equal(far[~hit], -2.0)
    assert not inside[~hit].any()
    named = (distances >= near[:, None]) & (distances <= far[:, None])
    disagree = (named != inside)[hit]
    edge = jnp.minimum(jnp.abs(distances - near[:, None]), jnp.abs(distances - far[:, None]))[hit]
    assert not (disagree & (edge > 1e-4)).any()


def test_a_ray_along_a_face_hits_the_closed_box():
    bundle = rays.Rays(jnp.array([[1.0, 0.0, 3.0], [1.0001, 0.0, 3.0]]), jnp.array([[0.0, 0.0, -1.0]] * 2))
    near, far = rays.ray_box(bundle, 2.0)
    np.testing.assert_array_equal(near, [2.0, -1.0])
    np.testing.assert_array_equal(far, [4.0, -2.0])


def test_eg3d_limits_give_misses_the_nears_of_the_batch():
    near, far = rays.eg3d_limits(jnp.array([1.0, 1.5, -1.0]), jnp.array([3.0, 2.5, -2.0]))
    np.testing.assert_array_equal(near, [1.0, 1.5, 1.0])
    np.testing.assert_array_equal(far, [3.0, 2.5, 1.5])
