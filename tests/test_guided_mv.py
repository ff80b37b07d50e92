"""Joint sampling: its limits bit for bit, the composition of Gaussians, conversions, schedules of lambda, what does not fit."""

import functools

import closed_priors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_weights
import test_mvdiffusion

from t3d import systems
from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.core.outputs import Request, Views
from t3d.core.system import Given, params_of
from t3d.diffusion import joint, samplers, schedules
from t3d.inference import loading
from t3d.systems import guided_mv


@functools.cache
def weights():
    """Of the multi-view model: not those of its start, with which it is the prior."""
    return random_weights.shaken(test_mvdiffusion.started(given=True)[1].ema)


@functools.cache
def given(**schedule) -> dict[str, Given]:
    """A small multi-view model with random weights, and the small text-to-image model that it grew out of."""
    system, _ = test_mvdiffusion.started(given=True)
    inner = test_mvdiffusion.prior()['prior']
    pictures = (
        inner._replace(functions=inner.functions._replace(schedule=schedules.cosine(50, **schedule))) if schedule else inner
    )
    params = {'weights': weights(), 'given': {'prior': inner.params}}
    return {'views': Given(system.functions, params, name='small views'), 'pictures': pictures}


def config(*overrides):
    return configs.load('configs/guided_mv.py:tiny', ['sample.steps=3', *overrides])


def images(*overrides, prompts=('a red cube',), models=None):
    models = models or given()
    system = systems.make(config(*overrides), models)
    keys = jax.random.split(jax.random.key(3), 2)[: len(prompts)]
    made = system.generate({}, [Request(prompt) for prompt in prompts], keys, params_of(models))
    assert all(isinstance(one, Views) for one in made)
    return np.stack([np.asarray(one.images) for one in made])


CONSTANT = ('mixing.schedule=constant', 'mixing.first=0.0')


def test_lambda_1_is_the_multi_view_model_and_lambda_0_pictures_of_their_own():
    system, _ = test_mvdiffusion.started(given=True)
    key = jax.random.split(jax.random.key(3), 2)[:1]
    alone = system.generate(weights(), [Request('a red cube')], key, params_of(test_mvdiffusion.prior()))[0]
    together = images(*CONSTANT, 'mixing.last=1.0')
    np.testing.assert_array_equal(together[0], alone.images)
    assert np.std(alone.images) > 1e-2
    pictures = images(*CONSTANT, 'mixing.last=0.0')[0]
    model, params = given()['pictures'].functions, given()['pictures'].params
    noise = jax.random.normal(key[0], (3, *model.shape(16)), jnp.float32)
    text = model.encode(params, jnp.asarray(model.tokenize(['a red cube'] * 3)))
    predict = lambda x, t: model.predict(params, x, jnp.broadcast_to(t, x.shape[:1]), text)
    x = jax.jit(lambda noise: samplers.ddim(predict, model.schedule, noise, steps=3))(noise)
    np.testing.assert_allclose(pictures, np.clip(0.5 + 0.5 * np.asarray(x), 0.0, 1.0), atol=1e-6)
    between = images('mixing.schedule=linear', 'mixing.first=0.0', 'mixing.last=1.0')[0]
    assert min(np.abs(between - together[0]).max(), np.abs(between - pictures).max()) > 1e-3


def test_an_object_does_not_depend_on_its_neighbours():
    both = images(prompts=('a red cube', 'a blue sphere'))
    models = given()
    system = systems.make(config(), models)
    key = jax.random.split(jax.random.key(3), 2)[1:]
    alone = system.generate({}, [Request('a blue sphere')], key, params_of(models))[0]
    np.testing.assert_allclose(both[1], alone.images, atol=2e-5)


def test_consistency_is_the_mixture_where_the_2d_model_is_the_multi_view_model_without_cameras():
    same = ('mixing.branch=self2d', *CONSTANT, 'mixing.last=0.6')
    np.testing.assert_allclose(images('mixing.form=consistency', *same), images(*same), atol=2e-5)
    apart = images('mixing.form=consistency', *CONSTANT, 'mixing.last=0.6') - images(*CONSTANT, 'mixing.last=0.6')
    assert np.abs(apart).max() > 1e-3


def test_a_model_of_noise_is_converted_before_it_is_mixed():
    """The same network, said to predict noise: what it says is converted, not added up as it is."""
    schedule, x = (
        schedules.cosine(50, prediction='v'),
        jnp.asarray(np.random.default_rng(0).standard_normal((2, 4)), jnp.float32),
    )
    a, s = schedules.levels(schedule, 20)
    x0, eps = jnp.float32(0.3) * x, (x - a * 0.3 * x) / s
    v = a * eps - s * x0
    for of, output in (('eps', eps), ('x0', x0), ('v', v)):
        np.testing.assert_allclose(joint.as_prediction(output, of, 'v', x, a, s), v, atol=2e-6)
    raw = images(*CONSTANT, 'mixing.last=0.5')
    noise = images(*CONSTANT, 'mixing.last=0.5', models=given(prediction='eps'))
    assert np.isfinite(noise).all() and np.abs(raw - noise).max() > 1e-3


def test_the_mixture_composes_gaussians_of_one_covariance():
    """p_1^.6 p_2^.4 of N(1, .4) and N(-.5, .4) is N(.4, .4); with other covariances it is not the product."""
    schedule = schedules.scaled_linear()

    def eps(mean, std):
        def predict(x, t):
            a, s = schedules.levels(schedule, t)
            return s * (x - a * mean) / (a**2 * std**2 + s**2)

        return predict

    def sampled(first, second, weight):
        predict = lambda x, t: joint.mix(eps(*first)(x, t), eps(*second)(x, t), weight)
        noise = jax.random.normal(jax.random.key(0), (20_000, 1), jnp.float32)
        x = np.asarray(jax.jit(lambda x: samplers.ddim(predict, schedule, x, steps=1000, spacing='trailing'))(noise))
        return x.mean(), x.std()

    np.testing.assert_allclose(sampled((1.0, 0.4), (-0.5, 0.4), 0.6), (0.4, 0.4), atol=1.5e-2)  # .39: x_T has no mean
    mean, std = sampled((1.0, 0.8), (-0.5, 0.2), 0.5)
    assert abs(mean + 0.077) < 0.02 and abs(std - 0.397) < 0.02  # the product: -.412, .274


def test_lambda_rises_as_it_is_told():
    t = jnp.array([99, 50, 0])
    for kind, expected in {
        'constant': [0.9, 0.9, 0.9],
        'linear': [0.2, 0.2 + 0.7 * (49 / 99), 0.9],
        'power': [0.2, 0.2 + 0.7 * (49 / 99) ** 2, 0.9],
        'step': [0.2, 0.2, 0.9],
    }.items():
        curve = joint.weights(kind, 0.2, 0.9, 100, power=2.0, at=0.5)
        np.testing.assert_allclose(curve(t), expected, atol=1e-6)


def test_sides_are_told_in_words_and_unknown_words_left_out():
    models = given()
    sampler = guided_mv.Sampler(config(), models)
    from t3d.geom import cameras

    azimuth = np.deg2rad([[0.0, 44.0, 90.0, 180.0, 270.0, 30.0]])
    views = cameras.orbit(azimuth, np.deg2rad([[0.0, 0.0, 0.0, 0.0, 0.0, 70.0]]), 3.2, 0.7)
    assert sampler.sides(views)[0] == [
        'front view', 'front view', 'side view', 'back view', 'side view', 'overhead view',
    ]  # fmt: skip
    left = guided_mv.Sampler(config('unknown_words=("red",)'), models)
    ids, plain = left.tokens(['a red cube'], models['views'].functions.rig(1)), models['views'].functions.tokenize(['a cube'])
    np.testing.assert_array_equal(ids['views'], plain)
    assert not np.array_equal(np.asarray(ids['pictures'])[0, 0], plain[0])


@pytest.mark.parametrize('override', ['sample.sampler=dpm_solver_2m', 'sample.blob=True'])
def test_other_samplers_and_starts_are_finite_and_others(override):
    made = images(override)
    assert np.isfinite(made).all() and np.abs(made - images()).max() > 1e-4


def test_at_the_size_of_the_2d_model_both_are_run_there_and_sides_are_told():
    """A multi-view model of 16 px beside a closed-form model of 32 px that knows the words for sides."""
    pictures = closed_priors.pictures(32, prediction='v')
    schedule = pictures.functions.schedule
    views = given()['views']
    views = views._replace(functions=views.functions._replace(schedule=schedule))
    models, hires = {'views': views, 'pictures': pictures}, ('mixing.branch=sd_hires', *CONSTANT)
    noise = jax.random.normal(jax.random.split(jax.random.key(3), 2)[0], (3, 32, 32, 3), jnp.float32)
    sample = lambda predict, noise: jax.jit(lambda x: samplers.ddim(predict, schedule, x, steps=3))(noise)

    def of_pictures(sides):
        text = closed_priors.mean_of(closed_priors.tokenize([f'a red cube{side}' for side in sides]))[:, None]
        return sample(lambda x, t: pictures.functions.predict(pictures.params, x, t, text), noise)

    around = [', front view', ', side view', ', side view']  # at 0, 120 and 240 degrees
    for suffixes, sides in ((True, around), (False, [''] * 3)):
        made = images(*hires, 'mixing.last=0.0', f'suffixes={suffixes}', models=models)[0]
        np.testing.assert_allclose(made, np.clip(0.5 + 0.5 * np.asarray(of_pictures(sides)), 0.0, 1.0), atol=1e-6)
    assert np.abs(np.asarray(of_pictures(around)) - np.asarray(of_pictures([''] * 3))).max() > 0.05
    model, params = views.functions, views.params
    inputs = model.inputs(model.rig(1), (32, 32, 3))
    text = model.encode(params, jnp.asarray(model.tokenize(['a red cube'])))
    own = sample(lambda x, t: model.predict(params, x, jnp.broadcast_to(t, (1,)), text, inputs), noise[None])
    made = images(*hires, 'mixing.last=1.0', models=models)
    np.testing.assert_allclose(made, model.decode(params, own), atol=1e-5)
    between = images(*hires, 'mixing.last=0.5', 'suffixes=True', models=models)
    assert between.shape == (1, 3, 32, 32, 3) and np.abs(between - made).max() > 1e-3


@pytest.mark.slow
def test_the_shipped_views_are_made_at_64_pixels_beside_the_toy_model_of_that_size():
    """lambda 0: each view is the toy model's sample of the prompt with its side; rising: 64 px of the right colour."""
    chosen = lambda *more: configs.load('configs/guided_mv.py:tiny', ['sample.steps=8', 'mixing.branch=sd_hires', *more])
    models = loading.open_given(chosen('given.pictures=toy:64'))
    key = jax.random.split(jax.random.key(3), 2)[:1]

    def made(*more):
        system = systems.make(chosen('suffixes=True', *more), models)
        return np.asarray(system.generate({}, [Request('a red cube')], key, params_of(models))[0].images)

    toy, params = models['pictures'].functions, models['pictures'].params
    prompts = [f'a red cube, {side} view' for side in ('front', 'side', 'back', 'side')]
    text = toy.encode(params, jnp.asarray(toy.tokenize(prompts)))
    noise = jax.random.normal(key[0], (4, 64, 64, 3), jnp.float32)
    x = jax.jit(lambda x: samplers.ddim(lambda x, t: toy.predict(params, x, t, text), toy.schedule, x, steps=8))(noise)
    pictures = made(*CONSTANT, 'mixing.last=0.0')
    assert pictures.shape == (4, 64, 64, 3)
    np.testing.assert_allclose(pictures, np.clip(0.5 + 0.5 * np.asarray(x), 0.0, 1.0), atol=1e-4)
    both = made()
    assert both.shape == (4, 64, 64, 3) and np.abs(both - pictures).max() > 0.05
    middle = both[:, 24:40, 24:40].mean((1, 2))
    assert (middle[:, 0] > middle[:, 1:].max(-1) + 0.07).all()  # reddish: seen .13 to .19, as the views were learned at 32 px


def test_what_does_not_fit_is_one_sentence():
    models = given()
    with pytest.raises(UsageError, match='given.views is missing'):
        systems.make(config(), {'pictures': models['pictures']})
    with pytest.raises(UsageError, match="given.views='small' is a Prior, not a MultiViewPrior"):
        systems.make(config(), {**models, 'views': models['pictures']})
    with pytest.raises(UsageError, match=r"mixing.branch='self2d'"):
        systems.make(config(), {'views': models['views']})
    with pytest.raises(UsageError, match='lambda schedule'):
        joint.weights('quadratic', 0.0, 1.0, 10)
    with pytest.raises(UsageError, match=r'lambda from 0.5 to 1.5: wanted weights in \[0, 1\]'):
        joint.weights('linear', 0.5, 1.5, 10)
    other = models['pictures']
    linear = other._replace(functions=other.functions._replace(schedule=schedules.linear(50, prediction='v')))
    with pytest.raises(UsageError, match='the two models have other noise schedules'):
        systems.make(config(), {**models, 'pictures': linear})
