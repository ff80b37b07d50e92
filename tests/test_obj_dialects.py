"""One model in every dialect of OBJ and MTL that programs write: the same triangles, colours and textures from each."""

import codecs

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.core.errors import UsageError
from t3d.data.sets import archives, objmesh

QUAD = 'v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n'
RED = 'newmtl red\nKd 1 0 0\nmap_Kd t.png\n'


def load(files: dict, path='m/a.obj', locate=None):
    files = {name: content if isinstance(content, bytes) else content.encode() for name, content in files.items()}
    return objmesh.load(path, files.__getitem__, locate)


def one(obj='mtllib a.mtl\n' + QUAD + 'usemtl red\nf 1 2 3 4\n', mtl=RED, second=''):
    """The one part of a mesh of two triangles."""
    mesh = load({'m/a.obj': obj, 'm/a.mtl': mtl, 'm/t.png': b'x', 'm/b.mtl': second})
    assert len(mesh.positions) == 2 and len(mesh.parts) == 1, mesh
    return mesh.parts[0]


# ------------------------------------------------------------------------------------------------- one dialect for all


@st.composite
def dialects(draw):
    """(files, name of the wall material) of two triangles, red with a texture and blue, written in a drawn dialect."""
    wall = draw(st.sampled_from(['wall', 'Åred', '内部', 'стена', 'Material #25', 'a  b', 'x…', 'w\x85', 'w\u2028x', 'c#1']))
    picture = draw(st.sampled_from(['t.png', 'my wood.png', 'Täfelung.png', 'wood #2.png', '材.png', 'a\x1cb.png']))
    blank = st.sampled_from([' ', '\t', '  ', ' \t', '\x0b'])
    lead = st.sampled_from(['', ' ', '\t'])
    comment = st.sampled_from(['', '', ' # a note', '\t# C:\\models\\', ' #'])
    join = draw(st.sampled_from([' ', ' \\\n ', '\t\\\n', ' \\ \n']))

    def say(*words, numeric=True):
        between = join if numeric else draw(blank)
        return draw(lead) + between.join(words) + draw(comment)

    option = draw(st.sampled_from(['', '-s 1 1 1 ', '-s  1\t1 1  ', '-clamp on ', '-blendu off -o 0.5 0 0 ', '-bm 1 -mm 0 1 ']))
    quote = draw(st.sampled_from(['', '"']))
    prefix = draw(st.sampled_from(['', './', '.\\', 'C:\\work\\', '/home/me/', '..\\m\\', 'sub/../']))
    library = draw(st.sampled_from(['', './', '.\\', 'D:\\x\\', '"']))
    named = f'"{prefix}{picture}"' if quote else prefix + picture
    lines = [
        say(draw(st.sampled_from(['mtllib', 'MTLLIB'])), library + 'a.mtl' + ('"' if library == '"' else ''), numeric=False),
        draw(st.sampled_from(['# made by a program', '#\\', '# C:\\models\\', '', 'o C:\\models\\', 'g a b \\'])),
        *(say('v', *row.split()) for row in ('0 0 0', '1,0 0 0', '1.0e0 1 0 0.5 0.5 0.5', '0 +1 0')),
        say('vn', '0', '0', '1'),
        say('usemtl', wall, numeric=False),
        say('f', '1//1', '2//1', '3//1'),
        say('usemtl', 'blue', numeric=False),
        say('f', *draw(st.sampled_from([('-4', '-2', '-1'), ('1//-1', '3//-1', '4//-1'), ('1/', '3//', '4')]))),
    ]
    materials = [
        say('newmtl', wall, numeric=False),
        say(draw(st.sampled_from(['Kd', 'kd', 'KD'])), *draw(st.sampled_from(['1 0 0', '1,0 0,0 0', '1.0 0 0'])).split()),
        draw(lead) + draw(st.sampled_from(['map_Kd ', 'map_kd\t', 'MAP_KD '])) + option + named + draw(comment),
        say('newmtl', 'blue', numeric=False),
        'Kd 0 0 1',
    ]
    end = draw(st.sampled_from(['\n', '\r\n', '\r']))
    encode = draw(st.sampled_from(['utf-8', 'bom', 'utf-16', 'latin-1']))

    def written(rows):
        text = '\n'.join([*rows, draw(st.sampled_from(['', '\x1a', '\n']))]).replace('\n', end)
        if encode == 'utf-16':
            return codecs.BOM_UTF16_LE + text.encode('utf-16-le')
        if encode == 'latin-1' and not any('\x80' <= c <= '\x9f' or c > '\xff' for c in text):
            return text.encode('latin-1')
        return codecs.BOM_UTF8 * (encode == 'bom') + text.encode()

    return {'m/a.obj': written(lines), 'm/a.mtl': written(materials), f'm/{picture}': b'x'}, picture


@settings(max_examples=400, deadline=None)
@given(dialects())
def test_every_dialect_gives_the_same_model(drawn):
    files, picture = drawn
    mesh = load(files)
    np.testing.assert_array_equal(mesh.positions, [[[0, 0, 0], [1, 0, 0], [1, 1, 0]], [[0, 0, 0], [1, 1, 0], [0, 1, 0]]])
    assert [mesh.parts[k].diffuse for k in mesh.part] == [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0)]
    assert [part.texture for part in mesh.parts] == [f'm/{picture}', None]
    assert mesh.missing == () and mesh.dropped == 0 and mesh.num_vertices == 4
    np.testing.assert_array_equal(mesh.normals[0], [[0, 0, 1]] * 3)


# ----------------------------------------------------------------------------------------------- statements one by one

MAPS = (
    't.png', 'T.PNG', 'T.png', '"t.png"', "'t.png'", '-s  1 1 1  t.png', '-s 1 t.png', '-o 0 0 -s 2 2 t.png', '-clamp on t.png',
    '-bm 0.2 -blendv off t.png', '-S 1 1 1 t.png', '-colorspace sRGB t.png', '.\\t.png', './/t.png', 'x/../t.png', '../m/t.png',
    'C:\\Users\\me\\t.png', 'C:t.png', '\\\\server\\share\\t.png', 'file:///C:/x/t.png', '/abs/t.png', 't.png # wood',
    't.png  -s 1 1 1', '"C:\\my things\\t.png" # x', '%74.png', '-type sphere -cc on t.png', '-s 1,0 1,0 1,0 t.png',
)  # fmt: skip


@pytest.mark.parametrize('statement', MAPS)
def test_maps_are_found(statement):
    assert one(mtl=f'newmtl red\nKd 1 0 0\nmap_Kd {statement}\n').texture == 'm/t.png'


LIBRARIES = (
    'a.mtl', 'A.MTL', '"a.mtl"', 'b.mtl a.mtl', 'a.mtl b.mtl', '"b.mtl" "a.mtl"', 'b.mtl\ta.mtl', './a.mtl',
    'C:\\x\\a.mtl', 'a.mtl # x',
    'gone.mtl a.mtl', 'my colours.mtl', 'b.mtl my colours.mtl', '"my colours.mtl" b.mtl', 'colours', 'b.mtl colours',
    'sub\\c.mtl',
    '-x a.mtl', 'gone.mtl\nmtllib a.mtl', 'a.mtl #', 'x\\..\\a.mtl', 'b.mtl \\\n a.mtl',
)  # fmt: skip


@pytest.mark.parametrize('statement', LIBRARIES)
def test_libraries_are_found(statement):
    obj = f'mtllib {statement}\n{QUAD}usemtl red\nf 1 2 3 4\n'
    mtl = '' if any(word in statement for word in ('colours', 'sub')) else RED
    others = {'m/my colours.mtl': RED, 'm/colours': RED, 'm/sub/c.mtl': RED}
    files = {'m/a.obj': obj, 'm/a.mtl': mtl, 'm/b.mtl': 'newmtl blue\nKd 0 0 1\n', 'm/t.png': 'x', **others}
    mesh = load(files)
    assert [part.diffuse for part in mesh.parts] == [(1.0, 0.0, 0.0)]
    assert mesh.missing == (('gone.mtl',) if 'gone' in statement else ())


def test_textures_lie_beside_their_library():
    files = {'m/a.obj': f'mtllib tex/a.mtl\n{QUAD}usemtl red\nf 1 2 3 4\n', 'm/tex/a.mtl': RED, 'm/tex/t.png': 'x'}
    assert load(files).parts[0].texture == 'm/tex/t.png'


def test_the_library_named_first_defines_a_material_and_later_statements_of_one_file_add_to_it():
    two = 'mtllib a.mtl b.mtl\n' + QUAD + 'usemtl red\nf 1 2 3 4\n'
    assert one(two, second='newmtl red\nKd 0 1 0\n').diffuse == (1.0, 0.0, 0.0)
    part = one(mtl='newmtl red\nKd 1 0 0\nnewmtl other\nnewmtl red\nd 0.5\n')
    assert (part.diffuse, part.opacity) == ((1.0, 0.0, 0.0), 0.5)


@pytest.mark.parametrize(
    'defined, used',
    [
        ('red', 'red # wall'), ('red # wall', 'red'), ('"red"', 'red'), ('red', '"red"'), ('Red', 'red'), ('red', 'red\t'),
        ('a  b', 'a b'), ('Würfel', 'Wu\u0308rfel'), ('red #x', 'red #x'), ('red', 'red #1'),
        ('red\x00', 'red'), ('red', '\x0bred'),
    ],
)  # fmt: skip
def test_materials_are_found(defined, used):
    assert one('mtllib a.mtl\n' + QUAD + f'usemtl {used}\nf 1 2 3 4\n', f'newmtl {defined}\nKd 1 0 0\n').diffuse == (
        1.0,
        0.0,
        0.0,
    )


def test_names_with_a_number_sign_stay_apart():
    names = ('Material #25', 'Material #26', 'Color #ff0000', 'Color #00ff00')
    mtl = ''.join(f'newmtl {name}\nKd 0.{k} 0 0\n' for k, name in enumerate(names, 1))
    obj = 'mtllib a.mtl\n' + QUAD + ''.join(f'usemtl {name}\nf 1 2 3\n' for name in names)
    mesh = load({'m/a.obj': obj, 'm/a.mtl': mtl})
    assert [mesh.parts[k].diffuse[0] for k in mesh.part] == [0.1, 0.2, 0.3, 0.4] and mesh.missing == ()


@pytest.mark.parametrize(
    'statement, diffuse',
    [
        ('Kd 1 0 0 # red', (1, 0, 0)), ('Kd 1 0 0# red', (1, 0, 0)), ('Kd\t1\t0\t0', (1, 0, 0)), ('Kd 0,5 0 0', (0.5, 0, 0)),
        ('Kd 0.25', (0.25,) * 3), ('Kd 2 -1 0.5', (1, 0, 0.5)), ('Kd nan 0 0', objmesh.UNDEFINED_DIFFUSE),
        ('Kd 1.#QNAN 0 0', objmesh.UNDEFINED_DIFFUSE), ('Kd inf 0 0', objmesh.UNDEFINED_DIFFUSE),
        ('Kd', objmesh.UNDEFINED_DIFFUSE),
        ('Kd spectral x.rfl 1', objmesh.UNDEFINED_DIFFUSE), ('Kd xyz 0.4124 0.2126 0.0193', (1, 0, 0)),
        ('Kd xyz 0.9505 1 1.0891', (1, 1, 1)), ('Kd red', objmesh.UNDEFINED_DIFFUSE),
    ],
)  # fmt: skip
def test_colours(statement, diffuse):
    np.testing.assert_allclose(one(mtl=f'newmtl red\n{statement}\n').diffuse, diffuse, atol=1e-3)


@pytest.mark.parametrize(
    'statement, opacity',
    [('d 0.5', 0.5), ('d -halo 0.5', 0.5), ('Tr 0.25 # glass', 0.75), ('d 0,5', 0.5), ('d nan', 1.0), ('Tr', 1.0)],
)
def test_opacities(statement, opacity):
    assert one(mtl=f'newmtl red\nKd 1 0 0\n{statement}\n').opacity == opacity


def test_what_is_not_found_is_named_once():
    mtl = 'newmtl red\nmap_Kd -s 1 1 1 gone wood.png # x\nnewmtl dull\nKd spectral paint.rfl 1\n'
    obj = (
        'mtllib a.mtl gone.mtl\n'
        + QUAD
        + 'usemtl red\nf 1 2 3\nusemtl dull\nf 1 2 3\nusemtl new # x\nf 1 2 3\nusemtl red\nf 1 3 4\n'
    )
    mesh = load({'m/a.obj': obj, 'm/a.mtl': mtl})
    assert mesh.missing == ('gone.mtl', 'gone wood.png', 'spectrum paint.rfl of material dull', 'material new')
    bare = load({'m/a.obj': QUAD + 'f 1 2 3\n'})
    assert bare.missing == () and bare.parts == (objmesh.Part(''),)  # it names no material


# --------------------------------------------------------------------------------------------------------------- faces


@pytest.mark.parametrize(
    'face, triangles, dropped',
    [
        ('f 1 2 3 4', 2, 0), ('f 1 2 3 # top', 1, 0), ('f 1 2 3# top', 1, 0), ('f -4 -3 -2', 1, 0), ('f 1//1 2//1 3//1', 1, 0),
        ('f 1/9/9 2/9/9 3/9/9', 1, 0), ('f 1 2', 0, 1), ('f', 0, 1), ('f 0 1 2', 0, 1), ('f 1 2 5', 0, 1), ('f 1 2 3 9', 0, 1),
        ('f -9 -8 1', 0, 1), ('f 1 2 99999999999999999999999', 0, 1), ('f 1 2 -99999999999999999999999', 0, 1),
        ('f 1 1 1', 1, 0),
        ('f 1 2 3 4 1 2 3', 5, 0), ('fo 1 2 3', 1, 0), ('F 1 2 3', 1, 0), ('l 1 2', 0, 0), ('p 1', 0, 0), ('f 1 2 3\x1a', 1, 0),
        ('f 1\xa02\u20283', 1, 0), ('f 1 2 3 \\', 1, 0), ('f 1 \\\n# between\n 2 3', 1, 0),
    ],
)  # fmt: skip
def test_faces(face, triangles, dropped):
    mesh = objmesh.parse_obj(QUAD + face + '\n', {})
    assert (len(mesh.positions), mesh.dropped) == (triangles, dropped)


def test_a_vertex_that_comes_later_is_not_meant_by_index_zero():
    assert objmesh.parse_obj(QUAD + 'f 1 2 0\nv 5 5 5\n', {}).dropped == 1


@pytest.mark.parametrize(
    'value', ['nan', 'inf', '-inf', '1e39', '1e400', '1.#QNAN', '-1.#IND', 'nan(ind)', '-nan(ind)', '1.#INF']
)
def test_faces_with_a_vertex_that_is_not_finite_are_dropped_and_counted(value):
    mesh = objmesh.parse_obj(f'{QUAD}v {value} 0 0\nf 1 2 3\nf 1 2 5\nf 1 2 3 5\nf 1 2 3 4 5\n', {})
    assert (len(mesh.positions), mesh.dropped, mesh.num_vertices) == (1, 3, 5)


@pytest.mark.parametrize(
    'text, message',
    [
        ('v 0 0 zero\n', r"line 5 is 'v 0 0 zero': wanted 3 numbers"),
        ('\r\rv 0 0\r', r"line 7 is 'v 0 0': wanted 3 numbers"),
        ('f 1 2 x\n', r"line 5 is 'f 1 2 x': wanted corners v, v/t"),
        ('f 1.0 2.0 3.0\n', r'wanted corners .* of whole numbers'),
        ('f ' + '9' * 5000 + ' 1 2\n', r"line 5 is 'f 999"),
        ('vt\n', r"line 5 is 'vt': wanted 2 numbers"),
    ],
)
def test_a_statement_that_is_none_is_named_with_its_line(text, message):
    with pytest.raises(UsageError, match=message):
        objmesh.parse_obj(QUAD + text, {})


def test_large_polygons_take_no_more_than_their_size_in_time():
    """A comb of 2,000 teeth, whose every search for an ear once began at the first corner: the area is that of the teeth."""
    teeth = 2000
    top = np.stack([np.arange(2 * teeth), np.tile([1.0, 3.0], teeth)], -1)
    outline = np.concatenate([top, [[2 * teeth - 1, 0], [0, 0]]])
    points = np.insert(outline[::-1], 2, 0.0, axis=1)
    triangles = objmesh.ear_clip(points)
    a, b, c = (points[triangles[:, k]] for k in range(3))
    area = 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=-1).sum()
    np.testing.assert_allclose(area, (2 * teeth - 1) * 2.0, rtol=1e-9)


# -------------------------------------------------------------------------------------------------------------- look-up


@pytest.mark.parametrize('spelling', ['Textures/Wood.PNG', 'textures/wood.png', 'TEXTURES\\WOOD.PNG', 'Textures\\wood.Png'])
def test_with_a_listing_any_case_of_any_folder_is_found(spelling):
    locate = {'m/textures/wood.png': 'm/Textures/Wood.png'}.get
    files = {
        'm/a.obj': f'mtllib a.mtl\n{QUAD}usemtl red\nf 1 2 3\n',
        'm/a.mtl': f'newmtl red\nmap_Kd {spelling}\n',
    }
    mesh = load(files, locate=lambda path: path if path in files else locate(path.lower()))
    assert mesh.parts[0].texture == 'm/Textures/Wood.png'


def test_nothing_is_looked_for_above_the_root():
    asked = []
    assert archives.find(lambda path: asked.append(path), '../../../etc/passwd', ('m',)) is None
    assert asked and not any(path.startswith(('/', '..')) for path in asked)
