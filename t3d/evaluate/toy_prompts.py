"""Scores of text to 3D that learned from the prompts of toy alone: renders against the true objects, which it never saw."""

from t3d.core import config as configs
from t3d.evaluate import drawing, toy_objects
from t3d.inference.loading import Loaded

NAME = 'toy_prompts'
PAIRED = True
CAPTIONED = True
NEEDS = {'data.prompts': 'toy', 'render.size': None, 'render.background': None}
SUPERSAMPLE = 3  # of the true views


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """`toy_objects.singles` at the size of the renders that were trained on: nearest-target shares, held out and seen apart."""
    toy_objects.refuse_split(split)
    return toy_objects.singles(with_views(loaded))


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """The 32 large objects, 6 views."""
    return toy_objects.pictures(with_views(loaded), log, split=split)


def with_views(loaded: Loaded) -> Loaded:
    """The model with the data section of the views that it is scored on."""
    config = loaded.config.to_dict()
    data = {'name': 'toy', 'scenes': 'singles', 'size': config['render']['size'], 'supersample': SUPERSAMPLE}
    return loaded._replace(config=configs.from_dict({**config, 'data': data}))
