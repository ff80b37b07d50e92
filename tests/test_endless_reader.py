"""The reader of toy_endless on objects that it has never seen, against errors written out; and the scores made of it."""

import functools

import numpy as np
import pytest
import small_triplanes

from t3d.build import captioners
from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.data.sets import endless, endless_reader, oracle, shapes, toy
from t3d.evaluate import endless_objects
from t3d.inference import loading

GREY, COUNT = 0.5, 60


@functools.cache
def reader():
    """A tenth of the drawings of the real one."""
    return endless_reader.Reader(GREY, singles=12, pairs=4)


def drawn(scenes, labels, size=64):
    """[N, V, S, S, 3] of scenes from their labels [N, V, 25]."""
    images = []
    for scene, own in zip(scenes, labels, strict=True):
        poses, lenses = own[:, :16].reshape(-1, 4, 4), own[:, 16:].reshape(-1, 3, 3)
        images.append(oracle.composite(toy.render(scene, poses, lenses, size, 3)['image'], GREY))
    return np.stack(images)


@functools.cache
def objects():
    """(scenes of the test split, labels [N, 2, 25], pictures)."""
    scenes, labels = [endless.scene(3, 'test', k) for k in range(COUNT)], endless_objects.seen_from(COUNT)
    return scenes, labels, drawn(scenes, labels)


def test_objects_that_were_never_drawn_are_read():
    scenes, labels, images = objects()
    read = reader()(images, labels)
    assert all(slots['solids'] == len(scene.objects) for slots, scene in zip(read, scenes, strict=True))
    for slot in ('shape', 'colour', 'size', 'shape_b', 'colour_b'):
        right = [slots[slot] == scene.attributes.get(slot) for slots, scene in zip(read, scenes) if slot in slots]
        assert np.mean(right) >= 0.9 and len(right) > 8
    assert max(slots['distance'] for slots in read) < endless_objects.CLEAR
    captions = [endless_reader.caption(slots, k) in scene.captions for k, (slots, scene) in enumerate(zip(read, scenes))]
    assert np.mean(captions) > 0.8


def test_nothing_and_noise_are_not_clear():
    labels = endless_objects.seen_from(2)
    nothing, noise = np.full((2, 2, 64, 64, 3), GREY), np.random.default_rng(0).uniform(size=(2, 2, 64, 64, 3))
    for images in (nothing, noise):
        assert min(slots['distance'] for slots in reader()(images, labels)) > endless_objects.CLEAR


@pytest.mark.parametrize('solids', [1, 2])
def test_colours_and_distance_are_the_least_squares_of_the_drawing(solids):
    """A candidate itself in colours of its own: numpy's least squares over all pixels of both views find nothing better."""
    number = next(k for k, (scene, _) in enumerate(reader().things) if len(scene.objects) == solids)
    scene, words = reader().things[number]
    rgb = ((0.8, 0.1, 0.1), (0.1, 0.6, 0.2))[:solids]
    true = scene._replace(objects=tuple(one._replace(rgb=own) for one, own in zip(scene.objects, rgb)))
    labels = endless_objects.seen_from(1)
    images = drawn([true], labels, endless_reader.SIZE)
    images += np.random.default_rng(1).normal(0, 0.02, images.shape)
    [slots] = reader()(images, labels)
    assert {name: slots[name] for name in words} == words
    light, hidden = [], []
    for camera in reader().cameras(labels)[0]:
        bank = reader().banks[camera]
        light.append(bank.light[number, :solids])
        hidden.append(bank.hidden[number])
    light, hidden = np.concatenate(light, -1).T.astype(np.float64), np.concatenate(hidden)[:, None]
    colours, errors, *_ = np.linalg.lstsq(light, images.reshape(-1, 3) - hidden, rcond=None)
    np.testing.assert_allclose(colours, rgb, atol=0.03)
    added = np.sum((light @ colours - (GREY - hidden)) ** 2)
    assert slots['distance'] == pytest.approx(np.sqrt(errors.sum() / added), abs=2e-3)


def test_what_cannot_be_read_is_refused():
    labels = endless_objects.seen_from(1)
    with pytest.raises(UsageError, match='does not know'):
        reader()(np.zeros((1, 2, 32, 32, 3)), labels + 0.01)
    with pytest.raises(UsageError, match='40 px'):
        reader()(np.zeros((1, 2, 40, 40, 3)), labels)
    with pytest.raises(UsageError, match='toy_endless'):
        captioners.make('endless', small_triplanes.config())


def test_scores_are_whole_for_the_truth_and_chance_for_others():
    scenes, labels, images = objects()
    scores = endless_objects.readings(reader(), images, labels, scenes)
    assert min(scores[name] for name in ('colour', 'alike/colour', 'clear')) > 0.9 and scores['both'] > 0.75
    assert scores['control/both_shuffled'] < 0.1 and scores['objects_n'] == COUNT
    others = endless_objects.readings(reader(), np.roll(images, 7, 0), np.roll(labels, 7, 0), scenes)
    assert others['both'] < 0.2 and others['alike/colour'] == scores['alike/colour']


def test_a_captioner_that_knows_its_cameras_has_words_for_every_slot():
    config = configs.load('configs/ganfusion_gan.py:endless', [])
    captioner = captioners.make('endless', config)
    np.testing.assert_array_equal(captioner.labels, endless_reader.labels())
    assert captioner.render({'solids': 1, 'shape': 'cone', 'colour': 'red', 'size': 'small'}) == 'a small red cone'
    two = {'solids': 2, 'shape': 'cone', 'colour': 'red', 'shape_b': 'cube', 'colour_b': 'black'}
    assert captioner.render(two) == shapes.pair(('cone', 'red'), 'on top of', ('cube', 'black')).captions[0]


def test_a_generator_is_scored_by_itself(monkeypatch):
    """All scores of an untrained one: objects of nothing, the true ones beside them."""
    monkeypatch.setattr(endless_reader, 'Reader', lambda background: reader())
    loaded = small_triplanes.loaded()
    changed = {**loaded.config.to_dict(), 'data': {**loaded.config.data.to_dict(), 'name': 'toy_endless', 'count': 9}}
    loaded = loaded._replace(config=configs.from_dict(changed))
    scores = endless_objects.evaluate(loaded, limit=6)
    assert scores['control/true/colour'] > 0.9 and scores['clear'] < 0.5 and 'shape' not in scores
    assert {'test/kid_tiny', 'control/test/real/kid_tiny', 'test/fid_tiny_n'} <= set(scores) and 'kid_tiny' not in scores
    assert isinstance(loaded, loading.Loaded) and loaded.config.data.size == 32
