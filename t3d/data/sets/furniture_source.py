"""Reading built `furniture` data (data/sets/furniture.py): where it lives, whether it is whole, access to its records."""

import os
import pathlib

import numpy as np

from t3d.core import files, strict_json
from t3d.core.errors import UsageError
from t3d.data.sets import shapes
from t3d.data.sets.furniture_views import DEPTH_STEP

VERSION = '1.1.8'  # of the format, then that of the library (1.8)
light = shapes.light  # that of data/sets/raycast.py, on the side that is seen
INFO = 'dataset_info.json'  # TFDS's own, of every build
SIZES = 'sizes.json'  # bytes of every file of a finished build, to notice truncation


def data_root(out: str | None = None) -> pathlib.Path:
    """Where data sets live: `out`, else $T3D_DATA, else ~/.cache/t3d/data."""
    return files.local(out or os.environ.get('T3D_DATA') or '~/.cache/t3d/data')


def is_there(folder: str | pathlib.Path) -> bool:
    """Whether a folder is a furniture build, or a folder of data sets with one in it."""
    root = pathlib.Path(folder)
    return (root / INFO).is_file() or any(root.glob(f'furniture/*/*/{INFO}'))


def check(folder: pathlib.Path) -> None:
    """Raises UsageError if a file of a finished build is missing or not as long as it was written."""
    again = 'run `t3d data build furniture` again with the same arguments'
    if not (folder / SIZES).is_file():
        raise UsageError(f'{folder} is no finished furniture build ({SIZES} is missing): {again}.')
    sizes = strict_json.loads((folder / SIZES).read_bytes(), str(folder / SIZES))
    if not isinstance(sizes, dict) or not sizes:
        raise UsageError(f'{folder / SIZES} lists no files: it was changed; {again}.')
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file():
            raise UsageError(f'{file} is missing: {again}.')
        if file.stat().st_size != size:
            raise UsageError(
                f'{file} has {file.stat().st_size} bytes, but {size} were written: it is truncated or changed; {again}.'
            )


def find(path: str | pathlib.Path | None = None, size: int | None = None, variants: int | None = None) -> pathlib.Path:
    """The folder of the one finished build at or under `path` (default as in `data_root`) with that size and variant count."""
    root = files.local(path) if path else data_root()
    if (root / INFO).is_file():
        return root
    builds = [file.parent for file in sorted(root.glob(f'**/{VERSION}/{INFO}'))]
    matching = [
        folder
        for folder in builds
        if (size is None or folder.parent.name.split('_')[0] == f'{size}px')
        and (
            variants is None
            or (f'recolour{variants}' in folder.parent.name.split('_') if variants else 'recolour' not in folder.parent.name)
        )
    ]
    asked = ''.join(f' {name}={value}' for name, value in (('size', size), ('variants', variants)) if value is not None)
    if not matching:
        there = ', '.join(folder.parent.name for folder in builds) or 'nothing built'
        raise FileNotFoundError(
            f'no furniture data{asked} under {root} (there: {there}): run `t3d data build furniture '
            f'--source PATH --size {size or 64}{f" --variants {variants}" if variants else ""} --out {files.quoted(root)}`.'
        )
    if len(matching) > 1:
        names = ', '.join(str(folder.relative_to(root)) for folder in matching)
        raise UsageError(f'{len(matching)} furniture builds{asked} under {root}: give the path of one of {names}.')
    return matching[0]


class FurnitureSource:
    """Random access to a split: `source[i]` is the multi-view record of example i, a function of the files alone.

    A record holds image uint8 [V, S, S, 4] (straight alpha), depth float32 [V, S, S] (planar z, 0 = background), world_from_cam
    [V, 4, 4], intrinsics [V, 3, 3], azimuth and elevation [V] in radians, captions (tuple), name, attributes (noun, colour,
    category, tags, licence, creator, variant). Of its V = 16 views the first TRAIN_VIEWS are for training.
    """

    def __init__(
        self,
        path: str | pathlib.Path | None = None,
        split: str = 'train',
        *,
        size: int | None = None,
        variants: int | None = None,
    ):
        self.folder = find(path, size, variants)
        check(self.folder)
        import tensorflow_datasets as tfds  # where it is not installed, a set that is not built is still said to be so

        try:
            builder = tfds.builder_from_directory(str(self.folder))
        except Exception as error:  # of JSON, of protobuf, of their own: files of the right size, changed inside
            reason = ' '.join(str(error).split())[:200] or type(error).__name__
            raise UsageError(
                f'{self.folder} is damaged ({reason}): delete it and run `t3d data build furniture` again.'
            ) from error
        if split not in builder.info.splits:
            raise UsageError(f'split={split!r} of {self.folder}: choose one of {", ".join(builder.info.splits)}.')
        self.split = split
        self._data = builder.as_data_source(split)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f'example {index} of {len(self)} in {self.folder.parent.name}/{self.split}')
        try:
            row = self._data[int(index)]
        except RuntimeError as error:  # array_record's checksums
            raise UsageError(
                f'{self.folder}/{self.split}: example {index} does not read back as it was written ({error}): '
                'delete the folder and run `t3d data build furniture` again.'
            ) from error
        variant = int(row['variant'])
        attributes = {key: row[key].decode() for key in ('noun', 'colour', 'category', 'tags', 'licence', 'creator')}
        return {
            'image': np.stack(list(row['views'])),
            'depth': row['depth'].astype(np.float32) * np.float32(DEPTH_STEP),
            **{key: np.asarray(row[key], np.float32) for key in ('world_from_cam', 'intrinsics', 'azimuth', 'elevation')},
            'captions': tuple(text.decode() for text in row['captions']),
            'name': row['object_id'].decode() + (f'/{attributes["colour"]}' if variant else ''),
            'attributes': attributes | {'variant': str(variant)},
        }


def open_set(data, split: str) -> FurnitureSource:
    """The source of a config's `data` section."""
    return FurnitureSource(data.path or None, split, size=data.size, variants=data.variants)
