"""From a config's `data` section to records, training examples and the fixed batch that previews show."""

from collections.abc import Callable

import numpy as np

from t3d.core import tokens
from t3d.core.config import unknown
from t3d.core.errors import UsageError
from t3d.data import shapes, toy

SOURCES = ('toy', 'furniture', 'triplanes')  # data.name, where data.kind is not single_view
OTHERS = (
    'triplanes goes with configs/ganfusion_diffusion.py, eg3d with configs/ganfusion_gan.py: take one of these to train on it.'
)


def make(config, split: str | None = None) -> tuple[object, Callable]:
    """(source, transform) of a config: `source[i]` is a record, `transform(record, random)` an example of the batch.

    Args:
      config: the run's config; `config.data.name` chooses the source.
      split: overrides `config.data.split`.
    Raises:
      UsageError: unknown source or split.
      FileNotFoundError: a built data set is missing; the message has the command that builds it.
    """
    data = config.data
    if data.get('kind') == 'single_view':
        from t3d.data import single_view

        if data.get('views', 1) != 1:
            raise UsageError(f'data.views={data.views}: a single-view set has one picture of each record. Set data.views=1.')
        return single_view.make(config, split)
    if data.name == 'triplanes':
        from t3d.data import triplanes

        return triplanes.make(config)
    return open_source(data, split or data.split, depth=config.loss.depth > 0.0), example(config)


def open_source(data, split: str, depth: bool = False):
    """The random-access source of a `data` section."""
    if data.name == 'toy':
        source = toy.ToySource(
            split,
            scenes=data.scenes,
            size=data.size,
            views=data.views,
            poses=data.poses,
            seed=data.seed,
            supersample=data.supersample,
        )
        return Cached(source, depth=depth)
    if data.name == 'furniture':
        from t3d.data import camera_labels, furniture_source

        found = furniture_source.FurnitureSource(data.path or None, split, size=data.size, variants=data.variants)
        source = Cached(found, depth=depth)
        if len(source):  # all records of a build are seen from the same cameras
            camera_labels.check_views(source[0], str(found.folder))
        return source
    raise UsageError(f'{unknown(data.name, SOURCES, "data set (data.name)")} {OTHERS}')


def describe(config, source) -> str:
    """What a run learns from: 'data: furniture, split train, 1234 records of /data/furniture/...'."""
    place = folder(source)
    records = f'{len(source)} records' + (f' of {place}' if place else ', made as they are needed')
    return f'data: {config.data.name}, split {config.data.split}, {records}'


def folder(source) -> str:
    """The folder or zip that a source reads; '' for one that makes its records."""
    while source is not None:
        found = getattr(source, 'folder', None) or getattr(source, 'path', None)
        if found:
            return str(found)
        source = getattr(source, 'source', None) or getattr(source, 'pictures', None)
    return ''


class Cached:
    """A source whose decoded records stay in memory; for sets of a few thousand small records."""

    def __init__(self, source, *, depth: bool):
        self.source, self.depth, self.records = source, depth, {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        index = int(index)
        if index not in self.records:
            record = self.source[index]
            self.records[index] = record if self.depth else {key: value for key, value in record.items() if key != 'depth'}
        return self.records[index]


def example(config) -> Callable[[dict, np.random.Generator], dict[str, np.ndarray]]:
    """The transform of a config: one of the record's captions, tokenized, and `data.views` of its training views."""
    tokenize = tokens.make(config.text)
    views, depth = config.data.views, config.loss.depth > 0.0
    first = config.data.get('train_views', 0)  # only views before this one are for training; 0 means all

    def transform(record: dict, random: np.random.Generator) -> dict[str, np.ndarray]:
        caption = record['captions'][random.integers(len(record['captions']))]
        usable = first or len(record['image'])
        if views > usable:
            raise UsageError(
                f'data.views={views}, but a record of {config.data.name} has {usable} views for training: '
                f'choose at most {usable}.'
            )
        chosen = random.choice(usable, views, replace=False) if usable > views else np.arange(views)
        names = ('image', 'world_from_cam', 'intrinsics') + (('depth',) if depth else ())
        return {'tokens': tokenize([caption])[0], **{name: record[name][chosen] for name in names}}

    return transform


def preview(config, batch_spec: dict) -> tuple[dict[str, np.ndarray], list[str]]:
    """A fixed batch of held-out examples and their captions, for the contact sheet. Depends on the config alone."""
    data = config.data
    if data.get('kind') == 'single_view':
        from t3d.data import single_view

        return single_view.preview(config)
    if data.name == 'triplanes':
        from t3d.data import triplanes

        return triplanes.preview(config)
    count = min(config.preview.rows, config.batch)
    views = config.preview.views
    if data.name == 'toy':
        azimuth, elevation = np.arange(views) * (2.0 * np.pi / views), np.full(views, 0.4)
        scenes = shapes.singles('test')[::2]
        if data.scenes != 'singles':
            scenes = [scene for both in zip(shapes.pairs('test')[5::211], scenes) for scene in both]
        records = [toy.record(scene, azimuth, elevation, data.size, data.supersample) for scene in scenes[:count]]
    else:
        source = open_source(data, data.split)
        chosen = np.linspace(0, len(source) - 1, count).astype(int)
        records = [source[int(k)] for k in chosen]
        held_out = data.get('train_views', 0)
        last = range(held_out, held_out + views) if held_out else range(views)
        records = [{**r, **{n: r[n][list(last)] for n in ('image', 'world_from_cam', 'intrinsics')}} for r in records]
    captions = [record['captions'][0] if data.name == 'toy' else max(record['captions'], key=len) for record in records]
    batch = {name: np.stack([record[name] for record in records]) for name in ('image', 'world_from_cam', 'intrinsics')}
    return {'tokens': tokens.make(config.text)(captions), **batch}, captions


def resolve(config):
    """The config with what only the data knows filled in: an empty `text.words` becomes the data set's vocabulary."""
    if config.data.name == 'triplanes':
        from t3d.data import triplanes

        return triplanes.resolve(config)
    text = config.get('text')
    if text is not None and not text.get('folder') and not text.words:
        if config.data.name == 'toy':
            words = shapes.WORDS
        elif config.data.get('kind') == 'single_view':
            from t3d.data import single_view

            words = vocabulary(single_view.open_set(config).captions())
        else:
            source = open_source(config.data, config.data.split)
            words = vocabulary(caption for k in range(len(source)) for caption in source[k]['captions'])
        with config.unlocked():
            text.words = tuple(words)
    return config


def vocabulary(captions) -> list[str]:
    """Every word of the captions, most frequent first, ties by alphabet."""
    counts = {}
    for caption in captions:
        for word in tokens.split_words(caption):
            counts[word] = counts.get(word, 0) + 1
    return sorted(counts, key=lambda word: (-counts[word], word))


def default_folder() -> str:
    """Where built data sets live: $T3D_DATA, else ~/.cache/t3d/data."""
    from t3d.data import furniture_source

    return str(furniture_source.data_root())
