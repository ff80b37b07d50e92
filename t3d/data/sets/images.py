"""EG3D's image sets: a folder or a zip of PNG and JPEG files with `dataset.json`, read and written.

`dataset.json` at the root is {"labels": [["00000/img00000000.png", [25 numbers]], ...]}: world_from_cam row-major in OpenCV
axes, then the intrinsics divided by the image size. Sets prepared for EG3D, and sets written here, are the same thing. Ours may
also have "captions": {file: [text, ...]} and "attributes": {file: {name: value}}, which EG3D's loader does not look at.
"""

import io
import json
import os
import pathlib
import re
import zipfile
from collections.abc import Iterable

import numpy as np

from t3d.core import files, strict_json
from t3d.core.errors import UsageError
from t3d.data.sets import archives, image_index
from t3d.data.sets.camera_labels import LABEL, check_labels, check_varied

__all__ = ['INDEX', 'LABEL', 'SUFFIXES', 'ImageSet', 'check_labels', 'check_varied', 'png', 'upright', 'write']

INDEX = 'dataset.json'
SHOWN = 5  # damaged images that are named
SUFFIXES = ('.png', '.jpg', '.jpeg')
ORIENTATION = 0x0112  # the tag of EXIF: how a camera was held; 1 is upright


class ImageSet:
    """Random access to a set; safe to read from several threads.

    Attributes:
      names: files, sorted, as in the index.
      labels: float32 [N, 25], or None where `labelled` is False.
      size: pixels of every (square) image.
      captions, attributes: {file: tuple of texts}, {file: dict}; empty where the index has none.

    Args:
      path: the folder or the zip.
      labelled: False reads images alone, with or without an index.
    Raises:
      UsageError: whatever is wrong with the index or an entry; it names the file and the entry. Images that cannot be read are
        left out and named; `image` raises archives.Damaged at those whose header alone is whole.
    """

    def __init__(self, path: str | pathlib.Path, *, labelled: bool = True):
        self.path = files.local(path)
        if not self.path.exists():
            raise FileNotFoundError(f'no image set {self.path}: set data.path to a folder or zip with {INDEX}.')
        self._archive = archives.Archive(self.path)
        members = self._archive.members
        self.names = sorted(name for name in members if _is_image(name))
        outside = [name for name in self._archive.outside if name.lower().endswith(SUFFIXES)]
        if outside:
            raise UsageError(f'{self.path} holds {outside[0]}, which leads out of it: pack the set again from its own folder.')
        if not self.names:
            raise UsageError(f'{self.path} has no {", ".join(SUFFIXES)} files: give the folder or zip that holds {INDEX}.')
        index = self._index(members, labelled)
        where = f'{self.path}: {INDEX}'
        self.labels = image_index.read_labels(index.get('labels'), self.names, where) if labelled else None
        self.captions = image_index.read_captions(index.get('captions'), self.names, where)
        self.attributes = image_index.read_attributes(index.get('attributes'), self.names, where)
        self.size = self._one_size()

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f'ImageSet({str(self.path)!r}, {len(self)} images of {self.size} px)'

    def image(self, index: int) -> np.ndarray:
        """uint8 [S, S, 3], or [S, S, 4] with straight alpha where the file has an alpha channel."""
        from PIL import Image

        name = self.names[index]
        try:
            with Image.open(io.BytesIO(self._archive.read(name))) as opened:
                picture = upright(opened)
                if picture.mode[0] in 'IF':
                    raise UsageError(f'{self.path}: {name} has pixels of kind {picture.mode}: wanted 8 bits a channel.')
                alpha = 'A' in picture.mode or 'transparency' in picture.info
                return np.array(picture.convert('RGBA' if alpha else 'RGB'))
        except UsageError:
            raise
        except Exception as error:  # Pillow lets through what its decoders meet: OSError, SyntaxError, struct.error, ...
            raise archives.Damaged(f'{self.path}: {name} cannot be read ({reason(error)}): copy the set again.') from error

    def text(self, index: int) -> dict:
        """What is known of an image beside its pixels and label: captions, attributes, name."""
        name = self.names[index]
        return {'captions': self.captions.get(name, ()), 'attributes': self.attributes.get(name, {}), 'name': name}

    # ------------------------------------------------------------------------------------------------------- reading

    def _index(self, members: Iterable[str], needed: bool) -> dict:
        if INDEX not in members:
            if not needed:
                return {}
            inner = [name for name in members if name.endswith(f'/{INDEX}')]
            hint = f' There is {inner[0]}: the set has to start at its folder.' if inner else ''
            raise UsageError(
                f'{self.path} has no {INDEX}, so its images have no camera labels.{hint} Prepare it as for EG3D, or set '
                "data.mode='pose-distribution' for photos without poses."
            )
        index = strict_json.loads(self._archive.read(INDEX), f'{self.path}: {INDEX}')
        if not isinstance(index, dict):
            raise UsageError(
                f'{self.path}: {INDEX} holds a {type(index).__name__}: wanted {{"labels": [[file, numbers], ...]}}.'
            )
        return index

    def _one_size(self) -> int:
        """Pixels of all images whose header can be read; the others are left out and named."""
        sizes, bad = {}, {}
        for name in self.names:
            try:
                sizes[name] = self._size(name)
            except archives.Damaged as error:
                bad[name] = str(error)
        if not sizes:
            raise UsageError(next(iter(bad.values())))
        if bad:
            reasons = ' '.join(list(bad.values())[:SHOWN])
            print(f'{self.path}: {len(bad)} of {len(self.names)} images are left out: {reasons}', flush=True)
            kept = [place for place, name in enumerate(self.names) if name not in bad]
            self.labels = None if self.labels is None else self.labels[kept]
            self.names = [self.names[place] for place in kept]
        first = sizes[self.names[0]]
        for name, size in sizes.items():
            if size[0] != size[1]:
                raise UsageError(f'{self.path}: {name} is {size[0]} x {size[1]}: wanted square images; crop them.')
            if size != first:
                raise UsageError(
                    f'{self.path}: images of several sizes: {self.names[0]} is {first[0]} px, {name} is {size[0]} px. '
                    'Resize them to one size.'
                )
        return first[0]

    def _size(self, name: str) -> tuple[int, int]:
        from PIL import Image

        try:
            with self._archive.open(name) as file, Image.open(file) as picture:
                # A square stays square when it is turned, so its EXIF, which in a PNG follows the pixels, need not be read.
                square = picture.size[0] == picture.size[1]
                return picture.size if square else upright(picture).size
        except UsageError:
            raise
        except Exception as error:
            raise archives.Damaged(
                f'{self.path}: {name} is no whole PNG or JPEG ({reason(error)}): copy the set again.'
            ) from error


def reason(error: Exception) -> str:
    """What Pillow says, without the address of the object it was given."""
    return re.sub(' <.*>', '', str(error)) or type(error).__name__


def upright(picture):
    """A PIL image as it is meant to be seen: turned and mirrored as its EXIF says, if it says so legibly."""
    from PIL import ImageOps

    try:
        turned = picture.getexif().get(ORIENTATION) in range(2, 9)
    except Exception:  # EXIF that is no EXIF: viewers show such a picture as it is
        return picture
    return ImageOps.exif_transpose(picture) if turned else picture


def _is_image(name: str) -> bool:
    hidden = any(part.startswith('.') or part == '__MACOSX' for part in name.split('/'))
    return name.lower().endswith(SUFFIXES) and not hidden


# ------------------------------------------------------------------------------------------------------------- writing


def write(path: str | pathlib.Path, records: Iterable[dict], beside: dict[str, bytes] | None = None) -> int:
    """Writes a set that EG3D and `ImageSet` read; returns the number of images.

    Args:
      path: a name ending in .zip, or a folder that is not there yet. The same records give the same bytes.
      records: {'image': uint8 [S, S, 3 or 4], 'label': [25] or None, optional 'captions', 'attributes'}; all have labels, or
        none has.
      beside: other files of the set, {name: content}, for example a licence.
    """
    path = files.local(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f'{path} is there already: choose another name, or delete it first.')
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() != '.zip':
        path.mkdir(exist_ok=True)

        def put(name: str, content: bytes) -> None:
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(content)

        return _put_all(put, records, beside or {})
    part = path.with_name(path.name + '.part')
    try:
        with zipfile.ZipFile(part, 'w', zipfile.ZIP_STORED) as archive:  # PNG does not shrink further; a fixed date
            count = _put_all(lambda name, content: archive.writestr(zipfile.ZipInfo(name), content), records, beside or {})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return count


def _put_all(put, records: Iterable[dict], beside: dict[str, bytes]) -> int:
    labels, captions, attributes, shape = [], {}, {}, None
    for number, record in enumerate(records):
        name = f'{number // 1000:05d}/img{number:08d}.png'
        image = np.asarray(record['image'])
        shape = shape or image.shape
        if image.dtype != np.uint8 or image.shape != shape or image.ndim != 3 or shape[0] != shape[1] or shape[2] not in (3, 4):
            raise UsageError(f'image {number} is {image.dtype} {list(image.shape)}: wanted uint8 [S, S, 3], all of one size.')
        put(name, png(image))
        labels.append([name, None if record['label'] is None else [float(number) for number in record['label']]])
        if record.get('captions'):
            captions[name] = list(record['captions'])
        if record.get('attributes'):
            attributes[name] = dict(record['attributes'])
    absent = [name for name, label in labels if label is None]
    if 0 < len(absent) < len(labels):
        raise UsageError(f'{len(absent)} of {len(labels)} images have no label, first {absent[0]}: wanted all or none.')
    index = {'labels': None if absent else labels}
    index |= {key: value for key, value in (('captions', captions), ('attributes', attributes)) if value}
    for name, content in beside.items():
        put(name, content)
    put(INDEX, (json.dumps(index) + '\n').encode())  # last: an unfinished folder has no index
    return len(labels)


def png(image: np.ndarray) -> bytes:
    """A uint8 image as PNG without compression, which reads fastest; the same bytes for the same image."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'png', compress_level=0)
    return buffer.getvalue()
