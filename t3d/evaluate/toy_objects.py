"""Scores of text to 3D on the toy set, by views it has not seen: single objects, and two with a relation."""

import numpy as np

from t3d.core import rules
from t3d.core.errors import UsageError
from t3d.data.sets import oracle, shapes, toy
from t3d.evaluate import drawing
from t3d.geom import cameras
from t3d.inference.loading import Loaded
from t3d.metrics import image, retrieval
from t3d.metrics.scores import derangement

AZIMUTH = np.arange(6) * (np.pi / 3) + 0.2  # the views every toy score is taken from
ELEVATION = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 0.3])

NAME = 'toy_objects'
PAIRED = True  # renders stand beside true views from the same cameras
CAPTIONED = True
NEEDS = {'data.name': 'toy', 'data.scenes': None, 'data.supersample': None, 'render.background': None}
LIMIT = rules.Whole(2, 2**31 - 1, 'objects or scenes; a control needs another one of each')


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """`singles`, and `relations` where the run learned pairs; `limit`: scenes of each split."""
    refuse_split(split)
    if limit is not None:
        rules.held('--limit', limit, LIMIT)
    scores = singles(loaded)
    if loaded.config.data.scenes != 'singles':
        scores.update(relations(loaded, log, limit=limit))
    return scores


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """Single objects: the 32 large ones, 6 views. With pairs: at most `limit` (256) held-out scenes, 4 views."""
    refuse_split(split)
    if loaded.config.data.scenes == 'singles':
        things, renders, true = single_views(loaded)
        return drawing.Pictures([scene.captions[0] for scene in things], renders, true, True)
    return _pairs(loaded, log, 256 if limit is None else limit)


def refuse_split(split: str | None) -> None:
    """Raises UsageError for a split: the toy set is scored on held-out and seen captions at once."""
    if split is not None:
        raise UsageError(f'split {split!r}: toy is scored on held-out and on seen captions at once: leave it out.')


def single_views(loaded: Loaded) -> tuple[list[shapes.Scene], np.ndarray, np.ndarray]:
    """(the 32 large single toy objects, renders [32, 6, S, S, 3], true views of the same shape)."""
    size, background = loaded.config.data.size, loaded.config.render.background
    things = [scene for scene in shapes.singles('all') if scene.attributes['size'] == 'large']
    records = [toy.record(scene, AZIMUTH, ELEVATION, size, loaded.config.data.supersample) for scene in things]
    targets = np.stack([oracle.composite(record['image'], background) for record in records])
    views = cameras.Cameras(*toy.camera_arrays(AZIMUTH, ELEVATION, shapes.RADIUS, shapes.FOV))
    return things, drawing.render_views(loaded, [scene.captions[0] for scene in things], views, size, evaluator=NAME), targets


def singles(loaded: Loaded) -> dict[str, float]:
    """Single toy objects: PSNR and nearest-target share over (pair, view), held-out and seen pairs apart.

    A render counts as right if its own target is the nearest, among the 32 shape-colour pairs, from the same view; chance is
    1/32. Controls: the prompts of the group shuffled so that none keeps its own (a model that follows them gets 0, not
    chance), for PSNR the true views of those other objects and the mean picture of all.
    """
    things, renders, targets = single_views(loaded)
    held_out = np.array([shapes.is_held_out(scene.attributes['shape'], scene.attributes['colour']) for scene in things])
    quality = np.asarray(image.psnr(renders, targets))
    scores = {}
    for name, chosen in (('held_out', np.flatnonzero(held_out)), ('seen', np.flatnonzero(~held_out))):
        other = derangement(len(chosen))
        scores[f'{name}/psnr'] = float(quality[chosen].mean())
        scores[f'{name}/nearest'] = _nearest(renders, targets, chosen, chosen)
        scores[f'control/{name}/nearest_shuffled_prompts'] = _nearest(renders, targets, chosen, chosen[other])
        scores[f'{name}/n'] = int(len(chosen) * len(AZIMUTH))
        others = {
            'shuffled_prompts': targets[chosen[other]],
            'mean_picture': np.broadcast_to(targets.mean(0), targets[chosen].shape),
        }
        for control, pictures in others.items():
            scores[f'control/{name}/psnr_{control}'] = float(np.asarray(image.psnr(pictures, targets[chosen])).mean())
    return scores


def _nearest(renders, targets, chosen, own) -> float:
    """Share of (render, view) of `chosen` whose nearest target of that view is `own`."""
    hits = [retrieval.ranks(retrieval.distances(renders[chosen, v], targets[:, v]), own) == 0 for v in range(renders.shape[1])]
    return float(np.mean(hits))


def relations(loaded: Loaded, log=lambda line: None, *, limit: int | None = None) -> dict[str, float]:
    """Two-object toy scenes by the exact oracle among all 3,072: shapes, colours, relation, and all of them at once.

    Control: the prompts shuffled, which leaves the luck of each attribute: some 1/4 of shapes, 1/8 of colours, 1/3 of
    relations.
    """
    size, background = loaded.config.data.size, loaded.config.render.background
    azimuth, elevation = AZIMUTH[:4], ELEVATION[:4]
    judge = oracle.Oracle(shapes.pairs('all'), azimuth, elevation, size, background, loaded.config.data.supersample)
    views = cameras.Cameras(*toy.camera_arrays(azimuth, elevation, shapes.RADIUS, shapes.FOV))
    scores, most = {}, 256 if limit is None else limit
    for split in ('test', 'train'):
        scenes = shapes.pairs(split)
        scenes = [scenes[place] for place in np.sort(np.random.default_rng(0).permutation(len(scenes))[:most])]
        log(f'oracle: {len(scenes)} {split} scenes')
        prompts = [scene.captions[0] for scene in scenes]
        told = drawing.progress(log, f'{split} scenes')
        renders = drawing.render_views(loaded, prompts, views, size, evaluator=NAME, progress=told)
        name = {'test': 'held_out', 'train': 'seen'}[split]
        scores.update({f'{name}_pairs/{label}': value for label, value in judge.score(renders, scenes).items()})
        shuffled = judge.score(renders[derangement(len(scenes))], scenes)
        scores.update({f'control/{name}_pairs/{label}_shuffled_prompts': value for label, value in shuffled.items()})
        scores[f'{name}_pairs/n'] = len(scenes)
    return scores


def _pairs(loaded, log, limit) -> drawing.Pictures:
    data, background = loaded.config.data, loaded.config.render.background
    azimuth, elevation = AZIMUTH[:4], ELEVATION[:4]
    scenes = shapes.pairs('test')
    scenes = [scenes[int(k)] for k in np.linspace(0, len(scenes) - 1, min(limit, len(scenes)))]
    log(f'rendering {len(scenes)} held-out scenes x 4 views')
    records = [toy.record(scene, azimuth, elevation, data.size, data.supersample) for scene in scenes]
    views = cameras.Cameras(*toy.camera_arrays(azimuth, elevation, shapes.RADIUS, shapes.FOV))
    prompts = [scene.captions[0] for scene in scenes]
    true = np.stack([oracle.composite(record['image'], background) for record in records])
    told = drawing.progress(log, 'held-out scenes')
    renders = drawing.render_views(loaded, prompts, views, data.size, evaluator=NAME, progress=told)
    return drawing.Pictures(prompts, renders, true, True)
