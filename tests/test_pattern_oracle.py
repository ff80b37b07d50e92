"""The oracles of patterned pictures against true renders that are not their own, and against wrong ones."""

import numpy as np
import pytest

from t3d.data.sets import oracle, pattern_oracle, patterns, shapes, toy

N = 256  # true pictures that the picture oracle reads
RING = np.arange(4) * (np.pi / 2), np.full(4, 0.3)
CAMERAS = toy.camera_arrays(*RING, shapes.RADIUS, shapes.FOV)
LARGE = [scene for scene in shapes.singles('all') if scene.attributes['size'] == 'large']


def test_readings_are_the_nearest_of_all_true_renders():
    """Against the same question asked plainly: every candidate rendered, every difference squared."""
    judge = pattern_oracle.Reader(*CAMERAS, 16, background=0.7, names=patterns.PATTERNS, phases=(0.0, 0.5))
    scenes = [(scene, phase) for scene in patterns.singles('all') for phase in (0.0, 0.5)]
    renders = [oracle.composite(patterns.record(scene, *RING, 16, 1, phase)['image'], 0.7) for scene, phase in scenes]
    renders = np.stack(renders).reshape(len(scenes), 4, -1)
    images = np.random.default_rng(0).uniform(size=(16, 16, 16, 3)).astype(np.float32)
    images[8:] = renders[::67, 1][:8].reshape(8, 16, 16, 3) * 0.8 + 0.2 * images[8:]
    for reading, picture in zip(judge.read(images), images.reshape(16, -1), strict=True):
        distance = np.sqrt(np.mean((renders - picture) ** 2, -1))
        scene, phase = scenes[np.unravel_index(distance.argmin(), distance.shape)[0]]
        assert abs(reading.distance - distance.min()) < 2e-3
        own = next(
            k
            for k, (scene, phase) in enumerate(scenes)
            if scene.attributes == reading.labels and phase == (reading.phase if reading.labels['pattern'] != 'plain' else 0.0)
        )
        assert distance[own, reading.camera] <= distance.min() + 2e-3


def test_pictures_from_unknown_cameras_are_read_at_32_pixels():
    judge = pattern_oracle.PatternPictureOracle(32)
    source = patterns.PatternSource('all', size=32, views=1, poses=4, seed=991, supersample=3)
    records = [source[int(k)] for k in np.linspace(0, len(source) - 1, N).astype(int)]
    images = np.concatenate([oracle.composite(record['image']) for record in records])
    images = np.clip(images + np.random.default_rng(1).normal(0.0, 0.05, images.shape), 0.0, 1.0)
    answers, distance = judge.read(images)
    for name in ('shape', 'colour', 'size', 'pattern'):
        share = np.mean([labels[name] == record['attributes'][name] for labels, record in zip(answers, records, strict=True)])
        assert share >= 0.97, (name, share)
    assert distance.mean() < 0.12
    _, of_noise = judge.read(np.random.default_rng(2).uniform(size=(4, 32, 32, 3)))
    assert of_noise.min() > 0.3


@pytest.fixture(scope='module')
def judge():
    return pattern_oracle.ViewsOracle(*CAMERAS, 32, names=patterns.PATTERNS)


def rendered(scene, phase=0.0):
    return oracle.composite(patterns.record(scene, *RING, 32, 3, phase)['image'])


def test_views_of_known_cameras_are_read_with_their_pattern_and_place(judge):
    """48 of the 96 large objects with a pattern, noisy: n = 192 views."""
    scenes = [patterns.patterned(scene, pattern) for scene in LARGE for pattern in patterns.PATTERNS[1:]][::2]
    images = np.stack([rendered(scene) for scene in scenes])
    noisy = np.clip(images + np.random.default_rng(0).normal(0.0, 0.1, images.shape), 0.0, 1.0)
    readings = judge.read(noisy.astype(np.float32))
    right = [view.labels == scene.attributes for views, scene in zip(readings, scenes, strict=True) for view in views]
    assert len(right) == 192 and np.mean(right) >= 0.99
    for score in (pattern_oracle.agree, pattern_oracle.same_pattern, pattern_oracle.same_phase, pattern_oracle.in_place):
        assert np.mean([score(views) for views in readings]) >= 0.97


def test_moved_scattered_missing_and_mixed_patterns_are_told_apart(judge):
    score = pattern_oracle
    for scene in LARGE[::5]:
        striped, dotted = (patterns.patterned(scene, name) for name in ('stripes', 'dots'))
        moved, plain, mixed = rendered(striped, 0.5), rendered(patterns.patterned(scene, 'plain')), rendered(striped)
        scattered = mixed.copy()
        scattered[2], mixed[1] = moved[2], rendered(dotted)[1]
        moved, plain, mixed, scattered = judge.read(np.stack([moved, plain, mixed, scattered]))
        assert score.same_phase(moved) and not score.in_place(moved) and {view.phase for view in moved} == {0.5}
        assert score.agree(plain) and not score.same_pattern(plain)
        assert score.agree(mixed) and not score.same_pattern(mixed)
        assert score.same_pattern(scattered) and not score.same_phase(scattered) and not score.in_place(scattered)


def test_views_of_toy_have_no_patterns_to_choose_from():
    judge = pattern_oracle.ViewsOracle(*CAMERAS, 24)
    images = np.stack([oracle.composite(toy.record(scene, *RING, 24, 3)['image']) for scene in shapes.singles('all')])
    readings = judge.read(images)
    assert all(
        view.labels == {**scene.attributes, 'pattern': 'plain'} and view.camera == 0
        for views, scene in zip(readings, shapes.singles('all'), strict=True)
        for view in views
    )
    images[3, 1] = images[9, 1]  # a view of another object
    assert pattern_oracle.agree(readings[3]) and not pattern_oracle.agree(judge.read(images[3:4])[0])
