"""Every view of a set of records as a picture of its own, with a camera label: read when it is asked for, none of it kept.

The table of labels, which adversarial training and evaluation draw cameras from, would grow with the set (100 bytes a view). So
it is whole for up to `DRAWN` views; of a larger set it has all views of evenly spread objects, at least `DRAWN` views together.
"""

import functools

import numpy as np

from t3d.core.errors import UsageError
from t3d.data.sets import shards
from t3d.data.sets.archives import Damaged
from t3d.data.sets.camera_labels import concatenate
from t3d.data.sets.records import RecordsSource

CAMERAS = ('world_from_cam', 'intrinsics')
DRAWN = 10_000  # labels that stand for a set


class RecordPictures:
    """The views of all objects of a split, those of an object after each other.

    Args:
      views: of a record, the first ones; 0: all.

    Attributes:
      folder: of the set.
      labels: float32 [M, 25] of all pictures, or of those that stand for them.
      size: pixels of the square pictures.
      spoken: what the set says, counted (caption_words.Spoken).
    """

    streamed = True

    def __init__(self, source: RecordsSource, views: int = 0):
        if views > source.views:
            raise UsageError(
                f'data.train_views={views}, but a record of {source.folder} has {source.views} views: set 0 for all.'
            )
        self.source, self.views = source, views or source.views
        self.folder, self.size, self.spoken = source.folder, source.size, source.spoken
        count = min(len(source), -(-DRAWN // self.views))
        self.labels = np.concatenate([self._labels(k * len(source) // count) for k in range(count)])

    def __len__(self) -> int:
        return len(self.source) * self.views

    def record(self, index: int) -> dict:
        """{'image' uint8 [S, S, 4] straight alpha, 'label' float32 [25], 'captions', 'attributes', 'name'}.

        Raises:
          UsageError: the record does not read back as it was written.
        """
        place, view = divmod(index, self.views)
        record = self._read(place, names=('image', *CAMERAS), views=[view])
        [label], [image] = concatenate(*(record[name] for name in CAMERAS)), record['image']
        told = {name: value for name, value in record.items() if name not in ('image', *CAMERAS)}
        return {'attributes': {}, **told, 'image': image, 'label': label}

    def text(self, index: int) -> dict:
        """Captions, attributes and name of a picture."""
        return {'attributes': {}, **self.source.text(index // self.views)}

    def _labels(self, place: int) -> np.ndarray:
        record = self._read(place, names=CAMERAS, views=range(self.views))
        return concatenate(*(record[name] for name in CAMERAS))

    def _read(self, place: int, **parts) -> dict:
        try:
            return self.source.read(place, **parts)
        except Damaged as error:  # not of a picture that another one could stand in for: the file is another
            raise UsageError(f'{error} {shards.COPY[0].upper()}{shards.COPY[1:]}.') from error


def open_records(data, split: str) -> RecordPictures:
    """The pictures of a config's `data` section; kept, because a start asks three times, and reads the table of labels."""
    changed = 0.0
    if data.path:
        index = shards.root(data.path) / shards.INDEX
        changed = index.stat().mtime if index.exists() else changed  # the source says what is missing
    return _open(data.path, split, data.size, data.get('views_kept', 0), data.get('train_views', 0), changed)


@functools.lru_cache(2)
def _open(path: str, split: str, size: int, kept: int, views: int, changed: float) -> RecordPictures:
    return RecordPictures(RecordsSource(path, split, size=size, views_kept=kept), views)
