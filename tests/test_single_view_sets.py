"""EG3D folders and zips: written and read again, refused, made smaller."""

import numpy as np
import pytest
from small_single_view import TEXT, make_config

from t3d import cli
from t3d.core.errors import UsageError
from t3d.data import sources
from t3d.data.adapters import single_view
from t3d.data.sets import images
from t3d.geom import cameras


def test_a_written_set_trains_like_the_set_it_was_written_from(tmp_path, capsys):
    out = tmp_path / 'toy.zip'
    words = ['--size', '12', '--poses', '2', '--seed', '3', '--supersample', '1']
    assert cli.main(['data', 'single-view', 'toy', '--out', str(out), *words]) == 0
    printed = capsys.readouterr().out
    assert f'wrote {out}: 96 images of 12 px' in printed and 'distance 3.2 to 3.2, field of view 40.3 degrees' in printed
    plain, _ = sources.make(make_config())
    for mode in ('posed-known', 'posed-estimated'):
        written, transform = sources.make(make_config(name='eg3d', path=str(out), mode=mode))
        np.testing.assert_array_equal(written.labels, plain.labels)
        for index in (0, 50, 95):
            np.testing.assert_array_equal(written[index]['image'], plain[index]['image'])
            assert written[index]['captions'] == plain[index]['captions']
            assert written[index]['attributes'] == plain[index]['attributes']
        assert set(transform(written[0], np.random.default_rng(0))) == {'image', 'label', 'fake_labels'}
    config = sources.resolve(make_config(TEXT, name='eg3d', path=str(out), system='renderdiffusion'))
    assert set(config.text.words) == {word for caption in plain.captions() for word in caption.split()}
    source, transform = sources.make(config)
    assert set(transform(source[0], np.random.default_rng(0))) == {'tokens', 'image', 'label'}


def turned(count: int, size: int = 4) -> list[dict]:
    table = np.float32(cameras.to_eg3d(cameras.orbit(np.arange(count) * 0.5, 0.2, 2.7, 0.3)))
    random = np.random.default_rng(0)
    return [{'image': random.integers(0, 256, (size, size, 3), np.uint8), 'label': label} for label in table]


def test_sets_that_cannot_be_trained_on_are_refused(tmp_path):
    images.write(tmp_path / 'posed', turned(3))
    open_as = lambda text=None, **data: sources.make(make_config(text, name='eg3d', path=str(tmp_path / 'posed'), **data))
    assert len(open_as(size=4)[0]) == 3 and len(open_as(size=4, mirror=True)[0]) == 6
    with pytest.raises(UsageError, match=r'images of 4 px, the config wants data\.size=12: set data\.size=4'):
        open_as()
    with pytest.raises(UsageError, match="split='test' of .*posed: an EG3D set has one split"):
        open_as(size=4, split='test')
    words = {**TEXT, 'words': ('a',)}
    with pytest.raises(
        UsageError,
        match=r'renderdiffusion reads captions, and 3 of 3 records of .*posed have none, first 00000/img00000000\.png',
    ):
        sources.make(make_config(words, name='eg3d', path=str(tmp_path / 'posed'), size=4, system='renderdiffusion'))
    images.write(tmp_path / 'turned', [{**record, 'captions': ('the left shoe',)} for record in turned(3)])
    with pytest.raises(UsageError, match='3 of 6 records of .*turned have none'):
        sources.make(make_config(words, name='eg3d', path=str(tmp_path / 'turned'), size=4, mirror=True))
    with pytest.raises(UsageError, match="renderdiffusion needs the camera of every image: data.mode='pose-distribution'"):
        sources.make(make_config(words, system='renderdiffusion', mode='pose-distribution'))
    frontal = [{**record, 'label': turned(1)[0]['label']} for record in turned(3)]
    images.write(tmp_path / 'frontal', frontal)
    with pytest.raises(UsageError, match='frontal: all 3 labels are of one pose.*billboard'):
        sources.make(make_config(name='eg3d', path=str(tmp_path / 'frontal'), size=4))
    images.write(tmp_path / 'bare', [{**record, 'label': None} for record in turned(3)])
    with pytest.raises(UsageError, match='no labels'):
        sources.make(make_config(name='eg3d', path=str(tmp_path / 'bare'), size=4))
    source, _ = sources.make(make_config(name='eg3d', path=str(tmp_path / 'bare'), size=4, mode='pose-distribution'))
    np.testing.assert_array_equal(source[1]['image'], turned(3)[1]['image'])


def test_a_set_is_made_smaller_by_averaging_and_keeps_its_labels(tmp_path, capsys):
    images.write(tmp_path / 'large', turned(5, 8))
    command = ['data', 'single-view', 'eg3d', '--source', str(tmp_path / 'large'), '--out']
    assert cli.main([*command, str(tmp_path / 'small.zip'), '--size', '4', '--limit', '3', '--mirror']) == 0
    image_set = images.ImageSet(tmp_path / 'small.zip')
    truth = turned(5, 8)
    np.testing.assert_array_equal(image_set.labels[0], truth[0]['label'])
    assert len(image_set) == 3 and image_set.size == 4  # of ten, mirrored ones included: the first, one between, the last
    mean = truth[0]['image'].astype(float).reshape(4, 2, 4, 2, 3).mean((1, 3))
    assert np.abs(image_set.image(0) - mean).max() <= 1.0  # two roundings
    last = truth[4]['image'].astype(float).reshape(4, 2, 4, 2, 3).mean((1, 3))[:, ::-1]
    assert np.abs(image_set.image(2) - last).max() <= 1.0
    np.testing.assert_array_equal(image_set.labels[2], single_view.mirror_labels(truth[4]['label'][None])[0])
    capsys.readouterr()
    for words, message in (
        ([str(tmp_path / 'small.zip')], 'small.zip is there already'),
        ([str(tmp_path / 'x'), '--size', '16'], '--size 16: the images have 8 px'),
        ([str(tmp_path / 'y'), '--limit', '1'], '--limit 1: wanted a whole number from 2'),
        ([str(tmp_path / 'y'), '--background', '128'], '--background 128.0: wanted a number from 0 to 1 (a grey'),
    ):
        assert cli.main([*command, *words]) == 2 and message in capsys.readouterr().err
    assert cli.main(['data', 'single-view', 'eg3d', '--out', str(tmp_path / 'z')]) == 2
    assert 'give the EG3D folder or zip to read' in capsys.readouterr().err


def test_a_damaged_picture_is_left_out_of_what_is_written_anew(tmp_path, capsys):
    images.write(tmp_path / 'set', turned(4, 8))
    file = tmp_path / 'set/00000/img00000002.png'
    file.write_bytes(file.read_bytes()[:60])  # a whole header, half the pixels
    command = ['data', 'single-view', 'eg3d', '--source', str(tmp_path / 'set'), '--out', str(tmp_path / 'new.zip')]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert 'img00000002.png cannot be read' in printed and 'new.zip: 3 images of 8 px' in printed
    image_set = images.ImageSet(tmp_path / 'new.zip')
    np.testing.assert_array_equal(image_set.labels, np.stack([turned(4)[k]['label'] for k in (0, 1, 3)]))
    np.testing.assert_array_equal(image_set.image(2), turned(4, 8)[3]['image'])
