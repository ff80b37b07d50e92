"""Pictures of captioned objects: distances against a naive loop, and the numbers of pictures whose answer is known."""

import numpy as np
import pytest

from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.data import sets
from t3d.evaluate import captioned_pictures, drawing, pixel_features, table
from t3d.inference import loading

RANDOM = np.random.default_rng(0)
COUNT = 80
VIEWS = RANDOM.integers(0, 256, (COUNT, 10, 8, 8, 4), np.uint8)
VIEWS[..., 3] = 255
VIEWS[:, 1:, ..., :3] = VIEWS[:, :1, ..., :3] // 2 + VIEWS[:, 1:, ..., :3] // 2  # views of an object are alike


class Objects:
    """Objects of ten views, of which the last four are not trained on."""

    def __init__(self, count=COUNT):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {'image': VIEWS[index], 'captions': ('a thing', f'a thing of kind {index}')}


def loaded(monkeypatch, draw, count=COUNT, train_views=6):
    data = {'name': 'things', 'kind': 'views', 'split': 'train', 'train_views': train_views}
    monkeypatch.setattr(sets, 'open_set', lambda data, split: Objects(count))
    monkeypatch.setattr(drawing, 'samples', lambda loaded, prompts, evaluator: draw(prompts))
    config = configs.from_dict({'system': 'x', 'data': data, 'render': {'background': 1.0}})
    return loading.Loaded(config, None, {}, 'drawn', 1)


def views_of(prompts, view=3, shift=0):
    which = [(int(prompt.split()[-1]) + shift) % COUNT for prompt in prompts]
    return np.float32(VIEWS[which, view, ..., :3]) / 255.0


def test_distances_are_those_of_a_loop():
    images, views = RANDOM.random((5, 4, 4, 3)), RANDOM.random((3, 2, 4, 4, 3))
    loop = [[min(np.sqrt(np.mean((one - view) ** 2)) for view in other) for other in views] for one in images]
    np.testing.assert_allclose(captioned_pictures.to_views(images, views), loop, rtol=1e-6)


def test_true_pictures_are_found_and_those_of_others_are_not(monkeypatch):
    model = loaded(monkeypatch, views_of)
    assert table.fitting(model, 'captioned_pictures') is captioned_pictures
    found = captioned_pictures.evaluate(model)
    assert found['own_r1'] == found['control/true/own_r1'] == 1.0 and found['n'] == COUNT
    assert found['nearest_rmse'] < 1e-3 < 0.2 < found['control/nearest_rmse']  # the view drawn is one of those compared with
    assert found['frechet_pixels'] == pytest.approx(found['control/frechet_pixels'], rel=0.3)
    wrong = captioned_pictures.evaluate(loaded(monkeypatch, lambda prompts: views_of(prompts, shift=2)))
    assert wrong['own_r1'] == 0.0 and wrong['nearest_rmse'] > 0.2
    grey = captioned_pictures.evaluate(loaded(monkeypatch, lambda prompts: np.full((len(prompts), 8, 8, 3), 0.5, np.float32)))
    assert grey['frechet_pixels'] > 3.0 * grey['control/frechet_pixels']


def test_pictures_and_captions_go_together(monkeypatch):
    shown = captioned_pictures.pictures(loaded(monkeypatch, views_of), limit=3)
    assert shown.prompts == ['a thing of kind 0', 'a thing of kind 39', 'a thing of kind 79'] and not shown.paired
    np.testing.assert_allclose(shown.shown[:, 0], views_of(shown.prompts), atol=1e-6)
    np.testing.assert_allclose(shown.true[:, 0], views_of(shown.prompts, view=0), atol=1e-6)
    few = captioned_pictures.evaluate(loaded(monkeypatch, views_of), limit=pixel_features.COMPONENTS)
    assert 'frechet_pixels' not in few and few['n'] == pixel_features.COMPONENTS


@pytest.mark.parametrize('count, views', [(1, 6), (5, 1)])
def test_what_has_nothing_to_be_compared_with_is_refused(monkeypatch, count, views):
    with pytest.raises(UsageError, match=f'{count} objects of {views} views: pictures are compared with other'):
        captioned_pictures.evaluate(loaded(monkeypatch, views_of, count, views))
