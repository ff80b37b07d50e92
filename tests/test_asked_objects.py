"""Objects read for the prompts of their run: true and wrong ones, majorities, fronts, prompts that name none."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from t3d.core.errors import UsageError
from t3d.data.sets import marked, oracle, shapes, toy
from t3d.evaluate import asked_objects, marked_fronts
from t3d.inference.loading import Loaded

PROMPTS = ('a red cube', 'a green cone', 'blue sphere', 'a yellow cylinder')
SIZE = 16


@pytest.fixture(autouse=True)
def one_ray_a_pixel(monkeypatch):
    for module in (asked_objects, marked_fronts):
        monkeypatch.setattr(module, 'SUPERSAMPLE', 1)


def loaded(prompts=PROMPTS) -> Loaded:
    config = ConfigDict({'prompts': prompts, 'render': {'size': SIZE, 'background': 1.0}})
    return Loaded(config, None, None, 'made up', 0)


def drawn(names, turn=0.0):
    """True renders [N, 6, S, S, 3] of the objects that are named, turned about the upright."""
    known = {caption: scene for scene in shapes.singles('all') for caption in scene.captions}
    poses = asked_objects.AZIMUTH + turn, asked_objects.ELEVATION
    records = [toy.record(known[name], *poses, SIZE) for name in names]
    return np.stack([oracle.composite(record['image']) for record in records])


def scores(monkeypatch, images, prompts=PROMPTS):
    monkeypatch.setattr(asked_objects, 'renders', lambda *_: images)
    return asked_objects.evaluate(loaded(prompts))


def test_true_objects_are_right_however_they_are_turned(monkeypatch):
    told = scores(monkeypatch, drawn(PROMPTS, 0.9))
    assert told['objects/both'] == told['objects/shape'] == told['agree'] == told['control/true_renders/objects/both'] == 1.0
    assert told['views/both'] > 0.9 and told['control/objects/both_other_prompts'] == 0.0
    assert told['n'] == 4 and told['views_n'] == 24


def test_wrong_objects_count_by_what_is_wrong(monkeypatch):
    """One right, one of another colour, one of another shape, one of neither."""
    told = scores(monkeypatch, drawn(('a red cube', 'a blue cone', 'a blue cube', 'a red cube')))
    assert (told['objects/shape'], told['objects/colour'], told['objects/both']) == (0.5, 0.5, 0.25)


def test_an_object_is_what_most_of_its_views_show():
    cone, cube = {'shape': 'cone', 'colour': 'red'}, {'shape': 'cube', 'colour': 'red'}
    told = asked_objects.shares([[cone, cone, cube], [cube, cube, cube]], [cone, cube])
    assert told['objects/both'] == 1.0 and told['agree'] == 0.5
    assert told['views/both'] == pytest.approx(5 / 6) and told['views/colour'] == 1.0
    assert told['control/objects/both_other_prompts'] == 0.0


@pytest.mark.parametrize(
    ('prompts', 'message'),
    ((('a red cube', 'a dog'), "the prompt 'a dog' names none"), (('a red cube',), 'has 1 prompt, and 2 are needed')),
)
def test_prompts_that_name_no_toy_object_are_refused(prompts, message):
    with pytest.raises(UsageError, match=message):
        asked_objects.asked(loaded(prompts), None)


def marked_views(monkeypatch, azimuth):
    """Scores of marked objects of which view v is drawn as if its camera stood at azimuth[v]."""
    scenes = asked_objects.asked(loaded(), None)
    records = [marked.record(scene, azimuth, marked_fronts.ELEVATION, SIZE) for scene in scenes]
    monkeypatch.setattr(marked_fronts, 'renders', lambda *_: np.stack([oracle.composite(each['image']) for each in records]))
    return marked_fronts.evaluate(loaded())


def test_a_janus_score_counts_fronts_that_other_sides_show(monkeypatch):
    """True objects have one front; one with a front on each side, by its own turned pictures, has a score of 1."""
    true = marked_views(monkeypatch, marked_fronts.AZIMUTH)
    assert (true['janus'], true['front'], true['one_front']) == (0.0, 1.0, 1.0)
    assert true['janus'] == true['control/true_renders/janus'] and true['views_n'] == 48
    many = marked_views(monkeypatch, np.deg2rad(20.0) * np.sin(4.0 * marked_fronts.AZIMUTH))
    assert (many['janus'], many['front'], many['one_front']) == (1.0, 1.0, 0.0)
    none = marked_views(monkeypatch, np.full(len(marked_fronts.AZIMUTH), np.pi))
    assert (none['janus'], none['front']) == (0.0, 0.0)


def test_fronts_of_one_network_are_those_of_the_large_objects():
    config = {'system': 'x', 'data': {'prompts': 'toy'}, 'render': {'size': SIZE, 'background': 1.0}}
    model = Loaded(ConfigDict(config), None, {}, 'network', 1)
    scenes = marked_fronts.asked(model, None)
    assert len(scenes) == 8 and {scene.attributes['size'] for scene in scenes} == {'large'}
    assert len(marked_fronts.asked(model, 40)) == 32
    other = ConfigDict({**config, 'data': {'prompts': 'animals'}})
    with pytest.raises(UsageError, match='data.prompts=toy'):
        marked_fronts.asked(model._replace(config=other), None)


def test_a_small_object_without_its_front_shows_none(monkeypatch):
    """Read beside large ones alone, small plain objects of dark colours are nearest to light fronts."""
    scenes = [shapes.single('cube', 'red', 'small'), shapes.single('sphere', 'blue', 'small')]
    records = [toy.record(scene, marked_fronts.AZIMUTH, marked_fronts.ELEVATION, SIZE) for scene in scenes]
    monkeypatch.setattr(marked_fronts, 'renders', lambda *_: np.stack([oracle.composite(each['image']) for each in records]))
    scores = marked_fronts.evaluate(loaded(('a red cube', 'a blue sphere')))
    assert (scores['janus'], scores['front']) == (0.0, 0.0)
