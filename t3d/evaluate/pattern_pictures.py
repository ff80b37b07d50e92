"""Scores of a text-to-image system on `toy_patterns`: shape, colour and pattern of each sample, by the exact oracle."""

import numpy as np

from t3d.core.errors import UsageError
from t3d.data.sets import oracle, pattern_oracle, patterns, shapes
from t3d.evaluate import drawing, pixel_features, toy_objects, view_reading
from t3d.inference.loading import Loaded
from t3d.metrics.scores import attribute_shares

SAMPLES = 4  # of each of the 128 captions
LABELS = ('shape', 'colour', 'pattern')
NAME = 'pattern_pictures'
PAIRED = False  # no camera, so no true view to stand beside
CAPTIONED = True


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """Shares of samples with the caption's shape, colour, pattern and all three, for held-out and for seen shape-colour pairs.

    Controls: all other captions of the group, and the oracle on as many true pictures from random cameras. `frechet_pixels` is
    the Fréchet distance of pixels of all patterned samples to as many true ones (more than 64), with that of two sets of true
    pictures beside it.

    Args:
      limit: samples of each caption; None for 4.
    """
    toy_objects.refuse_split(split)
    things, held_out = _objects(loaded)
    samples = SAMPLES if limit is None else limit
    data, background = loaded.config.data, loaded.config.render.background
    judge = pattern_oracle.PatternPictureOracle(data.size, background)
    own = np.repeat(np.arange(len(things)), samples)
    log(f'drawing {samples} samples of each of {len(things)} captions')
    images = drawing.samples(loaded, [things[k].captions[0] for k in own], evaluator=NAME)
    truth, others = (_true([things[k] for k in own], data, background, seed) for seed in (977, 978))
    answers, distance = judge.read(images)
    true_answers, true_distance = judge.read(truth)
    scores = {}
    for name, chosen in (('held_out', np.flatnonzero(held_out)), ('seen', np.flatnonzero(~held_out))):
        rows = np.flatnonzero(np.isin(own, chosen))
        captions, mine = [things[k].attributes for k in chosen], np.searchsorted(chosen, own[rows])
        slots = [{label: answers[row][label] for label in LABELS} for row in rows]
        values, control = attribute_shares(slots, captions, mine, LABELS)
        scores.update({f'{name}/{_all(label)}': value for label, value in values.items()})
        scores[f'{name}/distance'] = float(distance[rows].mean())
        scores.update({f'control/{name}/{_all(label)}_shuffled': value for label, value in control.items()})
        scores[f'{name}/n'] = len(rows)
    right = [all(labels[name] == things[k].attributes[name] for name in LABELS) for labels, k in zip(true_answers, own)]
    scores.update({'control/true_pictures/all': float(np.mean(right)), 'control/true_pictures/n': len(own)})
    scores['control/true_pictures/distance'] = float(true_distance.mean())
    worn = np.array([things[k].attributes['pattern'] != 'plain' for k in own])
    if worn.sum() > pixel_features.COMPONENTS:
        scores['frechet_pixels'] = pixel_features.frechet(images[worn], truth[worn], background)
        scores['frechet_pixels_n'] = int(worn.sum())
        scores['control/true_pictures/frechet_pixels'] = pixel_features.frechet(others[worn], truth[worn], background)
    return scores


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """`limit` (4) samples of each caption of the large objects, with as many true renders from random cameras."""
    toy_objects.refuse_split(split)
    samples = SAMPLES if limit is None else limit
    things, _ = _objects(loaded)
    chosen, prompts = [scene for scene in things for _ in range(samples)], [scene.captions[0] for scene in things]
    log(f'drawing {samples} samples of each of {len(prompts)} captions')
    true = _true(chosen, loaded.config.data, loaded.config.render.background, 977)
    images = drawing.samples(loaded, [scene.captions[0] for scene in chosen], evaluator=NAME)
    shape = (len(prompts), samples, *images.shape[1:])
    return drawing.Pictures(prompts, images.reshape(shape), true.reshape(shape), False)


def _objects(loaded: Loaded) -> tuple[list[shapes.Scene], np.ndarray]:
    """(the large objects with each pattern of the model's set, which of them are held out)."""
    data = loaded.config.data
    if data.name != 'toy_patterns':
        raise UsageError(f'pictures of {data.name!r} have no patterns: this score is for models of toy_patterns.')
    names = tuple(data.get('patterns', patterns.PATTERNS))
    things, held_out = view_reading.objects()
    return [patterns.patterned(scene, name) for scene in things for name in names], np.repeat(held_out, len(names))


def _true(scenes: list[shapes.Scene], data, background: float, seed: int) -> np.ndarray:
    """One true render [N, S, S, 3] of each scene from a random camera."""
    random, images = np.random.default_rng(seed), []
    for scene in scenes:
        azimuth, elevation = random.uniform(0.0, 2.0 * np.pi, 1), random.uniform(-0.2, 0.9, 1)
        images.append(
            oracle.composite(patterns.record(scene, azimuth, elevation, data.size, data.supersample)['image'], background)
        )
    return np.concatenate(images)


def _all(label: str) -> str:
    return 'all' if label == 'both' else label
