import subprocess
import sys

import numpy as np
import pytest

from t3d.core.errors import UsageError
from t3d.data.sets import oracle, shapes, toy
from t3d.geom import cameras

AZIMUTH, ELEVATION = np.array([0.3, 2.1, 4.0]), np.array([0.1, 0.6, -0.2])


def signed_distance(thing: shapes.Object, points: np.ndarray) -> np.ndarray:
    """An independent description: |value| is 0 exactly on the surface."""
    p = (points - np.asarray(thing.centre)) / thing.scale
    radial, y = np.hypot(p[:, 0], p[:, 2]), p[:, 1]
    if thing.shape == 'sphere':
        return np.linalg.norm(p, axis=-1) - 0.75
    if thing.shape == 'cube':
        return np.abs(p).max(-1) - 0.52
    if thing.shape == 'cylinder':
        return np.maximum(radial - 0.5, np.abs(y) - 0.65)
    return np.maximum(radial - 0.62 * (0.65 - y) / 1.3, -0.65 - y)


@pytest.mark.parametrize('shape', shapes.SHAPES)
def test_depth_unprojects_onto_the_shape_from_every_view(shape):
    scene = shapes.pair((shape, 'red'), 'on top of', ('cube', 'blue'))
    record = toy.record(scene, AZIMUTH, ELEVATION, 48)
    camera = cameras.Cameras(record['world_from_cam'], record['intrinsics'])
    rays = cameras.rays(camera, 48, 48)
    cosine = np.sum(rays.directions * cameras.forward_axis(camera)[:, None, None], -1)
    points = rays.origins + rays.directions * (record['depth'] / cosine)[..., None]
    on = np.asarray(points)[record['depth'] > 0]
    error = np.min([np.abs(signed_distance(thing, on)) for thing in scene.objects], axis=0)
    assert len(on) > 500 and error.max() < 1e-4
    assert np.array_equal(record['depth'] > 0, record['image'][..., 3] == 255)


@pytest.mark.parametrize('shape', shapes.SHAPES)
def test_normals_agree_with_finite_differences_of_the_surface(shape):
    thing = shapes.single(shape, 'red').objects[0]
    record = toy.render(shapes.single(shape, 'red'), *toy.camera_arrays(AZIMUTH, ELEVATION, shapes.RADIUS, shapes.FOV), 40)
    world_from_cam, intrinsics = toy.camera_arrays(AZIMUTH, ELEVATION, shapes.RADIUS, shapes.FOV)
    camera = cameras.Cameras(world_from_cam, intrinsics)
    rays = cameras.rays(camera, 40, 40)
    cosine = np.sum(rays.directions * cameras.forward_axis(camera)[:, None, None], -1)
    hit = record['depth'] > 0
    points = np.asarray(rays.origins + rays.directions * (record['depth'] / cosine)[..., None], np.float64)[hit]
    gradient = np.stack(
        [signed_distance(thing, points + step) - signed_distance(thing, points - step) for step in 1e-4 * np.eye(3)], -1
    )
    gradient /= np.linalg.norm(gradient, axis=-1, keepdims=True)
    cosine = np.sum(gradient * record['normal'][hit], -1)
    assert np.mean(cosine > 0.999) > 0.97  # edges have no normal
    assert np.all(np.sum(record['normal'][hit] * np.asarray(rays.directions)[hit], -1) < 1e-6)


def test_numpy_cameras_are_those_of_geom():
    world_from_cam, intrinsics = toy.camera_arrays(AZIMUTH, ELEVATION, 3.2, 0.7)
    camera = cameras.orbit(AZIMUTH, ELEVATION, 3.2, 0.7)
    np.testing.assert_allclose(world_from_cam, camera.world_from_cam, atol=1e-6)
    np.testing.assert_allclose(intrinsics, camera.intrinsics, atol=1e-6)


def test_records_are_a_pure_function_of_seed_and_index_across_processes():
    record = toy.ToySource('train', scenes='both', size=16, views=2, seed=3)[17]
    code = (
        'import hashlib; from t3d.data.sets import toy; '
        'r = toy.ToySource("train", scenes="both", size=16, views=2, seed=3)[17];'
        'print(hashlib.sha256(r["image"].tobytes() + r["depth"].tobytes() + r["world_from_cam"].tobytes()).hexdigest())'
    )
    import hashlib

    here = hashlib.sha256(record['image'].tobytes() + record['depth'].tobytes() + record['world_from_cam'].tobytes())
    there = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here.hexdigest()


def test_no_held_out_pair_is_in_train_and_every_attribute_is():
    train = [scene.attributes for scene in shapes.singles('train') + shapes.pairs('train')]
    seen = {(a['shape'], a['colour']) for a in train} | {(a['shape_b'], a['colour_b']) for a in train if 'shape_b' in a}
    held_out = {(a['shape'], a['colour']) for a in (scene.attributes for scene in shapes.singles('test'))}
    assert len(held_out) == 8 and len(seen) == 24 and not seen & held_out
    assert {shape for shape, _ in seen} == set(shapes.SHAPES) and {colour for _, colour in seen} == set(shapes.COLOURS)
    assert len(shapes.pairs('train')) == 24 * 24 * 3 and len(shapes.pairs('test')) == (32 * 32 - 24 * 24) * 3
    names = [scene.captions[0] for scene in shapes.singles('all') + shapes.pairs('all')]
    assert len(set(names)) == len(names) == 64 + 3072


def test_everything_stays_clear_of_the_frame():
    for scene in shapes.singles('all')[::2][:4] + shapes.pairs('all')[::97]:
        alpha = toy.record(scene, np.linspace(0, 6, 7), np.linspace(-0.2, 0.9, 7), 32)['image'][..., 3]
        assert alpha[:, 0].max() == alpha[:, -1].max() == alpha[:, :, 0].max() == alpha[:, :, -1].max() == 0


def test_relations_are_those_of_the_front_view():
    def centroid(relation, k, axis, azimuth=0.0):
        scene = shapes.pair(('cube', 'red'), relation, ('sphere', 'green'))
        arrays = toy.camera_arrays(np.array([azimuth]), np.array([0.0]), shapes.RADIUS, shapes.FOV)
        return np.argwhere(toy.render(scene, *arrays, 64)['object'][0] == k)[:, axis].mean()

    assert centroid('on top of', 0, 0) < centroid('on top of', 1, 0)
    assert centroid('to the left of', 0, 1) < centroid('to the left of', 1, 1)
    assert centroid('in front of', 0, 1, np.pi / 2) < centroid('in front of', 1, 1, np.pi / 2)  # from +x the front is left


def test_the_oracle_names_true_scenes_and_misses_wrong_ones():
    candidates = shapes.pairs('all')[::37]
    judge = oracle.Oracle(candidates, AZIMUTH, ELEVATION, 16)
    images = np.stack([oracle.composite(toy.record(scene, AZIMUTH, ELEVATION, 16)['image']) for scene in candidates])
    noisy = np.clip(images + np.random.default_rng(0).normal(0, 0.1, images.shape), 0, 1)
    assert judge.score(noisy, candidates) == {
        'shape': 1.0,
        'colour': 1.0,
        'relation': 1.0,
        'shape_b': 1.0,
        'colour_b': 1.0,
        'all': 1.0,
    }
    shuffled = judge.score(np.roll(images, 5, axis=0), candidates)
    assert shuffled['all'] == 0.0


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(UsageError, match="'validation'. Known: train, test, all."):
        shapes.singles('validation')
    with pytest.raises(UsageError, match="'triples'. Known: singles, pairs, both."):
        toy.ToySource('train', scenes='triples')
    with pytest.raises(IndexError, match='record 99999'):
        toy.ToySource('train')[99999]


def test_supersampled_views_are_the_mean_of_finer_ones_and_keep_central_depth():
    scene = shapes.pair(('cone', 'red'), 'on top of', ('cube', 'blue'))
    coarse = toy.record(scene, AZIMUTH, ELEVATION, 16, 3)
    fine = oracle.composite(toy.record(scene, AZIMUTH, ELEVATION, 48)['image'], 0.25)
    mean = fine.reshape(3, 16, 3, 16, 3, 3).mean((2, 4))
    np.testing.assert_allclose(oracle.composite(coarse['image'], 0.25), mean, atol=1.5 / 255)
    np.testing.assert_array_equal(coarse['depth'], toy.record(scene, AZIMUTH, ELEVATION, 16)['depth'])
    assert 0 < np.mean((coarse['image'][..., 3] > 0) & (coarse['image'][..., 3] < 255)) < 0.3
    with pytest.raises(ValueError, match='supersample=2: wanted an odd number'):
        toy.record(scene, AZIMUTH, ELEVATION, 16, 2)
