"""Supervision by rays: which are drawn, what is true along them, and what a field that is exact loses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_instant3d

from t3d import systems
from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.core.numerics import softplus
from t3d.data import sources
from t3d.data.sets import shapes, toy
from t3d.geom import cameras, solids
from t3d.inference import loading
from t3d.systems import instant3d_supervision_rays as supervision
from t3d.train import loop

SMALL = (*test_instant3d.SMALL, 'data.views=2', 'render.importance=4', 'preview.size=16', 'preview.rows=2', 'preview.views=2')
PIXELS = ('rays.truth=pixels', 'data.supersample=1')
OPAQUE = 3000.0  # density of the exact field within solids


def chosen(*overrides):
    return sources.resolve(configs.load('configs/instant3d.py:scenes_rays', [*SMALL, *overrides]))


def a_batch(config, first=1):
    """The scenes from record `first` on: a pair, a pair, a single one."""
    source, transform = sources.make(config, None, supervision.batch_spec(config))
    rows = [transform(source[first + k], np.random.default_rng(k)) for k in range(config.batch)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def scenes_of(config, first=1):
    source = toy.open_solids(config.data, 'train')
    return [source.scene(first + k) for k in range(config.batch)]


class Exact:
    """A model whose field is the solids themselves, each in one colour; its scene is their table."""

    def __init__(self, tables, wrong=0.0):
        self.tables, self.wrong = jnp.asarray(tables), wrong

    def scene(self, params, ids, key):
        return {}

    def raw_field(self, scene):
        def field(points, directions=None):
            which = solids.inside(self.tables, points)
            own = jnp.take_along_axis(self.tables[..., 6:9], jnp.maximum(which, 0)[..., None], axis=-2)
            return jnp.where(which >= 0, OPAQUE, -30.0), own + self.wrong

        return field

    def density(self, raw):
        return softplus(raw)


def losses(config, model, batch, seed=0):
    return jax.jit(supervision.loss_fn(config, model))({'field': {'alpha': jnp.float32(1.0)}}, batch, jax.random.key(seed))


FLAT = np.array([1.0, 0.0, 0.0, 0.0, 1.0, 0.0], np.float32)  # a lamp without shades: the colour of a solid is its own


def test_a_field_that_is_exact_loses_nothing_but_what_sampling_costs():
    config = chosen('batch=3', 'loss.rays=200', 'render.samples=24', 'rays.samples=24')
    batch = {**a_batch(config), 'lamp': np.broadcast_to(FLAT, (3, 6))}
    total, metrics = losses(config, Exact(batch['solids']), batch)
    assert metrics['psnr'] > 27.0 and metrics['loss/depth'] < 0.1 * 0.01 and metrics['loss/mask'] < 0.1 * 0.003
    assert metrics['loss/surface'] < 1e-10 and metrics['loss/solid'] < 0.1 * 0.003
    np.testing.assert_allclose(total, sum(metrics[f'loss/{name}'] for name in ('rgb', 'mask', 'solid', 'depth', 'surface')))
    assert metrics['count/rays'] == 3 * 2 * 200
    _, off = losses(config, Exact(batch['solids'], wrong=0.1), batch)
    np.testing.assert_allclose(off['loss/surface'], 0.3 * 0.01, rtol=1e-3)  # the weight times 0.1 squared
    moved = np.array(batch['solids'])
    moved[..., 1] += 0.05
    _, beside = losses(config, Exact(moved), batch)
    assert beside['psnr'] < metrics['psnr'] - 5.0 and beside['loss/solid'] > 20 * metrics['loss/solid']
    assert beside['loss/depth'] > 2 * metrics['loss/depth'] and beside['loss/mask'] > 2 * metrics['loss/mask']


@pytest.mark.parametrize('overrides', [(), ('loss.depth=0.0',)])
def test_the_same_holds_of_rays_through_pixels(overrides):
    config = chosen('batch=3', *PIXELS, 'data.size=64', 'loss.rays=200', 'render.samples=48', 'rays.samples=24', *overrides)
    scenes = scenes_of(config)
    tables = np.stack([shapes.table(scene) for scene in scenes])
    batch = a_batch(config)
    _, metrics = losses(config, Exact(tables), batch)
    moved = np.array(tables)
    moved[..., 1] += 0.05
    _, beside = losses(config, Exact(moved), batch)
    assert beside['loss/solid'] > 100 * metrics['loss/solid'] and beside['loss/mask'] > 2 * metrics['loss/mask']
    assert metrics['loss/solid'] < 1e-3 and metrics['loss/mask'] < 0.1 * 0.005
    assert ('loss/depth' in metrics) == (not overrides)
    if not overrides:
        assert metrics['loss/depth'] < 0.1 * 0.01 and beside['loss/depth'] > 2 * metrics['loss/depth']


def test_rays_in_closed_form_are_true_and_lie_where_they_are_asked_for():
    config = chosen('batch=3', 'loss.rays=64', 'loss.edges=0.4', 'loss.foreground=0.4')
    batch = a_batch(config)
    truth = jax.jit(lambda batch, key: supervision.of_solids(config, batch, key)[:5])(batch, jax.random.key(0))
    rays, colour, mask, distance, guide = jax.device_get(truth)
    assert colour.shape == (3, 128, 3) and mask.shape == distance.shape == guide.shape == (3, 128)
    for k, scene in enumerate(scenes_of(config)):
        origins, directions = np.float64(rays.origins[k]), np.float64(rays.directions[k])
        true, normal, which = shapes.cast(scene, origins, directions)
        same = (which >= 0) == (mask[k] > 0)
        assert same.mean() > 0.97
        np.testing.assert_allclose(distance[k][same], true[same], atol=1e-3)
        lit = np.where((which >= 0)[:, None], shapes.shade(shapes.palette(scene)[which], normal), 0.0)
        assert np.mean(np.abs(lit[same] - colour[k][same]).max(-1) > 0.01) < 0.03
        for view in range(2):  # every ray belongs to a camera of its scene
            np.testing.assert_allclose(
                origins[64 * view : 64 * (view + 1)],
                np.broadcast_to(batch['world_from_cam'][k, view, :3, 3], (64, 3)),
                atol=1e-6,
            )
        beside = nearest_change(scene, origins, directions, 0.006 / 1.3)
        assert 0.3 < beside.mean() < 0.75
    assert 0.45 < mask.mean() < 0.85
    np.testing.assert_array_equal(guide[np.isfinite(distance)], distance[np.isfinite(distance)])
    assert np.all(np.isfinite(guide))


def nearest_change(scene, origins, directions, angle):
    """Which rays see another object or face when they are turned a little to some of eight sides."""
    right = np.cross(directions, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    up = np.cross(right, directions)
    _, normal, which = shapes.cast(scene, origins, directions)
    changed = np.zeros(len(origins), bool)
    for turn in np.arange(8) * np.pi / 4:
        other = directions + angle * (np.cos(turn) * right + np.sin(turn) * up)
        other /= np.linalg.norm(other, axis=-1, keepdims=True)
        _, other_normal, other_which = shapes.cast(scene, origins, other)
        changed |= (which != other_which) | ((which >= 0) & (np.sum(normal * other_normal, -1) < 0.95))
    return changed


def test_candidates_are_aimed_at_every_object_there_is():
    scene = shapes.pair(('cube', 'red'), 'to the left of', ('sphere', 'green'))
    tables = np.stack([shapes.table(scene), shapes.table(shapes.single('cone', 'blue', 'small'))])
    view = toy.camera_arrays(np.array([0.0]), np.array([0.2]), shapes.RADIUS, shapes.FOV)
    views = cameras.Cameras(*(np.broadcast_to(part, (2, *part.shape)) for part in view))
    uv = np.asarray(supervision.aimed(jax.random.key(0), views, tables, 500))
    assert uv.shape == (2, 1, 500, 2) and uv.min() > 0.0 and uv.max() < 1.0
    rays = jax.vmap(jax.vmap(cameras.rays_at))(views, uv)
    which = np.asarray(solids.trace(tables[:, None], rays).which)[:, 0]
    assert [np.mean(which[0] == k) > 0.2 for k in (0, 1)] == [True, True]
    assert np.mean(which[1] == 0) > 0.3 and which[1].max() == 0


def test_a_choice_follows_its_mass():
    mass = np.array([[0.0, 1.0, 3.0, 0.0, 4.0], [1.0, 0.0, 0.0, 0.0, 0.0]], np.float32)
    count = 4000
    index = np.asarray(supervision.stratified_choice(jax.random.key(0), mass, count))
    shares = np.stack([np.bincount(row, minlength=5) / count for row in index])
    np.testing.assert_allclose(shares, mass / mass.sum(-1, keepdims=True), atol=2e-3)
    u = (np.arange(count) + np.asarray(jax.random.uniform(jax.random.key(0), (2, count), jnp.float32))) / count
    for k in range(2):
        np.testing.assert_array_equal(index[k], np.searchsorted(np.cumsum(mass[k]), u[k] * mass[k].sum(), side='right'))


def test_samples_are_sorted_and_half_of_them_stand_about_the_surface():
    config = chosen('batch=2', 'rays.spread=0.05', 'render.samples=10', 'rays.samples=6')
    truth = supervision.of_solids(config, a_batch(config), jax.random.key(0))
    depths = np.asarray(supervision.depths_of(config, None, None, truth, jax.random.key(1)))
    assert depths.shape == (2, 16, 32) and np.all(np.diff(depths, axis=1) >= 0.0)
    hit = np.isfinite(truth.distance)
    close = np.abs(depths - np.asarray(truth.guide)[:, None]) <= 0.05 + 1e-5
    assert np.all(close.sum(1)[hit] >= 6) and np.all(close.sum(1)[hit] <= 8)
    before = (depths < np.asarray(truth.distance)[:, None]).sum(1)
    assert np.all(before[hit] >= 3)


def test_occupancy_is_the_cross_entropy_of_an_opacity():
    optical = np.array([0.0, 1e-3, 0.5, 3.0, 50.0], np.float32)
    alpha = -np.expm1(-np.maximum(np.float64(optical), 1e-6))
    np.testing.assert_allclose(supervision.occupancy(optical, np.ones(5, bool)), -np.log(alpha), rtol=1e-5)
    np.testing.assert_allclose(supervision.occupancy(optical, np.zeros(5, bool)), np.maximum(optical, 1e-6), rtol=1e-5)
    slopes = jax.vmap(jax.grad(supervision.occupancy), (0, None))(jnp.asarray(optical), True)
    assert np.all(np.isfinite(slopes)) and np.all(np.asarray(slopes)[1:] <= 0.0)


def test_pixels_say_what_lies_on_their_rays_and_no_more():
    config = chosen('batch=3', *PIXELS, 'data.size=32', 'loss.rays=100', 'loss.skin=0.03')
    truth = supervision.of_pixels(config, a_batch(config), jax.random.key(0))
    tables = np.stack([shapes.table(scene) for scene in scenes_of(config)])
    depths = jnp.broadcast_to(jnp.linspace(2.0, 4.5, 200)[None, :, None], (3, 200, 200))
    points = truth.rays.origins[:, None] + depths[..., None] * truth.rays.directions[:, None]
    within, known, own = (np.asarray(each) for each in truth.solid(points, depths))
    true = np.asarray(solids.inside(tables, points.reshape(3, -1, 3))).reshape(depths.shape) >= 0
    assert np.mean(within[known] != true[known]) < 2e-3  # a step of the depths is .0126
    beyond = depths > np.asarray(truth.distance)[:, None] + 0.03
    assert not known[np.asarray(beyond)].any() and 0.5 < known.mean() < 0.95
    np.testing.assert_array_equal(own, within)
    without = supervision.of_pixels(config, {k: v for k, v in a_batch(config).items() if k != 'depth'}, jax.random.key(0))
    assert without.distance is None and without.guide is None
    within, known, own = without.solid(points, depths)
    np.testing.assert_array_equal(known, np.broadcast_to((np.asarray(truth.mask) == 0.0)[:, None], depths.shape))
    assert not np.any(within) and not np.any(own)


def test_a_run_stopped_between_batches_ends_like_one_that_was_not(tmp_path):
    config = chosen('steps=4', 'preview_every=0', 'checkpoint.every=2', 'export.prompts=()', 'evaluate=()', 'mesh.data=1')
    whole, halves = (loop.run(config, tmp_path / 'whole', log=silent), tmp_path / 'halves')
    loop.run(config, halves, stop_after=2, log=silent)
    loop.run(config, halves, log=silent)
    one, two = (jax.tree.leaves(loading.load(folder).weights) for folder in (whole, halves))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (whole / 'previews' / '00000004.png').exists()


def silent(line):
    pass


def test_what_does_not_fit_is_refused():
    make = lambda *overrides: systems.make(chosen(*overrides))
    for overrides, message in (
        (('rays.truth=solid',), "unknown truth of rays (rays.truth) 'solid'. Did you mean 'solids'? Known: solids, pixels."),
        (
            ('loss.edges=0.7', 'loss.foreground=0.4'),
            'loss.edges=0.7 and loss.foreground=0.4 are shares of the rays: together at most 1. Nearest: loss.foreground=0.3.',
        ),
    ):
        with pytest.raises(UsageError) as error:
            make(*overrides)
        assert message in str(error.value)
    with pytest.raises(
        UsageError, match="supervision='rays' reads the section 'rays': start from configs/instant3d.py:scenes_ra"
    ):
        systems.make(sources.resolve(configs.load('configs/instant3d.py:tiny', ['supervision=rays'])))
