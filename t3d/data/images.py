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

from t3d.core.errors import UsageError
from t3d.data import archives

INDEX = 'dataset.json'
SHOWN = 5  # damaged images that are named
SUFFIXES = ('.png', '.jpg', '.jpeg')
LABEL = 25  # numbers
ORTHONORMAL = 1e-3  # largest |R^T R - 1| that files with rounded numbers may have
CENTRE = 0.05  # largest distance of the principal point from 0.5
SPREAD = 0.01  # labels no further apart, of rotation and of position / distance, count as one pose


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
        self.path = pathlib.Path(path).expanduser()
        if not self.path.exists():
            raise FileNotFoundError(f'no image set {self.path}: set data.path to a folder or zip with {INDEX}.')
        self._archive = archives.Archive(self.path)
        files = self._archive.members
        self.names = sorted(name for name in files if _is_image(name))
        outside = [name for name in self._archive.outside if name.lower().endswith(SUFFIXES)]
        if outside:
            raise UsageError(f'{self.path} holds {outside[0]}, which leads out of it: pack the set again from its own folder.')
        if not self.names:
            raise UsageError(f'{self.path} has no {", ".join(SUFFIXES)} files: give the folder or zip that holds {INDEX}.')
        index = self._index(files, labelled)
        self.labels = read_labels(index.get('labels'), self.names, f'{self.path}: {INDEX}') if labelled else None
        self.captions = _captions(index.get('captions') or {}, f'{self.path}: {INDEX}')
        self.attributes = index.get('attributes') or {}
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
            with Image.open(io.BytesIO(self._archive.read(name))) as picture:
                if picture.mode[0] in 'IF':
                    raise UsageError(f'{self.path}: {name} has pixels of kind {picture.mode}: wanted 8 bits a channel.')
                alpha = 'A' in picture.mode or 'transparency' in picture.info
                return np.array(picture.convert('RGBA' if alpha else 'RGB'))
        except UsageError:
            raise
        except Exception as error:  # Pillow lets through what its decoders meet: OSError, SyntaxError, struct.error, ...
            raise archives.Damaged(f'{self.path}: {name} cannot be read ({_reason(error)}): copy the set again.') from error

    def text(self, index: int) -> dict:
        """What is known of an image beside its pixels and label: captions, attributes, name."""
        name = self.names[index]
        return {'captions': self.captions.get(name, ()), 'attributes': self.attributes.get(name, {}), 'name': name}

    # ------------------------------------------------------------------------------------------------------- reading

    def _index(self, files: Iterable[str], needed: bool) -> dict:
        if INDEX not in files:
            if not needed:
                return {}
            inner = [name for name in files if name.endswith(f'/{INDEX}')]
            hint = f' There is {inner[0]}: the set has to start at its folder.' if inner else ''
            raise UsageError(
                f'{self.path} has no {INDEX}, so its images have no camera labels.{hint} Prepare it as for EG3D, or set '
                "data.mode='pose-distribution' for photos without poses."
            )
        try:
            index = json.loads(self._archive.read(INDEX))
        except ValueError as error:
            raise UsageError(f'{self.path}: {INDEX} is no JSON ({error}).') from error
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
                return picture.size
        except UsageError:
            raise
        except Exception as error:
            raise archives.Damaged(
                f'{self.path}: {name} is no whole PNG or JPEG ({_reason(error)}): copy the set again.'
            ) from error


def _reason(error: Exception) -> str:
    """What Pillow says, without the address of the object it was given."""
    return re.sub(' <.*>', '', str(error)) or type(error).__name__


def _captions(found, where: str) -> dict[str, tuple[str, ...]]:
    good = isinstance(found, dict) and all(
        isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in found.values()
    )
    if not good:
        raise UsageError(f'{where}: captions are not {{file: [text, ...]}}.')
    return {name: tuple(texts) for name, texts in found.items()}


def _is_image(name: str) -> bool:
    hidden = any(part.startswith('.') or part == '__MACOSX' for part in name.split('/'))
    return name.lower().endswith(SUFFIXES) and not hidden


# -------------------------------------------------------------------------------------------------------------- labels


def read_labels(entries, names: list[str], where: str) -> np.ndarray:
    """float32 [N, 25] in the order of `names` from [[file, numbers], ...]; every file once, every label a camera."""
    if entries is None:
        raise UsageError(
            f'{where} has no labels (null): each image needs 25 camera numbers. Prepare it as for EG3D, or set '
            "data.mode='pose-distribution' for photos without poses."
        )
    if not isinstance(entries, list):
        raise UsageError(f'{where}: labels is a {type(entries).__name__}: wanted [[file, {LABEL} numbers], ...].')
    table = {}
    for number, entry in enumerate(entries):
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            raise UsageError(f'{where}, entry {number}: wanted [file, 25 numbers], got {str(entry)[:60]}.')
        name = entry[0].replace('\\', '/')
        if name in table:
            raise UsageError(f'{where}, entry {number}: {name} has a label already.')
        table[name] = _numbers(entry[1], f'{where}, entry {number} ({name})')
    known = set(names)
    absent = [name for name in table if name not in known]
    if absent:
        raise UsageError(
            f'{where} has labels of {len(absent)} files that are not there, first {absent[0]}: remove the entries.'
        )
    missing = [name for name in names if name not in table]
    if missing:
        raise UsageError(f'{where} has no label for {len(missing)} files, first {missing[0]}: add the entries.')
    labels = np.stack([table[name] for name in names])
    check_labels(labels, names, where)
    return labels.astype(np.float32)


def _numbers(values, where: str) -> np.ndarray:
    if not isinstance(values, list) or len(values) != LABEL:
        count = len(values) if isinstance(values, list) else 'no'
        raise UsageError(f'{where}: {count} numbers, wanted {LABEL}: 16 of world_from_cam, then 9 of the intrinsics.')
    try:
        array = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.full(LABEL, np.nan)
    if array.shape != (LABEL,) or not np.isfinite(array).all():
        raise UsageError(f'{where}: not {LABEL} finite numbers: {str(values)[:80]}.')
    return array


def check_labels(labels: np.ndarray, names: list[str], where: str) -> None:
    """Raises UsageError at the first of labels [N, 25] that is no camera looking through the middle of its image."""
    pose, lens = labels[:, :16].reshape(-1, 4, 4), labels[:, 16:].reshape(-1, 3, 3)
    rotation = pose[:, :3, :3]
    off = np.abs(rotation.transpose(0, 2, 1) @ rotation - np.eye(3)).max((1, 2))
    determinant = np.linalg.det(rotation)
    last_rows = np.abs(pose[:, 3] - [0, 0, 0, 1]).max(1) + np.abs(lens[:, 2] - [0, 0, 1]).max(1)
    centre = np.abs(lens[:, :2, 2] - 0.5).max(1)
    focal = np.minimum(lens[:, 0, 0], lens[:, 1, 1])
    for wrong, say in (
        (
            last_rows > 1e-4,
            lambda k: (
                f'the last rows are {pose[k, 3].tolist()} and {lens[k, 2].tolist()}, wanted [0, 0, 0, 1] and [0, 0, 1]: is '
                'the label row-major, pose before intrinsics?'
            ),
        ),
        (
            off > ORTHONORMAL,
            lambda k: f'the rotation is not orthonormal: |R^T R - 1| is {off[k]:.3g}. Remove scale and shear from the pose.',
        ),
        (
            determinant < 0.0,
            lambda k: (
                f'the rotation has determinant {determinant[k]:.3f}, wanted 1: a mirrored frame. From OpenGL or Blender negate '
                'two columns (y and z), not one.'
            ),
        ),
        (
            centre > CENTRE,
            lambda k: (
                f'the principal point is ({lens[k, 0, 2]:.4g}, {lens[k, 1, 2]:.4g}), wanted about 0.5: divide the intrinsics '
                'by the image size.'
            ),
        ),
        (focal <= 0.0, lambda k: f'the focal lengths are {lens[k, 0, 0]:.4g} and {lens[k, 1, 1]:.4g}, wanted positive.'),
    ):
        if wrong.any():
            first = int(np.argmax(wrong))
            raise UsageError(f'{where}, label of {names[first]}: {say(first)} ({int(wrong.sum())} of {len(labels)} labels.)')


def check_varied(labels: np.ndarray, where: str) -> None:
    """Raises UsageError if labels [N, 25] are all of one pose: nothing then tells a shape from a painted board."""
    distance = max(float(np.linalg.norm(labels[0, [3, 7, 11]])), 1e-6)
    scale = np.ones(16, np.float32)
    scale[[3, 7, 11]] = distance
    if (np.abs(labels[:, :16] - labels[0, :16]) / scale).max() <= SPREAD:
        raise UsageError(
            f'{where}: all {len(labels)} labels are of one pose. A set seen from one side alone (single-view frontal) is '
            'refused: its geometry degenerates to a billboard. Give images with different camera poses, or their true poses.'
        )


# ------------------------------------------------------------------------------------------------------------- writing


def write(path: str | pathlib.Path, records: Iterable[dict], beside: dict[str, bytes] | None = None) -> int:
    """Writes a set that EG3D and `ImageSet` read; returns the number of images.

    Args:
      path: a name ending in .zip, or a folder that is not there yet. The same records give the same bytes.
      records: {'image': uint8 [S, S, 3 or 4], 'label': [25] or None, optional 'captions', 'attributes'}; all have labels, or
        none has.
      beside: other files of the set, {name: content}, for example a licence.
    """
    path = pathlib.Path(path).expanduser()
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
