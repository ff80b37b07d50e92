"""The batch of systems that learn from rays of captioned objects: `data.kind=rays`.

Two kinds of truth, of which the system asks for one by its `batch_spec`:

- scenes in closed form (`solids` in the spec): the batch holds cameras and a table of solids for each scene. The rays, at any
  resolution, and what they see are drawn and computed in the train step; no picture is ever made.
- pictures of any size (`pixels` in the spec): rays through the centres of pixels are drawn here, and the bytes of these alone
  go into the batch, so that its size does not depend on `data.size`. They stay whole in memory as they are decoded, uint8.
"""

from collections.abc import Callable

import numpy as np

from t3d.core import tokens
from t3d.core.errors import UsageError
from t3d.data import sets
from t3d.data.adapters import views
from t3d.data.sets import camera_labels, caption_words

NEEDS = ('data.views', 'text.length', 'loss.rays', 'loss.foreground')
REACH = 2  # pixels around the object that count as near it
CAMERAS = ('world_from_cam', 'intrinsics')

words, captions = views.words, views.captions


def make(config, split: str | None = None, batch_spec: dict | None = None) -> tuple[object, Callable]:
    """(source, transform) of a config."""
    spec, split = batch_spec or {}, split or config.data.split
    if 'solids' in spec:
        return sets.open_solids(config.data, split), of_solids(config)
    with_depth = 'depth' in spec
    source = sets.open_set(config.data, split)
    caption_words.check_set(source, config.text)
    names = ('image', *CAMERAS, *(['depth'] if with_depth else []), 'captions', 'near', 'ends')
    records = views.kept(Near(source, config.data.get('train_views', 0)), names)
    first = records[0] if len(records) else None
    if with_depth and first and 'depth' not in first:
        raise UsageError(f'data.name={config.data.name!r} has no depth, which this config reads: set loss.depth=0.')
    if first:
        camera_labels.check_views({'name': 'record 0', **first}, str(getattr(source, 'folder', config.data.name)))
    return records, of_pixels(config, with_depth)


def of_solids(config) -> Callable[[dict, np.random.Generator], dict[str, np.ndarray]]:
    """One of the record's captions, tokenized, beside its solids and cameras."""
    tokenize = tokens.make(config.text)

    def transform(record: dict, random: np.random.Generator) -> dict[str, np.ndarray]:
        caption = record['captions'][random.integers(len(record['captions']))]
        return {'tokens': tokenize([caption])[0], **{name: record[name] for name in (*CAMERAS, 'solids', 'lamp')}}

    return transform


class Near:
    """Records of a source, their training views alone, and which pixels lie on their objects or within REACH of them.

    A record has further: near uint32 [N], places of such pixels in each picture row by row, view after view, and ends int64
    [V], where those of each view end.
    """

    def __init__(self, source, train_views: int):
        self.source, self.train_views = source, train_views
        self.folder, self.streamed = getattr(source, 'folder', None), getattr(source, 'streamed', False)

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return repr(self.source)

    def __getitem__(self, index: int) -> dict:
        record = self.source[index]
        usable = self.train_views or len(record['image'])
        record = {**record, **{name: record[name][:usable] for name in ('image', *CAMERAS, 'depth') if name in record}}
        places = [np.flatnonzero(grown(view[..., 3] > 0, REACH)).astype(np.uint32) for view in record['image']]
        return {**record, 'near': np.concatenate(places), 'ends': np.cumsum([len(of_view) for of_view in places])}


def grown(mask: np.ndarray, reach: int) -> np.ndarray:
    """A mask [H, W] with every pixel within `reach` of it, along rows and columns."""
    padded = np.pad(mask, reach)
    rows = np.logical_or.reduce([padded[k : k + len(mask)] for k in range(2 * reach + 1)])
    return np.logical_or.reduce([rows[:, k : k + mask.shape[1]] for k in range(2 * reach + 1)])


def of_pixels(config, with_depth: bool) -> Callable[[dict, np.random.Generator], dict[str, np.ndarray]]:
    """A caption beside `loss.rays` pixels of each of `data.views` views, a share `loss.foreground` of them near the object."""
    tokenize, count = tokens.make(config.text), config.loss.rays
    aimed, asked = round(config.loss.foreground * config.loss.rays), config.data.views

    def transform(record: dict, random: np.random.Generator) -> dict[str, np.ndarray]:
        caption = record['captions'][random.integers(len(record['captions']))]
        image = record['image']
        if asked > len(image):
            raise UsageError(
                f'data.views={asked}, but a record of {config.data.name} has {len(image)} views for training: choose at most '
                f'{len(image)}.'
            )
        chosen = random.choice(len(image), asked, replace=False) if len(image) > asked else np.arange(asked)
        places = np.stack([drawn(record, int(view), count, aimed, random) for view in chosen])  # [V, R]
        height, width = image.shape[1:3]
        uv = (np.stack([places % width, places // width], -1) + 0.5) / [width, height]

        def gathered(name):
            pictures = record[name]
            return np.stack([pictures[view].reshape(height * width, -1)[of_view] for view, of_view in zip(chosen, places)])

        made = {'tokens': tokenize([caption])[0], 'uv': uv.astype(np.float32), 'pixels': gathered('image')}
        made |= {name: record[name][chosen] for name in CAMERAS}
        return made | ({'depth': gathered('depth')[..., 0]} if with_depth else {})

    return transform


def drawn(record: dict, view: int, count: int, aimed: int, random: np.random.Generator) -> np.ndarray:
    """Places [count] of pixels of a view: `aimed` of them near its object, where there is one, the rest anywhere."""
    height, width = record['image'].shape[1:3]
    start, end = int(record['ends'][view - 1]) if view else 0, int(record['ends'][view])
    aimed = aimed if end > start else 0
    close = record['near'][start + random.integers(0, max(end - start, 1), aimed)] if aimed else np.zeros(0, np.int64)
    return np.concatenate([close.astype(np.int64), random.integers(0, height * width, count - aimed)])


def preview(config, batch_spec: dict | None = None) -> tuple[dict[str, np.ndarray], list[str]]:
    """As the adapter `views`: held-out objects beside their true views, those of procedural sets of `preview.size` pixels."""
    if sets.procedural(config.data.name):
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.data.size = config.preview.size
    return views.preview(config)
