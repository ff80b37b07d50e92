"""Scores of objects that a run made for its own prompts, where these name objects of the toy set: is each what was asked for?

An object of a text-to-image prior stands in any direction, so each view is read without its camera, by the nearest of the true
renders of all 64 objects from all around (`oracle.PictureOracle`). An object is what most of its views show.
"""

import collections

import numpy as np

from t3d.core import rules
from t3d.core.errors import UsageError
from t3d.data.sets import oracle, shapes, toy
from t3d.evaluate import drawing, toy_objects
from t3d.evaluate.toy_objects import AZIMUTH, ELEVATION
from t3d.geom import cameras
from t3d.inference.loading import Loaded
from t3d.metrics.scores import attribute_shares

NAME = 'asked_objects'
PAIRED = False
CAPTIONED = True
NEEDS = {'prompts': None, 'render.size': None, 'render.background': None}
LIMIT = rules.Whole(2, 2**31 - 1, 'prompts; a control needs another one of each')
LABELS = ('shape', 'colour')
SUPERSAMPLE = 3  # rays per side of a pixel of the true renders


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """Shares of objects, and of their views, that show the shape, the colour and both of their prompt.

    `agree` is the share of objects all of whose views show one shape and colour. Controls: the other prompts of the run, and
    true renders of the objects asked for.
    """
    toy_objects.refuse_split(split)
    scenes = asked(loaded, limit)
    images = renders(loaded, scenes)
    size, background = images.shape[2], loaded.config.render.background
    judge = oracle.PictureOracle(size, background, SUPERSAMPLE)
    records = [toy.record(scene, AZIMUTH, ELEVATION, size, SUPERSAMPLE) for scene in scenes]
    truth = np.stack([oracle.composite(record['image'], background) for record in records])
    log(f'reading {images.shape[0]} objects of {images.shape[1]} views')
    scores = {}
    for prefix, pictures in (('', images), ('control/true_renders/', truth)):
        views = read(judge, pictures)
        values = shares(views, [scene.attributes for scene in scenes])
        kept = values if not prefix else {name: values[name] for name in ('objects/both', 'views/both', 'agree')}
        scores.update({f'{prefix}{name}': value for name, value in kept.items()})
    return {**scores, 'n': len(scenes), 'views_n': images.shape[0] * images.shape[1]}


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """6 views of each of the first `limit` (all) prompts."""
    toy_objects.refuse_split(split)
    scenes = asked(loaded, limit)
    return drawing.Pictures([scene.captions[0] for scene in scenes], renders(loaded, scenes), None, False)


def asked(loaded: Loaded, limit: int | None) -> list[shapes.Scene]:
    """The toy objects that the prompts of a run name; UsageError for other prompts, or fewer than 2."""
    most = len(loaded.config.prompts) if limit is None else rules.held('--limit', limit, LIMIT)
    prompts = list(loaded.config.prompts)[:most]
    known = {caption: scene for scene in shapes.singles('all') for caption in scene.captions}
    unknown = [prompt for prompt in prompts if prompt not in known]
    if unknown or len(prompts) < 2:
        what = f'the prompt {unknown[0]!r} names none' if unknown else f'the run has {len(prompts)} prompt, and 2 are needed'
        raise UsageError(f'evaluate={NAME!r} reads objects of the toy set, for example {next(iter(known))!r}: {what}.')
    return [known[prompt]._replace(captions=(prompt,)) for prompt in prompts]


def renders(loaded: Loaded, scenes: list[shapes.Scene]) -> np.ndarray:
    """[N, 6, S, S, 3] in [0, 1]."""
    views = cameras.Cameras(*toy.camera_arrays(AZIMUTH, ELEVATION, shapes.RADIUS, shapes.FOV))
    prompts = [scene.captions[0] for scene in scenes]
    return drawing.render_views(loaded, prompts, views, loaded.config.render.size, evaluator=NAME)


def shares(views: list[list[dict]], asked: list[dict]) -> dict[str, float]:
    """The scores of read views [N][V] of objects that were asked for as N attributes."""
    most = [{label: collections.Counter(view[label] for view in of).most_common(1)[0][0] for label in LABELS} for of in views]
    flat = [{label: view[label] for label in LABELS} for of in views for view in of]
    each = np.repeat(np.arange(len(views)), [len(of) for of in views])
    scores = {}
    for name, samples, own in (('objects', most, np.arange(len(views))), ('views', flat, each)):
        values, control = attribute_shares(samples, asked, own, LABELS)
        scores.update({f'{name}/{label}': value for label, value in values.items()})
        scores[f'control/{name}/both_other_prompts'] = control['both']
    scores['agree'] = float(np.mean([len({(view['shape'], view['colour']) for view in of}) == 1 for of in views]))
    return scores


def read(judge: oracle.PictureOracle, images: np.ndarray) -> list[list[dict]]:
    """The labels [N][V] of views [N, V, S, S, 3] in [0, 1]."""
    labels, _ = judge.read(images.reshape(-1, *images.shape[2:]))
    count = images.shape[1]
    return [labels[k * count : (k + 1) * count] for k in range(len(images))]
