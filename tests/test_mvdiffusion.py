"""Multi-view diffusion as a system: two programs over one tree, what moves when, dropped cameras, objects apart."""

import functools
import re

import cheap_keys
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_weights
import test_image_diffusion

from t3d import cli, systems
from t3d.core import config as configs
from t3d.core import tree
from t3d.core.errors import UsageError
from t3d.core.outputs import Request, Views
from t3d.core.system import Given, params_of
from t3d.data import sources
from t3d.geom import cameras
from t3d.inference import given as givens
from t3d.inference import loading
from t3d.nets import mv_unet
from t3d.parallel import devices
from t3d.systems import mvdiffusion

LEVELS = ('unet.block_out_channels=(8,)', 'unet.attention_levels=(True,)')
SMALL = (
    *LEVELS,
    'batch=2',
    'steps=40',
    'given.prior=',
    'text.width=16',
    'text.layers=1',
    'text.heads=2',
    'unet.attention_head_dim=2',
    'unet.cross_attention_dim=16',
    'unet.norm_num_groups=4',
    'data.size=16',
    'data.views=3',
    'data.supersample=1',
    'data.poses=2',
    'sample.views=3',
    'sample.steps=3',
    'views.samples=3',
    'diffusion.timesteps=50',
    'staged.unfreeze_at=0',
    'optimizer.warmup=1',
)


@functools.cache
def config(variant='tiny', *overrides):
    return sources.resolve(configs.load(f'configs/mvdiffusion.py:{variant}', [*SMALL, *overrides]))


@functools.cache
def prior() -> dict[str, Given]:
    """A small text-to-image model with random weights."""
    made = sources.resolve(configs.load('configs/image_diffusion.py:tiny', [*test_image_diffusion.SMALL, *LEVELS]))
    system = systems.make(made, {})
    params = random_weights.shaken(jax.jit(system.init)(cheap_keys.key(0), zeros(system)).params)
    return {'prior': Given(system.functions, params, made, 'small', givens.digest(params))}


def zeros(system):
    return {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in system.batch_spec.items()}


@functools.cache
def batch(variant='tiny'):
    source, transform = sources.make(config(variant))
    examples = [transform(source[k], np.random.default_rng(k)) for k in range(2)]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


@functools.cache
def started(*overrides, given=False):
    """(system, state) of random weights; with the given prior, its own start."""
    others = prior() if given else {}
    system = systems.make(config('tiny', *overrides), others)
    state = jax.jit(system.init)(cheap_keys.key(0), batch(), params_of(others))
    return system, state if given else state.replace(params=random_weights.shaken(state.params))


def test_views_of_a_record_stand_around_the_object_at_one_elevation():
    views = cameras.angles(batch()['world_from_cam'])
    azimuth, elevation, radius = (np.asarray(value) for value in views)
    np.testing.assert_allclose(np.diff(azimuth, axis=1) % (2 * np.pi), 2 * np.pi / 3, atol=1e-4)
    np.testing.assert_allclose(elevation, elevation[:, :1] * np.ones(3), atol=1e-5)
    assert np.abs(azimuth[:, 0]).max() < 1e-5 and abs(elevation[0, 0] - elevation[1, 0]) > 1e-2  # first the front


def test_each_step_is_of_one_kind_by_seed_and_step_and_both_learn():
    system, state = started()
    kinds = [system.choose(step) for step in range(2000)]
    assert abs(np.mean(kinds) - config().flat_share) < 0.03 and kinds[:50] == [system.choose(step) for step in range(50)]
    other = systems.make(config('tiny', 'seed=1'), {})
    assert [other.choose(step) for step in range(50)] != kinds[:50]
    for step, other_name in ((system.train_step, 'camera_embedding'), (system.other_steps[0], None)):
        after, metrics = jax.jit(step)(state, batch(), jax.random.key(1), {})
        assert set(metrics) == {'loss', 'mse', 'grad_norm', 'lr'} and np.isfinite(metrics['loss'])
        moved = {
            name: bool((np.asarray(new) != np.asarray(old)).any())
            for (name, new), old in zip(tree.flatten(after.params).items(), jax.tree.leaves(state.params), strict=True)
        }
        of_cameras = [value for name, value in moved.items() if 'camera_embedding' in name]
        assert all(of_cameras) == (other_name is not None)
        still = [name for name, value in moved.items() if not value and 'camera_embedding' not in name]
        assert all(name.endswith('layers/key/bias') for name in still), still
    assert systems.make(config('tiny', 'flat_share=0.0'), {}).choose is None


@pytest.mark.parametrize('given', [False, True])
@pytest.mark.parametrize('copies', [1, 3])
def test_each_text_or_no_text_by_the_coin_as_if_every_row_were_read_apart(copies, given):
    changed = config('tiny', 'drop_text=0.5')
    model = mvdiffusion.Model(changed, prior() if given else {})
    params, others, ids = started(given=given)[1].params, params_of(prior() if given else {}), jnp.asarray(batch()['tokens'])
    read = jax.jit(lambda ids: model.features(params, others, ids))
    seen = set()
    for seed in range(4):
        key = jax.random.key(seed)
        got = jax.jit(lambda key: model.dropped(params, others, ids, key, copies))(key)
        drop = np.asarray(jax.random.uniform(key, (2 * copies, 1)) < 0.5)
        for k in range(2 * copies):
            want = read(model.empty if drop[k] else ids[k // copies][None])[0]
            np.testing.assert_allclose(got[k], want, atol=1e-6)
        seen |= set(drop.ravel().tolist())
    assert seen == {False, True} and np.abs(read(ids) - read(model.empty)).max() > 1e-3


def test_new_layers_learn_first_and_the_prior_is_where_the_others_start():
    system, state = started('staged.unfreeze_at=2', given=True)
    unet = tree.flatten(prior()['prior'].params['unet'])
    for name, leaf in unet.items():
        np.testing.assert_array_equal(tree.flatten(state.params['unet'])[name], leaf)
    assert set(state.params) == {'unet'}
    step = jax.jit(system.train_step)
    others = params_of(prior())
    for count in range(3):
        state, _ = step(state, batch(), jax.random.key(count), others)
        old = [np.asarray(tree.flatten(state.params['unet'])[name] == leaf).all() for name, leaf in unet.items()]
        assert all(old) if count < 2 else not any(old[:5])
        new = tree.flatten(state.params['unet'])['camera_embedding/linear_2/kernel']
        assert count or np.asarray(new).any()


def test_an_object_is_a_function_of_its_prompt_and_key_alone():
    system, state = started()
    prompts, keys = ['a red cube', 'a blue sphere'], jax.random.split(jax.random.key(5), 2)
    both = system.generate(state.ema, [Request(prompt) for prompt in prompts], keys, {})
    alone = system.generate(state.ema, [Request(prompts[1])], keys[1:], {})[0]
    assert isinstance(alone, Views) and alone.images.shape == (3, 16, 16, 3) and alone.world_from_cam.shape == (3, 4, 4)
    np.testing.assert_allclose(both[1].images, alone.images, atol=2e-5)
    azimuth, elevation, radius = cameras.angles(alone.world_from_cam)
    np.testing.assert_allclose(np.asarray(azimuth) % (2 * np.pi), np.arange(3) * 2 * np.pi / 3, atol=1e-4)
    assert np.abs(np.asarray(both[0].images) - np.asarray(both[1].images)).max() > 1e-3


def test_a_prior_of_another_vocabulary_or_size_is_refused():
    with pytest.raises(UsageError, match='given.prior was trained with other words'):
        systems.make(configs.load('configs/mvdiffusion.py:tiny', [*SMALL, 'text.words=("red","cube")']), prior())
    with pytest.raises(UsageError, match='makes pictures of 16 pixels only'):
        systems.make(config('tiny', 'data.size=32'), prior())
    with pytest.raises(UsageError, match='patch=3 does not divide'):
        systems.make(config('tiny', 'patch=3'), {})
    wider = mvdiffusion.make(config('tiny', 'unet.block_out_channels=(16,)'), prior())
    with pytest.raises(UsageError, match='make `unet` of the same sizes'):
        jax.eval_shape(wider.init, jax.random.key(0), batch(), params_of(prior()))


LEVELS_OF = {'tiny_masked': 'views.block_levels=()', 'tiny_epipolar': 'views.block_levels=(0,)'}


@pytest.mark.parametrize('variant', LEVELS_OF)
def test_other_forms_step_and_every_parameter_moves(variant):
    system = systems.make(config(variant, LEVELS_OF[variant], 'flat_share=0.0'), {})
    shapes = jax.eval_shape(system.init, jax.random.key(0), system.batch_spec, {})
    params = jax.tree.map(jnp.asarray, random_weights.fan_in(shapes.params))  # no layer at its zero start
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes).replace(params=params, ema=params)
    after, metrics = jax.jit(system.train_step)(state, batch(), jax.random.key(1), {})
    assert jax.tree.structure(after) == jax.tree.structure(state) and int(after.step) == 1
    assert 0.05 < metrics['loss'] < 20.0 and 0.0 < metrics['grad_norm'] < np.inf
    moved = {name: np.abs(new - tree.flatten(params)[name]).max() for name, new in tree.flatten(after.params).items()}
    still = [name for name, by in moved.items() if not 1e-5 < by < 3e-3]  # Adam's first step: by the rate, 1e-3
    assert all(re.fullmatch(r'.*(layers/key|epipolar/to_k|epipolar/to_k_ray)/bias', name) for name in still), still
    names = ' '.join(moved)
    assert ('epipolar/to_q' in names) == (variant == 'tiny_epipolar')
    kernel = next(leaf.shape for name, leaf in tree.flatten(params).items() if name.endswith('attentions_0/proj_in/kernel'))
    assert kernel[-2] - kernel[-1] == (6 if variant == 'tiny_masked' else 0)  # Plücker coordinates


@pytest.mark.parametrize('share', [0.5, 1.0])
def test_an_object_whose_camera_is_dropped_is_seen_by_a_network_without_cameras(share):
    """Beside the network stands one of the same weights that has no camera embedding, at the same noise."""
    model = mvdiffusion.Model(config('tiny', f'drop_camera={share}', 'drop_text=0.0'), {})
    blind = mvdiffusion.Model(config('tiny', 'views.camera='), {})
    params = started()[1].params
    assert 'camera_embedding' in params['unet'] and blind.unet.camera == 0
    without = {'unet': {name: leaf for name, leaf in params['unet'].items() if name != 'camera_embedding'}}

    def outputs(key):
        called = []

        def predict(params, x, t, features, views):
            called.append((x, t, features, views, mvdiffusion.Model.predict(model, params, x, t, features, views)))
            return called[-1][-1]

        model.predict = predict
        model.loss(params, {}, batch(), key)
        ((x, t, features, views, out),) = called
        told = mvdiffusion.Model.predict(model, params, x, t, features, views._replace(keep=None))
        return out, told, blind.predict(without, x, t, features, mv_unet.NO_VIEWS)

    outputs, dropped = jax.jit(outputs), set()
    for seed in range(5):
        out, told, untold = (np.asarray(value) for value in outputs(jax.random.key(seed)))
        drop = np.asarray(jax.random.bernoulli(jax.random.split(jax.random.key(seed), 4)[1], share, (2,)))
        for k in range(2):
            same, other = (untold[k], told[k]) if drop[k] else (told[k], untold[k])
            np.testing.assert_allclose(out[k], same, atol=1e-5)
            assert np.abs(out[k] - other).max() > 1e-3
        dropped |= set(drop.tolist())
    assert dropped == ({True} if share == 1.0 else {False, True})


def test_given_to_another_it_is_its_functions_and_both_trees():
    system, state = started(given=True)
    made = loading.Loaded(config(), system, state.ema, 'small', 0, None, prior())
    params = {'weights': made.weights, 'given': params_of(made.given)}
    model = system.functions
    ids = jnp.asarray(model.tokenize(['a red cube']))
    views = model.rig(1)
    text = model.encode(params, ids)
    x = jnp.zeros((1, 3, *model.shape))
    out = jax.jit(model.predict)(params, x, jnp.array([3]), text, model.inputs(views, None))
    assert out.shape == x.shape and np.isfinite(np.asarray(out)).all()
    np.testing.assert_allclose(model.decode(params, model.latents(params, jnp.full((1, 3, 16, 16, 3), 0.3))), 0.3, atol=1e-6)
    reaches = jax.grad(lambda images: jnp.sum(model.latents(params, images)))(jnp.full((1, 3, 16, 16, 3), 0.3))
    np.testing.assert_array_equal(reaches, 2.0)  # what distils from it needs the way back to its renders


@pytest.mark.slow
def test_a_step_whose_views_are_spread_over_devices_is_that_of_one_device():
    """Views, and single pictures, which are not spread; three views on three devices, two objects on two."""
    system, state = started()
    spread = systems.make(config('tiny', 'views.axis=tensor'), {})
    for one, many in zip((system.train_step, *system.other_steps), (spread.train_step, *spread.other_steps), strict=True):
        after, metrics = jax.jit(one)(state, batch(), jax.random.key(1), {})
        with jax.set_mesh(devices.make({'data': 2, 'tensor': 3})):
            other, other_metrics = jax.jit(many)(state, batch(), jax.random.key(1), {})
        for name, value in metrics.items():
            np.testing.assert_allclose(other_metrics[name], value, rtol=1e-4)
        for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(other.params), strict=True):
            assert np.abs(np.asarray(a) - np.asarray(b)).max() < 1e-5


@pytest.mark.slow
def test_the_pod_steps_compile_for_eight_devices_and_are_the_same_work_with_views_spread(capsys, tmp_path):
    """One of the four levels; the whole network takes minutes for each step (docs/benchmarks.md)."""
    few = ('text.layers=1', 'unet.layers_per_block=1', 'unet.block_out_channels=(320,)', 'unet.attention_head_dim=(5,)')
    few = (*few, 'unet.attention_levels=(True,)', 'batch=8', f'data.path={tmp_path}')
    work = []
    for mesh, fsdp, tensor, cut in (((), 8, 1, 6), (('views.axis=tensor', 'mesh.fsdp=2', 'mesh.tensor=4'), 2, 4, 3)):
        assert cli.main(['train', 'configs/mvdiffusion.py:pod', *few, *mesh, '--dry-run']) == 0
        text = capsys.readouterr().out
        assert f'mesh: data 1 x fsdp {fsdp} x tensor {tensor} = 8 devices' in text
        assert [f'train step {number} compiled in' in text for number in (1, 2, 3)] == [True, True, False]  # views, pictures
        for own, whole in re.findall(r'arguments ([\d.]+) GiB .state of all devices together ([\d.]+) GiB', text):
            assert float(own) < float(whole) / cut  # biases, norms and some kernels are whole on an axis
        work.append(re.findall(r'model FLOPs of a step: (\S+),', text))
    assert len(work[0]) == 2 and work[0] == work[1]
