"""Training the judge's head: made-up encoders that see shape and colour of made-up furniture."""

import importlib
import zlib

import jax
import numpy as np
import pytest

from t3d.checkpoint import judges, weights
from t3d.core.errors import UsageError
from t3d.data.sets import captions
from t3d.evaluate import align_head
from t3d.metrics import align

NOUNS = [f'{a}{b}' for a in ('lamp', 'chair', 'table', 'shelf', 'sofa') for b in ('let', 'board', 'stand', 'bench')]
PALETTE = list(captions.PALETTE)


def encode_texts(texts):
    """Sums of random word vectors: a bag of words."""
    rows = []
    for text in texts:
        words = [word for word in text.split() if word not in ('a', 'an', 'photo', 'of')]
        rows.append(sum(np.random.default_rng(zlib.crc32(word.encode())).normal(size=32) for word in words))
    return np.asarray(rows, np.float32)


@pytest.fixture
def examples(monkeypatch):
    """Classes are the nouns themselves, seen through noise; the histogram tells the colour."""
    monkeypatch.setattr(judges, 'imagenet_names', lambda: NOUNS)
    rng = np.random.default_rng(0)
    nouns = np.repeat(np.arange(len(NOUNS)), 8)
    colours = np.tile(np.arange(8), len(NOUNS))
    logits = 6.0 * np.eye(len(NOUNS))[nouns][:, None] + rng.normal(size=(len(nouns), 2, len(NOUNS)))
    histograms = np.eye(len(captions.COLOURS), dtype=np.float32)[colours][:, None].repeat(2, 1)
    pooled = np.abs(rng.normal(size=(len(nouns), 2, 12))).astype(np.float32)
    names = np.asarray([NOUNS[k] for k in nouns]), np.asarray([PALETTE[k] for k in colours])
    return align_head.Examples(pooled, logits, histograms, *names)


def test_a_head_names_colours_of_unseen_nouns(examples, tmp_path):
    unseen = np.isin(examples.nouns, NOUNS[::5])
    train, test = (align_head.Examples(*(array[which] for array in examples)) for which in (~unseen, unseen))
    assert len(align_head.merge(train, test).nouns) == 160
    head = align_head.fit(train, encode_texts, jax.random.key(0), steps=200)
    untrained, trained = (align_head.judge(some_head, test, encode_texts) for some_head in (None, head))
    assert [report.extractor for report in untrained + trained] == 2 * [align.UNTRAINED] + 2 * [align.TRAINED]
    assert untrained[0].values['align/r1'] > 0.9 and untrained[0].candidates == 4 and untrained[0].n == 32
    assert untrained[1].values['align/colour_acc'] < 0.4 < 0.8 < trained[1].values['align/colour_acc']
    weights.save(tmp_path, align_head._tree(head), {'kind': 'align head'})
    jax.tree.map(np.testing.assert_array_equal, align_head.load(tmp_path), head)
    weights.save(tmp_path, {'image': head.image}, {'kind': 'align head'})
    with pytest.raises(UsageError, match='no head of the offline judge'):
        align_head.load(tmp_path)


class Source:
    """Half red, half nothing; every object another noun. `kind` is the place of its colour in the palette."""

    def __init__(self, split='train', kinds=(0,), count=5):
        self.split, self.kinds, self.count = split, kinds, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        kind = self.kinds[index % len(self.kinds)]
        image = np.zeros((16, 6, 6, 4), np.uint8)
        image[:, :, :3, :3] = np.asarray(255 * np.asarray(captions.PALETTE[PALETTE[kind]]), np.uint8)
        image[:, :, :3, 3] = 255
        return {'image': image, 'attributes': {'noun': f'{self.split}thing{index}', 'colour': PALETTE[kind]}}


def test_examples_are_read_from_records():
    calls = []

    def encode(pictures):
        assert pictures.shape[1:] == (6, 6, 3) and (pictures[:, 0, 5] == 1.0).all() and pictures[0, 0, 0, 1] < 0.2
        calls.append(len(pictures))
        return np.arange(len(pictures))[:, None] * np.ones((1, 3)), np.zeros((len(pictures), 7))

    examples = align_head.examine(Source(), encode, limit=3, batch=2)
    assert calls == [8, 4]  # two objects of four views, then one
    assert examples.pooled.shape == (3, 4, 3) and examples.logits.shape == (3, 4, 7) and len(set(examples.nouns)) == 3
    assert examples.pooled[..., 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]
    assert examples.histograms[0, 0, captions.COLOURS.index('red')] == 1.0 and examples.histograms[0, 0].sum() == 1.0
    with pytest.raises(UsageError, match='limit of at least 1'):
        align_head.examine(Source(), encode, limit=0)


def colour_seen(images):
    """Pooled features: the mean colour of what is not white; logits that know nothing."""
    front = np.abs(images - 1.0).max(-1) > 0.05
    mean = (images * front[..., None]).sum((1, 2)) / np.maximum(front.sum((1, 2)), 1)[:, None]
    return np.repeat(mean, 4, axis=1), np.zeros((len(images), len(NOUNS)))


def test_the_command_trains_a_head_that_names_colours(monkeypatch, tmp_path, capsys):
    launcher = importlib.import_module('launch.align_head')
    monkeypatch.setattr(judges, 'imagenet_names', lambda: NOUNS)
    monkeypatch.setattr(judges, 'image_encoder', lambda: colour_seen)
    monkeypatch.setattr(judges, 'text_encoder', lambda: encode_texts)
    made = lambda data, split: Source(split, range(8), 32 if split == 'train' else 12)  # noqa: E731
    monkeypatch.setattr(align_head.furniture_source, 'FurnitureSource', made)
    out = tmp_path / 'head'
    launcher.main(['--out', str(out), '--steps', '200', '--limit', '24', '--unseen', '8'])
    printed = capsys.readouterr().out
    for name in ('align/r1', 'align/r5', 'align/r10', 'align/auc'):
        assert f'unseen nouns: {name} ' in printed
    assert 'n=16, 16 prompts' in printed and 'n=16, 8 prompts' in printed and '(shuffled ' in printed
    assert align.UNTRAINED in printed and align.TRAINED in printed and '--align-head' in printed
    kept = weights.load(out)[1]
    assert (kept['examples'], kept['unseen_nouns']['head/r1_candidates']) == (24, 16)
    assert kept['unseen_nouns']['conse/colour_acc'] < 0.5 < 0.7 < kept['unseen_nouns']['head/colour_acc']

    prompts = [f'a 3D model of a{"n" * (word[0] == "o")} {word} lamp' for word in PALETTE]
    images = np.stack([Source('x', range(8), 8)[k]['image'][:2] for k in range(8)]) / np.float32(255)
    images = images[..., :3] * images[..., 3:] + 1.0 - images[..., 3:]
    reports = align_head.judge_pictures(align_head.load(out), images, prompts, colour_seen, encode_texts, colours=True)
    assert [report.extractor for report in reports] == 2 * [align.TRAINED]
    assert reports[0].values['align/r1'] > 0.7 > 0.3 > reports[0].shuffled['align/r1'] and reports[0].candidates == 8
    assert reports[1].values['align/colour_acc'] > 0.7 and (reports[1].n, reports[1].candidates) == (8, 8)
    assert len(align_head.judge_pictures(None, images, prompts, colour_seen, encode_texts)) == 1  # colours are not asked for

    monkeypatch.undo()
    monkeypatch.setattr(judges, '_find', lambda file: None)
    with pytest.raises(SystemExit) as stopped:
        launcher.main(['--out', str(out)])
    assert stopped.value.code == 2 and 'pip install --no-deps' in capsys.readouterr().err


def test_prompts_become_photos_in_every_colour():
    assert align_head.photo('a 3D model of an armchair') == align_head.photo('an armchair') == 'a photo of an armchair'
    versions = align_head.recoloured('a photo of a red cube')
    assert versions[:2] == ['a photo of a red cube', 'a photo of an orange cube'] and len(versions) == 8
    assert align_head.recoloured('a photo of an orange cube')[0] == 'a photo of a red cube'
    assert align_head.recoloured('a photo of white flowers')[:2] == ['a photo of red flowers', 'a photo of orange flowers']
    for none in ('a photo of a cube', 'a photo of a red cone on top of a blue cube', 'a photo of a beige sofa'):
        assert align_head.recoloured(none) is None


def test_phrases_have_their_article():
    assert align_head._phrases('armchair', 'red') == ('an armchair', 'a red armchair')
    assert align_head._phrases('flowers', 'white') == ('flowers', 'white flowers')
    assert align_head._phrases('sofa', '') == ('a sofa', 'a sofa')
