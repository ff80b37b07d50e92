"""From a config to records, examples, previews and vocabularies."""

import os
import re

import numpy as np
import pytest

from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.data import sets, sources
from t3d.data.adapters import views
from t3d.data.sets import shapes, toy
from t3d.data.sets.captions import vocabulary
from t3d.systems import instant3d_supervision

SMALL = ('data.size=8', 'preview.rows=6', 'preview.views=2')


def tiny(*overrides):
    return configs.load('configs/instant3d.py:tiny', [*SMALL, *overrides])


class Counted:
    """Three records of sixteen views; counts what is read."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 3

    def __getitem__(self, index):
        assert type(index) is int  # tensorflow_datasets takes no numpy integers
        self.read.append(index)
        scene = shapes.singles('all')[index]
        return toy.record(scene, np.linspace(0.0, 6.0, 16), np.full(16, 0.3), 8)


def test_a_cached_source_reads_every_record_once_and_drops_depth():
    plain = Counted()
    cached = views.Cached(plain, ('image', 'captions'))
    for index in (2, np.int64(0), 2, 0, np.int64(2)):
        record = cached[index]
        assert 'depth' not in record
        np.testing.assert_array_equal(record['image'], Counted()[int(index)]['image'])
    assert plain.read == [2, 0] and len(cached) == 3
    with_depth = views.Cached(Counted(), ('depth',))[1]
    np.testing.assert_array_equal(with_depth['depth'], Counted()[1]['depth'])


def test_an_example_takes_training_views_alone():
    config = sources.resolve(tiny('data.views=3', 'data.train_views=5'))
    transform, record, seen = sources.make(config)[1], Counted()[1], set()
    for number in range(40):
        example = transform(record, np.random.default_rng(number))
        assert set(example) == {'tokens', 'image', 'world_from_cam', 'intrinsics'} and example['image'].shape == (3, 8, 8, 4)
        chosen = [int(np.flatnonzero((record['world_from_cam'] == pose).all((1, 2)))[0]) for pose in example['world_from_cam']]
        assert len(set(chosen)) == 3
        for view, image in zip(chosen, example['image']):
            np.testing.assert_array_equal(image, record['image'][view])
        seen |= set(chosen)
    assert seen == {0, 1, 2, 3, 4}
    asks = instant3d_supervision.batch_spec(tiny('loss.depth=0.1'))
    assert 'depth' in asks and 'depth' in sources.make(config, None, asks)[1](record, np.random.default_rng(0))


def test_an_example_depends_on_its_random_generator_alone():
    transform, record = sources.make(sources.resolve(tiny('data.views=3')))[1], Counted()[1]
    one, two, other = (transform(record, np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize('scenes', ['singles', 'both', 'pairs'])
def test_the_preview_depends_on_the_config_alone(scenes):
    config = sources.resolve(tiny(f'data.scenes={scenes}', 'text.length=12'))
    batch, captions = sources.preview(config, {})
    np.random.seed(7)
    again, same = sources.preview(sources.resolve(tiny(f'data.scenes={scenes}', 'text.length=12', 'seed=5', 'data.seed=5')), {})
    assert captions == same and len(captions) == 6 and len(set(captions)) == 6
    assert all(np.array_equal(batch[name], again[name]) for name in batch)
    assert batch['image'].shape == (6, 2, 8, 8, 4) and batch['tokens'].shape == (6, 12)
    held_out = {caption for scene in [*shapes.singles('test'), *shapes.pairs('test')] for caption in scene.captions}
    assert set(captions) <= held_out


def test_the_preview_is_no_larger_than_a_batch():
    batch, captions = sources.preview(sources.resolve(tiny('batch=2')), {})
    assert len(captions) == len(batch['tokens']) == 2


def test_the_preview_of_objects_shows_views_held_out(monkeypatch):
    monkeypatch.setattr(sets, 'open_set', lambda data, split: Counted())
    config = sources.resolve(tiny('data.name=furniture', 'data.train_views=12', 'batch=2'))
    batch, captions = sources.preview(config, {})
    for row, index in enumerate((0, 2)):
        np.testing.assert_array_equal(batch['image'][row], Counted()[index]['image'][12:14])
        assert captions[row] == max(Counted()[index]['captions'], key=len)


def test_the_vocabulary_is_that_of_the_data(monkeypatch):
    assert sources.resolve(tiny()).text.words == shapes.WORDS
    config = sources.resolve(tiny('text.words=("a","red")'))
    assert config.text.words == ('a', 'red') and config.is_locked
    folder = sources.resolve(tiny('text.folder=/somewhere'))
    assert folder.text.words == ()  # a tokenizer with a vocabulary of its own
    monkeypatch.setattr(sets, 'open_set', lambda data, split: Counted())
    words = sources.resolve(tiny('data.name=furniture')).text.words
    assert words == tuple(vocabulary(caption for k in range(3) for caption in Counted()[k]['captions']))
    assert 'sphere' in words and len(words) == len(set(words))


def test_sources_are_named_and_what_is_wrong_is_refused(monkeypatch, tmp_path):
    source, transform = sources.make(sources.resolve(tiny()), 'test')
    assert source[0]['captions'][0] in {caption for scene in shapes.singles('test') for caption in scene.captions}
    assert transform(source[0], np.random.default_rng(0))['tokens'].dtype == np.int32
    for override, message in (
        (
            'data.name=tey',
            "unknown data set (data.name) 'tey': there are furniture, posed, records, toy, toy_endless",
        ),
        ('data.name=eg3d', "data.name='eg3d' gives no posed views: it goes with configs/ganfusion_gan.py"),
        (
            'data.kind=veiws',
            "unknown adapter (data.kind) 'veiws': there are object_places, object_rays, prompts, rays, single_view, ",
        ),
        ('data.split=tset', "unknown split of toy (data.split) 'tset'. Did you mean 'test'? Known: train, test, all."),
        ('data.scenes=all', "unknown toy scenes (data.scenes) 'all'. Known: singles, pairs, both."),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            sources.make(sources.resolve(tiny('text.words=("a",)', override)))
    monkeypatch.setenv('T3D_DATA', str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r'no furniture data size=8 .*nothing built.*t3d data build furniture'):
        sources.make(tiny('data.name=furniture'))


def test_the_folder_of_built_data(monkeypatch):
    monkeypatch.setenv('T3D_DATA', '/somewhere')
    assert sources.default_folder() == '/somewhere'
    monkeypatch.delenv('T3D_DATA')
    assert sources.default_folder() == os.path.expanduser('~/.cache/t3d/data')
