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
    silhouettes = meshing.opacity_silhouettes(sphere_grid, 1.0) > 0.5
    for axis in range(3):
        mesh = sphere_grid.max(axis) >= threshold
        assert np.sum(mesh & silhouettes[axis]) / np.sum(mesh | silhouettes[axis]) > 0.98


def test_opacity_of_a_constant_density_is_beer_lambert():
    silhouettes = meshing.opacity_silhouettes(np.full((8, 8, 8), 1.5, np.float32), 2.0)
    np.testing.assert_allclose(silhouettes, 1.0 - np.exp(-1.5 * 4.0), rtol=1e-6)


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
