"""Sets of records: the same examples as the folders that they were packed from, the same bytes however they were packed."""

import gc
import json
import weakref

import numpy as np
import pytest
import small_posed
from small_cli import alone, refusal, said  # noqa: F401
from test_instant3d import SMALL

from t3d.build import pack_records
from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.data import pipeline, sources
from t3d.data.adapters import views
from t3d.data.sets import caption_words, captions, posed, record_bytes, records, shards
from t3d.train import loop

LENS, SIZE, OBJECTS = small_posed.FIELDS['zero123'], 12, 7
WORDS = ('old_chair', 'red_table', 'sofa', 'green_lamp', 'tall_shelf', 'bed', 'round_stool')
TEXT = ('text.open_vocabulary=true', 'text.length=8')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Seven objects of four views."""
    root = tmp_path_factory.mktemp('set')
    for k, name in enumerate(WORDS):
        small_posed.zero123(root, small_posed.look(size=SIZE, seed=k, fov=LENS), name)
    (root / 'captions.json').write_text(json.dumps({'sofa': ['a sofa', 'une belle couche grise'], 'bed': 'ein Bett'}))
    return root


def packed(folder, out, **options):
    options = {'size': SIZE, 'shard_size': 2, 'processes': 1, 'log': lambda line: None} | options
    return pack_records.run(str(folder), str(out), **options)


@pytest.fixture(scope='module')
def set_of(folder, tmp_path_factory):
    """The same, packed two objects a shard."""
    return packed(folder, tmp_path_factory.mktemp('packed') / 'records')


def contents(out):
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob('*')) if file.is_file()}


def config_of(name, path, *overrides, spec='instant3d:tiny'):
    data = (f'data.name={name}', f'data.path={path}', f'data.size={SIZE}', 'data.views=2', 'batch=2', 'preview.rows=2')
    return configs.load(spec, [*data, *(TEXT if not overrides else ()), *overrides])


def same(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == right[name].dtype
            np.testing.assert_array_equal(value, right[name])
        else:
            assert value == right[name]


# ---------------------------------------------------------------------------------------------------- the same examples


@pytest.mark.parametrize('encoding', record_bytes.ENCODINGS)
@pytest.mark.parametrize('split', ['train', 'val', 'test', 'all'])
def test_records_are_those_of_the_folder(folder, tmp_path, split, encoding):
    out = packed(folder, tmp_path / 'r', encoding=encoding)
    ours, theirs = records.RecordsSource(out, split), posed.PosedSource(folder, split, size=SIZE)
    assert len(ours) == len(theirs) == {'train': 6, 'val': 1, 'test': 1, 'all': 7}[split]
    for index in range(len(theirs)):
        same(ours[index], theirs[index])
        assert ours.text(index) == theirs.text(index)
    with pytest.raises(IndexError):
        ours[len(theirs)]
    assert not list(out.glob('test*')) and not (out / 'parts').exists()  # val and test are one here


@pytest.mark.parametrize(
    ('spec', 'overrides'),
    [
        ('instant3d:tiny', ('data.train_views=3',)),
        ('mvdiffusion:tiny', ()),
        ('image_diffusion:tiny', ('data.views=1',)),
        ('instant3d:scenes_rays', ('rays.truth=pixels', 'loss.depth=0', 'data.train_views=3')),
    ],
)
def test_batches_and_previews_are_those_of_the_folder(folder, set_of, spec, overrides):
    made = []
    for name, path in (('posed', folder), ('records', set_of)):
        config = sources.resolve(config_of(name, path, *TEXT, *overrides, spec=spec))
        source, transform = sources.make(config)
        batches = pipeline.make(source, transform, batch=2, seed=3, threads=2)
        rows, texts = sources.preview(config, {})
        assert sources.folder(source) == str(path)
        made.append(([config.text.words, config.export.prompts, texts], [rows, *(next(batches) for _ in range(7))]))
    (told, arrays), (told_too, arrays_too) = made
    assert told == told_too and len(told[0]) == 16
    for ours, theirs in zip(arrays_too, arrays, strict=True):
        same(ours, theirs)


def test_a_position_goes_on_and_processes_read_disjoint_rows(set_of):
    source, transform = sources.make(config_of('records', set_of, *TEXT, 'data.split=all', 'data.views=4'))
    numbered = lambda record, random: transform(record, random) | {'pixel': record['image'].astype(np.int64).sum()}

    def take(count, **where):
        batches = pipeline.make(source, numbered, batch=2, seed=0, **where)
        return [next(batches) for _ in range(count)]

    whole, halves = take(7), [take(7, process_index=p, process_count=2) for p in (0, 1)]
    for n in range(7):
        same({name: np.concatenate([half[n][name] for half in halves]) for name in whole[n]}, whole[n])
    sums = sorted(int(source[k]['image'].astype(np.int64).sum()) for k in range(OBJECTS))
    assert len(set(sums)) == OBJECTS  # so that a row is known by its pixels
    read = np.concatenate([batch['pixel'] for batch in whole]).tolist()  # two epochs of seven
    assert sorted(read[:OBJECTS]) == sorted(read[OBJECTS:]) == sums
    for ours, theirs in zip(take(3, start=4, threads=3), whole[4:], strict=True):
        same(ours, theirs)


def test_fewer_views_are_evenly_spread_ones(folder, set_of, tmp_path):
    theirs = posed.PosedSource(folder, 'train', size=SIZE, views_kept=2)
    same(records.RecordsSource(set_of, 'train', views_kept=2)[3], theirs[3])
    same(records.RecordsSource(packed(folder, tmp_path / 'r', views=2), 'train')[3], theirs[3])


def test_a_training_reads_them(set_of, tmp_path):
    few = ('steps=2', 'preview_every=2', 'preview.views=1', 'text.length=8', f'data.path={set_of}', 'mesh.data=1')
    config = configs.load('instant3d:tiny', [*SMALL, 'data.name=records', f'data.size={SIZE}', 'preview.rows=2', *few])
    lines = []
    run = loop.run(sources.resolve(config), tmp_path / 'run', log=lines.append)
    assert any(f'data: records, split train, 6 records of {set_of}' in line for line in lines)
    assert json.loads((run / 'metrics.jsonl').read_text().splitlines()[-1])['step'] == 2


# ------------------------------------------------------------------------------------------------- what stays in memory


def test_opening_reads_no_record_and_few_shards_stay_open(set_of, monkeypatch):
    source = records.RecordsSource(set_of, 'all')
    assert len(source) == OBJECTS and source.spoken.captions == 8 and source.shards.opened == 0
    views.words(config := config_of('records', set_of)), list(views.captions(config))
    adapted, _ = sources.make(config)
    assert adapted.source.shards.opened == 1  # the first record, whose cameras are looked at
    [source[k] for k in range(OBJECTS)]
    assert source.shards.opened == 4
    few = shards.Shards(source.shards.folder, source.shards.shards, most=2)
    for number in (0, 1, 0, 2, 0, 1):  # 1 was closed for 2
        few.read(number, 0)
    assert few.opened == 4


def test_no_record_stays_in_memory(folder, set_of):
    def lives(name, path):
        source, _ = sources.make(config_of(name, path))
        pixels = weakref.ref(source[0]['image'])
        gc.collect()
        return pixels() is not None

    assert not lives('records', set_of) and lives('posed', folder)


def test_counts_of_parts_are_those_of_the_whole(set_of):
    said_there = [text for k in range(OBJECTS) for text in records.RecordsSource(set_of, 'all').text(k)['captions']]
    whole = caption_words.counted(said_there)
    assert list(whole.words) == captions.vocabulary(said_there) and whole.captions == len(said_there)
    assert whole.longest == ('une belle couche grise',) and set(whole.first) == set(said_there)
    for cut in range(len(said_there)):
        assert caption_words.together(map(caption_words.counted, (said_there[:cut], said_there[cut:]))) == whole
    assert records.RecordsSource(set_of, 'all').spoken == whole


def test_captions_that_a_model_cannot_read_are_refused_before_training(set_of, capsys):
    with pytest.raises(UsageError, match='has 4 words or word pieces, the model reads 2: "couche grise" would be dropped'):
        sources.make(config_of('records', set_of, 'text.length=4', 'text.open_vocabulary=true'))
    with pytest.raises(UsageError, match='a caption cannot be read: words this model was not trained on'):
        sources.make(config_of('records', set_of, 'text.length=8', 'text.words=("a",)'))
    sources.make(config_of('records', set_of, *TEXT, 'text.words=("sofa","a","chair","old")'))
    assert 'its 7 captions say 12 times words that text.words lacks' in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------- packing


def test_any_number_of_processes_and_an_interruption_give_the_same_bytes(folder, set_of, tmp_path, monkeypatch):
    assert contents(packed(folder, tmp_path / 'three', processes=3)) == contents(set_of)
    encode, out, count = record_bytes.encode, tmp_path / 'again', iter(range(100))

    def stopping(*args, **facts):
        if next(count) == 3:
            raise KeyboardInterrupt
        return encode(*args, **facts)

    monkeypatch.setattr(record_bytes, 'encode', stopping)
    with pytest.raises(KeyboardInterrupt):
        packed(folder, out)
    monkeypatch.setattr(record_bytes, 'encode', encode)
    assert list(out.glob('train-00001*.part')) and not (out / 'records.json').exists()
    with pytest.raises(FileNotFoundError, match='the same command again ends a packing that was interrupted'):
        records.RecordsSource(out, 'train')
    with pytest.raises(UsageError, match="packing of another set or of other options: encoding 'png' there, 'raw' now"):
        packed(folder, out, encoding='raw')
    first, lines = (out / 'train-00000.array_record').stat().st_mtime_ns, []
    packed(folder, out, log=lines.append)
    assert lines[0] == '1 of 5 shards were packed before' and contents(out) == contents(set_of)
    assert (out / 'train-00000.array_record').stat().st_mtime_ns == first


def test_what_is_lost_of_a_whole_set_is_packed_anew(folder, set_of, tmp_path):
    out = packed(folder, tmp_path / 'r')
    (out / 'train-00000.array_record').unlink()
    flip(out / 'train-00002.array_record', 70_000)
    lines = []
    packed(folder, out, log=lines.append)
    assert lines[-1].endswith('is whole: 4 shards, 2 of them packed anew') and contents(out) == contents(set_of)


def test_a_bad_object_is_named_counted_and_left_out(tmp_path, capsys):
    for k, name in enumerate(WORDS[:4]):
        small_posed.zero123(tmp_path / 's', small_posed.look(size=SIZE, seed=k, fov=LENS), name)
    for file in (tmp_path / 's' / 'red_table').glob('*.png'):
        file.write_bytes(file.read_bytes()[:40])
    (tmp_path / 's' / 'sofa' / 'caption.txt').write_text('...\n')
    text = said(capsys, 'data', 'pack', str(tmp_path / 's'), '--out', str(tmp_path / 'r'), '--size', '12', '--processes', '1')
    assert '3 objects are left out' in text and 'red_table' in text and "'...' is a caption without a word" in text
    assert text.endswith('train 2 objects of 12 px\n')  # the sofa was the last 1 %
    assert sorted(json.loads((tmp_path / 'r' / 'left_out.json').read_text())) == ['test/0', 'train/2', 'val/0']
    assert [records.RecordsSource(tmp_path / 'r', 'all')[k]['name'] for k in (0, 1)] == ['green_lamp', 'old_chair']
    with pytest.raises(UsageError, match="data.split='val' of .*: it has train, all"):
        records.RecordsSource(tmp_path / 'r', 'val')
    for word, flag in (('0', '--shard-size'), ('2', '--size')):
        assert flag in refusal(capsys, 'data', 'pack', str(tmp_path / 's'), '--out', str(tmp_path / 'x'), flag, word)
    assert 'no packing that was begun' in refusal(capsys, 'data', 'pack', str(tmp_path / 's'), '--out', str(tmp_path))


# ---------------------------------------------------------------------------------------------------------------- damage


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def edit(path, change):
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


DAMAGE = {
    'truncated': (
        lambda out: cut(out / 'train-00000.array_record'),
        'has 131000 bytes, records.json says 131072: it is trunc',
    ),
    'missing': (lambda out: (out / 'train-00000.array_record').unlink(), 'is missing, one of 3 shards that records.json lists'),
    'flipped': (lambda out: flip_all(out / 'train-00000.array_record'), 'has 0 records, records.json says 2: it is damaged'),
    'swapped': (lambda out: swap(out), 'was written as another record: the file was renamed'),
    'recounted': (
        lambda out: edit(out / 'records.json', lambda tree: tree['splits']['train']['shards'][0].__setitem__(1, 3)),
        'has 2 records, records.json says 3: it is damaged, or of another packing',
    ),
    'newer': (
        lambda out: edit(out / 'records.json', lambda tree: tree.update(format_version=9)),
        'has format 9.* update t3d',
    ),
    'no index': (
        lambda out: (out / 'records.json').write_text('{}'),
        'is no index of records .KeyError: .splits..: copy it',
    ),
    'no JSON': (lambda out: (out / 'records.json').write_text('{'), 'records.json is no JSON'),
    'gone': (lambda out: (out / 'records.json').unlink(), 'no records in .*make them with `t3d data pack FOLDER --out'),
    'leads out': (
        lambda out: edit(out / 'records.json', lambda tree: tree['splits']['train']['shards'][0].__setitem__(0, '../a-0')),
        'is no index of records .ValueError: the shard',
    ),
}


def cut(path):
    path.write_bytes(path.read_bytes()[:131000])


def flip_all(path):
    data = bytearray(path.read_bytes())
    path.write_bytes(bytes(byte ^ 0x10 if 200 < k < 3000 else byte for k, byte in enumerate(data)))


def swap(out):
    one, two = out / 'train-00000.array_record', out / 'train-00001.array_record'
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second), two.write_bytes(first)


@pytest.mark.parametrize('kind', DAMAGE)
def test_damage_is_told_in_one_sentence_with_what_to_do(folder, tmp_path, kind):
    out = packed(folder, tmp_path / 'r')
    change, says = DAMAGE[kind]
    change(out)
    with pytest.raises(UsageError, match=says) as error:
        source, transform = sources.make(config_of('records', out))
        batches = pipeline.make(source, transform, batch=2, seed=0)
        [next(batches) for _ in range(3)]
    assert 'Traceback' not in str(error.value) and ('again' in str(error.value) or kind in ('newer', 'gone', 'no JSON'))


def test_no_flipped_bit_changes_a_record_unnoticed(folder, tmp_path):
    out = packed(folder, tmp_path / 'r')
    true = [records.RecordsSource(out, 'train')[k] for k in (0, 1)]
    file, random, told = out / 'train-00000.array_record', np.random.default_rng(0), 0
    whole = file.read_bytes()
    used = max(k for k, byte in enumerate(whole[:65536]) if byte)
    for at in [*random.integers(0, used, 150), *random.integers(65536, len(whole), 50)]:
        file.write_bytes(whole)
        flip(file, at)
        try:
            for k in (0, 1):
                same(records.RecordsSource(out, 'train')[k], true[k])
        except UsageError as error:
            told += 'again from where it was packed' in str(error)
    assert 100 < told < 200  # what is not read of a file, or is redundant, may change


def test_a_wrong_path_split_or_size_is_told(set_of, monkeypatch):
    for path, says in (
        ('', 'needs data.path'),
        (set_of.parent / 'none', 'no records in'),
        (set_of / 'records.json', 'no records'),
    ):
        with pytest.raises(UsageError, match=says):
            records.RecordsSource(path, 'train')
    with pytest.raises(UsageError, match="data.split='dev' of .*: it has train, val, test, all"):
        records.RecordsSource(set_of, 'dev')
    with pytest.raises(UsageError, match='has views of 12 px, the config wants data.size=64: set data.size=12'):
        records.RecordsSource(set_of, 'train', size=64)
    monkeypatch.setattr(shards.files, 'path', lambda text: text)
    with pytest.raises(UsageError, match='Mount the bucket and give its folder'):
        records.RecordsSource('s3://bucket/set', 'train')


def test_bytes_of_a_record_come_back_or_are_refused():
    random = np.random.default_rng(0)
    record = {
        'image': random.integers(0, 256, (3, 5, 5, 4), np.uint8),  # colours under alpha 0 too
        'depth': random.uniform(0.0, 4.0, (3, 40, 40)).astype(np.float32),
        'intrinsics': random.normal(size=(3, 3, 3)),
        'captions': ('ein Würfel', 'a "cube"'),
        'name': 'ü/0',
        'attributes': {'colour': 'red'},
    }
    record['image'][0, :2, :2, 3] = 0
    for encoding in record_bytes.ENCODINGS:
        data = record_bytes.encode(record, encoding, at=[1, 2])
        same(record_bytes.decode(data, 'x'), {**record, 'at': [1, 2]})
        assert data == record_bytes.encode(record, encoding, at=[1, 2])
        for end in range(0, len(data), 97):
            with pytest.raises(UsageError):
                record_bytes.decode(data[:end], 'x')
        for at in random.integers(0, len(data), 300):
            changed = bytearray(data)
            changed[at] ^= 1 << random.integers(8)
            try:
                record_bytes.decode(bytes(changed), 'x')
            except UsageError as error:
                assert str(error).startswith('x')
    with pytest.raises(UsageError, match='wanted numbers of .u1'):
        record_bytes.encode({**record, 'depth': np.array(['a'])}, 'raw')
