"""Scores of a text-to-multi-view system on the toy set: does each view show the caption, and do the views fit each other?

Each view is read by data.sets.pattern_oracle.ViewsOracle: the nearest true render from the same camera, of the 64 objects of
toy. For a model of `toy_patterns` the scores of evaluate/pattern_views.py stand beside.
"""

import numpy as np

from t3d.core import rules
from t3d.data.sets import pattern_oracle
from t3d.data.sets.pattern_oracle import LABELS, Reading
from t3d.evaluate import drawing, pattern_views, toy_objects
from t3d.evaluate.view_reading import LIMIT, appearance, draw, objects, psnr, psnr_of_views, read, set_name, true_views
from t3d.inference.loading import Loaded
from t3d.metrics.scores import attribute_shares

SAMPLES = 4  # of each caption
NAME = 'view_sets'
PAIRED = True  # true renders from the same cameras stand beside the views
CAPTIONED = True


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """Scores of the 64 objects, large and small, for held-out and for seen shape-colour pairs; large ones for `toy_patterns`.

    `shape`, `colour`, `size` and `all` are shares of views that show what the caption says, `agree` the share of objects whose
    views all show the same shape, colour and size. The oracle has no answer for a picture of none, so `distance` says how far
    views are from what they are read as (root mean square, 0 to 1; `distance_shuffled`: another's truth), `psnr` is the mean
    over views against the true render from the same camera, in dB, and `psnr_lowest` the mean over objects of their worst view.
    Controls: the other captions of the group (`all_shuffled`), the true renders of the object from the next view's camera
    (`psnr_cameras_shuffled`; the network sees cameras alone, so views drawn from exchanged cameras are the same views
    exchanged), and the oracle on true renders.

    Args:
      limit: samples of each caption; None for 4.
    """
    toy_objects.refuse_split(split)
    samples = SAMPLES if limit is None else rules.held('--limit', limit, LIMIT)
    things, held_out = objects(sizes(loaded))
    own = np.repeat(np.arange(len(things)), samples)
    log(f'drawing {samples} samples of each of {len(things)} captions')
    images, cameras = draw(loaded, [things[k].captions[0] for k in own], log, evaluator=NAME)
    look = appearance(loaded)
    truth = true_views([things[k] for k in own], cameras, images.shape[2], **look)
    readings, of_truth = (read(pictures, cameras, **look) for pictures in (images, truth))
    scores = {}
    for name, chosen in (('held_out', np.flatnonzero(held_out)), ('seen', np.flatnonzero(~held_out))):
        rows = np.flatnonzero(np.isin(own, chosen))
        captions, mine = [things[k].attributes for k in chosen], np.searchsorted(chosen, own[rows])
        values, control = view_shares([readings[k] for k in rows], captions, mine)
        scores.update({f'{name}/{label}': value for label, value in values.items()})
        scores[f'{name}/distance'] = float(np.mean([view.distance for k in rows for view in readings[k]]))
        other = np.roll(truth[rows], samples, axis=0)  # of the next caption of the group
        scores[f'control/{name}/distance_shuffled'] = float(np.mean(np.sqrt(np.mean((images[rows] - other) ** 2, (2, 3, 4)))))
        quality = psnr_of_views(images[rows], truth[rows])
        scores[f'{name}/psnr'] = float(np.mean(quality))
        scores[f'{name}/psnr_lowest'] = float(np.mean(np.min(quality, axis=1)))
        scores[f'{name}/n'] = len(rows)
        scores[f'{name}/views_n'] = len(rows) * images.shape[1]
        scores.update({f'control/{name}/{label}_shuffled': value for label, value in control.items()})
        if images.shape[1] > 1:
            scores[f'control/{name}/psnr_cameras_shuffled'] = psnr(images[rows], np.roll(truth[rows], 1, axis=1))
        values, _ = view_shares([of_truth[k] for k in rows], captions, mine)
        scores.update({f'control/{name}/true_renders/{label}': values[label] for label in ('all', 'agree')})
    if set_name(loaded) == 'toy_patterns':
        scores.update(pattern_views.evaluate(loaded, log, limit=limit, split=split))
    return scores


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """`limit` (1) samples of each object, with the true renders from the same cameras."""
    toy_objects.refuse_split(split)
    samples = 1 if limit is None else rules.held('--limit', limit, LIMIT)
    chosen = [scene for scene in objects(sizes(loaded))[0] for _ in range(samples)]
    prompts = [scene.captions[0] for scene in chosen]
    images, cameras = draw(loaded, prompts, log, evaluator=NAME)
    return drawing.Pictures(prompts, images, true_views(chosen, cameras, images.shape[2], **appearance(loaded)), True)


def sizes(loaded: Loaded) -> tuple[str, ...]:
    """Sizes of the objects that a model is asked for: those of its set."""
    return ('large', 'small') if set_name(loaded) == 'toy' else ('large',)


def view_shares(
    readings: list[list[Reading]], captions: list[dict], own: np.ndarray, labels: tuple[str, ...] = LABELS
) -> tuple[dict[str, float], dict[str, float]]:
    """({label: share of views that show it, 'all', 'agree'}, the shares where each is asked for the other captions).

    Args:
      readings: [N][V]. captions: attributes of C >= 2 captions. own: int [N], the caption of each object.
    """
    slots = [{label: view.labels[label] for label in labels} for views in readings for view in views]
    values, control = attribute_shares(slots, captions, np.repeat(own, [len(views) for views in readings]), labels)
    values['agree'] = float(np.mean([pattern_oracle.agree(views, labels) for views in readings]))
    return ({{'both': 'all'}.get(label, label): value for label, value in part.items()} for part in (values, control))
