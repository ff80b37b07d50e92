"""Shards of records: ArrayRecord files of a folder or a bucket, opened when first read, and the index that counts them.

The index, `records.json`, says of every shard how many records and bytes it has, so that opening a set opens no shard. At most
`OPEN` shards are open; the one that was not read for longest is closed for another.
"""

import collections
import re
import threading
from typing import NamedTuple

from etils import epath

from t3d.core import files, strict_json
from t3d.core.errors import UsageError
from t3d.data.sets.caption_words import Spoken

FORMAT = 1
INDEX = 'records.json'
OPEN = 512  # shards open at once; 1024 files is what systems allow a process by default
# Random access; of a file that is opened the last 64 KB are read at once, the places of some thousand records, not a megabyte.
OPTIONS = 'readahead_buffer_size:0,max_parallelism:0,footer_prefetch_bytes:65536'
BUFFER = 32768  # bytes that are read at once of a shard's file
READ = ('', 'gs')  # schemes of paths whose shards ArrayRecord reads in place
COPY = 'copy it again from where it was packed, or pack it anew (`t3d data pack` with the same arguments makes what is missing)'


class NoRecords(UsageError, FileNotFoundError):
    """There is no set of records."""


class Shard(NamedTuple):
    """A file of records."""

    file: str
    records: int
    bytes: int
    sha256: str

    @property
    def number(self) -> int:
        """Its number among the shards of its split, by its name."""
        return int(self.file.partition('.')[0].rpartition('-')[2])


class Split(NamedTuple):
    """The records of a split."""

    views: int  # of each
    shards: tuple[Shard, ...]
    spoken: Spoken

    def tree(self) -> dict:
        """As the index has it."""
        return {'views': self.views, 'shards': [list(shard) for shard in self.shards], **self.spoken._asdict()}


def root(path) -> epath.Path:
    """The folder of a set: local, with ~ for the home folder, or gs://BUCKET/FOLDER."""
    place = files.path(path)
    scheme = str(path).partition('://')[0] if '://' in str(path) else ''
    if scheme not in READ:
        raise UsageError(
            f'data.path={str(path)!r}: shards are read in place from folders and from gs://. Mount the bucket and give its '
            'folder, or copy the set to a disk.'
        )
    return place if scheme else epath.Path(files.local(path))


def read_index(folder: epath.Path) -> tuple[dict, dict[str, Split]]:
    """(what the index says of the whole set, its splits) of a folder.

    Raises:
      NoRecords: there is none.
      UsageError: it is damaged, or of a newer format.
    """
    path = folder / INDEX
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        local = '://' not in str(folder)
        make = f'--out {files.quoted(folder)}`' if local else '--out DIR` and copy that folder there'
        raise NoRecords(
            f'no records in {folder} ({INDEX} is missing): make them with `t3d data pack FOLDER {make}; the same command again '
            'ends a packing that was interrupted.'
        ) from None
    tree = strict_json.loads(data, str(path))
    tree = tree if isinstance(tree, dict) else {}
    if isinstance(version := tree.get('format_version'), int) and version > FORMAT:
        raise UsageError(f'{path} has format {version}, this t3d reads up to {FORMAT}: update t3d.')
    try:
        splits = {}
        for name, value in tree['splits'].items():
            splits[name] = splits[value] if isinstance(value, str) else _split(value)
        if tree['format_version'] != FORMAT or not isinstance(tree['size'], int) or not splits:
            raise ValueError('size or splits')
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UsageError(f'{path} is no index of records ({type(error).__name__}: {error}): {COPY}.') from error
    return tree, splits


def _split(tree: dict) -> Split:
    shards = tuple(Shard(*shard) for shard in tree['shards'])
    if not shards:
        raise ValueError('a split without shards')
    for shard in shards:
        kinds = [isinstance(shard.file, str), isinstance(shard.records, int), isinstance(shard.bytes, int)]
        if not all(kinds) or min(shard.records, shard.bytes) < 1 or not re.fullmatch(r'\w+-\d+\.array_record', shard.file):
            raise ValueError(f'the shard {list(shard)}')
    words = {str(word): int(count) for word, count in tree['words'].items()}
    spoken = Spoken(int(tree['captions']), words, tuple(map(str, tree['longest'])), tuple(map(str, tree['first'])))
    return Split(int(tree['views']), shards, spoken)


class Shards:
    """Random access to the bytes of records; safe from several threads.

    Attributes:
      opened: how many times a shard was opened so far.
    """

    def __init__(self, folder: epath.Path, shards: tuple[Shard, ...], most: int = OPEN):
        self.folder, self.shards, self.opened = folder, shards, 0
        self._most, self._readers, self._lock = most, collections.OrderedDict(), threading.Lock()

    def where(self, number: int, position: int) -> str:
        """What a record is called in messages."""
        return f'{self.folder / self.shards[number].file}, record {position}'

    def read(self, number: int, position: int) -> bytes:
        """The bytes of a record of a shard.

        Raises:
          UsageError: the shard is missing, is not what the index says, or does not read back as it was written.
        """
        with self._lock:
            reader = self._readers.get(number)
            if reader is not None:
                self._readers.move_to_end(number)
        if reader is None:
            reader = self._open(number)
        try:
            [data] = reader.read([position])
        except Exception as error:  # of checksums, of a network: RuntimeError or ValueError with a status of C++
            raise UsageError(
                f'{self.where(number, position)} does not read back as it was written ({_first(error)}): {COPY}.'
            ) from error
        return data

    def _open(self, number: int):
        from array_record.python import array_record_module

        shard, path = self.shards[number], self.folder / self.shards[number].file
        try:
            size = path.stat().length
        except FileNotFoundError:
            raise UsageError(f'{path} is missing, one of {len(self.shards)} shards that {INDEX} lists: {COPY}.') from None
        if size != shard.bytes:
            raise UsageError(
                f'{path} has {size} bytes, {INDEX} says {shard.bytes}: it is truncated, or of another packing; {COPY}.'
            )
        try:
            reader = array_record_module.ArrayRecordReader(str(path), options=OPTIONS, file_reader_buffer_size=BUFFER)
            records = reader.num_records()
        except Exception as error:
            raise UsageError(f'{path} is no whole ArrayRecord file ({_first(error)}): {COPY}.') from error
        if records != shard.records:
            raise UsageError(
                f'{path} has {records} records, {INDEX} says {shard.records}: it is damaged, or of another packing; {COPY}.'
            )
        with self._lock:
            self.opened += 1
            self._readers[number] = reader
            while len(self._readers) > self._most:
                self._readers.popitem(last=False)  # closed when the last thread that reads it lets go
        return reader


def _first(error: Exception) -> str:
    return ' '.join(str(error).split())[:120] or type(error).__name__
