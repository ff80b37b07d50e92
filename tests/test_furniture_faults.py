"""Libraries with bad records: each is named and left out, the rest is built, and nothing is left of a build of nothing."""

import json
import re

import damaged_zips
import numpy as np
import pytest

from t3d.core.errors import UsageError
from t3d.data.sets import furniture, furniture_source, sweethome

SIZE = 16
BOX = """mtllib m.mtl
v 0 0 0
v 1 0 0
v 1 1 0
v 0 1 0
v 0 0 1
v 1 0 1
v 1 1 1
v 0 1 1
vt 0 0
vt 1 1
usemtl main
f 1/1 4/1 3/2 2/2
f 1 2 6 5
f 4 8 7 3
f 1 5 8 4
f 2 3 7 6
f 5 6 7 8
"""
MTL = 'newmtl main\nKd 0.15 0.3 0.8\n'
LEFT_OUT = {  # model text -> what is said of its object
    'empty': ('', r'no triangle \(0 vertices, 0 faces'),
    'no face': ('v 0 0 0\nv 1 0 0\n', r'no triangle \(2 vertices, 0 faces'),
    'no number': (BOX.replace('v 1 0 0', 'v 1 zero 0'), r"line 3 is 'v 1 zero 0': wanted 3 numbers"),
    'no corner': (BOX.replace('f 1 2 6 5', 'f 1 2 six 5'), r"line 14 is 'f 1 2 six 5': wanted corners"),
    'not finite': ('v nan 0 0\nv 1 0 0\nv 1 1 0\nf 1 2 3\n', r'no triangle \(3 vertices, 1 faces'),
    'one point': ('v 1 1 1\nf 1 1 1\n', r'no view shows any of its triangles'),
    'invisible': ('mtllib n.mtl\n' + BOX.partition('\n')[2], r'no view shows any of its triangles'),
    'picture': ('\x89PNG\r\n\x1a\n\x00\x01', r'no triangle'),
}
DRAWN = {  # model text -> what of it is not found
    'lost material': (BOX.replace('usemtl main', 'usemtl gone'), ['material gone']),
    'lost library': (BOX.replace('m.mtl', 'gone.mtl'), ['gone.mtl', 'material main']),
    'lost texture': (BOX.replace('m.mtl', 't.mtl'), ['gone wood.png']),
    'bad texture': (BOX.replace('m.mtl', 'b.mtl'), None),
    'whole': (BOX, []),
}


ROWS = {  # catalogue rows -> what is said of the entry; None: it is built
    'gone': ('model#{0}=/gone/a.obj', r'gone/a\.obj is not in the library'),
    'other': ('model#{0}=/other/a.dae', r'other/a\.dae is no OBJ file'),
    'locked': ('model#{0}=locked\\\\A.OBJ', r'locked/a\.obj is encrypted'),
    'spoilt': ('model#{0}=/spoilt/a.obj', r'spoilt/a\.obj is damaged \(Bad CRC-32'),
    'turned': (
        'model#{0}=/whole/a.obj\nmodelRotation#{0}=1 0 0 a b c 0 0 1',
        r"modelRotation is '1 0 0 a b c 0 0 1': wanted the 9",
    ),
    'flat': ('model#{0}=/whole/a.obj\nmodelRotation#{0}=0 0 0 0 0 0 0 0 0', r'modelRotation is .* wanted the 9 numbers'),
    'modelless': ('width#{0}=1', r'it has no model'),
    'escaped': ('model#{0}=/whole/%61.obj\nwidth#{0}=wide', None),
    'WHOLE': ('model#{0}=/Whole/A.obj', None),  # an id that another one has in lower case
}


def write(path, models: dict, rows: dict, members: dict):
    """A library of {name: OBJ text} and of further catalogue rows."""
    beside = {
        'm.mtl': MTL,
        't.mtl': MTL + 'map_Kd gone wood.png\n',
        'b.mtl': MTL + 'map_Kd b.png\n',
        'n.mtl': MTL + 'd 0\n',
        'b.png': b'no picture',
    }
    catalogue = [f'id#{k}={name}\nname#{k}={name}\nmodel#{k}=/{name}/a.obj' for k, name in enumerate(models)]
    catalogue += [f'id#{k}={name}\nname#{k}={name}\n{row.format(k)}' for k, (name, (row, _)) in enumerate(rows.items(), 50)]
    files = {f'{name}/{file}': content for name in models for file, content in beside.items()}
    models = {f'{name}/a.obj': text for name, text in models.items()}
    return damaged_zips.write(path, files | models | members | {sweethome.CATALOGUE: '\n'.join(catalogue)})


def test_bad_objects_are_named_and_the_others_are_built(tmp_path, capsys):
    models = {name: text for name, (text, _) in (LEFT_OUT | DRAWN).items()}
    path = write(tmp_path / 'Mine.sh3f', models, ROWS, {'other/a.dae': 'x', 'locked/a.obj': BOX, 'spoilt/a.obj': BOX})
    damaged_zips.change(path, 'locked/a.obj', flags=1)
    damaged_zips.change(path, 'spoilt/a.obj', crc=7)
    folder = furniture.build(str(path), str(tmp_path / 'data'), SIZE, processes=1)
    problems, out = json.loads((folder / 'problems.json').read_text()), capsys.readouterr().out
    expected = LEFT_OUT | {name: row for name, row in ROWS.items() if row[1]}
    assert f'{len(expected)} objects are left out:' in out
    for name, (_, message) in expected.items():
        number = 50 + list(ROWS).index(name) if name in ROWS else None
        [reason] = [
            text
            for key, text in problems['left out'].items()
            if key.startswith((f'Mine.{name.replace(" ", "-")} (', f'Mine, entry {number}'))
        ]
        assert re.search(message, reason), (name, reason)
        assert reason in out
    assert len(problems['left out']) == len(expected)
    missing = {key.partition(' ')[0].removeprefix('Mine.'): value for key, value in problems['not found'].items()}
    [unread] = missing.pop('bad-texture')
    assert unread == 'bad texture/b.png (no picture of a format that is read)'
    assert missing == {name.replace(' ', '-'): value for name, (_, value) in DRAWN.items() if value}
    assert '5 files or materials that 4 objects name are not found' in out
    assert {name.partition('.')[2]: dropped for name, dropped in problems['faces dropped'].items()} == {}
    sources = [
        furniture_source.FurnitureSource(folder, split) for split in furniture.SPLITS if any(folder.glob(f'*-{split}.*'))
    ]
    built = {record['name']: record for source in sources for record in (source[k] for k in range(len(source)))}
    assert len(built) == len(DRAWN) + 2 and 'Mine.WHOLE-58' in built
    for name in ('Mine.escaped', 'Mine.bad-texture'):
        np.testing.assert_array_equal(built[name]['image'][:12], built['Mine.whole']['image'][:12])


def test_a_library_without_a_good_object_is_refused_and_leaves_nothing(tmp_path):
    path = write(tmp_path / 'Mine.sh3f', {'a': 'v 0 0 0\n', 'b': 'f 1 2 x\n'}, {}, {})
    with pytest.raises(
        UsageError, match=r'none of its 2 objects can be rendered, first Mine\.a \(a/a\.obj\): it has no triangle'
    ):
        furniture.build(str(path), str(tmp_path / 'data'), SIZE, processes=1)
    assert [file.name for file in tmp_path.iterdir()] == ['Mine.sh3f']


def test_an_object_mended_between_two_starts_is_tried_again(tmp_path, monkeypatch):
    path = write(tmp_path / 'Mine.sh3f', {'a': BOX, 'b': 'f 1 2 x\n'}, {}, {})
    monkeypatch.setattr(furniture, '_pack', lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        furniture.build(str(path), str(tmp_path / 'data'), SIZE, processes=1)
    monkeypatch.undo()
    write(path, {'a': BOX, 'b': BOX}, {}, {})
    folder = furniture.build(str(path), str(tmp_path / 'data'), SIZE, processes=1)
    assert json.loads((folder / 'problems.json').read_text()) == {'left out': {}, 'not found': {}, 'faces dropped': {}}


@pytest.mark.parametrize('damage', damaged_zips.DAMAGES)
def test_a_damaged_catalogue_is_one_sentence(tmp_path, damage, monkeypatch):
    make, message = damaged_zips.DAMAGES[damage]
    path = damaged_zips.write(tmp_path / 'Mine.sh3f', {'b.bin': bytes(range(256)) * 240, 'x': b'x'})
    make(path)
    monkeypatch.setattr(sweethome, 'CATALOGUE', 'b.bin')
    with pytest.raises(UsageError, match=message.replace('60000', '61440')):
        furniture.build(str(path), str(tmp_path / 'data'), SIZE, processes=1)
    assert not (tmp_path / 'data').exists()


def test_a_library_without_its_catalogue_is_refused(tmp_path):
    path = damaged_zips.write(tmp_path / 'Mine.sh3f', {'inner/PluginFurnitureCatalog.properties': b''})
    with pytest.raises(UsageError, match=r'has no Plugin.*, so it is no furniture library\. There is inner/Plugin'):
        furniture.build(str(path), str(tmp_path / 'data'), SIZE, processes=1)
    assert not (tmp_path / 'data').exists()
