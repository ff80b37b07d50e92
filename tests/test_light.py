"""The light of the data divided out of a mesh's colours: what is left is the albedo, where the light is known."""

import json

import analytic_assets
import jax.numpy as jnp
import numpy as np
import pytest
import small_triplanes
import trimesh
from ml_collections import ConfigDict

from t3d import cli, python
from t3d.core.errors import UsageError
from t3d.core.system import System, anything
from t3d.data import sets
from t3d.data.sets import raycast, shapes
from t3d.export import extraction
from t3d.geom import meshing
from t3d.inference import loading, publish

ALBEDO = np.array([0.86, 0.5, 0.12])


def lit(shape):
    """A solid of one albedo whose field shows it under the light of the procedural shapes, and its exact normals."""

    def normal(points):
        if shape == 'sphere':
            return points / jnp.maximum(jnp.linalg.norm(points, axis=-1, keepdims=True), 1e-6)
        return jnp.eye(3)[jnp.argmax(jnp.abs(points), -1)] * jnp.sign(points)

    def field(scene, points):
        size = jnp.linalg.norm(points, axis=-1) if shape == 'sphere' else jnp.abs(points).max(-1)
        density = 60.0 / (1.0 + jnp.exp(jnp.clip(150.0 * (size - 0.6), -30.0, 30.0)))
        n = normal(points)
        light = shapes.AMBIENT + shapes.SKY * n[:, 1] + shapes.KEY * jnp.maximum(n @ jnp.asarray(shapes.LIGHT), 0.0)
        return density, light[:, None] * jnp.asarray(ALBEDO)

    return analytic_assets.asset(f'a lit {shape}', field)


def silent(message):
    pass


@pytest.mark.parametrize('shape', ['sphere', 'cube'])
@pytest.mark.parametrize('texture', [128, 0])
def test_the_light_of_a_lit_solid_is_divided_out(shape, texture):
    asset = lit(shape)
    values = meshing.density_grid(asset.field, asset.scene, asset.bound, 64)
    level_set = extraction.surface(asset, values, log=silent)

    def colours(light):
        """At points of the mesh away from the edges of the cube."""
        rng = np.random.default_rng(0)
        if texture:
            mesh = extraction.textured(asset, level_set, most=10_000, texture=texture, light=light, log=silent)
        else:
            mesh, _ = extraction.coloured(asset, level_set, most=10_000, light=light, log=silent)
        corners = mesh.vertices[mesh.faces]
        area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1)
        face, weights = rng.choice(len(mesh.faces), 4000, p=area / area.sum()), rng.dirichlet([1.0] * 3, 4000)
        points = np.einsum('pk,pkc->pc', weights, corners[face])
        inner = np.sort(np.abs(points), -1)[:, 1] < 0.5 if shape == 'cube' else np.ones(4000, bool)
        if not texture:
            return np.einsum('pk,pkc->pc', weights, mesh.colors[mesh.faces[face]].astype(float))[inner]
        uv = np.einsum('pk,pkc->pc', weights, mesh.uv[mesh.faces[face]])
        at = np.clip((uv * [1, -1] + [0, 1]) * texture, 0, texture - 1).astype(int)
        return mesh.texture[at[:, 1], at[:, 0]].astype(float)[inner]

    baked, removed = colours(None), colours(sets.light('toy'))
    assert np.ptp(baked[:, 0]) > 80  # from 0.4 to 1 of the albedo
    off = np.abs(removed - 255.0 * ALBEDO).max(-1)
    assert np.median(off) < 3.0 and np.quantile(off, 0.95) < 12.0


def test_the_light_of_the_sets_is_what_their_pictures_are_made_with():
    normals = np.random.default_rng(0).normal(size=(64, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    for name in ('toy', 'toy_patterns', 'toy_marked', 'furniture'):
        np.testing.assert_allclose(sets.light(name)(normals), raycast.shade(normals), atol=1e-6)
        np.testing.assert_allclose(
            shapes.shade(np.full((64, 3), 0.9), normals) / 0.9, sets.light(name)(normals)[:, None] * np.ones(3)
        )
    assert [sets.light(name) for name in ('posed', 'triplanes', 'prompts', 'eg3d', '')] == [None] * 5


@pytest.mark.parametrize(
    ('data', 'light', 'message'),
    [
        ({'name': 'posed'}, 'removed', 'my_system does not know the light of the pictures of its data set posed. Leave it out'),
        ({}, 'removed', 'my_system does not know the light of what it learned, for it has no data set. Leave it out'),
        ({'name': 'toy'}, 'remove', "Did you mean 'removed'"),
    ],
)
def test_a_light_that_is_not_known_is_refused(data, light, message):
    with pytest.raises(UsageError, match=message):
        publish.check(ConfigDict({'system': 'my_system', 'data': data}), light)


def test_planes_of_a_generator_have_the_light_of_its_set(capsys):
    """Stage 2 learned planes alone: its light is that of the pictures that stage 1 was trained on."""
    planes = ConfigDict({'system': 'my_system', 'data': {'name': 'triplanes'}})
    assert publish.light_of(planes, 'removed', small_triplanes.given()) is sets.light('toy')
    publish.check(planes, 'removed', small_triplanes.given())
    for given in ({}, small_triplanes.given(data__name='posed')):
        with pytest.raises(UsageError, match='does not know the light of the pictures of its data set (triplanes|posed)'):
            publish.light_of(planes, 'removed', given)
    asked = ['generate', 'a red cube', '--run', 'ganfusion_diffusion-toy', '--light', 'removed', '--dry-run']
    assert cli.main(asked) == 0
    assert 'light = removed' in capsys.readouterr().out


def test_an_asset_is_saved_with_its_light_removed_on_the_floor(tmp_path):
    asset = lit('sphere')
    system = System(None, None, None, lambda weights, asked, keys, given: [asset], anything, (), (), {})
    loaded = loading.Loaded(ConfigDict({'system': 'my_system', 'data': {'name': 'toy'}}), system, {}, 'mine', 0)
    options = {'texture': 0, 'grid': 32, 'frames': 0, 'render_size': 32, 'formats': ('ply',)}
    means = {}
    for light in ('baked', 'removed'):
        python.Asset(asset, loaded).save(tmp_path / light, light=light, origin='floor', height=2.0, **options)
        means[light] = np.mean(trimesh.load(tmp_path / light / 'mesh.ply').visual.vertex_colors[:, :3], 0)
        (alone,) = publish.mesh_files(loaded, [asset.prompt], tmp_path / light / 'alone', light=light, log=silent, **options)
        assert alone.read_bytes() != (tmp_path / light / 'mesh.ply').read_bytes()  # that one stands on the floor
    np.testing.assert_allclose(means['removed'], 255.0 * ALBEDO, atol=3.0)
    assert (means['baked'] < 0.8 * means['removed']).all()
    known = json.loads((tmp_path / 'removed/mesh.json').read_text())
    assert known['colours'] == 'sRGB, the light of the data divided out' and known['frame'].startswith(
        'y up, front +z, base at'
    )
    with pytest.raises(UsageError, match="option of save.*'light'"):
        python.Asset(asset, loaded).save(tmp_path, lights='removed')
