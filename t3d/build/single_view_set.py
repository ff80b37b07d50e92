"""`t3d data single-view`: a single-view set as an EG3D folder or zip."""

import math
import pathlib

import numpy as np

from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.data.adapters import single_view
from t3d.data.sets import images


def run(args) -> str:
    """Writes the set that the flags (commands.data) describe; returns the line to print."""
    if pathlib.Path(args.out).is_file():  # better refused now than after rendering
        raise UsageError(f'{args.out} is there already: choose another name, or delete it first.')
    if args.name == 'eg3d' and not args.source:
        raise UsageError('--source: give the EG3D folder or zip to read.')
    size = images.ImageSet(args.source).size if args.name == 'eg3d' else args.size or 64
    source = single_view.open_set(_config(args, size))
    chosen = np.arange(len(source))
    if args.limit and args.limit < len(source):
        chosen = np.linspace(0, len(source) - 1, args.limit).astype(int)
    named = ((source[int(index)], source.text(int(index))['name']) for index in chosen)
    records = (resized(record, args.size or size) for record, name in named if record['name'] == name)  # no stand-ins
    count = images.write(args.out, records, _attribution(args, size))
    return f'wrote {args.out}: {count} images of {args.size or size} px; cameras {spread(source.labels[chosen])}'


def resized(record: dict, size: int) -> dict:
    """The record with its picture made smaller by averaging; its label is divided by the image size and stays."""
    from PIL import Image

    old = record['image'].shape[0]
    if size == old:
        return record
    if size > old:
        raise UsageError(f'--size {size}: the images have {old} px, and larger ones would be blurred: choose at most {old}.')
    image = Image.fromarray(record['image']).resize((size, size), Image.Resampling.BOX)
    return {**record, 'image': np.asarray(image)}


def spread(labels: np.ndarray) -> str:
    """Where cameras [N, 25] stand: ranges of azimuth and elevation about the origin in degrees, and of distance."""
    position = labels[:, [3, 7, 11]].astype(np.float64)
    distance = np.linalg.norm(position, axis=1)
    azimuth = np.degrees(np.arctan2(position[:, 0], position[:, 2]))
    elevation = np.degrees(np.arcsin(np.clip(position[:, 1] / np.maximum(distance, 1e-9), -1.0, 1.0)))
    ranges = [f'{name} {values.min():.0f} to {values.max():.0f}' for name, values in (('yaw', azimuth), ('pitch', elevation))]
    fov = math.degrees(2.0 * math.atan(0.5 / float(labels[:, 16].mean())))
    return (
        f'{", ".join(ranges)} degrees, distance {distance.min():.3g} to {distance.max():.3g}, field of view {fov:.1f} degrees'
    )


def _config(args, size: int):
    data = {
        name: getattr(args, name) for name in ('name', 'split', 'poses', 'scenes', 'supersample', 'variants', 'seed', 'mirror')
    }
    data |= {'kind': 'single_view', 'mode': 'posed-known', 'size': size, 'path': args.source}
    return configs.from_dict({'data': data, 'render': {'background': args.background}})


def _attribution(args, size: int) -> dict[str, bytes]:
    """The file that renders of CC-BY models carry with them."""
    if args.name != 'furniture':
        return {}
    from t3d.data.sets import furniture_source

    file = furniture_source.find(args.source or None, size, args.variants) / 'ATTRIBUTION.md'
    return {file.name: file.read_bytes()} if file.is_file() else {}
