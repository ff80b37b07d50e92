"""Scores of a text-to-image system on the toy set: does each sample show what its caption says, by the exact oracle?"""

import numpy as np

from t3d.core.errors import UsageError
from t3d.data.sets import oracle, shapes, toy
from t3d.evaluate import drawing, toy_objects
from t3d.inference.loading import Loaded
from t3d.metrics.scores import attribute_shares

SAMPLES = 64  # of each caption
SHOWN = 16  # of each caption, for the scores of evaluate/scores.py
LABELS = ('shape', 'colour')
SCALES, SWEPT = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0), 16  # scales of guidance of a sweep, samples of each caption at each
NAME = 'toy_pictures'
PAIRED = False  # no camera, so no true view to stand beside
CAPTIONED = True
NEEDS = {'data.name': None, 'render.background': None}  # what has no exact labels, `pairs_of_toy` says


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """Shares of samples with the caption's shape, colour and both, for held-out and for seen shape-colour pairs.

    The oracle is data.sets.oracle.PictureOracle. Controls: all other captions of the group, and the oracle's own score
    on true pictures from random cameras. `distance` is the root mean square distance to the nearest true picture, in [0, 1];
    that of true pictures stands beside it.

    Args:
      limit: samples of each caption; None for 64.
    """
    toy_objects.refuse_split(split)
    things, held_out = pairs_of_toy(loaded)
    samples = SAMPLES if limit is None else limit
    judge = oracle.PictureOracle(loaded.config.data.size, loaded.config.render.background)
    log(f'drawing {samples} samples of each of {len(things)} captions')
    images = draw(loaded, [scene.captions[0] for scene in things], samples)
    answers, distance = judge.read(images)
    scores = {}
    for name, chosen in (('held_out', np.flatnonzero(held_out)), ('seen', np.flatnonzero(~held_out))):
        rows = (chosen[:, None] * samples + np.arange(samples)).ravel()
        slots = [{label: answers[row][label] for label in LABELS} for row in rows]
        own = np.repeat(np.arange(len(chosen)), samples)
        values, control = attribute_shares(slots, [things[k].attributes for k in chosen], own, LABELS)
        scores.update({f'{name}/{label}': value for label, value in values.items()})
        scores[f'{name}/distance'] = float(distance[rows].mean())
        scores.update({f'control/{name}/{label}_shuffled': value for label, value in control.items()})
        scores[f'{name}/n'] = len(rows)
    return {**scores, **_of_true_pictures(judge, loaded.config.data)}


def pairs_of_toy(loaded: Loaded) -> tuple[list[shapes.Scene], np.ndarray]:
    """(the 32 large single objects, which of them are held out)."""
    if loaded.config.data.name != 'toy':
        raise UsageError(f'pictures of {loaded.config.data.name!r} have no exact labels: this score is for models of toy.')
    things = [scene for scene in shapes.singles('all') if scene.attributes['size'] == 'large']
    return things, np.array([shapes.is_held_out(scene.attributes['shape'], scene.attributes['colour']) for scene in things])


def draw(loaded: Loaded, prompts: list[str], samples: int) -> np.ndarray:
    """Images [len(prompts) * samples, H, W, 3] in [0, 1], the samples of a prompt side by side."""
    return drawing.samples(loaded, [prompt for prompt in prompts for _ in range(samples)], evaluator=NAME)


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """`limit` (16) samples of each caption of the 32 large objects, with as many true renders from random cameras."""
    toy_objects.refuse_split(split)
    samples = SHOWN if limit is None else limit
    data, background = loaded.config.data, loaded.config.render.background
    things, _ = pairs_of_toy(loaded)
    prompts, random = [scene.captions[0] for scene in things], np.random.default_rng(977)
    log(f'drawing {samples} samples of each of {len(prompts)} captions')
    true = []
    for scene in things:
        azimuth, elevation = random.uniform(0.0, 2.0 * np.pi, samples), random.uniform(-0.2, 0.9, samples)
        record = toy.record(scene, azimuth, elevation, data.size, data.supersample)
        true.append(oracle.composite(record['image'], background))
    true = np.stack(true)
    images = draw(loaded, prompts, samples).reshape(true.shape)
    return drawing.Pictures(prompts, images, true, False)


def sweep(loaded: Loaded, scales, log=lambda line: None, *, samples: int = 16) -> list[dict]:
    """`evaluate` at each guidance scale: a list of {'guidance': scale, **scores}."""
    rows = []
    for scale in scales:
        scores = evaluate(drawing.with_sampling(loaded, guidance=float(scale)), limit=samples)
        rows.append({'guidance': float(scale), **scores})
        log(
            f'guidance {scale:g}: '
            + ', '.join(f'{name} {rows[-1][name]:.3f}' for name in ('seen/both', 'held_out/both', 'seen/distance'))
        )
    return rows


def _of_true_pictures(judge: oracle.PictureOracle, data, count: int = 256) -> dict[str, float]:
    """The oracle's score on renders from cameras that are not its own."""
    source = toy.ToySource('all', scenes='singles', size=data.size, views=1, poses=8, seed=991, supersample=data.supersample)
    records = [source[int(k)] for k in np.linspace(0, len(source) - 1, count).astype(int)]
    answers, distance = judge.read(np.concatenate([oracle.composite(record['image']) for record in records]))
    right = [all(labels[name] == record['attributes'][name] for name in LABELS) for labels, record in zip(answers, records)]
    return {
        'control/true_pictures/both': float(np.mean(right)),
        'control/true_pictures/distance': float(distance.mean()),
        'control/true_pictures/n': count,
    }
