"""The rasteriser against a loop over pixels, charts that do not overlap, and colours that are the field's."""

import analytic_assets
import numpy as np
import pytest

from t3d.export import extraction, meshes
from t3d.export import texture as textures
from t3d.geom import meshing


def silent(message):
    pass


def slow_coverage(xy, faces, size, depth):
    """Face at each pixel centre by a loop, -1 where there is none."""
    image, nearest = np.full(size, -1), np.full(size, np.inf)
    for index, (a, b, c) in enumerate(xy[faces]):
        matrix = np.array([[*a, 1.0], [*b, 1.0], [*c, 1.0]]).T
        for row in range(size[0]):
            for column in range(size[1]):
                weights = np.linalg.solve(matrix, [column + 0.5, row + 0.5, 1.0])
                z = weights @ depth[faces[index]]
                if weights.min() >= 0 and z < nearest[row, column]:
                    image[row, column], nearest[row, column] = index, z
    return image


@pytest.mark.parametrize('chunk', [2**22, 40])
def test_rasterizer_agrees_with_the_loop(chunk):
    rng = np.random.default_rng(1)
    xy, depth = rng.uniform(-3, 17, (18, 2)), rng.uniform(1, 2, 18)
    faces = np.arange(18).reshape(6, 3)
    pixel, face, weights = textures.rasterize(xy, faces, (12, 14), depth=depth, chunk=chunk)
    image = np.full(12 * 14, -1)
    image[pixel] = face
    np.testing.assert_array_equal(image.reshape(12, 14), slow_coverage(xy, faces, (12, 14), depth))
    centres = np.stack([pixel % 14, pixel // 14], -1) + 0.5
    np.testing.assert_allclose(np.einsum('kf,kfc->kc', weights, xy[faces[face]]), centres, atol=1e-9)
    assert len(np.unique(pixel)) == len(pixel)


def test_rasterizer_of_nothing_visible():
    pixel, _, weights = textures.rasterize(np.full((3, 2), 99.0), np.array([[0, 1, 2]]), (4, 4))
    assert len(pixel) == 0 and weights.shape == (0, 3)


def test_dilation_takes_the_nearest_colour():
    texture, covered = np.zeros((5, 5, 3), np.uint8), np.zeros((5, 5), bool)
    texture[0, 0], texture[4, 4] = 10, 20
    covered[0, 0] = covered[4, 4] = True
    filled = textures.dilate(texture, covered)
    assert filled[1, 1, 0] == 10 and filled[3, 4, 0] == 20 and (filled > 0).all()


@pytest.fixture(scope='module')
def sphere():
    asset = analytic_assets.sphere(0.6)
    densities = meshing.density_grid(asset.field, asset.scene, 1.0, 64)
    mesh, _ = extraction.extract(asset, densities, faces=3000, log=silent)
    lines, mesh = [], meshes.creased(mesh)
    return mesh, textures.bake(asset, mesh, 256, step=2.0 / 64, log=lines.append), lines


def test_unwrapping_keeps_the_mesh_and_charts_do_not_overlap(sphere):
    mesh, baked, lines = sphere
    np.testing.assert_allclose(np.sort(baked.vertices[baked.faces], axis=1), np.sort(mesh.vertices[mesh.faces], axis=1))
    assert baked.uv.min() >= 0.0 and baked.uv.max() <= 1.0
    corners = baked.uv[baked.faces].astype(np.float64) * 256
    edges = corners[:, 1:] - corners[:, :1]
    area = 0.5 * np.abs(edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0]).sum()
    pixels = len(textures.rasterize(corners.reshape(-1, 2), np.arange(len(corners) * 3).reshape(-1, 3), (256, 256))[0])
    assert pixels == pytest.approx(area, rel=0.02)  # texels under several triangles would be counted once only
    assert any('about' in line for line in lines) and any('charts' in line for line in lines)


def test_texture_has_the_colour_of_the_field_everywhere_seams_included(sphere):
    _, baked, _ = sphere
    rng = np.random.default_rng(0)
    weights = rng.dirichlet([0.3] * 3, len(baked.faces))  # corners and edges of triangles, where seams would show
    points = np.einsum('kf,kfc->kc', weights, baked.vertices[baked.faces])
    expected = 255.0 * (0.5 + 0.5 * points / np.linalg.norm(points, axis=-1, keepdims=True))
    colours = bilinear(baked.texture, np.einsum('kf,kfc->kc', weights, baked.uv[baked.faces]))
    error = np.abs(colours - expected).max(-1)
    assert np.percentile(error, 99) < 4.0 and np.percentile(error, 99.9) < 12.0


def bilinear(texture, uv):
    """The lookup a viewer does: linear, v upwards, texel centres at half integers."""
    size = texture.shape[0]
    at = np.clip((uv * [1, -1] + [0, 1]) * size - 0.5, 0, size - 1 - 1e-6)
    low = at.astype(int)
    part = at - low
    high = np.minimum(low + 1, size - 1)
    rows = [texture[r, low[:, 0]] * (1 - part[:, :1]) + texture[r, high[:, 0]] * part[:, :1] for r in (low[:, 1], high[:, 1])]
    return rows[0] * (1 - part[:, 1:]) + rows[1] * part[:, 1:]


def test_surface_colours_look_through_transparent_air():
    import jax.numpy as jnp

    def field(scene, points):
        inside = points[:, 2] < scene
        return jnp.where(inside, 500.0, 0.0), jnp.where(inside[:, None], jnp.array([0.0, 1.0, 0.0]), jnp.array([1.0, 0.0, 0.0]))

    asset = analytic_assets.asset('a slab', field)._replace(scene=jnp.float32(-0.05))
    inward = np.array([[0.0, 0.0, -1.0]])
    for z in (0.0, -0.04, -0.2):
        colors = textures.surface_colors(asset, np.array([[0.1, 0.2, z]]), inward, step=0.02)
        np.testing.assert_array_equal(colors, [[0, 255, 0]])
    empty = textures.surface_colors(asset, np.array([[0.0, 0.0, 0.9]]), inward, step=0.02)
    np.testing.assert_array_equal(empty, [[255, 0, 0]])
