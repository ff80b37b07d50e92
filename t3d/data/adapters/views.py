"""The batch of systems that learn from posed views of captioned objects."""

from collections.abc import Callable, Iterator

import numpy as np

from t3d.core import tokens
from t3d.core.errors import UsageError
from t3d.data import sets
from t3d.data.sets import camera_labels, caption_words
from t3d.data.sets.captions import vocabulary

NEEDS = ('data.views', 'text.length')
CACHE = 2 << 30  # bytes of decoded records kept in memory
ARRAYS = ('image', 'world_from_cam', 'intrinsics', 'depth')  # of a record, by view: those that the batch asks for are taken


def make(config, split: str | None = None, batch_spec: dict | None = None) -> tuple['Cached | Streamed', Callable]:
    """(source, transform) of a config whose set gives records {'captions', 'image' [V, H, W, 4], 'world_from_cam', ...}."""
    names = [name for name in ARRAYS if name in (batch_spec or ARRAYS[:3])]
    source = sets.open_set(config.data, split or config.data.split)
    records = kept(source, (*names, 'captions'))
    caption_words.check_set(source, config.text)
    first = records[0] if len(records) else None
    missing = [name for name in names if first and name not in first]
    if missing:
        raise UsageError(f'data.name={config.data.name!r} has no {missing[0]}, which this config reads: set its weight to 0.')
    if first and {'world_from_cam', 'intrinsics'} <= set(names):  # all records of a set are seen from the same cameras
        camera_labels.check_views({'name': 'record 0', **first}, str(getattr(source, 'folder', config.data.name)))
    return records, example(config, names)


def kept(source, names) -> 'Cached | Streamed':
    """The named parts of the records of a source: in memory as far as `CACHE` goes, or never where the source is `streamed`."""
    return (Streamed if getattr(source, 'streamed', False) else Cached)(source, names)


class Cached:
    """A source whose decoded records stay in memory, the named parts of them, as long as `CACHE` has room."""

    def __init__(self, source, names):
        self.source, self.names, self.records, self.room = source, frozenset(names), {}, CACHE

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        index = int(index)
        if index in self.records:
            return self.records[index]
        record = {key: value for key, value in self.source[index].items() if key in self.names}
        self.room -= sum(getattr(value, 'nbytes', 0) for value in record.values())
        if self.room > 0:
            self.records[index] = record
        return record


class Streamed:
    """The named parts of the records of a source, read anew each time."""

    def __init__(self, source, names):
        self.source, self.names = source, frozenset(names)

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return repr(self.source)  # grain puts it into the iterator's state

    def __getitem__(self, index: int) -> dict:
        return {key: value for key, value in self.source[int(index)].items() if key in self.names}


def example(config, names) -> Callable[[dict, np.random.Generator], dict[str, np.ndarray]]:
    """The transform of a config: one of the record's captions, tokenized, and `data.views` of its training views."""
    tokenize = tokens.make(config.text)
    views = config.data.views
    first = config.data.get('train_views', 0)  # only views before this one are for training; 0 means all

    def transform(record: dict, random: np.random.Generator) -> dict[str, np.ndarray]:
        caption = record['captions'][random.integers(len(record['captions']))]
        usable = first or len(record['image'])
        if usable > len(record['image']):
            raise UsageError(
                f'data.train_views={first}, but a record of {config.data.name} has {len(record["image"])} views: set 0 for all.'
            )
        if views > usable:
            raise UsageError(
                f'data.views={views}, but a record of {config.data.name} has {usable} views for training: '
                f'choose at most {usable}.'
            )
        chosen = random.choice(usable, views, replace=False) if usable > views else np.arange(views)
        return {'tokens': tokenize([caption])[0], **{name: record[name][chosen] for name in names}}

    return transform


def preview(config, batch_spec: dict | None = None) -> tuple[dict[str, np.ndarray], list[str]]:
    """A fixed batch of held-out examples and their captions; procedural sets: held-out scenes from `preview.views` sides."""
    data, views = config.data, config.preview.views
    count, procedural = min(config.preview.rows, config.batch), sets.procedural(data.name)
    if procedural:
        records = procedural.preview_records(data, count, views)
    else:
        source = sets.open_set(data, data.split)
        chosen = np.linspace(0, len(source) - 1, count).astype(int)
        first = data.get('train_views', 0)  # those from here on were not trained on
        records = [_some_views(source[int(k)], range(first, first + views) if first else range(views)) for k in chosen]
    captions = [record['captions'][0] if procedural else max(record['captions'], key=len) for record in records]
    batch = {name: np.stack([record[name] for record in records]) for name in ARRAYS[:3]}
    return {'tokens': tokens.make(config.text)(captions), **batch}, captions


def words(config) -> list[str]:
    """The vocabulary of a config's set."""
    procedural = sets.procedural(config.data.name)
    if procedural:
        return procedural.WORDS
    spoken = getattr(sets.open_set(config.data, config.data.split), 'spoken', None)
    return vocabulary(captions(config)) if spoken is None else list(spoken.words)


def captions(config) -> Iterator[str]:
    """Every caption of a config's set; of one that counted them, the first different ones."""
    source = sets.open_set(config.data, config.data.split)
    if hasattr(source, 'spoken'):
        return iter(source.spoken.first)
    text = getattr(source, 'text', source.__getitem__)
    return (caption for k in range(len(source)) for caption in text(k)['captions'])


def _some_views(record: dict, which) -> dict:
    which = [view % len(record['image']) for view in which]  # the first ones again where there are too few
    return {**record, **{name: record[name][which] for name in ARRAYS if name in record}}
