import numpy as np
import pytest

from t3d.data.sets import objmesh

OBJ = """# \xe9t\xe9
mtllib my colours.mtl
v 0 0 0
v 1 0 0
v 1 1 0 0.5 0.5 0.5
v 0 1 0
vt 0 0
vt 1 0
vt 1 1
vn 0 0 1
usemtl ch\xeane clair
f -4/-3 -3/-2 -2/-1
usemtl glass
f 1//1 2//1 3//1 4//1
usemtl nowhere
f 1 3 4
"""
MTL = """newmtl ch\xeane clair
Kd 0.1 0.2 0.3
map_Kd -s 1 1 1 -o 0.5 0 my wood \xe9.png
newmtl glass
Kd 1
Tr 0.75
newmtl unused
Kd 0 0 0
"""


def test_a_small_file_with_every_trap():
    store = {'dir/a.obj': OBJ.encode('latin-1'), 'dir/my colours.mtl': MTL.encode('latin-1'), 'dir/my wood \xe9.png': b'png'}
    mesh = objmesh.load('dir/a.obj', store.__getitem__)
    assert [part.name for part in mesh.parts] == ['ch\xeane clair', 'glass', 'nowhere']
    assert mesh.parts[0] == objmesh.Part('ch\xeane clair', (0.1, 0.2, 0.3), 1.0, 'dir/my wood \xe9.png')
    assert mesh.parts[1] == objmesh.Part('glass', (1.0, 1.0, 1.0), 0.25, None)
    assert mesh.parts[2].diffuse == objmesh.UNDEFINED_DIFFUSE
    assert mesh.missing == ('material nowhere',) and mesh.num_vertices == 4
    assert mesh.part.tolist() == [0, 1, 1, 2]
    np.testing.assert_array_equal(mesh.positions[0], [[0, 0, 0], [1, 0, 0], [1, 1, 0]])
    np.testing.assert_array_equal(mesh.uvs[0], [[0, 0], [1, 0], [1, 1]])
    assert np.isnan(mesh.normals[0]).all() and np.isnan(mesh.uvs[1:]).all()
    np.testing.assert_array_equal(mesh.normals[1:3], np.broadcast_to([0.0, 0.0, 1.0], (2, 3, 3)))


def test_missing_files_are_named_not_fatal():
    obj = 'mtllib gone.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl red\nf 1 2 3\nf 1 2 9\nf 1 2\n'
    mesh = objmesh.load('a.obj', {'a.obj': obj.encode()}.__getitem__)
    assert mesh.missing == ('gone.mtl', 'material red')
    assert len(mesh.positions) == 1  # the face beyond the table and the two-cornered one are left out
    mtl = 'newmtl red\nKd 1 0 0\nmap_Kd C:\\textures\\wood.jpg\n'
    store = {'a.obj': obj.encode(), 'gone.mtl': mtl.encode()}
    assert objmesh.load('a.obj', store.__getitem__).missing == ('C:\\textures\\wood.jpg',)
    store['wood.jpg'] = b''
    assert objmesh.load('a.obj', store.__getitem__).parts[0].texture == 'wood.jpg'
    with pytest.raises(KeyError):
        objmesh.load('b.obj', store.__getitem__)


def test_a_file_without_faces_gives_an_empty_mesh():
    mesh = objmesh.parse_obj('v 0 0 0\n', {})
    assert mesh.positions.shape == (0, 3, 3) and mesh.parts == ()


def area(points, triangles):
    a, b, c = (points[triangles[:, corner]] for corner in range(3))
    return 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=-1).sum()


@pytest.mark.parametrize('turn', [0, 1, 2, 3])
def test_concave_quads_are_cut_inside(turn):
    corners = np.roll([[0, 0, 0], [2, 1, 0], [0, 2, 0], [1, 1, 0]], turn, axis=0)
    text = ''.join(f'v {x} {y} {z}\n' for x, y, z in corners) + 'f 1 2 3 4\n'
    mesh = objmesh.parse_obj(text, {})
    np.testing.assert_allclose(area(mesh.positions.reshape(-1, 3), np.arange(6).reshape(2, 3)), 1.0)


@pytest.mark.parametrize('axis', [0, 1, 2])
@pytest.mark.parametrize('sign', [1, -1])
def test_ear_clipping_keeps_the_area_of_concave_polygons(axis, sign):
    angle, radius = np.arange(10) * np.pi / 5, np.resize([0.7, 2.0], 10)
    star = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    points = np.insert(star[::sign], axis, 0.3, axis=1)
    triangles = objmesh.ear_clip(points)
    assert triangles.shape == (8, 3)
    np.testing.assert_allclose(area(points, triangles), 10 * 0.5 * 2.0 * 0.7 * np.sin(np.pi / 5), rtol=1e-6)


def test_ear_clipping_of_a_square_with_a_bridged_hole():
    outer, inner = [[0, 0], [3, 0], [3, 3], [0, 3], [0, 0]], [[1, 1], [1, 2], [2, 2], [2, 1], [1, 1]]
    points = np.insert(np.array(outer + inner, float), 2, 0.0, axis=1)
    np.testing.assert_allclose(area(points, objmesh.ear_clip(points)), 8.0)


def test_degenerate_polygons_still_give_a_fan():
    assert objmesh.ear_clip(np.zeros((5, 3))).shape == (3, 3)
