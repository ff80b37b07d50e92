"""A prior as the guide of renders: its gradient against an explicit one, what objects see of each other, sizes, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_priors import SPREAD, mean_of, pictures, tokenize, views

from t3d.core import prng
from t3d.core.errors import UsageError
from t3d.diffusion import guide, perp_neg, schedules
from t3d.diffusion.guide import Options
from t3d.geom import camera_draws

RANGES = camera_draws.Ranges()
PROMPTS = ['red cube', 'blue', 'green cube']


def drawn_of(objects, count):
    return jax.vmap(lambda key: camera_draws.draw(key, count, RANGES))(jax.random.split(prng.key(9), objects))


def images_of(objects, count, size=8):
    return jax.random.uniform(prng.key(4), (objects, count, size, size, 3))


def gradient(options, images, prompts=PROMPTS, prior=None, keys=None, step=0):
    """(gradient to the images, metrics) of a guide."""
    prior = prior or pictures()
    made = guide.make(prior.functions, options)
    tokens = made.tokens(list(prompts))
    keys = jax.random.split(prng.key(1), len(prompts)) if keys is None else keys

    def loss(images):
        guided = made.guide(prior.params, tokens, images, drawn_of(*images.shape[:2]), keys, step)
        return guided.loss, guided.metrics

    return jax.grad(loss, has_aux=True)(images)


def explicit(told, images, prompts, scale, weighting=lambda signal, sigma: sigma**2):
    """w(t) (eps_hat - eps) by the formulas of a Gaussian, in float64, from the x_t and t that the prior was asked for."""
    schedule = pictures().functions.schedule
    x, t = np.asarray(told[0], np.float64), np.asarray(told[1])
    rows = len(x) // (1 if scale == 1.0 else 2)
    x, t = x[-rows:], t[-rows:]
    signal, sigma = (np.asarray(level, np.float64)[:, None, None, None] for level in schedules.levels(schedule, t))
    z = 2.0 * np.asarray(images, np.float64).reshape(rows, *images.shape[2:]) - 1.0
    noise = (x - signal * z) / sigma
    mean = np.repeat(np.asarray(mean_of(tokenize(list(prompts))), np.float64), rows // len(prompts), 0)[:, None, None]
    eps = lambda mean: sigma * (x - signal * mean) / (signal**2 * SPREAD**2 + sigma**2)
    guided = eps(0.0) + scale * (eps(mean) - eps(0.0))
    return weighting(signal, sigma) * (guided - noise)


@pytest.mark.parametrize('scale', (1.0, 7.0))
@pytest.mark.parametrize('prediction', ('eps', 'v'))
def test_the_gradient_is_the_formula_of_a_gaussian_prior(prediction, scale):
    """Through z = 2 image - 1, each object divided by its own views: 3 objects of 2."""
    seen, images = [], images_of(3, 2)
    given, metrics = gradient(Options(scale=scale), images, prior=pictures(prediction=prediction, seen=seen))
    expected = explicit(seen[0], images, PROMPTS, scale).reshape(images.shape)
    np.testing.assert_allclose(given, 2.0 * expected / 2, rtol=2e-4, atol=2e-5)
    norm = np.sqrt(np.sum(expected**2, axis=(2, 3, 4)))
    np.testing.assert_allclose(metrics['distill/gradient'], norm.mean(), rtol=1e-4)
    assert metrics['distill/not_finite'] == 0.0


def test_the_gradient_reaches_a_scene_by_its_jacobian():
    """A scene of 3 numbers, drawn by a nonlinear function, its Jacobian written out by jacfwd."""
    ramp = jnp.linspace(0.2, 1.0, 2 * 8 * 8).reshape(1, 2, 8, 8, 1)
    draw = lambda theta: jax.nn.sigmoid(ramp * theta + 0.1 * theta**2)
    theta = jnp.array([0.3, -0.8, 0.5])
    prior, seen = pictures(), []
    told = pictures(seen=seen)
    made, keys = guide.make(prior.functions, Options(scale=4.0)), jax.random.split(prng.key(1), 1)
    recorded = guide.make(told.functions, Options(scale=4.0))
    tokens, drawn = made.tokens(['red cube']), drawn_of(1, 2)
    recorded.guide(told.params, tokens, draw(theta), drawn, keys, 0)
    ours = jax.grad(lambda theta: made.guide(prior.params, tokens, draw(theta), drawn, keys, 0).loss)(theta)
    to_images = explicit(seen[0], draw(theta), ['red cube'], 4.0).reshape(1, 2, 8, 8, 3)
    jacobian = np.asarray(jax.jacfwd(draw)(theta), np.float64)
    np.testing.assert_allclose(ours, np.einsum('pvhwc,pvhwcn->n', 2.0 * to_images / 2, jacobian), rtol=1e-4)


def test_an_object_is_guided_the_same_in_every_population():
    images, keys = images_of(3, 2), jax.random.split(prng.key(1), 3)
    whole, _ = gradient(Options(scale=5.0), images, keys=keys)
    drawn = drawn_of(3, 2)
    made = guide.make(pictures().functions, Options(scale=5.0))

    def alone(image, k):
        mine = jax.tree.map(lambda leaf: leaf[k : k + 1], drawn)
        return made.guide(pictures().params, made.tokens([PROMPTS[k]]), image, mine, keys[k : k + 1], 0).loss

    for k in range(3):
        np.testing.assert_allclose(jax.grad(alone)(images[k : k + 1], k)[0], whole[k], rtol=1e-5, atol=1e-6)


def test_no_gradient_reaches_the_prior():
    prior = pictures()
    made, images = guide.make(prior.functions, Options(scale=3.0)), images_of(3, 2)
    loss = lambda params: (
        made.guide(params, made.tokens(PROMPTS), images, drawn_of(3, 2), jax.random.split(prng.key(1), 3), 0).loss
    )
    assert jax.grad(loss)(prior.params)['scale'] == 0.0
    assert loss(prior.params) != loss({'scale': jnp.float32(1.5)})


@pytest.mark.parametrize('negatives', ('none', 'fixed'))
@pytest.mark.parametrize('words', ('nearest', 'interpolated'))
def test_a_view_is_told_its_side(words, negatives):
    """The features that the prior gets, by the angle of each view; closed_priors knows the words front, side and back.

    With negatives they are the first of four rows.
    """
    seen = []
    gradient(Options(scale=1.0, words=words, negatives=negatives), images_of(3, 6), prior=pictures(seen=seen))
    assert len(seen[0][2]) == 18 * (4 if negatives == 'fixed' else 1)
    azimuth = np.abs(np.asarray(drawn_of(3, 6).azimuth, np.float64))
    texts = [f'{prompt}, {side} view' for prompt in PROMPTS for side in ('front', 'side', 'back')]
    table = np.asarray(mean_of(tokenize(texts))).reshape(3, 3, 3)
    given = np.asarray(seen[0][2])[:18, 0].reshape(3, 6, 3)
    for row in range(3):
        if words == 'nearest':
            which = np.where(azimuth[row] < np.pi / 4, 0, np.where(azimuth[row] > 3 * np.pi / 4, 2, 1))
            expected = table[row][which]
        else:
            away = azimuth[row] / (np.pi / 2)
            expected = np.stack([np.interp(away, [0, 1, 2], table[row][:, c]) for c in range(3)], -1)
        np.testing.assert_allclose(given[row], expected, atol=1e-5)


def test_negatives_act_across_the_prompt():
    """One call of four rows; its gradient is that of Perp-Neg's formula with the weights of the cameras."""
    seen, images = [], images_of(1, 3)
    given, _ = gradient(
        Options(scale=4.0, words='interpolated', negatives='fixed'), images, ['red cube'], prior=pictures(seen=seen)
    )
    x, t, features = seen[0]
    assert x.shape[0] == 4 * 3
    schedule = pictures().functions.schedule
    x, t = np.asarray(x, np.float64).reshape(4, 3, 8, 8, 3), np.asarray(t).reshape(4, 3)
    means = np.asarray(features, np.float64)[:, 0].reshape(4, 3, 1, 1, 3)
    signal, sigma = (np.asarray(level, np.float64)[:, None, None, None] for level in schedules.levels(schedule, t[0]))
    eps = sigma * (x - signal * means) / (signal**2 * SPREAD**2 + sigma**2)
    weights = np.asarray(perp_neg.by_view(drawn_of(1, 3).azimuth[0], drawn_of(1, 3).elevation[0]).weights, np.float64)
    towards = eps[0] - eps[1]
    total = towards.copy()
    for k in range(2):
        away = eps[2 + k] - eps[1]
        share = np.sum(away * towards, (1, 2, 3)) / np.sum(towards**2, (1, 2, 3))
        total += weights[k][:, None, None, None] * (away - share[:, None, None, None] * towards)
    z = 2.0 * np.asarray(images[0], np.float64) - 1.0
    expected = sigma**2 * (eps[1] + 4.0 * total - (x[0] - signal * z) / sigma)
    np.testing.assert_allclose(given[0], 2.0 * expected / 3, rtol=2e-3, atol=2e-4)


def test_reconstruction_pulls_to_x0():
    """x_0_hat of a Gaussian: (SPREAD^2 signal x_t + sigma^2 mean) / (signal^2 SPREAD^2 + sigma^2)."""
    seen, images = [], images_of(3, 2)
    given, _ = gradient(Options(method='reconstruction', scale=1.0), images, prior=pictures(seen=seen))
    x, t, _ = seen[0]
    schedule = pictures().functions.schedule
    signal, sigma = (np.asarray(level, np.float64)[:, None, None, None] for level in schedules.levels(schedule, t))
    mean = np.repeat(np.asarray(mean_of(tokenize(PROMPTS))), 2, 0)[:, None, None]
    x0 = (SPREAD**2 * signal * np.asarray(x, np.float64) + sigma**2 * mean) / (signal**2 * SPREAD**2 + sigma**2)
    z = 2.0 * np.asarray(images).reshape(x.shape) - 1.0
    np.testing.assert_allclose(given, ((z - x0) * 2.0 / 2).reshape(images.shape), rtol=1e-3, atol=1e-4)


def test_a_multi_view_model_sees_the_cameras_and_one_time_for_all_views():
    seen, images = [], images_of(3, 2)
    given, _ = gradient(Options(scale=1.0), images, prior=views(seen=seen))
    x, t, _, inputs = seen[0]
    assert x.shape == (3, 2, 8, 8, 3) and t.shape == (3,)
    np.testing.assert_allclose(inputs, drawn_of(3, 2).cameras.world_from_cam[..., 1, 3])
    schedule = views().functions.schedule
    signal, sigma = (np.asarray(level, np.float64)[:, None, None, None, None] for level in schedules.levels(schedule, t))
    mean = np.asarray(mean_of(tokenize(PROMPTS)))[:, None, None, None] + 0.2 * np.asarray(inputs)[..., None, None, None]
    x, z = np.asarray(x, np.float64), 2.0 * np.asarray(images, np.float64) - 1.0
    eps = sigma * (x - signal * mean) / (signal**2 * SPREAD**2 + sigma**2)
    np.testing.assert_allclose(given, 2.0 * sigma**2 * (eps - (x - signal * z) / sigma) / 2, rtol=1e-3, atol=1e-4)


def test_renders_of_another_size_are_resized_and_their_gradient_by_the_transpose():
    seen, images = [], images_of(3, 2, 5)
    given, _ = gradient(Options(scale=1.0), images, prior=pictures(seen=seen))
    assert given.shape == images.shape and seen[0][0].shape == (6, 8, 8, 3)
    same = jax.image.resize(images.reshape(6, 5, 5, 3), (6, 8, 8, 3), 'bilinear')
    to_latents = explicit(seen[0], same.reshape(3, 2, 8, 8, 3), PROMPTS, 1.0)
    matrix = np.asarray(jax.image.resize(jnp.eye(5), (8, 5), 'bilinear'), np.float64)  # of one axis
    expected = np.einsum('bhwc,hi,wj->bijc', 2.0 * to_latents / 2, matrix, matrix)
    np.testing.assert_allclose(given.reshape(expected.shape), expected, rtol=1e-3, atol=1e-4)


def test_times_lie_in_their_range_and_its_upper_end_moves():
    seen = []
    prior = pictures(seen=seen)
    for step in (0, 50, 500):
        gradient(Options(scale=1.0, low=100, high=900, high_last=300, anneal=100), images_of(3, 40), prior=prior, step=step)
    first, middle, last = (np.asarray(t) for _, t, _ in seen)
    assert first.min() >= 10 and 70 < first.max() <= 90 and 45 < middle.max() <= 60 and last.min() >= 10 and last.max() <= 30


def test_what_is_not_finite_is_counted_and_left_out():
    given, metrics = gradient(Options(scale=1.0), images_of(3, 2), prior=pictures(broken=True))
    assert metrics['distill/not_finite'] == 1.0 and np.all(np.asarray(given) == 0.0)


@pytest.mark.parametrize(
    ('options', 'message'),
    (
        (Options(method='sjc'), 'distill.method'),
        (Options(words='azimuth'), 'distill.words'),
        (Options(negatives='adaptive'), 'distill.negatives'),
        (Options(negatives='fixed'), 'distill.words=interpolated'),
        (Options(low=500, high=400), 'the lower end first'),
        (Options(high_last=10), 'the lower end first'),
        (Options(high=2000), 'thousandths'),
    ),
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        guide.make(pictures().functions, options)


def test_a_multi_view_model_needs_no_words():
    with pytest.raises(UsageError, match='knows its cameras'):
        guide.make(views().functions, Options(words='nearest'))
