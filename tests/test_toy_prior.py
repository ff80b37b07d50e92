"""The prior in closed form: its network against the derivative of the log density, its texts, and the pictures it leads to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.core import config as configs
from t3d.core import prng
from t3d.core.errors import UsageError
from t3d.data.sets import marked, oracle, patterns, shapes, toy
from t3d.diffusion import distill, guidance, schedules, toy_prior, view_prompts
from t3d.diffusion.prior import Prior
from t3d.inference import loading, sample2d, toy_pictures

SIZE = 16
CAPTIONS = [scene.captions for scene in shapes.singles('all')]
NAMES = [names[0] for names in CAPTIONS]
SMALL = (('a dot', 'dot'), ('a dash',), ('a red star', 'red star'))  # things of a small mixture, with random pictures


@functools.cache
def model(size=SIZE):
    return loading.open_one('prior', f'toy:{size}')


def small(spread=0.3, size=3, poses=2):
    prior = toy_prior.make(SMALL, size, spread)
    means = np.random.default_rng(1).uniform(-1.0, 1.0, (3, 4, poses, size, size, 3)).astype(np.float32)
    return prior, {'means': means}


def features_of(prior, params, texts):
    return prior.encode(params, jnp.asarray(prior.tokenize(texts)))


@pytest.mark.parametrize('t', [0, 150, 500, 900, 999])
def test_the_network_is_the_derivative_of_the_log_density(t):
    """Of the noised mixture written out over its 24 pictures, in float64, times -sigma; at points where several count."""
    prior, params = small()
    texts = ['a dot', 'a red star, back view', 'Red star, overhead view', '']
    chosen = np.zeros((4, 3, 4, 2))
    chosen[0, 0], chosen[1, 2, 2], chosen[2, 2, 3], chosen[3] = 1 / 8, 1 / 2, 1 / 2, 1 / 24
    signal, sigma = (np.float64(level[t]) for level in (prior.schedule.signal, prior.schedule.noise))
    x0 = np.stack([np.tensordot(share, params['means'], 3) for share in chosen])
    x = (signal * x0 + sigma * np.random.default_rng(t).normal(size=x0.shape)).astype(np.float32)
    found = prior.predict(params, jnp.asarray(x), jnp.int32(t), features_of(prior, params, texts))
    with jax.enable_x64(True):
        means = jnp.asarray(params['means'], jnp.float64).reshape(24, -1)

        def log_density(x, share):
            square = jnp.sum((x.reshape(-1) - signal * means) ** 2, -1)
            variance = signal**2 * 0.3**2 + sigma**2
            return jax.nn.logsumexp(jnp.log(share.reshape(-1)) - 0.5 * square / variance)

        score = [jax.grad(log_density)(jnp.asarray(one, jnp.float64), jnp.asarray(share)) for one, share in zip(x, chosen)]
    np.testing.assert_allclose(found, -sigma * np.stack(score), atol=1e-4)
    each = prior.predict(params, jnp.asarray(x), jnp.full(4, t), features_of(prior, params, texts))
    np.testing.assert_allclose(each, found, atol=1e-6)


def test_one_picture_gives_a_gaussian():
    means = jnp.asarray(np.random.default_rng(3).normal(size=(1, 4)), jnp.float32)
    x, signal, sigma = jnp.linspace(-2.0, 2.0, 8).reshape(2, 4), jnp.float32(0.6), jnp.float32(0.8)
    found = toy_prior.mixture_eps(x, means, jnp.zeros((2, 1)), signal, sigma, 0.5)
    np.testing.assert_allclose(found, 0.8 * (x - 0.6 * means) / (0.36 * 0.25 + 0.64), rtol=1e-5)


def test_features_between_two_suffixes_are_the_mixture_of_both_sides():
    prior, params = small()
    suffixed = features_of(prior, params, view_prompts.texts('a dot')).reshape(1, 4, 7, -1)
    between = view_prompts.mixed(suffixed, jnp.array([[0.25, 0.75, 0.0, 0.0]]))
    x, t = jnp.asarray(np.random.default_rng(2).normal(size=(1, 3, 3, 3)), jnp.float32), jnp.int32(600)
    signal, sigma = schedules.levels_like(prior.schedule, t, x)
    shares = np.zeros((3, 4, 2))
    shares[0, 0], shares[0, 1] = 0.25 / 2, 0.75 / 2
    with np.errstate(divide='ignore'):
        logs = jnp.asarray(np.log(shares).reshape(1, 24), jnp.float32)
    expected = toy_prior.mixture_eps(x, params['means'].reshape(24, 3, 3, 3), logs, signal, sigma, 0.3)
    np.testing.assert_allclose(prior.predict(params, x, t, between), expected, atol=1e-5)
    nothing = prior.predict(params, x, t, jnp.zeros_like(between))
    np.testing.assert_allclose(nothing, prior.predict(params, x, t, features_of(prior, params, [''])), atol=1e-6)


def test_it_is_a_prior_that_a_config_can_name():
    given = loading.open_given(configs.from_dict({'system': 'any', 'given': {'prior': f'toy:{SIZE}'}}))['prior']
    prior = given.functions
    assert isinstance(prior, Prior) and given.digest == model().digest and given.name == f'toy:{SIZE}'
    assert prior.schedule.length == 1000 and prior.schedule.prediction == 'eps'
    assert prior.shape(prior.native) == (SIZE, SIZE, 3) and given.params['means'].shape == (64, 4, 8, SIZE, SIZE, 3)
    images = jnp.ones((2, SIZE, SIZE, 3))
    assert prior.decode(given.params, prior.latents(given.params, images)) is images
    ids = prior.tokenize(['a red cube', 'a red cube, back view'])
    assert ids.shape[0] == 2 and ids.dtype == np.int32
    assert toy_pictures.is_toy('toy') and not any(map(toy_pictures.is_toy, ('toys', 'runs/toy', None, './toy')))


@pytest.mark.parametrize(
    'prompt, message',
    [
        ('a red cube, side', 'no pictures of "a red cube, side".*Nearest: \'a red cube, side view\''),
        ('a red', 'no pictures of "a red".*961 texts.*\'a red sphere\''),
        ('a rad cube', "Nearest: .*'a red cube'"),
        ('a red cube on top of a blue cone', 'no pictures of "a red cube on top'),
        ('a blue teapot, front view', "Nearest: .*'a blue cone, front view'"),
    ],
)
def test_other_prompts_are_refused_with_the_nearest(prompt, message):
    with pytest.raises(UsageError, match=message):
        model().functions.tokenize(['a red cube', prompt])


@pytest.mark.parametrize('value', ['toy:', 'toy:7', 'toy:65', 'toy:big', 'toy:16.0', 'toy:-16', 'toy:٣٢'])
def test_other_sizes_are_refused(value):
    with pytest.raises(UsageError, match='toy:SIZE with 8 to 64 px, for example toy:32'):
        loading.open_one('prior', value)
    with pytest.raises(UsageError, match='--size 24: these pictures have 16 px; .* toy:24'):
        model().functions.shape(24)


def test_its_means_are_the_renders_of_the_toy_set():
    """To a step of uint8 and what its rounding of alpha adds; poses lie in the sectors that they stand for."""
    means = model().params['means']
    azimuth, elevation = toy_pictures.poses()
    for sector in range(4):
        np.testing.assert_array_equal(view_prompts.sector(azimuth[sector], elevation[sector]), sector)
    for thing in (0, 13, 38, 63):
        scene = shapes.singles('all')[thing]
        record = toy.record(scene, azimuth.ravel(), elevation.ravel(), SIZE, toy_pictures.SUPERSAMPLE)
        true = oracle.composite(record['image']).reshape(4, 8, SIZE, SIZE, 3)
        assert np.abs(0.5 + 0.5 * means[thing] - true).max() < 1.01 / 255


def test_marked_objects_show_their_front_too_often():
    """Means with the mark, and the shares of sectors that a text leaves: of side and back 0.7 is the front."""
    given = loading.open_one('prior', f'toy_marked:{SIZE}')
    azimuth, elevation = toy_pictures.poses(toy_pictures.MARKED)
    for thing in (0, 13, 38, 63):
        scene = shapes.singles('all')[thing]
        record = marked.record(scene, azimuth.ravel(), elevation.ravel(), SIZE, toy_pictures.SUPERSAMPLE)
        true = oracle.composite(record['image']).reshape(4, 8, SIZE, SIZE, 3)
        assert np.abs(0.5 + 0.5 * given.params['means'][thing] - true).max() < 1.01 / 255
    assert given.digest != model().digest
    captions = [scene.captions for scene in shapes.singles('all')]
    texts, shares = toy_prior._table(captions, toy_pictures.BIAS)
    of = lambda text: shares[texts.index(text)].reshape(64, 4)
    name = captions[5][0]
    np.testing.assert_allclose(of(f'{name}, back view')[5], (0.7, 0.0, 0.3, 0.0), atol=1e-6)
    np.testing.assert_allclose(of(f'{name}, side view')[5], (0.7, 0.3, 0.0, 0.0), atol=1e-6)
    np.testing.assert_allclose(of(f'{name}, front view')[5], (1.0, 0.0, 0.0, 0.0), atol=1e-6)
    np.testing.assert_allclose(shares.sum(-1), 1.0, rtol=1e-6)


def test_pictures_are_what_the_oracle_reads_and_from_the_side_that_was_said():
    """Every fifth thing, without a suffix and with each; held to all 64 objects, and to the poses of the sector."""
    names = [name for k, name in enumerate(NAMES[::5]) for name in [name, view_prompts.texts(name)[k % 3]]]
    images = np.asarray(sample2d.sample(model(32), names, sample2d.Settings(steps=20, seed=4)))
    answers, distance = oracle.PictureOracle(32, azimuths=12, elevations=3).read(images)
    assert answers == [shapes.singles('all')[k].attributes for k in range(0, 64, 5) for _ in range(2)]
    assert distance.max() < 0.2
    means = 0.5 + 0.5 * model(32).params['means'][::5]
    for k, image in enumerate(images[1::2]):
        error = np.sqrt(np.mean((means[k, k % 3] - image) ** 2, (-3, -2, -1)))
        assert error.min() < 0.02


@pytest.mark.parametrize('scale', [1.0, 5.0])
def test_distillation_of_a_free_picture_ends_at_a_mean_of_its_prompt(scale):
    """Times up to half of the schedule; with guidance too, where the unconditional mixture agrees near a mean."""
    prior, params = model().functions, model().params
    text, empty = features_of(prior, params, ['a blue cone, back view'] * 4), features_of(prior, params, [''] * 4)
    denoise = guidance.guided(lambda x, t, text: prior.predict(params, x, t, text), text, empty, scale)

    def step(k, z):
        key_t, key_noise = jax.random.split(jax.random.fold_in(prng.key(5), k))
        t = jax.random.randint(key_t, (4,), 20, 501, jnp.int32)
        noise = jax.random.normal(key_noise, (4, *z.shape), jnp.float32)
        gradient, _ = distill.sds_gradient(denoise, prior.schedule, jnp.broadcast_to(z, noise.shape), t, noise)
        return z - 0.2 * jnp.mean(gradient, 0)

    z = jax.jit(lambda: jax.lax.fori_loop(0, 150, step, jnp.full((SIZE, SIZE, 3), 0.5)))()
    error = np.sqrt(np.mean((params['means'] - np.asarray(z)) ** 2, (-3, -2, -1)))
    assert error.min() < 0.03 and np.unravel_index(error.argmin(), error.shape)[:2] == (NAMES.index('a blue cone'), 2)


def test_patterned_pictures_are_those_of_the_set():
    """128 things from 48 sides; a text of a pattern leaves that object open to its sides alone."""
    given = loading.open_one('pictures', 'toy_patterns:16')
    azimuth, elevation = toy_pictures.poses(toy_pictures.PATTERNED)
    assert given.params['means'].shape == (128, 4, 12, 16, 16, 3)
    assert len({(round(float(a) % (2 * np.pi), 6), float(e)) for a, e in zip(azimuth.ravel(), elevation.ravel())}) == 48
    things = toy_pictures.things(toy_pictures.PATTERNED)
    for thing in (0, 1, 50, 127):
        record = patterns.record(things[thing], azimuth.ravel(), elevation.ravel(), 16, toy_pictures.SUPERSAMPLE)
        true = oracle.composite(record['image']).reshape(4, 12, 16, 16, 3)
        assert np.abs(0.5 + 0.5 * given.params['means'][thing] - true).max() < 1.01 / 255
    features = given.functions.encode(given.params, given.functions.tokenize([things[51].captions[0]]))
    x = 0.1 * np.random.default_rng(0).standard_normal((1, 16, 16, 3)).astype(np.float32)
    eps = given.functions.predict(given.params, x, 999, features)
    signal, sigma = (float(level) for level in schedules.levels(given.functions.schedule, 999))
    mean = given.params['means'][51].mean((0, 1))  # in pure noise every side is as likely
    np.testing.assert_allclose(eps[0], sigma * (x[0] - signal * mean) / (signal**2 * toy_prior.SPREAD**2 + sigma**2), atol=1e-4)
