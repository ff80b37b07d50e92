"""What a mesh lacks of its field: solids in closed form, of which parts are left out on purpose."""

import functools
import json

import analytic_assets
import numpy as np
import pytest

from t3d.export import assets, extraction, meshes, sides
from t3d.geom import meshing

GRID = 96
CELL = 2.0 / GRID


def silent(message):
    pass


@functools.cache
def compared(leg, threshold=None):
    """(mesh, Comparison) of a table: at one threshold, or as it is exported."""
    asset = analytic_assets.table(leg)
    values = meshing.density_grid(asset.field, asset.scene, asset.bound, GRID)
    found = extraction.surface(asset, values, threshold=threshold, log=silent)
    mesh = meshes.Mesh(found.vertices, found.faces, meshes.smooth_normals(found.vertices, found.faces))
    return mesh, sides.compare(asset, mesh, values)


def lengths(asset, boxes):
    """[boxes, V, H, W] how far the rays of the nine sides run in boxes (low, high), by slabs."""
    views, grid = sides.views(asset), (np.arange(sides.SIZE) + 0.5) / sides.SIZE
    u, v = np.meshgrid(grid, grid)
    pictures = []
    for pose, lens in zip(np.asarray(views.world_from_cam), np.asarray(views.intrinsics), strict=True):
        rays = np.stack([(u - 0.5) / lens[0, 0], (v - 0.5) / lens[1, 1], np.ones_like(u)], -1) @ pose[:3, :3].T
        rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
        first, second = (
            (np.asarray(corner) - pose[:3, 3]) / rays[..., None, :] for corner in np.moveaxis(np.array(boxes), 1, 0)
        )
        near, far = np.minimum(first, second).max(-1), np.maximum(first, second).min(-1)
        pictures.append(np.moveaxis(np.maximum(far - near, 0.0), -1, 0))
    return np.stack(pictures, 1)


BOXES = [((-0.7, 0.25, -0.5), (0.7, 0.35, 0.5))] + [
    ((x - 0.04, -0.7, z - 0.04), (x + 0.04, 0.25, z + 0.04)) for x in (-0.6, 0.6) for z in (-0.4, 0.4)
]


def test_a_whole_mesh_lacks_nothing():
    _, result = compared(4.0)
    assert result.missing < sides.WORTH and result.added < 0.01 and result.iou > compared(4.0, 8.0)[1].iou + 0.08
    assert result.low is result.threshold is None and set(result.sides) == set(sides.NAMES)
    assert sides.sentence(result) == f'the mesh has {1 - result.missing:.1%} of what the field shows from 9 sides'


def test_lost_legs_are_counted_placed_and_their_threshold_told():
    mesh, result = compared(4.0, 8.0)
    assert mesh.vertices[:, 1].min() > 0.2
    asset = analytic_assets.table(4.0)
    top, *legs = lengths(asset, BOXES)
    opacity = 1.0 - np.exp(-4.0 * np.sum(legs, 0))
    exact = (opacity >= sides.SHOWN) & (top == 0.0)
    share = exact.sum() / (exact | (top > 0.0)).sum()
    assert result.missing == pytest.approx(share, rel=0.2) and share > 0.1  # but for the pixels at the top's outline
    by_side = exact.sum((1, 2)) / (exact | (top > 0.0)).sum((1, 2))
    np.testing.assert_allclose(list(result.sides.values()), by_side, rtol=0.3, atol=1e-9)
    assert result.sides['top'] < 0.02 < result.sides['front']
    np.testing.assert_allclose(result.low, [-0.6, -0.68, -0.4], atol=0.08)
    np.testing.assert_allclose([result.high[0], result.high[2]], [0.6, 0.4], atol=0.08)
    assert result.place == 'below' and -0.1 < result.high[1] < 0.25
    assert 2.0 < result.threshold < 4.01
    words = sides.sentence(result)
    assert f'lacks {result.missing:.0%} of what the field shows from 9 sides' in words and 'below it (x -0.6' in words
    # The threshold that is told has them, most of them at least, as one surface.
    again = compared(4.0, float(words.split('--threshold ')[1].split()[0]))[1]
    assert again.missing < (1.0 - sides.MOSTLY + 0.05) * result.missing


def test_what_the_mesh_covers_beyond_the_field_is_told_apart():
    asset = analytic_assets.sphere(0.5)
    values = meshing.density_grid(asset.field, asset.scene, asset.bound, 48)
    found = extraction.surface(asset, values, log=silent)
    grown = meshes.Mesh(1.3 * found.vertices, found.faces, meshes.smooth_normals(found.vertices, found.faces))
    result = sides.compare(asset, grown, values)
    pixel = 2.0 * asset.camera['radius'] * np.tan(0.5 * asset.camera['fov']) / sides.SIZE / 0.5  # of a radius
    discs = 1.3**2 - (1.0 + sides.MARGIN * pixel) ** 2
    assert result.missing == 0.0 and result.added == pytest.approx(discs, rel=0.2)
    assert result.iou == pytest.approx(1.0 / 1.3**2, rel=0.1)
    assert f'from 9 sides; it covers {result.added:.0%} beyond that, where the field is thin: ' in sides.sentence(result)


@pytest.mark.parametrize(
    ('middle', 'place'),
    [
        ((0.0, -2.0, 0.5), 'below'),
        ((0.0, 1.5, 0.0), 'above'),
        ((-1.2, 0.0, 0.0), 'left of'),
        ((1.2, 1.1, 0.0), 'right of'),
        ((0.0, 0.0, -3.0), 'behind'),
        ((0.0, 0.0, 3.0), 'in front of'),
        ((0.5, -0.5, 0.9), 'within'),
    ],
)
def test_places_are_those_of_the_front_view(middle, place):
    corners = np.array([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
    assert sides._place(np.array(middle) - 0.1, np.array(middle) + 0.1, corners) == place


def test_every_part_is_told_in_the_output_the_report_and_the_json(tmp_path):
    asset, lines = analytic_assets.table(4.0), []
    paths = assets.write(
        asset, tmp_path, formats=('glb',), texture=128, grid=64, frames=0, render_size=64, threshold=8.0, log=lines.append
    )
    (line,) = [line for line in lines if 'of what the field shows' in line]
    assert line.startswith('mesh: the mesh lacks')
    known = json.loads(paths['facts'].read_text())
    assert paths['facts'] == tmp_path / 'mesh.json' and known['name'] == 'a_table' and known['threshold'] == 8.0
    told = known['silhouettes']
    assert f'{told["missing"]:.0%} of what the field shows' in line and told['place'] == 'below' and len(told['sides']) == 9
    assert f'--threshold {told["threshold"]:.2g}' in line and len(told['low']) == 3
    assert line.removeprefix('mesh: ') in paths['report'].read_text()
    assert known['faces'] < 200 and known['charts'] < 12 and known['place'] == {'scale': 1.0, 'lift': 0.0}
    assert 'cells of the grid' in known['moved by simplification'] and known['colours'].endswith('that the model learned')


def test_pictures_that_are_more_than_the_field_are_not_asked_for():
    asset = analytic_assets.sphere(0.5)._replace(picture=lambda scene, views: 1 / 0)
    values = meshing.density_grid(asset.field, asset.scene, asset.bound, 48)
    found = extraction.surface(asset, values, log=silent)
    mesh = meshes.Mesh(found.vertices, found.faces, meshes.smooth_normals(found.vertices, found.faces))
    assert sides.compare(asset, mesh, values).missing == 0.0
