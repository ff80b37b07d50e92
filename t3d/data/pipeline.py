"""Batches from a random-access source: shuffled, repeated, transformed, cut for this process, made ahead in threads.

The n-th global batch is a pure function of (source, transform, batch, seed, n). The rows of process p of P are the block
[p B/P, (p+1) B/P) of it, so the whole state of the iterator is n, and a run may go on with another number of processes.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from t3d.core.errors import UsageError

READER = 'grain'  # the package that makes batches ahead, imported with the first of them
Transform = Callable[[Any, np.random.Generator], dict[str, np.ndarray]]


class DataError(UsageError):
    """A record cannot be read."""


class Batches(Iterator):
    """This process's rows of every global batch: {name: array [B / process_count, ...]}; `state()` is the next n."""

    def __init__(self, build: Callable[[int], Iterator], start: int):
        self._build, self._next, self._iterator = build, start, None

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            self._iterator = self._build(self._next)
        batch = next(self._iterator)
        self._next += 1
        return batch

    def state(self) -> int:
        """The number of the next batch; `make(..., start=state)` goes on from here."""
        return self._next


def make(
    source: Sequence,
    transform: Transform,
    *,
    batch: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    start: int = 0,
    threads: int = 1,
    prefetch: int = 4,
) -> Batches:
    """Batches of `transform(source[i], generator)`.

    Args:
      source: `len(source)` records, `source[i]`; reshuffled every epoch, each record once per epoch.
      transform: `(record, numpy Generator) -> {name: array}` without a batch axis; the generator depends on the seed and
        on the position in the stream alone.
      batch: global batch size.
      start: the first batch to deliver.
      threads: how many batches are made at a time; prefetch: how many wait ready.
    """
    if len(source) == 0:
        raise UsageError('the data source is empty: check data.split and data.name.')
    if batch % process_count:
        low, high = batch // process_count * process_count, (batch // process_count + 1) * process_count
        near = f'{low} or {high}' if low else f'{high}'
        raise UsageError(f'batch {batch} does not divide over {process_count} processes: set batch={near}.')
    build = functools.partial(_build, source, transform, batch, seed, process_index, process_count, threads, prefetch)
    return Batches(build, start)


def _build(source, transform, batch, seed, index, count, threads, prefetch, start) -> Iterator:
    import grain

    shuffled, block_shard = _datasets()
    dataset = shuffled(grain.MapDataset.source(_Checked(source)), seed).random_map(_Arrays(transform), seed=seed)
    dataset = block_shard(dataset, index, count, batch).batch(batch // count, drop_remainder=True)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads))
    iterator = iter(dataset.to_iter_dataset(options))
    if start:
        iterator.set_state({'next_index': start})
    return iterator


@functools.cache
def _datasets():
    """(Shuffled, BlockShard): grain datasets, made on first use, as grain is imported late."""
    import grain

    class Shuffled(grain.MapDataset):
        """The parent without end, each epoch in an order of its own.

        As grain's `shuffle().repeat()`, whose index cipher takes 0.4 ms a record on small sources: here one permutation
        is kept for an epoch. Beyond 2^22 records (32 MB) the cipher is the cheaper one.
        """

        def __init__(self, parent, seed: int):
            large = len(parent) > 2**22
            super().__init__(parent.seed(seed).shuffle().repeat(None) if large else parent)
            self._large, self._count = large, len(parent)
            self._order = functools.lru_cache(4)(functools.partial(_permutation, seed, self._count))

        def __len__(self) -> int:
            return sys.maxsize

        def __getitem__(self, i):
            if isinstance(i, slice):
                return self.slice(i)
            epoch, position = divmod(i, self._count)
            return self._parent[i if self._large else int(self._order(epoch)[position])]

    class BlockShard(grain.MapDataset):
        """Process p of n owns the rows [p b, (p + 1) b) of every global batch, b = batch / n."""

        def __init__(self, parent, index: int, count: int, batch: int):
            super().__init__(parent)
            self._index, self._rows, self._batch = index, batch // count, batch

        def __len__(self) -> int:
            return sys.maxsize  # the parent repeats without end

        def __getitem__(self, i):
            if isinstance(i, slice):
                return self.slice(i)
            number, row = divmod(i, self._rows)
            return self._parent[number * self._batch + self._index * self._rows + row]

    return Shuffled, BlockShard


def _permutation(seed: int, count: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


class _Arrays:
    """The transform, held to its promise: a flat dictionary of arrays."""

    def __init__(self, transform: Transform):
        self._transform = transform

    def __call__(self, record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {name: np.asarray(value) for name, value in self._transform(record, rng).items()}


class _Checked:
    """A source whose reading errors name the record and the likely cause."""

    def __init__(self, source: Sequence):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i):
        try:
            return self._source[int(i)]
        except UsageError:  # it says itself what to do
            raise
        except Exception as error:
            raise DataError(
                f'record {int(i)} of {len(self._source)} cannot be read from {self._source!r}: '
                f'{type(error).__name__}: {error}. The data file is probably truncated or damaged: '
                'compare its size with the original, delete it and build or copy it again.'
            ) from error

    def __repr__(self) -> str:
        return repr(self._source)  # grain puts it into the iterator's state
