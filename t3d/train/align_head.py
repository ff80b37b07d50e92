"""Trains the head of the offline judge (metrics/align.py) on built furniture, and says how good it is on unseen nouns.

A weights folder with the head and its scores is written; `load` gives the head back. Build the data with recoloured variants
(`t3d data build furniture --variants 7`), or the head learns no colours that it was not shown.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.checkpoint import judges, weights
from t3d.core.errors import UsageError
from t3d.data import captions, furniture_source
from t3d.metrics import align, scores

VIEWS = (1, 11, 4, 7)  # of furniture: two at 30 degrees from the front, two from behind
PROMPT = 'a photo of {}'  # reads better than the bare caption: R@1 .118 against .073 (ConSE, 820 objects, 598 nouns)


class Examples(NamedTuple):
    """What the judge's networks say of N examples of V views, and what is true of them."""

    pooled: np.ndarray  # [N, V, 1280]
    logits: np.ndarray  # [N, V, 1000]
    histograms: np.ndarray  # [N, V, colours]
    nouns: np.ndarray  # [N] of str
    colours: np.ndarray  # [N] of str, '' where none is spoken


def examine(source, encode_images, *, views=VIEWS, limit: int | None = None) -> Examples:
    """Runs an image encoder (judges.image_encoder) over a furniture split; the first `limit` of a seeded order."""
    order = np.random.default_rng(0).permutation(len(source))[:limit]
    found = []
    for index in order:
        record = source[index]
        rgba = record['image'][list(views)] / np.float32(255)
        rgb, alpha = rgba[..., :3], rgba[..., 3:]
        histogram = align.colour_histogram(rgb, alpha[..., 0], captions.name_colours, len(captions.COLOURS))
        words = record['attributes']['noun'], record['attributes']['colour']
        found.append((*encode_images(rgb * alpha + 1.0 - alpha), histogram, *words))
    return Examples(*map(np.asarray, zip(*found)))


def merge(*parts: Examples) -> Examples:
    """Examples one after another."""
    return Examples(*(np.concatenate(arrays) for arrays in zip(*parts)))


def fit(train: Examples, encode_texts, key, *, steps: int = 1500) -> align.Head:
    """A head from single views and from the mean of all views of each example, each with every caption that is true of it."""
    classes = _classes(encode_texts)
    phrases = sorted({phrase for pair in zip(train.nouns, train.colours) for phrase in _phrases(*pair)})
    place = {phrase: k for k, phrase in enumerate(phrases)}
    rows = np.asarray([[place[phrase] for phrase in _phrases(*pair)] for pair in zip(train.nouns, train.colours)])
    views = train.logits.shape[1]
    sets = [(train.pooled[:, k], train.logits[:, k], train.histograms[:, k]) for k in range(views)]
    sets.append((train.pooled.mean(1), train.logits, train.histograms.mean(1)))
    pooled, vectors, histograms = (
        np.concatenate(parts)
        for parts in zip(*((pooled, align.conse(logits, classes), colours) for pooled, logits, colours in sets))
    )
    texts = encode_texts([PROMPT.format(phrase) for phrase in phrases])
    return align.fit(pooled, vectors, histograms, texts, np.tile(rows, (views + 1, 1)), key, steps=steps)


def judge(head: align.Head | None, examples: Examples, encode_texts) -> list[scores.Report]:
    """Retrieval of the noun among the examples' nouns, and the palette's colour given the noun; None judges by ConSE alone."""
    name = align.UNTRAINED if head is None else align.TRAINED
    vectors = align.conse(examples.logits, _classes(encode_texts))
    if head is not None:
        vectors = align.embed_images(head, examples.pooled.mean(1), vectors, examples.histograms.mean(1))

    def read(phrases):
        texts = encode_texts([PROMPT.format(phrase) for phrase in phrases])
        return texts if head is None else align.embed_texts(head, texts)

    nouns, own = np.unique(examples.nouns, return_inverse=True)
    reports = [align.evaluate(vectors, read([_phrases(noun, '')[0] for noun in nouns]), own, extractor=name)]
    palette = list(captions.PALETTE)
    spoken = np.isin(examples.colours, palette)
    if spoken.any():
        asked = read([_phrases(noun, colour)[-1] for noun in nouns for colour in palette])
        asked = asked.reshape(len(nouns), len(palette), -1)[own[spoken]]
        true = np.array([palette.index(colour) for colour in examples.colours[spoken]])
        reports.append(align.colour_accuracy(vectors[spoken], asked, true, extractor=name))
    return reports


def train(out, data=None, *, seed: int = 0, limit: int | None = None, steps: int = 1500, log=print) -> align.Head:
    """Fits a head on the split `train` of furniture, reports on unseen nouns, writes the weights folder `out`.

    Args:
      data: folder of the built data; None looks where `t3d data build` writes.
      limit: examples of each split, to save time.
    """
    encode_images, encode_texts = judges.image_encoder(), judges.text_encoder()

    def read(split):
        log(f'reading furniture/{split}')
        return examine(furniture_source.FurnitureSource(data, split), encode_images, limit=limit)

    unseen = merge(read('val'), read('test'))
    head = fit(read('train'), encode_texts, jax.random.key(seed), steps=steps)
    figures = {}
    for which, given in (('conse', None), ('head', head)):
        for report in judge(given, unseen, encode_texts):
            log('\n'.join(f'unseen nouns: {line}' for line in report.lines()))
            figures |= {f'{which}/{name.partition("/")[2]}': value for name, value in report.values.items()}
            figures |= {f'{which}/{name.partition("/")[2]}_shuffled': value for name, value in report.shuffled.items()}
    weights.save(out, _tree(head), {'kind': 'align head', 'seed': seed, 'unseen_nouns': figures})
    return head


def load(folder) -> align.Head:
    """The head that `train` wrote.

    Raises:
      UsageError: the folder holds something else.
    """
    params, config = weights.load(folder)
    if config.get('kind') != 'align head' or set(params) != {'image', 'text', 'log_scale', 'pooled_scale'}:
        raise UsageError(f'{folder} holds no head of the offline judge: give a folder that align_head.train wrote.')
    return align.Head(**jax.tree.map(jnp.asarray, params))


def _tree(head: align.Head) -> dict:
    return {'image': head.image, 'text': head.text, 'log_scale': head.log_scale, 'pooled_scale': head.pooled_scale}


def _classes(encode_texts) -> np.ndarray:
    return encode_texts([PROMPT.format(f'a {name}') for name in judges.imagenet_names()])


def _phrases(noun: str, colour: str) -> tuple[str, str]:
    """The noun with its article, and the same with the colour if one is spoken."""
    texts = captions.captions(noun, colour)
    article = 0 if captions.is_plural(noun) else 1  # the bare noun comes first; with its article it is another text
    return texts[article], texts[article + 2] if colour else texts[article]
