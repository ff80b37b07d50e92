"""Scores of text to 3D that learned from the prompts of toy alone: renders against the true objects, which it never saw.

Two readings of the same renders. `nearest` (toy_objects) asks that an object stand as the true one does: each view is compared
with true renders from its own camera. A prior that knows no more of a camera than its side leaves an object's turn open;
`views` and `objects` (asked_objects) read a view by its nearest true render from anywhere.
"""

import numpy as np

from t3d.core import config as configs
from t3d.data.sets import oracle, shapes
from t3d.evaluate import asked_objects, drawing, toy_objects
from t3d.evaluate.asked_objects import SUPERSAMPLE
from t3d.inference.loading import Loaded

NAME = 'toy_prompts'
PAIRED = True
CAPTIONED = True
NEEDS = {'data.prompts': 'toy', 'render.size': None, 'render.background': None}


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """The 32 large objects at the size of the renders that were trained on, held-out and seen prompts apart.

    Shares of views and of objects that show the shape, the colour and both of their prompt stand beside those for the other
    prompts of the group, and beside what the reading says of true renders.
    """
    toy_objects.refuse_split(split)
    seen = with_views(loaded)
    scores = toy_objects.singles(seen)
    things, renders, targets = toy_objects.single_views(seen)
    log(f'reading {renders.shape[0]} objects of {renders.shape[1]} views')
    judge = oracle.PictureOracle(renders.shape[2], loaded.config.render.background, SUPERSAMPLE)
    held_out = np.array([shapes.is_held_out(scene.attributes['shape'], scene.attributes['colour']) for scene in things])
    for name, chosen in (('held_out', np.flatnonzero(held_out)), ('seen', np.flatnonzero(~held_out))):
        asked = [things[k].attributes for k in chosen]
        for prefix, pictures in ((f'{name}/', renders[chosen]), (f'control/{name}/true_renders/', targets[chosen])):
            values = asked_objects.shares(asked_objects.read(judge, pictures), asked)
            kept = values if not prefix.startswith('control') else {'views/both': values['views/both']}
            scores.update({f'{prefix}{label}'.replace(f'{name}/control', f'control/{name}'): kept[label] for label in kept})
    return scores


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """The 32 large objects, 6 views."""
    return toy_objects.pictures(with_views(loaded), log, split=split)


def with_views(loaded: Loaded) -> Loaded:
    """The model with the data section of the views that it is scored on."""
    config = loaded.config.to_dict()
    data = {'name': 'toy', 'scenes': 'singles', 'size': config['render']['size'], 'supersample': SUPERSAMPLE}
    return loaded._replace(config=configs.from_dict({**config, 'data': data}))
