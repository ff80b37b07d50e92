"""Legs are kept, fog is left out: solids in closed form whose every density and volume is known."""

import analytic_assets
import jax.numpy as jnp
import numpy as np
import pytest
from closed_meshes import assert_closed

from t3d.export import extraction, meshes
from t3d.geom import meshing, thin_parts

GRID = 96
CELL = 2.0 / GRID
LEGS = 4 * 0.08 * 0.08 * 0.95  # volume


def silent(message):
    pass


def densities(asset, grid=GRID):
    return meshing.density_grid(asset.field, asset.scene, asset.bound, grid)


def surfaces(asset, grid=GRID):
    """(the body's mesh, the mesh with thin parts), each (vertices, faces)."""
    values = densities(asset, grid)
    level_set = extraction.surface(asset, values, log=silent)
    body = extraction.surface(asset, values, threshold=level_set.facts['threshold'], log=silent)
    return tuple((one.vertices, one.faces) for one in (body, level_set))


@pytest.mark.parametrize('leg', [3.6, 4.0])  # opacity of a leg: 25 and 27 %
def test_legs_that_a_render_shows_are_joined_to_the_top(leg):
    (body, faces), (vertices, all_faces) = surfaces(analytic_assets.table(leg))
    assert body[:, 1].min() > 0.2  # one threshold loses them
    assert_closed(vertices, all_faces)
    assert len(np.unique(meshes.components(all_faces, len(vertices)))) == 1
    np.testing.assert_allclose(vertices[:, 1].min(), -0.7, atol=CELL)
    added = meshes.volume(vertices, all_faces) - meshes.volume(body, faces)
    assert added == pytest.approx(LEGS, rel=0.3)  # of four legs of four cells
    # Exactly there: every cell that was added lies in a leg or in the fillet where it meets the top.
    low = vertices[vertices[:, 1] < 0.15]
    assert (np.abs(np.abs(low[:, 0]) - 0.6).max(), np.abs(np.abs(low[:, 2]) - 0.4).max()) < (0.04 + CELL, 0.04 + CELL)
    assert vertices[:, 1].max() == pytest.approx(body[:, 1].max(), abs=0.05 * CELL)  # the top is as it was


def test_the_legs_are_there_at_the_resolution_of_a_finer_grid_too(monkeypatch):
    monkeypatch.setattr(thin_parts, 'MOST', GRID // 2)
    (body, _), (vertices, faces) = surfaces(analytic_assets.table(4.0))
    assert body[:, 1].min() > 0.2 and vertices[:, 1].min() == pytest.approx(-0.7, abs=2 * CELL)
    assert_closed(vertices, faces)


@pytest.mark.parametrize(
    'asset',
    [
        *(analytic_assets.foggy_ball(fog) for fog in (0.2, 0.5, 1.0)),
        analytic_assets.table(0.0, fog=0.4),  # a box of fog under the top
        analytic_assets.table(1.5),  # legs of 11 % opacity
        analytic_assets.table(4.0, gap=0.12),  # rods that end below the top
        analytic_assets.cone_on_cube(),
        analytic_assets.sphere(),
    ],
    ids=['fog .2', 'fog .5', 'fog 1', 'fog under a top', 'faint legs', 'rods not joined', 'cone on cube', 'sphere'],
)
def test_fog_and_what_is_not_joined_stay_out(asset):
    values = densities(asset)
    assert thin_parts.thresholds(values, meshing.choose_threshold(values, 1.0, silent), 1.0) is None


def test_legs_in_fog_are_told_from_it():
    values = densities(analytic_assets.table(4.0, fog=0.4))
    local = thin_parts.thresholds(values, 8.0, 1.0)
    inside = values >= local
    centres = (np.arange(GRID) + 0.5) * CELL - 1.0
    x, y, z = np.meshgrid(centres, centres, centres, indexing='ij')
    legs = (np.abs(np.abs(x) - 0.6) < 0.04) & (np.abs(np.abs(z) - 0.4) < 0.04) & (y > -0.7) & (y < 0.25)
    between = (np.abs(x) < 0.5) & (np.abs(z) < 0.3) & (y < 0.15)
    assert inside[legs].mean() > 0.95 and not inside[between].any() and values[between].max() > 0.39
    assert local.max() == pytest.approx(8.0) and (local >= 1.9).all()  # half of a leg's density


def test_a_threshold_of_ones_own_is_one_level_everywhere():
    asset = analytic_assets.table(4.0)
    values = densities(asset)
    level_set = extraction.surface(asset, values, threshold=8.0, log=silent)
    there = np.asarray(asset.field(asset.scene, jnp.asarray(level_set.vertices))[0])
    assert np.quantile(np.abs(np.log(there / 8.0)), 0.99) < 0.04  # a hundredth of a cell, where density falls by e in a third
    faces = meshes.clean(*meshing.surface(values, 8.0, 1.0), log=silent)[1]
    np.testing.assert_array_equal(level_set.faces, faces)
    assert 'threshold of thin parts' not in level_set.facts


def test_ridges_are_the_largest_density_across():
    """A rod along y whose density falls off across and fades along: its maximum at each height, whatever lies at its end."""
    grid = np.zeros((48, 48, 48), np.float32)
    profile = np.float32([1.0, 3.0, 5.0, 3.0, 1.0])
    heights = np.linspace(1.0, 2.0, 40, dtype=np.float32)
    grid[20:25, :40, 20:25] = np.minimum(profile[:, None, None], profile[None, None]) * heights[None, :, None]
    grid[:, 36:, :] = 90.0
    peaks = thin_parts.ridges(grid, 9, 0.05)
    np.testing.assert_allclose(peaks[22, 5:36, 22], 5.0 * heights[5:36], rtol=1e-6)
    np.testing.assert_allclose(peaks[21, 5:36, 22], 5.0 * heights[5:36], rtol=1e-6)
    assert (peaks[5] == 0).all() and (peaks[:, 36:] == 0).all()  # neither empty space nor the slab at its end
