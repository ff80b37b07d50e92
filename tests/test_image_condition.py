"""A picture beside the prompt: hidden where there is none, dropped as told, framed as it is, and through a whole system."""

import cheap_keys
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_weights
import test_mvdiffusion

from t3d import systems
from t3d.core import tree
from t3d.core.errors import UsageError
from t3d.core.outputs import Request, Views
from t3d.core.system import Given, params_of
from t3d.geom import cameras
from t3d.inference import likenesses
from t3d.nets import image_condition
from t3d.systems import mvdiffusion


def seeing(**others) -> dict[str, Given]:
    """{'clip': toy_clip at 8 px, which reads the words of the small config}."""
    return {**others, 'clip': likenesses.open_likeness('toy_clip:8', test_mvdiffusion.config())}


def started(given, *overrides):
    system = systems.make(test_mvdiffusion.config('tiny', *overrides), given)
    state = jax.jit(system.init)(cheap_keys.key(3), test_mvdiffusion.batch(), params_of(given))
    return system, state.replace(params=random_weights.shaken(state.params), ema=random_weights.shaken(state.ema))


def picture(colour, shape=(10, 10)):
    return np.concatenate([np.broadcast_to(np.float32(colour), (*shape, 3)), np.ones((*shape, 1), np.float32)], -1)


def test_a_row_that_is_shown_nothing_is_that_of_the_text_alone():
    given = seeing()
    config = test_mvdiffusion.config()
    model = mvdiffusion.Model(config, given)
    system, state = started(given)
    batch, noise = test_mvdiffusion.batch(), jax.random.normal(jax.random.key(1), (2, 3, 16, 16, 3))
    views = jax.jit(model.inputs)(cameras.Cameras(batch['world_from_cam'], batch['intrinsics']))
    images = jax.random.uniform(jax.random.key(2), (2, 16, 16, 3))
    shown = image_condition.Shown(images, jnp.array([True, False]))

    def outputs(image, shown):
        params = {**state.params, 'image': image}
        text = model.features(params, params_of(given), batch['tokens'])
        text = model.beside(params, params_of(given), text, shown)
        out = model.predict(params, noise, jnp.array([3, 30]), text, views)
        return jnp.sum(out**2), out

    token, slope = state.params['image'], jax.jit(jax.grad(outputs, has_aux=True))
    (seen, both), (unseen, _) = slope(token, shown), slope(token, image_condition.dropped(shown))
    alone = jax.jit(outputs)(token, None)[1]
    np.testing.assert_allclose(both[1], alone[1], atol=2e-6)
    assert np.abs(both[0] - alone[0]).max() > 1e-4
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(seen))
    assert all(not np.abs(leaf).any() for leaf in jax.tree.leaves(unseen))


def test_the_token_is_a_linear_map_and_a_layer_norm():
    net = image_condition.ImageToken(6)
    seen = np.random.default_rng(0).normal(size=(3, 11)).astype(np.float32)
    seen = jnp.asarray(seen / np.linalg.norm(seen, axis=-1, keepdims=True))
    params = random_weights.shaken(net.init(jax.random.key(0), seen)['params'])
    out = net.apply({'params': params}, seen)
    x = np.float64(seen) * np.sqrt(11) @ np.float64(params['proj']['kernel']) + np.float64(params['proj']['bias'])
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(out, x * params['norm']['scale'] + params['norm']['bias'], atol=2e-5)


def test_the_first_view_is_shown_and_a_share_of_objects_sees_none():
    images = jnp.arange(4000 * 3.0).reshape(4000, 3, 1, 1, 1) * jnp.ones((1, 1, 1, 1, 3))
    shown = image_condition.in_training(jax.random.key(0), images, 0.3)
    np.testing.assert_array_equal(shown.images[:, 0, 0, 0], 3.0 * np.arange(4000))
    assert abs(1.0 - float(shown.keep.mean()) - 0.3) < 0.03
    again = image_condition.in_training(jax.random.key(0), images, 0.3)
    np.testing.assert_array_equal(shown.keep, again.keep)
    assert image_condition.in_training(jax.random.key(0), images, 0.0).keep.all()


@pytest.mark.parametrize(('height', 'width'), [(20, 20), (5, 20), (21, 8), (1, 7)])
def test_pictures_of_any_shape_are_framed_whole(height, width):
    image = np.asarray(image_condition.squared(picture((0.0, 0.5, 0.0), (height, width)), 12, 1.0))
    assert image.shape == (12, 12, 3)
    np.testing.assert_allclose(image[6, 6], (0.0, 0.5, 0.0) if min(height, width) > 2 else image[6, 6], atol=1e-6)
    green, side = np.mean(1.0 - image[..., 0]), max(height, width)
    assert abs(green - height * width / side**2) < 0.02
    clear = picture((0.0, 0.5, 0.0), (height, width))
    clear[..., 3] = 0.0
    np.testing.assert_allclose(image_condition.squared(clear, 12, 0.25), 0.25, atol=1e-6)
    with pytest.raises(UsageError, match=r'a picture of shape \(4, 4, 3\): wanted \[H, W, 4\]'):
        image_condition.squared(np.zeros((4, 4, 3)), 12, 1.0)


@pytest.mark.parametrize('guidance', [1.0, 2.0])
def test_a_picture_changes_its_own_object_alone(guidance):
    given = seeing()
    system, state = started(given, f'sample.guidance={guidance}')
    keys = jax.random.split(jax.random.key(0), 2)
    make = lambda *images: [
        np.asarray(out.images)
        for out in system.generate(state.ema, [Request('a red cube', image) for image in images], keys, params_of(given))
    ]
    plain, mixed = make(None, None), make(picture((0.0, 0.0, 1.0)), None)
    other = make(picture((0.0, 1.0, 0.0)), None)
    np.testing.assert_allclose(mixed[1], plain[1], atol=1e-5)
    assert np.abs(mixed[0] - plain[0]).max() > 1e-4 and np.abs(mixed[0] - other[0]).max() > 1e-4
    again = system.generate(state.ema, [Request('a red cube', picture((0.0, 0.0, 1.0)))], keys[:1], params_of(given))
    np.testing.assert_allclose(again[0].images, mixed[0], atol=1e-5)


def test_a_step_moves_the_token_and_a_prior_lends_its_weights():
    given = seeing(**test_mvdiffusion.prior())
    config = test_mvdiffusion.config('tiny', 'drop_image=0.0', 'flat_share=0.0')
    system = systems.make(config, given)
    batch, others = test_mvdiffusion.batch(), params_of(given)
    state = jax.jit(system.init)(cheap_keys.key(0), batch, others)
    before = jax.device_get(state.params)
    after, metrics = jax.jit(system.train_step)(state, batch, jax.random.key(1), others)
    assert np.isfinite(metrics['loss'])
    moved = {name for name, leaf in tree.flatten(after.params).items() if np.any(leaf != tree.flatten(before)[name])}
    assert {name for name in tree.flatten(before) if name.startswith('image/')} <= moved
    functions, weights = system.functions, {'weights': after.params, 'given': others}
    ids, views = batch['tokens'], functions.inputs(cameras.Cameras(batch['world_from_cam'], batch['intrinsics']))
    text = jax.eval_shape(functions.encode, weights, ids)
    out = jax.eval_shape(functions.predict, weights, jnp.zeros((2, 3, 16, 16, 3)), jnp.array([3, 3]), text, views)
    assert out.shape == (2, 3, 16, 16, 3)


def test_what_cannot_be_shown_is_refused():
    system = systems.make(test_mvdiffusion.config(), {})
    with pytest.raises(UsageError, match='an image was given, and mvdiffusion reads text alone'):
        system.check([Request('a red cube', picture((0, 0, 1)))])
    system = systems.make(test_mvdiffusion.config(), seeing())
    system.check([Request('a red cube', picture((0, 0, 1)))])
    views = Views('x', np.zeros((1, 4, 4, 3)), np.zeros((1, 4, 4)), np.zeros((1, 3, 3)))
    with pytest.raises(UsageError, match='posed views were given, and mvdiffusion reads text alone'):
        system.check([Request('a red cube', picture((0, 0, 1)), views)])
    with pytest.raises(UsageError, match='is a Prior, not a Likeness'):
        systems.make(test_mvdiffusion.config(), {'clip': test_mvdiffusion.prior()['prior']})
