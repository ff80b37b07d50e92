"""Views of real objects, scored beside true ones: which objects, which of their views, and which numbers."""

import types

import numpy as np
import pytest
from test_view_consistency import rig

from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.data import sets
from t3d.evaluate import captioned_views, drawing, table
from t3d.inference import loading
from t3d.metrics import multiview


class Objects:
    """Seven objects of 6 views of 4 px, each view a grey level of its own; the last two views are held out."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        grey = (30 * index + np.arange(6)).astype(np.uint8)
        image = np.concatenate([np.broadcast_to(grey[:, None, None, None], (6, 4, 4, 3)), np.full((6, 4, 4, 1), 255)], -1)
        posed = rig(1, 6)
        cameras = {name: np.asarray(getattr(posed, name))[0] for name in ('world_from_cam', 'intrinsics')}
        return {'image': image.astype(np.uint8), 'captions': ('a thing', f'a thing of kind {index}'), **cameras}


@pytest.fixture
def loaded(monkeypatch):
    config = {'system': 'x', 'data': {'name': 'things', 'kind': 'views', 'split': 'train', 'train_views': 4}}
    monkeypatch.setattr(sets, 'open_set', lambda data, split: Objects())
    seen = []

    def views(loaded, prompts, **options):
        seen.append(prompts)
        return np.full((len(prompts), 4, 4, 4, 3), 0.5, np.float32), rig(len(prompts), 4)

    monkeypatch.setattr(drawing, 'views', views)
    model = loading.Loaded(configs.from_dict({**config, 'render': {'background': 1.0}}), None, {}, 'drawn', 1)
    return types.SimpleNamespace(model=model, seen=seen)


def test_true_views_are_spread_over_those_trained_on(loaded):
    shown = captioned_views.pictures(loaded.model, limit=3)
    assert shown.prompts == ['a thing of kind 0', 'a thing of kind 3', 'a thing of kind 6'] and not shown.paired
    np.testing.assert_allclose(shown.true[:, :, 0, 0, 0], (np.array([[0], [90], [180]]) + np.arange(4)) / 255.0, atol=1e-6)
    records = [Objects()[k] for k in range(2)]
    images, posed = captioned_views.true_views(loaded.model, records, 2)
    np.testing.assert_allclose(images[1, :, 0, 0, 0], np.array([30, 32]) / 255.0, atol=1e-6)
    np.testing.assert_array_equal(posed.world_from_cam[0], records[0]['world_from_cam'][[0, 2]])
    with pytest.raises(UsageError, match='has 4 views, and 5 are compared'):
        captioned_views.true_views(loaded.model, records, 5)


def test_each_number_has_its_pictures(loaded, monkeypatch):
    mean = lambda images, posed, key: multiview.Consistency(np.full(len(images), images.mean()), images[:, :, 0, 0, 0].std(1))
    monkeypatch.setattr(multiview, 'consistency', mean)
    monkeypatch.setattr(multiview, 'agreement', mean)
    assert table.fitting(loaded.model, 'captioned_views') is captioned_views
    found = captioned_views.evaluate(loaded.model)
    assert found['n_objects'] == 7 and found['n_views'] == 28 and found['mvc_rmse'] == 0.5
    assert found['floor/mvc_rmse'] == pytest.approx((90 + 1.5) / 255.0, rel=1e-5)
    assert found['control/floor/mvc_dissimilarity'] > 0.1 > 0.01 > found['floor/mvc_dissimilarity'] > 0.0
    assert found['control/mvc_dissimilarity'] == found['mvc_dissimilarity'] == 0.0  # all drawn alike here
    with pytest.raises(UsageError, match='objects or scenes'):
        captioned_views.evaluate(loaded.model, limit=1)
