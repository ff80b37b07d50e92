"""A target of tests/fuzz.py: sets of records, damaged in their index, in a shard, and in a record of a shard that is whole."""

import functools
import json
import pathlib
import tempfile

import fuzz_mutations as mutate
import small_posed
from array_record.python import array_record_module

from t3d.build import pack_records
from t3d.core import config as configs
from t3d.data import sources
from t3d.data.sets import records, shards


@functools.cache
def _files() -> tuple[dict, bytes, list[bytes]]:
    """The index of a set of three objects, its only shard of two, and the records in it."""
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        for k in range(3):
            truth = small_posed.look(count=2, size=8, seed=k, fov=small_posed.FIELDS['zero123'])
            small_posed.zero123(root / 'set', truth, f'red_chair{k}')
        out = pack_records.run(str(root / 'set'), str(root / 'out'), size=8, processes=1, log=lambda line: None)
        tree = json.loads((out / shards.INDEX).read_text())
        shard = out / tree['splits']['train']['shards'][0][0]
        reader = array_record_module.ArrayRecordReader(str(shard))
        return tree, shard.read_bytes(), reader.read([0, 1])


def read(source, folder):
    """A set of records with one of its parts damaged, read as a training reads it."""
    tree, shard, inside = _files()
    tree = json.loads(json.dumps({**tree, 'splits': {'train': tree['splits']['train']}}))
    kind, file = source.choice(('index', 'shard', 'record')), folder / 'train-00000.array_record'
    if kind == 'shard':
        shard = mutate.raw(source, shard)
        tree['splits']['train']['shards'][0][2] = max(len(shard), 1)
    file.write_bytes(shard)
    if kind == 'record':
        writer = array_record_module.ArrayRecordWriter(str(file), pack_records.WRITER)
        for data in inside:
            writer.write(mutate.raw(source, data))
        writer.close()
        tree['splits']['train']['shards'][0][2] = file.stat().st_size
    if kind == 'index':
        tree = mutate.tree(source, tree)
    data = json.dumps(tree).encode(errors='replace')
    (folder / shards.INDEX).write_bytes(mutate.raw(source, data) if kind == 'index' and source.random() < 0.3 else data)
    opened = records.RecordsSource(folder, 'train', views_kept=source.choice((0, 2, 3)))
    opened.text(0), opened[len(opened) - 1]
    words = ('data.name=records', f'data.path={folder}', 'data.size=8', 'text.length=32')
    sources.make(sources.resolve(configs.load('instant3d:tiny', words)))
