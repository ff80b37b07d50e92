"""Every view of a folder of posed pictures as a picture of its own, with a camera label: for learning from single views."""

import functools
import sys

import numpy as np

from t3d.core import files
from t3d.core.errors import UsageError
from t3d.data.sets import camera_labels, posed_images
from t3d.data.sets.posed import NAMED, PosedSource, check


class Pictures:
    """The views of all objects of a split, those of an object after each other.

    Attributes:
      folder: of the set.
      labels: float32 [N, 25].
      size: pixels of the square pictures.
    """

    def __init__(self, source: PosedSource):
        self.folder, self.size = source.folder, source.size
        self._views, self._texts, labels, faults = [], [], [], []
        for index in range(len(source)):
            try:
                known = source.posed(index)
                cameras = known.cameras()
                check(known, str(source.folder))
            except UsageError as error:
                faults.append(str(error))
                continue
            faults += known.faults
            labels.append(camera_labels.concatenate(cameras['world_from_cam'], cameras['intrinsics']))
            self._views += zip(known.views, known.geometry, strict=True)
            self._texts += [{'captions': known.captions, 'attributes': {}, 'name': known.name}] * len(known.views)
        if not self._views:
            raise UsageError(f'{source.folder} has no view that can be used. {faults[0]}')
        if faults:
            told = ' '.join(faults[:NAMED])
            print(f'note: {source.folder}: {len(faults)} views or objects are left out: {told}', file=sys.stderr, flush=True)
        self.labels = np.concatenate(labels)

    def __len__(self) -> int:
        return len(self._views)

    def image(self, index: int) -> np.ndarray:
        """uint8 [S, S, 4], straight alpha; Damaged where the picture cannot be read."""
        view, known = self._views[index]
        return posed_images.load(view, known, self.size)

    def text(self, index: int) -> dict:
        return self._texts[index]


def open_posed(data, split: str) -> Pictures:
    """The pictures of a config's `data` section; kept, because a start asks three times and looks at every picture's size."""
    options = tuple((name, data.get(name, default)) for name, default in (('layout', 'auto'), ('fit', 'auto')))
    root = files.local(data.path) if data.path else None
    changed = root.stat().st_mtime_ns if root is not None and root.exists() else 0
    return _open(data.path, split, data.size, options, changed)


@functools.lru_cache(2)
def _open(path: str, split: str, size: int, options: tuple, changed: int) -> Pictures:
    return Pictures(PosedSource(path, split, size=size, **dict(options)))
