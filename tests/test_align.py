"""The offline judge: ConSE and scores against loops, the head on made-up data, and furniture where built."""

import jax
import numpy as np
import pytest

from t3d.checkpoint import judges
from t3d.core.errors import UsageError
from t3d.metrics import align, scores

random = np.random.default_rng(0)


def test_conse_against_a_loop():
    logits, classes = 3 * random.normal(size=(4, 2, 30)), random.normal(size=(30, 8))
    for some in (logits, logits[:, 0]):
        for got, row in zip(align.conse(some, classes, top=5), some.mean(1) if some.ndim == 3 else some):
            odds = np.exp(row) / np.exp(row).sum()
            mean = sum(odds[k] * classes[k] for k in np.argsort(-odds)[:5])
            np.testing.assert_allclose(got, mean / np.linalg.norm(mean), atol=1e-6)
    huge = align.conse(np.array([[1e4, 0.0, -1e4]]), np.eye(3), top=2)
    np.testing.assert_allclose(huge, [[1.0, 0.0, 0.0]], atol=1e-7)


def test_retrieval_scores_and_their_control():
    texts = np.eye(20)
    images = np.eye(20) + 1.5 * np.eye(20)[:, ::-1] * (np.arange(20) % 2)[:, None]  # odd rows prefer another's
    report = align.evaluate(images, texts, np.arange(20))
    assert report.values == {'align/r1': 0.5, 'align/r5': 1.0, 'align/r10': 1.0, 'align/auc': pytest.approx(1 - 0.5 / 19)}
    assert report.shuffled['align/r1'] <= 0.1 and report.shuffled['align/auc'] < 0.6
    assert (report.n, report.candidates, report.extractor) == (20, 20, align.UNTRAINED)
    assert all('n=20, 20 prompts, EfficientNet-Lite0 + MiniLM (ConSE)' in line for line in report.lines())
    with pytest.raises(UsageError, match='at least 2'):
        align.evaluate(images, texts[:1], np.zeros(20, int))


def test_chance_is_a_half():
    images, texts = random.normal(size=(2000, 8)), random.normal(size=(50, 8))
    report = align.evaluate(images, texts, random.integers(0, 50, 2000))
    assert abs(report.values['align/auc'] - 0.5) < 0.03 and abs(report.values['align/r10'] - 0.2) < 0.04
    colours = align.colour_accuracy(images, random.normal(size=(2000, 8, 8)), random.integers(0, 8, 2000))
    assert abs(colours.values['align/colour_acc'] - 0.125) < 0.03 and colours.candidates == 8


def test_colour_histograms_count_what_is_in_front():
    image = np.zeros((1, 4, 4, 3))
    image[:, :2] = [1.0, 0.0, 0.0]
    mask = np.zeros((1, 4, 4))
    mask[:, :, :2], mask[:, 2:, :2] = 1.0, 1 / 3
    histogram = align.colour_histogram(image, mask, lambda rgb: (rgb[:, 0] > 0.5).astype(int), 3)
    np.testing.assert_allclose(histogram, np.sqrt([[0.25, 0.75, 0.0]]), atol=1e-6)
    np.testing.assert_array_equal(align.colour_histogram(image, 0 * mask, lambda rgb: np.zeros(len(rgb), int), 3), [[0, 0, 0]])


def test_the_head_learns_colours_that_conse_cannot_see():
    """Nouns are in the ConSE vectors, colours in the histogram only; captions name both; nouns of the test are new."""
    nouns, colours, dim = 24, 6, 16
    noun_vectors, colour_vectors = random.normal(size=(nouns, dim)), random.normal(size=(colours, dim))
    texts = scores.unit(noun_vectors[:, None] + colour_vectors[None])  # [nouns, colours, dim]
    noun, colour = np.repeat(np.arange(nouns), 12), np.tile(np.arange(colours), nouns * 2)
    vectors = scores.unit(noun_vectors[noun] + 0.3 * random.normal(size=(len(noun), dim)))
    histogram = np.eye(colours, dtype=np.float32)[colour]
    pooled = np.abs(random.normal(size=(len(noun), 20))).astype(np.float32)
    seen = noun < 18
    head = align.fit(
        *(x[seen] for x in (pooled, vectors, histogram)),
        texts[:18].reshape(-1, dim),
        (noun * colours + colour)[seen, None],
        jax.random.key(0),
        steps=300,
        batch=64,
    )
    images = align.embed_images(head, *(x[~seen] for x in (pooled, vectors, histogram)))
    asked = align.embed_texts(head, texts[noun[~seen]])
    trained = align.colour_accuracy(images, asked, colour[~seen], extractor=align.TRAINED)
    untrained = align.colour_accuracy(vectors[~seen], texts[noun[~seen]], colour[~seen])
    assert untrained.values['align/colour_acc'] < 0.4 < 0.8 < trained.values['align/colour_acc']
    assert trained.shuffled['align/colour_acc'] < 0.2 and trained.n == 72


def test_before_training_a_head_is_conse():
    vectors = scores.unit(random.normal(size=(5, 8)))
    pooled, colours = random.normal(size=(5, 4)).astype(np.float32), random.uniform(size=(5, 3)).astype(np.float32)
    head = align.fit(pooled, vectors, colours, vectors, np.arange(5)[:, None], jax.random.key(0), steps=0)
    assert np.sum(align.embed_images(head, pooled, vectors, colours) * vectors, -1).min() > 0.9
    np.testing.assert_allclose(align.embed_texts(head, vectors), vectors, atol=1e-6)


@pytest.mark.data
def test_conse_names_furniture():
    """R@1 of untrained ConSE among all nouns of built furniture (T3D_DATA): data as built, four views each."""
    if judges.missing():
        pytest.skip(f'needs the packages {", ".join(judges.missing())}')
    from t3d.data.sets import furniture_source

    source = furniture_source.FurnitureSource(split='train', variants=0)
    nouns, pictures = [], []
    for index in range(0, len(source), 4):
        record = source[index]
        rgba = record['image'][[1, 4, 7, 10]] / np.float32(255)
        pictures.append(rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:])
        nouns.append(record['attributes']['noun'])
    encode = judges.text_encoder()
    names = sorted(set(nouns))
    classes = encode([f'a photo of a {name}' for name in judges.imagenet_names()])
    _, logits = judges.image_encoder()(np.concatenate(pictures))
    vectors = align.conse(logits.reshape(len(nouns), 4, -1), classes)
    report = align.evaluate(vectors, encode(names), np.array([names.index(noun) for noun in nouns]))
    assert report.values['align/auc'] > 0.7 > 0.6 > report.shuffled['align/auc']
