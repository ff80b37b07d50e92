"""A small Stable Diffusion folder of random weights as `given.prior`: a step and a sample of each system that takes one."""

import cheap_keys
import jax
import numpy as np
import pytest
import small_pipeline
import test_dreamfusion
import test_instant3d_sds
import test_mvdiffusion

from t3d import systems
from t3d.core import config as configs
from t3d.core import prng, tokens, tree
from t3d.core.errors import UsageError
from t3d.core.outputs import Request
from t3d.core.system import params_of, weights_of
from t3d.data import sources
from t3d.inference import loading

PROMPT = 'a red cube'
TEXT = ('text.length=77', 'text.words=()')
OF_TEXT = ('text.', 'given.', 'unet.', 'export.prompts')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    pytest.importorskip('torch'), pytest.importorskip('diffusers')
    return small_pipeline.saved(tmp_path_factory.getbasetemp() / 'sd')[0]


def made(name: str, small, folder, *overrides):
    """(config, system, given models, a batch) of a config with its small settings, but for those of its text."""
    kept = [line for line in small if not line.startswith(OF_TEXT)]
    config = sources.resolve(configs.load(name, [*kept, f'given.prior={folder}', *overrides]))
    given = loading.open_given(config)
    system = systems.make(config, given)
    if not system.batch_spec:
        return config, system, given, {}
    source, transform = sources.make(config, None, system.batch_spec)
    examples = [transform(source[k], np.random.default_rng(k)) for k in range(config.batch)]
    return config, system, given, {name: np.stack([one[name] for one in examples]) for name in examples[0]}


def stepped(system, given, batch):
    """(state before, state after, metrics) of one step, all finite."""
    params = params_of(given)
    before = jax.jit(system.init)(cheap_keys.key(0), batch, params)
    after, metrics = jax.jit(system.train_step)(before, batch, prng.key(1), params)
    for name, leaf in {**tree.flatten(after.params), **metrics}.items():
        assert np.isfinite(leaf).all(), name
    assert any((np.asarray(a) != b).any() for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(before.params)))
    return before, after, metrics


def sampled(system, state, given):
    """What is generated of the prompt."""
    system.check([Request(PROMPT)])
    return system.generate(weights_of(state, system.weights), [Request(PROMPT)], prng.each(prng.key(2), 1), params_of(given))[0]


def of_text(folder) -> tuple[str, ...]:
    size = len(small_pipeline.VOCABULARY)
    return (*TEXT, f'text.folder={folder / "tokenizer"}', f'text.vocabulary_size={size}', f'export.prompts=({PROMPT!r},)')


UNET = (  # that of the folder
    'unet.block_out_channels=(16,32)',
    'unet.layers_per_block=1',
    'unet.attention_head_dim=(2,4)',
    'unet.cross_attention_dim=24',
    'unet.norm_num_groups=8',
    'unet.use_linear_projection=False',
    'unet.attention_levels=(True,False)',
    'patch=1',
)


def multi_view(folder):
    return made('configs/mvdiffusion.py:tiny', test_mvdiffusion.SMALL, folder, *of_text(folder), *UNET)


def feed_forward(folder):
    overrides = (*of_text(folder), 'text.width=16', 'text.heads=2', 'distill.words=none', 'distill.scale=7.5')
    return made('configs/instant3d.py:sds', test_instant3d_sds.SMALL, folder, *overrides)


@pytest.mark.parametrize('chosen', (multi_view, feed_forward))
def test_a_step_with_the_folder_has_the_shapes_of_its_state(folder, chosen):
    _, system, given, batch = chosen(folder)
    state = jax.eval_shape(system.init, prng.key(0), batch, params_of(given))
    after, metrics = jax.eval_shape(system.train_step, state, batch, prng.key(1), params_of(given))
    assert jax.tree.structure(after) == jax.tree.structure(state) and metrics['loss'].shape == ()
    system.check([Request(PROMPT)])


@pytest.mark.slow
def test_mvdiffusion_grows_out_of_the_folder(folder):
    _, system, given, batch = multi_view(folder)
    start, after, _ = stepped(system, given, batch)
    for name, leaf in tree.flatten(given['prior'].params['unet']).items():
        np.testing.assert_array_equal(tree.flatten(start.params['unet'])[name], leaf)
    views = sampled(system, after, given)
    assert views.images.shape == (3, 16, 16, 3) and np.isfinite(views.images).all()


def test_dreamfusion_is_guided_by_the_folder(folder):
    small = (*test_dreamfusion.SMALL, f'prompts=({PROMPT!r},)')
    _, system, given, batch = made('configs/dreamfusion.py:tiny', small, folder, 'distill.scale=7.5')
    _, after, metrics = stepped(system, given, batch)
    assert metrics['distill/residual'] > 0.1 and metrics['distill/not_finite'] == 0.0
    field = sampled(system, after, given)
    density, rgb = field.field(field.scene, np.zeros((4, 3), np.float32))
    assert np.isfinite(density).all() and rgb.shape == (4, 3)


@pytest.mark.slow
def test_instant3d_is_distilled_from_the_folder(folder):
    _, system, given, batch = feed_forward(folder)
    _, after, metrics = stepped(system, given, batch)
    assert metrics['distill/residual'] > 0.1 and metrics['distill/not_finite'] == 0.0
    field = sampled(system, after, given)
    density, rgb = field.field(field.scene, np.zeros((4, 3), np.float32))
    assert np.isfinite(density).all() and rgb.shape == (4, 3)


def test_a_tokenizer_of_other_words_is_told_from_that_of_the_folder(folder, tmp_path):
    """The one of the folder lacks most of the probes; what it reads is enough."""
    other = tmp_path / 'other'
    small_pipeline.write_tokenizer(other)
    text = lambda where: configs.from_dict({'text': {'words': (), 'length': 77, 'folder': str(where)}}).text
    theirs = tokens.load_clip(str(folder / 'tokenizer'))
    assert tokens.probe(text(other)) == ['', PROMPT]
    tokens.refuse_other(text(other), theirs, tokens.probe(text(other)))
    merges = other / 'merges.txt'
    merges.write_text(merges.read_text().replace('r e\nre d</w>\n', ''))
    for prior in (theirs, tokens.WordTokenizer(('a', 'cube'), 77)):
        with pytest.raises(UsageError, match='given.prior was trained with other words'):
            tokens.refuse_other(text(other), prior, tokens.probe(text(other)))
