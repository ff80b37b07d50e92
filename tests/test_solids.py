"""Exact rays in JAX beside the toy set's renderer, which is NumPy and another formula for each shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_toy import signed_distance

from t3d.data.sets import shapes, toy
from t3d.geom import cameras, solids
from t3d.geom.rays import Rays

AZIMUTH, ELEVATION = np.array([0.3, 2.1, 4.0]), np.array([0.1, 0.7, -0.2])
SIZE = 40
SCENES = [*shapes.singles('all')[::9], *shapes.pairs('all')[::187]]  # every shape, every relation


@jax.jit
def looked_at(table, lamp, rays):
    hits = solids.trace(table, rays)
    return hits, solids.colours(table, lamp, hits)


def rays_of(size):
    views = toy.camera_arrays(AZIMUTH, ELEVATION, shapes.RADIUS, shapes.FOV)
    return views, jax.tree.map(lambda leaf: leaf.reshape(-1, 3), cameras.rays(cameras.Cameras(*views), size, size))


def test_the_scenes_of_this_file_have_all_shapes_and_relations():
    assert {thing.shape for scene in SCENES for thing in scene.objects} == set(shapes.SHAPES)
    assert {scene.attributes.get('relation') for scene in SCENES} == {None, *shapes.RELATIONS}
    assert solids.KINDS == shapes.SHAPES and shapes.LAMP.shape == (len(solids.LAMP),)


def test_rays_see_what_the_numpy_renderer_shows():
    views, rays = rays_of(SIZE)
    hidden = 0
    for scene in SCENES:
        hits, colours = looked_at(shapes.table(scene), shapes.LAMP, rays)
        true = toy.trace(scene, *views, SIZE)
        assert np.mean(np.asarray(hits.which) != true.which) < 1e-3  # float32 beside float64, at silhouettes
        on = (true.which >= 0) & (np.asarray(hits.which) == true.which)
        assert on.sum() > 200
        np.testing.assert_allclose(hits.distance[on], true.distance[on], atol=3e-4)
        assert np.all(np.isinf(hits.distance[np.asarray(hits.which) < 0]))
        off = np.abs(np.asarray(hits.normal)[on] - true.normal[on]).max(-1)
        assert np.mean(off > 2e-3) < 0.01  # a cube's edge has the normal of either face
        lit = shapes.shade(shapes.palette(scene)[true.which], true.normal)
        assert np.mean(np.abs(np.asarray(colours)[on] - lit[on]).max(-1) > 2e-3) < 0.01
        assert not np.any(np.asarray(colours)[np.asarray(hits.which) < 0])
        hidden += len(scene.objects) == 2 and int(np.sum(covered(scene, rays) & on))
    assert hidden > 500  # rays that pass through both objects: the nearer one is seen


def covered(scene, rays):
    """Where both objects of a scene lie on a ray."""
    one_by_one = [scene._replace(objects=(thing,)) for thing in scene.objects]
    seen = [shapes.cast(one, np.float64(rays.origins), np.float64(rays.directions))[2] >= 0 for one in one_by_one]
    return np.logical_and(*seen)


@pytest.mark.parametrize(
    'kind, origin, direction, distance, normal',
    [
        ('sphere', (0, 0, 3), (0, 0, -1), 2.5, (0, 0, 1)),
        ('sphere', (0, 0.3, 3), (0, 0, -1), 2.6, (0, 0.6, 0.8)),
        ('cube', (0, 0.1, 3), (0, 0, -1), 2.5, (0, 0, 1)),
        ('cube', (0.1, 3, 0.2), (0, -1, 0), 2.25, (0, 1, 0)),
        ('cylinder', (3, 0.1, 0), (-1, 0, 0), 2.5, (1, 0, 0)),
        ('cylinder', (0.1, 3, 0.2), (0, -1, 0), 2.25, (0, 1, 0)),
        ('cone', (0, 0, 3), (0, 0, -1), 2.75, (0, 1 / 10**0.5, 3 / 10**0.5)),  # half way up: radius 1/4, slope 1/3
        ('cone', (0.1, -3, 0.2), (0, 1, 0), 2.25, (0, -1, 0)),
        ('cone', (0.3, 3, 0), (0, -1, 0), 3.15, (3 / 10**0.5, 1 / 10**0.5, 0)),
        ('sphere', (0, 0, 0), (0, 0, -1), 0.5, (0, 0, -1)),  # from within
        ('cube', (0, 0, 0), (0, 1, 0), 0.75, (0, 1, 0)),
        ('cylinder', (0, 0, 0), (1, 0, 0), 0.5, (1, 0, 0)),
        ('sphere', (0, 0, 3), (0, 0, 1), np.inf, (0, 0, 0)),  # behind
        ('cone', (0, 0, 3), (0, 1, 0), np.inf, (0, 0, 0)),  # beside
    ],
)
def test_hits_are_where_geometry_puts_them(kind, origin, direction, distance, normal):
    half = {'sphere': 0.5}.get(kind, 0.75)
    table = jnp.array([[solids.KINDS.index(kind), 0, 0, 0, 0.5, half, 1, 0, 0], [solids.NONE, *[0] * 8]], jnp.float32)
    hits = solids.trace(table, Rays(jnp.array([origin], jnp.float32), jnp.array([direction], jnp.float32)))
    np.testing.assert_allclose(hits.distance[0], distance, atol=1e-5)
    np.testing.assert_allclose(hits.normal[0], normal, atol=1e-5)
    assert hits.which[0] == (0 if np.isfinite(distance) else -1)


def test_what_lies_inside_is_what_a_distance_says():
    points = np.random.default_rng(0).uniform(-1.0, 1.0, (20_000, 3)).astype(np.float32)
    for scene in SCENES:
        which = np.asarray(solids.inside(shapes.table(scene), points))
        distance = np.stack([signed_distance(thing, np.float64(points)) for thing in scene.objects])
        clear = np.abs(distance).min(0) > 1e-5
        expected = np.where((distance <= 0).any(0), (distance <= 0).argmax(0), -1)
        np.testing.assert_array_equal(which[clear], expected[clear])
        assert np.mean(which >= 0) > 0.01


def test_scenes_are_batched_and_places_without_a_solid_are_empty():
    _, rays = rays_of(8)
    scenes = [shapes.singles('all')[3], shapes.pairs('all')[77]]
    tables = np.stack([shapes.table(scene) for scene in scenes])
    assert tables[0, 1, 0] == solids.NONE
    both = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (2, *leaf.shape)), rays)
    together = solids.trace(tables, both)
    for k in range(2):
        alone = solids.trace(tables[k], rays)
        jax.tree.map(lambda a, b, k=k: np.testing.assert_allclose(a[k], b, atol=1e-6), together, alone)
    assert np.asarray(together.which)[0].max() == 0 and np.asarray(together.which)[1].max() == 1
    none = solids.trace(np.full((1, 9), solids.NONE, np.float32), rays)
    assert np.all(none.which == -1) and np.all(np.isinf(none.distance)) and np.all(none.normal == 0.0)


def test_rays_jittered_in_their_pixels_are_the_supersampled_picture_in_the_mean():
    scene, size, count = SCENES[-1], 24, 400
    views = toy.camera_arrays(AZIMUTH[:1], ELEVATION[:1], shapes.RADIUS, shapes.FOV)
    fine = toy.render(scene, *views, size, supersample=15)['image'][0] / 255.0
    corner = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(1, -1, 2)
    uv = (corner + np.random.default_rng(0).uniform(size=(count, size * size, 2))) / size
    camera = cameras.Cameras(views[0][0], views[1][0])
    rays = cameras.rays_at(camera, jnp.asarray(uv.reshape(-1, 2), jnp.float32))
    hits, colours = looked_at(shapes.table(scene), shapes.LAMP, rays)
    mask = (np.asarray(hits.which) >= 0).reshape(count, size, size).mean(0)
    mean = np.asarray(colours).reshape(count, size, size, 3).mean(0)
    assert np.mean((mask > 0.05) & (mask < 0.95)) > 0.05
    np.testing.assert_allclose(mask, fine[..., 3], atol=0.11)  # 400 draws of 0 or 1: four deviations of .025
    assert np.sqrt(np.mean((mask - fine[..., 3]) ** 2)) < 0.01
    assert np.sqrt(np.mean((mean - fine[..., :3] * fine[..., 3:]) ** 2)) < 0.01
