"""Captions for pictures that a generator made: what each one shows, as slots, and the sentence of those slots.

A `Captioner` has `caption(images [N, V, H, W, 3] in [0, 1], labels [N, V, 25]) -> [{slot: value}, ...]`, V pictures of one
object with their cameras, and `render(slots, choice) -> str`; `choice` picks among sentences that are equally true.

    toy         shape, colour and size by comparison with all 64 single objects of the grammar from the same cameras
    endless     solids, colours and size by comparison with drawn objects of toy_endless, from cameras of its own
    catalogue   noun and colour, or the caption, of the training picture with the nearest features
    blip        a free sentence by BLIP, with the user's weights (build/captioners_blip.py)
    blip-vqa    attribute questions to BLIP-VQA, the answers filled into a template

The first three add the slot `distance`, by which failures can be told: `data.max_distance` of a config drops them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.data.adapters import single_view
from t3d.data.sets import camera_labels, captions, endless_reader, oracle, shapes, toy

NAMES = ('toy', 'endless', 'catalogue', 'blip', 'blip-vqa')
COMPARED = 32  # px; larger pictures are averaged down to this before toy's comparison
# Toy's distance is 1 for an empty picture and below 0.3 for the truth (edges of small objects); at one half, three quarters of
# what the object adds to the background are explained.
THRESHOLD = 0.5


class Captioner(NamedTuple):
    """From pictures to slots to sentences.

    Attributes:
      name: with what weights, where it has any; kept in the manifest.
      caption: (images [N, V, H, W, 3] float in [0, 1], labels [N, V, 25]) -> N dictionaries of slots.
      render: (slots, choice=0) -> the caption.
      labels: float32 [M, 25], the cameras that it reads pictures from; None for any.
    """

    name: str
    caption: Callable
    render: Callable
    labels: np.ndarray | None = None


def make(name: str, config, *, weights=None, template: str = 'objects') -> Captioner:
    """The captioner of a name for the pictures of a generator's config.

    Args:
      weights: a local folder, for blip and blip-vqa.
      template: of blip-vqa: 'people', 'faces' or 'objects'.
    Raises:
      UsageError: an unknown name, or what the captioner needs is not there.
    """
    if name == 'toy':
        if config.data.name != 'toy':
            raise UsageError(f"captioner toy knows the objects of toy, and this generator's data are {config.data.name!r}.")
        return Captioner('toy', ToyReader(config.render.background), toy_caption)
    if name == 'endless':
        if config.data.name != 'toy_endless':
            raise UsageError(f"captioner endless reads toy_endless, and this generator's data are {config.data.name!r}.")
        reader = endless_reader.Reader(config.render.background)
        return Captioner('endless', reader, endless_reader.caption, reader.labels)
    if name == 'catalogue':
        return catalogue(config)
    if name in ('blip', 'blip-vqa'):
        from t3d.build import captioners_blip

        made = captioners_blip.sentences(weights) if name == 'blip' else captioners_blip.answers(weights, template)
        return Captioner(*made)
    raise UsageError(configs.unknown(name, NAMES, 'captioner'))


# ---------------------------------------------------------------------------------------------------------------- toy


class ToyReader:
    """Which single toy object do pictures from known cameras show?

    Every object of the grammar is drawn from the same cameras; the least squared error over all views decides. Chance is 1/4
    for a shape, 1/8 for a colour, 1/2 for a size. `distance` is the root of that error divided by what the object itself adds
    to the background: 0 for the truth, 1 for an empty picture. Above `THRESHOLD` a picture shows nothing of the grammar.

    Args:
      background: grey level in [0, 1] behind the objects.
    """

    def __init__(self, background: float):
        self.background = background
        self.things = [(shape, size) for shape in shapes.SHAPES for size in shapes.SIZES]
        self.colours = np.array(list(shapes.COLOURS.values()))

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> list[dict]:
        """Slots shape, colour, size and distance of N objects."""
        return [self._one(pictures, cameras) for pictures, cameras in zip(np.asarray(images), np.asarray(labels), strict=True)]

    def _one(self, pictures: np.ndarray, labels: np.ndarray) -> dict:
        pixels = oracle.shrink(pictures, COMPARED)
        light, alpha = self._drawn(labels, pixels.shape[1])
        pixels = pixels.reshape(1, -1, 3).astype(np.float64)
        added = pixels - self.background * (1.0 - alpha[..., None])  # [things, pixels, 3], would be light * colour
        power = np.sum(light**2, -1)[:, None] * np.sum(self.colours**2, -1)
        error = np.sum(added**2, (1, 2))[:, None] - 2.0 * np.einsum('tp,tpc,kc->tk', light, added, self.colours) + power
        thing, colour = np.unravel_index(np.argmin(error), error.shape)
        contrast = np.sum((light[thing][:, None] * self.colours[colour] - self.background * alpha[thing][:, None]) ** 2)
        shape, size = self.things[thing]
        distance = float(np.sqrt(max(error[thing, colour], 0.0) / contrast))
        return {'shape': shape, 'colour': list(shapes.COLOURS)[colour], 'size': size, 'distance': round(distance, 4)}

    def _drawn(self, labels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(light [things, pixels], by which a colour is multiplied, alpha [things, pixels]) from the cameras [V, 25]."""
        matrices, intrinsics = camera_labels.parts(labels)
        white = shapes.COLOURS['white'][0]
        pairs = []
        for shape, scale in self.things:
            rgba = toy.render(shapes.single(shape, 'white', scale), matrices, intrinsics, size, supersample=3)['image']
            alpha = rgba[..., 3].reshape(-1) / 255.0
            pairs.append((alpha * rgba[..., 0].reshape(-1) / (255.0 * white), alpha))
        light, alpha = zip(*pairs)
        return np.stack(light), np.stack(alpha)


def toy_caption(slots: dict, choice: int = 0) -> str:
    """One of the grammar's captions of an object; choice 0 is the plainest ('a red cube')."""
    texts = shapes.single(slots['shape'], slots['colour'], slots['size']).captions
    return texts[choice % len(texts)]


# ---------------------------------------------------------------------------------------------------------- catalogue


def catalogue(config, *, limit: int = 4096, extractor=None, records=None) -> Captioner:
    """The words of the nearest training picture, by features; the cosine distance of the features is the slot `distance`.

    Args:
      limit: at most this many training pictures, spread evenly over the data set.
      extractor: metrics.fid.Extractor; None: EfficientNet-Lite0 where the packages of the extra `eval` are installed, else
        random convolutions, which see colours and outlines but no kinds.
      records: in place of the data set's: a sequence of records with image uint8 [S, S, 3], captions, attributes.
    """
    from t3d.metrics import fid

    extractor = extractor or best_extractor()
    records = single_view.open_set(config) if records is None else records
    chosen = [records[int(k)] for k in np.linspace(0, len(records) - 1, min(limit, len(records)))]
    known = [record for record in chosen if record.get('captions')]
    if not known:
        raise UsageError(f'captioner catalogue: the data set {config.data.name!r} has no captions: choose blip or blip-vqa.')
    pictures = np.stack([record['image'] for record in known]).astype(np.float32) / 255.0
    words = [words_of(record) for record in known]
    features = fid.extract(extractor, pictures)
    centre = features.mean(0)  # cosines about the mean: features of any network have a large common part
    table = _unit(features - centre)

    def caption(images: np.ndarray, labels: np.ndarray) -> list[dict]:
        count, views = images.shape[:2]
        features = fid.extract(extractor, np.asarray(images).reshape(-1, *images.shape[2:]))
        cosine = (_unit(features - centre) @ table.T).reshape(count, views, -1).mean(1)
        best = cosine.argmax(-1)
        return [{**words[k], 'distance': round(float(1.0 - row[k]), 4)} for k, row in zip(best, cosine)]

    return Captioner(f'catalogue of {len(known)} pictures, {extractor.name}', caption, catalogue_caption)


def best_extractor():
    """EfficientNet-Lite0 if its package is installed, else random convolutions."""
    from t3d.inference import features
    from t3d.metrics import fid

    try:
        return features.effnet()
    except UsageError:
        return fid.tiny()


def words_of(record: dict) -> dict[str, str]:
    """Slots of a record: noun and colour where its attributes have a noun, else its longest caption."""
    attributes = record.get('attributes') or {}
    if attributes.get('noun'):
        return {'noun': str(attributes['noun']), 'colour': str(attributes.get('colour') or '')}
    return {'caption': max(record['captions'], key=len)}


def catalogue_caption(slots: dict, choice: int = 0) -> str:
    """'a red chair', 'red chair', ... ; a caption is passed on as it is."""
    if 'caption' in slots:
        return slots['caption']
    texts = captions.captions(slots['noun'], slots['colour'])
    spoken = [text for text in texts if slots['colour'] in text]  # with the colour, where it is known
    return spoken[choice % len(spoken)]


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
