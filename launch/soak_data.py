"""Numbered records for launch/soak_dummy.py: an adapter as t3d.data.sources wants it."""

import time

import numpy as np

RECORDS = 64


class Source:
    """Record i is its number."""

    def __len__(self):
        return RECORDS

    def __getitem__(self, i):
        return {'number': int(i)}


def make(config, split=None, batch_spec=None):
    """(source, transform): the number of a record, and eight numbers drawn for it; each takes `config.delay` seconds."""

    def transform(record, rng):
        time.sleep(config.delay)
        x = np.random.default_rng(record['number']).normal(size=8) * rng.uniform(0.9, 1.1)
        return {'x': x.astype(np.float32), 'number': np.int32(record['number'])}

    return Source(), transform


def preview(config, batch_spec):
    """A batch of zeros: nothing is shown."""
    return {name: np.zeros(spec.shape, spec.dtype) for name, spec in batch_spec.items()}, []
