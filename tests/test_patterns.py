"""Patterned objects: exact on the surface, the same from every side, and nothing of toy moved."""

import hashlib

import numpy as np
import pytest

from configs import image_diffusion
from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.data import sets
from t3d.data.adapters import views
from t3d.data.sets import marked, oracle, patterns, shapes, toy

AZIMUTH, ELEVATION = np.array([0.3, 0.9, 2.1, 4.0]), np.array([0.1, 0.6, 0.3, -0.2])
CAMERAS = toy.camera_arrays(AZIMUTH, ELEVATION, shapes.RADIUS, shapes.FOV)


def lit_tone(scene, size, phase=0.0):
    """(hits, which tone each ray's surface has, from its lit colour alone)."""
    hits = toy.trace(scene, *CAMERAS, size)
    rgba = toy.render(scene, *CAMERAS, size, 1, patterns.albedo(scene, phase))['image'].reshape(-1, 4)
    colour = np.array(shapes.COLOURS[scene.objects[0].colour])
    tones = np.stack([shapes.shade(tone, hits.normal) for tone in (colour, patterns.second_tone(colour))])
    return hits, np.abs(tones - rgba[:, :3] / 255.0).sum(-1).argmin(0)


@pytest.mark.parametrize('pattern', patterns.PATTERNS[1:])
@pytest.mark.parametrize('shape', shapes.SHAPES)
def test_all_views_agree_on_every_surface_point(shape, pattern):
    """Points unprojected with depth from one view and projected into the others have the same tone where they are seen."""
    size, scene = 96, patterns.patterned(shapes.single(shape, 'blue'), pattern)
    record = toy.render(scene, *CAMERAS, size, 1, patterns.albedo(scene))
    hits, tone = lit_tone(scene, size)
    fine, depth = tone.reshape(4, size, size), record['depth'].astype(np.float64)
    checked = agreed = 0
    for a, b in ((0, 1), (1, 0), (2, 3), (0, 3)):
        points = hits.points.reshape(4, -1, 3)[a][depth[a].ravel() > 0]
        own = fine[a].ravel()[depth[a].ravel() > 0]
        camera = np.linalg.inv(CAMERAS[0][b].astype(np.float64))
        local = points @ camera[:3, :3].T + camera[:3, 3]
        pixel = np.floor((local @ CAMERAS[1][b].T / local[:, 2:])[:, :2] * size).astype(int)
        seen = np.abs(depth[b][pixel[:, 1], pixel[:, 0]] - local[:, 2]) < 0.01
        window = [
            fine[b][np.clip(pixel[:, 1] + dy, 0, 95), np.clip(pixel[:, 0] + dx, 0, 95)]
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        ]
        inner = seen & (np.ptp(np.stack(window), axis=0) == 0)  # not within a pixel of an edge of the pattern
        checked, agreed = checked + inner.sum(), agreed + (own == window[4])[inner].sum()
    assert checked > 200 and agreed >= 0.995 * checked


def test_stripes_on_a_sphere_have_their_closed_form():
    scene = patterns.patterned(shapes.single('sphere', 'red'), 'stripes')
    hits, tone = lit_tone(scene, 64)
    on = hits.which >= 0
    np.testing.assert_allclose(np.linalg.norm(hits.points[on], axis=-1), shapes.SPHERE_RADIUS, atol=1e-6)
    height = np.abs(hits.points[on, 1])  # own colour up to half a band, then band by band
    np.testing.assert_array_equal(tone[on] == 1, ((height > 0.125) & (height < 0.375)) | (height > 0.625))
    share = np.mean(patterns.mask('stripes', 'sphere', 1.0, _on_sphere(200_000)))  # Archimedes: area goes as height
    assert abs(share - (2 * 0.25 + 2 * (0.75 - 0.625)) / 1.5) < 0.005


def _on_sphere(count):
    points = np.random.default_rng(0).normal(size=(count, 3))
    return shapes.SPHERE_RADIUS * points / np.linalg.norm(points, axis=-1, keepdims=True)


@pytest.mark.parametrize('size', shapes.SIZES)
@pytest.mark.parametrize('shape', shapes.SHAPES)
def test_each_pattern_covers_part_of_each_shape_and_its_phases_differ(shape, size):
    scene = shapes.single(shape, 'green', size)
    for pattern in patterns.PATTERNS[1:]:
        masks = [lit_tone(patterns.patterned(scene, pattern), 48, phase) for phase in (0.0, 0.25, 0.5, 0.75)]
        on = masks[0][0].which >= 0
        tones = np.stack([tone[on] for _, tone in masks])
        assert np.all((tones.mean(1) > 0.1) & (tones.mean(1) < 0.75))
        assert min(np.mean(tones[a] != tones[b]) for a in range(4) for b in range(a)) > 0.05
    centres = patterns.dot_centres(shape, scene.objects[0].scale)
    ends = np.linalg.norm(centres, axis=-1)
    assert len(np.unique(np.round(centres, 9), axis=0)) == len(centres) and ends.max() < 1.01 * scene.objects[0].scale


def test_plain_objects_are_those_of_toy_and_toy_is_as_it_was():
    for scene in shapes.singles('all')[::7]:
        plain = patterns.record(patterns.patterned(scene, 'plain'), AZIMUTH, ELEVATION, 16, 3)
        own = toy.record(scene, AZIMUTH, ELEVATION, 16, 3)
        np.testing.assert_array_equal(plain['image'], own['image'])
        assert plain['captions'] == own['captions'] and plain['attributes'] == {**own['attributes'], 'pattern': 'plain'}
    digest = hashlib.sha256()
    for record in (
        toy.ToySource('all', scenes='both', size=16, views=2, supersample=3, seed=5)[k] for k in range(0, 9000, 1500)
    ):
        digest.update(record['image'].tobytes() + record['depth'].tobytes())
    assert digest.hexdigest() == 'b911fa3aea967149f0d6111d56f7f227cae040621444c6c97e6cca4a0518aa02'


def test_captions_words_and_held_out_pairs():
    assert patterns.patterned(shapes.single('cube', 'red'), 'stripes').captions == (
        'a striped red cube',
        'striped red cube',
        'a large striped red cube',
        'large striped red cube',
    )
    small = patterns.patterned(shapes.single('cone', 'orange', 'small'), 'dots')
    assert small.captions == ('a small dotted orange cone', 'small dotted orange cone')
    every = patterns.singles('all')
    assert len(every) == 256 == len({scene.captions[0] for scene in every})
    assert {word for scene in every for text in scene.captions for word in text.split()} < set(patterns.WORDS)
    assert set(patterns.WORDS) == {*shapes.WORDS, 'striped', 'checked', 'dotted'}
    train, test = (
        {(s.attributes['shape'], s.attributes['colour']) for s in patterns.singles(split)} for split in ('train', 'test')
    )
    assert len(train) == 24 and len(test) == 8 and not train & test
    with pytest.raises(UsageError, match="'plaid'.*Known: plain, stripes, checks, dots"):
        patterns.singles('all', ('plaid',))


def test_the_set_opens_from_a_config_and_gives_records_of_toy():
    config = image_diffusion.get_config('patterns')
    source = sets.open_set(config.data, 'train')
    assert len(source) == 48 * 4 * 64
    record = source[77]
    assert record.keys() == toy.ToySource('train')[0].keys() and record['image'].shape == (1, 32, 32, 4)
    assert record['captions'] == source.scene(77).captions and record['attributes']['pattern'] in patterns.PATTERNS
    assert {source.scene(k)[2]['pattern'] for k in range(4)} == set(patterns.PATTERNS)
    words = views.words(config)
    assert words == patterns.WORDS
    batch, captions = views.preview(configs.from_dict({**config.to_dict(), 'text': {**config.text.to_dict(), 'words': words}}))
    assert batch['image'].shape == (8, 1, 32, 32, 4) and captions[1] == 'a striped orange sphere'
    ring = patterns.PatternSource('test', patterns=('dots',), views=4, rig='ring', size=16)
    assert len(ring) == 16 * 64 and np.ptp(np.diff(ring[3]['azimuth'])) < 1e-5
    with pytest.raises(UsageError, match='toy_patterns has single objects only'):
        sets.open_set(configs.from_dict({**config.data.to_dict(), 'scenes': 'both'}), 'train')


def test_second_tones_are_far_from_the_first_and_no_two_objects_share_both():
    tones = np.array([[colour, patterns.second_tone(colour)] for colour in shapes.COLOURS.values()])
    assert np.all((tones >= 0) & (tones <= 1)) and np.abs(tones[:, 0] - tones[:, 1]).max(-1).min() > 0.4
    mean = tones.mean(1)
    assert min(np.abs(mean[a] - mean[b]).max() for a in range(8) for b in range(a)) > 0.1
    assert oracle.composite(np.zeros((1, 4), np.uint8)).tolist() == [[1.0, 1.0, 1.0]]


def test_marked_objects_have_a_front_of_another_tone():
    """Two tones from the front, the own colour alone from the back; the same pixels whatever the split's order."""
    config = configs.load(
        'configs/mvdiffusion.py:tiny', ['data.name=toy_marked', 'data.size=24', 'data.poses=2', 'data.views=2']
    )
    source = sets.open_set(config.data, 'train')
    plain = sets.open_set(
        configs.load('configs/mvdiffusion.py:tiny', ['data.size=24', 'data.poses=2', 'data.views=2']).data, 'train'
    )
    assert len(source) == len(plain) and source[5]['captions'] == plain[5]['captions']
    cube = shapes.single('cube', 'red')
    views = marked.record(cube, np.array([0.0, np.pi, np.pi / 2]), np.zeros(3), 24)['image']
    bare = toy.record(cube, np.array([0.0, np.pi, np.pi / 2]), np.zeros(3), 24)['image']
    np.testing.assert_array_equal(views[..., 3], bare[..., 3])
    same = (views == bare).all(-1) & (bare[..., 3] == 255)
    inside = (bare[..., 3] == 255).sum((1, 2))
    assert list(same.sum((1, 2)) / inside) == [0.0, 1.0, 1.0]  # of a cube seen head on, all of its front and none of the others
    with pytest.raises(UsageError, match='toy_marked has single objects only'):
        sets.open_set(configs.load('configs/mvdiffusion.py:tiny', ['data.name=toy_marked', 'data.scenes=both']).data, 'train')
