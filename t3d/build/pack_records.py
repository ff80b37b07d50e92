"""`t3d data pack`: a folder of posed pictures, or built furniture, as shards of records (t3d.data.sets.records).

A split of the set becomes shards of at most `shard_size` objects in the order of the set, and each shard is one task of one
process. What is written depends on the set and the options alone, so that any number of processes, and a packing that was
interrupted and gone on with, give the same bytes:

    train-00000.array_record ...   whole shards; one that is being written has a name in .part, and is begun anew
    parts/plan.json                the options and the objects of the packing; another one is refused
    parts/train-00000.json         what is said in a finished shard, its bytes and SHA-256, and the objects that were left out
    records.json                   the index, written last, of all parts, which are then removed

Splits that turn out to be the same (val and test of sets without their own) are kept once.
"""

import contextlib
import functools
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from t3d.core import files, shares, strict_json, tokens, workers
from t3d.core.errors import UsageError
from t3d.data import layouts
from t3d.data.sets import caption_words, furniture_source, record_bytes, shards
from t3d.data.sets.posed import NAMED, PosedSource

PARTS, PLAN, LEFT_OUT = 'parts', 'plan.json', 'left_out.json'
SUFFIX = '.array_record'
WRITER = 'group_size:1,uncompressed'  # a record is read alone, and pictures do not pack
SPLITS = ('train', 'val', 'test')  # of posed sets


class Options(NamedTuple):
    """How a set is packed; of a furniture build views, layout and fit are its own."""

    folder: str
    layout: str
    fit: str
    size: int
    views: int  # of a record; 0: as the set has them
    encoding: str

    def open(self, split: str):
        """The source of a split."""
        if furniture_source.is_there(self.folder):
            return furniture_source.FurnitureSource(self.folder, split)
        return PosedSource(self.folder, split, size=self.size, layout=self.layout, fit=self.fit, views_kept=self.views)


class Task(NamedTuple):
    """A shard that is to be written: objects start, ..., stop - 1 of a split."""

    options: Options
    out: pathlib.Path
    split: str
    number: int
    start: int
    stop: int

    @property
    def stem(self) -> str:
        return f'{self.split}-{self.number:05d}'

    @property
    def shard(self) -> pathlib.Path:
        return self.out / (self.stem + SUFFIX)

    @property
    def facts(self) -> pathlib.Path:
        return self.out / PARTS / f'{self.stem}.json'


def run(
    folder: str,
    out: str,
    *,
    shard_size: int = 2000,
    size: int | None = None,
    views: int = 0,
    encoding: str = 'png',
    layout: str = 'auto',
    fit: str = 'auto',
    processes: int = 2,
    share: shares.Share | None = None,
    log: Callable[[str], None] = print,
) -> pathlib.Path:
    """Packs a set, or goes on with a packing, and returns the folder of records.

    Args:
      folder: of posed pictures, or a furniture build.
      shard_size: objects of a shard, those that are left out included.
      size: pixels of the square views; None: 64, of furniture as it was built.
      views, layout, fit: as the keys views_kept, layout and fit of data.name=posed.
      encoding: of pictures, one of record_bytes.ENCODINGS.
      share: packs only the shards of this one of several hosts; a call without writes the index, and packs what is missing.
    Raises:
      UsageError: `out` holds another packing or something else; the set has no object that can be used.
    """
    out, options = files.local(out), Options(str(files.local(folder)), layout, fit, size or 64, views, encoding)
    if furniture_source.is_there(options.folder):
        options = _of_furniture(options, size)
    sources = _open_splits(options)
    plan = _plan(options, sources, shard_size)
    tasks = [
        Task(options, out, split, number, start, min(start + shard_size, len(source)))
        for split, source in sources.items()
        for number, start in enumerate(range(0, len(source), shard_size))
    ]
    asked = share.of(tasks) if share else tasks
    if _begin(out, plan):
        _mend(out, asked, processes, log)
        if not share:
            _tidy(out)
        return out
    waiting = [task for task in asked if not _finished(task)]
    if len(waiting) < len(asked):
        log(f'{len(asked) - len(waiting)} of {len(asked)} shards were packed before')
    for done, stem in enumerate(workers.results(pack, waiting, processes, doing='packing', done='packed'), 1):
        log(f'{stem}{SUFFIX}: {len(asked) - len(waiting) + done} of {len(asked)} shards')
    if share:
        log(f'share {share} is packed; after all shares, the same command without writes the index')
    else:
        _merge(out, plan, tasks, log)
    return out


# --------------------------------------------------------------------------------------------------- what is packed


def _of_furniture(options: Options, size: int | None) -> Options:
    """The options with the place of the build, and its size."""
    if options.views or options.layout != 'auto' or options.fit != 'auto':
        raise UsageError(f'{options.folder} is built furniture: it is packed as it is, without --views, --layout and --fit.')
    options = options._replace(folder=str(furniture_source.find(options.folder, size)))
    built = options.open(_furniture_splits(options)[0])[0]['image'].shape[1]
    if size not in (None, built):
        raise UsageError(f'{options.folder} has views of {built} px: leave --size {size} out.')
    return options._replace(size=built)


def _furniture_splits(options: Options) -> list[str]:
    info = pathlib.Path(options.folder) / furniture_source.INFO
    return [split['name'] for split in strict_json.loads(info.read_bytes(), str(info))['splits']]


def _open_splits(options: Options) -> dict:
    """{split: source} of the splits that a set has."""
    if furniture_source.is_there(options.folder):
        return {split: options.open(split) for split in _furniture_splits(options)}
    root = files.local(options.folder)
    layout, _ = layouts.find(root, options.layout, 'all')
    sources = {}
    for split in SPLITS:
        try:
            layouts.find(root, layout, split)
        except UsageError:  # a set without it
            continue
        sources[split] = options.open(split)
    return sources


def _plan(options: Options, sources: dict, shard_size: int) -> dict:
    """What a packing has to have in common with the one that it goes on with."""
    objects = {}
    for split, source in sources.items():
        digest = hashlib.sha256()
        for index in range(len(source)) if hasattr(source, 'text') else ():
            try:
                digest.update(json.dumps(source.text(index)).encode())
            except UsageError:  # it will be left out
                digest.update(b'?')
        objects[split] = [len(source), digest.hexdigest()]
    told = {name: value for name, value in options._asdict().items() if name != 'folder'}
    return {'format_version': shards.FORMAT, **told, 'shard_size': shard_size, 'objects': objects}


# ---------------------------------------------------------------------------------------------------------- a shard


@functools.lru_cache(8)
def _source(options: Options, split: str):
    """Opened once in each process."""
    return options.open(split)


def pack(task: Task) -> str:
    """Writes a shard, and then what is in it; returns its name."""
    from array_record.python import array_record_module

    source = _source(task.options, task.split)
    read = getattr(source, 'record', source.__getitem__)
    part, count, left_out, captions, views = files.part_of(task.shard), 0, {}, [], 0
    with _writing(part):
        writer = array_record_module.ArrayRecordWriter(str(part), WRITER)
        for index in range(task.start, task.stop):
            try:
                record = read(index)
                _check(record)
                data = record_bytes.encode(record, task.options.encoding, at=[task.number, count])
            except UsageError as error:
                left_out[f'{task.split}/{index}'] = str(error)
                continue
            writer.write(data)
            count, views = count + 1, len(record['image'])
            captions += record['captions']
        writer.close()
    facts = {'records': count, 'views': views, 'left_out': left_out, 'spoken': caption_words.counted(captions)._asdict()}
    facts |= {'bytes': part.stat().st_size, 'sha256': _sha256(part)}
    part.replace(task.shard) if count else part.unlink()
    files.write(task.facts, json.dumps(facts, ensure_ascii=False))
    return task.stem


@contextlib.contextmanager
def _writing(part: pathlib.Path):
    """Names the file where ArrayRecord's writer fails: a full disk is a RuntimeError or ValueError of its own."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        reason = ' '.join(str(error).split())[:120]
        raise UsageError(f'{part} cannot be written ({reason}): make room, then run the same command again.') from error


def _check(record: dict) -> None:
    wordless = [caption for caption in record['captions'] if not tokens.split_words(caption)]
    if wordless or not record['captions']:
        raise UsageError(f'{record["name"]}: {tokens.quoted((*wordless, "")[0])!r} is a caption without a word.')
    lengths = {name: len(value) for name, value in record.items() if isinstance(value, np.ndarray)}
    if len(set(lengths.values())) > 1:
        raise UsageError(f'{record["name"]}: not every array has one entry for each view: {lengths}.')


def _sha256(path: pathlib.Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _finished(task: Task) -> bool:
    """Whether a shard was written whole before."""
    if not task.facts.is_file():
        return False
    facts = strict_json.loads(task.facts.read_bytes(), str(task.facts))  # written whole or not at all
    return not facts['records'] or (task.shard.is_file() and task.shard.stat().st_size == facts['bytes'])


# ------------------------------------------------------------------------------------------------------------ a set


def _begin(out: pathlib.Path, plan: dict) -> bool:
    """Makes or goes on with the folder of a packing; whether it is whole."""
    there = sorted(path.name for path in out.iterdir()) if out.exists() else []  # first: other hosts begin it too
    if (out / shards.INDEX).is_file():
        tree, _ = shards.read_index(shards.root(out))
        _same(out, tree.get('packed'), plan)
        return True
    if (out / PARTS / PLAN).is_file():
        _same(out, strict_json.loads((out / PARTS / PLAN).read_bytes(), str(out / PARTS / PLAN)), plan)
        return False
    if set(there) - {PARTS}:
        raise UsageError(f'{out} holds {", ".join(there[:5])} and no packing that was begun: choose an empty folder.')
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    files.write(out / PARTS / PLAN, json.dumps(plan, indent=1))
    return False


def _same(out: pathlib.Path, there, plan: dict) -> None:
    there = there if isinstance(there, dict) else {}
    wrong = [f'{name} {there.get(name)!r} there, {value!r} now' for name, value in plan.items() if there.get(name) != value]
    if wrong:
        raise UsageError(
            f'{out} is a packing of another set or of other options: {"; ".join(wrong)[:300]}. Give the same, or another --out.'
        )


def _merge(out: pathlib.Path, plan: dict, tasks: list[Task], log) -> None:
    """Writes the index of finished shards, and removes what only going on needs."""
    splits, left_out = {}, {}
    for split in dict.fromkeys(task.split for task in tasks):
        of_split = [task for task in tasks if task.split == split]
        facts = [strict_json.loads(task.facts.read_bytes(), str(task.facts)) for task in of_split]
        left_out |= {name: reason for fact in facts for name, reason in fact['left_out'].items()}
        used = [(task, fact) for task, fact in zip(of_split, facts, strict=True) if fact['records']]
        if used:
            splits[split] = _split(used)
    if not splits:
        raise UsageError(f'no object of the set can be used. {next(iter(left_out.values()))}')
    if left_out:
        files.write(out / LEFT_OUT, json.dumps(left_out, indent=1, ensure_ascii=False))
        told = ' '.join(list(left_out.values())[:NAMED])
        log(f'{len(left_out)} objects are left out, all named in {out / LEFT_OUT}: {told}')
    trees, alike = {}, {}
    for name, split in splits.items():
        same = alike.setdefault(tuple(shard.sha256 for shard in split.shards), name)
        trees[name] = split.tree() if same == name else same
    index = {'format_version': shards.FORMAT, 'size': plan['size'], 'splits': trees, 'packed': plan}
    files.write(out / shards.INDEX, json.dumps(index, indent=1, ensure_ascii=False))
    _tidy(out)
    counts = ', '.join(f'{name} {sum(shard.records for shard in split.shards)}' for name, split in splits.items())
    log(f'packed {out}: {counts} objects of {plan["size"]} px')


def _split(used: list[tuple[Task, dict]]) -> shards.Split:
    """A split, of its shards that hold anything."""
    listed = [shards.Shard(task.shard.name, fact['records'], fact['bytes'], fact['sha256']) for task, fact in used]
    spoken = [caption_words.Spoken(**fact['spoken']) for _, fact in used]
    return shards.Split(used[0][1]['views'], tuple(listed), caption_words.together(spoken))


def _tidy(out: pathlib.Path) -> None:
    """Removes what only going on needs, and shards that the index does not list: those of a split that is another's."""
    _, splits = shards.read_index(shards.root(out))
    listed = {shard.file for split in splits.values() for shard in split.shards}
    for file in out.iterdir():
        if file.name.endswith((SUFFIX, '.part')) and file.name not in listed:
            file.unlink()
    shutil.rmtree(out / PARTS, ignore_errors=True)


def _mend(out: pathlib.Path, tasks: list[Task], processes: int, log) -> None:
    """Packs anew what is missing or damaged of a set that was whole: the same bytes, by their SHA-256."""
    _, splits = shards.read_index(shards.root(out))
    written = {shard.file: shard.sha256 for split in splits.values() for shard in split.shards}

    def whole(task: Task) -> bool:
        return task.shard.is_file() and _sha256(task.shard) == written[task.shard.name]

    wrong = [task for task in tasks if task.shard.name in written and not whole(task)]
    (out / PARTS).mkdir(exist_ok=True)
    for stem in workers.results(pack, wrong, processes, doing='packing', done='packed'):
        log(f'{stem}{SUFFIX}: packed anew')
    other = [task.shard.name for task in wrong if not whole(task)]
    if other:
        raise UsageError(
            f'{out}: {", ".join(other[:NAMED])} cannot be packed as before: the objects were changed since, or Pillow. Pack '
            'the whole set into another --out.'
        )
    log(f'{out} is whole: {len(written)} shards, {len(wrong)} of them packed anew')
