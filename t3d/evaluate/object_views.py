"""Scores of text to 3D on built sets of real objects: views that were not trained on, and finding the object by its renders."""

import numpy as np

from t3d.core import rules
from t3d.core.errors import UsageError
from t3d.data import sets
from t3d.data.sets import oracle
from t3d.evaluate import drawing, toy_objects
from t3d.geom import cameras
from t3d.inference import loading
from t3d.inference.loading import Loaded
from t3d.metrics import image, retrieval
from t3d.metrics.scores import derangement

SHARED = (1, 4, 7, 10)  # views of furniture at azimuths 30, 120, 210, 300 degrees, elevation 15, the same for every object

NAME = 'object_views'
PAIRED = True  # renders stand beside true views from the same cameras
CAPTIONED = True
NEEDS = {'data.name': None, 'data.train_views': None, 'render.background': None}


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """Real objects: PSNR of held-out views, and retrieval of the object among all by its renders.

    The objects are those of training, or of another `split`, none of whose views were seen.

    The caption given is the longest of the object's. Retrieval compares renders from the four `SHARED` cameras, the same for
    all objects, with every object's true views; they are among the training cameras (the held-out ones differ from object to
    object), so it measures which object was understood, not new views. Objects whose captions are the same text cannot be told
    apart by any method that reads only the caption: `r1_ceiling` is the best such a method could reach. Controls: untrained
    weights, captions of other objects, and the mean picture of all objects.
    """
    config = loaded.config
    if limit is not None:
        rules.held('--limit', limit, toy_objects.LIMIT)
    prompts, held_out, shared = object_views(config, limit=limit, split=split)
    log(f'rendering {len(prompts)} objects x {held_out[1].shape[1]} held-out and {len(SHARED)} shared views')
    scores = _object_scores(loaded, prompts, held_out, shared, '', log)
    control = _object_scores(loading.untrained_of(loaded, seed=1), prompts, held_out, shared, ', untrained (control)', log)
    scores.update({f'control/{name}_untrained': value for name, value in control.items() if 'shuffled' not in name})
    counts = {prompt: prompts.count(prompt) for prompt in set(prompts)}
    scores['r1_ceiling'] = float(np.mean([1.0 / counts[prompt] for prompt in prompts]))
    mean = np.broadcast_to(held_out[1].mean(0, keepdims=True), held_out[1].shape)
    scores['control/psnr_of_the_mean_picture'] = float(np.asarray(image.psnr(mean, held_out[1])).mean())
    scores['n_objects'], scores['n_views'] = len(prompts), int(held_out[1].shape[0] * held_out[1].shape[1])
    return scores


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """The held-out views of at most `limit` objects of `split` (those trained on)."""
    prompts, (views, true), _ = object_views(loaded.config, limit=limit, split=split)
    log(f'rendering {len(prompts)} objects x {true.shape[1]} held-out views')
    told = drawing.progress(log, 'held-out views')
    renders = drawing.render_views(loaded, prompts, views, true.shape[2], evaluator=NAME, progress=told)
    return drawing.Pictures(prompts, renders, true, True)


def object_views(config, *, limit: int | None = None, split: str | None = None):
    """(prompts [N], held-out views, `SHARED` views) of a split; views are (cameras [N, V], images [N, V, H, W, 3])."""
    source = sets.open_set(config.data, split or config.data.split)
    chosen = np.arange(len(source)) if limit is None else np.linspace(0, len(source) - 1, min(limit, len(source))).astype(int)
    records = [source[int(k)] for k in chosen]
    count = len(records[0]['image']) if records else 0
    if count <= max(SHARED) or config.data.train_views >= count:
        raise UsageError(
            f'evaluate={NAME!r} reads view {max(SHARED)} and those from data.train_views={config.data.train_views} on, and a '
            f'record of {config.data.name} has {count} views: name another evaluator, with `t3d eval RUN --evaluate NAME`.'
        )
    prompts = [max(record['captions'], key=len) for record in records]
    held_out, shared = (
        _views(records, which, config.render.background)
        for which in (range(config.data.train_views, len(records[0]['image'])), SHARED)
    )
    return prompts, held_out, shared


def _views(records, which, background):
    """(cameras [N, V], images [N, V, H, W, 3]) of chosen views of records."""
    which = list(which)
    matrices, intrinsics = (np.stack([record[name][which] for record in records]) for name in ('world_from_cam', 'intrinsics'))
    images = np.stack([oracle.composite(record['image'][which], background) for record in records])
    return cameras.Cameras(matrices, intrinsics), images


def _object_scores(loaded, prompts, held_out, shared, whose: str, log):
    size = held_out[1].shape[2]

    def render(views, what):
        told = drawing.progress(log, f'{what}{whose}')
        return drawing.render_views(loaded, prompts, views, size, evaluator=NAME, progress=told)

    renders = render(held_out[0], 'held-out views')
    scores = {'psnr': float(np.asarray(image.psnr(renders, held_out[1])).mean())}
    renders = render(shared[0], 'shared views')
    own = np.arange(len(prompts))
    rank = retrieval.ranks(retrieval.distances(renders, shared[1]), own)
    shuffled = retrieval.ranks(retrieval.distances(renders[derangement(len(renders))], shared[1]), own)
    return {
        **scores,
        'training_cameras/r1': retrieval.recall(rank, 1),
        'training_cameras/r10': retrieval.recall(rank, 10),
        'control/training_cameras/r1_shuffled_prompts': retrieval.recall(shuffled, 1),
        'control/training_cameras/r10_shuffled_prompts': retrieval.recall(shuffled, 10),
    }
