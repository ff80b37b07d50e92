"""Scores of multi-view samples against samplers whose quality is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.core.outputs import Picture, Views
from t3d.core.system import System, anything
from t3d.data.sets import oracle, patterns, shapes, toy
from t3d.evaluate import pattern_pictures, pattern_views, pixel_features, table, view_sets
from t3d.inference import loading

SIZE = 20
RING = np.arange(4) * (np.pi / 2), np.full(4, 0.3)
CAMERAS = toy.camera_arrays(*RING, shapes.RADIUS, shapes.FOV)
SCENES = {scene.captions[0]: scene for scene in patterns.singles('all')}


def sampler(images_of, data='toy', kind='views') -> loading.Loaded:
    """A loaded system that shows images_of(prompt, key), [4, S, S, 3 or 4] of the ring or [S, S, 3]."""

    def generate(weights, requests, keys, given):
        if kind == 'picture':
            return [Picture(prompt, jnp.asarray(images_of(prompt, key))) for (prompt, *_), key in zip(requests, keys)]
        return [Views(prompt, images_of(prompt, key), *CAMERAS) for (prompt, *_), key in zip(requests, keys)]

    config = {'system': 'other', 'render': {'background': 1.0}, 'evaluate': ('view_sets',)}
    config['data'] = {'name': data, 'size': SIZE, 'supersample': 1, 'patterns': patterns.PATTERNS}
    return loading.Loaded(configs.from_dict(config), System(None, None, None, generate, anything, (), (), {}), {}, 'known', 1)


def truth(prompt, key=None, phase=0.0):
    return patterns.record(SCENES[prompt], *RING, SIZE, 1, phase)['image'].astype(np.float32) / 255.0


def test_the_truth_scores_full_marks_with_alpha_and_its_controls_fall():
    scores = table.evaluate(sampler(truth), limit=1)
    for name, count in (('held_out', 16), ('seen', 48)):
        assert all(scores[f'{name}/{label}'] == 1.0 for label in ('shape', 'colour', 'size', 'all', 'agree'))
        assert scores[f'{name}/psnr'] > 45.0 > scores[f'control/{name}/psnr_cameras_shuffled'] + 5.0
        assert scores[f'control/{name}/all_shuffled'] == 0.0 and scores[f'control/{name}/shape_shuffled'] < 0.3
        assert 0.45 < scores[f'control/{name}/size_shuffled'] < 0.5  # half of the others have the other size
        assert scores[f'{name}/distance'] < 0.005 < 0.05 < scores[f'control/{name}/distance_shuffled']
        assert scores[f'{name}/psnr_lowest'] > 45.0
        assert scores[f'control/{name}/true_renders/all'] == scores[f'control/{name}/true_renders/agree'] == 1.0
        assert (scores[f'{name}/n'], scores[f'{name}/views_n']) == (count, 4 * count)
    assert not any(name.startswith('patterns') for name in scores)


def test_views_of_different_objects_do_not_agree():
    names = [scene.captions[0] for scene in view_sets.objects(('large', 'small'))[0]]

    def mixed(prompt, key):
        images = truth(prompt).copy()
        images[2] = truth(names[(names.index(prompt) + 18) % 64])[2]
        return images

    scores = view_sets.evaluate(sampler(mixed), limit=1)
    assert scores['seen/agree'] == scores['held_out/agree'] == 0.0 and scores['seen/shape'] == 0.75
    assert scores['seen/psnr_lowest'] < 25.0 < scores['seen/psnr'] - 10.0  # the one wrong view of each object
    shown = view_sets.pictures(sampler(mixed), limit=1)
    assert shown.shown.shape == shown.true.shape == (64, 4, SIZE, SIZE, 3) and shown.paired


def test_patterned_truth_plain_objects_and_scattered_patterns():
    scores = pattern_views.evaluate(sampler(truth, 'toy_patterns'), limit=1)
    labels = ('with_pattern', 'right_pattern', 'same', 'same_phase', 'in_place', 'agree', 'shape', 'colour', 'size')
    assert all(scores[f'patterns/{label}'] >= 0.99 for label in labels) and scores['patterns/n'] == 32
    assert abs(scores['patterns/frechet_pixels']) < 0.05 * scores['control/patterns/plain/frechet_pixels']
    assert scores['control/patterns/plain/with_pattern'] < 0.01 and scores['control/patterns/plain/same'] == 0.0
    assert scores['control/patterns/scattered/with_pattern'] > 0.95
    assert scores['control/patterns/scattered/in_place'] < 0.1 > scores['control/patterns/scattered/same_phase']
    assert scores['patterns/psnr'] > scores['control/patterns/scattered/psnr'] + 10.0

    def plain(prompt, key):
        scene = SCENES[prompt].attributes
        return truth(shapes.single(scene['shape'], scene['colour']).captions[0])

    scores = pattern_views.evaluate(sampler(plain, 'toy_patterns'), limit=1)
    assert scores['patterns/in_place'] == 0.0 and scores['patterns/agree'] > 0.99
    assert scores['patterns/frechet_pixels'] == pytest.approx(scores['control/patterns/plain/frechet_pixels'], rel=0.02)


def test_patterned_pictures_are_scored():
    def picture(prompt, key):
        azimuth = np.random.default_rng(len(prompt)).uniform(0.0, 6.0, 1)
        return oracle.composite(patterns.record(SCENES[prompt], azimuth, np.array([0.4]), SIZE, 3)['image'])[0]

    scores = pattern_pictures.evaluate(sampler(picture, 'toy_patterns', 'picture'), limit=1)
    for name, count in (('held_out', 32), ('seen', 96)):
        assert scores[f'{name}/n'] == count and scores[f'{name}/all'] > 0.9 > 0.1 > scores[f'control/{name}/all_shuffled']
    assert scores['control/true_pictures/all'] > 0.9 and scores['frechet_pixels_n'] == 96
    with pytest.raises(UsageError, match="'toy' have no patterns"):
        pattern_pictures.evaluate(sampler(picture, 'toy', 'picture'))


def test_other_outputs_and_other_data_are_refused():
    with pytest.raises(UsageError, match="evaluate='view_sets' judges a views, and other makes a picture"):
        view_sets.evaluate(sampler(lambda prompt, key: np.zeros((SIZE, SIZE, 3)), kind='picture'), limit=1)
    with pytest.raises(UsageError, match="'furniture' have no exact labels"):
        view_sets.evaluate(sampler(truth, 'furniture'), limit=1)
    with pytest.raises(UsageError, match='--limit'):
        view_sets.evaluate(sampler(truth), limit=0)


def test_components_are_orthonormal_and_the_distance_grows_with_blur():
    mean, directions = pixel_features.components(16)
    np.testing.assert_allclose(directions.T @ directions, np.eye(64), atol=1e-8)
    source = patterns.PatternSource('all', patterns=patterns.PATTERNS[1:], size=16, poses=1, seed=3)
    real = np.concatenate([oracle.composite(source[k]['image']) for k in range(192)])
    grey = real.reshape(192, 8, 2, 8, 2, 3).mean((2, 4)).repeat(2, 1).repeat(2, 2)
    distances = [pixel_features.frechet(real + t * (grey - real), real) for t in (0.0, 0.5, 1.0)]
    assert abs(distances[0]) < 1e-6 and distances[0] < distances[1] < distances[2]
