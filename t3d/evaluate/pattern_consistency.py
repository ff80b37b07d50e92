"""Multi-view consistency of patterned objects: view_consistency of "a striped red cube" and its like.

Eight of the large toy objects, in turn striped, checked and dotted, four samples each. The floor is that of true patterned
renders. A pattern that sits elsewhere in every view raises MVC, and so does one that is too fine for the reconstruction: read
it beside the floor. `control/patterns/plain/mvc_...` is that of the true objects without their pattern.
"""

import numpy as np

from t3d.core import prng, rules
from t3d.data.sets import patterns, shapes
from t3d.evaluate import drawing, pattern_views, toy_objects, view_consistency, view_reading
from t3d.evaluate.view_consistency import CAPTIONS, LIMIT, SAMPLES
from t3d.inference.loading import Loaded
from t3d.metrics import multiview

NAME = 'pattern_consistency'
PAIRED = True
CAPTIONED = True


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """MVC and agreement of 4 samples of each caption, named `patterns/...`; limit: captions, None for 8."""
    toy_objects.refuse_split(split)
    scenes = prompted(CAPTIONS if limit is None else rules.held('--limit', limit, LIMIT))
    images, cameras, truth = drawn(loaded, scenes, log)
    plain = view_reading.true_views(pattern_views.plain(scenes), cameras, images.shape[2], **view_reading.appearance(loaded))
    found = view_consistency.scores(images, cameras, truth, log)
    for name, values in multiview.consistency(plain, cameras, prng.key(0))._asdict().items():
        found[f'control/plain/mvc_{name}'] = float(np.mean(values))
    return {_named(name): value for name, value in found.items()}


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """The samples that are scored, with the true renders from the same cameras."""
    toy_objects.refuse_split(split)
    scenes = prompted(CAPTIONS if limit is None else rules.held('--limit', limit, LIMIT))
    images, _, truth = drawn(loaded, scenes, log)
    return drawing.Pictures([scene.captions[0] for scene in scenes], images, truth, True)


def prompted(count: int) -> list[shapes.Scene]:
    """SAMPLES of each of `count` objects, side by side; object i wears pattern i mod 3."""
    worn = pattern_views.WORN
    things = [patterns.patterned(thing, worn[i % len(worn)]) for i, thing in enumerate(view_reading.some_objects(count))]
    return [thing for thing in things for _ in range(SAMPLES)]


def drawn(loaded: Loaded, scenes: list[shapes.Scene], log):
    """(images [N, V, S, S, 3], their cameras [N, V], true patterned renders)."""
    log(f'drawing {len(scenes)} patterned objects')
    images, cameras = view_reading.draw(loaded, [scene.captions[0] for scene in scenes], log, evaluator=NAME)
    look = view_reading.appearance(loaded)
    return images, cameras, view_reading.true_views(scenes, cameras, images.shape[2], albedo=patterns.albedo, **look)


def _named(name: str) -> str:
    """'control/x' -> 'control/patterns/x', 'x' -> 'patterns/x'."""
    return f'control/patterns/{name.removeprefix("control/")}' if name.startswith('control/') else f'patterns/{name}'
