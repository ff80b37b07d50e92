"""Supervision of captions with many objects: which noise learns, what it is compared with, what is kept, and codes."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_instant3d_rays
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from t3d import systems
from t3d.core import config as configs
from t3d.core import replicas
from t3d.core.errors import UsageError
from t3d.core.numerics import softplus
from t3d.data import sources
from t3d.data.sets import open_captions, shapes
from t3d.geom.rays import Rays
from t3d.systems import instant3d_supervision_rays as by_rays
from t3d.systems import instant3d_supervision_seeds as seeds

SMALL = (*test_instant3d_rays.SMALL, 'seeds.draws=3', 'seeds.rays=8', 'data.split=test', 'data.count=8')
BATCH, VIEWS, RAYS, DRAWS = 8, 2, 6, 4
CONFIG = SimpleNamespace(
    noise=1.0,
    data=SimpleNamespace(views=VIEWS, count=5),
    render=SimpleNamespace(samples=4),
    rays=SimpleNamespace(truth='drawn', samples=3, spread=0.3),
    loss=SimpleNamespace(mask=0.2, solid=0.0, thickness=0.02, rays=RAYS),
    seeds=SimpleNamespace(draws=DRAWS, every=2, rays=3),
    decoder=SimpleNamespace(style_width=DRAWS),
)


class Answers:
    """A model of a ball for each noise: noise k is the k-th unit vector, colour and density are rows of the parameters."""

    def noise(self, key, count):
        return jnp.repeat(jnp.eye(DRAWS), count // DRAWS, axis=0)  # noise k of every row, then the next

    def features(self, params, ids):
        return params['shift'] + 0.0 * ids[..., None]

    def scene_from_features(self, params, features, noise):
        return {'colour': noise @ params['colour'] + features[:, 0], 'raw': noise @ params['raw']}

    def raw_field(self, scene):
        def field(points, directions=None):
            inside = jnp.linalg.norm(points, axis=-1) < 0.8
            colour = jnp.broadcast_to(scene['colour'][:, None], points.shape)
            return jnp.where(inside, scene['raw'][:, None], -9.0), colour * (1.0 + 0.1 * points)

        return field

    def density(self, raw):
        return softplus(raw)


def truth_of(batch, key):
    """Rays and colours that lie in the batch."""
    return a_truth()._replace(**{name: batch[name] for name in ('rays', 'colour', 'mask', 'guide')})


BY = seeds.Comparison(
    truth_of,
    lambda truth: by_rays.fewer(truth, VIEWS, CONFIG.seeds.rays),
    functools.partial(by_rays.apart, CONFIG, Answers()),
    functools.partial(by_rays.compare, CONFIG, Answers()),
)


def a_truth(seed=0):
    random = np.random.default_rng(seed)
    origins = np.broadcast_to(np.array([0.1, 0.2, 3.0], np.float32), (BATCH, VIEWS * RAYS, 3))
    directions = random.normal(0.0, 0.12, origins.shape) - [0.0, 0.0, 1.0]
    directions = (directions / np.linalg.norm(directions, axis=-1, keepdims=True)).astype(np.float32)
    mask = random.uniform(0.3, 1.0, origins.shape[:2]).astype(np.float32)
    guide = random.uniform(2.3, 3.6, mask.shape).astype(np.float32)
    colour = np.broadcast_to(random.uniform(0.0, 1.0, (BATCH, 1, 3)), origins.shape).astype(np.float32)
    none = lambda points, depths: (jnp.zeros(depths.shape, bool),) * 3
    return by_rays.Truth(Rays(origins, directions), colour, mask, None, guide, none)


def parameters(seed=1):
    random = np.random.default_rng(seed)
    rows = {
        'colour': random.uniform(0.0, 1.0, (DRAWS, 3)),
        'raw': random.uniform(-1.0, 4.0, DRAWS),
        'shift': np.zeros((1, 1, 1)),
    }
    return {**jax.tree.map(jnp.float32, rows), 'field': {'alpha': jnp.float32(1.0)}}


def naive_distances(params, truth, key):
    """[M, B] by loops over noises, rows, rays and samples, in float64."""
    key_depths, key_background = jax.random.split(key)
    depths = np.float64(by_rays.depths_of(CONFIG, None, None, truth, key_depths))
    background = np.float64(jax.random.uniform(key_background, (BATCH, VIEWS, 1, 3), jnp.float32))
    count = truth.mask.shape[1]
    found = np.zeros((DRAWS, BATCH))
    for m in range(DRAWS):
        for b in range(BATCH):
            for r in range(count):
                t = depths[b, :, r]
                points = truth.rays.origins[b, r] + t[:, None] * np.float64(truth.rays.directions[b, r])
                raw = np.where(np.linalg.norm(points, axis=-1) < 0.8, np.float64(params['raw'][m]), -9.0)
                colour = np.float64(params['colour'][m]) * (1.0 + 0.1 * points)
                seen, through, opacity = np.zeros(3), 1.0, 0.0
                for k in range(len(t) - 1):
                    optical = np.log1p(np.exp(0.5 * (raw[k] + raw[k + 1]))) * (t[k + 1] - t[k])
                    weight = through * -np.expm1(-optical)
                    seen, opacity, through = (
                        seen + weight * 0.5 * (colour[k] + colour[k + 1]),
                        opacity + weight,
                        through - weight,
                    )
                behind = background[b, r * VIEWS // count, 0]
                true = truth.colour[b, r] * truth.mask[b, r] + behind * (1.0 - truth.mask[b, r])
                error = np.mean((seen + behind * (1.0 - opacity) - true) ** 2)
                found[m, b] += (error + CONFIG.loss.mask * (opacity - truth.mask[b, r]) ** 2) / count
    return found


def test_the_noise_that_learns_is_the_one_that_a_loop_over_noises_finds():
    truth, params, model, key = by_rays.fewer(a_truth(), VIEWS, 3), parameters(), Answers(), jax.random.key(3)
    noises = seeds.drawn(CONFIG, model, key, BATCH)
    np.testing.assert_array_equal(noises[2, 5], [0.0, 0.0, 1.0, 0.0])
    features = model.features(params, jnp.zeros((BATCH, 1)))
    found = seeds.distances(model, BY, params, features, noises, truth, key)
    naive = naive_distances(params, truth, key)
    np.testing.assert_allclose(found, naive, rtol=1e-4)
    assert len(set(naive.argmin(0))) > 1
    np.testing.assert_array_equal(seeds.chosen(noises, found), np.eye(DRAWS)[naive.argmin(0)])
    np.testing.assert_array_equal(seeds.chosen(noises, jnp.zeros((DRAWS, BATCH))), noises[0])


def test_rays_to_compare_by_are_spread_over_each_view():
    truth = a_truth()
    some = by_rays.fewer(truth, VIEWS, 3)
    place = [0, 2, 4, 6, 8, 10]
    np.testing.assert_array_equal(some.mask, truth.mask[:, place])
    np.testing.assert_array_equal(some.rays.directions, truth.rays.directions[:, place])
    assert some.distance is None and some.solid is None and some.colour.shape == (BATCH, 6, 3)


@pytest.fixture
def of_batch():
    truth = a_truth()
    batch = {name: getattr(truth, name) for name in ('rays', 'colour', 'mask', 'guide')}
    return {**batch, 'tokens': jnp.zeros((BATCH, 1)), 'index': jnp.array([0, 1, 2, 3, 4, 1, 0, 2])}


def with_gradient(step):
    loss = seeds.imle_fn(CONFIG, Answers(), BY)
    return jax.value_and_grad(
        lambda params, extras, batch: loss(params, extras, {}, batch, jax.random.key(4), step), has_aux=True
    )


def test_only_the_noises_that_were_chosen_learn_and_are_remembered(of_batch):
    params = parameters()
    params = {**params, 'colour': params['colour'].at[0].set(9.0)}  # far from everything
    extras = {'seeds': seeds.empty(CONFIG)}
    (loss, (metrics, after)), grads = jax.jit(with_gradient(jnp.int32(2)))(params, extras, of_batch)
    key_choice = jax.random.split(jax.random.key(4), 5)[2]
    nearest = naive_distances(params, by_rays.fewer(a_truth(), VIEWS, 3), key_choice).argmin(0)
    moved = np.abs(grads['colour']).max(-1) > 0.0
    np.testing.assert_array_equal(moved, np.isin(np.arange(DRAWS), nearest))
    assert not moved[0] and not moved.all()
    last = {0: 6, 1: 5, 2: 7, 3: 3, 4: 4}  # of an object in several rows the last one counts
    for thing, row in last.items():
        np.testing.assert_array_equal(after['seeds']['noise'][thing], np.eye(DRAWS)[nearest[row]])
    np.testing.assert_array_equal(after['seeds']['step'], np.full(5, 2))
    (_, (metrics, same)), _ = jax.jit(with_gradient(jnp.int32(3)))(params, after, of_batch)
    jax.tree.map(np.testing.assert_array_equal, same, after)
    assert metrics['seeds/age'] == 1.0 and np.isfinite(loss)


def test_eight_devices_and_replicas_choose_and_remember_as_one(of_batch):
    params, extras = parameters(), {'seeds': seeds.empty(CONFIG)}
    run = with_gradient(jnp.int32(0))
    (loss, (_, after)), grads = jax.jit(run)(params, extras, of_batch)
    rows = NamedSharding(jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,)), P('data'))
    (spread, (_, others)), moved = jax.jit(run)(params, extras, jax.device_put(of_batch, rows))
    np.testing.assert_allclose(spread, loss, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, others, after)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), moved, grads)
    split = jax.tree.map(lambda leaf: jnp.reshape(leaf, (8, 1, *leaf.shape[1:])), of_batch)
    noise = jnp.eye(DRAWS)[jnp.arange(8) % DRAWS].reshape(8, 1, DRAWS)
    keep = lambda index, noise: seeds.remembered(extras['seeds'], *replicas.gather((index, noise)), jnp.int32(5), True)
    copies = jax.pmap(keep, axis_name=replicas.AXIS)(split['index'], noise)
    one = seeds.remembered(extras['seeds'], of_batch['index'], noise[:, 0], jnp.int32(5), True)
    jax.tree.map(lambda many, one: np.testing.assert_array_equal(many, np.broadcast_to(one, many.shape)), copies, one)


def test_seeds_of_codes_have_their_mean_and_covariance():
    random = np.random.default_rng(0)
    codes = (random.normal(size=(6, 2)) @ random.normal(size=(2, 3)) + [1.0, -2.0, 0.5]).astype(np.float32)  # of rank 2
    drawn = np.asarray(seeds.of_gaussian(codes, jax.random.key(0), 40_000))
    np.testing.assert_allclose(drawn.mean(0), codes.mean(0), atol=0.03)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(codes.T, bias=True), atol=0.05)
    assert np.linalg.matrix_rank(drawn - codes.mean(0), tol=1e-2) == 2


def test_the_set_knows_the_objects_of_every_caption_and_rows_their_numbers():
    groups = open_captions.groups('all')
    assert [len(scenes) for scenes in groups.values()] == [4] * 8 + [8] * 4
    assert list(groups)[1] == 'an orange object' and list(groups)[-1] == 'a cone'
    assert {word for caption in groups for word in caption.split()} <= set(open_captions.WORDS)
    assert [len(open_captions.things(split)) for split in ('train', 'test')] == [24, 8]
    config = sources.resolve(configs.load('configs/instant3d.py:toy_imle', ['data.count=0', 'loss.rays=4', 'data.poses=3']))
    assert config.data.count == 32
    for truth in ('solids', 'pixels'):
        asked = configs.from_dict({**config.to_dict(), 'rays': {**config.rays.to_dict(), 'truth': truth}})
        spec = {**by_rays.batch_spec(asked), **seeds.spec_of_numbers(asked)}
        source, transform = sources.make(asked, None, spec)
        assert len(source) == 96 and source.objects == 32
        row = transform(source[70], np.random.default_rng(0))
        assert row['index'] == 70 % 32 and row['index'].dtype == np.int32
        if truth == 'solids':
            np.testing.assert_array_equal(row['solids'], shapes.table(open_captions.things('all')[6]))
    small = configs.load('configs/instant3d.py:toy_imle', ['data.count=31'])
    with pytest.raises(UsageError, match='data.count=31, but toy_open has 32 objects in this split: set data.count=32'):
        sources.make(small, None, {'solids': None})
    batch, captions = sources.preview(config, {})
    assert captions == ['a red object'] * 4 + ['a sphere'] * 4 and batch['image'].shape[:2] == (8, 3)


def test_what_does_not_fit_is_refused():
    words = 'text.words=("a",)'
    assert systems.make(configs.load('configs/instant3d.py:toy_imle', [words, 'data.count=9'])).batch_spec['index'].shape
    for variant, overrides, message in (
        (
            'toy_imle',
            (words, 'data.count=0'),
            "supervision='imle' keeps something for each object, and data.count=0: give their number",
        ),
        (
            'toy_imle',
            (words, 'seeds.rays=49'),
            'seeds.rays=49 are taken of the loss.rays=48 rays of each view: at most as many',
        ),
        (
            'toy_mean',
            (words, 'supervision=codes'),
            "supervision='codes' reads the section 'codes'.*configs/instant3d.py:toy_codes",
        ),
        ('tiny', (words, 'supervision=imle'), "supervision='imle' reads the section 'rays'"),
    ):
        with pytest.raises(UsageError, match=message):
            systems.make(configs.load(f'configs/instant3d.py:{variant}', overrides))
