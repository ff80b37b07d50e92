"""Distances of meshes from solids: against rays' own solids, brute force, closed forms, and faults of known size."""

import numpy as np
import pytest
import trimesh

from t3d.data.sets import shapes
from t3d.geom import solids
from t3d.metrics import geometry

ROWS = np.array(  # one of each kind, apart from each other
    [
        [0, -0.5, 0.5, 0.0, 0.3, 0.3, 1, 0, 0],
        [1, 0.5, 0.5, 0.1, 0.2, 0.35, 0, 1, 0],
        [2, -0.5, -0.5, 0.0, 0.25, 0.3, 0, 0, 1],
        [3, 0.5, -0.5, 0.0, 0.3, 0.35, 1, 1, 1],
        [-1, 0, 0, 0, 9, 9, 0, 0, 0],
    ],
    np.float32,
)


@pytest.mark.parametrize('kind', range(4))
def test_distances_agree_with_points_on_the_surface_and_with_what_rays_meet(kind):
    from scipy import spatial

    row = ROWS[kind : kind + 1]
    points = row[0, 1:4] + np.random.default_rng(0).uniform(-0.6, 0.6, (2000, 3))
    distance = geometry.distances(row, points)[0]
    np.testing.assert_array_equal(distance <= 0.0, np.asarray(solids.inside_each(row, np.float32(points)))[0])
    truth = geometry.on_solids(row, 100_000)
    nearest = spatial.cKDTree(truth.points).query(points)[0]
    np.testing.assert_allclose(np.abs(distance), nearest, atol=0.012)
    ahead = geometry.distances(row, truth.points + 1e-4 * truth.normals)[0]
    np.testing.assert_allclose(ahead, 1e-4, atol=2e-6)  # outward normals of unit length, on the surface


def test_points_on_solids_are_spread_by_area_and_leave_out_what_is_covered():
    radius, half = ROWS[3, 4:6]
    areas = [4 * np.pi * 0.09, 8 * 0.04 + 16 * 0.2 * 0.35, 2 * np.pi * 0.25 * (0.6 + 0.25)]
    areas.append(np.pi * radius * (radius + np.hypot(radius, 2 * half)))
    truth = geometry.on_solids(ROWS, 20_000)
    assert truth.area == pytest.approx(sum(areas), rel=1e-5)
    np.testing.assert_allclose(np.bincount(truth.which) / 20_000, np.array(areas) / sum(areas), atol=1e-3)
    moments = [truth.points[truth.which == kind].mean(0) - ROWS[kind, 1:4] for kind in range(3)]
    np.testing.assert_allclose(moments, 0.0, atol=0.02)
    cone = truth.points[(truth.which == 3) & (truth.normals[:, 1] > 0.0)]
    assert np.mean(cone[:, 1] - ROWS[3, 2]) == pytest.approx(half - 2 * half * 2 / 3, abs=0.01)  # two thirds down the side
    one, other = shapes.table(shapes.pair(('cube', 'red'), 'on top of', ('cube', 'blue')))
    free = geometry.on_solids(np.stack([one, other]), 20_000)
    assert free.area == pytest.approx(10 * (2 * one[4]) ** 2, rel=0.02)  # of twelve sides two lie on each other
    gap = geometry.on_solids(ROWS[1:2], 5000)
    inner = gap.points[gap.weights[:, 0] > 0.15] - ROWS[1, 1:4]
    assert len(inner) > 100 and np.all(np.sum(np.abs(inner) < [0.0501, 0.2001, 0.0501], -1) >= 2)


def test_volumes_are_compared_by_winding():
    box = trimesh.creation.box((1.0, 1.0, 1.0))
    points = np.random.default_rng(0).uniform(-1, 1, (500, 3))
    true = np.abs(points).max(1) < 0.5
    vertices, faces = np.asarray(box.vertices), np.asarray(box.faces)
    np.testing.assert_array_equal(geometry.inside(points, vertices, faces, chunk=1000), true)
    assert not geometry.inside(points, vertices, faces[:, ::-1]).any()
    other = np.abs(points).max(1) < 0.4
    assert geometry.iou(true, other) == np.sum(other) / np.sum(true) and geometry.iou(true & False, true & False) == 1.0


def test_turned_normals_are_told_by_their_angle():
    ball = trimesh.creation.icosphere(4, radius=0.3)
    vertices, faces = np.asarray(ball.vertices) + ROWS[0, 1:4], np.asarray(ball.faces)
    truth, samples = geometry.on_solids(ROWS[:1], 1000), geometry.on_mesh(vertices, faces, 20_000)
    assert samples.area == pytest.approx(4 * np.pi * 0.09, rel=0.01)
    assert np.degrees(geometry.turned(truth, samples, samples.normals)).max() < 6.0
    turn = np.array([[np.cos(0.5), 0.0, np.sin(0.5)], [0.0, 1.0, 0.0], [-np.sin(0.5), 0.0, np.cos(0.5)]])
    off = geometry.turned(truth, samples, samples.normals @ turn.T)
    assert off.max() == pytest.approx(0.5, abs=0.1) and np.median(off) > 0.3


@pytest.mark.parametrize(
    'upper, lower, length',
    [
        ('cylinder', 'cube', 2 * np.pi * 0.275),  # the circle lies within the square
        ('cube', 'cube', 8 * 0.286),
        ('sphere', 'cube', 0.0),
        ('cube', 'cone', 0.0),
    ],
)
def test_the_curve_of_contact_has_its_length(upper, lower, length):
    table = shapes.table(shapes.pair((upper, 'red'), 'on top of', (lower, 'blue')))
    curve, total = geometry.contact(table)
    assert total == pytest.approx(length, abs=1e-6)
    if length:
        assert np.abs(geometry.distances(table, curve)).max() < 1e-6
    beside = shapes.table(shapes.pair((upper, 'red'), 'in front of', (lower, 'blue')))
    assert geometry.contact(beside)[1] == 0.0


@pytest.mark.parametrize('colours', [('red', 'blue'), ('white', 'black'), ('orange', 'yellow')])
def test_a_line_between_colours_is_found_where_it_was_painted(colours):
    """A cylinder on one of the same radius: the wall is painted up to 0.02 above or below the place where they meet."""
    table = shapes.table(shapes.pair(('cylinder', colours[0]), 'on top of', ('cylinder', colours[1])))
    truth = geometry.on_solids(table, 100_000)
    for height in (0.0, 0.02, -0.05):
        own = table[np.where(truth.points[:, 1] > height, 0, 1), 6:9]
        painted = shapes.shade(own, truth.normals)
        assert geometry.displacement(table, truth.points, painted, truth.area) == pytest.approx(abs(height), abs=0.002)
