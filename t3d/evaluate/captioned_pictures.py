"""Scores of a text-to-image system on built sets of real objects: are its pictures like theirs, and of what was asked for?

A picture is drawn for the longest caption of each object and compared with views of all these objects. Without a judge: the
Fréchet distance of pixels, and how far the nearest view of the caption's own object is, beside that of another object. Judges
read the same pictures: `t3d eval RUN --evaluate captioned_pictures --metrics align,fid_tiny`.
"""

import numpy as np

from t3d.core import rules
from t3d.core.errors import UsageError
from t3d.data import sets
from t3d.data.sets import oracle
from t3d.evaluate import drawing, pixel_features, toy_objects
from t3d.inference.loading import Loaded

NAME = 'captioned_pictures'
PAIRED = False
CAPTIONED = True
NEEDS = {'data.name': None, 'data.kind': 'views', 'render.background': None}
OBJECTS = 256
VIEWS = 8  # of each object, evenly spread over those that were trained on


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """Scores of a picture of each of at most `limit` (256) objects of `split` (those trained on).

    `nearest_rmse`: from a picture to the nearest view of its caption's object; `control/nearest_rmse`: of the next object.
    `own_r1`, `own_r10`: that object is the nearest, or among the ten nearest, of all (captions are shared: not all can be).
    `frechet_pixels`: to one true view of each object, over the 64 principal components of the others, of more than 64 objects;
    `control/frechet_pixels`: of another true view of each. `control/true/...`: the same scores of that view.
    """
    prompts, views = objects(loaded, limit, split)
    log(f'drawing pictures of {len(prompts)} captions')
    images = drawing.samples(loaded, prompts, evaluator=NAME)
    found = {}
    for prefix, shown, among in (('', images, views), ('control/true/', views[:, 0], views[:, 1:])):
        distance = to_views(shown, among)
        own = np.diag(distance)
        rank = np.sum(distance < own[:, None], 1)
        found |= {
            f'{prefix}own_r1': np.mean(rank < 1),
            f'{prefix}own_r10': np.mean(rank < 10),
            f'{prefix}nearest_rmse': own.mean(),
        }
        if not prefix:
            found['control/nearest_rmse'] = np.diag(np.roll(distance, -1, 1)).mean()
    if len(prompts) > pixel_features.COMPONENTS and views.shape[1] > 2:
        basis = pixel_features.components_of(views[:, 2])
        found['frechet_pixels'] = pixel_features.frechet_along(basis, images, views[:, 0])
        found['control/frechet_pixels'] = pixel_features.frechet_along(basis, views[:, 1], views[:, 0])
    return {**{name: float(value) for name, value in found.items()}, 'n': len(prompts)}


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """A picture of each of at most `limit` (256) captions, and a true view of each object."""
    prompts, views = objects(loaded, limit, split)
    return drawing.Pictures(prompts, drawing.samples(loaded, prompts, evaluator=NAME)[:, None], views[:, :1], False)


def objects(loaded: Loaded, limit: int | None, split: str | None) -> tuple[list[str], np.ndarray]:
    """(the longest caption of each object, its views [N, V, S, S, 3] over the background), evenly spread over a split."""
    most = OBJECTS if limit is None else rules.held('--limit', limit, toy_objects.LIMIT)
    config = loaded.config
    source = sets.open_set(config.data, split or config.data.split)
    records = [source[int(k)] for k in np.linspace(0, len(source) - 1, min(most, len(source)))]
    count = config.data.get('train_views', 0) or len(records[0]['image'])
    if len(records) < 2 or count < 2:
        raise UsageError(
            f'{len(records)} objects of {count} views: pictures are compared with other objects and other views. Name another '
            '--split, or raise data.train_views.'
        )
    chosen = np.arange(min(VIEWS, count)) * count // min(VIEWS, count)
    views = np.stack([oracle.composite(record['image'][chosen], config.render.background) for record in records])
    return [max(record['captions'], key=len) for record in records], views.astype(np.float32)


def to_views(images: np.ndarray, views: np.ndarray) -> np.ndarray:
    """[N, M] root mean square error from each image [N, S, S, 3] to the nearest of the views [M, V, S, S, 3] of each object."""
    flat, others = images.reshape(len(images), -1), views.reshape(-1, images[0].size)
    square = np.sum(flat**2, -1)[:, None] + np.sum(others**2, -1) - 2.0 * flat @ others.T
    return np.sqrt(np.maximum(square, 0.0).reshape(len(images), len(views), -1).min(-1) / flat.shape[1])
