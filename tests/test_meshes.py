"""Cleaning, simplifying, and files that other programs read back: right place, right colour, right way up."""

import functools

import analytic_assets
import numpy as np
import pytest
import trimesh

from t3d.export import assets, meshes
from t3d.export import texture as textures
from t3d.geom import meshing


def silent(message):
    pass


@functools.cache
def built(name):
    """(asset, textured Mesh) of an analytic asset."""
    asset = getattr(analytic_assets, name)()
    densities = meshing.density_grid(asset.field, asset.scene, asset.bound, 96)
    mesh, _ = assets.extract(asset, densities, faces=8000, log=silent)
    return asset, textures.bake(asset, mesh, 256, step=2.0 / 96, log=silent)


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


def test_simplification_keeps_the_shape():
    vertices, faces = meshing.surface(sphere_density(), 20.0, 1.0)
    few_vertices, few = meshes.simplify(vertices, faces, 3000)
    assert len(few) <= 3100
    assert meshes.volume(few_vertices, few) == pytest.approx(meshes.volume(vertices, faces), rel=0.005)
    assert trimesh.Trimesh(few_vertices, few, process=False).is_watertight
    same = meshes.simplify(few_vertices, few, 10_000)
    assert same[1] is few


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
    assert loaded.vertex_normals[np.argmax(loaded.vertices[:, 2])] @ [0, 0, 1] > 0.5


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
    _, mesh = built('cone_on_cube')
    for kind in ('obj', 'ply', 'stl'):
        loaded = trimesh.load(meshes.write(mesh, tmp_path / f'mesh.{kind}'), force='mesh')
        assert len(loaded.faces) == len(mesh.faces)
        np.testing.assert_allclose(loaded.bounds, [mesh.vertices.min(0), mesh.vertices.max(0)], atol=1e-4)
        if kind == 'ply':
            top = loaded.visual.vertex_colors[np.argmax(loaded.vertices[:, 1])]
            assert top[0] > 180 and top[2] < 60
        if kind == 'obj':
            assert sorted(p.name for p in tmp_path.iterdir() if p.stem == 'mesh') == ['mesh.mtl', 'mesh.obj', 'mesh.png']
            assert texture_at(loaded, (0.4, -0.35, 0))[2] > 200 and texture_at(loaded, (0, 0.8, 0))[0] > 180


def test_vertex_colours_of_a_glb_are_linear(tmp_path):
    triangle = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    normals = np.tile([0, 0, 1], (3, 1)).astype(np.float32)
    colours = np.array([[255, 188, 0], [99, 10, 1], [0, 128, 255]], np.uint8)
    mesh = meshes.Mesh(triangle, np.array([[0, 1, 2]], np.int32), normals, colours)
    loaded = trimesh.load(meshes.write(mesh, tmp_path / 'mesh.glb'), force='mesh')
    # IEC 61966-2-1: 188 is half the light of 255, 99 an eighth, 128 about 0.2159
    np.testing.assert_array_equal(loaded.visual.vertex_colors[:, :3], [[255, 128, 0], [32, 1, 0], [0, 55, 255]])
    loaded = trimesh.load(meshes.write(mesh, tmp_path / 'mesh.ply'), force='mesh')
    np.testing.assert_array_equal(loaded.visual.vertex_colors[:, :3], colours)


def test_wrong_formats_and_empty_meshes_are_refused(tmp_path):
    empty = meshes.Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32), np.zeros((0, 3), np.float32))
    with pytest.raises(ValueError, match="'mesh.fbx'.*glb"):
        meshes.write(empty, tmp_path / 'mesh.fbx')
    with pytest.raises(
        ValueError, match='mesh.glb has no faces and 0 vertices, wanted at least one face: leave --threshold out'
    ):
        meshes.write(empty, tmp_path / 'mesh.glb')
    with pytest.raises(ValueError, match="unknown mesh format 'usd'.*'glb'"):
        assets.write(analytic_assets.sphere(), tmp_path, formats=('usd',))
