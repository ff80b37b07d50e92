"""Figures of meshes: which scenes, what they say of fields with known faults, and refusals."""

import jax.numpy as jnp
import numpy as np
import pytest

from launch import mesh_figures
from t3d.data.sets import shapes
from t3d.metrics import geometry


def test_scenes_are_unseen_ones_of_every_kind_and_the_same_every_time():
    scenes = mesh_figures.held_out(12)
    assert scenes == mesh_figures.held_out(56)[:12]
    seen = {scene.captions for scene in (*shapes.singles('train'), *shapes.pairs('train'))}
    assert not any(scene.captions in seen for scene in scenes)
    kinds = [(len(scene.objects), len(geometry.contact(shapes.table(scene))[0]) > 0) for scene in scenes]
    assert kinds == [(1, False), (2, True), (2, False)] * 4
    assert len(mesh_figures.held_out(1000)) == 1000


@pytest.fixture(scope='module')
def scene():
    return shapes.pair(('cylinder', 'red'), 'on top of', ('cylinder', 'blue'))


@pytest.fixture(scope='module')
def faultless(scene):
    return mesh_figures.measure(mesh_figures.as_field(scene), shapes.table(scene), grid=40, texture=64, points=2000)


def test_of_solids_as_fields_next_to_nothing_is_lost(faultless):
    assert faultless['IoU field, best threshold'] == 1.0 and faultless['IoU mesh'] > 0.95
    assert faultless['normals'] > 0.95 and faultless['normals, before simplification'] > 0.95
    assert faultless['colour line'] < 0.02 and faultless['colour line, field'] < 1e-6
    assert faultless['closed'] == 1.0 and faultless['faces'] < 1000


def test_a_field_that_is_too_large_and_painted_too_high_is_told_by_both_figures(scene, faultless):
    """All of it 0.04 higher: of 1.43 of height 0.04 is lost at the foot and added at the head; the line stands 0.04 higher."""
    made = mesh_figures.as_field(scene)
    moved = made._replace(field=lambda rows, points: made.field(rows, points - jnp.array([0.0, 0.04, 0.0])))
    figures = mesh_figures.volumes(moved, *_extracted(moved), shapes.table(scene), 4000)
    expected = (1.43 - 0.04) / (1.43 + 0.04)
    assert figures['IoU field, best threshold'] == pytest.approx(expected, abs=0.01)
    assert figures['IoU mesh'] == pytest.approx(expected, abs=0.03)
    truth = geometry.on_solids(shapes.table(scene), 10_000)
    assert faultless['colour line, field'] < 0.001 < 0.03 < _line(moved, shapes.table(scene), truth)


def _extracted(asset):
    from t3d.export import extraction
    from t3d.geom import meshing

    densities = meshing.density_grid(asset.field, asset.scene, asset.bound, 40)
    level_set = extraction.surface(asset, densities, log=lambda line: None)
    return densities, level_set, extraction.plain(asset, level_set, most=40_000, log=lambda line: None)[0]


def _line(asset, rows, truth):
    from t3d.export import texture

    colours = texture.surface_colors(asset, truth.points, -truth.normals, step=0.05, chunk=2**12) / 255.0
    return geometry.displacement(rows, truth.points, colours, truth.area)


def test_an_open_or_pinched_surface_is_not_closed():
    faces = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [3, 2, 1]])
    assert mesh_figures.closed(faces)
    assert not mesh_figures.closed(faces[:3]) and not mesh_figures.closed(np.concatenate([faces, faces]))


def test_means_are_told_by_kind_and_leave_out_what_there_is_not(scene):
    lines = mesh_figures.table([scene, shapes.single('cube', 'red')], [{'a': 1.0, 'b': 0.5}, {'a': 3.0, 'b': np.nan}])
    assert lines[0] == '| mean | all (n = 2) | one cube (n = 1) | two solids (n = 1) |'
    assert lines[2:] == ['| a | 2.000 | 3.000 | 1.000 |', '| b | 0.500 |  | 0.500 |']


def test_bad_numbers_are_one_sentence(capsys):
    with pytest.raises(SystemExit):
        mesh_figures.main(['solids', '--scenes', '0'])
    assert 'scenes' in capsys.readouterr().err
