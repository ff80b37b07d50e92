"""Cleaning, simplifying, and files that other programs read back: right place, right colour, right way up."""

import functools
import json
import struct

import analytic_assets
import numpy as np
import pytest
import trimesh
from closed_meshes import assert_closed

from t3d.export import assets, extraction, meshes
from t3d.geom import meshing


def silent(message):
    pass


@functools.cache
def built(name, texture=256):
    """(asset, Mesh with a texture, or with vertex colours where that is 0) of an analytic asset."""
    asset = getattr(analytic_assets, name)()
    densities = meshing.density_grid(asset.field, asset.scene, asset.bound, 96)
    level_set = extraction.surface(asset, densities, log=silent)
    if texture:
        return asset, extraction.textured(asset, level_set, most=8000, texture=texture, log=silent)
    return asset, extraction.coloured(asset, level_set, most=8000, log=silent)[0]


def box(low, high):
    mesh = trimesh.creation.box(bounds=[low, high])
    return np.float32(mesh.vertices), np.int32(mesh.faces)


def joined(*parts):
    offsets = np.cumsum([0, *(len(v) for v, _ in parts[:-1])])
    return np.concatenate([v for v, _ in parts]), np.concatenate([f + o for (_, f), o in zip(parts, offsets)])


def texture_at(mesh, point):
    """Base colour at the vertex nearest to a point, read as glTF viewers read it (through trimesh's reader)."""
    nearest = np.argmin(np.linalg.norm(mesh.vertices - point, axis=-1))
    return np.asarray(mesh.visual.material.to_color(mesh.visual.uv[nearest][None]))[0, :3].astype(int)


def test_floaters_and_cavities_go_and_the_largest_part_stays():
    big, speck = box([-0.5] * 3, [0.5] * 3), box([0.8] * 3, [0.85] * 3)
    second, hollow = box([0.6] * 3, [0.9] * 3), box([-0.2] * 3, [0.2] * 3)
    vertices, faces = meshes.clean(*joined(big, speck, second, (hollow[0], hollow[1][:, ::-1])), log=silent)
    assert meshes.volume(vertices, faces) == pytest.approx(1.0 + 0.3**3, rel=1e-5)
    assert len(vertices) == 16 and len(np.unique(meshes.components(faces, len(vertices)))) == 2


def cube(turned=False):
    """(vertices, faces) of a cube of side 1 in twelve triangles; turned about two axes if asked for."""
    mesh = trimesh.creation.box((1.0, 1.0, 1.0))
    if turned:
        mesh.apply_transform(trimesh.transformations.euler_matrix(0.3, 0.5, 0.0))
    return np.float32(mesh.vertices), np.int32(mesh.faces), mesh.face_normals


def test_creases_are_kept_sharp_and_round_sides_smooth():
    vertices, faces, flat = cube(turned=True)
    mesh = meshes.creased(meshes.Mesh(vertices, faces, meshes.smooth_normals(vertices, faces)))
    assert (len(mesh.vertices), len(mesh.faces)) == (24, 12)  # eight corners, three sides each
    np.testing.assert_allclose(mesh.normals[mesh.faces], np.repeat(flat[:, None], 3, 1), atol=1e-5)
    np.testing.assert_array_equal(mesh.vertices[mesh.faces], vertices[faces])
    ball = trimesh.creation.icosphere(3)
    round_one = meshes.Mesh(np.float32(ball.vertices), np.int32(ball.faces), np.float32(ball.vertices))
    mesh = meshes.creased(round_one._replace(colors=np.uint8(255 * (np.abs(ball.vertices)))))
    assert len(mesh.vertices) == len(ball.vertices)
    np.testing.assert_allclose(mesh.normals, mesh.vertices, atol=0.02)
    np.testing.assert_array_equal(mesh.colors, np.uint8(255 * np.abs(mesh.vertices)))


@functools.cache
def sphere_density():
    asset = analytic_assets.sphere()
    return meshing.density_grid(asset.field, asset.scene, 1.0, 64)


def test_normals_of_a_sphere_point_outwards():
    vertices, faces = meshing.surface(sphere_density(), 20.0, 1.0)
    normals = meshes.smooth_normals(vertices, faces)
    outward = vertices / np.linalg.norm(vertices, axis=-1, keepdims=True)
    assert np.sum(normals * outward, -1).min() > 0.97
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1.0, atol=1e-5)


def test_glb_reopens_textured_upright_and_in_the_right_colours(tmp_path):
    _, mesh = built('cone_on_cube')
    path = meshes.write(mesh, tmp_path / 'mesh.glb')
    loaded = trimesh.load(path, force='mesh')
    material = loaded.visual.material
    assert isinstance(material, trimesh.visual.material.PBRMaterial)
    assert material.baseColorTexture.size == (256, 256)
    assert (material.metallicFactor, material.roughnessFactor) == (0.0, 1.0)
    assert len(loaded.faces) == len(mesh.faces) > 0
    assert loaded.bounds[0, 1] == pytest.approx(-0.7, abs=0.04) and loaded.bounds[1, 1] == pytest.approx(0.8, abs=0.04)
    assert loaded.bounds[1, 0] == pytest.approx(0.4, abs=0.04)
    for point in ((0, 0.8, 0), (0.15, 0.4, 0), (0, 0.3, 0.2), (-0.1, 0.5, 0)):
        red, green, blue = texture_at(loaded, point)
        assert red > 180 and green < 60 and blue < 60, (point, red, green, blue)
    for point in ((0.4, -0.35, 0), (0, -0.35, 0.4), (-0.4, -0.6, -0.1), (0, -0.7, 0)):
        red, green, blue = texture_at(loaded, point)
        assert blue > 200 and red < 60, (point, red, green, blue)
    front = loaded.vertex_normals[:, 2] > 0.99
    assert front.any() and np.allclose(loaded.vertices[front, 2], 0.4, atol=0.03)


def test_axes_of_the_glb_are_the_worlds(tmp_path):
    _, mesh = built('arrows')
    loaded = trimesh.load(meshes.write(mesh, tmp_path / 'arrows.glb'), force='mesh')
    np.testing.assert_allclose(loaded.bounds, [[-0.1] * 3, [0.9, 0.7, 0.5]], atol=0.04)
    for axis, length in enumerate((0.9, 0.7, 0.5)):
        color = texture_at(loaded, np.eye(3)[axis] * (length - 0.05))
        assert np.argmax(color) == axis and color[axis] > 200, (axis, color)


def test_exported_sphere_is_watertight_once_seams_are_merged(tmp_path):
    _, mesh = built('sphere')
    loaded = trimesh.load(meshes.write(mesh, tmp_path / 'sphere.glb'), force='mesh')
    loaded.merge_vertices(merge_tex=True, merge_norm=True)
    assert loaded.is_watertight
    normals = loaded.vertices / np.linalg.norm(loaded.vertices, axis=-1, keepdims=True)
    cosine = np.sum(loaded.face_normals * normals[loaded.faces[:, 0]], -1)
    assert cosine.min() > 0.0 and np.percentile(cosine, 1) > 0.9


def test_obj_ply_and_stl_reopen(tmp_path):
    for kind in ('obj', 'ply', 'stl'):
        _, mesh = built('cone_on_cube', 0 if kind == 'ply' else 256)
        loaded = trimesh.load(meshes.write(mesh, tmp_path / f'mesh.{kind}'), force='mesh')
        assert len(loaded.faces) == len(mesh.faces)
        np.testing.assert_allclose(loaded.bounds, [mesh.vertices.min(0), mesh.vertices.max(0)], atol=1e-4)
        if kind == 'ply':
            top = loaded.visual.vertex_colors[np.argmax(loaded.vertices[:, 1])]
            assert top[0] > 180 and top[2] < 60
        if kind == 'obj':
            assert sorted(p.name for p in tmp_path.iterdir() if p.stem == 'mesh') == ['mesh.mtl', 'mesh.obj', 'mesh.png']
            assert texture_at(loaded, (0.4, -0.35, 0))[2] > 200 and texture_at(loaded, (0, 0.8, 0))[0] > 180


def test_flat_sides_take_few_faces_and_colours_keep_their_boundary():
    """A cube in one colour under a cone in another: the sides of the cube are flat, and so is the ring around the cone."""
    bare, coloured = built('cone_on_cube')[1], built('cone_on_cube', 0)[1]
    assert len(bare.faces) < 900 and len(bare.faces) < len(coloured.faces) < 4000
    assert 1 <= bare.charts <= 20
    assert_closed(coloured.vertices, coloured.faces)
    for part, colour in ((coloured.vertices[:, 1] < -0.15, (26, 51, 230)), (coloured.vertices[:, 1] > 0.15, (217, 26, 26))):
        assert part.sum() > 10
        np.testing.assert_allclose(coloured.colors[part], np.tile(colour, (part.sum(), 1)), atol=extraction.DIFFERENCE + 1)


TRIANGLE = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
SRGB = np.array([[255, 188, 0], [99, 10, 1], [0, 128, 255]], np.uint8)


def triangle(**attributes):
    normals = np.tile([0, 0, 1], (3, 1)).astype(np.float32)
    return meshes.Mesh(TRIANGLE, np.array([[0, 1, 2]], np.int32), normals, **attributes)


def read_glb(path):
    """(JSON, function that reads an accessor) of a GLB by the words of glTF 2.0, sections 3.6.2 and 4.4, with struct alone."""
    data = path.read_bytes()
    magic, version, length, json_length, json_kind = struct.unpack_from('<4s4I', data)
    binary_length, binary_kind = struct.unpack_from('<2I', data, 20 + json_length)
    assert (magic, version, length, json_kind, binary_kind) == (b'glTF', 2, len(data), 0x4E4F534A, 0x004E4942)
    assert json_length % 4 == 0 and binary_length % 4 == 0
    tree = json.loads(data[20 : 20 + json_length])
    assert tree['buffers'][0]['byteLength'] <= binary_length == len(data) - 28 - json_length

    def read(index):
        accessor = tree['accessors'][index]
        view = tree['bufferViews'][accessor['bufferView']]
        kind = {5121: '<u1', 5123: '<u2', 5125: '<u4', 5126: '<f4'}[accessor['componentType']]
        columns = {'SCALAR': 1, 'VEC2': 2, 'VEC3': 3, 'VEC4': 4}[accessor['type']]
        start = view.get('byteOffset', 0) + accessor.get('byteOffset', 0)
        assert start % 4 == 0 and accessor['count'] * columns * np.dtype(kind).itemsize <= view['byteLength']
        return np.frombuffer(data, kind, accessor['count'] * columns, 28 + json_length + start).reshape(-1, columns)

    return tree, read


def test_vertex_colours_of_a_glb_are_linear(tmp_path):
    tree, read = read_glb(meshes.write(triangle(colors=SRGB), tmp_path / 'mesh.glb'))
    place = tree['meshes'][0]['primitives'][0]['attributes']['COLOR_0']
    assert tree['accessors'][place]['normalized']
    # IEC 61966-2-1: 188 is half the light of 255, 99 an eighth, 128 about 0.2159
    np.testing.assert_array_equal(read(place)[:, :3], [[255, 128, 0], [32, 1, 0], [0, 55, 255]])
    (loaded,) = trimesh.load(tmp_path / 'mesh.glb').geometry.values()
    np.testing.assert_array_equal(loaded.visual.vertex_attributes['color'], read(place))
    loaded = trimesh.load(meshes.write(triangle(colors=SRGB), tmp_path / 'mesh.ply'), force='mesh')
    np.testing.assert_array_equal(loaded.visual.vertex_colors[:, :3], SRGB)


@pytest.mark.parametrize('name', ('textured', 'vertex colours', 'bare'))
def test_every_glb_follows_gltf_and_is_no_metal(name, tmp_path):
    """A mesh without a material would be one of glTF's default material, whose metallic factor is 1."""
    mesh = built('cone_on_cube', 256 if name == 'textured' else 0)[1]._replace(name='a_red_cône_的')
    mesh = mesh._replace(colors=None) if name == 'bare' else mesh
    tree, read = read_glb(meshes.write(mesh, tmp_path / 'mesh.glb'))
    (material,), (node,), ((primitive,),) = tree['materials'], tree['nodes'], [m['primitives'] for m in tree['meshes']]
    look = material['pbrMetallicRoughness']
    assert (look['metallicFactor'], look['roughnessFactor'], material.get('doubleSided', False)) == (0.0, 1.0, False)
    assert look.get('baseColorFactor', [1, 1, 1, 1]) == [1, 1, 1, 1] and material.get('alphaMode', 'OPAQUE') == 'OPAQUE'
    assert primitive['material'] == 0 and ('baseColorTexture' in look) == (name == 'textured')
    assert node['name'] == tree['meshes'][0]['name'] == 'a_red_cône_的' and 'matrix' not in node and 'scale' not in node
    attributes = {name: read(index) for name, index in primitive['attributes'].items()}
    assert set(attributes) == {'POSITION', 'NORMAL'} | {'textured': {'TEXCOORD_0'}, 'vertex colours': {'COLOR_0'}}.get(
        name, set()
    )
    assert all(len(values) == len(mesh.vertices) and np.isfinite(values).all() for values in attributes.values())
    np.testing.assert_array_equal(attributes['POSITION'], mesh.vertices)
    np.testing.assert_array_equal(read(primitive['indices']).reshape(-1, 3), mesh.faces)
    np.testing.assert_allclose(np.linalg.norm(attributes['NORMAL'], axis=-1), 1.0, atol=1e-5)
    box = tree['accessors'][primitive['attributes']['POSITION']]
    np.testing.assert_allclose([box['min'], box['max']], [mesh.vertices.min(0), mesh.vertices.max(0)], atol=1e-6)


def test_obj_names_its_object_and_points_outside_as_the_glb(tmp_path):
    mesh = built('cone_on_cube')[1]._replace(name='a_red_cône_的')
    lines = meshes.write(mesh, tmp_path / 'mesh.obj').read_text(encoding='utf-8').splitlines()
    rows = {key: [line.split()[1:] for line in lines if line.startswith(f'{key} ')] for key in ('v', 'vn', 'vt', 'f', 'o')}
    assert rows['o'] == [['a_red_cône_的']] and lines.index('usemtl t3d') < min(n for n, x in enumerate(lines) if x[:2] == 'f ')
    corners = np.array([[corner.split('/') for corner in face] for face in rows['f']], int)
    assert corners.min() == 1 and (corners.max((0, 1)) <= [len(rows['v']), len(rows['vt']), len(rows['vn'])]).all()
    np.testing.assert_allclose(np.linalg.norm(np.array(rows['vn'], float), axis=-1), 1.0, atol=3e-6)
    np.testing.assert_allclose(np.array(rows['v'], float), mesh.vertices, atol=1e-6)
    assert 'map_Kd mesh.png' in (tmp_path / 'mesh.mtl').read_text() and 'newmtl t3d' in (tmp_path / 'mesh.mtl').read_text()


@pytest.mark.parametrize(
    ('prompt', 'name'),
    [('a red cube', 'a_red_cube'), ('  ein\troter\nWürfel ', 'ein_roter_Würfel'), ('红色 立方体', '红色_立方体')]
    + [('a\x00b\x1b[31m\u2028c', 'a_b_[31m_c'), ('\n', 't3d'), ('#1 {{x}} <b>', '#1_{{x}}_<b>')],
)
def test_an_object_is_named_by_its_prompt_on_one_line(prompt, name):
    assert meshes.name_of(prompt) == name


def test_wrong_formats_and_empty_meshes_are_refused(tmp_path):
    empty = meshes.Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32), np.zeros((0, 3), np.float32))
    with pytest.raises(ValueError, match="'mesh.fbx'.*glb"):
        meshes.write(empty, tmp_path / 'mesh.fbx')
    with pytest.raises(
        ValueError, match='mesh.glb has no faces and 0 vertices, wanted at least one face: leave --threshold out'
    ):
        meshes.write(empty, tmp_path / 'mesh.glb')
    bad = triangle(colors=SRGB)._replace(vertices=np.where(TRIANGLE > 0, np.nan, TRIANGLE))
    with pytest.raises(ValueError, match='mesh.ply has vertices that are not finite'):
        meshes.write(bad, tmp_path / 'mesh.ply')
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="unknown mesh format 'usd'.*'glb'"):
        assets.write(analytic_assets.sphere(), tmp_path, formats=('usd',))
