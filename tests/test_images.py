"""EG3D's image sets: layout, bits, threads, and everything that is refused."""

import concurrent.futures
import io
import json
import re
import zipfile

import damaged_zips
import numpy as np
import PIL.Image
import pytest
from small_images import FRONTAL, grey, label

from t3d.core.errors import UsageError
from t3d.data.adapters import single_view
from t3d.data.sets import archives, images


def records(count: int, size: int = 4, channels: int = 3) -> list[dict]:
    random = np.random.default_rng(count)
    pictures = random.integers(0, 256, (count, size, size, channels), np.uint8)
    return [{'image': image, 'label': np.float32(label(0.1 * k))} for k, image in enumerate(pictures)]


def save(folder, named: dict, labels='each', suffix_options=None) -> None:
    """A set written without the code under test; `labels` is the value of the index, or one label for each file."""
    for name, array in named.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(array).save(folder / name, **(suffix_options or {}))
    if isinstance(labels, str):
        labels = [[name, label(0.1 * k)] for k, name in enumerate(sorted(named))]
    (folder / 'dataset.json').write_text(json.dumps({'labels': labels}))


@pytest.mark.parametrize('name', ['set.zip', 'deep/set'])
@pytest.mark.parametrize('channels', [3, 4])
def test_a_set_comes_back_bit_for_bit(tmp_path, name, channels):
    written = records(5, channels=channels)
    written[2] |= {'captions': ('a red cube', 'cube'), 'attributes': {'colour': 'red'}}
    assert images.write(tmp_path / name, written, {'LICENCE.md': b'CC0'}) == 5
    image_set = images.ImageSet(tmp_path / name)
    assert len(image_set) == 5 and image_set.size == 4
    assert image_set.names == [f'00000/img{k:08d}.png' for k in range(5)]
    assert image_set.labels.dtype == np.float32
    np.testing.assert_array_equal(image_set.labels, [record['label'] for record in written])
    for k, record in enumerate(written):
        np.testing.assert_array_equal(image_set.image(k), record['image'])
    assert image_set.text(2) == {
        'captions': ('a red cube', 'cube'),
        'attributes': {'colour': 'red'},
        'name': '00000/img00000002.png',
    }
    assert image_set.text(1) == {'captions': (), 'attributes': {}, 'name': '00000/img00000001.png'}


def test_the_zip_is_what_the_loader_of_eg3d_expects(tmp_path):
    """Read as that loader does: sorted image names, a dictionary of labels, stored PNG members."""
    written = records(1002, size=2)
    images.write(tmp_path / 'a.zip', written)
    images.write(tmp_path / 'b.zip', written)
    assert (tmp_path / 'a.zip').read_bytes() == (tmp_path / 'b.zip').read_bytes()
    with zipfile.ZipFile(tmp_path / 'a.zip') as archive:
        names = sorted(name for name in archive.namelist() if name.endswith('.png'))
        assert names[0] == '00000/img00000000.png' and names[999:1001] == ['00000/img00000999.png', '00001/img00001000.png']
        labels = dict(json.loads(archive.read('dataset.json'))['labels'])
        table = np.array([labels[name] for name in names]).astype(np.float32)
        picture = np.array(PIL.Image.open(io.BytesIO(archive.read(names[1001]))))
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    np.testing.assert_array_equal(table, [record['label'] for record in written])
    np.testing.assert_array_equal(picture, written[1001]['image'])
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.zip', 'b.zip']  # nothing half written stays


def test_jpeg_and_png_of_other_kinds_are_read_and_other_files_ignored(tmp_path):
    flat = np.full((8, 8), 77, np.uint8)
    save(tmp_path, {'x/a.JPG': grey(8, 100), 'b.png': flat, 'c.jpeg': grey(8, 50)})
    (tmp_path / '.hidden').mkdir()
    for name in ('.hidden/d.png', '._b.png', '__MACOSX.png.txt'):
        (tmp_path / name).write_bytes(b'nothing')
    image_set = images.ImageSet(tmp_path)
    assert image_set.names == ['b.png', 'c.jpeg', 'x/a.JPG'] and image_set.size == 8
    np.testing.assert_array_equal(image_set.image(0), np.full((8, 8, 3), 77))
    assert np.abs(image_set.image(2).astype(int) - 100).max() <= 1


def test_backslashes_of_windows_and_the_order_of_entries_do_not_matter(tmp_path):
    save(tmp_path, {'x/a.png': grey(), 'x/b.png': grey()}, [['x\\b.png', label(0.5)], ['x/a.png', label(0.0)]])
    np.testing.assert_array_equal(images.ImageSet(tmp_path).labels, np.float32([label(0.0), label(0.5)]))


def test_many_threads_read_one_zip(tmp_path):
    written = records(200, size=16)
    images.write(tmp_path / 'a.zip', written)
    image_set = images.ImageSet(tmp_path / 'a.zip')
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        read = list(pool.map(image_set.image, list(range(200)) * 3))
    for k, image in enumerate(read):
        np.testing.assert_array_equal(image, written[k % 200]['image'])


def test_a_set_without_labels_is_read_where_none_are_wanted(tmp_path):
    written = [{**record, 'label': None} for record in records(3)]
    images.write(tmp_path / 'a.zip', written)
    assert images.ImageSet(tmp_path / 'a.zip', labelled=False).labels is None
    with pytest.raises(UsageError, match=r"a\.zip: dataset\.json has no labels \(null\).*data\.mode='pose-distribution'"):
        images.ImageSet(tmp_path / 'a.zip')
    PIL.Image.fromarray(grey()).save(tmp_path / 'one.png')
    assert len(images.ImageSet(tmp_path, labelled=False)) == 1
    with pytest.raises(UsageError, match=r'has no dataset\.json, so its images have no camera labels'):
        images.ImageSet(tmp_path)


def changed(number: int, value) -> list:
    return [*FRONTAL[:number], value, *FRONTAL[number + 1 :]]


def scaled(factor: float) -> list[float]:
    pose = np.reshape(FRONTAL[:16], (4, 4)).astype(float)
    pose[:3, :3] *= factor
    return [*pose.ravel().tolist(), *FRONTAL[16:]]


WRONG = [
    (FRONTAL[:24], r'24 numbers, wanted 25'),
    (FRONTAL + [0.0] * 86, r'111 numbers, wanted 25'),
    ('front', r'no numbers, wanted 25'),
    (changed(3, float('nan')), r'not 25 finite numbers'),
    (changed(3, None), r'not 25 finite numbers'),
    (changed(3, [1.0]), r'not 25 finite numbers'),
    (scaled(1.002), r'rotation is not orthonormal: \|R\^T R - 1\| is 0\.004'),
    (changed(1, 0.01), r'rotation is not orthonormal'),
    (changed(10, 1), r'determinant -1\.000, wanted 1: a mirrored frame'),
    (changed(18, 0.56), r'principal point is \(0\.56, 0\.5\), wanted about 0\.5'),
    (changed(21, 256.0), r'principal point is \(0\.5, 256\), wanted about 0\.5: divide'),
    (changed(16, 0.0), r'focal lengths are 0 and 4\.265, wanted positive'),
    (changed(14, 2.7), r'last rows are \[0\.0, 0\.0, 2\.7, 1\.0\]'),
    ([*FRONTAL[16:], *FRONTAL[:16]], r'last rows'),
]


@pytest.mark.parametrize('wrong, message', WRONG)
def test_a_wrong_label_is_refused_by_name(tmp_path, wrong, message):
    save(tmp_path, {'a.png': grey(), 'b.png': grey()}, [['a.png', label(0.3)], ['b.png', wrong]])
    with pytest.raises(UsageError, match=f'dataset\\.json.*b\\.png.*{message}'):
        images.ImageSet(tmp_path)


def test_labels_of_rounded_files_are_accepted(tmp_path):
    rounded = [round(value, 4) for value in label(0.7)]
    save(tmp_path, {'a.png': grey()}, [['a.png', rounded]])
    np.testing.assert_array_equal(images.ImageSet(tmp_path).labels[0], np.float32(rounded))


@pytest.mark.parametrize(
    'labels, message',
    [
        ([['a.png', FRONTAL]], r'has no label for 1 files, first b\.png'),
        ([['a.png', FRONTAL], ['b.png', FRONTAL], ['c.png', FRONTAL]], r'labels of 1 files that are not there, first c\.png'),
        ([['a.png', FRONTAL], ['a.png', FRONTAL]], r'entry 1: a\.png has a label already'),
        ([['a.png', FRONTAL], 'b.png'], r'entry 1: wanted \[file, 25 numbers\]'),
        ([['a.png', FRONTAL], [3, FRONTAL]], r'entry 1: wanted \[file, 25 numbers\]'),
        ({'a.png': FRONTAL}, r'labels is a dict: wanted \[\[file, 25 numbers\], \.\.\.\]'),
        ([], r'has no label for 2 files'),
        (None, r'has no labels \(null\)'),
    ],
)
def test_a_wrong_index_is_refused(tmp_path, labels, message):
    save(tmp_path, {'a.png': grey(), 'b.png': grey()}, labels)
    with pytest.raises(UsageError, match=message):
        images.ImageSet(tmp_path)


@pytest.mark.parametrize(
    'text, message', [('{"labels": [', r'is no JSON'), ('[1]', r'holds a list: wanted'), ('\xff', 'is no JSON')]
)
def test_an_index_of_another_kind_is_refused(tmp_path, text, message):
    save(tmp_path, {'a.png': grey()})
    (tmp_path / 'dataset.json').write_bytes(text.encode('latin-1'))
    with pytest.raises(UsageError, match=f'dataset.json {message}'):
        images.ImageSet(tmp_path)


@pytest.mark.parametrize('captions', [['a cube'], {'a.png': 'a cube'}, {'a.png': [1]}])
def test_captions_of_another_form_are_refused(tmp_path, captions):
    save(tmp_path, {'a.png': grey()})
    (tmp_path / 'dataset.json').write_text(json.dumps({'labels': [['a.png', FRONTAL]], 'captions': captions}))
    with pytest.raises(UsageError, match=r'dataset\.json: captions are not \{file: \[text, \.\.\.\]\}'):
        images.ImageSet(tmp_path)


def test_images_that_do_not_fit_are_refused(tmp_path):
    save(tmp_path / 'sizes', {'a.png': grey(4), 'b.png': grey(8)})
    with pytest.raises(UsageError, match=r'several sizes: a\.png is 4 px, b\.png is 8 px'):
        images.ImageSet(tmp_path / 'sizes')
    save(tmp_path / 'wide', {'a.png': grey(4), 'b.png': np.zeros((4, 6, 3), np.uint8)})
    with pytest.raises(UsageError, match=r'b\.png is 6 x 4: wanted square'):
        images.ImageSet(tmp_path / 'wide')
    save(tmp_path / 'deep', {'a.png': np.zeros((4, 4), np.uint16)})
    with pytest.raises(UsageError, match=r'a\.png has pixels of kind I;16'):
        images.ImageSet(tmp_path / 'deep').image(0)
    (tmp_path / 'none').mkdir()
    with pytest.raises(UsageError, match=r'none has no \.png'):
        images.ImageSet(tmp_path / 'none')
    with pytest.raises(FileNotFoundError, match='no image set .*absent: set data.path'):
        images.ImageSet(tmp_path / 'absent')


def test_damaged_files_are_named(tmp_path):
    save(tmp_path / 'a', {'a.png': grey(4), 'b.png': grey(4)})
    whole = (tmp_path / 'a/b.png').read_bytes()
    (tmp_path / 'a/a.png').write_bytes(b'text')
    (tmp_path / 'a/b.png').write_bytes(b'')
    with pytest.raises(UsageError, match=r'a\.png is no whole PNG or JPEG \(cannot identify image file\): copy'):
        images.ImageSet(tmp_path / 'a')
    (tmp_path / 'a/a.png').write_bytes(whole)
    (tmp_path / 'a/b.png').write_bytes(whole[:45])
    with pytest.raises(UsageError, match=r'b\.png cannot be read'):
        images.ImageSet(tmp_path / 'a').image(1)
    images.write(tmp_path / 'c.zip', records(3, size=64))
    content = bytearray((tmp_path / 'c.zip').read_bytes())
    at = content.index(b'IDAT') + 200
    content[at] ^= 255
    (tmp_path / 'c.zip').write_bytes(content)
    with pytest.raises(UsageError, match=r'img00000000\.png is damaged'):
        images.ImageSet(tmp_path / 'c.zip').image(0)
    (tmp_path / 'c.zip').write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match=r'c\.zip is neither a folder nor a whole zip'):
        images.ImageSet(tmp_path / 'c.zip')


@pytest.mark.parametrize('damage', damaged_zips.DAMAGES)
def test_a_bad_picture_is_named_and_left_out(tmp_path, damage, capsys):
    """What its header shows is met at the opening, the rest when it is read; labels go along."""
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (96, 96, 3), np.uint8) for _ in range(3)]
    names = ['a.png', 'b.bin', 'c.png']
    members = {name: images.png(picture) for name, picture in zip(names, pictures)}
    path = damaged_zips.write(tmp_path / 'x.zip', members | {'pad': b''})
    make, message = damaged_zips.DAMAGES[damage]
    make(path)
    labels = [[name.replace('.bin', '.png'), label(0.1 * k)] for k, name in enumerate(names)]
    content = path.read_bytes().replace(b'b.bin', b'b.png')
    path.write_bytes(content)
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('dataset.json', json.dumps({'labels': labels}))
    image_set = images.ImageSet(path)
    message = message.replace('b.bin', 'b.png').replace('60000', r'\d+')
    if len(image_set) == 3:
        with pytest.raises(archives.Damaged, match=message + r'|b\.png cannot be read'):
            image_set.image(1)
    else:
        assert re.search(rf'1 of 3 images are left out: .*({message}|b\.png is no whole PNG or JPEG)', capsys.readouterr().out)
        assert image_set.names == ['a.png', 'c.png']
    np.testing.assert_array_equal(image_set.image(len(image_set) - 1), pictures[2])
    np.testing.assert_array_equal(image_set.labels[-1], np.float32(label(0.2)))
    source = single_view.SingleView(image_set, background=0.0, posed=True, mirror=False)
    records = [source[k] for k in range(len(source))]
    assert {record['name'] for record in records} == {'a.png', 'c.png'}
    for record in records:
        place = names.index(record['name'])
        np.testing.assert_array_equal(record['image'], pictures[place])
        np.testing.assert_array_equal(record['label'], np.float32(label(0.1 * place)))


def test_a_set_that_holds_pictures_outside_of_itself_is_refused(tmp_path):
    damaged_zips.write(tmp_path / 'x.zip', {'../a.png': images.png(grey()), 'b.png': images.png(grey())})
    with pytest.raises(UsageError, match=r'x\.zip holds \.\./a\.png, which leads out of it: pack the set again'):
        images.ImageSet(tmp_path / 'x.zip', labelled=False)


def test_a_set_inside_a_folder_of_a_zip_is_pointed_at(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.writestr('cars/a.png', images.png(grey()))
        archive.writestr('cars/dataset.json', '{}')
    with pytest.raises(UsageError, match=r'There is cars/dataset\.json: the set has to start at its folder'):
        images.ImageSet(tmp_path / 'a.zip')


def test_one_pose_for_all_is_a_billboard():
    table = np.float32([label(0.002 * k) for k in range(4)])
    with pytest.raises(UsageError, match='the set: all 4 labels are of one pose.*degenerates to a billboard'):
        images.check_varied(table, 'the set')
    images.check_varied(np.float32([label(0.0), label(0.0), label(0.02)]), 'the set')


def test_the_writer_refuses_what_it_could_not_read_back(tmp_path):
    images.write(tmp_path / 'a.zip', records(2))
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/x').write_text('')
    for name in ('a.zip', 'full'):
        with pytest.raises(UsageError, match='is there already'):
            images.write(tmp_path / name, records(2))
    mixed = [records(1)[0], {**records(1)[0], 'label': None}]
    sizes = [*records(1, size=4), *records(1, size=6)]
    for wrong, message in ((mixed, '1 of 2 images have no label'), (sizes, r'image 1 is uint8 \[6, 6, 3\]')):
        with pytest.raises(UsageError, match=message):
            images.write(tmp_path / 'b.zip', wrong)
    assert not list(tmp_path.glob('b.zip*'))
    images.write(tmp_path / 'empty', records(1))  # a new folder, then one that is there and empty
    (tmp_path / 'void').mkdir()
    assert images.write(tmp_path / 'void', records(1)) == 1
