"""Single-view sets: one picture and its camera label a record, for systems that learn shapes from photographs.

`config.data.kind = 'single_view'` chooses them; `config.data.name` says of what:

| name | a record is | needs |
|---|---|---|
| `toy` | a scene from one random side; scenes x `poses` records | nothing: rendered here |
| `toy_endless` | an object of its own from one side; `data.count` records | nothing: rendered here |
| `furniture` | an object in one of its colour variants, from the view that a hash of the index picks | a built set |
| `posed` | a view of an object in a folder of posed pictures, every one | `data.path` |
| `records` | a view of an object of a set that streams, every one; read when it is asked for | `data.path` |
| `eg3d` | an image of an EG3D folder or zip, with the label of its `dataset.json` | `data.path` |

and `config.data.mode` what is known of the cameras (GANFusion's data sets, after EG3D, arXiv 2112.07945):

| mode | label | fake_labels |
|---|---|---|
| `posed-known` | exact, from a renderer | drawn from the set's labels |
| `posed-estimated` | of a pose estimator | drawn from the set's labels |
| `pose-distribution` | zeros: the photos have none | drawn uniformly from data.yaw, data.pitch at data.radius, data.fov |

A set seen from one side alone is refused: its geometry would be a billboard. Labels are EG3D's 25 numbers
(geom.cameras.to_eg3d). Pictures are laid on `config.render.background`. With `data.mirror` every picture is there twice, the
second time mirrored with its label mirrored too. A config with a `text` section gets {'tokens', 'image', 'label'}, any other
{'image', 'label', 'fake_labels'}.
"""

import functools
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from t3d.core import files, tokens
from t3d.core.config import unknown
from t3d.core.errors import UsageError
from t3d.data import sets
from t3d.data.sets import archives, camera_labels, caption_words, endless, furniture_source, images, one_view, shapes, toy
from t3d.data.sets.captions import vocabulary
from t3d.data.sets.posed_pictures import open_posed
from t3d.data.sets.record_pictures import open_records

NAMES, NEEDS = ('toy', 'toy_endless', 'furniture', 'posed', 'records', 'eg3d'), ('data.mode', 'data.mirror')
MODES = ('posed-known', 'posed-estimated', 'pose-distribution')
FAKES = 3  # labels for the generator's phase, its regularisation, and the discriminator's phase
CACHE = 2 << 30  # bytes of decoded pictures kept in memory
DRAWN = 10_000  # labels that stand for a distribution
YAW, PITCH = (-np.pi, np.pi), (-0.2, 0.9)  # radians; the ranges of `toy`


def make(config, split: str | None = None, batch_spec: dict | None = None) -> tuple['SingleView', Callable]:
    """(source, transform) of a config; see `example` for what the batch holds.

    Args:
      split: overrides `config.data.split`.
    Raises:
      UsageError: unknown name, mode or split; a set that cannot be trained on; a config with text for a set without captions.
      FileNotFoundError: the set is not there.
    """
    if (views := config.data.get('views', 1)) != 1:
        raise UsageError(f'data.views={views}: a single-view set has one picture of each record. Set data.views=1.')
    source = open_set(config, split)
    return source, example(config, source)


def labels(config, split: str | None = None) -> np.ndarray:
    """float32 [N, 25]: the labels of the set, for samplers at evaluation; of `pose-distribution` 10,000 fixed draws, of a large
    set of records those that stand for it (sets.record_pictures).
    """
    if check_mode(config.data) == 'pose-distribution':
        return sample_labels(config.data, np.random.default_rng(0), DRAWN)
    return open_set(config, split).labels


def check_mode(data) -> str:
    """`data.mode`, one of MODES."""
    mode = data.get('mode', 'posed-known')
    if 'frontal' in mode:
        raise UsageError(
            f'data.mode={mode!r} is refused: with one pose for all images the geometry degenerates to a billboard. Use images '
            f'from several sides: {", ".join(MODES)}.'
        )
    if mode not in MODES:
        raise UsageError(unknown(mode, MODES, 'data.mode'))
    return mode


def sample_labels(data, random: np.random.Generator, count: int) -> np.ndarray:
    """float32 [count, 25] of cameras on a sphere that look at the origin.

    `data.yaw` and `data.pitch` are (low, high) in radians, uniform; yaw 0 looks at the front and grows towards +x, pitch grows
    upwards. `data.radius` is the distance in scene units, `data.fov` the field of view from edge to edge in radians.
    """
    low, high = zip(data.get('yaw', YAW), data.get('pitch', PITCH))
    yaw, pitch = random.uniform(low, high, (count, 2)).T
    pose, lens = toy.camera_arrays(yaw, pitch, data.get('radius', shapes.RADIUS), data.get('fov', shapes.FOV))
    return to_labels(pose, lens)


to_labels, mirror_labels, composite = camera_labels.concatenate, camera_labels.mirrored, one_view.composite


class SingleView:
    """Random access to records {'image' uint8 [S, S, 3], 'label' float32 [25], 'captions', 'attributes', 'name'}.

    Attributes:
      labels: float32 [N, 25], of all records; None in `pose-distribution`, where a record's label is zeros.
      size: pixels of the pictures.
    """

    def __init__(self, pictures, *, background: float, posed: bool, mirror: bool):
        self.pictures, self.background, self.mirror, self.size = pictures, background, mirror, pictures.size
        self.labels = pictures.labels if posed else None
        if posed and mirror:
            self.labels = np.concatenate([self.labels, mirror_labels(self.labels)])
        self.count = len(pictures)
        self._damaged = set()  # places of pictures that cannot be read
        self._kept, self._room = {}, CACHE // (3 * self.size**2)

    def __len__(self) -> int:
        return self.count * (2 if self.mirror else 1)

    def __getitem__(self, index: int) -> dict:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f'record {index} of a single-view set with {len(self)}')
        index, image = self._readable(index)
        mirrored, text = index // self.count, self.text(index)
        label = np.zeros(images.LABEL, np.float32) if self.labels is None else self.labels[index]
        return {'image': np.ascontiguousarray(image[:, ::-1]) if mirrored else image, 'label': label, **text}

    def _readable(self, index: int) -> tuple[int, np.ndarray]:
        """(index, picture) of a record; where its picture is damaged, of the next one that is not."""
        for step in range(self.count):
            mirrored, place = divmod(index, self.count)
            candidate = (place + step) % self.count
            if candidate in self._damaged:
                continue
            try:
                return mirrored * self.count + candidate, self._image(candidate)
            except archives.Damaged as error:
                self._damaged.add(candidate)
                print(f'{error} Left out, the {len(self._damaged)}. of {self.count}; the next picture stands in.', flush=True)
                last = error
        raise last

    def _image(self, place: int) -> np.ndarray:
        picture = self._kept.get(place)
        if picture is None:
            picture = composite(self.pictures.image(place), self.background)
            if len(self._kept) < self._room:
                self._kept[place] = picture
        return picture

    def text(self, index: int) -> dict:
        """Captions, attributes and name of a record, without its picture. A mirrored one loses captions of left and right."""
        mirrored, place = divmod(index, self.count)
        text = self.pictures.text(place)
        if mirrored:
            kept = tuple(caption for caption in text['captions'] if not caption_words.names_a_side(caption))
            text = {**text, 'captions': kept}
        return text

    def captions(self) -> Iterator[str]:
        """Every caption of the set."""
        for index in range(len(self)):
            yield from self.text(index)['captions']


class Streamed(SingleView):
    """The same of a set with more pictures than memory has room for (sets.record_pictures): none is kept.

    Attributes:
      labels: float32 [M, 25] of the records that stand for the set, mirrored ones after those; None in `pose-distribution`.
      spoken: what the set says, counted (caption_words.Spoken).
    """

    def __init__(self, pictures, **options):
        super().__init__(pictures, **options)
        self.spoken = pictures.spoken
        sided = sorted(word for word in self.spoken.words if caption_words.names_a_side(word)) if self.mirror else ()
        if sided:
            raise UsageError(
                f'data.mirror with captions that say {", ".join(sided[:5])} ({pictures.folder}): they would be false of '
                'mirrored pictures, and a set that streams is not read through for those without. Set data.mirror=false.'
            )

    def __repr__(self) -> str:
        return repr(self.pictures.source)  # grain puts it into the iterator's state

    def __getitem__(self, index: int) -> dict:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f'record {index} of a single-view set with {len(self)}')
        mirrored, place = divmod(index, self.count)
        record = self.pictures.record(place)
        image, label = composite(record['image'], self.background), record['label']
        if self.labels is None:
            label = np.zeros(images.LABEL, np.float32)
        elif mirrored:
            [label] = mirror_labels(label[None])
        return {**record, 'image': np.ascontiguousarray(image[:, ::-1]) if mirrored else image, 'label': label}

    def captions(self) -> Iterator[str]:
        """The first different captions of the set."""
        return iter(self.spoken.first)


def open_set(config, split: str | None = None) -> SingleView:
    """The source of a config with `data.kind='single_view'`."""
    data, split = config.data, split or config.data.split
    posed, mirror, background = (
        check_mode(data) != 'pose-distribution',
        bool(data.get('mirror', False)),
        config.render.background,
    )
    if data.name == 'toy':
        if mirror and data.scenes != 'singles':
            raise UsageError(f'data.mirror with data.scenes={data.scenes}: captions of left and right would be false.')
        pictures = one_view.of_toy(data, split)
    elif data.name == 'toy_endless':
        pictures = one_view.Toy(endless.open_set(data, split))
    elif data.name == 'furniture':
        views, root = data.get('train_views', 0), furniture_source.data_root()
        pictures = one_view.furniture(root, data.path, split, data.size, data.variants, data.seed, views, background)
    elif data.name == 'posed':
        pictures = open_posed(data, split)
    elif data.name == 'records':
        pictures = open_records(data, split)
    elif data.name == 'eg3d':
        pictures = _eg3d(data, split, posed)
    else:
        raise UsageError(unknown(data.name, NAMES, 'single-view data set (data.name)'))
    table = pictures.labels if posed else sample_labels(data, np.random.default_rng(0), 100)
    place = getattr(pictures, 'path', getattr(pictures, 'folder', f'data.name={data.name}'))
    where = str(place) if posed else 'data.yaw and data.pitch'
    images.check_varied(table, where)
    camera_labels.check_meant(table, where if posed else 'data.yaw, data.pitch, data.radius and data.fov', config.render)
    chosen = Streamed if getattr(pictures, 'streamed', False) else SingleView
    return chosen(pictures, background=background, posed=posed, mirror=mirror)


@functools.lru_cache(2)
def _image_set(path: pathlib.Path, labelled: bool, *changed: int) -> images.ImageSet:
    """Cached as `_furniture` is: opening a set reads the size of every image."""
    return images.ImageSet(path, labelled=labelled)


def _eg3d(data, split: str, posed: bool) -> images.ImageSet:
    if not data.path:
        raise UsageError("data.name='eg3d' needs data.path: the folder or zip that holds dataset.json.")
    if split not in ('train', 'all'):
        raise UsageError(f'split={split!r} of {data.path}: an EG3D set has one split, train; give another set as data.path.')
    path = files.local(data.path)
    read = [file for file in (path, path / images.INDEX) if file.exists()]
    stored = _image_set(path, posed, *(file.stat().st_mtime_ns for file in read))
    if stored.size != data.size:
        raise UsageError(
            f'{data.path} has images of {stored.size} px, the config wants data.size={data.size}: set data.size={stored.size}.'
        )
    return stored


# ------------------------------------------------------------------------------------------------------------- batches


def example(config, source: SingleView) -> Callable[[dict, np.random.Generator], dict[str, np.ndarray]]:
    """The transform of a config: record to one example of the batch.

    image uint8 [S, S, 3], label float32 [25]; and tokens int32 [L] of one of the captions where the config has a `text`
    section, else fake_labels float32 [3, 25], drawn independently of the image.
    """
    if 'text' in config:
        _check_captioned(config, source)
        return functools.partial(_captioned, tokens.make(config.text))
    return functools.partial(_adversarial, config.data, source.labels)


def _check_captioned(config, source: SingleView) -> None:
    if source.labels is None:
        raise UsageError(f"{config.system} needs the camera of every image: data.mode='pose-distribution' has none.")
    if isinstance(source, Streamed):  # every record has a caption, and what they say was counted
        return caption_words.check_spoken(source.spoken, config.text, source.pictures.folder)
    bare, where = [k for k in range(len(source)) if not source.text(k)['captions']], config.data.path or config.data.name
    if bare:
        raise UsageError(
            f'{config.system} reads captions, and {len(bare)} of {len(source)} records of {where} have none, first '
            f'{source.text(bare[0])["name"]}: add "captions": {{file: [text, ...]}} to {images.INDEX} '
            '(with data.mirror captions of left and right do not count), or train a system without text.'
        )
    caption_words.check(source.captions(), config.text, where)


def _captioned(tokenize, record: dict, random: np.random.Generator) -> dict[str, np.ndarray]:
    caption = record['captions'][random.integers(len(record['captions']))]
    return {'tokens': tokenize([caption])[0], 'image': record['image'], 'label': record['label']}


def _adversarial(data, table: np.ndarray | None, record: dict, random: np.random.Generator) -> dict[str, np.ndarray]:
    fakes = sample_labels(data, random, FAKES) if table is None else table[random.integers(len(table), size=FAKES)]
    return {'image': record['image'], 'label': record['label'], 'fake_labels': fakes}


def words(config) -> list[str]:
    """The vocabulary of a config's set."""
    if made := sets.procedural(config.data.name):
        return made.WORDS
    source = open_set(config)
    return list(source.spoken.words) if isinstance(source, Streamed) else vocabulary(source.captions())


def captions(config) -> Iterator[str]:
    """Every caption of a config's set."""
    return open_set(config).captions()


def preview(config, batch_spec: dict | None = None) -> tuple[dict[str, np.ndarray], list[str]]:
    """A fixed batch for the contact sheet, and the captions (without text: numbers) of its rows; of `toy`, held-out scenes."""
    held_out = 'text' in config and config.data.name == 'toy' and config.data.split == 'train'
    source, transform = make(config, 'test' if held_out else None)
    records = [source[index] for index in _distinct(source, min(config.preview.rows, config.batch))]
    records = [{**record, 'captions': record['captions'][:1]} for record in records] if 'text' in config else records
    rows = [transform(record, np.random.default_rng(index)) for index, record in enumerate(records)]
    names = [record['captions'][0] if 'text' in config else f'sample {n}' for n, record in enumerate(records)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}, names


def _distinct(source: SingleView, count: int) -> list[int]:
    """Indices of records with different names, in a fixed random order; of one name several only if there are too few."""
    random, named = np.random.default_rng(0), {}
    large = len(source) > 2**22  # no order of all for a few rows
    order = random.choice(len(source), 4096, replace=False).tolist() if large else random.permutation(len(source)).tolist()
    for index in order if count else ():
        named.setdefault(source.text(index)['name'], index)
        if len(named) == count:
            break
    return list(dict.fromkeys([*named.values(), *order]))[:count]
