"""Do seeds choose among real objects? Eight seeds of captions that are true of several, beside all of these objects."""

import numpy as np

from t3d.core import rules
from t3d.core.errors import UsageError
from t3d.data import sets
from t3d.data.adapters.object_rays import Numbered
from t3d.data.sets import oracle
from t3d.evaluate import drawing
from t3d.evaluate.object_views import SHARED
from t3d.geom import cameras
from t3d.inference.loading import Loaded
from t3d.metrics import seeds
from t3d.metrics.scores import derangement

NAME = 'object_seeds'
PAIRED = False
CAPTIONED = True
NEEDS = {'data.name': None, 'data.size': None, 'render.background': None}
LIMIT = rules.Whole(2, 4096, 'captions; a control needs another one')
CAPTIONS, SEEDS, SIZE = 24, 8, 64  # of a score; pixels at which pictures are compared
FEWEST, MOST = 4, 32  # objects of a caption; of more, so many are looked at


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict:
    """`seeds/best`, `nearest`, `reached` and `spread` of t3d.metrics.seeds, mean over captions; `limit`: captions.

    `seeds/by_caption` has a row for each caption: how many objects it is true of, its scores, and what `spread` is made of, the
    mean distance of two of its seeds and that of two of its objects.

    Views are those of the cameras SHARED by all objects, at SIZE pixels whatever the data have, so that weights of other sizes
    compare. Controls: objects of the caption at random (what there is to reach), their mean picture (what a squared error
    teaches), and the seeds of another caption.
    """
    groups = asked(loaded.config, limit, split)
    true = [views_of(records, loaded.config.render.background) for records in groups.values()]
    shown = samples(loaded, groups, log)
    random, others, rows, captions = np.random.default_rng(0), derangement(len(groups)), [], []
    for k, (caption, objects) in enumerate(zip(groups, true, strict=True)):
        judged = {
            'seeds/': shown[k],
            'control/objects_at_random/': objects[random.integers(0, len(objects), SEEDS)],
            'control/mean_picture/': np.repeat(objects.mean(0, keepdims=True), SEEDS, 0),
            'control/other_caption/': shown[others[k]],
        }
        rows += [(f'{of}{name}', value) for of, views in judged.items() for name, value in seeds.beside(views, objects).items()]
        own = seeds.beside(shown[k], objects) | {'of seeds': seeds.apart(shown[k]), 'of objects': seeds.apart(objects)}
        captions.append({'caption': caption, 'objects': len(objects), **{name: round(own[name], 4) for name in own}})
    scores = {name: float(np.mean([value for other, value in rows if other == name])) for name in dict.fromkeys(dict(rows))}
    return {**scores, 'seeds/captions': len(groups), 'seeds/n': len(groups) * SEEDS, 'seeds/by_caption': captions}


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """The first view of each of the eight seeds of `limit` captions."""
    groups = asked(loaded.config, limit, split)
    return drawing.Pictures(list(groups), samples(loaded, groups, log)[:, :, 0], None, False)


def asked(config, limit: int | None, split: str | None) -> dict[str, list[dict]]:
    """{caption: records of its objects}: captions true of at least FEWEST objects, one for each set of objects, the first of
    those that the set says of them; CAPTIONS or `limit` of them, those of many objects and of few."""
    source = sets.open_set(config.data, split or config.data.split)
    first = {}
    for caption, objects in Numbered(source).named().items():
        if len(objects) >= FEWEST:
            first.setdefault(tuple(objects.values()), caption)
    every = sorted(first.items(), key=lambda item: (-len(item[0]), item[1]))
    count = CAPTIONS if limit is None else rules.held('--limit', limit, LIMIT)
    if len(every) < 2:
        raise UsageError(
            f'evaluate={NAME!r} asks for captions that are true of {FEWEST} objects or more, and {config.data.name} has '
            f'{len(every)} of them in this split: name another evaluator, with `t3d eval RUN --evaluate NAME`.'
        )
    chosen = [every[int(k)] for k in np.unique(np.linspace(0, len(every) - 1, count).round())]
    few = lambda places: np.unique(np.linspace(0, len(places) - 1, min(len(places), MOST)).round().astype(int))
    groups = {caption: [source[places[k]] for k in few(places)] for places, caption in chosen}
    refuse_other_cameras([record for records in groups.values() for record in records], config.data.name)
    return groups


def refuse_other_cameras(records: list[dict], name: str) -> None:
    """Raises UsageError for records that have no SHARED views, or others than the first has."""
    for record in records:
        if len(record['image']) <= max(SHARED):
            raise UsageError(
                f'evaluate={NAME!r} reads view {max(SHARED)}, and a record of {name} has {len(record["image"])} views: name '
                'another evaluator, with `t3d eval RUN --evaluate NAME`.'
            )
        for part in ('world_from_cam', 'intrinsics'):
            if not np.allclose(record[part][list(SHARED)], records[0][part][list(SHARED)], atol=1e-4):
                raise UsageError(
                    f'evaluate={NAME!r} compares all objects from the same cameras, and those of {name} differ from object to '
                    'object: name another evaluator, with `t3d eval RUN --evaluate NAME`.'
                )


def views_of(records: list[dict], background: float) -> np.ndarray:
    """float [N, V, SIZE, SIZE, 3] in [0, 1]: the SHARED views of records, whose sides SIZE divides."""
    images = np.stack([oracle.composite(record['image'][list(SHARED)], background) for record in records])
    side = images.shape[2]
    if side % SIZE:
        raise UsageError(f'evaluate={NAME!r} compares pictures of {SIZE} pixels, and {side} are no multiple of it.')
    return images.reshape(*images.shape[:2], SIZE, side // SIZE, SIZE, side // SIZE, 3).mean((3, 5))


def samples(loaded: Loaded, groups: dict[str, list[dict]], log) -> np.ndarray:
    """[G, SEEDS, V, SIZE, SIZE, 3] in [0, 1]: what seeds of the captions show from the SHARED cameras."""
    log(f'rendering {len(groups)} captions x {SEEDS} seeds x {len(SHARED)} views')
    first = next(iter(groups.values()))[0]
    views = cameras.Cameras(*(np.asarray(first[name])[list(SHARED)] for name in ('world_from_cam', 'intrinsics')))
    prompts, told = [caption for caption in groups for _ in range(SEEDS)], drawing.progress(log, 'seeds')
    shown = drawing.render_views(loaded, prompts, views, SIZE, evaluator=NAME, progress=told)
    return shown.reshape(len(groups), SEEDS, *shown.shape[1:])
