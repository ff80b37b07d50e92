"""Simplified surfaces: closed, within their bounds by an independent measure, and with few faces where they are flat."""

import functools

import numpy as np
import pytest
import trimesh
from closed_meshes import assert_closed, euler, sampled
from scipy import ndimage

from t3d.geom import decimate, meshing

CELL = 2.0 / 64
CENTRES = np.stack(np.meshgrid(*3 * [(np.arange(64) + 0.5) * CELL - 1.0], indexing='ij'), -1)


def level_set(distance):
    """Marching cubes of a solid whose density is 40 within a signed distance, with a soft step of half a cell."""
    density = 40.0 / (1.0 + np.exp(np.clip(distance / (0.5 * CELL), -30.0, 30.0)))
    return meshing.surface(density.astype(np.float32), 20.0, 1.0)


def cube(points):
    return np.abs(points).max(-1) - 0.55


def ball(points):
    return np.linalg.norm(points, axis=-1) - 0.6


def torus(points):
    return np.hypot(np.hypot(points[..., 0], points[..., 2]) - 0.55, points[..., 1]) - 0.25


@functools.cache
def simplified(shape, distance=0.125):
    """(vertices, faces before, vertices, faces after, the largest distance that is reported)."""
    vertices, faces = level_set(shape(CENTRES))
    fewer_vertices, fewer, _, far = decimate.simplify(vertices, faces, decimate.Bounds(distance * CELL))
    return vertices, faces, fewer_vertices, fewer, far


def distances(points, vertices, faces, count=1000):
    """Of some of the points to a mesh, by trimesh."""
    some = np.random.default_rng(0).choice(len(points), count, replace=False)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    return np.concatenate([trimesh.proximity.closest_point_naive(mesh, part)[1] for part in np.array_split(points[some], 8)])


@pytest.mark.parametrize(
    ('shape', 'raw', 'most', 'genus'), [(cube, 10_000, 100, 0), (ball, 8_000, 1200, 0), (torus, 8_000, 1600, 1)]
)
def test_few_faces_are_left_closed_and_within_the_distance(shape, raw, most, genus):
    vertices, faces, fewer_vertices, fewer, far = simplified(shape)
    assert len(faces) > raw and len(fewer) <= most
    assert_closed(fewer_vertices, fewer)
    assert euler(fewer_vertices, fewer) == 2 - 2 * genus
    # Where the surface was, it still is.
    assert far <= 0.125 * CELL * (1 + 1e-9)
    assert 0.0 < distances(vertices, fewer_vertices, fewer).max() <= far * (1 + 1e-5)
    # And it is nowhere else: by the closed form, against the marching cubes' own error.
    dense, _ = sampled(fewer_vertices, fewer, 50_000)
    error, own = (np.abs(shape(points.astype(np.float64))) for points in (dense, vertices))
    assert error.max() <= own.max() + 0.3 * CELL


def test_a_sphere_stays_round_and_its_faces_look_outwards():
    _, _, vertices, faces, _ = simplified(ball)
    points, normals = sampled(vertices, faces, 20_000)
    radius = np.linalg.norm(points, axis=-1)
    assert np.abs(radius - 0.6).max() < 0.2 * CELL
    cosine = np.einsum('pc,pc->p', normals, points / radius[:, None])
    assert np.degrees(np.arccos(cosine.min())) < np.degrees(decimate.ANGLE)
    _, _, _, coarse, _ = simplified(ball, 0.5)
    assert len(coarse) < 0.6 * len(faces)


def test_flat_sides_need_no_more_faces_when_the_cube_is_larger():
    counts = [
        len(decimate.simplify(*level_set(np.abs(CENTRES).max(-1) - half), decimate.Bounds(0.1 * CELL))[1])
        for half in (0.3, 0.8)
    ]
    assert max(counts) <= 100


def test_an_upper_bound_of_faces_is_kept_and_the_distance_that_it_took_is_told():
    vertices, faces = level_set(torus(CENTRES))
    fewer_vertices, fewer, _, far = decimate.simplify(vertices, faces, decimate.Bounds(0.125 * CELL), most=300)
    assert 250 <= len(fewer) <= 300 and 0.125 * CELL < far < 2.0 * CELL
    assert_closed(fewer_vertices, fewer)
    assert euler(fewer_vertices, fewer) == 0
    assert distances(vertices, fewer_vertices, fewer, 4000).max() == pytest.approx(far, rel=0.2)


@pytest.mark.parametrize('seed', range(4))
def test_ragged_surfaces_stay_manifold(seed):
    """Noise: handles, thin bridges and many parts, where a collapse could pinch."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((24, 24, 24)), 1.2)
    vertices, faces = meshing.surface(noise.astype(np.float32), float(np.quantile(noise, 0.8)), 1.0)
    assert_closed(vertices, faces)
    for distance, most in ((0.02, None), (0.02, len(faces) // 6)):
        fewer_vertices, fewer, _, _ = decimate.simplify(vertices, faces, decimate.Bounds(distance), most=most)
        assert_closed(fewer_vertices, fewer)
        assert euler(fewer_vertices, fewer) == euler(vertices, faces) and len(fewer) < len(faces)


def test_attributes_keep_their_boundary_where_the_shape_is_flat():
    vertices, faces = level_set(cube(CENTRES))
    red = (vertices[:, :1] > 0.2).astype(np.float64)  # a step across four sides
    bare = decimate.simplify(vertices, faces, decimate.Bounds(0.125 * CELL))[1]
    fewer_vertices, fewer, colours, _ = decimate.simplify(
        vertices, faces, decimate.Bounds(0.125 * CELL, difference=0.05), attributes=red
    )
    assert len(bare) < len(fewer) < len(faces) / 4
    assert_closed(fewer_vertices, fewer)
    away = np.abs(fewer_vertices[:, 0] - 0.2) > CELL
    np.testing.assert_allclose(colours[away, 0], fewer_vertices[away, 0] > 0.2, atol=0.05)
    # Interpolated over the faces, the colour is the step's everywhere but in the row of triangles that had the step before.
    rng = np.random.default_rng(0)
    face, weights = rng.integers(0, len(fewer), 20_000), rng.dirichlet([1.0] * 3, 20_000)
    points, colour = (np.einsum('pk,pkc->pc', weights, values[fewer[face]]) for values in (fewer_vertices, colours))
    off = np.abs(colour[:, 0] - (points[:, 0] > 0.2)) > 0.1
    assert off.any() and np.abs(points[off, 0] - 0.2).max() < 2.0 * CELL


def slow_nearest(point, triangle):
    """Squared distance by a fine grid of barycentric weights."""
    u, v = np.meshgrid(np.linspace(0, 1, 201), np.linspace(0, 1, 201))
    inside = u + v <= 1.0 + 1e-9
    weights = np.stack([1.0 - u[inside] - v[inside], u[inside], v[inside]], -1)
    return np.sum((weights @ triangle - point) ** 2, -1).min()


def test_the_nearest_triangle_is_that_of_a_search():
    rng = np.random.default_rng(0)
    points, corners = rng.normal(size=(12, 3)), rng.normal(size=(5, 3, 3))
    normals = decimate._normals(corners)[0]
    pair, face = np.repeat(np.arange(12), 5), np.tile(np.arange(5), 12)
    _, ours, weights = decimate._nearest_of(points, corners, normals, pair, face, np.full(12, 5))
    exact = np.sqrt([[slow_nearest(point, triangle) for triangle in corners] for point in points])
    # Where a point lies straight above some triangle, only such triangles are asked: never nearer than the true distance.
    assert (ours >= exact.min(1) - 0.01).all() and np.isclose(ours, exact.min(1), atol=0.01).mean() > 0.5
    np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-9)
    one = decimate._nearest_of(points, corners[:1], normals[:1], np.arange(12), np.zeros(12, int), np.ones(12, int))[1]
    np.testing.assert_allclose(one, exact[:, 0], atol=0.01)
