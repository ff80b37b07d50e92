"""Do seeds choose? What eight seeds of a caption show, beside all the objects that it is true of (`toy_open`).

Distances are the root mean square over the pixels of four views. A sample is read by the nearest of the true views of all 64
toy objects, and of what a model shows that does not choose: the mean picture of the caption's objects and of each two of them.
"""

import itertools

import numpy as np

from t3d.core import rules
from t3d.data.sets import open_captions, oracle, shapes, toy
from t3d.evaluate import drawing
from t3d.evaluate.toy_objects import AZIMUTH, ELEVATION, refuse_split
from t3d.geom import cameras
from t3d.inference.loading import Loaded
from t3d.metrics import seeds
from t3d.metrics.scores import derangement

NAME = 'toy_seeds'
PAIRED = False
CAPTIONED = True
NEEDS = {'data.name': 'toy_open', 'data.size': None, 'data.supersample': None, 'render.background': None}
LIMIT = rules.Whole(2, 12, 'captions; a control needs another one')
SEEDS, VIEWS = 8, 4


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """Scores of captions that leave the shape open, and of those that leave the colour open; `limit`: captions.

    | score | of a caption, mean over captions |
    |---|---|
    | `best` | distance of the best seed to the object that it is nearest to |
    | `nearest` | distance of each seed to the object that it is nearest to, mean over seeds |
    | `reached` | distance of each object to the seed that is nearest to it, mean over objects |
    | `spread` | mean distance of two seeds, divided by that of two of the objects |
    | `one` | share of seeds that are read as one of the objects |
    | `found` | share of the objects that some seed is read as |

    Controls: seeds that are objects of the caption at random (what there is to reach), the mean picture, and the seeds of
    another caption.
    """
    refuse_split(split)
    groups = asked(loaded, limit)
    shown = samples(loaded, groups, log)
    judge = Reader(loaded.config)
    random, others, scores = np.random.default_rng(0), derangement(len(groups)), {}
    rows = []
    for k, scenes in enumerate(groups.values()):
        true = judge.true[[judge.place(scene) for scene in scenes]]
        judged = {
            '': shown[k],
            'control/objects_at_random/': true[random.integers(0, len(true), SEEDS)],
            'control/mean_picture/': np.repeat(true.mean(0, keepdims=True), SEEDS, 0),
            'control/other_caption/': shown[others[k]],
        }
        for prefix, views in judged.items():
            rows += [(f'{prefix}{left_open(scenes)}_open/{name}', value) for name, value in judge.score(views, scenes).items()]
    for name in dict.fromkeys(name for name, _ in rows):
        scores[name] = float(np.mean([value for other, value in rows if other == name]))
    counts = [left_open(scenes) for scenes in groups.values()]
    return {**scores, **{f'{name}_open/n': SEEDS * counts.count(name) for name in dict.fromkeys(counts)}}


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """The first view of each of the eight seeds of `limit` (all) captions."""
    refuse_split(split)
    groups = asked(loaded, limit)
    return drawing.Pictures(list(groups), samples(loaded, groups, log)[:, :, 0], None, False)


def asked(loaded: Loaded, limit: int | None) -> dict[str, list[shapes.Scene]]:
    """{caption: its objects} of the split that a run learned from, spread over all captions."""
    groups = list(open_captions.groups(loaded.config.data.split).items())
    count = len(groups) if limit is None else min(rules.held('--limit', limit, LIMIT), len(groups))
    return dict(groups[int(k)] for k in np.linspace(0, len(groups) - 1, count))


def left_open(scenes: list[shapes.Scene]) -> str:
    """The attribute in which the objects of a caption differ."""
    return next(name for name in scenes[0].attributes if len({scene.attributes[name] for scene in scenes}) > 1)


def samples(loaded: Loaded, groups: dict, log) -> np.ndarray:
    """[G, SEEDS, VIEWS, S, S, 3] in [0, 1]."""
    log(f'rendering {len(groups)} captions x {SEEDS} seeds x {VIEWS} views')
    prompts = [caption for caption in groups for _ in range(SEEDS)]
    views = cameras.Cameras(*toy.camera_arrays(AZIMUTH[:VIEWS], ELEVATION[:VIEWS], shapes.RADIUS, shapes.FOV))
    told = drawing.progress(log, 'seeds')
    shown = drawing.render_views(loaded, prompts, views, loaded.config.data.size, evaluator=NAME, progress=told)
    return shown.reshape(len(groups), SEEDS, *shown.shape[1:])


class Reader:
    """The true views of all 64 toy objects, and how what a model shows is read by them.

    Attributes:
      true: [64, VIEWS, S, S, 3] in [0, 1].
    """

    def __init__(self, config):
        scenes = shapes.singles('all')
        size, supersample = config.data.size, config.data.supersample
        records = [toy.record(scene, AZIMUTH[:VIEWS], ELEVATION[:VIEWS], size, supersample) for scene in scenes]
        self.true = np.stack([oracle.composite(record['image'], config.render.background) for record in records])
        self.places = {tuple(scene.attributes.values()): k for k, scene in enumerate(scenes)}

    def place(self, scene: shapes.Scene) -> int:
        return self.places[tuple(scene.attributes.values())]

    def score(self, shown: np.ndarray, scenes: list[shapes.Scene]) -> dict[str, float]:
        """The scores of what seeds show [K, VIEWS, S, S, 3] of a caption that is true of these objects."""
        own = np.array([self.place(scene) for scene in scenes])
        true = self.true[own]
        read = self.read(shown, own)
        return {
            **seeds.beside(shown, true),
            'one': np.isin(read, own).mean(),
            'found': np.isin(own, read).mean(),
        }

    def read(self, shown: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Which of the 64 objects each of [K, ...] shows, or a number from 64 on for a mean of some of `own`."""
        blends = [self.true[own].mean(0), *(self.true[list(two)].mean(0) for two in itertools.combinations(own, 2))]
        return seeds.distances(shown, np.concatenate([self.true, blends])).argmin(1)
