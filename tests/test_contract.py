"""The contract of t3d.core.system, held by every system of the table: steps, devices, resuming, weights, requests.

A system that comes new needs a line in `SMALL`, as does a variant that steps otherwise than the `tiny` one of its system; no
test here is written for one of them. Those that compile are `slow`: the systems' own tests compile once each. Where a system
has several steps, they are taken in turn.
"""

import functools
import re

import alike
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_weights
import small_gan
import small_reconstruct
import test_dreamfusion
import test_ganfusion_diffusion
import test_image_diffusion
import test_instant3d
import test_instant3d_rays
import test_instant3d_sds
import test_instant3d_seeds
import test_mvdiffusion
import test_object_places
import test_renderdiffusion

from t3d import systems
from t3d.bench import train as bench_train
from t3d.checkpoint import store as stores
from t3d.checkpoint import weights as folders
from t3d.core import config as configs
from t3d.core import prng, tree
from t3d.core.errors import UsageError
from t3d.core.outputs import KINDS, Request
from t3d.core.system import params_of, weights_of, with_weights
from t3d.data import sources
from t3d.data.sets import shapes
from t3d.inference import given as givens
from t3d.inference import loading
from t3d.parallel import devices, sharding
from t3d.train import program as programs
from t3d.train import states

EIGHT = tuple(f'{start}{colour} {shape}' for start in ('a ', '') for colour in ('red', 'blue') for shape in ('cube', 'cone'))
EXACT = 'optimizer.kernels=adam'  # Muon makes what is rounding in a gradient as large as the rest of it: tests/test_muon.py
SMALL = {
    'dreamfusion': (*test_dreamfusion.SMALL, f'prompts={EIGHT!r}', 'render.size=16', 'cameras.views=1'),
    'ganfusion_gan': (*small_gan.SMALL, 'micro_batch=8'),
    'ganfusion_gan:endless': (*small_gan.SMALL, 'micro_batch=8', 'fakes=shared', 'ladder=((0,4),(16,8))', 'data.count=40'),
    'ganfusion_diffusion': test_ganfusion_diffusion.SMALL,
    'guided_mv': ('sample.steps=3',),
    'image_diffusion': test_image_diffusion.SMALL,
    'instant3d': (*test_instant3d.SMALL, EXACT),
    'instant3d:scenes_rays': (*test_instant3d_rays.SMALL, EXACT),
    'instant3d:sds': (*test_instant3d_sds.SMALL, 'render.size=16', 'text.length=8'),
    'instant3d:toy_codes': test_instant3d_seeds.SMALL,
    'instant3d:toy_places': test_object_places.SMALL,
    'instant3d:toy_imle': test_instant3d_seeds.SMALL,
    'mvdiffusion': test_mvdiffusion.SMALL,
    'mvdiffusion:tiny_epipolar': (*test_mvdiffusion.SMALL, 'views.block_levels=(0,)'),
    'mvdiffusion:tiny_masked': test_mvdiffusion.SMALL,
    'reconstruct': small_reconstruct.SMALL,
    'renderdiffusion': test_renderdiffusion.SMALL,
}
WORDS = 'text.words=("a","red","blue","cube","cone","front","side","back","overhead","view")'
WORDLESS = ('dreamfusion', 'ganfusion_gan', 'ganfusion_gan:endless')  # they have no text of their own
GIVEN = {
    'dreamfusion': {'prior': ('image_diffusion', (*test_image_diffusion.SMALL, WORDS))},
    'ganfusion_diffusion': {'generator': ('ganfusion_gan', test_ganfusion_diffusion.GENERATOR)},
    'instant3d:sds': {'prior': ('image_diffusion', (*test_image_diffusion.SMALL, WORDS))},
    'guided_mv': {
        'views': ('mvdiffusion', (*test_mvdiffusion.SMALL, WORDS)),
        'pictures': ('image_diffusion', (*test_image_diffusion.SMALL, *test_mvdiffusion.LEVELS, WORDS)),
    },
}
ONLY_SAMPLE = ('guided_mv', 'reconstruct')  # they have no step, no weights and no data
OF_VIEWS = ('reconstruct',)  # they read posed views, not prompts
STEPS = 4
# Leaves that no gradient reaches: softmax cancels a key's bias; fixed noise is a constant, and EG3D's upsampler adds none.
STILL = re.compile(r'text/layers/key/bias|buffers/.*/noise_const|generator/superres/.*/noise_strength')
# Mean difference of what two steps move on one and on eight devices, as a share of the largest move (alike.py says why).
FAR = {'ganfusion_gan': 4e-3, 'ganfusion_gan:endless': 4e-3, 'ganfusion_diffusion': 2e-4}  # seen: 7e-4 and 3e-5; of others 8e-6
NAMES = sorted(SMALL)
LEARNERS = [name for name in NAMES if name not in ONLY_SAMPLE]


@functools.cache
def config(name, devices=1):
    overrides = [*SMALL[name], *((WORDS, 'optimizer.warmup=1') if name in LEARNERS and name not in WORDLESS else ())]
    overrides += ['batch=8', 'steps=100', f'mesh.data={devices}'] if name in LEARNERS else []
    return configs.load(file_of(name), overrides)


def file_of(name):
    system, _, variant = name.partition(':')
    return f'configs/{system}.py:{variant or "tiny"}'


def steps(loaded, given):
    """(step, shapes of what it takes) for each step of a system; nothing is made."""
    system = systems.make(loaded, given)
    batch = {key: jax.ShapeDtypeStruct(spec.shape, spec.dtype) for key, spec in system.batch_spec.items()}
    params = {key: one.params for key, one in given.items()}
    state = jax.eval_shape(system.init, prng.key(0), batch, params)
    return [(step, (state, batch, prng.key(0), params)) for step in (system.train_step, *system.other_steps)]


@functools.cache
def described(name):
    """The models that a system is given, without their arrays."""
    models = {}
    for key, (other, overrides) in GIVEN.get(name, {}).items():
        loaded = configs.load(f'configs/{other}.py:tiny', list(overrides))
        system = systems.make(loaded)
        params = weights_of(jax.eval_shape(system.init, prng.key(7), zeros(system), {}), system.weights)
        functions = system if system.functions is None else system.functions
        models[key] = givens.Given(functions, params, loaded, other, sharding=system.sharding)
    return models


@functools.cache
def given(name):
    """The models that a system is given, with random weights of which none is zero."""
    models = {}
    for key, one in described(name).items():
        system = systems.make(one.config)
        state = jax.jit(system.init)(prng.key(7), zeros(system), {})
        params = random_weights.shaken(weights_of(state, system.weights))
        models[key] = one._replace(params=params, digest=givens.digest(params))
    return models


@functools.cache
def made(name, devices=1):
    return systems.make(config(name, devices), described(name))


def zeros(system):
    return {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in system.batch_spec.items()}


@functools.cache
def batch(name):
    """Random pictures in front of cameras, every place with words of its own."""
    rows = bench_train.made_up(made(name).batch_spec)
    random = np.random.default_rng(1)
    for key, spec in made(name).batch_spec.items():
        if jnp.issubdtype(spec.dtype, jnp.signedinteger) or key == 'seed':
            rows[key] = random.integers(1, 5, spec.shape).astype(spec.dtype)
        if key == 'solids':
            rows[key] = np.stack([shapes.table(scene) for scene in shapes.pairs('train')[:: -(-1728 // spec.shape[0])]])
            rows['lamp'] = np.broadcast_to(shapes.LAMP, (spec.shape[0], 6)).copy()
    return rows


@functools.cache
def runner(name, count):
    """(mesh, target, program, state of random weights on the host, numbers of the traced steps) on `count` devices."""
    loaded, traces, system = config(name, count), [], made(name, count)
    first, *others = (
        lambda *args, number=number, step=step: traces.append(number) or step(*args)
        for number, step in enumerate((system.train_step, *system.other_steps))
    )
    system = system._replace(train_step=first, other_steps=tuple(others), choose=lambda step: step % (1 + len(others)))
    mesh = devices.make(loaded.mesh)
    with jax.set_mesh(mesh):
        params = states.placed(given(name), mesh, 1024)
        target = states.abstract(loaded, system, mesh, params)
        program = programs.Program(loaded, system, mesh, target, given=params)
        state = states.fresh(loaded, system, target, given=params)
        shaken = random_weights.shaken(state.params)
        if 'ema' in system.weights:  # the average starts as a copy of what it is the average of
            state = with_weights(
                state, ('ema',), jax.tree.map(lambda _, new: np.array(new), state.ema, picked(shaken, state.ema))
            )
    return mesh, target, program, jax.device_get(state.replace(params=shaken)), traces


def put(state, target):
    return jax.tree.map(lambda leaf, like: jax.device_put(np.array(leaf), like.sharding), state, target)


def picked(params, like):
    """The part of params that has the names of `like`, which may hold it one level deeper."""
    return {name: params[name] for name in like}


@functools.cache
def trained(name, count=1):
    """(state before, after 2 steps, after 4, metrics of the last step, state and metrics of the first), on the host."""
    mesh, target, program, state, _ = runner(name, count)
    kept, first = [state], ()
    with jax.set_mesh(mesh):
        state = put(state, target)
        for k in range(STEPS):
            state, metrics = program(state, batch(name), k)
            kept += [jax.device_get(state)] if k in (1, STEPS - 1) else []
            first = first or jax.device_get((state, metrics))
    return (*kept, jax.device_get(metrics), *first)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture(params=LEARNERS)
def learner(request):
    return request.param


def test_each_system_of_the_table_is_held_to_it():
    assert {name.partition(':')[0] for name in SMALL} == set(systems.SYSTEMS)
    assert set(systems.SYSTEMS) <= set(SMALL)


def test_what_only_samples_has_no_step_no_weights_and_no_data(name):
    system = made(name)
    assert (system.train_step is None) == (not system.weights) == (name in ONLY_SAMPLE)
    assert bool(config(name).get('untrained')) == (name in ONLY_SAMPLE)  # so `t3d generate --system` makes it of its config
    assert name in LEARNERS or not system.batch_spec


@pytest.mark.slow
def test_a_step_is_traced_once_and_moves_every_parameter(learner):
    before, _, after, metrics, *_ = trained(learner)
    assert runner(learner, 1)[-1] == list(range(1 + len(made(learner).other_steps)))
    old = tree.flatten(before.params)
    still = {leaf for leaf, value in tree.flatten(after.params).items() if np.array_equal(value, old[leaf])}
    assert not [leaf for leaf in still if not STILL.fullmatch(leaf)]
    assert int(after.step) == STEPS and np.isfinite(metrics['loss']) and jnp.shape(metrics['loss']) == ()
    for leaf, value in tree.flatten(after.ema).items():
        assert STILL.fullmatch(leaf) or not np.array_equal(value, tree.flatten(before.ema)[leaf]), leaf


@pytest.mark.slow
def test_a_compiled_step_transfers_nothing_that_was_not_placed(learner):
    """Each kind of its steps, with a batch on the device; the same rows on the host are refused: the guard sees them."""
    mesh, target, program, *_ = runner(learner, 1)
    trained(learner)  # compiles all
    with jax.set_mesh(mesh):
        state, rows = put(trained(learner)[2], target), sharding.global_batch(batch(learner), mesh)
        for step in program._steps:
            with jax.transfer_guard('disallow'):
                state, metrics = step(state, rows, program.key, program._given)
            assert np.isfinite(metrics['loss'])
        if rows:
            with (
                pytest.raises(jax.errors.JaxRuntimeError, match='Disallowed host-to-device transfer'),
                jax.transfer_guard('disallow'),
            ):
                program.step(state, batch(learner), program.key, program._given)


@pytest.mark.slow
def test_a_run_that_stops_and_resumes_ends_with_the_same_bits(learner, tmp_path):
    mesh, target, program, *_ = runner(learner, 1)
    store = stores.Store(tmp_path / 'checkpoints', weights=made(learner).weights)
    with jax.set_mesh(mesh):
        middle = put(trained(learner)[1], target)
        store.save(middle, data={'position': 2}, config=config(learner).to_dict())
        store.wait()
        state = store.restore(target).state
        for k in range(2, STEPS):
            state, _ = program(state, batch(learner), k)
    store.close()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), trained(learner)[2])


@pytest.mark.slow
def test_eight_devices_are_one(learner):
    one, many = trained(learner), trained(learner, 8)
    for k in (3, 5):  # the fourth step and the first
        np.testing.assert_allclose(one[k]['loss'], many[k]['loss'], rtol=2e-6, atol=1e-7)  # seen: 4e-7
    alike.gradients(one[4], many[4])
    alike.moves(one[0], one[1], many[1], FAR.get(learner, 4e-5))


@pytest.mark.slow
def test_a_checkpoint_of_one_device_goes_on_on_eight(learner, tmp_path):
    mesh, target, *_ = runner(learner, 1)
    middle = trained(learner)[1]
    store = stores.Store(tmp_path / 'checkpoints', weights=made(learner).weights)
    with jax.set_mesh(mesh):
        store.save(put(middle, target), data={'position': 2}, config=config(learner).to_dict())
        store.wait()
    mesh, target, program, *_ = runner(learner, 8)
    with jax.set_mesh(mesh):
        state = store.restore(target).state
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), middle)
        state, _ = program(state, batch(learner), 2)
    store.close()
    assert int(state.step) == 3 and {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {8}


@pytest.mark.slow
def test_the_weights_in_a_folder_are_enough_to_generate(learner, tmp_path):
    system, last = made(learner), trained(learner)[2]
    folders.save(tmp_path / 'w', weights_of(last, system.weights), config(learner))
    givens.keep(tmp_path / 'w', given(learner))
    loaded = loading.load(tmp_path / 'w')
    requests, keys = [Request('a red cube'), Request('a blue cone')], prng.each(prng.key(5), 2)
    loaded.system.check(requests)
    own = system.generate(
        jax.tree.map(jnp.asarray, weights_of(last, system.weights)), requests, keys, params_of(given(learner))
    )
    for output, other, request in zip(loaded.generate(requests, keys), own, requests):
        assert type(output) in KINDS.values() and output.prompt == request.prompt
        jax.tree.map(np.testing.assert_array_equal, arrays(output), arrays(other))


@pytest.mark.slow
def test_an_output_depends_on_its_request_and_its_key_alone(name):
    system, requests, keys = made(name), [Request('a red cube'), Request('a blue cone')], prng.each(prng.key(5), 2)
    if name in OF_VIEWS:
        scenes = [shapes.single('cube', 'red'), shapes.single('cone', 'blue')]
        requests = [one._replace(views=small_reconstruct.views(scene)) for one, scene in zip(requests, scenes)]
    weights = jax.tree.map(jnp.asarray, weights_of(trained(name)[2], system.weights)) if name in LEARNERS else {}
    both, alone = (system.generate(weights, requests[k:], keys[k:], params_of(given(name))) for k in (0, 1))
    assert type(alone[0]) in KINDS.values() and alone[0].prompt == 'a blue cone'
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), arrays(alone[0]), arrays(both[1]))
    assert any(
        np.abs(a - b).max() > 1e-3 for a, b in zip(*(arrays(output).values() for output in both)) if a.dtype == 'float32'
    )


def arrays(output):
    return {str(k): np.asarray(leaf) for k, leaf in enumerate(jax.tree.leaves(output)) if isinstance(leaf, jax.Array)}


def test_a_request_of_another_kind_is_refused_in_one_sentence(name):
    picture = np.zeros((8, 8, 4), np.float32)
    with pytest.raises(UsageError, match=f'an image was given, and {config(name).system}') as error:
        made(name).check([Request('a red cube', image=picture)])
    assert len(str(error.value).splitlines()) == 1
    of_views = name in OF_VIEWS
    message = (
        f"the prompt 'a red cube' was given, and {config(name).system}"
        if of_views
        else f'posed views were given, and {config(name).system}'
    )
    with pytest.raises(UsageError, match=message):
        made(name).check([Request('a red cube'), Request('a cone', views=picture)])


def test_what_a_system_was_not_given_or_given_in_another_kind_is_named(name):
    for key in described(name):
        with pytest.raises(UsageError, match=f'given.{key} is missing'):
            systems.make(config(name), {other: one for other, one in described(name).items() if other != key})
        wrong = described(name)[key]._replace(functions=made('instant3d'), name='instant3d-scenes')
        with pytest.raises(UsageError, match=f"given.{key}='instant3d-scenes' is a System, not a"):
            systems.make(config(name), {**described(name), key: wrong})


def test_the_batch_is_what_the_data_deliver(learner):
    if not made(learner).batch_spec:  # it learns from prompts alone
        return
    overrides = [word for word in SMALL[learner] if not word.startswith('text.words')]  # the data know them
    try:
        loaded = sources.resolve(configs.load(file_of(learner), [*overrides, 'batch=8']))
        source, transform = sources.make(loaded, None, made(learner).batch_spec)
    except FileNotFoundError:
        pytest.skip('the data of this config are made by hand')
    row = transform(source[0], np.random.default_rng(0))
    assert {key: (value.shape, value.dtype) for key, value in row.items()} == {
        key: (spec.shape[1:], spec.dtype) for key, spec in made(learner).batch_spec.items()
    }
