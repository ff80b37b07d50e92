"""Every variant of every config builds its system; a step of the tiny ones is traced, and in `make test-slow` of all."""

import jax
import numpy as np
import pytest

from t3d import systems
from t3d.core import config as configs
from t3d.core import tree
from t3d.core.system import params_of
from t3d.data import sources
from t3d.data.sets import toy
from t3d.data.sets.captions import vocabulary
from t3d.inference import loading

APART = [('instant3d', 'sds')]  # its words are those of the weights it is given: test_instant3d_sds
SAMPLED = [('guided_mv', name) for name in ('tiny', 'base', 'pod')]  # nothing to train


def variants(name: str) -> list[str]:
    """All variants of a config, by its own words for one that it lacks."""
    with pytest.raises(ValueError, match='there are ') as error:
        configs.load(f'configs/{name}.py:no-such-variant')
    return str(error.value).partition('there are ')[2].split(', ')


VARIANTS = [(name, variant) for name in configs.files() for variant in variants(name) if (name, variant) not in SAMPLED + APART]
# No text of their own; one object; rungs would be traced again.
WITHOUT_DATA = {'dreamfusion': ['prompts=("a red cube",)'], 'ganfusion_gan': ['ladder=()'], 'reconstruct': []}
MILLIONS = {('instant3d', 'pod'): (540.0, 640.0), ('instant3d', 'tiny'): (1.0, 3.0), ('image_diffusion', 'tiny'): (2.0, 3.0)}
MILLIONS.update({('dreamfusion', 'tiny'): (0.26, 0.27), ('dreamfusion', 'sd'): (12.5, 12.7)})  # 8 x 32^3; 2 x 6.3 M rows
MILLIONS[('image_diffusion', 'pod')] = MILLIONS[('mvdiffusion', 'pod')] = (1100.0, 1200.0)
MILLIONS.update({('ganfusion_gan', 'tiny'): (0.60, 0.61), ('ganfusion_gan', 'ffhq'): (62.0, 62.2)})  # EG3D's: 30.66 + 31.36
MILLIONS.update({('ganfusion_diffusion', 'tiny'): (4.28, 4.30), ('renderdiffusion', 'tiny'): (4.4, 4.7)})  # text 0.1 of it
MILLIONS.update({('ganfusion_diffusion', 'pod'): (953.0, 954.0), ('renderdiffusion', 'pod'): (975.0, 1000.0)})  # no generator


LARGE = [pytest.param(*each, marks=() if each[1] == 'tiny' else pytest.mark.slow) for each in VARIANTS]


def made(name, variant):
    """(system, parameters of the models that it is given), all by shapes."""
    counted = ['data.count=8', f'text.words={toy.WORDS!r}'] if 'sds' in variant else []  # prompts, of which some are read
    config = configs.load(f'configs/{name}.py:{variant}', [*WITHOUT_DATA.get(name, ['text.words=("a",)']), *counted])
    given = loading.open_given(config)  # of a config that another one describes: its shapes
    return systems.make(config, given), params_of(given)


@pytest.mark.parametrize('name, variant', VARIANTS)
def test_every_variant_makes_a_system(name, variant):
    system, _ = made(name, variant)
    assert system.train_step is None or system.weights


@pytest.mark.parametrize('name, variant', LARGE)
def test_every_variant_makes_its_system_by_shapes_alone(name, variant):
    system, others = made(name, variant)
    if system.train_step is None:
        return
    abstract = jax.eval_shape(system.init, jax.random.key(0), system.batch_spec, others)
    low, high = MILLIONS.get((name, variant), (0.5, 1000.0))
    assert low < tree.count(abstract.params) / 1e6 < high
    after, metrics = jax.eval_shape(system.train_step, abstract, system.batch_spec, jax.random.key(0), others)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), abstract)
    assert all(value.shape == () for value in metrics.values())


def test_the_pod_decoder_has_the_released_sizes():
    from t3d.nets import text_decoder

    decoder = configs.load('configs/instant3d.py:pod').decoder
    assert {name: decoder[name] for name in text_decoder.RELEASED} == text_decoder.RELEASED


def test_variants_are_those_that_each_file_names():
    assert set(SAMPLED) <= {('guided_mv', variant) for variant in variants('guided_mv')}
    assert {('instant3d', 'furniture_seeds'), ('ganfusion_gan', 'endless'), ('mvdiffusion', 'pod_epipolar')} <= set(VARIANTS)
    assert set(APART) <= {('instant3d', variant) for variant in variants('instant3d')}
    assert {name for name, _ in VARIANTS + SAMPLED} == set(configs.files())


def test_a_config_cannot_train_on_held_out_views():
    config = configs.load('configs/instant3d.py:tiny', ['data.train_views=2', 'data.views=3'])
    source, transform = sources.make(sources.resolve(config))
    with pytest.raises(ValueError, match='data.views=3, but a record of toy has 2 views'):
        transform(source[0], np.random.default_rng(0))


def test_words_are_resolved_from_the_data():
    config = sources.resolve(configs.load('configs/instant3d.py:tiny'))
    assert set('a red cone on top of'.split()) <= set(config.text.words)
    words = vocabulary(['a chair', 'a red chair', 'Sofa'])
    assert words == ['a', 'chair', 'red', 'sofa']


def test_unknown_data_sets_are_refused():
    config = configs.load('configs/instant3d.py:tiny', ['data.name=shapenet'])
    with pytest.raises(
        ValueError,
        match=r"unknown data set \(data.name\) 'shapenet': there are furniture, posed, records, toy, toy_endless",
    ):
        sources.make(config)


def test_toy_sources_mix_singles_and_pairs():
    source = toy.ToySource('train', scenes='both', poses=2)
    kinds = [len(source.scene(k).objects) for k in range(300)]
    assert kinds.count(1) == 100 and len({source.scene(k).captions[0] for k in range(3000)}) > 1700
