"""Scores of text to triplanes, GANFusion's diffusion and RenderDiffusion alike: does each object show what its caption says?

One picture of each sample, from a random camera of the data set, after the upsampler where there is one. Controls: the other
captions, real pictures, and for GANFusion its stage-1 generator, which bounds what diffusion can reach (`ceiling`).
"""

import os

import jax.numpy as jnp
import numpy as np

from t3d.build import captioners
from t3d.core.errors import UsageError
from t3d.data.adapters import single_view, triplanes
from t3d.data.sets import shapes
from t3d.evaluate import drawing, generated_objects
from t3d.export import sheets
from t3d.fields.triplane_generator import Generator
from t3d.geom import cameras
from t3d.inference import given as givens
from t3d.inference.loading import Loaded
from t3d.metrics.scores import attribute_shares

NAME = 'captioned_objects'
PAIRED = False  # a caption has no one true object
CAPTIONED = True
NEEDS = {'data.mode': None, 'render.background': None}  # a set of single views: of the run, or of the generator it was given
SAMPLES = 8  # of each caption
SCALES, SWEPT = (1.0, 2.0, 3.0, 5.0, 7.5), 4  # scales of guidance of a sweep, samples of each caption at each
SLOTS = ('colour', 'shape', 'size')
ROWS, TURNS = 8, 8  # of the sheet


# -------------------------------------------------------------------------------------------------------------- scores


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """All scores of a run, and samples.png (`sheet`) where `loaded` is a run folder.

    - toy: shares of samples with their caption's colour, shape, size and both of the first two, of objects that were seen in
      training and of held-out ones apart, by the exact captioner (captioners.ToyReader); shuffled: all other captions.
    - FID-tiny and KID-tiny to real single-view pictures at one n, beside other real pictures and the stage-1 generator's.

    Args:
      limit: samples of each caption; None for 8.
    """
    generated_objects.refuse_split(split)
    data, samples = data_config(loaded), SAMPLES if limit is None else limit
    if samples < 1:
        raise UsageError(f'--limit {samples}: wanted at least 1 sample of each caption.')
    objects = prompts_of(loaded.config, data)
    scores, seen = {}, None
    for name, scenes in objects.items():
        log(f'drawing {samples} samples of each of {len(scenes)} captions ({name})')
        texts = [text for text, _ in scenes for _ in range(samples)]
        labels = generated_objects.drawn_labels(data, len(texts), seed=47)
        drawn = draw(loaded, texts, labels, data.data.size)
        true_slots = [attributes for _, attributes in scenes for _ in range(samples)]
        if generated_objects.knows_words(data):
            reader = captioners.ToyReader(data.render.background)
            scores.update(accuracy(name, reader(drawn[:, None], labels[:, None]), true_slots, samples))
        seen = drawn if seen is None else seen
    true, others = generated_objects.real(data, len(seen))
    seen = seen[np.linspace(0, len(seen) - 1, len(true)).astype(int)]  # a small data set has fewer
    scores.update(generated_objects.distances(seen, true, others))
    scores.update(ceiling(loaded, data, true, others, seen))
    if loaded.run is not None:
        log(f'open {write_sheet(loaded, [text for text, _ in next(iter(objects.values()))], data, loaded.run)}')
    return scores


def draw(loaded: Loaded, prompts: list[str], labels: np.ndarray, size: int) -> np.ndarray:
    """[N, S, S, 3] in [0, 1]: a picture of each prompt from its label [N, 25]."""
    views = cameras.from_eg3d(jnp.asarray(labels)[:, None])
    return drawing.pictures(loaded, prompts, views, size, evaluator=NAME)[:, 0]


def write_sheet(loaded: Loaded, captions: list[str], data, folder) -> str:
    """Writes samples.png into a folder: captions spread over the list, a sample of each from all sides. Its path.

    The same captions and cameras for every system that learned from the same set, so that sheets can lie side by side.
    """
    texts = [captions[k] for k in np.linspace(0, len(captions) - 1, min(ROWS, len(captions))).round().astype(int)]
    images = drawing.pictures(loaded, texts, generated_objects.ring(data, TURNS), data.data.size, evaluator=NAME)
    path = os.path.join(os.fspath(folder), 'samples.png')
    sheets.write(path, sheets.sheet(images, texts, title='a sample of each caption, from all sides'))
    return path


def ceiling(loaded: Loaded, data, true, others, seen) -> dict[str, float]:
    """Where a triplane generator is given: distances of its pictures to the real ones, and of the samples to those pictures.

    toy: also the shares of the generator's objects that are read alike from two random cameras. Captions come from pictures, so
    no model that learns from them is right more often than this, unless it makes clearer objects than the generator.
    """
    generators = [one for one in loaded.given.values() if isinstance(one.functions, Generator)]
    if not generators:
        return {}
    count, renderer = len(true), generated_objects.GanRenderer(generators[0].functions, generators[0].params)
    styles = renderer.styles(generated_objects.FIRST + np.arange(2 * count), loaded.config.psi)
    labels = generated_objects.drawn_labels(data, 2 * count, seed=53)
    made = renderer.images(styles, labels)
    distances = generated_objects.distances(made[:count], true, others)
    scores = {f'ceiling/{name}': distances[name] for name in ('fid_tiny', 'kid_tiny') if name in distances}
    between = generated_objects.distances(seen, made[:count], made[count:])
    if generated_objects.knows_words(data):
        reader, around = captioners.ToyReader(data.render.background), generated_objects.drawn_labels(data, count, seed=59)
        first, again = reader(made[:count, None], labels[:count, None]), renderer.images(styles[:count], around)
        both = list(zip(first, reader(again[:, None], around[:, None]), strict=True))
        alike = np.array([[a[slot] == b[slot] for slot in SLOTS] for a, b in both])
        scores |= {f'ceiling/{slot}': float(share) for slot, share in zip(SLOTS, alike.mean(0))}
        scores['ceiling/both'] = float((alike[:, 0] & alike[:, 1]).mean())
    return {**scores, **{f'to_ceiling/{name}': between[name] for name in ('fid_tiny', 'kid_tiny') if name in between}}


def accuracy(name: str, readings: list[dict], attributes: list[dict], samples: int) -> dict[str, float]:
    """Shares of samples that show what the caption says; the control asks every other caption of the list instead."""
    slots = [{slot: labels[slot] for slot in SLOTS} for labels in readings]
    own = np.arange(len(attributes)) // samples
    values, control = attribute_shares(slots, attributes[::samples], own, ('colour', 'shape'))
    scores = {f'{name}/{label}': value for label, value in values.items()}
    scores |= {f'control/{name}/{label}_shuffled': value for label, value in control.items()}
    far = np.array([labels['distance'] for labels in readings])
    scores |= {f'{name}/distance': float(far.mean()), f'{name}/readable': float((far <= captioners.THRESHOLD).mean())}
    return {**scores, f'{name}/n': len(readings)}


def prompts_of(config, data, limit: int = 64) -> dict[str, list[tuple[str, dict]]]:
    """(caption, attributes) of the objects to draw: 'seen' first, then 'held_out' where the data hold some back."""
    if generated_objects.knows_words(data):
        return {
            name: [(scene.captions[0], scene.attributes) for scene in shapes.singles(split)]
            for name, split in (('seen', data.data.split), ('held_out', 'test'))
            if name == 'seen' or data.data.split == 'train'
        }
    if config.data.name == 'triplanes':
        texts = [record['caption'] for record in triplanes.open_source(config.data).records]
    else:
        texts = list(single_view.open_set(config).captions())
    different = sorted(set(texts))
    chosen = np.random.default_rng(59).permutation(len(different))[:limit]
    return {'seen': [(different[k], {}) for k in chosen]}


def data_config(loaded: Loaded):
    """The config of the single-view set that a run's objects come from: its own, or that of the generator it was given."""
    return givens.pictures_config(loaded.config, loaded.given)


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """`limit` (8) samples of each caption and as many real pictures."""
    generated_objects.refuse_split(split)
    data, count = data_config(loaded), SAMPLES if limit is None else limit
    prompts = [text for text, _ in prompts_of(loaded.config, data)['seen']]
    labels = generated_objects.drawn_labels(data, len(prompts) * count, seed=47)
    images = draw(loaded, [text for text in prompts for _ in range(count)], labels, data.data.size)
    true, others = generated_objects.real(data, len(images))
    true = np.resize(np.concatenate([true, others]), images.shape)
    grouped = (len(prompts), count, *images.shape[1:])
    return drawing.Pictures(prompts, images.reshape(grouped), true.reshape(grouped), False)


def sweep(loaded: Loaded, scales=SCALES, log=lambda line: None, *, samples: int = 4) -> list[dict]:
    """`evaluate` at each guidance scale: a list of {'guidance': scale, **scores}."""
    rows = []
    for scale in scales:
        scores = evaluate(drawing.with_sampling(loaded, guidance=float(scale)), limit=samples)
        rows.append({'guidance': float(scale), **scores})
        reported = ('seen/colour', 'seen/shape', 'held_out/both', 'fid_tiny', 'kid_tiny')
        log(f'guidance {scale:g}: ' + ', '.join(f'{name} {rows[-1][name]:.3f}' for name in reported if name in rows[-1]))
    return rows
