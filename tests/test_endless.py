"""toy_endless: objects that differ, surfaces by another description, pictures with labels, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.data import sets, sources
from t3d.data.adapters import single_view
from t3d.data.sets import endless, oracle, shapes, toy
from t3d.geom import cameras

GAN = ('data.size=16', 'data.supersample=1', 'data.count=40', 'batch=8')


def level(thing: shapes.Object, points: np.ndarray) -> np.ndarray:
    """0 exactly on the surface: the solid's own inequality at points brought back by complex numbers."""
    p = points - np.asarray(thing.centre)
    flat = (p[:, 0] + 1j * p[:, 2]) * np.exp(1j * thing.turn)  # a turn from +z to +x goes from 1j to 1
    x, y, z = (v / (thing.scale * by) for v, by in zip((flat.real, p[:, 1], flat.imag), thing.stretch))
    radial = np.hypot(x, z)
    return {
        'sphere': lambda: np.sqrt(x * x + y * y + z * z) - 0.75,
        'cube': lambda: np.max(np.abs([x, y, z]), 0) - 0.52,
        'cylinder': lambda: np.maximum(radial - 0.5, np.abs(y) - 0.65),
        'cone': lambda: np.maximum(radial - 0.62 * (0.65 - y) / 1.3, -0.65 - y),
    }[thing.shape]()


def surface(scene, size: int = 40):
    """(points on the surface, their normals, their objects) from two cameras."""
    pose, lens = toy.camera_arrays(np.array([0.4, 3.3]), np.array([0.5, -0.1]), shapes.RADIUS, shapes.FOV)
    seen, camera = toy.render(scene, pose, lens, size), cameras.Cameras(pose, lens)
    rays = cameras.rays(camera, size, size)
    along = seen['depth'] / np.sum(rays.directions * cameras.forward_axis(camera)[:, None, None], -1)
    points = np.asarray(rays.origins + rays.directions * along[..., None], np.float64)
    hit = seen['depth'] > 0
    return points[hit], seen['normal'][hit], seen['object'][hit]


@pytest.mark.parametrize('index', range(12))
def test_depth_and_normals_are_those_of_the_solids(index):
    scene = endless.scene(5, 'train', index)
    points, normals, which = surface(scene)
    assert len(points) > 60
    for k, thing in enumerate(scene.objects):
        own, normal = points[which == k], normals[which == k]
        assert np.abs(level(thing, own)).max(initial=0.0) < 3e-6 * 50
        steps = 1e-5 * np.eye(3)
        gradient = np.stack([level(thing, own + step) - level(thing, own - step) for step in steps], -1)
        gradient /= np.linalg.norm(gradient, axis=-1, keepdims=True)
        assert np.mean(np.sum(gradient * normal, -1) > 0.9999) > 0.95  # edges have none


def test_every_object_is_another_and_all_kinds_come():
    scenes = [endless.scene(0, 'train', k) for k in range(400)]
    assert len({scene.objects for scene in scenes}) == 400
    assert {endless.scene(0, 'test', k).objects for k in range(400)}.isdisjoint(scene.objects for scene in scenes)
    assert scenes[7] == endless.scene(0, 'train', 7) != endless.scene(1, 'train', 7)
    two = np.mean([len(scene.objects) == 2 for scene in scenes])
    assert abs(two - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)
    for slot, words in (('shape', shapes.SHAPES), ('colour', shapes.COLOURS)):
        share = np.array([np.mean([scene.attributes[slot] == word for scene in scenes]) for word in words])
        assert np.all(np.abs(share - 1 / len(share)) < 4 * np.sqrt(share / 400))
    assert {word for scene in scenes for caption in scene.captions for word in caption.split()} <= set(endless.WORDS)


def test_all_of_an_object_lies_in_the_box_of_the_configs_and_rests_on_the_other():
    for k in range(300):
        scene = endless.scene(2, 'train', k)
        for thing in scene.objects:
            wide, high = (thing.scale * extent for extent in shapes.EXTENT[thing.shape])
            diagonal = wide * max(thing.stretch[0], thing.stretch[2]) * (np.sqrt(2.0) if thing.shape == 'cube' else 1.0)
            assert diagonal <= 0.8 and abs(thing.centre[1]) + high * thing.stretch[1] <= 0.8
        if len(scene.objects) == 2:
            upper, lower = scene.objects
            half = [thing.scale * shapes.HALF_HEIGHT[thing.shape] * thing.stretch[1] for thing in scene.objects]
            assert upper.centre[1] - half[0] == pytest.approx(lower.centre[1] + half[1])


def test_a_word_of_colour_is_the_nearest_colour():
    """Hues vary, but less than colours differ."""
    names = list(shapes.COLOURS)
    table = np.array([shapes.COLOURS[name] for name in names])
    solids = [thing for k in range(400) for thing in endless.scene(3, 'train', k).objects]
    nearest = [names[np.argmin(np.sum((table - np.asarray(thing.rgb)) ** 2, -1))] for thing in solids]
    assert np.mean([name == thing.colour for name, thing in zip(nearest, solids)]) > 0.98


def test_a_picture_is_that_of_its_label():
    config = configs.load('configs/ganfusion_gan.py:endless', GAN)
    source = single_view.open_set(config)
    assert len(source) == 40 and source.labels.shape == (40, 25)
    for k in (0, 17, 39):
        label = source[k]['label']
        scene = endless.scene(0, 'train', k)
        drawn = toy.render(scene, label[None, :16].reshape(1, 4, 4), label[None, 16:].reshape(1, 3, 3), 16)['image'][0]
        np.testing.assert_allclose(source[k]['image'] / 255.0, oracle.composite(drawn, 0.5), atol=0.6 / 255)
        assert source[k]['captions'] == scene.captions
    azimuth = np.asarray(cameras.angles(cameras.from_eg3d(jnp.asarray(source.labels)).world_from_cam)[0])
    assert np.ptp(azimuth) > 5.0


@pytest.mark.parametrize('spec', ['ganfusion_gan', 'renderdiffusion'])
def test_batches_of_the_configs(spec):
    made, transform = sources.make(sources.resolve(configs.load(f'configs/{spec}.py:endless', GAN)))
    row = transform(made[3], np.random.default_rng(0))
    assert row['image'].shape == (16, 16, 3) and row['label'].shape == (25,)


def test_several_views_of_an_object_as_records_and_previews():
    data = configs.from_dict({'count': 5, 'views': 3, 'size': 16, 'seed': 4, 'supersample': 1, 'name': 'toy_endless'})
    source = sets.open_set(data, 'train')
    assert len(source) == 5 and source[4]['image'].shape == (3, 16, 16, 4) and np.ptp(source[4]['azimuth']) > 0
    first, second = sets.procedural('toy_endless').preview_records(data, 2, 4)
    assert first['image'].shape == (4, 16, 16, 4) and first['name'] == endless.scene(4, 'test', 0).captions[0] != second['name']
    np.testing.assert_array_equal(sets.light('toy_endless')(np.eye(3)), toy.light(np.eye(3)))


def test_other_splits_and_rays_in_closed_form_are_refused():
    with pytest.raises(UsageError, match="unknown split of toy_endless .data.split. 'all'"):
        single_view.open_set(configs.load('configs/ganfusion_gan.py:endless', [*GAN, 'data.split=all']))
    with pytest.raises(UsageError, match='needs data.count, the number of objects, at least 1'):
        single_view.open_set(configs.load('configs/ganfusion_gan.py:tiny', ['data.name=toy_endless']))
    with pytest.raises(UsageError, match='reads no files: leave the path out'):
        sources.make(configs.load('configs/ganfusion_gan.py:endless', [*GAN, 'data.path=x']))
    with pytest.raises(ValueError, match='no stretch and no turn'):
        shapes.table(endless.scene(0, 'train', 0))
