"""The score of sharpness, of systems whose quality is known: one that draws exact rays, blurred ones, and other scenes."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_evaluate import loaded_with

from t3d.core.errors import UsageError
from t3d.core.outputs import Field
from t3d.data.sets import oracle, shapes, toy
from t3d.evaluate import table, toy_sharpness
from t3d.geom import solids
from t3d.geom.volume import RenderOutput
from t3d.metrics.scores import derangement


def traced(scene, rays):
    """Field.render by exact rays, the object moved aside by scene['off']."""
    shape = rays.origins.shape[:-1]
    flat = rays.replace(origins=rays.origins.reshape(-1, 3) - scene['off'], directions=rays.directions.reshape(-1, 3))
    hits = solids.trace(scene['table'], flat)
    hit = (hits.which >= 0)[:, None]
    seen = jnp.where(hit, solids.colours(scene['table'], scene['lamp'], hits), 1.0)
    return RenderOutput(seen.reshape(*shape, 3), hit[:, 0].reshape(shape), hits.distance.reshape(shape), None)


def dense(scene, points):
    """Field.field of the same: the density says where something is, the colours are not read."""
    within = solids.inside(scene['table'], points - scene['off']) >= 0
    return jnp.where(within, 50.0, 0.0), jnp.zeros((*points.shape[:-1], 3))


PAIRS, SINGLES = loaded_with({}, 'instant3d.py:scenes_rays').config, loaded_with({}).config


def drawn(scenes, off=0.0, config=PAIRS):
    """A model that draws these scenes; of two captions those of each other where `off` is None."""
    names = [scene.captions[0] for scene in scenes]
    shown = [scenes[k] for k in derangement(len(scenes))] if off is None else scenes
    tables = dict(zip(names, map(shapes.table, shown)))
    loaded = loaded_with({})._replace(config=config)

    def generate(params, requests, keys, given):
        camera = {'radius': shapes.RADIUS, 'fov': shapes.FOV}
        scene = lambda prompt: {'table': tables[prompt], 'lamp': shapes.LAMP, 'off': jnp.array([off or 0.0, 0.0, 0.0])}
        return [Field(request.prompt, scene(request.prompt), dense, traced, 1.0, camera) for request in requests]

    return loaded._replace(system=loaded.system._replace(generate=generate))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(toy_sharpness, 'SIZE', 64)
    monkeypatch.setattr(toy_sharpness, 'COARSE', 16)


def test_exact_rays_score_what_rays_of_a_pixel_can_and_others_what_their_controls_say():
    scenes, _ = toy_sharpness.chosen(PAIRS, 6)
    exact = toy_sharpness.evaluate(drawn(scenes), limit=6)
    assert exact['sharp/n'] == 24 and exact['sharp/psnr'] > exact['sharp/psnr_one_ray'] + 6.0
    assert abs(exact['sharp/psnr_one_ray'] - exact['control/sharp/psnr_one_ray_of_truth']) < 0.1
    assert exact['sharp/error_near_edges'] > 0.97  # what is wrong is aliasing alone
    assert exact['control/sharp/psnr_other_scenes'] < exact['control/sharp/psnr_16px'] < exact['sharp/psnr']
    beside = toy_sharpness.evaluate(drawn(scenes, 0.05), limit=6)
    assert beside['sharp/psnr'] < exact['sharp/psnr'] - 5.0
    swapped = toy_sharpness.evaluate(drawn(scenes, None), limit=6)
    assert abs(swapped['sharp/psnr'] - exact['control/sharp/psnr_other_scenes']) < 0.7  # as good as another scene
    assert swapped['sharp/error_near_edges'] < 0.6


def test_pictures_are_the_same_views_and_the_scenes_are_held_out():
    scenes, angles = toy_sharpness.chosen(PAIRS, 4)
    assert angles.shape == (4, 2, 4) and all(len(scene.objects) == 2 for scene in scenes)
    assert set(scene.captions[0] for scene in scenes) <= {scene.captions[0] for scene in shapes.pairs('test')}
    shown = toy_sharpness.pictures(drawn(scenes), limit=4)
    assert shown.paired and shown.shown.shape == shown.true.shape == (4, 4, 64, 64, 3)
    for k in range(4):
        record = toy.record(scenes[k], *angles[k], 64, 3)
        np.testing.assert_allclose(shown.true[k], oracle.composite(record['image']), atol=1e-6)


def test_weights_of_single_objects_are_asked_for_single_objects():
    scenes, angles = toy_sharpness.chosen(SINGLES, 200)
    assert sorted(scene.captions[0] for scene in scenes) == sorted(scene.captions[0] for scene in shapes.singles('test'))
    assert len(angles) == len(scenes) == 16
    few, _ = toy_sharpness.chosen(SINGLES, 2)
    exact = toy_sharpness.evaluate(drawn(few, config=SINGLES), limit=2)
    assert exact['sharp/n'] == 8 and exact['sharp/psnr'] > exact['sharp/psnr_one_ray'] + 3.0


def test_edges_are_those_of_a_loop():
    scene = toy_sharpness.chosen(PAIRS, 3)[0][1]
    views = toy.render(scene, *toy.camera_arrays(np.array([0.4]), np.array([0.5]), shapes.RADIUS, shapes.FOV), 32)
    which, normal = views['object'][0], views['normal'][0]
    expected = np.zeros((32, 32), bool)
    for y in range(32):
        for x in range(32):
            for v, u in ((y + 1, x), (y, x + 1)):
                if v < 32 and u < 32:
                    turns = which[y, x] >= 0 and float(normal[y, x] @ normal[v, u]) < 0.95
                    if which[y, x] != which[v, u] or turns:
                        expected[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = True
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(toy_sharpness.near_edges(views['object'], views['normal'])[0], expected)


def test_it_is_in_the_table_and_limits_are_refused():
    assert table.find('toy_sharpness') is toy_sharpness
    loaded = drawn(toy_sharpness.chosen(PAIRS, 2)[0])
    with pytest.raises(UsageError, match='limit'):
        toy_sharpness.evaluate(loaded, limit=1)
    with pytest.raises(UsageError, match="split 'test': toy is scored on"):
        toy_sharpness.evaluate(loaded, split='test')
