"""Batches: deterministic, the same for every number of processes, resumable, with readable errors."""

import numpy as np
import pytest
from dummy_system import DATA, Source, transform

from t3d.core.errors import UsageError
from t3d.data import pipeline

NAMED = (Source(), lambda record, rng: {'index': np.int64(record['name']), 'draw': rng.normal(size=2)})


def take(count, *, data=NAMED, batch=8, seed=0, **where):
    batches = pipeline.make(*data, batch=batch, seed=seed, **where)
    return [next(batches) for _ in range(count)]


def equal(left, right):
    return all(np.array_equal(a[name], b[name]) for a, b in zip(left, right, strict=True) for name in a)


def test_shapes_and_epochs():
    batches = take(16)
    assert batches[0]['index'].shape == (8,) and batches[0]['draw'].shape == (8, 2)
    epochs = np.concatenate([batch['index'] for batch in batches]).reshape(2, 64)
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(64))
    assert list(epochs[0]) != list(epochs[1]) and list(epochs[0]) != list(range(64))


def test_seed_decides_order_and_draws():
    assert equal(take(4), take(4)) and not equal(take(4), take(4, seed=1))
    one, two = take(16)[0], take(16)[8]
    assert not np.intersect1d(one['draw'], two['draw']).size  # a record drawn again draws anew


@pytest.mark.parametrize('count', [2, 4])
def test_processes_own_blocks_of_the_same_global_batch(count):
    parts = [take(5, process_index=p, process_count=count) for p in range(count)]
    joined = [{name: np.concatenate([part[n][name] for part in parts]) for name in parts[0][n]} for n in range(5)]
    assert equal(joined, take(5))


def test_state_resumes_with_another_process_count_and_threads():
    batches = pipeline.make(*NAMED, batch=8, seed=0)
    for _ in range(3):
        next(batches)
    assert batches.state() == 3
    assert equal(take(4, start=3, threads=4, prefetch=8), take(7)[3:])
    halves = [take(2, start=3, process_index=p, process_count=2) for p in range(2)]
    assert equal([{k: np.concatenate([h[0][k] for h in halves]) for k in halves[0][0]}], take(4)[3:])


def test_dummy_batches_match_their_spec():
    batch = next(pipeline.make(*DATA, batch=16, seed=1))
    assert batch['x'].shape == (16, 8) and batch['y'].dtype == np.float32


class Truncated(Source):
    """A file that ends after record 40."""

    def __getitem__(self, i):
        if i > 40:
            raise EOFError('compressed file ended before the end-of-stream marker')
        return super().__getitem__(i)


def test_truncated_file_names_the_record_and_what_to_do():
    with pytest.raises(pipeline.DataError, match=r'record \d+ of 64 cannot be read from dummy source: EOFError: .*truncated'):
        take(8, data=(Truncated(), transform))


def test_bad_arguments():
    with pytest.raises(ValueError, match='data source is empty'):
        pipeline.make([], transform, batch=8, seed=0)
    for batch, near in ((9, '8 or 10'), (1, '2')):
        with pytest.raises(UsageError, match=f'batch {batch} does not divide over 2 processes: set batch={near}.$'):
            pipeline.make(*NAMED, batch=batch, seed=0, process_count=2)
