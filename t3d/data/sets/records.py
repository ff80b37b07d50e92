"""Sets that stream from shards, so that a million objects need no more memory than a thousand: `data.name=records`.

| key of `data` | meaning |
|---|---|
| path | the folder that `t3d data pack` wrote, local or gs://BUCKET/FOLDER |
| split | train, val, test as the packed set had them; all: those that differ, after each other |
| size | pixels of the views; what they were packed with |
| views_kept | views of a record, evenly spread ones of those that are packed; 0: all |

Nothing of an object stays in memory: its number leads to a shard and a place in it, a record is read and decoded each time that
it is asked for (t3d.data.adapters.views keeps none of a set that is `streamed`), and what is said in the whole set was counted
when it was packed.
"""

import bisect
import itertools

import numpy as np

from t3d.core.errors import UsageError
from t3d.data.sets import caption_words, record_bytes, shards
from t3d.data.sets.posed import kept


class RecordsSource:
    """Random access to the objects of a split; `source[i]` is a function of the files and the arguments alone.

    A record holds image uint8 [V, S, S, 4] (straight alpha), world_from_cam [V, 4, 4], intrinsics [V, 3, 3], captions, name and
    what else was packed (depth [V, S, S], attributes). V is the same for all of a split.

    Attributes:
      spoken: what the split says, counted (caption_words.Spoken).
      size: pixels of the views.
      views: how many a record has.
      shards: its files.
    """

    streamed = True

    def __init__(self, path, split: str, *, size: int | None = None, views_kept: int = 0):
        if not path:
            raise UsageError("data.name='records' needs data.path: a folder that `t3d data pack` wrote; see docs/data.md.")
        root = shards.root(path)
        self.folder, (tree, splits) = str(root), shards.read_index(root)
        if split not in (*splits, 'all'):
            raise UsageError(f'data.split={split!r} of {root}: it has {", ".join(splits)}, all.')
        chosen = [splits[split]] if split != 'all' else list({part.shards: part for part in splits.values()}.values())
        views = sorted({part.views for part in chosen})
        self.size, self.views_kept = tree['size'], views_kept or (views[0] if len(views) > 1 else 0)
        if size not in (None, self.size):
            raise UsageError(
                f'{root} has views of {self.size} px, the config wants data.size={size}: set data.size={self.size}.'
            )
        self.shards = shards.Shards(root, tuple(shard for part in chosen for shard in part.shards))
        self.spoken = caption_words.together([part.spoken for part in chosen])
        self._views = [part.views for part in chosen for _ in part.shards]
        self.views = self.views_kept or views[0]
        self._ends = list(itertools.accumulate(shard.records for shard in self.shards.shards))

    def __len__(self) -> int:
        return self._ends[-1]

    def __repr__(self) -> str:
        return f'RecordsSource({self.folder!r}, {len(self)})'

    def __getitem__(self, index: int) -> dict:
        return self.read(index)

    def read(self, index: int, *, names=None, views=None) -> dict:
        """A record, or parts of it: nothing else of it is decoded.

        Args:
          names: of its arrays; None: all.
          views: places among its views, in this order; None: all.
        """
        number, position = self._place(index)
        where, there = self.shards.where(number, position), self._views[number]
        chosen = kept(there, self.views_kept) if self.views_kept else None  # every array is one of views
        if views is not None:
            chosen = np.arange(there)[np.asarray(views)] if chosen is None else chosen[np.asarray(views)]
        record = record_bytes.decode(self.shards.read(number, position), where, names=names, views=chosen)
        count = there if chosen is None else len(chosen)
        shapes = {'image': (count, self.size, self.size, 4), 'world_from_cam': (count, 4, 4), 'intrinsics': (count, 3, 3)}
        shapes = {name: shape for name, shape in shapes.items() if names is None or name in names}
        if wrong := [name for name, shape in shapes.items() if getattr(record.get(name), 'shape', None) != shape]:
            raise UsageError(
                f'{where} has no {wrong[0]} of shape {list(shapes[wrong[0]])}: it is of another set; {shards.COPY}.'
            )
        if record.pop('at', None) != [self.shards.shards[number].number, position]:
            raise UsageError(f'{where} was written as another record: the file was renamed; {shards.COPY}.')
        return record

    def text(self, index: int) -> dict:
        """Captions and name of an object, and attributes where it has some, without its pictures."""
        number, position = self._place(index)
        head = record_bytes.head(self.shards.read(number, position), self.shards.where(number, position))
        return {name: head[name] for name in ('captions', 'name', 'attributes') if name in head}

    def _place(self, index: int) -> tuple[int, int]:
        """(number of the shard, place in it) of a record."""
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f'record {index} of {len(self)} in {self.folder}')
        number = bisect.bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)


def open_set(data, split: str) -> RecordsSource:
    """The source of a config's `data` section."""
    return RecordsSource(data.path, split, size=data.size, views_kept=data.get('views_kept', 0))
