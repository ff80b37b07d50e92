"""Training the judge's head: made-up encoders that see shape and colour of made-up furniture."""

import zlib

import jax
import numpy as np
import pytest

from t3d.checkpoint import judges, weights
from t3d.core.errors import UsageError
from t3d.data import captions
from t3d.metrics import align
from t3d.train import align_head

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
    untrained, trained = (align_head.judge(given, test, encode_texts) for given in (None, head))
    assert [report.extractor for report in untrained + trained] == 2 * [align.UNTRAINED] + 2 * [align.TRAINED]
    assert untrained[0].values['align/r1'] > 0.9 and untrained[0].candidates == 4 and untrained[0].n == 32
    assert untrained[1].values['align/colour_acc'] < 0.4 < 0.8 < trained[1].values['align/colour_acc']
    weights.save(tmp_path, align_head._tree(head), {'kind': 'align head'})
    jax.tree.map(np.testing.assert_array_equal, align_head.load(tmp_path), head)
    weights.save(tmp_path, {'image': head.image}, {'kind': 'align head'})
    with pytest.raises(UsageError, match='no head of the offline judge'):
        align_head.load(tmp_path)


def test_examples_are_read_from_records(monkeypatch):
    class Source:
        def __len__(self):
            return 5

        def __getitem__(self, index):
            image = np.zeros((16, 6, 6, 4), np.uint8)
            image[:, :, :3] = [200, 30, 30, 255]  # half red, half nothing
            return {'image': image, 'attributes': {'noun': f'thing {index}', 'colour': 'red'}}

    def encode(pictures):
        assert pictures.shape == (4, 6, 6, 3) and pictures[0, 0, 5].tolist() == [1.0, 1.0, 1.0]
        return np.ones((4, 3)), np.zeros((4, 7))

    found = align_head.examine(Source(), encode, limit=3)
    assert found.pooled.shape == (3, 4, 3) and found.logits.shape == (3, 4, 7) and len(set(found.nouns)) == 3
    assert found.histograms[0, 0, captions.COLOURS.index('red')] == 1.0 and found.histograms[0, 0].sum() == 1.0


def test_phrases_have_their_article():
    assert align_head._phrases('armchair', 'red') == ('an armchair', 'a red armchair')
    assert align_head._phrases('flowers', 'white') == ('flowers', 'white flowers')
    assert align_head._phrases('sofa', '') == ('a sofa', 'a sofa')
