"""The offline judge (metrics/align.py) at work: on a run's pictures, and its head, trained on built furniture.

`python -m launch.align_head --out DIR` trains one and says how good it is on unseen nouns: it writes a weights folder with the
head and its scores; `load` gives the head back. Build the data with recoloured variants (`t3d data build furniture
--variants 7`), or the head learns no colours that it was not shown.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.checkpoint import judges, weights
from t3d.core import prng
from t3d.core.errors import UsageError
from t3d.data.sets import captions, furniture_source
from t3d.metrics import align, scores

VIEWS = (1, 11, 4, 7)  # of furniture: two at 30 degrees from the front, two from behind
BEHIND = 0.05  # of a channel's range: pixels of a render as near as this to the background are none of the object's
_NAMED = captions.name_colours, len(captions.COLOURS)
PROMPT = 'a photo of {}'  # reads better than the bare caption: R@1 .118 against .073 (ConSE, 820 objects, 598 nouns)


class Examples(NamedTuple):
    """What the judge's networks say of N examples of V views, and what is true of them."""

    pooled: np.ndarray  # [N, V, 1280]
    logits: np.ndarray  # [N, V, 1000]
    histograms: np.ndarray  # [N, V, colours]
    nouns: np.ndarray  # [N] of str
    colours: np.ndarray  # [N] of str, '' where none is spoken


def examine(source, encode_images, *, views=VIEWS, limit: int | None = None, batch: int = 8) -> Examples:
    """Runs an image encoder (judges.image_encoder) over a furniture split; the first `limit` of a seeded order."""
    order = np.random.default_rng(0).permutation(len(source))[:limit]
    if not len(order):
        raise UsageError('no examples to read: give a limit of at least 1 and a split that is not empty.')
    rows = []
    for start in range(0, len(order), batch):
        records = [source[int(index)] for index in order[start : start + batch]]
        rgba = np.stack([record['image'][list(views)] for record in records]) / np.float32(255)
        pooled, logits, histograms = describe(encode_images, rgba[..., :3], rgba[..., 3])
        words = ((record['attributes']['noun'], record['attributes']['colour']) for record in records)
        rows += [(*parts, *said) for *parts, said in zip(pooled, logits, histograms, words)]
    return Examples(*map(np.asarray, zip(*rows)))


def describe(encode_images, rgb: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pooled features [N, V, 1280], logits [N, V, 1000] and colour histograms [N, V, colours] of views over white.

    Args:
      rgb: [N, V, S, S, 3] straight colours in [0, 1]; alpha: [N, V, S, S], 1 in front.
    """
    shape, colours = rgb.shape[:2], len(captions.COLOURS)
    histogram = align.colour_histogram(rgb.reshape(-1, *rgb.shape[2:]), alpha.reshape(-1, *alpha.shape[2:]), *_NAMED)
    pictures = rgb * alpha[..., None] + 1.0 - alpha[..., None]
    pooled, logits = encode_images(pictures.reshape(-1, *rgb.shape[2:]))
    return pooled.reshape(*shape, -1), logits.reshape(*shape, -1), histogram.reshape(*shape, colours)


def merge(*parts: Examples) -> Examples:
    """All examples of several parts, in order."""
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


def judge_pictures(
    head: align.Head | None,
    pictures: np.ndarray,
    prompts: list[str],
    encode_images,
    encode_texts,
    *,
    background: float = 1.0,
    colours: bool = False,
) -> list[scores.Report]:
    """Retrieval of each prompt among the different ones by its pictures; None judges by ConSE alone.

    Pixels within `BEHIND` of the background count as none in the colour histogram, and are shown white as in training.

    Args:
      pictures: [N, V, S, S, 3] in [0, 1]: the V views of an object are judged together.
      prompts: [N]; asked for in the form `photo`.
      background: grey level behind the objects.
      colours: also `align/colour_acc`, over the prompts that speak exactly one colour of the palette; none if none does.
    """
    name = align.UNTRAINED if head is None else align.TRAINED
    front = np.abs(pictures - background).max(-1) > BEHIND
    pooled, logits, histograms = describe(encode_images, pictures, front.astype(np.float32))
    vectors = align.conse(logits, _classes(encode_texts))
    if head is not None:
        vectors = align.embed_images(head, pooled.mean(1), vectors, histograms.mean(1))

    def read(phrases):
        texts = encode_texts(phrases)
        return texts if head is None else align.embed_texts(head, texts)

    phrases = [photo(prompt) for prompt in prompts]
    different = list(dict.fromkeys(phrases))
    own = np.array([different.index(phrase) for phrase in phrases])
    reports = [align.evaluate(vectors, read(different), own, extractor=name)]
    asked = [recoloured(phrase) for phrase in different]
    spoken = np.array([asked[k] is not None for k in own])
    if colours and spoken.any():
        true = np.array([asked[k].index(different[k]) for k in own[spoken]])
        used = [k for k, versions in enumerate(asked) if versions]
        texts = read([text for k in used for text in asked[k]]).reshape(len(used), len(captions.PALETTE), -1)
        texts = texts[np.searchsorted(used, own[spoken])]
        reports.append(align.colour_accuracy(vectors[spoken], texts, true, extractor=name))
    return reports


def by_second_judge(report: scores.Report) -> scores.Report:
    """A report of judge_pictures that judges.second_image_encoder was asked for: `align_mobilenet/...` and its extractor."""
    values, control = ({key.replace('align/', 'align_mobilenet/'): x for key, x in part.items()} for part in report[:2])
    return report._replace(values=values, shuffled=control, extractor=align.SECOND)


def photo(prompt: str) -> str:
    """'a photo of a red cube' of 'a red cube' and of 'a 3D model of a red cube': the form that the judge reads best."""
    return PROMPT.format(prompt.removeprefix('a 3D model of '))


def recoloured(phrase: str) -> list[str] | None:
    """The phrase in each colour of the palette, with its article; None unless exactly one word of it is such a colour."""
    words = phrase.split()
    places = [k for k, word in enumerate(words) if word in captions.PALETTE]
    if len(places) != 1:
        return None
    (place,), versions = places, []
    for colour in captions.PALETTE:
        changed = [*words[:place], colour, *words[place + 1 :]]
        if place and words[place - 1] in ('a', 'an'):
            changed[place - 1] = 'an' if colour[0] in 'aeiou' else 'a'
        versions.append(' '.join(changed))
    return versions


def train(
    out, data=None, *, seed: int = 0, limit: int | None = None, unseen: int | None = None, steps: int = 1500, log=print
) -> align.Head:
    """Fits a head on the split `train` of furniture, reports on unseen nouns, writes the weights folder `out`.

    Args:
      data: folder of the built data; None looks where `t3d data build` writes.
      limit: at most this many examples to learn from, to save time.
      unseen: at most this many examples of each of the splits `val` and `test`.
    """
    encode_images, encode_texts = judges.image_encoder(), judges.text_encoder()
    sources = {split: furniture_source.FurnitureSource(data, split) for split in ('train', 'val', 'test')}

    def read(split, most):
        count = min(len(sources[split]), len(sources[split]) if most is None else most)
        log(f'reading {count} examples of furniture/{split}, {len(VIEWS)} views each')
        return examine(sources[split], encode_images, limit=most)

    learned = read('train', limit)
    head = fit(learned, encode_texts, prng.key(seed), steps=steps)
    held_out, figures = merge(read('val', unseen), read('test', unseen)), {}
    for which, candidate in (('conse', None), ('head', head)):
        for report in judge(candidate, held_out, encode_texts):
            log('\n'.join(f'unseen nouns: {line}' for line in report.lines()))
            figures |= {f'{which}/{name.partition("/")[2]}': value for name, value in report.values.items()}
            figures |= {f'{which}/{name.partition("/")[2]}_shuffled': value for name, value in report.shuffled.items()}
            figures |= {f'{which}/{name.partition("/")[2]}_n': report.n for name in report.values}
            figures |= {f'{which}/{name.partition("/")[2]}_candidates': report.candidates for name in report.values}
    about = {'seed': seed, 'steps': steps, 'examples': len(learned.nouns), 'nouns': len(set(learned.nouns.tolist()))}
    weights.save(out, _tree(head), {'kind': 'align head', **about, 'unseen_nouns': figures})
    log(f'wrote {out}: use it by `t3d eval RUN --metrics align --align-head {out}`')
    return head


def load(folder) -> align.Head:
    """The head that `train` wrote.

    Raises:
      UsageError: the folder holds nothing, or something else.
    """
    hint = 'Give --align-head a folder that `python -m launch.align_head --out DIR` wrote.'
    weights.require(folder, hint)
    params, config = weights.load(folder)
    if config.get('kind') != 'align head' or set(params) != {'image', 'text', 'log_scale', 'pooled_scale'}:
        raise UsageError(f'{folder} holds no head of the offline judge. {hint}')
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
