"""A Janus score: how often do objects with one front, of the set `marked`, show it from other sides as well?

Each view is read by the nearest of the true renders of the object that was asked for, from all around: what shows the mark of
the front, where the camera stands at a side or at the back, is a second front. The problem: Perp-Neg, arXiv 2304.04968.

The objects are those of a run's own prompts, or for one network of all toy prompts some of the large ones.
"""

import numpy as np

from t3d.core import rules
from t3d.core.errors import UsageError
from t3d.data.sets import marked, oracle, shapes, toy
from t3d.evaluate import asked_objects, drawing, toy_objects, view_reading
from t3d.evaluate.asked_objects import SUPERSAMPLE
from t3d.geom import cameras
from t3d.inference.loading import Loaded

NAME = 'marked_fronts'
PAIRED = True
CAPTIONED = True
NEEDS = {'render.size': None, 'render.background': None}
AZIMUTH = np.deg2rad(np.array([-20.0, 0.0, 20.0, 75.0, 100.0, 130.0, 160.0, 180.0, -160.0, -130.0, -100.0, -75.0]))
ELEVATION = np.full(len(AZIMUTH), 0.3)
FRONT = np.abs(AZIMUTH) < 0.5  # of the cameras; the others see the mark not at all, or at its very edge
AROUND, HEIGHTS = 36, 5  # true renders that a view is compared with, from all around and over the source's elevations
OBJECTS = 8  # of a network of all toy prompts
SHOWN = np.deg2rad(50.0)  # a view looks like the front if the nearest true render is from within this of it


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """`janus`, the share of views from sides and back that look like the front, and `front`, that of views from the front.

    `one_front` is the share of objects of which both hold in every view. Control: true renders.
    """
    toy_objects.refuse_split(split)
    scenes, render = asked(loaded, limit), loaded.config.render
    images, truth = renders(loaded, scenes), true_views(scenes, render)
    log(f'reading {images.shape[0]} objects of {images.shape[1]} views')
    scores = {}
    for prefix, pictures in (('', images), ('control/true_renders/', truth)):
        scores |= {f'{prefix}{name}': value for name, value in fronts(scenes, pictures, render).items()}
    return {**scores, 'n': len(scenes), 'views_n': int(images.shape[0] * images.shape[1])}


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """12 views of each of the first `limit` (all) prompts, with the true ones of marked objects."""
    toy_objects.refuse_split(split)
    scenes = asked(loaded, limit)
    truth = true_views(scenes, loaded.config.render)
    return drawing.Pictures([scene.captions[0] for scene in scenes], renders(loaded, scenes), truth, True)


def asked(loaded: Loaded, limit: int | None) -> list[shapes.Scene]:
    """The objects that are asked for; UsageError for a model of other prompts."""
    if 'prompts' in loaded.config:
        return asked_objects.asked(loaded, limit)
    if loaded.config.get('data', {}).get('prompts') != 'toy':
        raise UsageError(f'evaluate={NAME!r} is for runs with prompts of their own, or with data.prompts=toy.')
    return view_reading.some_objects(OBJECTS if limit is None else rules.held('--limit', limit, asked_objects.LIMIT))


def views_of() -> cameras.Cameras:
    """The 12 cameras."""
    return cameras.Cameras(*toy.camera_arrays(AZIMUTH, ELEVATION, shapes.RADIUS, shapes.FOV))


def renders(loaded: Loaded, scenes: list[shapes.Scene]) -> np.ndarray:
    """[N, 12, S, S, 3] in [0, 1]."""
    views = views_of()
    prompts = [scene.captions[0] for scene in scenes]
    return drawing.render_views(loaded, prompts, views, loaded.config.render.size, evaluator=NAME)


def fronts(scenes: list[shapes.Scene], pictures: np.ndarray, render) -> dict[str, float]:
    """'janus', 'front' and 'one_front' of pictures [N, 12, S, S, 3] of N scenes; render: a config's section."""
    like = np.stack([looks_like_front(scene, views, render) for scene, views in zip(scenes, pictures, strict=True)])
    values = {'janus': like[:, ~FRONT], 'front': like[:, FRONT], 'one_front': np.all(like == FRONT, -1)}
    return {name: float(value.mean()) for name, value in values.items()}


def true_views(scenes: list[shapes.Scene], render) -> np.ndarray:
    """[N, 12, S, S, 3] of the marked objects from the same cameras."""
    records = [marked.record(scene, AZIMUTH, ELEVATION, render.size, SUPERSAMPLE) for scene in scenes]
    return np.stack([oracle.composite(record['image'], render.background) for record in records])


def looks_like_front(scene: shapes.Scene, views: np.ndarray, render) -> np.ndarray:
    """bool [V] of views [V, S, S, 3] of one object: whether the nearest true render is one of the front.

    Both sizes of the object are candidates: a small one is as far from all sides of a large one, and light fronts would win.
    """
    around, heights = np.meshgrid(np.arange(AROUND) * (2.0 * np.pi / AROUND), np.linspace(-0.2, 0.9, HEIGHTS))
    azimuth, targets = np.tile(around.ravel(), len(shapes.SIZES)), []
    for size in shapes.SIZES:
        thing = shapes.single(scene.attributes['shape'], scene.attributes['colour'], size)
        record = marked.record(thing, around.ravel(), heights.ravel(), render.size, SUPERSAMPLE)
        targets.append(oracle.composite(record['image'], render.background).reshape(around.size, -1))
    targets, flat = np.concatenate(targets), views.reshape(len(views), -1)
    nearest = np.argmin(np.sum(targets**2, -1)[None] - 2.0 * flat @ targets.T, -1)
    return np.abs((azimuth[nearest] + np.pi) % (2.0 * np.pi) - np.pi) < SHOWN
