"""Smooth views: means of rays where pictures change, beside a naive loop over many rays; the rest as by one ray."""

import analytic_assets
import numpy as np
import pytest

from t3d.core.outputs import Field
from t3d.export import renders, video
from t3d.geom import cameras, meshing
from t3d.geom.volume import RenderOutput

SIZE = 40


def many_rays(asset, views, size, side=9):
    """Means of side x side rays of each pixel, all of them, one place after the other."""
    matrices, lenses = np.asarray(views.world_from_cam), np.asarray(views.intrinsics)
    pixels, total = np.arange(len(matrices) * size * size), 0.0
    for y in range(side):
        for x in range(side):
            place = ((x + 0.5) / side - 0.5, (y + 0.5) / side - 0.5)
            out = asset.render(asset.scene, renders.pixel_rays(matrices, lenses, pixels, (size, size), place))
            total = total + np.concatenate([out.features, out.opacity[:, None]], -1) / side**2
    return total.reshape(len(matrices), size, size, 4)


@pytest.mark.parametrize('make', [analytic_assets.sphere, analytic_assets.cone_on_cube, analytic_assets.arrows])
def test_edges_are_nearer_to_the_mean_of_many_rays(make):
    asset = make()
    views = video.orbit(asset, 2)
    true = many_rays(asset, views, SIZE)
    plain, smooth = renders.render_views(asset, views, SIZE), renders.smooth_views(asset, views, SIZE)
    for name, wanted in (('rgb', true[..., :3]), ('opacity', true[..., 3])):
        before = np.mean(np.square(getattr(plain, name) - wanted))
        assert np.mean(np.square(getattr(smooth, name) - wanted)) < 0.12 * before


def test_only_pixels_that_change_are_traced_again():
    asset = analytic_assets.cone_on_cube()
    views, counted = video.orbit(asset, 2), []

    def render(scene, rays):
        counted.append(rays.origins.shape)
        return asset.render(scene, rays)

    plain, smooth = renders.render_views(asset, views, SIZE), renders.smooth_views(asset._replace(render=render), views, SIZE)
    changing = renders.changing(np.concatenate([plain.rgb, plain.opacity[..., None]], -1))
    assert 0.02 < changing.mean() < 0.4 and len(counted) == 1  # one program for all passes
    for name in ('rgb', 'opacity', 'depth'):
        a, b = getattr(plain, name), getattr(smooth, name)
        np.testing.assert_array_equal(a[~changing], b[~changing])
        assert (a != b)[changing].mean() > (0.1 if name == 'depth' else 0.3)


def test_changing_pixels_are_those_of_a_loop():
    images = np.random.default_rng(0).choice([0.0, 0.02, 0.03], (2, 7, 9, 3), p=[0.9, 0.05, 0.05])
    expected = np.zeros(images.shape[:3], bool)
    for view, y, x in np.ndindex(expected.shape):
        near = images[view, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        expected[view, y, x] = np.abs(near - images[view, y, x]).max() > 6 / 255
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(renders.changing(images), expected)


def test_depth_is_of_what_the_rays_hit():
    """A plane that covers the left of a picture up to the middle of a column: its depth there, where the centre may miss."""

    def render(scene, rays):
        hit = rays.directions[..., 0] < scene['edge']
        depth = np.float32(2.0) * hit
        return RenderOutput(1.0 - hit[..., None] * np.ones(3, np.float32), 1.0 * hit, depth, None)

    views = cameras.orbit(np.zeros(1), 0.0, 3.0, 0.7)
    place, poses = np.array([22]), (np.asarray(views.world_from_cam), np.asarray(views.intrinsics))  # column 4, row 2
    column = renders.pixel_rays(*poses, place, (9, 9), (0.3, 0.0))
    asset = Field('', {'edge': np.float32(column.directions[0, 0] - 1e-6)}, None, render, 1.0, {'radius': 3.0, 'fov': 0.7})
    smooth = renders.smooth_views(asset, views, 9)
    middle = smooth.opacity[0, :, 4]  # of a row of nine: three of five rays lie left of + 0.3, or four
    assert np.all((middle > 0.5) & (middle < 1.0))
    np.testing.assert_array_equal(smooth.depth[0, :, 5:], 0.0)
    np.testing.assert_allclose(smooth.depth[0, :, :5], 2.0, rtol=1e-6)
    np.testing.assert_allclose(smooth.rgb[0, :, 4], 1.0 - middle[:, None] * np.ones(3), atol=1e-6)


def test_depth_of_a_part_before_another_stays_its_own():
    """A wall at 2 before one at 3: nowhere is a depth between them, where there is nothing."""

    def render(scene, rays):
        near = rays.directions[..., 0] < scene['edge']
        return RenderOutput(np.ones(3, np.float32) * near[..., None], 1.0 + 0.0 * near, 3.0 - 1.0 * near, None)

    views = cameras.orbit(np.zeros(1), 0.0, 3.0, 0.7)
    asset = Field('', {'edge': np.float32(0.02)}, None, render, 1.0, {'radius': 3.0, 'fov': 0.7})
    smooth = renders.smooth_views(asset, views, 9)
    assert set(np.unique(smooth.depth)) == {2.0, 3.0}
    assert len(np.unique(smooth.rgb)) > 2  # colours are means


def test_pictures_of_a_system_stay_as_they_are():
    asset = analytic_assets.sphere()
    views = video.orbit(asset, 2)
    shown = asset._replace(picture=lambda scene, views: np.full((2, 8, 8, 3), 0.25, np.float32))
    np.testing.assert_array_equal(renders.smooth_views(shown, views, 16).rgb, 0.25)


def test_with_a_grid_the_pictures_are_those_without():
    asset = analytic_assets.cone_on_cube()
    views = video.orbit(asset, 2)
    grid = meshing.density_grid(asset.field, asset.scene, asset.bound, 64)
    every, some = renders.smooth_views(asset, views, SIZE), renders.smooth_views(asset, views, SIZE, grid=grid)
    assert np.abs(every.rgb - some.rgb).max() < 2 / 255
