"""The scores of seeds, of systems whose seeds are known: one shows every object in turn, one the first alone."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_evaluate import loaded_with
from test_toy_sharpness import traced

from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.core.outputs import Field
from t3d.data.sets import open_captions, shapes
from t3d.evaluate import table, toy_seeds

CONFIG = ('data.size=12', 'data.supersample=1', 'text.words=("a",)')


def that_shows(chosen):
    """A model whose k-th request of a caption shows object `chosen(k, how many there are)` of it."""
    config = configs.load('configs/instant3d.py:toy_imle', CONFIG)
    loaded, asked = loaded_with({})._replace(config=config), {}

    def generate(params, requests, keys, given):
        outputs = []
        for request in requests:
            k = asked[request.prompt] = asked.get(request.prompt, -1) + 1
            scenes = open_captions.groups('all')[request.prompt]
            scene = {'table': shapes.table(scenes[chosen(k, len(scenes))]), 'lamp': shapes.LAMP, 'off': jnp.zeros(3)}
            outputs.append(Field(request.prompt, scene, None, traced, 1.0, {}))
        return outputs

    return loaded._replace(system=loaded.system._replace(generate=generate))


def test_seeds_that_show_every_object_score_full_marks_and_their_controls_what_they_are():
    scores = table.evaluate(that_shows(lambda k, count: k % count))
    assert scores['shape_open/n'] == 64 and scores['colour_open/n'] == 32
    for name, count in (('shape_open', 4), ('colour_open', 8)):
        assert scores[f'{name}/one'] == scores[f'{name}/found'] == 1.0
        assert scores[f'{name}/best'] < 0.01 and scores[f'{name}/reached'] < 0.02  # what differs are roundings at edges
        same = count * (8 / count) * (8 / count - 1) / 2  # pairs of seeds that are one object, of 28
        np.testing.assert_allclose(scores[f'{name}/spread'], 1.0 - same / 28, atol=0.03)
        mean = {key: scores[f'control/mean_picture/{name}/{key}'] for key in ('best', 'reached', 'spread', 'one', 'found')}
        assert mean['one'] == mean['found'] == 0.0 and mean['spread'] < 1e-3 and mean['reached'] >= mean['best'] > 0.05
        assert scores[f'control/objects_at_random/{name}/one'] == 1.0
        assert 0.4 < scores[f'control/objects_at_random/{name}/found'] <= 1.0
        assert scores[f'control/other_caption/{name}/one'] < 0.3


def test_seeds_that_show_one_object_are_told_from_it():
    scores = table.evaluate(that_shows(lambda k, count: 0), limit=3)
    for name, count in (('shape_open', 4), ('colour_open', 8)):
        assert scores[f'{name}/one'] == 1.0 and scores[f'{name}/found'] == 1 / count
        assert scores[f'{name}/best'] < 0.01 < 0.05 < scores[f'{name}/reached'] and scores[f'{name}/spread'] < 1e-3


def test_runs_of_other_captions_are_refused():
    with pytest.raises(UsageError, match="evaluate='toy_seeds' is for runs with data.name='toy_open'"):
        table.evaluate(table.with_evaluators(loaded_with({}), ('toy_seeds',)))
    with pytest.raises(UsageError, match='--limit'):
        toy_seeds.evaluate(that_shows(lambda k, count: 0), limit=1)
