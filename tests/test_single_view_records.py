"""Single views of sets that stream: those of the folder that was packed, nothing kept, cameras that stand for a large set."""

import json
import shutil
import threading

import numpy as np
import pytest
import small_posed
from small_single_view import TEXT, make_config

from t3d.build import pack_records
from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.data import pipeline, sources
from t3d.data.adapters import single_view
from t3d.data.sets import record_bytes, record_pictures, records

SIZE, VIEWS = 12, 4
WORDS = ('old_chair', 'red_table', 'sofa', 'green_lamp', 'bed')
SPECS = ('ganfusion_gan:tiny', 'renderdiffusion:tiny')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Five objects of four views."""
    root = tmp_path_factory.mktemp('set')
    for k, name in enumerate(WORDS):
        small_posed.zero123(root, small_posed.look(size=SIZE, seed=k, fov=small_posed.FIELDS['zero123']), name)
    (root / 'captions.json').write_text(json.dumps({'sofa': ['a sofa', 'une belle couche grise'], 'bed': 'ein Bett'}))
    return root


@pytest.fixture(scope='module')
def packed(folder, tmp_path_factory):
    """The same, packed two objects a shard."""
    out = tmp_path_factory.mktemp('packed') / 'records'
    return pack_records.run(str(folder), str(out), size=SIZE, shard_size=2, processes=1, log=lambda line: None)


def run_config(spec, name, path, *overrides):
    data = (f'data.name={name}', f'data.path={path}', f'data.size={SIZE}', 'data.split=all', 'batch=4', 'preview.rows=3')
    text = ('text.words=()', 'text.open_vocabulary=true', 'text.length=8') if spec.startswith('render') else ()
    return sources.resolve(configs.load(spec, [*data, *text, *overrides]))


def small_config(path, text=None, **data):
    return make_config(text, name='records', path=str(path), split='all', **data)


def same(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == right[name].dtype
        np.testing.assert_array_equal(value, right[name])


@pytest.mark.parametrize('mirror', [False, True])
@pytest.mark.parametrize('spec', SPECS)
def test_batches_previews_and_labels_are_those_of_the_folder(folder, packed, spec, mirror):
    made = []
    for name, path in (('posed', folder), ('records', packed)):
        config = run_config(spec, name, path, f'data.mirror={str(mirror).lower()}')
        source, transform = sources.make(config)
        assert len(source) == (2 if mirror else 1) * len(WORDS) * VIEWS and sources.folder(source) == str(path)
        batches = pipeline.make(source, transform, batch=4, seed=3, threads=2)
        rows, texts = sources.preview(config, {})
        told = [config.get('text', {}).get('words'), texts, sorted(source.text(7)['captions'])]
        made.append((told, [rows, *(next(batches) for _ in range(12))], single_view.labels(config)))
    (told, arrays, labels), (told_too, arrays_too, labels_too) = made
    assert told == told_too
    np.testing.assert_array_equal(labels, labels_too)
    for ours, theirs in zip(arrays_too, arrays, strict=True):
        same(ours, theirs)


def test_one_picture_is_decoded_of_a_record_and_none_is_kept(packed, monkeypatch):
    source, transform = sources.make(small_config(packed, mode='pose-distribution'))
    whole, calls, pixels = records.RecordsSource(packed, 'all'), [], record_bytes._pixels
    monkeypatch.setattr(record_bytes, '_pixels', lambda *args: calls.append(threading.get_ident()) or pixels(*args))
    for index in (5, 5, 19):
        record, truth = source[index], whole.read(index // VIEWS, names=('image',))['image'][index % VIEWS]
        laid = truth[..., :3] * (truth[..., 3:] / 255.0) + 127.5 * (1.0 - truth[..., 3:] / 255.0)
        assert np.abs(record['image'] - laid).max() <= 0.5 + 1e-4 and not record['label'].any()  # of an unknown camera
        assert record['name'] == whole.text(index // VIEWS)['name']
    own = calls.count(threading.get_ident())  # batches of another test may still be prepared by their threads
    assert own == 3 * (1 + VIEWS)  # those of the truth beside
    assert transform(source[0], np.random.default_rng(0))['fake_labels'].shape == (3, 25)
    with pytest.raises(IndexError):
        source[20]


def test_the_cameras_of_a_large_set_are_those_of_evenly_spread_objects(packed, monkeypatch):
    whole = single_view.labels(small_config(packed))
    monkeypatch.setattr(record_pictures, 'DRAWN', 7)  # two objects of four views
    record_pictures._open.cache_clear()
    few = single_view.labels(small_config(packed))
    np.testing.assert_array_equal(few, np.concatenate([whole[:VIEWS], whole[2 * VIEWS : 3 * VIEWS]]))
    source, transform = sources.make(small_config(packed))
    for index in range(len(source)):  # every picture keeps its own, also where it is not among those
        np.testing.assert_array_equal(source[index]['label'], whole[index])
    drawn = {row.tobytes() for k in range(60) for row in transform(source[0], np.random.default_rng(k))['fake_labels']}
    assert drawn == {row.tobytes() for row in few}
    record_pictures._open.cache_clear()


def test_views_held_out_and_views_left_out(packed):
    whole = records.RecordsSource(packed, 'all')
    for options, places in (({'train_views': 3}, (0, 1, 2)), ({'views_kept': 2}, (0, 2)), ({}, range(VIEWS))):
        source, _ = sources.make(small_config(packed, **options))
        assert len(source) == len(WORDS) * len(places)
        poses = np.concatenate([whole[k]['world_from_cam'][list(places)] for k in range(len(WORDS))])
        np.testing.assert_array_equal([source[k]['label'][:16].reshape(4, 4) for k in range(len(source))], poses)
    with pytest.raises(UsageError, match='data.train_views=5, but a record of .* has 4 views: set 0 for all'):
        sources.make(small_config(packed, train_views=5))


def test_what_cannot_be_trained_on_is_refused(folder, packed, tmp_path):
    words = {**TEXT, 'words': ('a', 'sofa')}
    with pytest.raises(UsageError, match='a caption cannot be read'):  # a closed vocabulary, and others are said
        sources.make(small_config(packed, words, system='renderdiffusion'))
    with pytest.raises(UsageError, match='needs the camera of every image'):
        sources.make(small_config(packed, words, system='renderdiffusion', mode='pose-distribution'))
    with pytest.raises(UsageError, match='has views of 12 px, the config wants data.size=16: set data.size=12'):
        sources.make(small_config(packed, size=16))
    with pytest.raises(UsageError, match='no records in .*none'):
        sources.make(small_config(packed.parent / 'none'))
    with pytest.raises(UsageError, match="data.name='records' needs data.path"):
        sources.make(small_config(''))
    other = shutil.copytree(folder, tmp_path / 'set')
    (other / 'captions.json').write_text(json.dumps({'sofa': 'the left sofa'}))
    sided = pack_records.run(str(other), str(tmp_path / 'sided'), size=SIZE, processes=1, log=lambda line: None)
    sources.make(small_config(sided))
    with pytest.raises(UsageError, match=r'data.mirror with captions that say left .*sided.*Set data.mirror=false'):
        sources.make(small_config(sided, mirror=True))


def test_damage_ends_a_training_and_no_other_picture_stands_in(packed, monkeypatch):
    source, _ = sources.make(small_config(packed))
    read = source.pictures.source.shards.read
    monkeypatch.setattr(source.pictures.source.shards, 'read', lambda *where: read(*where)[:-40])
    with pytest.raises(UsageError, match='its head describes .* Copy it again from where it was packed'):
        source[0]
