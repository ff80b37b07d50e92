"""Rays of numbered objects: the batch of the adapter `rays`, and in 'index' which object of the set each row shows.

Systems that keep something for each object (the noise it was given, a code of its own) keep it at that number. It is what the
set says, where several of its records show one object (`number(index)`, `objects`), and the record's place otherwise.
"""

from collections.abc import Callable

import numpy as np

from t3d.core.errors import UsageError
from t3d.data import sets
from t3d.data.adapters import rays

NEEDS = (*rays.NEEDS, 'data.count')
words, captions, preview = rays.words, rays.captions, rays.preview


def make(config, split: str | None = None, batch_spec: dict | None = None) -> tuple['Numbered', Callable]:
    """(source, transform) of a config; UsageError for a set of more objects than `data.count`, unless that is 0."""
    source, of_rays = rays.make(config, split, batch_spec)
    numbered, most = Numbered(source), config.data.count
    if most and numbered.objects > most:
        raise UsageError(
            f'data.count={most}, but {config.data.name} has {numbered.objects} objects in this split: set '
            f'data.count={numbered.objects}.'
        )

    def transform(record: dict, random: np.random.Generator) -> dict[str, np.ndarray]:
        return {**of_rays(record, random), 'index': record['index']}

    return numbered, transform


class Numbered:
    """A source whose records have 'index', the number of their object.

    Attributes:
      objects: numbers are below it.
    """

    def __init__(self, source):
        self.source, told = source, within(source, 'number')
        self.number = getattr(told, 'number', int)
        self.objects = getattr(told, 'objects', len(source))

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return repr(self.source)

    def __getitem__(self, index: int) -> dict:
        return {**self.source[index], 'index': np.int32(self.number(index))}

    def named(self) -> dict[str, dict[int, int]]:
        """{caption: {number of an object that it is said of: its first record that says so}}, both in order of the records.

        Reads every record once; whole, where the source has no `text`.
        """
        read, found = getattr(within(self.source, 'text'), 'text', self.source.__getitem__), {}
        for index in range(len(self)):
            for caption in read(index)['captions']:
                found.setdefault(caption, {}).setdefault(int(self.number(index)), index)
        return found


def within(source, name: str):
    """The source, or that which it wraps, that has an attribute; the innermost where none has."""
    while not hasattr(source, name) and hasattr(source, 'source'):
        source = source.source
    return source


def resolve(config):
    """The config with the number of its objects."""
    if not config.data.count:
        with config.unlocked():
            config.data.count = Numbered(sets.open_set(config.data, config.data.split)).objects
    return config
