"""`furniture`: real captioned multi-view data from Sweet Home 3D's library: 820 objects, 16 views each, RGBA, depth, cameras.

`build` renders a `.deb`, a `.sh3f` or a folder (data/sets/sweethome.py) into a TFDS data set in array_record files, without
TensorFlow; `furniture_source.FurnitureSource` reads it by random access. One example is one object in one colouring.

* **World** y up, front +z, bounding sphere of radius OBJECT_RADIUS about the origin. Shading does not depend on the view
  (data/sets/raycast.py), so that a field without view directions can fit every view.
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

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import shutil

import numpy as np

from t3d.core import shares
from t3d.core.errors import UsageError
from t3d.data.sets import captions, furniture_report, furniture_source, furniture_views, sweethome

TRAIN_VIEWS = furniture_views.TRAIN_VIEWS  # of furniture_views.VIEWS; the rest are held out
MAX_VARIANTS = furniture_views.MAX_VARIANTS
SPLITS = ('train', 'val', 'test', 'test_combo')
LICENSES = ('all', 'cc0')


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

        VERSION = tfds.core.Version(furniture_source.VERSION)
        url_infos = None  # nothing is downloaded; TFDS's own look-up wants the package importlib_resources
        MANUAL_DOWNLOAD_INSTRUCTIONS = f'To build this data set, {sweethome.HOW_TO_GET}.'

        def _info(self):
            size, views = self.builder_config.size, furniture_views.VIEWS
            text, f32 = tfds.features.Text(), np.float32
            tensor = tfds.features.Tensor
            return tfds.core.DatasetInfo(
                builder=self,
                description=__doc__,
                features=tfds.features.FeaturesDict(
                    {
                        'object_id': text,
                        'noun': text,
                        'colour': text,
                        'category': text,
                        'licence': text,
                        'creator': text,
                        'tags': text,
                        'variant': tensor(shape=(), dtype=np.int32),
                        'captions': tfds.features.Sequence(text),
                        'views': tfds.features.Sequence(tfds.features.Image(shape=(size, size, 4), encoding_format='png')),
                        'depth': tensor(shape=(views, size, size), dtype=np.uint16, encoding='zlib'),
                        'world_from_cam': tensor(shape=(views, 4, 4), dtype=f32),
                        'intrinsics': tensor(shape=(views, 3, 3), dtype=f32),
                        'azimuth': tensor(shape=(views,), dtype=f32),
                        'elevation': tensor(shape=(views,), dtype=f32),
                    }
                ),
            )

        def _split_generators(self, dl_manager):
            config = self.builder_config
            source = config.source or dl_manager.manual_dir
            work = pathlib.Path(config.work or pathlib.Path(self.data_dir).parent / f'work-{config.name}')
            tasks, _ = plan(source, work, config)
            furniture_views.render_all(tasks, config.processes, f'furniture {config.name}')
            examples = describe(tasks)
            splits = assign_splits(examples)
            chosen = {split: [example for example, other in zip(examples, splits) if other == split] for split in SPLITS}
            return {split: self._generate_examples(members) for split, members in chosen.items() if members}

        def _generate_examples(self, members):
            for example in members:
                yield f'{example["object_id"]}/{example["variant"]}', load_example(example)

    return Furniture, FurnitureConfig


def plan(source, work: pathlib.Path, config) -> tuple[list[furniture_views.Task], dict[str, str]]:
    """One task per object, in catalogue order; and {entry: what is wrong} of catalogue entries that are left out."""
    libraries = {library.name: library for library in sweethome.open_libraries(source, work / 'libraries')}
    entries, wrong = [], {}
    for library in libraries.values():
        listed, damaged = library.catalogue()
        entries += listed
        wrong |= {f'{library.name}, entry {number}': reason for number, reason in damaged.items()}
    if config.license == 'cc0':
        entries = [entry for entry in entries if entry.licence.startswith('CC0')]
    if config.limit:
        chosen = sorted(entries, key=lambda entry: sweethome.bucket(entry.object_id, 2**32))[: config.limit]
        entries = [entry for entry in entries if entry in chosen]
    if not entries:
        raise UsageError(
            f'{source} holds no object under license={config.license!r}: choose license="all", or a source with '
            'the library BlendSwap-CC-0.'
        )
    (work / 'objects').mkdir(parents=True, exist_ok=True)
    rigs = furniture_views.rigs([entry.object_id for entry in entries])
    targets = [work / 'objects' / f'{entry.object_id}.npz' for entry in entries]
    return [
        furniture_views.Task(libraries[entry.library], entry, rig, config.size, config.variants, target)
        for entry, rig, target in zip(entries, rigs, targets)
    ], wrong


def describe(tasks: list[furniture_views.Task]) -> list[dict]:
    """One dictionary per (object, variant) of what was rendered, without the arrays."""
    examples = []
    for task in tasks:
        if not task.target.exists():
            continue
        with np.load(task.target) as arrays:
            meta = json.loads(arrays['meta'].tobytes())
        noun = captions.noun(task.entry.name)
        for variant, colour in enumerate(meta['colours']):
            examples.append(
                {
                    'object_id': task.entry.object_id,
                    'missing': meta['missing'],
                    'dropped': meta['dropped'],
                    'noun': noun,
                    'colour': colour,
                    'variant': variant,
                    'signature': tuple(meta['signature']),
                    'task': task,
                }
            )
    return examples


def load_example(example: dict) -> dict:
    """The TFDS features of an example."""
    task, variant = example['task'], example['variant']
    entry = task.entry
    with np.load(task.target) as arrays:
        views = [io.BytesIO(arrays[f'png_{variant}_{view}'].tobytes()) for view in range(furniture_views.VIEWS)]
        depth = arrays['depth']
    return {
        'object_id': entry.object_id,
        'noun': example['noun'],
        'colour': example['colour'],
        'category': entry.category,
        'licence': entry.licence,
        'creator': entry.creator,
        'tags': ', '.join(entry.tags),
        'variant': variant,
        'captions': list(captions.captions(example['noun'], example['colour'], entry.tags)),
        'views': views,
        'depth': depth,
        **task.rig,
    }


def build(
    source: str,
    out: str | None = None,
    size: int = 64,
    variants: int = 0,
    limit: int | None = None,
    license: str = 'all',
    processes: int = 2,
    share: shares.Share | None = None,
) -> pathlib.Path:
    """Builds the data set from `source` under `out` and returns its folder; the same call continues an interrupted build.

    Args:
        source: a .deb, a .sh3f, or a folder with either or with an unpacked library.
        out: data root; default $T3D_DATA, else ~/.cache/t3d/data.
        size: pixels a side.
        variants: recoloured copies of each object, 0 to 7.
        limit: build only so many objects, chosen by hash.
        license: 'cc0' leaves out what asks for attribution.
        processes: worker processes.
        share: renders only the objects of this one of several hosts; a call without builds the set of what all rendered,
          and renders what is missing.
    """
    if not 0 <= variants <= MAX_VARIANTS:
        raise UsageError(f'variants={variants}: choose 0 (originals only) to {MAX_VARIANTS}.')
    if license not in LICENSES:
        raise UsageError(f'license={license!r}: choose one of {", ".join(LICENSES)}.')
    if not 8 <= size <= 1024:
        raise UsageError(f'size={size}: choose 8 to 1024 pixels; 64, 128 and 256 are usual.')
    name = config_name(size, variants, limit, license)
    parent = furniture_source.data_root(out) / 'furniture' / name
    folder, work = parent / furniture_source.VERSION, parent / f'work-{furniture_source.VERSION}'
    if folder.exists():
        try:
            furniture_source.check(folder)
            print(f'furniture {name}: already built in {folder}', flush=True)
            return folder
        except UsageError as error:
            print(f'furniture {name}: building again, because {error}', flush=True)
    for leftover in () if share else [*parent.glob('*incomplete*'), *parent.glob(furniture_source.VERSION)]:
        shutil.rmtree(leftover)
    _, furniture_config = builder_class()
    config = furniture_config(
        name=name,
        size=size,
        variants=variants,
        limit=limit,
        license=license,
        source=str(source),
        work=str(work),
        processes=processes,
    )
    try:
        tasks, wrong = plan(source, work, config)
        asked = share.of(tasks) if share else tasks
        for task in asked:  # the library may have been mended since
            furniture_views.skipped_file(task).unlink(missing_ok=True)
        furniture_views.render_all(asked, processes, f'furniture {name}')
        if share:
            print(f'furniture {name}: share {share} is rendered; after all shares, the same command without builds the set')
            return work
        problems = furniture_report.problems(tasks, describe(tasks), wrong)
        if len(problems['left out']) == len(tasks) + len(wrong):
            first, reason = next(iter(problems['left out'].items()))
            raise UsageError(f'{source}: none of its {len(tasks)} objects can be rendered, first {first}: {reason}.')
    except UsageError:
        _remove_empty(work, furniture_source.data_root(out))
        raise
    print(furniture_report.text(problems, f'furniture {name}'), end='', flush=True)
    counts = _pack(config, furniture_source.data_root(out))
    _write_attribution(folder, [task for task in tasks if task.target.exists()])
    (folder / furniture_report.FILE).write_text(json.dumps(problems, indent=1, ensure_ascii=False), encoding='utf-8')
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    (folder / furniture_source.SIZES).write_text(json.dumps(sizes, indent=1))
    shutil.rmtree(work)
    print(f'furniture {name}: {counts} examples in {folder}', flush=True)
    return folder


def _remove_empty(work: pathlib.Path, root: pathlib.Path) -> None:
    """Removes the working folder of a build that rendered nothing, and the folders above it that hold nothing else."""
    if any(work.glob('objects/*.npz')):
        return
    shutil.rmtree(work, ignore_errors=True)
    for folder in (work.parent, work.parent.parent, root):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _pack(config, root: pathlib.Path) -> str:
    """Has TFDS write what was rendered, silently; returns the number of examples of each split, for people."""
    import tensorflow_datasets as tfds
    from absl import logging

    furniture, _ = builder_class()
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS warns of a configuration that it does not know
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS reports a download, and there is none
            builder = furniture(data_dir=str(root), config=config, file_format='array_record')
            builder.download_and_prepare(download_dir=str(pathlib.Path(config.work) / 'downloads'))
    finally:
        logging.set_verbosity(verbosity)
    return ', '.join(f'{split} {info.num_examples}' for split, info in builder.info.splits.items())


def _write_attribution(folder: pathlib.Path, tasks: list[furniture_views.Task]) -> None:
    lines = [
        '# Attribution',
        '',
        'Renders of 3D models from the furniture libraries of Sweet Home 3D (www.sweethome3d.com).',
        'The models were rendered, and in the variants recoloured; nothing else was changed.',
        '',
    ]
    libraries = {}
    for task in tasks:
        entry = task.entry
        libraries.setdefault((entry.library, entry.licence), {}).setdefault(entry.creator or 'unnamed', []).append(entry.name)
    for (library, licence), creators in sorted(libraries.items()):
        lines += [f'## {library}: {licence}', '']
        lines += [f'* {creator}: {", ".join(sorted(set(names)))}' for creator, names in sorted(creators.items())] + ['']
    (folder / 'ATTRIBUTION.md').write_text('\n'.join(lines), encoding='utf-8')
