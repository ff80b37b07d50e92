"""Captioners against objects whose words are known."""

import numpy as np
import pytest

from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.data import oracle, shapes, single_view, toy
from t3d.metrics import fid
from t3d.train import captioners

SIZE, GREY = 64, 0.5


def pictures(scenes, views=1, seed=3, size=SIZE):
    """(images [N, V, S, S, 3] on grey, labels [N, V, 25]) from random cameras."""
    random = np.random.default_rng(seed)
    shown, labels = [], []
    for scene in scenes:
        record = toy.record(scene, random.uniform(0, 2 * np.pi, views), random.uniform(-0.2, 0.9, views), size, 3)
        shown.append(oracle.composite(record['image'], GREY))
        labels.append(single_view.to_labels(record['world_from_cam'], record['intrinsics']))
    return np.stack(shown), np.stack(labels)


def toy_config(**data):
    return configs.from_dict({'data': {'name': 'toy', **data}, 'render': {'background': GREY}})


@pytest.fixture(scope='module')
def reader():
    return captioners.make('toy', toy_config())


def test_toy_reads_every_object_of_the_grammar(reader):
    scenes = shapes.singles('all')
    images, labels = pictures(scenes)
    found = reader.caption(images, labels)
    for slots, scene in zip(found, scenes, strict=True):
        assert {name: slots[name] for name in scene.attributes} == scene.attributes
        assert slots['distance'] < 0.1  # edges: compared at 32 px
    assert reader.render(found[0]) == scenes[0].captions[0]
    large = shapes.single('cube', 'orange')
    slots = {**large.attributes, 'distance': 0.0}
    assert {reader.render(slots, choice) for choice in range(8)} == set(large.captions)


def test_toy_distance_has_its_scale(reader):
    """0 for the truth, 1 for nothing, and by |a x + (1 - a) background - x| = (1 - a) |x - background| in between."""
    scenes = [shapes.single('cone', 'purple', 'small'), shapes.single('sphere', 'yellow')]
    images, labels = pictures(scenes, views=2)
    truth = reader.caption(images, labels)
    half = reader.caption(GREY + 0.7 * (images - GREY), labels)
    for exact, faded, scene in zip(truth, half, scenes):
        assert exact['distance'] < 0.05
        if faded['colour'] == scene.attributes['colour']:
            np.testing.assert_allclose(faded['distance'], 0.3, atol=0.06)
    empty = reader.caption(np.full_like(images, GREY), labels)
    noise = reader.caption(np.random.default_rng(1).uniform(size=images.shape), labels)
    assert all(slots['distance'] > captioners.THRESHOLD for slots in [*empty, *noise])
    np.testing.assert_allclose([slots['distance'] for slots in empty], 1.0, atol=1e-3)


def test_toy_looks_from_the_camera_of_the_label(reader):
    """A cone seen from above is a disc: with the labels of another camera the same pictures are read worse."""
    scenes = [shapes.single(shape, 'blue') for shape in ('cube', 'cone', 'cylinder')]
    images, labels = pictures(scenes, views=2, seed=8)
    _, others = pictures(scenes, views=2, seed=9)
    right, wrong = (np.mean([slots['distance'] for slots in reader.caption(images, some)]) for some in (labels, others))
    assert wrong > 3.0 * right


def test_two_views_tell_more_than_one(reader):
    """Under noise, the same error over more pixels."""
    scenes = shapes.singles('all')[::5]
    images, labels = pictures(scenes, views=6)
    noisy = images + np.random.default_rng(2).normal(size=images.shape) * 0.8
    right = lambda found: np.mean([slots['shape'] == scene.attributes['shape'] for slots, scene in zip(found, scenes)])
    assert right(reader.caption(noisy, labels)) >= right(reader.caption(noisy[:, :1], labels[:, :1]))


def test_unknown_names_and_other_data():
    with pytest.raises(UsageError, match="unknown captioner 'tyo'. Did you mean 'toy'"):
        captioners.make('tyo', toy_config())
    with pytest.raises(UsageError, match="captioner toy knows the objects of toy, and this generator's data are 'eg3d'"):
        captioners.make('toy', configs.from_dict({'data': {'name': 'eg3d'}, 'render': {'background': GREY}}))


# ---------------------------------------------------------------------------------------------------------- catalogue


def records(scenes, **extra):
    images, _ = pictures(scenes)
    shown = np.round(255.0 * images[:, 0]).astype(np.uint8)
    return [{'image': image, 'captions': scene.captions, 'attributes': {}, **extra} for image, scene in zip(shown, scenes)]


def test_catalogue_gives_the_words_of_the_nearest_picture():
    scenes = shapes.singles('all')
    speaker = captioners.catalogue(toy_config(), extractor=fid.tiny(), records=records(scenes))
    assert speaker.name == f'catalogue of 64 pictures, {fid.tiny().name}'
    images, labels = pictures(scenes)  # the same pictures
    found = speaker.caption(images, labels)
    assert [slots['caption'] for slots in found] == [max(scene.captions, key=len) for scene in scenes]
    assert max(slots['distance'] for slots in found) < 1e-3
    assert speaker.render(found[0]) == found[0]['caption']
    images, labels = pictures(scenes, seed=4)  # from other sides
    colours = [scene.attributes['colour'] in slots['caption'] for slots, scene in zip(speaker.caption(images, labels), scenes)]
    assert np.mean(colours) > 0.5  # chance is 1/8


def test_catalogue_speaks_of_nouns_and_colours():
    words = {'noun': 'sofa', 'colour': 'red', 'category': 'seats'}
    speaker = captioners.catalogue(
        toy_config(), extractor=fid.tiny(), records=records(shapes.singles('all')[:4], attributes=words)
    )
    found = speaker.caption(*pictures(shapes.singles('all')[:2]))
    assert {(slots['noun'], slots['colour']) for slots in found} == {('sofa', 'red')}
    said = {speaker.render(found[0], choice) for choice in range(9)}
    assert 'a red sofa' in said and all('red' in text for text in said)
    assert 'a sofa' in {speaker.render({'noun': 'sofa', 'colour': ''}, choice) for choice in range(9)}
    with pytest.raises(UsageError, match="'toy' has no captions"):
        captioners.catalogue(toy_config(), extractor=fid.tiny(), records=records(shapes.singles('all')[:2], captions=()))
