"""`furniture`: real captioned multi-view data from Sweet Home 3D's library: 820 objects, 16 views each, RGBA, depth, cameras.

`build` renders a `.deb`, a `.sh3f` or a folder (data/sweethome.py) into a TFDS data set in array_record files, without
TensorFlow; `FurnitureSource` reads it by random access. One example is one object in one colouring.

* **World** y up, front +z, bounding sphere of radius OBJECT_RADIUS about the origin. Shading does not depend on the view
  (data/raycast.py), so that a field without view directions can fit every view.
* **Views** VIEWS = 16 on a sphere of radius CAMERA_RADIUS: the first TRAIN_VIEWS = 12 go round in steps of 30 degrees with
  elevations 0, 15, 30 in turn, and view 0 is the front; the last 4 have random angles, seeded by the object's id, and are the
  **held-out views**: training must not look at them.
* **Variants** Besides the original, the material with most visible pixels takes palette colours, where it covers over half of
  what is seen. Texture is kept as brightness.
* **Splits** by hash, never by order. `test` and `val` hold unseen nouns (and with them unseen look-alikes). Among the other
  nouns, (noun, colour) pairs with crc32(noun|colour) mod 8 = 0 form `test_combo`: noun seen, colour seen, never together; pairs
  whose noun would vanish from `train` stay there, so the rule bites harder the more variants are built.
* **Depth** is stored in steps of DEPTH_STEP (1/8192 of a scene unit) as zlib-packed 16-bit integers; a float16 would round to
  16 times that at this distance.

The rig is SPAD's (arXiv 2402.05235). Licences differ by library: `ATTRIBUTION.md` beside the data names every creator.
"""

import dataclasses
import functools
import io
import json
import multiprocessing
import os
import pathlib
import shutil
import time
import zipfile

import numpy as np

from t3d.data import captions, objmesh, raycast, sweethome
from t3d.geom import cameras

VERSION = '1.1.8'  # of this format, then that of the library (1.8)
VIEWS = 16
TRAIN_VIEWS = 12  # views 0 .. 11 train, 12 .. 15 are held out
CAMERA_RADIUS = 3.5
FOV = 0.7027699  # radians
OBJECT_RADIUS = 0.9
RING_ELEVATIONS = (0.0, 15.0, 30.0)  # degrees, in turn
RANDOM_ELEVATIONS = (-10.0, 45.0)  # degrees
SUPERSAMPLE = 2
DEPTH_STEP = 1.0 / 8192.0  # scene units
MAX_VARIANTS = len(captions.PALETTE) - 1
RECOLOUR_SHARE = 0.5  # of the visible pixels that a material needs to be recoloured
STATISTICS_VIEWS = (0, 2, 4, 5, 8, 10)  # all sides, level to 30 degrees, for colour words and visible materials
STATISTICS_SIZE = 64
SPLITS = ('train', 'val', 'test', 'test_combo')
LICENSES = ('all', 'cc0')


# -------------------------------------------------------------------------------------------------------------- views


def view_angles(object_id: str) -> tuple[np.ndarray, np.ndarray]:
    """(azimuth, elevation) float32 [VIEWS] in radians: the fixed ring, then the object's own random views."""
    ring = VIEWS - (VIEWS - TRAIN_VIEWS)
    rng = np.random.default_rng(sweethome.bucket(object_id, 2**32))
    azimuth = np.concatenate([np.arange(ring) * 360.0 / ring, rng.uniform(0.0, 360.0, VIEWS - ring)])
    elevation = np.concatenate([np.resize(RING_ELEVATIONS, ring), rng.uniform(*RANDOM_ELEVATIONS, VIEWS - ring)])
    return np.radians(azimuth).astype(np.float32), np.radians(elevation).astype(np.float32)


def _rigs(object_ids: list[str]) -> list[dict[str, np.ndarray]]:
    """Cameras of every object: azimuth, elevation [V], world_from_cam [V, 4, 4], intrinsics [V, 3, 3]."""
    azimuth, elevation = (np.stack(angles) for angles in zip(*map(view_angles, object_ids)))
    rig = cameras.orbit(azimuth, elevation, CAMERA_RADIUS, FOV)
    arrays = {'azimuth': azimuth, 'elevation': elevation, 'world_from_cam': np.asarray(rig.world_from_cam),
              'intrinsics': np.asarray(rig.intrinsics)}
    return [{key: value[index] for key, value in arrays.items()} for index in range(len(object_ids))]


# ---------------------------------------------------------------------------------------------------------- rendering


@dataclasses.dataclass(frozen=True)
class Task:
    """What a worker needs to render one object."""

    library: sweethome.Library
    entry: sweethome.Entry
    rig: dict[str, np.ndarray]
    size: int
    variants: int
    target: pathlib.Path


def render_object(task: Task) -> str:
    """Renders all views and variants of an object into `task.target` (an npz, written whole or not at all); returns its id."""
    mesh = sweethome.rotate(objmesh.load(task.entry.model, task.library.read), task.entry)
    mesh = dataclasses.replace(mesh, positions=raycast.fit_sphere(mesh.positions, OBJECT_RADIUS))
    scene = raycast.Scene(mesh, task.library.read)
    poses, lens = task.rig['world_from_cam'], task.rig['intrinsics']
    seen = [raycast.view_hits(scene, poses[view], lens[view], STATISTICS_SIZE, 1) for view in STATISTICS_VIEWS]
    statistics = _statistics(seen, len(mesh.parts))
    colours = _variant_colours(task.entry.object_id, statistics, task.variants)
    arrays, depth = {}, []
    for view in range(VIEWS):
        hits = raycast.view_hits(scene, poses[view], lens[view], task.size, SUPERSAMPLE)
        for variant, colour in enumerate(['', *colours]):
            albedo = recolour(hits, statistics, captions.PALETTE[colour]) if colour else hits.albedo
            arrays[f'png_{variant}_{view}'] = _png(raycast.image(hits, albedo, task.size, SUPERSAMPLE))
        depth.append(raycast.planar_depth(scene, poses[view], lens[view], task.size))
    meta = {'colours': [statistics['colour'], *colours], 'signature': [len(mesh.positions), mesh.num_vertices, len(mesh.parts)],
            'missing': list(mesh.missing), 'share': float(statistics['share'])}
    arrays['depth'] = np.round(np.stack(depth) / DEPTH_STEP).astype(np.uint16)
    arrays['meta'] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    partial = task.target.with_suffix('.partial')
    with open(partial, 'wb') as file:
        np.savez(file, **arrays)
    partial.replace(task.target)
    return task.entry.object_id


def _statistics(seen: list[raycast.Hits], num_parts: int) -> dict:
    """Over all rays: the colour word, the part most seen, its share of what is seen, its mean colour and luminance."""
    weights = np.concatenate([hits.weights().ravel() for hits in seen])
    part = np.concatenate([hits.part.ravel() for hits in seen])[weights > 0.0]
    albedo = np.concatenate([hits.albedo.reshape(-1, 3) for hits in seen])[weights > 0.0]
    weights = weights[weights > 0.0]
    if not len(weights):
        return {'colour': '', 'part': 0, 'share': 0.0, 'mean': np.zeros(3), 'luminance': 1.0}
    visible = np.bincount(part, weights, num_parts)
    main = int(visible.argmax())
    mean = np.average(albedo[part == main], axis=0, weights=weights[part == main])
    return {'colour': captions.colour_word(albedo, weights), 'part': main, 'share': visible[main] / visible.sum(), 'mean': mean,
            'luminance': max(float(mean @ LUMINANCE), 1e-3)}


LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)  # ITU-R BT.709


def _variant_colours(object_id: str, statistics: dict, count: int) -> list[str]:
    """Palette colours for `count` variants in the object's own order, without the one it nearly has already."""
    if not count or statistics['share'] <= RECOLOUR_SHARE:
        return []
    names = list(captions.PALETTE)
    distance = ((captions.lab(list(captions.PALETTE.values())) - captions.lab(statistics['mean'])) ** 2).sum(-1)
    names.pop(int(distance.argmin()))
    order = np.random.default_rng(sweethome.bucket(object_id + '|colours', 2**32)).permutation(len(names))
    return [names[index] for index in order[:count]]


def recolour(hits: raycast.Hits, statistics: dict, target) -> np.ndarray:
    """Albedo [L, N, 3] with the main part in the `target` colour, its texture kept as relative luminance."""
    relative = hits.albedo @ LUMINANCE / np.float32(statistics['luminance'])
    if statistics['luminance'] < 0.02:  # a black part has no texture to keep
        relative = np.ones_like(relative)
    tinted = np.clip(relative[..., None] * np.asarray(target, np.float32), 0.0, 1.0)
    return np.where((hits.part == statistics['part'])[..., None], tinted, hits.albedo)


def _png(pixels: np.ndarray) -> np.ndarray:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'PNG')
    return np.frombuffer(buffer.getvalue(), np.uint8)


def render_all(tasks: list[Task], processes: int, label: str) -> None:
    """Renders what is not rendered yet, with a progress line every few seconds."""
    waiting = [task for task in tasks if not zipfile.is_zipfile(task.target)]
    done = len(tasks) - len(waiting)
    if done:
        print(f'{label}: {done} of {len(tasks)} objects were rendered before', flush=True)
    if not waiting:
        return
    start = last = time.monotonic()
    with multiprocessing.get_context('spawn').Pool(processes) if processes > 1 else _Serial() as pool:
        for count, _ in enumerate(pool.imap_unordered(render_object, waiting), 1):
            now = time.monotonic()
            if now - last > 10.0 or count == len(waiting):
                last, rate = now, count / (now - start)
                left = (len(waiting) - count) / rate
                print(f'{label}: {done + count}/{len(tasks)} objects, {rate:.1f} a second, {left:.0f} s left', flush=True)


class _Serial:
    """A pool of this process."""

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        return None

    def imap_unordered(self, function, items):
        return map(function, items)


# ------------------------------------------------------------------------------------------------------------- splits


def assign_splits(examples: list[dict]) -> list[str]:
    """The split of each example; an example has object_id, noun, colour, signature and stands in catalogue order."""
    firsts = {}
    for example in examples:
        firsts.setdefault(example['object_id'], example)
    groups = sweethome.look_alike_groups({key: example['signature'] for key, example in firsts.items()})
    by_noun = sweethome.noun_splits({key: example['noun'] for key, example in firsts.items()}, groups)

    def held_out(example):
        return bool(example['colour']) and sweethome.bucket(f'{example["noun"]}|{example["colour"]}', 8) == 0

    kept = {example['noun'] for example in examples if not held_out(example)}
    splits = []
    for example in examples:
        split = by_noun[example['object_id']]
        combo = split == 'train' and held_out(example) and example['noun'] in kept
        splits.append('test_combo' if combo else split)
    return splits


# -------------------------------------------------------------------------------------------------------------- build


def config_name(size: int, variants: int = 0, limit: int | None = None, license: str = 'all') -> str:
    """The folder name of a configuration: '64px', '64px_recolour7', '64px_cc0', '64px_first20'."""
    parts = [f'{size}px', f'recolour{variants}' * bool(variants), 'cc0' * (license == 'cc0'), f'first{limit}' * bool(limit)]
    return '_'.join(part for part in parts if part)


@functools.cache
def builder_class():
    """The TFDS builder `Furniture`; a function because importing TFDS takes a second."""
    import tensorflow_datasets as tfds

    @dataclasses.dataclass(kw_only=True)
    class FurnitureConfig(tfds.core.BuilderConfig):
        size: int = 64  # pixels a side
        variants: int = 0  # recoloured copies of each object, 0 .. 7
        limit: int | None = None  # objects, chosen by hash; None = all
        license: str = 'all'
        source: str | None = None  # None = TFDS's manual_dir
        work: str | None = None  # where renders wait until all are there
        processes: int = 2

    class Furniture(tfds.core.GeneratorBasedBuilder):
        """Captioned multi-view renders of Sweet Home 3D's furniture library."""

        VERSION = tfds.core.Version(VERSION)
        url_infos = None  # nothing is downloaded; TFDS's own look-up wants the package importlib_resources
        MANUAL_DOWNLOAD_INSTRUCTIONS = f'To build this data set, {sweethome.HOW_TO_GET}.'

        def _info(self):
            size = self.builder_config.size
            text, f32 = tfds.features.Text(), np.float32
            tensor = tfds.features.Tensor
            return tfds.core.DatasetInfo(builder=self, description=__doc__, features=tfds.features.FeaturesDict({
                'object_id': text, 'noun': text, 'colour': text, 'category': text, 'licence': text, 'creator': text,
                'tags': text, 'variant': tensor(shape=(), dtype=np.int32), 'captions': tfds.features.Sequence(text),
                'views': tfds.features.Sequence(tfds.features.Image(shape=(size, size, 4), encoding_format='png')),
                'depth': tensor(shape=(VIEWS, size, size), dtype=np.uint16, encoding='zlib'),
                'world_from_cam': tensor(shape=(VIEWS, 4, 4), dtype=f32), 'intrinsics': tensor(shape=(VIEWS, 3, 3), dtype=f32),
                'azimuth': tensor(shape=(VIEWS,), dtype=f32), 'elevation': tensor(shape=(VIEWS,), dtype=f32)}))

        def _split_generators(self, dl_manager):
            config = self.builder_config
            source = config.source or dl_manager.manual_dir
            work = pathlib.Path(config.work or pathlib.Path(self.data_dir).parent / f'work-{config.name}')
            tasks = plan(source, work, config)
            render_all(tasks, config.processes, f'furniture {config.name}')
            examples = describe(tasks)
            splits = assign_splits(examples)
            chosen = {split: [example for example, other in zip(examples, splits) if other == split] for split in SPLITS}
            return {split: self._generate_examples(members) for split, members in chosen.items() if members}

        def _generate_examples(self, members):
            for example in members:
                yield f'{example["object_id"]}/{example["variant"]}', load_example(example)

    return Furniture, FurnitureConfig


def plan(source, work: pathlib.Path, config) -> list[Task]:
    """One task per object, in catalogue order."""
    libraries = {library.name: library for library in sweethome.open_libraries(source, work / 'libraries')}
    entries = [entry for library in libraries.values() for entry in library.entries()]
    if config.license == 'cc0':
        entries = [entry for entry in entries if entry.licence.startswith('CC0')]
    if config.limit:
        chosen = sorted(entries, key=lambda entry: sweethome.bucket(entry.object_id, 2**32))[:config.limit]
        entries = [entry for entry in entries if entry in chosen]
    if not entries:
        raise ValueError(f'{source} holds no object under license={config.license!r}: choose license="all", or a source with '
                         'the library BlendSwap-CC-0.')
    (work / 'objects').mkdir(parents=True, exist_ok=True)
    rigs = _rigs([entry.object_id for entry in entries])
    targets = [work / 'objects' / f'{entry.object_id}.npz' for entry in entries]
    return [Task(libraries[entry.library], entry, rig, config.size, config.variants, target)
            for entry, rig, target in zip(entries, rigs, targets)]


def describe(tasks: list[Task]) -> list[dict]:
    """One dictionary per (object, variant), without the arrays."""
    examples = []
    for task in tasks:
        with np.load(task.target) as arrays:
            meta = json.loads(arrays['meta'].tobytes())
        noun = captions.noun(task.entry.name)
        for variant, colour in enumerate(meta['colours']):
            examples.append({'object_id': task.entry.object_id, 'noun': noun, 'colour': colour, 'variant': variant,
                             'signature': tuple(meta['signature']), 'task': task})
    return examples


def load_example(example: dict) -> dict:
    """The TFDS features of an example."""
    task, variant = example['task'], example['variant']
    entry = task.entry
    with np.load(task.target) as arrays:
        views = [io.BytesIO(arrays[f'png_{variant}_{view}'].tobytes()) for view in range(VIEWS)]
        depth = arrays['depth']
    return {'object_id': entry.object_id, 'noun': example['noun'], 'colour': example['colour'], 'category': entry.category,
            'licence': entry.licence, 'creator': entry.creator, 'tags': ', '.join(entry.tags), 'variant': variant,
            'captions': list(captions.captions(example['noun'], example['colour'], entry.tags)), 'views': views, 'depth': depth,
            **task.rig}


def build(source: str, out: str | None = None, size: int = 64, variants: int = 0, limit: int | None = None,
          license: str = 'all', processes: int = 2) -> pathlib.Path:
    """Builds the data set from `source` under `out` and returns its folder; the same call continues an interrupted build.

    Args:
        source: a .deb, a .sh3f, or a folder with either or with an unpacked library.
        out: data root; default $T3D_DATA, else ~/.cache/t3d/data.
        size: pixels a side.
        variants: recoloured copies of each object, 0 to 7.
        limit: build only so many objects, chosen by hash.
        license: 'cc0' leaves out what asks for attribution.
        processes: worker processes.
    """
    import tensorflow_datasets as tfds

    if not 0 <= variants <= MAX_VARIANTS:
        raise ValueError(f'variants={variants}: choose 0 (originals only) to {MAX_VARIANTS}.')
    if license not in LICENSES:
        raise ValueError(f'license={license!r}: choose one of {", ".join(LICENSES)}.')
    if not 8 <= size <= 1024:
        raise ValueError(f'size={size}: choose 8 to 1024 pixels; 64, 128 and 256 are usual.')
    name = config_name(size, variants, limit, license)
    parent = data_root(out) / 'furniture' / name
    folder, work = parent / VERSION, parent / 'work'
    if folder.exists():
        try:
            check(folder)
            print(f'furniture {name}: already built in {folder}', flush=True)
            return folder
        except ValueError as error:
            print(f'furniture {name}: building again, because {error}', flush=True)
            shutil.rmtree(folder)
    for leftover in parent.glob('*incomplete*'):
        shutil.rmtree(leftover)
    furniture, furniture_config = builder_class()
    config = furniture_config(name=name, size=size, variants=variants, limit=limit, license=license, source=str(source),
                              work=str(work), processes=processes)
    tfds.disable_progress_bar()  # there is one line every few seconds already
    builder = furniture(data_dir=str(data_root(out)), config=config, file_format='array_record')
    builder.download_and_prepare()
    _write_attribution(folder, plan(source, work, config))
    (folder / SIZES).write_text(json.dumps({file.name: file.stat().st_size for file in sorted(folder.iterdir())}, indent=1))
    shutil.rmtree(work)
    counts = ', '.join(f'{split} {info.num_examples}' for split, info in builder.info.splits.items())
    print(f'furniture {name}: {counts} examples in {folder}', flush=True)
    return folder


SIZES = 'sizes.json'  # bytes of every file of a finished build, to notice truncation


def data_root(out: str | None = None) -> pathlib.Path:
    """Where data sets live: `out`, else $T3D_DATA, else ~/.cache/t3d/data."""
    return pathlib.Path(out or os.environ.get('T3D_DATA') or '~/.cache/t3d/data').expanduser()


def _write_attribution(folder: pathlib.Path, tasks: list[Task]) -> None:
    lines = ['# Attribution', '', 'Renders of 3D models from the furniture libraries of Sweet Home 3D (www.sweethome3d.com).',
             'The models were rendered, and in the variants recoloured; nothing else was changed.', '']
    libraries = {}
    for task in tasks:
        entry = task.entry
        libraries.setdefault((entry.library, entry.licence), {}).setdefault(entry.creator or 'unnamed', []).append(entry.name)
    for (library, licence), creators in sorted(libraries.items()):
        lines += [f'## {library}: {licence}', '']
        lines += [f'* {creator}: {", ".join(sorted(set(names)))}' for creator, names in sorted(creators.items())] + ['']
    (folder / 'ATTRIBUTION.md').write_text('\n'.join(lines))


# ------------------------------------------------------------------------------------------------------------- source


def check(folder: pathlib.Path) -> None:
    """Raises ValueError if a file of a finished build is missing or not as long as it was written."""
    again = 'run `t3d data build furniture` again with the same arguments'
    if not (folder / SIZES).is_file():
        raise ValueError(f'{folder} is no finished furniture build ({SIZES} is missing): {again}.')
    for name, wanted in json.loads((folder / SIZES).read_text()).items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f'{file} is missing: {again}.')
        if file.stat().st_size != wanted:
            raise ValueError(f'{file} has {file.stat().st_size} bytes, but {wanted} were written: it is truncated or changed; '
                             f'{again}.')


def find(path: str | pathlib.Path | None = None, size: int | None = None, variants: int | None = None) -> pathlib.Path:
    """The folder of the one finished build at or under `path` (default as in `data_root`) with that size and variant count."""
    root = pathlib.Path(path).expanduser() if path else data_root()
    if (root / 'dataset_info.json').is_file():
        return root
    found = [file.parent for file in sorted(root.glob(f'**/{VERSION}/dataset_info.json'))]
    wanted = [folder for folder in found if (size is None or folder.parent.name.split('_')[0] == f'{size}px')
              and (variants is None or (f'recolour{variants}' in folder.parent.name.split('_') if variants
                                        else 'recolour' not in folder.parent.name))]
    asked = ''.join(f' {name}={value}' for name, value in (('size', size), ('variants', variants)) if value is not None)
    if not wanted:
        there = ', '.join(folder.parent.name for folder in found) or 'nothing built'
        raise FileNotFoundError(f'no furniture data{asked} under {root} (there: {there}): run `t3d data build furniture '
                                f'--source PATH --size {size or 64} --out {root}`.')
    if len(wanted) > 1:
        names = ', '.join(str(folder.relative_to(root)) for folder in wanted)
        raise ValueError(f'{len(wanted)} furniture builds{asked} under {root}: give the path of one of {names}.')
    return wanted[0]


class FurnitureSource:
    """Random access to a split: `source[i]` is the multi-view record of example i, a function of the files alone.

    A record holds image uint8 [V, S, S, 4] (straight alpha), depth float32 [V, S, S] (planar z, 0 = background), world_from_cam
    [V, 4, 4], intrinsics [V, 3, 3], azimuth and elevation [V] in radians, captions (tuple), name, attributes (noun, colour,
    category, tags, licence, creator, variant). Of its V = 16 views the first TRAIN_VIEWS are for training.
    """

    def __init__(self, path: str | pathlib.Path | None = None, split: str = 'train', *, size: int | None = None,
                 variants: int | None = None):
        import tensorflow_datasets as tfds

        self.folder = find(path, size, variants)
        check(self.folder)
        builder = tfds.builder_from_directory(str(self.folder))
        if split not in builder.info.splits:
            raise ValueError(f'split={split!r} of {self.folder}: choose one of {", ".join(builder.info.splits)}.')
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
            raise ValueError(f'{self.folder}/{self.split}: example {index} does not read back as it was written ({error}): '
                             'delete the folder and run `t3d data build furniture` again.') from error
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
