"""The score of multi-view consistency: what is compared with what, against a naive loop and known errors."""

import types

import jax
import numpy as np
import pytest

from t3d.commands import evaluate
from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.data.sets import patterns
from t3d.evaluate import drawing, pattern_consistency, table, view_consistency, view_reading
from t3d.geom import cameras
from t3d.inference import loading
from t3d.metrics import multiview

random = np.random.default_rng(0)


def rig(objects, views):
    return jax.tree.map(
        lambda leaf: np.broadcast_to(leaf, (objects, *leaf.shape)), cameras.turntable(views, elevation=0.3, radius=3.2, fov=0.7)
    )


@pytest.mark.parametrize('views', (3, 4, 6))
def test_views_that_were_not_drawn_together(views):
    images, posed = random.uniform(size=(8, views, 2, 2, 3)), rig(8, views)
    mixed, at = view_consistency.apart(images, posed, 4)
    for b in range(8):
        for v in range(views):
            other = 4 * (b // 4) + (b + v) % 4
            np.testing.assert_array_equal(mixed[b, v], images[other, v])
            np.testing.assert_array_equal(at.world_from_cam[b, v], np.asarray(posed.world_from_cam)[other, v])


def test_each_number_has_its_own_pictures(monkeypatch):
    """An error that is the mean difference of the views of an object from its first view: 0 for what stands still."""

    def differ(images, views, key):
        assert images.shape[:2] == views.world_from_cam.shape[:2] == views.intrinsics.shape[:2]
        value = np.abs(images - images[:, :1]).mean((1, 2, 3, 4))
        return types.SimpleNamespace(_asdict=lambda: {'rmse': value})

    monkeypatch.setattr(multiview, 'consistency', differ)
    monkeypatch.setattr(multiview, 'agreement', differ)
    things = view_reading.some_objects(3)
    colour = (
        np.repeat(np.arange(3) / 3, 4)[:, None, None, None, None] + np.tile(np.arange(4) / 100, 3)[:, None, None, None, None]
    )
    images = np.broadcast_to(colour, (12, 4, 4, 4, 3)).astype(np.float32)  # each sample of a colour of its own
    wavy = images + np.array([0.0, 0.5, 0.5, 0.5], np.float32)[:, None, None, None]
    found = view_consistency.scores(wavy, rig(12, 4), images)
    assert found['mvc_rmse'] == pytest.approx(0.375) and found['floor/mvc_rmse'] == 0.0
    assert found['mvc_n'] == 12 and found['control/mvc_n'] == 3 and found['agreement_rmse'] == pytest.approx(0.375)
    still = view_consistency.scores(images, rig(12, 4), images)
    assert still['mvc_rmse'] == 0.0 and 0.005 < still['control/independent/mvc_rmse'] < 0.03
    assert still['control/mvc_rmse'] > 0.2  # the views of three objects
    assert len(things) == 3 and len({thing.captions[0] for thing in things}) == 3


def test_truth_has_the_error_of_its_floor(monkeypatch):
    """A model that draws the true renders: its pictures and the floor are the same, and its samples agree."""
    config = configs.from_dict({'system': 'x', 'data': {'name': 'toy', 'supersample': 1}, 'render': {'background': 1.0}})
    loaded, seen = loading.Loaded(config, None, {}, 'drawn', 1), []
    known = {thing.captions[0]: thing for thing in view_reading.objects()[0]}

    def views(loaded, prompts, **options):
        posed = rig(len(prompts), 4)
        return view_reading.true_views([known[prompt] for prompt in prompts], posed, 16, 1.0, 1), posed

    def consistency(images, posed, key):
        seen.append(images)
        return multiview.Consistency(np.zeros(len(images)), np.zeros(len(images)))

    monkeypatch.setattr(drawing, 'views', views)
    monkeypatch.setattr(multiview, 'consistency', consistency)
    monkeypatch.setattr(multiview, 'agreement', consistency)
    assert table.fitting(loaded, 'view_consistency') is view_consistency
    view_consistency.evaluate(loaded, limit=2)
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])  # all samples of a caption are alike
    assert [len(images) for images in seen[:4]] == [8, 8, 8, 2] and np.abs(seen[3][0, 1] - seen[0][0, 1]).max() > 0.1
    shown = view_consistency.pictures(loaded, limit=2)
    np.testing.assert_array_equal(shown.shown, shown.true)
    with pytest.raises(UsageError, match='captions'):
        view_consistency.evaluate(loaded, limit=33)
    with pytest.raises(UsageError, match='split'):
        view_consistency.evaluate(loaded, split='test')


def test_what_no_caption_tells_is_one_object_only_where_views_were_drawn_together(monkeypatch):
    """A model that draws true renders of an object of its choice: all of it agrees, and nothing of views from many samples."""
    config = configs.from_dict(
        {'system': 'x', 'drop_text': 0.1, 'data': {'name': 'toy', 'supersample': 1}, 'render': {'background': 1.0}}
    )
    loaded, things = loading.Loaded(config, None, {}, 'drawn', 1), view_reading.objects()[0]
    asked = []

    def views(loaded, prompts, **options):
        asked.append(prompts)
        posed = rig(len(prompts), 4)
        chosen = [things[(5 * k) % 32] for k in range(len(prompts))]
        return view_reading.true_views(chosen, posed, 16, 1.0, 1), posed

    def consistency(images, posed, key):
        return multiview.Consistency(np.abs(images - images[:, :1]).mean((1, 2, 3, 4)), np.zeros(len(images)))

    monkeypatch.setattr(drawing, 'views', views)
    monkeypatch.setattr(multiview, 'consistency', consistency)
    monkeypatch.setattr(multiview, 'agreement', consistency)
    found = view_consistency.evaluate(loaded, limit=2)
    assert asked[1] == [''] * 8 and found['open/n'] == 8
    assert found['open/agree'] == 1.0 and found['control/open/agree'] == 0.0
    assert found['control/open/mvc_rmse'] > 1.5 * found['open/mvc_rmse'] > 0.0
    config.unlock()
    config.drop_text = 1.0
    alone = view_consistency.evaluate(loaded, limit=2)
    assert alone == {name: value for name, value in found.items() if 'open/' in name} and len(asked) == 3
    config.drop_text = 0.0
    assert 'open/agree' not in view_consistency.evaluate(loaded, limit=2)


def test_patterned_objects_are_asked_for_and_named(monkeypatch):
    """Four samples of each of three objects, each in a pattern of its own; true renders have the error of their floor."""
    config = configs.from_dict(
        {'system': 'x', 'data': {'name': 'toy_patterns', 'supersample': 1}, 'render': {'background': 1.0}}
    )
    scenes = pattern_consistency.prompted(3)
    assert [scene.attributes['pattern'] for scene in scenes] == ['stripes'] * 4 + ['checks'] * 4 + ['dots'] * 4
    known, seen = {scene.captions[0]: scene for scene in scenes}, []

    def views(loaded, prompts, **options):
        posed = rig(len(prompts), 4)
        return view_reading.true_views([known[prompt] for prompt in prompts], posed, 16, 1.0, 1, patterns.albedo), posed

    def consistency(images, posed, key):
        seen.append(images)
        return multiview.Consistency(np.full(len(images), images.mean()), np.zeros(len(images)))

    monkeypatch.setattr(drawing, 'views', views)
    monkeypatch.setattr(multiview, 'consistency', consistency)
    monkeypatch.setattr(multiview, 'agreement', consistency)
    found = pattern_consistency.evaluate(loading.Loaded(config, None, {}, 'drawn', 1), limit=3)
    assert found['patterns/mvc_rmse'] == found['patterns/floor/mvc_rmse'] != found['control/patterns/plain/mvc_rmse']
    assert found['patterns/mvc_n'] == 12 and found['control/patterns/mvc_n'] == 3
    plain = view_reading.true_views(view_reading.objects()[0][:1], rig(1, 4), 16, 1.0, 1)
    np.testing.assert_array_equal(seen[-1][0], plain[0])


def test_a_sampler_of_given_models_is_scored_by_its_config():
    """`t3d eval configs/guided_mv.py:tiny mixing.last=0.25`: the config with its changes; a run takes none."""
    loaded = evaluate.model('configs/guided_mv.py:tiny', ['mixing.last=0.25'], {'pictures': 'image_diffusion-toy'})
    assert loaded.config.mixing.last == 0.25 and set(loaded.given) == {'views', 'pictures'} and loaded.step == 0
    assert table.fitting(loaded, 'pattern_consistency') is pattern_consistency
    with pytest.raises(UsageError, match='only a config takes KEY=VALUE'):
        evaluate.model('mvdiffusion-toy', ['mixing.last=0.25'], {})
    with pytest.raises(UsageError, match='is trained before'):
        evaluate.model('configs/instant3d.py:tiny', [f'text.words={("red",)!r}'], {})
