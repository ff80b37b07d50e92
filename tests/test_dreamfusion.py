"""DreamFusion in populations: alone and together alike, every field and prior, light, what is occupied, failures, requests."""

import functools

import cheap_keys
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_priors import pictures, views

from t3d import systems
from t3d.core import config as configs
from t3d.core import prng
from t3d.core.errors import UsageError
from t3d.core.outputs import Field, Request
from t3d.core.system import params_of
from t3d.fields import scene_fields
from t3d.geom import cameras
from t3d.systems import dreamfusion

SMALL = (
    'steps=4',
    'scene.resolution=9',
    'scene.channels=4',
    'scene.hidden=8',
    'render.size=8',
    'render.samples=12',
    'render.samples_shown=16',
    'occupancy.cells=6',
    'occupancy.every=2',
    'optimizer.warmup=1',
    'preview.size=8',
)
PROMPTS = ('red cube', 'blue cube', 'green cube')


def config(*overrides, prompts=PROMPTS):
    return configs.load('configs/dreamfusion.py:tiny', [*SMALL, f'prompts={tuple(prompts)!r}', *overrides])


def given(prior=pictures):
    return {'prior': prior()}


@functools.cache
def trained(*overrides, prompts=PROMPTS, prior=pictures, steps=3):
    """(system, the state after each step, metrics of each step)."""
    models = given(prior)
    system = systems.make(config(*overrides, prompts=prompts), models)
    params = params_of(models)
    state, states, told = jax.jit(system.init)(cheap_keys.key(0), {}, params), [], []
    step = jax.jit(system.train_step)
    for n in range(steps):
        state, metrics = step(state, {}, jax.random.fold_in(prng.key(1), n), params)
        states.append(state)
        told.append(jax.device_get(metrics))
    return system, states, told


def test_a_population_makes_the_objects_that_each_prompt_makes_alone():
    system, (*_, together), _ = trained()
    _, (*_, alone), _ = trained(prompts=PROMPTS[1:2])
    for ours, theirs in zip(jax.tree.leaves(alone.params), jax.tree.leaves(together.params), strict=True):
        np.testing.assert_allclose(ours[0], theirs[1], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(alone.extras['cells'][0], together.extras['cells'][1], rtol=1e-4)
    start = jax.jit(system.init)(cheap_keys.key(0), {}, params_of(given()))
    assert np.max(np.abs(start.params['grid'][0] - together.params['grid'][0])) > 1e-3  # something was learned
    assert np.max(np.abs(together.params['grid'][0] - together.params['grid'][1])) > 1e-3


@pytest.mark.parametrize('kind', ('hash', 'triplane', 'mlp'))
def test_every_field_learns_its_colour(kind):
    """Towards the mean of a red prior: red grows and green falls on what is seen, in 12 steps."""
    overrides = (f'scene.kind={kind}', 'steps=12', 'scene.levels=3', 'scene.log2_rows=8', 'scene.layers=1')
    overrides += ('occupancy.cells=0', 'distill.scale=1.0', 'distill.anneal=0', 'optimizer.learning_rate=0.02')
    system, (*_, state), _ = trained(*overrides, prompts=('red cube',), steps=12)
    start = jax.jit(system.init)(cheap_keys.key(0), {}, params_of(given()))
    colour = lambda params: np.asarray(system.preview(params, {}, prng.key(0), {})).reshape(-1, 3).mean(0)
    before, after = colour(start.params), colour(state.params)
    assert after[0] - after[1] > before[0] - before[1] + 0.01


def test_a_multi_view_model_guides_it():
    _, (*_, state), told = trained(prior=views, prompts=PROMPTS[:1])
    assert np.isfinite(told[-1]['loss']) and state.step == 3


def test_light_and_its_losses_come_at_their_steps():
    """Before them a run is the one that never has light, but for how sums round; after them it is another."""
    ramps = ('loss.opacity=(2,0.5,1.0,3)', 'loss.orientation=(2,1.0,1.0,3)', 'shading.start=2', 'shading.shaded=1.0')
    _, lit, told = trained(*ramps, prompts=PROMPTS[1:2], steps=4)
    _, dark, _ = trained(prompts=PROMPTS[1:2])
    np.testing.assert_allclose(lit[1].params['grid'], dark[1].params['grid'], rtol=1e-3, atol=1e-4)
    assert np.max(np.abs(lit[2].params['grid'] - dark[2].params['grid'])) > 1e-3
    assert told[1]['loss/opacity'] == told[1]['loss/orientation'] == 0.0 < told[2]['loss/orientation']
    assert told[3]['loss/opacity'] > 1.5 * told[2]['loss/opacity'] > 0.0


LIT = ('shading.start=0', 'shading.shaded=1.0', 'loss.orientation=(0,1.0,1.0,1)', 'render.importance=4')


@pytest.mark.parametrize('more', ((), LIT))
def test_bands_change_the_memory_of_a_step_and_not_its_gradient(more):
    """With an opacity loss; then with light, an orientation loss and two passes of samples."""
    told = ('loss.opacity=(0,0.5,0.5,1)', 'render.size=16', 'render.samples=24', 'occupancy.cells=0', *more)
    step, key, gradients, bytes_each = jnp.int32(5), prng.key(3), [], []
    for chunks in (1, 8):
        model = dreamfusion.Model(config(*told, f'render.chunks={chunks}', prompts=PROMPTS[:1]), given())
        params = jax.vmap(lambda key, model=model: scene_fields.init(key, model.options))(model.keys(prng.key(0)))
        call = jax.jit(model.gradient).lower(params, {}, params_of(given()), key, step).compile()
        gradients.append(call(params, {}, params_of(given()), key, step))
        bytes_each.append(call.memory_analysis().temp_size_in_bytes)
    (plain, one), (deferred, other) = gradients
    for ours, theirs in zip(jax.tree.leaves(deferred), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())
    assert all(np.isclose(one[name], other[name], rtol=1e-4) for name in one)
    assert bytes_each[0] > 5.0 * bytes_each[1]  # seen: 7.2 for 8 bands, and 7.4 where the renders are of 32 px
    with pytest.raises(UsageError, match='render.chunks=3 does not divide'):
        systems.make(config('render.chunks=3'), given())


def test_a_prior_that_fails_stops_the_run():
    _, _, told = trained(prompts=PROMPTS[:1], prior=functools.partial(pictures, broken=True), steps=1)
    assert told[0]['distill/not_finite'] == 1.0 and np.isnan(told[0]['loss'])


def test_generate_finds_the_object_of_a_prompt():
    system, (*_, state), _ = trained()
    requests = [Request(PROMPTS[2]), Request(PROMPTS[0])]
    made = system.generate(state.params, requests, jax.random.split(prng.key(0), 2), {})
    assert [one.prompt for one in made] == [PROMPTS[2], PROMPTS[0]] and isinstance(made[0], Field)
    np.testing.assert_array_equal(made[0].scene['grid'], state.params['grid'][2])
    rays = cameras.rays(cameras.turntable(2, elevation=0.2, radius=3.2, fov=0.7), 5, 7)
    out = made[0].render(made[0].scene, rays)
    assert out.features.shape == (2, 5, 7, 3) and out.opacity.shape == (2, 5, 7)
    density, rgb = made[0].field(made[0].scene, jnp.zeros((4, 3)))
    assert density.shape == (4,) and density[0] > 1.0 and rgb.shape == (4, 3)  # the blob in the middle


def test_prompts_that_no_object_was_made_for_are_refused():
    system, _, _ = trained()
    with pytest.raises(UsageError, match="no object was made for 'a dog'.*'red cube'.*--system dreamfusion"):
        system.check([Request('a dog')])
    with pytest.raises(UsageError, match=r"prompts=\('red cube', ' '\): no object can be made of an empty prompt"):
        systems.make(config("prompts=('red cube', ' ')"), given())
    with pytest.raises(UsageError, match="same prompt twice, 'red cube'.*--seeds, and an --out"):
        systems.make(config(prompts=('red cube', 'red cube')), given())


@pytest.mark.parametrize(
    ('override', 'message'),
    (
        ('cameras.elevation=(0.5,0.1)', 'elevation'),
        ('cameras.fov=(0.5,3.5)', 'fov'),
        ('scene.kind=voxels', 'scene.kind'),
        ('distill.negatives=fixed', 'distill.words'),
    ),
)
def test_configs_that_no_scene_has_are_refused(override, message):
    with pytest.raises(UsageError, match=message):
        systems.make(config(override), given())
