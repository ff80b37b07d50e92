"""The density grid, the threshold, and closed outward surfaces of the right size."""

import analytic_assets
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.export import meshes
from t3d.geom import meshing


def silent(message):
    pass


@pytest.fixture(scope='module')
def sphere_grid():
    asset = analytic_assets.sphere(0.6)
    return meshing.density_grid(asset.field, asset.scene, 1.0, 96)


def test_the_grid_holds_the_field_at_cell_centres_whatever_the_chunk():
    def field(scene, points):
        return points @ jnp.array([1.0, 10.0, 100.0]) + scene, points

    centres = (np.arange(6) + 0.5) / 6 * 4.0 - 2.0
    expected = centres[:, None, None] + 10 * centres[None, :, None] + 100 * centres[None, None, :] + 3.0
    for chunk in (2**16, 50):
        grid = meshing.density_grid(field, jnp.float32(3.0), 2.0, 6, chunk)
        np.testing.assert_allclose(grid, expected, atol=1e-4)


def test_a_diverged_field_is_refused():
    with pytest.raises(ValueError, match='not finite.*delete the newest folder of its checkpoints/'):
        meshing.density_grid(lambda scene, points: (points[:, 0] / scene, points), jnp.float32(0.0), 1.0, 5)


def test_sphere_is_closed_wound_outwards_and_of_the_right_volume(sphere_grid):
    import trimesh

    vertices, faces = meshing.surface(sphere_grid, 20.0, 1.0)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight and mesh.is_winding_consistent
    exact = 4.0 / 3.0 * np.pi * 0.6**3
    assert meshes.volume(vertices, faces) == pytest.approx(exact, rel=0.01)
    assert mesh.volume == pytest.approx(exact, rel=0.01)
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=-1), 0.6, atol=0.01)
    np.testing.assert_allclose(vertices.mean(0), 0.0, atol=2e-3)


def test_the_threshold_of_a_sharp_field_lies_inside_the_step_and_gives_the_volume():
    asset = analytic_assets.sphere(0.6, sharpness=2000.0)
    grid = meshing.density_grid(asset.field, asset.scene, 1.0, 128)
    lines = []
    threshold = meshing.choose_threshold(grid, 1.0, lines.append)
    vertices, faces = meshing.surface(grid, threshold, 1.0)
    assert 'threshold' in lines[-1] and 'IoU' in lines[-1]
    assert meshes.volume(vertices, faces) == pytest.approx(4.0 / 3.0 * np.pi * 0.6**3, rel=0.01)


def test_the_threshold_matches_the_silhouettes_of_the_render(sphere_grid):
    threshold = meshing.choose_threshold(sphere_grid, 1.0, silent)
    along_z = 1.0 - np.exp(-sphere_grid.sum(2, dtype=np.float64) * 2.0 / 96) > 0.5  # not one of DIRECTIONS: a ball is a ball
    mesh = sphere_grid.max(2) >= threshold
    assert np.sum(mesh & along_z) / np.sum(mesh | along_z) > 0.97


def test_projections_are_beer_lambert_and_the_largest_density():
    """A box of one density: chords by slabs through the middle; a bright spot shows in every direction."""
    grid = np.full((40, 40, 40), 0.2, np.float32)
    grid[28:32, 4:8, 19:23] = 7.0
    peaks, opacity = meshing.projections(grid, 2.0)
    assert peaks.shape == opacity.shape and len(peaks) == len(meshing.DIRECTIONS)
    middle = opacity.shape[1] // 2
    chords = 4.0 / np.abs(meshing.DIRECTIONS).max(1)
    assert np.all(chords > 4.2)  # none along an axis
    np.testing.assert_allclose(-np.log1p(-opacity[:, middle, middle]), 0.2 * chords, rtol=0.05)
    assert (peaks.max((1, 2)) == 7.0).all() and np.isin(peaks, np.float32([0.0, 0.2, 7.0])).all()
    # The shadow of a box: |d| . (4, 4, 4), projected areas of its faces.
    reach = np.arange(-np.sqrt(0.75) * 40, np.sqrt(0.75) * 40 + 1.0)[::2]
    area = np.abs(meshing.DIRECTIONS).sum(1) * 16.0
    np.testing.assert_allclose((peaks > 0).sum((1, 2)) * (0.1 * (reach[1] - reach[0])) ** 2, area, rtol=0.05)
    fine = meshing.projections(np.full((160, 160, 160), 0.2, np.float32), 2.0)[1]
    assert fine.shape[1] < 90
    np.testing.assert_allclose(-np.log1p(-fine.max((1, 2))), 0.2 * chords, rtol=0.05)


def test_solids_have_their_volume_whatever_stands_along_an_axis():
    """Seen along its sides, a box with soft edges seems larger than it is: the threshold goes by other directions."""
    centres = (np.arange(96) + 0.5) / 48 - 1.0
    x, y, z = np.meshgrid(centres, centres, centres, indexing='ij')
    solids = {
        1.04**3: np.maximum(np.maximum(np.abs(x), np.abs(y)), np.abs(z)) - 0.52,
        np.pi * 0.25 * 1.3: np.maximum(np.hypot(x, z) - 0.5, np.abs(y) - 0.65),
    }
    for volume, distance in solids.items():
        grid = (40.0 / (1.0 + np.exp(np.clip(150.0 * distance, -30, 30)))).astype(np.float32)
        threshold = meshing.choose_threshold(grid, 1.0, silent)
        assert threshold > 6.0
        assert meshes.volume(*meshing.surface(grid, threshold, 1.0)) == pytest.approx(volume, rel=0.03)


def test_a_hollow_behind_a_wall_with_a_hole_stays_inside():
    """A box of walls, one of them thin and faint in a spot: at the threshold that the silhouettes ask for, it would be open."""
    grid = np.zeros((64, 64, 64), np.float32)
    grid[12:52, 12:52, 12:52] = 60.0
    grid[16:48, 16:48, 16:48] = 2.0
    grid[12:16, 28:36, 28:36] = 5.0
    lines = []
    threshold = meshing.choose_threshold(grid, 1.0, lines.append)
    assert threshold < 5.0 and 'a hollow inside is open' in lines[0]
    vertices, faces = meshing.surface(meshing.fill_cavities(grid, threshold), threshold, 1.0)
    assert meshes.volume(vertices, faces) == pytest.approx((40 / 32) ** 3, rel=0.08)
    closed = grid.copy()
    closed[12:16, 28:36, 28:36] = 60.0
    assert meshing.choose_threshold(closed, 1.0, silent) > 20.0


def test_haze_and_a_full_box_still_give_a_surface():
    rng = np.random.default_rng(0)
    for grid in (np.full((8, 8, 8), 3.0), np.full((8, 8, 8), 1e-3), 1e-2 * rng.random((16, 16, 16))):
        grid = grid.astype(np.float32)
        vertices, faces = meshing.surface(grid, meshing.choose_threshold(grid, 1.0, silent), 1.0)
        assert len(faces) > 0 and meshes.volume(vertices, faces) > 0


def test_an_empty_mesh_names_the_range_and_a_threshold_that_works(sphere_grid):
    with pytest.raises(ValueError, match='empty at threshold 500') as error:
        meshing.surface(sphere_grid, 500.0, 1.0)
    message = str(error.value)
    assert f'ranges from {sphere_grid.min():.4g} to {sphere_grid.max():.4g}, wanted a threshold above 0 and within' in message
    advice = float(message.split('--threshold ')[1].split(',')[0])
    assert len(meshing.surface(sphere_grid, advice, 1.0)[1]) > 0
    reason = r'the density is 0 at most in the whole grid of 4\^3 cells within \+-1, wanted above 0. Give .* --grid 8 for thin'
    with pytest.raises(ValueError, match=f'the mesh is empty at threshold 1: {reason}'):
        meshing.surface(np.zeros((4, 4, 4), np.float32), 1.0, 1.0)
    with pytest.raises(ValueError, match=f'no object to mesh: {reason}'):
        meshing.choose_threshold(np.zeros((4, 4, 4), np.float32), 1.0, silent)


def test_cavities_are_filled_and_the_outside_is_untouched():
    grid = np.zeros((20, 20, 20), np.float32)
    grid[3:17, 3:17, 3:17] = 10.0
    outside = meshing.surface(grid, 5.0, 1.0)
    grid[6:14, 6:14, 6:14] = 0.0
    grid[9:11, 9:11, 9:11] = 10.0  # something within the hollow goes too
    vertices, faces = meshing.surface(meshing.fill_cavities(grid, 5.0), 5.0, 1.0)
    np.testing.assert_array_equal(vertices, outside[0])
    np.testing.assert_array_equal(faces, outside[1])


def turned_cube(points):
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    return np.abs(points @ turn).max(-1) - 0.5


def test_a_wall_is_found_where_it_stands_and_not_in_the_middle_of_a_cell():
    """A turned cube without soft edges: interpolated vertices are off by half a cell, those of the field's own by a 60th."""
    turn = jnp.asarray(np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0], jnp.float32)

    def field(scene, points):
        return jnp.where(jnp.abs(points @ turn).max(-1) <= 0.5, scene, 0.0), points

    grid = meshing.density_grid(field, jnp.float32(50.0), 1.0, 24)
    rough, faces = meshing.surface(grid, 7.0, 1.0)
    assert np.abs(turned_cube(rough)).max() > 0.3 / 12
    vertices = meshing.refined(field, jnp.float32(50.0), rough, grid >= 7.0, 7.0, 1.0, chunk=512)
    off = np.abs(turned_cube(vertices))
    assert np.quantile(off, 0.99) < 1 / 60 / 12 and off.max() < 0.02 / 12  # those kept from a cell's centre
    moved = np.abs(vertices - rough)
    assert moved.max() < 1 / 12 and (np.sum(moved > 1e-6, 1) <= 1).all()  # along their edges
    assert meshes.volume(vertices, faces) == pytest.approx(1.0, rel=0.02)


def test_crossings_follow_thresholds_of_place_and_leave_the_box_alone():
    """Density falls off in x alone; the threshold is 20 below y = 0 and 5 above."""

    def field(scene, points):
        return 100.0 * jnp.exp(-8.0 * jnp.abs(points[:, 0])), points

    grid = meshing.density_grid(field, jnp.float32(0.0), 1.0, 20)
    levels = np.full(grid.shape, 20.0, np.float32)
    levels[:, 10:] = 5.0
    scaled = grid * (20.0 / levels)
    rough, _ = meshing.surface(scaled, 20.0, 1.0)
    vertices = meshing.refined(field, jnp.float32(0.0), rough, scaled >= 20.0, levels, 1.0, chunk=512)
    inner = np.abs(vertices).max(1) < 0.9
    for some, level in ((vertices[:, 1] < -0.1, 20.0), (vertices[:, 1] > 0.1, 5.0)):
        np.testing.assert_allclose(np.abs(vertices[inner & some, 0]), np.log(100.0 / level) / 8.0, atol=0.1 / 64)
    np.testing.assert_array_equal(vertices[np.abs(rough).max(1) > 0.99], rough[np.abs(rough).max(1) > 0.99])
