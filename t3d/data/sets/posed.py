"""Folders of posed pictures as people have them, as records: `data.name=posed data.path=FOLDER`.

| key of `data` | meaning |
|---|---|
| path | the folder |
| layout | auto: found by looking; or a name of t3d.data.layouts |
| size | pixels of the square views that are made (posed_images) |
| split | train, val, test or all: the set's own, else by t3d.data.layouts.scene.divided |
| fit | auto, cameras, cameras:1.1 or a factor: how the object comes into [-1, 1]^3 (t3d.data.layouts.world) |
| views_kept | views of a record; 0: as many as the first object that is read has |

Of objects with more views evenly spread ones are kept; of those with fewer the first ones come again.

A view whose picture or camera cannot be read is left out and named. An object of which none is left, or whose cameras do not
look at it, is named and counted, and the next one stands in.
"""

import sys
from typing import NamedTuple

import numpy as np

from t3d.core import files
from t3d.core.errors import UsageError
from t3d.data import layouts
from t3d.data.layouts import world
from t3d.data.layouts.scene import GL, Entry, Seen, View, inverse
from t3d.data.sets import camera_labels, posed_images
from t3d.data.sets.archives import Damaged
from t3d.data.sets.posed_captions import Captions

NAMED = 5  # faults that are told whole


class Posed(NamedTuple):
    """An object with cameras in our world, its pixels not yet read."""

    name: str
    captions: tuple[str, ...]
    seen: Seen  # its cameras in the world of the set; `faults` of all views that were left out
    geometry: list[posed_images.Geometry]
    fit: world.Fit

    @property
    def views(self) -> list[View]:
        return self.seen.views

    @property
    def faults(self) -> list[str]:
        return self.seen.faults

    def cameras(self) -> dict[str, np.ndarray]:
        """world_from_cam float32 [V, 4, 4] and intrinsics float32 [V, 3, 3], divided by the size of the square pictures."""
        intrinsics = np.stack([known.intrinsics for known in self.geometry])
        return {'world_from_cam': np.float32(self.fit.world_from_cam), 'intrinsics': np.float32(intrinsics)}


def place(entry: Entry, captions: tuple[str, ...], rule: world.Rule) -> Posed:
    """The cameras of an object; pictures are opened for their size alone.

    Raises:
      Damaged: not one view is usable.
    """
    seen = entry.read()
    views, geometry, faults = [], [], list(seen.faults)
    for view in seen.views:
        try:
            geometry.append(posed_images.geometry(view))
            views.append(view)
        except Damaged as error:
            faults.append(str(error))
    if not views:
        raise Damaged(f'{entry.folder} has no view that can be used. {faults[0] if faults else "There are no pictures."}')
    seen = seen._replace(views=views, faults=faults)
    return Posed(entry.name, captions, seen, geometry, world.fit(seen, _focal(geometry), rule))


def _focal(geometry: list[posed_images.Geometry]) -> np.ndarray:
    return np.array([0.5 * (known.intrinsics[0, 0] + known.intrinsics[1, 1]) for known in geometry])


MENDS = (  # what poses in OpenCV axes may be by mistake, and what they would then be
    ('camera-from-world: invert the poses', inverse),
    ('camera-from-world, in OpenGL axes: invert the poses', lambda pose: inverse(pose @ GL) @ GL),
    ('in the other camera axes: OpenGL and Blender have y up and z back, OpenCV y down and z forward', lambda pose: pose @ GL),
)


def check(known: Posed, where: str) -> None:
    """Raises Damaged where the cameras of an object are none that look at it; it says what they may be by mistake."""
    try:
        return camera_labels.check_views({'name': known.name, **known.cameras()}, where)
    except UsageError as error:
        fault = str(error)
    for text, mend in MENDS:
        views = [view._replace(world_from_cam=mend(view.world_from_cam)) for view in known.views]
        seen = known.seen._replace(views=views, scale=None)
        other = known._replace(seen=seen, fit=world.fit(seen, _focal(known.geometry)))
        if _looks(other):
            raise Damaged(f'{where}/{known.name}: the cameras do not look at the object. They are {text}.')
    raise Damaged(fault)


def _looks(known: Posed) -> bool:
    try:
        camera_labels.check_views({'name': known.name, **known.cameras()}, '')
    except UsageError:
        return False
    return True


class PosedSource:
    """Random access to the objects of a split; `source[i]` is a function of the files and the arguments alone.

    A record holds image uint8 [V, S, S, 4] (straight alpha), world_from_cam [V, 4, 4], intrinsics [V, 3, 3], captions, name;
    V is the same for all.
    """

    def __init__(self, path, split: str, *, size: int, layout: str = 'auto', fit: str | float = 'auto', views_kept: int = 0):
        if not path:
            raise UsageError("data.name='posed' needs data.path: a folder of posed pictures; see docs/posed_images.md.")
        self.folder = files.local(path)
        self.layout, objects = layouts.find(self.folder, layout, split)
        self.entries, self.rule, self.size = objects.entries, objects.rule, size
        self.fit = world.read_rule(fit)
        self._captions = Captions(self.folder)
        self.views_kept = views_kept
        self.bad, self._told = {}, set()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f'record {index} of {len(self)} in {self.folder}')
        last = None
        for step in range(len(self)):
            place = (index + step) % len(self)
            if place in self.bad:
                continue
            try:
                return self.record(place)
            except Damaged as error:
                self.bad[place], last = str(error), error
                self._note(f'{self.bad[place]} Left out, {len(self.bad)} of {len(self)}; the next object stands in.')
        raise UsageError(f'{self.folder} has no object that can be used. {last or next(iter(self.bad.values()))}')

    def posed(self, index: int) -> Posed:
        """Cameras and captions of an object, without its pixels; Damaged where there are none."""
        entry = self.entries[index]
        return place(entry, self._captions.of(entry), self.fit)

    def text(self, index: int) -> dict:
        """Captions and name of an object, without its pictures."""
        entry = self.entries[index]
        return {'captions': self._captions.of(entry), 'name': entry.name}

    def made_captions(self) -> dict[str, str]:
        """{object: caption} of those asked for so far that have none but the name of their folder."""
        return dict(self._captions.made)

    def record(self, index: int) -> dict:
        """The record of an object itself; Damaged where it cannot be used."""
        known = self.posed(index)
        cameras = known.cameras()
        check(known, str(self.folder))
        images, whole, faults = [], [], list(known.faults)
        for k, (view, geometry) in enumerate(zip(known.views, known.geometry, strict=True)):
            try:
                images.append(posed_images.load(view, geometry, self.size))
                whole.append(k)
            except Damaged as error:
                faults.append(str(error))
        for fault in faults[:NAMED]:
            self._note(f'{fault} The view is left out.')
        if not images:
            raise Damaged(f'{self.folder}/{known.name}: no picture can be read. {faults[0]}')
        chosen = kept(len(images), self.views_kept or self._views_of_the_first())
        return {
            'image': np.stack(images)[chosen],
            **{name: array[whole][chosen] for name, array in cameras.items()},
            'captions': known.captions,
            'name': known.name,
        }

    def _views_of_the_first(self) -> int:
        """The number of views with a camera and a picture of the first object that has any."""
        for index in range(len(self)):
            try:
                self.views_kept = len(self.posed(index).views)
                break
            except Damaged:
                continue
        return self.views_kept

    def _note(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            print(f'note: {text}', file=sys.stderr, flush=True)


def kept(count: int, size: int) -> np.ndarray:
    """Which of `count` views a record of `size` views has: evenly spread ones of more, the first ones again of fewer."""
    return np.arange(size) * count // size if count >= size else np.arange(size) % count


def open_set(data, split: str) -> PosedSource:
    """The source of a config's `data` section."""
    options = {name: data.get(name, default) for name, default in (('layout', 'auto'), ('fit', 'auto'), ('views_kept', 0))}
    return PosedSource(data.path, split, size=data.size, **options)
