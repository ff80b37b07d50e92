"""Instant3D by score distillation: its gradient against an explicit one, prompts apart from each other, data, refusals."""

import functools
import json

import cheap_keys
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_instant3d
from closed_priors import SPREAD, mean_of, pictures, views

from t3d import systems
from t3d.checkpoint import store as stores
from t3d.core import config as configs
from t3d.core import prng, tokens, tree
from t3d.core.errors import UsageError
from t3d.core.system import params_of
from t3d.data import sources
from t3d.diffusion import perp_neg, schedules, timesteps
from t3d.fields import triplane_field
from t3d.fields.text_field import TextField
from t3d.geom import camera_draws, shading
from t3d.inference import loading
from t3d.parallel import devices as devices_of
from t3d.systems import instant3d_supervision
from t3d.train import loop, states

WORDS = ('red', 'green', 'blue', 'cube', 'front', 'side', 'back', 'overhead', 'view')
OF_PICTURES = ('loss.rays', 'data.size')
SMALL = (
    *(line for line in test_instant3d.SMALL if not line.startswith(OF_PICTURES)),
    'decoder.channels=(8,8)',
    'decoder.heads=(2,0)',
    'decoder.groups=(4,4)',
    f'text.words={WORDS!r}',
    'text.length=7',
    'text.layers=1',
    'render.size=8',
    'preview.size=8',
    'export.prompts=("red cube","blue cube")',
)
PROMPTS = ('red cube', 'blue cube', 'green', 'blue', 'red')


def config(*overrides):
    return configs.load('configs/instant3d.py:sds', [*SMALL, *overrides])


def prior(made=pictures, **options):
    """A closed prior that reads the words of the config."""
    given = made(8, **options)
    tokenize = tokens.WordTokenizer(WORDS, 7)

    def encode(params, ids):
        known = jnp.maximum(ids[:, 1:4] - 2, 0)  # closed_priors.WORDS, without overhead and view
        return mean_of(jnp.where(known < 8, known, 0))[:, None]

    return given._replace(functions=given.functions._replace(tokenize=tokenize, encode=encode))


def batch_of(prompts):
    tokenize = tokens.WordTokenizer(WORDS, 7)
    sides = [tokenize([f'{prompt}, {side} view' for side in ('front', 'side', 'back', 'overhead')]) for prompt in prompts]
    return {'tokens': tokenize(list(prompts)), 'index': np.arange(len(prompts), dtype=np.int32), 'sides': np.stack(sides)}


@pytest.mark.parametrize('scale', (1.0, 4.0))
def test_the_decoder_gets_the_explicit_gradient_through_the_renderer(scale):
    """w(t) (eps_hat - eps) of a Gaussian written out, pulled back through params -> pictures: 3 prompts, 2 views."""
    chosen, seen, drawn = config(f'distill.scale={scale}', 'cameras.views=2', 'distill.words=none'), [], []
    given = prior(seen=seen)
    record = lambda params, x: drawn.append(x) or x
    given = given._replace(functions=given.functions._replace(latents=record))
    loss = instant3d_supervision.distilled(chosen, TextField(chosen), {'prior': given}).loss
    batch, params = batch_of(PROMPTS[:3]), {'prior': given.params}

    def both(weights):
        (x, t, _), latents = seen[-1], drawn[-1]
        rows = latents.shape[0]
        x, t = x[-rows:], t[-rows:]
        signal, sigma = (level[:, None, None, None] for level in schedules.levels(given.functions.schedule, t))
        eps = lambda mean: sigma * (x - signal * mean) / (signal**2 * SPREAD**2 + sigma**2)
        mean = jnp.repeat(given.functions.encode(None, batch['tokens'])[:, 0, :], 2, axis=0)[:, None, None]
        return sigma**2 * (eps(0.0) + scale * (eps(mean) - eps(0.0)) - (x - signal * latents) / sigma)

    def latents_of(weights):
        loss(weights, {}, params, batch, prng.key(3), 0)
        return drawn[-1], both(weights)

    @jax.jit
    def ours_and_theirs(weights):
        ours = jax.grad(lambda weights: loss(weights, {}, params, batch, prng.key(3), 0)[0])(weights)
        latents, pull, towards = jax.vjp(latents_of, weights, has_aux=True)
        return ours, pull(towards / latents.shape[0])[0], latents

    ours, theirs, latents = ours_and_theirs(jax.jit(TextField(chosen).init)(cheap_keys.key(0), jnp.asarray(batch['tokens'])))
    assert latents.shape == (6, 8, 8, 3)
    ours, theirs = tree.flatten(ours), tree.flatten(theirs)
    norm = np.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in theirs.values()))
    assert norm > 1e-3
    for name, leaf in ours.items():
        np.testing.assert_allclose(leaf, theirs[name], atol=1e-4 * norm, err_msg=name)


class Planes(TextField):
    """A text field without its decoder: the planes are parameters, and the gradient to them is told prompt by prompt."""

    def scene_from_noise(self, params, ids, noise):
        return {'planes': params['planes'], 'field': params['field']}


@functools.cache
def decoder():
    made = triplane_field.init(prng.key(1), 4, hidden=8, outputs=3, equalised=False)
    return made | {'alpha': jnp.float32(0.7)}


def to_planes(prompts, *overrides, made=pictures, extras=None):
    """(the gradient to the planes [B, 3, 8, 8, 4] of prompts, (metrics, extras)) of one step."""
    chosen, given = config(*overrides), {'prior': prior(made)}
    planes = jax.random.normal(prng.key(2), (3, 3, 8, 8, 4))[: len(prompts)]
    field = decoder()
    supervision = instant3d_supervision.distilled(chosen, Planes(chosen), given)
    extras = supervision.extras() if extras is None else extras
    weights = lambda planes: {'planes': planes, 'field': field}
    of = lambda planes: supervision.loss(weights(planes), extras, params_of(given), batch_of(prompts), prng.key(5), 0)
    return jax.jit(jax.grad(of, has_aux=True))(planes)


@pytest.mark.parametrize('made', (pictures, views))
def test_each_prompt_of_a_batch_is_guided_by_itself(made):
    options = ('distill.words=nearest', 'cameras.views=2') if made is pictures else ('distill.words=none', 'cameras.views=3')
    three, _ = to_planes(PROMPTS[:3], *options, made=made)
    other, _ = to_planes((PROMPTS[0], PROMPTS[3], PROMPTS[2]), *options, made=made)
    alone, _ = to_planes(PROMPTS[:1], *options, made=made)
    np.testing.assert_allclose(three[0], other[0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(three[2], other[2], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(3.0 * three[0], alone[0], rtol=1e-3, atol=1e-6)
    assert np.max(np.abs(three[1] - other[1])) > 1e-3 * np.max(np.abs(three))


def test_regularisers_weigh_what_they_are_asked_to():
    ramps = ('loss.density=(0,0.5,0.5,1)', 'loss.orientation=(0,0.5,0.5,1)', 'loss.smoothness=(0,0.5,0.5,1)')
    plain, (told, _) = to_planes(PROMPTS[:1])
    kept, (more, _) = to_planes(PROMPTS[:1], *ramps)
    assert not any(name.startswith('loss/') for name in told)
    assert all(more[f'loss/{name}'] > 0.0 for name in ('density', 'orientation', 'smoothness'))
    assert np.isfinite(kept).all() and np.max(np.abs(kept - plain)) > 1e-5
    np.testing.assert_allclose(more['distill/residual'], told['distill/residual'], rtol=1e-4)  # the pictures are the same


ADAPTIVE = ('distill.negatives=adaptive', 'distill.words=interpolated', 'distill.scale=2.0', 'data.count=5', 'cameras.views=2')


def test_negatives_adapt_to_the_last_visit_of_each_prompt():
    """Their weights are least + C more times the fixed ones: C .5 at first, 1 for a view that was the same from behind."""
    fixed, _ = to_planes(PROMPTS[:2], 'distill.negatives=fixed', *ADAPTIVE[1:])
    same, (first, extras) = to_planes(PROMPTS[:2], *ADAPTIVE, 'distill.more=0.0')
    np.testing.assert_allclose(same, fixed, rtol=1e-5, atol=1e-7)
    half, _ = to_planes(PROMPTS[:2], *ADAPTIVE)
    expected, _ = to_planes(PROMPTS[:2], *ADAPTIVE, 'distill.least=2.5', 'distill.more=0.0')
    np.testing.assert_allclose(half, expected, rtol=1e-5, atol=1e-7)
    assert first['distill/severity'] == perp_neg.UNSEEN and np.max(np.abs(half - fixed)) > 1e-3 * np.max(np.abs(fixed))
    visits = extras['visits']
    np.testing.assert_array_equal(visits.valid, [True, True, False, False, False])
    np.testing.assert_allclose(np.linalg.norm(visits.features[:2], axis=-1), 1.0, rtol=1e-4)
    np.testing.assert_allclose(visits.azimuth[:2], drawn_azimuths()[:, 1], atol=1e-6)  # of two views the last one stays
    behind = {'visits': visits.replace(azimuth=visits.azimuth + jnp.pi)}
    _, (second, _) = to_planes(PROMPTS[:2], *ADAPTIVE, extras=behind)
    other = 0.25 * (1.0 + np.cos(drawn_azimuths()[:, 0] - drawn_azimuths()[:, 1]))  # times 1 + a cosine in [-1, 1]
    assert 0.5 <= second['distill/severity'] <= 0.5 + np.mean(other)


def drawn_azimuths():
    """[2, 2] azimuths of the step of `to_planes`, drawn once more."""
    drawn = jax.random.split(prng.key(5), 3)[0]
    keys = timesteps.view_keys(drawn, jnp.arange(2))
    draw = lambda key: camera_draws.draw(jax.random.split(key, 5)[0], 2, camera_draws.from_section(config().cameras))
    return jax.jit(jax.vmap(draw))(keys).azimuth


def ended(folder, name, devices=1, stop_after=None):
    """(the state after 3 steps of 8 of 10 prompts, the loss of each step) of a run, on the host."""
    file = folder / 'prompts.txt'
    file.write_text('\n'.join([*PROMPTS, 'green cube', 'cube', 'red green', 'green blue', 'blue red']))
    changes = ('batch=8', 'steps=3', f'mesh.data={devices}', f'data.path={file}', 'data.split=all', 'data.count=10')
    chosen = sources.resolve(config(*ADAPTIVE, *changes, 'preview_every=0', 'log_every=1', 'optimizer.warmup=1'))
    given = {'prior': prior()}
    run = loop.run(chosen, folder / name, stop_after=stop_after, log=lambda line: None, given=given)
    store, mesh = stores.Store(run / 'checkpoints'), devices_of.make(chosen.mesh)
    system = systems.make(chosen, given)
    with jax.set_mesh(mesh):
        state = store.restore(states.abstract(chosen, system, mesh, params_of(given))).state
    store.close()
    lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    return jax.device_get(state), [line['loss'] for line in lines if 'loss' in line]


@pytest.mark.slow
def test_an_interrupted_run_and_one_on_more_devices_end_alike(tmp_path):
    """3 steps = 2 + save + restore + 1, visits of prompts included, exactly; 8 devices learn what one learns."""
    whole, losses = ended(tmp_path, 'whole')
    ended(tmp_path, 'parts', stop_after=2)
    parts, again = ended(tmp_path, 'parts')
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    assert len(losses) == 3 and again[-1] == losses[-1]
    assert whole.extras['visits'].valid.sum() >= 8 and int(whole.step) == 3
    many, told = ended(tmp_path, 'many', 8)
    np.testing.assert_allclose(told, losses, rtol=5e-6)  # seen: 9e-7
    visits, others = whole.extras['visits'], many.extras['visits']
    np.testing.assert_array_equal(others.valid, visits.valid)
    np.testing.assert_allclose(others.azimuth, visits.azimuth, atol=1e-6)
    np.testing.assert_allclose(others.features, visits.features, atol=2e-6)  # seen: 4e-7
    for ours, theirs in zip(jax.tree.leaves(whole.params), jax.tree.leaves(many.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0.0, atol=5e-6)  # seen: 1e-6, of moves of 5e-3


def test_an_oriented_field_is_a_ball_that_looks_outwards():
    """-|p| has the normals p / |p|: max(0, cos)^2 of rays along +x."""
    ball = lambda points, directions=None: (-jnp.linalg.norm(points, axis=-1), points)
    points = jnp.array([[[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0], [0.3, 0.4, 0.0]]])
    directions = jnp.broadcast_to(jnp.array([1.0, 0.0, 0.0]), points.shape)
    _, features = shading.oriented(ball, 0.01)(points, directions)
    assert features.shape == (1, 3, 5)
    np.testing.assert_allclose(shading.orientation_of(features[..., 3:]), [[1.0, 0.0, 0.36]], atol=1e-4)


def test_densities_are_compared_with_those_beside_them():
    model = TextField(config())
    field, steps = decoder(), jax.jit(model.density_steps)
    flat = steps({'planes': jnp.zeros((2, 3, 8, 8, 4)), 'field': field}, prng.key(0))
    assert flat.shape == (2, 1024) and not flat.any()
    rough = steps({'planes': jax.random.normal(prng.key(1), (1, 3, 8, 8, 4)), 'field': field}, prng.key(0))
    assert rough.mean() > 1e-4


# ----------------------------------------------------------------------------------------------------------------- data


def test_prompts_of_a_grammar_come_with_their_sides_and_places():
    chosen = sources.resolve(configs.load('configs/instant3d.py:sds'))
    spec = instant3d_supervision.batch_spec_of_prompts(chosen)
    train, transform = sources.make(chosen, None, spec)
    test, _ = sources.make(chosen, 'test', spec)
    assert (len(train), len(test), len(train.every)) == (48, 16, 64)
    assert sorted([train[k]['index'] for k in range(48)] + [test[k]['index'] for k in range(16)]) == list(range(64))
    example, read = transform(train[7], None), tokens.make(chosen.text)
    assert train.every[example['index']] == train[7]['prompt']
    assert {name: (value.shape, value.dtype) for name, value in example.items()} == {
        name: (leaf.shape[1:], leaf.dtype) for name, leaf in spec.items()
    }
    np.testing.assert_array_equal(example['sides'][2], read([f'{train[7]["prompt"]}, back view'])[0])
    batch, labels = sources.preview(chosen, spec)
    assert set(labels) <= {test[k]['prompt'] for k in range(16)} and len(set(labels)) == len(labels) == 8
    np.testing.assert_array_equal(batch['tokens'], read(labels))


@pytest.mark.parametrize('variant', (pytest.param('sds', marks=pytest.mark.slow), 'sds_trained'))
def test_variants_fit_the_priors_that_they_name(variant):
    chosen = sources.resolve(configs.load(f'configs/instant3d.py:{variant}'))
    given = loading.open_given(chosen)
    system = systems.make(chosen, given)
    state = jax.eval_shape(system.init, prng.key(0), system.batch_spec, params_of(given))
    _, metrics = jax.eval_shape(system.train_step, state, system.batch_spec, prng.key(0), params_of(given))
    assert metrics['loss'].shape == () and 1e6 < tree.count(state.params) < 3e6
    assert ('sides' in system.batch_spec) == (variant == 'sds')


def test_a_file_of_prompts_divides_by_each_prompt_alone(tmp_path):
    lines = [f'thing {k}' for k in range(200)]
    file = tmp_path / 'prompts.txt'
    chosen = lambda: sources.resolve(configs.load('configs/instant3d.py:sds', [f'data.path={file}', 'distill.words=none']))
    file.write_text('\n'.join([*lines, lines[0]]))
    held_out = {record['prompt'] for record in _all(sources.make(chosen(), 'test')[0])}
    assert 8 < len(held_out) < 36 and len(sources.make(chosen(), 'all')[0]) == 200
    file.write_text('\n'.join(lines[:99:-1]))
    assert {record['prompt'] for record in _all(sources.make(chosen(), 'test')[0])} == held_out & set(lines[100:])
    assert {'thing', '150', 'overhead'} <= set(chosen().text.words)


def _all(source):
    return [source[k] for k in range(len(source))]


# -------------------------------------------------------------------------------------------------------------- refusals


def test_prompts_that_cannot_be_read_are_refused(tmp_path):
    file = tmp_path / 'prompts.txt'
    with_file = (*SMALL, f'data.path={file}', 'data.split=all')
    chosen = lambda *more: sources.resolve(configs.load('configs/instant3d.py:sds', [*with_file, *more]))
    file.write_text('\n \n')
    with pytest.raises(UsageError, match='holds no prompt'):
        sources.make(chosen())
    file.write_text('red cube\nred green blue red green blue cube')
    with pytest.raises(UsageError, match='7 words or word pieces, the model reads 5'):
        sources.make(chosen())
    file.write_text('red cube\nred green blue cube')
    assert len(sources.make(chosen())[0]) == 2
    with pytest.raises(UsageError, match='6 words or word pieces, the model reads 5'):  # with ', front view'
        sources.make(chosen(), None, instant3d_supervision.batch_spec_of_prompts(chosen()))
    with pytest.raises(UsageError, match="none is in data.split='test'"):
        sources.make(chosen(), 'test')
    with pytest.raises(UsageError, match="Did you mean 'animals'"):
        sources.make(config('data.prompts=animal'))


@pytest.mark.parametrize(
    ('overrides', 'message'),
    (
        (('supervision=sdf',), "unknown supervision 'sdf'"),
        (('text.words=("cube","red","blue","front","side","back","overhead","view")',), 'trained with other words'),
        (('text.length=9',), 'another length of text'),
        (('cameras.elevation=(0.5,0.1)',), 'elevation'),
        (('distill.words=none', 'distill.negatives=fixed'), 'distill.words'),
        (('distill.negatives=adaptive',), 'data.count=0'),
    ),
)
def test_configs_that_do_not_fit_are_refused(overrides, message):
    with pytest.raises(UsageError, match=message):
        systems.make(config(*overrides), {'prior': prior()})


def test_distillation_needs_its_prior_and_its_sections():
    with pytest.raises(UsageError, match='given.prior is missing.*image_diffusion-toy, toy'):
        systems.make(config(), {})
    plain = configs.load('configs/instant3d.py:tiny', [*test_instant3d.SMALL, 'supervision=sds', f'text.words={WORDS!r}'])
    with pytest.raises(UsageError, match="'cameras'.*configs/instant3d.py:sds"):
        systems.make(plain, {'prior': prior()})
    views = configs.load('configs/instant3d.py:tiny', [*test_instant3d.SMALL, f'text.words={WORDS!r}'])
    with pytest.raises(UsageError, match="given.prior='.*': supervision='photometric' learns from views alone"):
        systems.make(views, {'prior': prior()})
