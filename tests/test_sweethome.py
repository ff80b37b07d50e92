import io
import os
import pathlib
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from t3d.data.sets import objmesh, sweethome

CATALOGUE = """# comment
id=Test
name=Library
id#1=Test#chair one
name#1=Ch\\u00e2ise
tags#1=Blend Swap, Seat, \\
   Wood
category#1=Living room
model#1=/m/chair.obj
width#1=50
depth#1=40.5
height#1=90
creator#1=Someone
id#2=Test#flat
name#2 : Rug
model#2=/m/rug.obj
modelRotation#2=0 0 1 0 1 0 -1 0 0
name#3=No model
"""


def make_library(path: pathlib.Path, catalogue: str = CATALOGUE) -> pathlib.Path:
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(sweethome.CATALOGUE, catalogue.encode('latin-1'))
        archive.writestr('m/rug.obj', 'v 0 0 0\nv 1 0 0\nv 0 0 2\nvn 0 1 0\nf 1//1 2//1 3//1\n')
    return path


def make_deb(path: pathlib.Path, library: pathlib.Path) -> pathlib.Path:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode='w:xz') as archive:
        archive.add(library, f'./usr/share/sweethome3d/furniture/{library.name}')
    members = [('debian-binary', b'2.0\n'), ('control.tar.xz', b'odd'), ('data.tar.xz', body.getvalue())]
    packed = b'!<arch>\n'
    for name, data in members:
        packed += f'{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n'.encode() + data + b'\n' * (len(data) % 2)
    path.write_bytes(packed)
    return path


def test_catalogue_entries():
    chair, rug = sweethome.parse_catalogue(CATALOGUE.encode('latin-1'), 'Scopia')
    assert chair.name == 'Châise' and chair.object_id == 'Scopia.chair-one' and chair.tags == ('seat', 'wood')
    assert chair.extent == (50.0, 90.0, 40.5) and chair.creator == 'Someone' and chair.licence == 'CC-BY 3.0'
    assert chair.model == 'm/chair.obj' and chair.category == 'Living room'
    assert rug.tags == () and rug.name == 'Rug' and rug.rotation == (0, 0, 1, 0, 1, 0, -1, 0, 0)


def test_properties_escapes():
    parsed = sweethome.parse_properties(b'a\\ b = c\\td\n!no\nx:y\\\\\nempty=\n  k v w\nlast=1\\\n')
    assert parsed == {'a b': 'c\td', 'x': 'y\\', 'empty': '', 'k': 'v w', 'last': '1'}


def test_every_container_gives_the_same_library(tmp_path):
    library = make_library(tmp_path / 'Mine.sh3f')
    deb = make_deb(tmp_path / 'sweethome3d-furniture_1.deb', library)
    unpacked = tmp_path / 'unpacked' / 'Mine'
    zipfile.ZipFile(library).extractall(unpacked)
    only_deb = tmp_path / 'folder'
    only_deb.mkdir()
    make_deb(only_deb / 'sweethome3d-furniture_1.deb', library)
    for number, source in enumerate([library, deb, unpacked, tmp_path / 'unpacked', only_deb, tmp_path]):
        opened, *more = sweethome.open_libraries(source, tmp_path / f'scratch{number}')
        assert opened.name == 'Mine' and not more
        opened = pickle.loads(pickle.dumps(opened))
        assert [entry.name for entry in opened.entries()] == ['Châise', 'Rug']
        assert opened.read('m/rug.obj').startswith(b'v 0')
        with pytest.raises(KeyError):
            opened.read('m/none.obj')


def test_rotation_turns_positions_and_normals(tmp_path):
    library = sweethome.open_libraries(make_library(tmp_path / 'Mine.sh3f'), tmp_path)[0]
    rug = library.entries()[1]
    mesh = sweethome.rotate(objmesh.load(rug.model, library.read), rug)
    np.testing.assert_array_equal(mesh.positions[0], [[0, 0, 0], [0, 0, -1], [2, 0, 0]])  # (x, y, z) -> (z, y, -x)
    np.testing.assert_array_equal(mesh.normals[0, 0], [0, 1, 0])


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match='wanted a .deb'):
        sweethome.open_libraries(tmp_path / 'none.deb', tmp_path)
    with pytest.raises(ValueError, match='holds no furniture library'):
        sweethome.open_libraries(tmp_path, tmp_path / 'scratch')
    (tmp_path / 'a.zip').write_bytes(b'')
    with pytest.raises(ValueError, match='a.zip is not a furniture source'):
        sweethome.open_libraries(tmp_path / 'a.zip', tmp_path)
    library = make_library(tmp_path / 'Scopia.sh3f')
    with pytest.raises(ValueError, match='Scopia 1.8 has b4505451b1e8ab33'):
        sweethome.open_libraries(library, tmp_path)
    assert sweethome.open_libraries(library, tmp_path, verify=False)[0].name == 'Scopia'
    (tmp_path / 'Mine.sh3f').write_bytes(library.read_bytes()[:200])
    with pytest.raises(ValueError, match='truncated'):
        sweethome.open_libraries(tmp_path / 'Mine.sh3f', tmp_path)
    deb = make_deb(tmp_path / 'x.deb', library)
    whole = deb.read_bytes()
    for cut, message in (
        (len(whole) - 200, 'is truncated: its data.tar should hold'),
        (100, 'no data.tar member'),
        (4, 'no ar archive'),
    ):
        deb.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=message):
            sweethome.open_libraries(deb, tmp_path / 'scratch')
    deb.write_bytes(whole[:8] + b'x' * 60)
    with pytest.raises(ValueError, match='member header'):
        sweethome.open_libraries(deb, tmp_path / 'scratch')


def test_look_alikes_pull_their_nouns_into_one_split():
    nouns = {f'id{number}': f'noun {number}' for number in range(300)}
    alone = sweethome.noun_splits(nouns, [])
    assert 10 < sum(split == 'test' for split in alone.values()) < 50
    test = next(key for key, split in alone.items() if split == 'test')
    train = [key for key, split in alone.items() if split == 'train' and int(key[2:]) > int(test[2:])][:2]
    groups = sweethome.look_alike_groups({train[0]: (1, 2), test: (1, 2), 'other': (3, 4), train[1]: (1, 2)})
    assert groups == [[train[0], test, train[1]]]
    together = sweethome.noun_splits(nouns, groups)
    assert together[test] == together[train[0]] == together[train[1]] == 'test'  # the earliest noun decides
    changed = {key for key in nouns if alone[key] != together[key]}
    assert changed == set(train)


@pytest.mark.data
def test_the_real_package(tmp_path):
    libraries = sweethome.open_libraries(os.environ['T3D_FURNITURE'], tmp_path)
    assert {library.name for library in libraries} == set(sweethome.SHA256)  # hashes were checked on the way
    entries = [entry for library in libraries for entry in library.entries()]
    assert len(entries) == len({entry.object_id for entry in entries}) == 820
    assert len({entry.name for entry in entries}) == 612 and len({entry.category for entry in entries}) == 12
    assert sum(entry.rotation != (1, 0, 0, 0, 1, 0, 0, 0, 1) for entry in entries) == 33
    counts = {library.name: len(library.entries()) for library in libraries}
    assert counts == {'Scopia': 395, 'BlendSwap-CC-0': 175, 'BlendSwap-CC-BY': 135, 'KatorLegaz': 90, 'Reallusion': 25}


PROPERTIES = [
    (b'\xef\xbb\xbfname#1=a\n', {'name#1': 'a'}),
    ('name#1=内部\n'.encode(), {'name#1': '内部'}),
    (b'name#1=a\x85b\n', {'name#1': 'a\x85b'}),
    (b'name#1=a\x1cb\x0bc\n', {'name#1': 'a\x1cb\x0bc'}),
    ('a=1\u2028b=2\n'.encode(), {'a': '1\u2028b=2'}),
    (b'a=1\rb=2\r\nc=3', {'a': '1', 'b': '2', 'c': '3'}),
    ('\ufeffa=1\n'.encode('utf-16-le'), {'a': '1'}),
    (b'a\t=\t1\n', {'a': '1'}),
    (b'a 1 = 2\n', {'a': '1 = 2'}),
    (b'a:1=2\n', {'a': '1=2'}),
    (b'a=1 # no comment\n', {'a': '1 # no comment'}),
    (b'a=1\\\n\nb=2\n', {'a': '1', 'b': '2'}),
    (b'a=1\\\n   # 2\n', {'a': '1# 2'}),
    (b'# c\\\na=1\n', {'a': '1'}),
    (b'a=\\u0041\\u00e9\\ud83d\\ude00\n', {'a': 'A\xe9\U0001f600'}),
    (b'a=\\ud83d\n', {'a': '\ufffd'}),
    (b'a=\\u12\\q\n', {'a': 'u12q'}),
    (b'a=C:\\\\m\\\\b\n', {'a': 'C:\\m\\b'}),
    (b'a\n=b\n\\', {'a': '', '': 'b'}),
]


@pytest.mark.parametrize('data, expected', PROPERTIES)
def test_properties_in_other_hands(data, expected):
    assert sweethome.parse_properties(data) == expected


def test_object_ids_stay_apart_and_fit_in_file_names():
    rows = ('стул', 'стол', 'a b', 'a-b', 'A-B', 'x' * 300, 'x' * 299 + 'y')
    text = '\n'.join(f'id#{k}={row}\nname#{k}=n\nmodel#{k}=m' for k, row in enumerate(rows))
    entries, wrong = sweethome.read_catalogue(text.encode(), 'L')
    ids = [entry.object_id for entry in entries]
    assert ids[:5] == ['L.стул', 'L.стол', 'L.a-b', 'L.a-b-3', 'L.A-B-4'] and not wrong
    assert len({name.casefold() for name in ids}) == len(rows) and max(len(name) for name in ids) < 120


def test_odd_numbers_of_entries_are_no_entries():
    data = 'name#²=a\nmodel#²=m\nname#99999999999=a\nname#-1=a\nname#=b\nname#1#2=c\n'
    assert sweethome.read_catalogue(data.encode(), 'L') == ([], {})


def test_damaged_packages_are_one_sentence(tmp_path):
    deb = make_deb(tmp_path / 'x.deb', make_library(tmp_path / 'Mine.sh3f'))
    whole = deb.read_bytes()
    start = whole.index(b'\xfd7zXZ')
    for place in (start, start + 40):
        deb.write_bytes(whole[:place] + bytes(16) + whole[place + 16 :])
        with pytest.raises(
            ValueError, match=r'x\.deb is damaged, or its data\.tar\.xz is compressed in a way .*; download the'
        ):
            sweethome.open_libraries(deb, tmp_path / 'scratch')
    assert not list(tmp_path.glob('scratch/*'))
