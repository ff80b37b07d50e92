"""Scores of a text-to-multi-view system on built sets of real objects, which no oracle reads: do its views fit each other?

Views are drawn for the longest caption of each object. MVC and agreement (metrics/multiview.py) stand beside their floor, true
views of the same objects, and beside views of other objects. Whether the views show what was asked for is left to judges:
`t3d eval RUN --metrics align,fid_tiny`, whose pictures are these.
"""

import jax
import numpy as np

from t3d.core import prng, rules
from t3d.core.errors import UsageError
from t3d.data import sets
from t3d.data.sets import oracle
from t3d.evaluate import drawing, toy_objects
from t3d.geom.cameras import Cameras
from t3d.inference.loading import Loaded
from t3d.metrics import multiview

NAME = 'captioned_views'
PAIRED = False
CAPTIONED = True
NEEDS = {'data.name': None, 'data.kind': 'views', 'render.background': None}
OBJECTS = 32


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """MVC and agreement of the views of at most `limit` (32) objects of `split` (those trained on)."""
    prompts, records = objects(loaded, limit, split)
    log(f'drawing views of {len(prompts)} captions')
    images, cameras = draw(loaded, prompts, log)
    true, posed = true_views(loaded, records, images.shape[1])
    key, found = prng.key(0), {}
    sets_of = {
        '': (images, cameras),
        'floor/': (true, posed),
        'control/': multiview.shuffled(images, cameras),
        'control/floor/': multiview.shuffled(true, posed),
    }
    for prefix, (shown, at) in sets_of.items():
        log(f'reconstructing {len(shown)} objects{f" ({prefix[:-1]})" if prefix else ""}')
        for name, values in multiview.consistency(shown, at, key)._asdict().items():
            found[f'{prefix}mvc_{name}'] = float(np.mean(values))
    for prefix in ('', 'floor/') if images.shape[1] >= multiview.LEAST_HALVES else ():
        for name, values in multiview.agreement(*sets_of[prefix], key)._asdict().items():
            found[f'{prefix}agreement_{name}'] = float(np.mean(values))
    return {**found, 'n_objects': len(prompts), 'n_views': images.shape[0] * images.shape[1]}


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """The views of at most `limit` (32) captions, and as many true views of their objects, from other cameras."""
    prompts, records = objects(loaded, limit, split)
    images, _ = draw(loaded, prompts, log)
    true, _ = true_views(loaded, records, images.shape[1])
    return drawing.Pictures(prompts, images, true, False)


def objects(loaded: Loaded, limit: int | None, split: str | None) -> tuple[list[str], list[dict]]:
    """(the longest caption, the record) of each of at most `limit` objects, evenly spread over a split."""
    most = OBJECTS if limit is None else rules.held('--limit', limit, toy_objects.LIMIT)
    source = sets.open_set(loaded.config.data, split or loaded.config.data.split)
    if len(source) < 2:
        raise UsageError(f'the split has {len(source)} object, and a control needs another one of each: name another --split.')
    records = [source[int(k)] for k in np.linspace(0, len(source) - 1, min(most, len(source)))]
    return [max(record['captions'], key=len) for record in records], records


def draw(loaded: Loaded, prompts: list[str], log) -> tuple[np.ndarray, Cameras]:
    """(images [N, V, S, S, 3], cameras [N, V])."""
    return drawing.views(loaded, prompts, evaluator=NAME, background=loaded.config.render.background, log=log)


def true_views(loaded: Loaded, records: list[dict], count: int) -> tuple[np.ndarray, Cameras]:
    """(images [N, `count`, S, S, 3], cameras) of records, evenly spread over those that were trained on."""
    views = loaded.config.data.get('train_views', 0) or len(records[0]['image'])
    if views < count:
        raise UsageError(f'a record has {views} views, and {count} are compared: set fewer sample.views.')
    which = np.arange(count) * views // count
    background = loaded.config.render.background
    images = np.stack([oracle.composite(record['image'][which], background) for record in records])
    poses = (np.stack([np.asarray(record[name])[which] for record in records]) for name in ('world_from_cam', 'intrinsics'))
    return images.astype(np.float32), jax.tree.map(np.asarray, Cameras(*poses))
