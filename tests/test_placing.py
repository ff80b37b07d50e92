"""Origin and height of mesh files, by what other programs read in them; refusals where they have no meaning."""

import json

import analytic_assets
import numpy as np
import pytest
import trimesh

from t3d.core.errors import UsageError
from t3d.core.outputs import Mesh, Picture, Points
from t3d.export import assets, meshes, placing, writers


def silent(message):
    pass


def box(low, high):
    solid = trimesh.creation.box(bounds=[low, high])
    return np.float32(solid.vertices), np.int32(solid.faces)


def mesh(low=(-0.5, -0.75, -0.25), high=(0.5, 0.5, 0.25)):
    vertices, faces = box(low, high)
    return meshes.Mesh(vertices, faces, meshes.smooth_normals(vertices, faces))


@pytest.mark.parametrize(
    ('origin', 'height', 'low', 'high'),
    [
        ('scene', None, (-0.5, -0.75, -0.25), (0.5, 0.5, 0.25)),
        ('floor', None, (-0.5, 0.0, -0.25), (0.5, 1.25, 0.25)),
        ('scene', 2.5, (-1.0, -1.5, -0.5), (1.0, 1.0, 0.5)),  # all axes alike
        ('floor', 0.75, (-0.3, 0.0, -0.15), (0.3, 0.75, 0.15)),
    ],
)
def test_a_box_stands_where_it_is_asked_to(origin, height, low, high):
    solid = mesh()
    place = placing.of(solid, origin, height)
    stands = placing.placed(solid, place)
    np.testing.assert_allclose([stands.vertices.min(0), stands.vertices.max(0)], [low, high], atol=1e-6)
    np.testing.assert_allclose(stands.vertices, place.scale * solid.vertices + [0.0, place.lift, 0.0], atol=1e-6)
    assert stands.normals is solid.normals and stands.faces is solid.faces


@pytest.mark.parametrize('texture', [64, 0])
def test_every_file_stands_there_and_the_sheet_and_cameras_stay_in_scene_units(texture, tmp_path):
    options = {'texture': texture, 'grid': 40, 'formats': meshes.FORMATS, 'log': silent}
    there = assets.write_meshes(analytic_assets.cone_on_cube(), tmp_path / 'scene', **options)
    stands = assets.write_meshes(analytic_assets.cone_on_cube(), tmp_path / 'floor', origin='floor', height=0.3, **options)
    for kind in meshes.FORMATS:
        before, after = (trimesh.load(paths[kind], force='mesh').bounds for paths in (there, stands))
        scale = 0.3 / (before[1, 1] - before[0, 1])
        np.testing.assert_allclose(after, (before - [0.0, before[0, 1], 0.0]) * scale, atol=2e-3)
        assert after[0, 1] == pytest.approx(0.0, abs=1e-3) and after[1, 1] == pytest.approx(0.3, abs=1e-3)
    known = json.loads(stands['facts'].read_text())
    np.testing.assert_allclose(known['place']['scale'], scale, rtol=0.01)
    assert known['frame'] == 'y up, front +z, base at y = 0, metres, 0.3 high'
    assert known['size x y z, scene units'] == json.loads(there['facts'].read_text())['size x y z, scene units']  # of the scene


def test_a_mesh_of_a_system_is_placed_and_named_too(tmp_path):
    vertices, faces = box((-0.5, -0.75, -0.25), (0.5, 0.5, 0.25))
    output = Mesh('a small box', vertices, faces, np.full((8, 3), 0.5, np.float32))
    paths = writers.write(output, tmp_path, origin='floor', height=2.5, log=silent)
    scene = trimesh.load(paths['glb'])
    np.testing.assert_allclose(scene.bounds, [[-1.0, 0.0, -0.5], [1.0, 2.5, 0.5]], atol=1e-6)
    assert list(scene.geometry) == ['a_small_box']
    alone = writers.meshes_of(output, tmp_path / 'alone', origin='floor')['glb']
    np.testing.assert_allclose(trimesh.load(alone).bounds[:, 1], [0.0, 1.25], atol=1e-6)


def test_what_has_no_place_is_refused(tmp_path):
    picture = Picture('a box', np.zeros((8, 8, 3)))
    points = Points('a box', np.zeros((4, 3)), None)
    for output, kind in ((picture, 'picture'), (points, 'points')):
        for options, shown in (({'origin': 'floor'}, '--origin floor'), ({'height': 1.0}, '--height 1.0')):
            with pytest.raises(
                UsageError, match=f'{shown} is of the mesh of a field, and this system makes {kind}: leave it out'
            ):
                writers.write(output, tmp_path, log=silent, **options)
    vertices, faces = box((-0.5, -0.75, -0.25), (0.5, 0.5, 0.25))
    with pytest.raises(UsageError, match='--light is of the mesh of a field, and this system makes mesh'):
        writers.write(Mesh('a box', vertices, faces), tmp_path, log=silent, light=lambda normals: normals[:, 0])
    assert not list(tmp_path.iterdir())
    writers.write(picture, tmp_path, log=silent, origin='scene', height=None, light=None)


@pytest.mark.parametrize(
    ('origin', 'height', 'message'),
    [
        ('flor', None, "flor.*Did you mean 'floor'"),
        ('floor', 0.0, 'height 0.0: wanted metres above 0'),
        ('floor', -1, 'height -1: wanted metres'),
        ('floor', float('nan'), 'height nan: wanted metres'),
        ('floor', 'tall', "height 'tall': wanted metres"),
    ],
)
def test_a_wrong_place_is_refused_before_the_work(origin, height, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        assets.write_meshes(None, tmp_path, origin=origin, height=height, log=silent)


def test_a_flat_mesh_has_no_height():
    vertices = np.float32([[0, 0, 0], [1, 0, 0], [0, 0, 1]])
    flat = meshes.Mesh(vertices, np.int32([[0, 2, 1]]), np.float32([[0, 1, 0]] * 3))
    with pytest.raises(UsageError, match='height 1 m: the mesh is flat'):
        placing.of(flat, 'floor', 1.0)
