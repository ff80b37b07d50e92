"""What dataset.json says, as other programs and people write it; pictures as their EXIF turns them."""

import json
import zipfile

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from small_images import FRONTAL, grey, label

from t3d import cli
from t3d.core.errors import UsageError
from t3d.data.sets import images

FILES = ['00000/a.png', '00000/Würfel.png']


def made(folder, index, encoding='utf-8') -> images.ImageSet:
    (folder / '00000').mkdir(exist_ok=True)
    for name in FILES:
        PIL.Image.fromarray(grey()).save(folder / name)
    index = {'labels': [[name, label(0.3 * k)] for k, name in enumerate(FILES)], **index}
    (folder / 'dataset.json').write_bytes(json.dumps(index, ensure_ascii=False).encode(encoding))
    return images.ImageSet(folder)


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le'])
@pytest.mark.parametrize(
    'spelled',
    [
        lambda name: name,
        lambda name: name.replace('/', '\\'),
        lambda name: f'./{name}',
        lambda name: f'.\\{name}'.replace('/', '\\'),
        lambda name: name.replace('ü', 'u\u0308'),
    ],
)
def test_every_table_finds_its_files_however_they_are_spelled(tmp_path, spelled, encoding):
    index = {
        'labels': [[spelled(name), label(0.3 * k)] for k, name in enumerate(FILES)],
        'captions': {spelled(FILES[1]): ['ein roter Würfel', '红色']},
        'attributes': {spelled(FILES[1]): {'colour': 'rot', 'n': 2, 'x': 0.5, 'whole': True, 'none': None}},
    }
    image_set = made(tmp_path, index, encoding)
    place = image_set.names.index(FILES[1])
    np.testing.assert_array_equal(image_set.labels[place], np.float32(label(0.3)))
    assert image_set.text(place) == {
        'captions': ('ein roter Würfel', '红色'),
        'attributes': {'colour': 'rot', 'n': 2, 'x': 0.5, 'whole': True, 'none': None},
        'name': FILES[1],
    }
    assert image_set.text(1 - place)['captions'] == () and image_set.text(1 - place)['attributes'] == {}


def with_value(value) -> list:
    return [['00000/a.png', [*FRONTAL[:3], value, *FRONTAL[4:]]], [FILES[1], label(0.3)]]


@pytest.mark.parametrize(
    'index, message',
    [
        (
            {'captions': {'00000/A.PNG': ['x']}},
            r'captions of 1 files that are not there, first 00000/A.PNG: did you mean 00000/a.png',
        ),
        (
            {'captions': {'b.png': ['x'], 'c.png': []}},
            'captions of 2 files that are not there, first b.png: remove the entries',
        ),
        ({'captions': {'00000/a.png': ['x'], '00000\\a.png': ['y']}}, 'entry 1: 00000/a.png has captions already'),
        ({'captions': {'00000/a.png': 'a cube'}}, r'captions are not \{file: \[text, ...\]\}: 00000/a.png has \'a cube\''),
        ({'captions': {'00000/a.png': ['x', None]}}, r"captions are not .*: 00000/a.png has \"\['x', None\]\""),
        ({'captions': {'00000/a.png': None}}, "captions are not .*: 00000/a.png has 'None'"),
        ({'captions': []}, 'captions are not .*, but a list'),
        ({'captions': 'x'}, 'captions are not .*, but a str'),
        ({'captions': 0}, 'captions are not .*, but a int'),
        ({'attributes': ['x']}, r'attributes are not \{file: \{name: text or number\}\}, but a list'),
        ({'attributes': {'00000/a.png': ['red']}}, 'attributes are not .*: 00000/a.png has'),
        ({'attributes': {'00000/a.png': 'red'}}, 'attributes are not .*: 00000/a.png has'),
        ({'attributes': {'00000/a.png': {'a': {}}}}, 'attributes are not .*: 00000/a.png has'),
        ({'attributes': {'00000/a.png': {'a': float('nan')}}}, 'attributes are not .*: 00000/a.png has'),
        ({'attributes': {'nothing.png': {}}}, 'attributes of 1 files that are not there, first nothing.png'),
        ({'labels': {'00000/a.png': FRONTAL}}, 'labels is a dict'),
        ({'labels': with_value('0')}, 'label of 00000/a.png: not 25 finite numbers'),
        ({'labels': with_value(True)}, 'label of 00000/a.png: not 25 finite numbers'),
        ({'labels': with_value(float('inf'))}, 'label of 00000/a.png: not 25 finite numbers'),
        ({'labels': with_value(1e300)}, 'label of 00000/a.png: not 25 finite numbers'),
        ({'labels': with_value(10**400)}, 'label of 00000/a.png: not 25 finite numbers'),
        ({'labels': [['00000/a.png', FRONTAL[:24]], [FILES[1], FRONTAL]]}, 'label of 00000/a.png: 24 numbers, wanted 25'),
        ({'labels': [['00000/a.png', FRONTAL, 1]]}, r'entry 0: wanted \[file, 25 numbers\]'),
        ({'labels': [['./00000/a.png', FRONTAL], ['00000\\a.png', FRONTAL]]}, 'entry 1: 00000/a.png has a label already'),
    ],
)
def test_a_table_of_another_form_is_refused(tmp_path, index, message):
    with pytest.raises(UsageError, match=f'dataset.json.*{message}'):
        made(tmp_path, index)


@pytest.mark.parametrize(
    'data, message',
    [
        ('{"captions": {"ü": []}}'.encode('latin-1'), 'dataset.json is no JSON, line 1: the byte fc'),
        (b'{"labels": [], "labels": []}', "has the key 'labels' twice"),
        (b'[' * 100_000, 'nested too deeply'),
        (rb'{"captions": {"a": ["\ud800"]}}', 'half of a surrogate pair'),
        (b'null', 'holds a NoneType'),
    ],
)
def test_an_index_that_is_no_index_is_refused(tmp_path, data, message):
    made(tmp_path, {})
    (tmp_path / 'dataset.json').write_bytes(data)
    with pytest.raises(UsageError, match=message):
        images.ImageSet(tmp_path)


# ---------------------------------------------------------------------------------------------------------------- EXIF

SIDE = 16
TURNS = {  # of the stored picture to what is seen (EXIF 2.3, table of tag 274): rows and columns by hand
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


def turned_picture(path, orientation, height=SIDE, width=SIDE, exif=None) -> np.ndarray:
    """Writes a picture of four different corners and returns what it stores."""
    stored = np.zeros((height, width, 3), np.uint8)
    stored[: height // 2, : width // 2], stored[: height // 2, width // 2 :] = (250, 10, 10), (10, 250, 10)
    stored[height // 2 :, : width // 2] = (10, 10, 250)
    tags = PIL.Image.Exif()
    tags[0x0112] = orientation
    options = {'quality': 95, 'subsampling': 0} if path.suffix == '.jpg' else {}
    PIL.Image.fromarray(stored).save(path, exif=tags.tobytes() if exif is None else exif, **options)
    return stored


@pytest.mark.parametrize('suffix', ['jpg', 'png'])
@pytest.mark.parametrize('orientation', TURNS)
def test_pictures_are_turned_as_their_exif_says(tmp_path, orientation, suffix):
    """Read, and written anew as a set, whose PNG files are upright without EXIF."""
    (tmp_path / 'set').mkdir()
    stored = turned_picture(tmp_path / f'set/a.{suffix}', orientation)
    turned_picture(tmp_path / f'set/b.{suffix}', 1)
    index = {'labels': [[f'a.{suffix}', label(0.0)], [f'b.{suffix}', label(0.3)]]}
    (tmp_path / 'set/dataset.json').write_text(json.dumps(index))
    seen = TURNS[orientation](stored).astype(int)
    assert np.abs(images.ImageSet(tmp_path / 'set').image(0) - seen).max() < 12
    command = ['data', 'single-view', 'eg3d', '--source', str(tmp_path / 'set'), '--out', str(tmp_path / 'out.zip')]
    assert cli.main(command) == 0
    assert np.abs(images.ImageSet(tmp_path / 'out.zip').image(0) - seen).max() < 12
    with zipfile.ZipFile(tmp_path / 'out.zip') as archive, archive.open('00000/img00000000.png') as file:
        picture = PIL.Image.open(file)
        assert not picture.getexif() and np.abs(np.asarray(picture).astype(int) - seen).max() < 12


@pytest.mark.parametrize(
    'orientation, exif', [(0, None), (9, None), (1, b'Exif\0\0no exif'), (1, b'Exif\0\0MM\0*\0\0\xff\xff')]
)
def test_exif_that_says_nothing_legible_turns_nothing(tmp_path, orientation, exif):
    stored = turned_picture(tmp_path / 'a.jpg', orientation, exif=exif)
    assert np.abs(images.ImageSet(tmp_path, labelled=False).image(0) - stored.astype(int)).max() < 12


def test_sizes_are_those_after_turning(tmp_path):
    turned_picture(tmp_path / 'a.jpg', 6, height=8, width=SIDE)
    with pytest.raises(UsageError, match='a.jpg is 8 x 16: wanted square images'):
        images.ImageSet(tmp_path, labelled=False)
