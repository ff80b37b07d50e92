import dataclasses
import json
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from t3d.build import pack_records
from t3d.core import shares
from t3d.core.errors import UsageError
from t3d.data.sets import captions, furniture, furniture_source, furniture_views, objmesh, raycast, records, sweethome
from t3d.geom import cameras

SIZE = 16
NOUNS = ('lamp', 'red chair', 'oven', 'table', 'desk', 'crib', 'kettle', 'sofa', 'shelf', 'bench', 'stool', 'bed')
BOX = """mtllib m.mtl
v 0 0 0
v 1 0 0
v 1 {height} 0
v 0 {height} 0
v 0 0 1
v 1 0 1
v 1 {height} 1
v 0 {height} 1
usemtl main
f 1 4 3 2
f 1 2 6 5
f 4 8 7 3
f 1 5 8 4
f 2 3 7 6
usemtl front
f 5 6 7 8
"""
MATERIALS = 'newmtl main\nKd 0.15 0.3 0.8\nnewmtl front\nKd 0.9 0.1 0.1\n'


def make_library(path: pathlib.Path) -> pathlib.Path:
    """Blue boxes with a red front; unused vertices set their signatures apart, but for the first two, which look alike."""
    catalogue = []
    with zipfile.ZipFile(path, 'w') as archive:
        for number, noun in enumerate(NOUNS, 1):
            unused = 'v 9 9 9\n' * max(number, 2)
            archive.writestr(f'm{number}/a.obj', BOX.format(height=0.5 + 0.25 * number) + unused)
            archive.writestr(f'm{number}/m.mtl', MATERIALS)
            catalogue += [
                f'id#{number}=T#o{number}',
                f'name#{number}={noun.title()}',
                f'model#{number}=/m{number}/a.obj',
                f'category#{number}=Room',
                f'tags#{number}=Thing',
                f'creator#{number}=Maker',
            ]
        archive.writestr(sweethome.CATALOGUE, '\n'.join(catalogue))
    return path


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp('furniture')
    library = make_library(root / 'Mine.sh3f')
    folder = furniture.build(str(library), str(root / 'data'), SIZE, variants=2, processes=1)
    return root, library, folder


def every_record(folder):
    sources = {split: furniture_source.FurnitureSource(folder, split) for split in present(folder)}
    return {split: [source[index] for index in range(len(source))] for split, source in sources.items()}


def present(folder):
    return [split['name'] for split in json.loads((folder / 'dataset_info.json').read_text())['splits']]


def test_a_record_has_the_shapes_and_the_rig_of_the_contract(built):
    source = furniture_source.FurnitureSource(built[0] / 'data', 'train')
    record = source[0]
    assert record['image'].shape == (16, SIZE, SIZE, 4) and record['image'].dtype == np.uint8
    assert record['depth'].shape == (16, SIZE, SIZE) and record['depth'].dtype == np.float32
    rig = cameras.orbit(record['azimuth'], record['elevation'], furniture_views.CAMERA_RADIUS, furniture_views.FOV)
    np.testing.assert_allclose(record['world_from_cam'], rig.world_from_cam, atol=1e-6)
    np.testing.assert_allclose(record['intrinsics'], rig.intrinsics, atol=1e-6)
    np.testing.assert_allclose(np.degrees(record['azimuth'][: furniture.TRAIN_VIEWS]), np.arange(12) * 30.0, atol=1e-4)
    np.testing.assert_allclose(np.degrees(record['elevation'][:6]), [0, 15, 30, 0, 15, 30], atol=1e-4)
    assert isinstance(record['captions'], tuple) and record['attributes']['noun'] in record['captions'][0]
    assert record['name'].startswith('Mine.o')
    with pytest.raises(IndexError, match='example 999'):
        source[999]


def test_packed_records_are_those_of_the_build(built, tmp_path):
    out = pack_records.run(str(built[0] / 'data'), str(tmp_path / 'r'), shard_size=5, processes=1, log=lambda line: None)
    theirs = every_record(built[2])
    for split, examples in theirs.items():
        source = records.RecordsSource(out, split, size=SIZE)
        assert len(source) == len(examples)
        for index, example in enumerate(examples):
            record = source[index]
            assert record.keys() == example.keys()
            for name, value in example.items():
                np.testing.assert_array_equal(record[name], value)
                assert getattr(record[name], 'dtype', None) == getattr(value, 'dtype', None)
    assert len(records.RecordsSource(out, 'all')) == sum(map(len, theirs.values()))
    with pytest.raises(UsageError, match='has views of 16 px: leave --size 32 out'):
        pack_records.run(str(built[2]), str(tmp_path / 'other'), size=32)
    with pytest.raises(UsageError, match='packed as it is, without --views, --layout and --fit'):
        pack_records.run(str(built[2]), str(tmp_path / 'other'), views=2)


def test_view_zero_is_the_front_and_depth_is_planar(built):
    for record in every_record(built[2])['train']:
        if record['attributes']['variant'] != '0':
            continue
        front, back = (record['image'][view][SIZE // 2, SIZE // 2].astype(int) for view in (0, 6))
        assert front[0] > front[2] and back[2] > back[0]
        for view in (0, 6):
            inside = record['depth'][view][record['depth'][view] > 0]
            assert np.ptp(inside) < 2e-4  # a face across the view has one planar depth
            assert 3.5 - 0.9 < inside.min() < 3.5


def test_what_is_stored_is_what_was_rendered(built, tmp_path):
    _, library, folder = built
    opened = sweethome.open_libraries(library, tmp_path)[0]
    entry = opened.entries()[3]
    records = [record for members in every_record(folder).values() for record in members]
    record = next(record for record in records if record['name'] == entry.object_id)
    mesh = objmesh.load(entry.model, opened.read)
    scene = raycast.Scene(dataclasses.replace(mesh, positions=raycast.fit_sphere(mesh.positions, 0.9)), opened.read)
    for view in (0, 13):
        pose, lens = record['world_from_cam'][view], record['intrinsics'][view]
        hits = raycast.view_hits(scene, pose, lens, SIZE, furniture_views.SUPERSAMPLE)
        rendered = raycast.image(hits, hits.albedo, SIZE, furniture_views.SUPERSAMPLE)
        np.testing.assert_array_equal(record['image'][view], rendered)
        np.testing.assert_allclose(
            record['depth'][view], raycast.planar_depth(scene, pose, lens, SIZE), atol=0.51 * furniture_views.DEPTH_STEP
        )


def test_splits_never_share_nouns_look_alikes_or_pairs(built):
    records = every_record(built[2])
    assert sum(map(len, records.values())) == 3 * len(NOUNS)
    nouns = {split: {record['attributes']['noun'] for record in members} for split, members in records.items()}
    for split in ('val', 'test'):
        assert not nouns.get(split, set()) & nouns['train']
    where = {
        record['attributes']['noun']: split for split, members in records.items() for record in members if split != 'test_combo'
    }
    assert where['lamp'] == where['red chair']  # equal triangle, vertex and part counts
    pairs = {
        split: {(record['attributes']['noun'], record['attributes']['colour']) for record in members}
        for split, members in records.items()
    }
    assert not pairs.get('test_combo', set()) & pairs['train']
    assert nouns.get('test_combo', set()) <= nouns['train']


def test_held_out_pairs_follow_the_rule_and_leave_every_noun_in_training():
    examples = [
        {'object_id': f'o{number}', 'noun': f'noun{number}', 'colour': colour, 'signature': (number,)}
        for number in range(200)
        for colour in ('', *captions.PALETTE)
    ]
    splits = furniture.assign_splits(examples)
    train = {(example['noun'], example['colour']) for example, split in zip(examples, splits) if split == 'train'}
    combo = {(example['noun'], example['colour']) for example, split in zip(examples, splits) if split == 'test_combo'}
    assert len(combo) > 100 and {noun for noun, _ in combo} <= {noun for noun, _ in train}
    assert {colour for _, colour in combo} <= {colour for _, colour in train}
    assert all(sweethome.bucket(f'{noun}|{colour}', 8) == 0 for noun, colour in combo)
    alone = [example for example in examples if (example['noun'], example['colour']) in combo]
    alone = list({example['noun']: example for example in alone}.values())
    assert set(furniture.assign_splits(alone)) == {'train'}  # a noun with nothing else to learn it from


def test_recoloured_variants_wear_their_colour(built):
    seen = 0
    for members in every_record(built[2]).values():
        for record in members:
            colour, back = record['attributes']['colour'], record['image'][6][SIZE // 2, SIZE // 2, :3] / 255.0
            if record['attributes']['variant'] == '0':
                continue
            seen += 1
            target = np.array(captions.PALETTE[colour])
            np.testing.assert_allclose(back / back.max(), target / target.max(), atol=0.03)
            assert record['name'].endswith('/' + colour) and f'a {colour} {record["attributes"]["noun"]}' in ' '.join(
                record['captions']
            ).replace('an ', 'a ')
            assert colour != 'blue'  # that is what it was
    assert seen == 2 * len(NOUNS)


def test_recolouring_keeps_texture_as_brightness():
    albedo = np.array([[[0.2, 0.2, 0.2], [0.4, 0.4, 0.4], [0.9, 0.0, 0.0]]], np.float32)
    hits = raycast.Hits(np.array([[1, 1, 0]]), albedo, np.ones((1, 3)), np.ones((1, 3)), np.ones((1, 3)))
    statistics = {'part': 1, 'luminance': 0.3}
    result = furniture_views.recolour(hits, statistics, (0.0, 0.3, 0.9))
    np.testing.assert_allclose(result[0], [[0, 0.2, 0.6], [0, 0.4, 1.0], [0.9, 0, 0]], atol=1e-6)


def same(folder, other):
    """The same examples in every split of two builds."""
    for split in present(folder):
        first, second = furniture_source.FurnitureSource(folder, split), furniture_source.FurnitureSource(other, split)
        assert len(first) == len(second)
        for index in range(len(first)):
            for key, value in first[index].items():
                np.testing.assert_array_equal(value, second[index][key])


def test_the_build_is_deterministic_and_done_once(built, tmp_path, capsys):
    root, library, folder = built
    assert furniture.build(str(library), str(root / 'data'), SIZE, variants=2, processes=1) == folder
    assert 'already built' in capsys.readouterr().out
    again = furniture.build(str(library), str(tmp_path), SIZE, variants=2, processes=2)
    assert [file.name for file in again.parent.iterdir()] == [furniture_source.VERSION]  # nothing is left lying about
    same(folder, again)


def test_an_interrupted_build_continues(built, tmp_path, monkeypatch, capsys):
    _, library, folder = built
    render, calls = furniture_views.render_object, []

    def stop_at_the_fifth(task):
        calls.append(task.entry.object_id)
        if len(calls) == 5:
            task.target.with_suffix('.partial').write_bytes(b'half a file')
            raise KeyboardInterrupt
        return render(task)

    monkeypatch.setattr(furniture_views, 'render_object', stop_at_the_fifth)
    arguments = {'source': str(library), 'out': str(tmp_path), 'size': SIZE, 'variants': 2, 'processes': 1}
    with pytest.raises(KeyboardInterrupt):
        furniture.build(**arguments)
    with pytest.raises(FileNotFoundError, match='nothing built'):
        furniture_source.find(tmp_path)
    resumed = furniture.build(**arguments)
    assert '4 of 12 objects were rendered before' in capsys.readouterr().out
    assert len(calls) == 5 + len(NOUNS) - 4 and calls.count(calls[4]) == 2
    assert present(resumed) == present(folder)


def test_hosts_render_their_shares(built, tmp_path, monkeypatch, capsys):
    _, library, folder = built
    arguments = {'source': str(library), 'out': str(tmp_path), 'size': SIZE, 'variants': 2, 'processes': 1}
    render, calls = furniture_views.render_object, []
    monkeypatch.setattr(furniture_views, 'render_object', lambda task: calls.append(task.entry.object_id) or render(task))
    for number in (2, 0):
        furniture.build(**arguments, share=shares.Share(number, 3))
    assert len(calls) == 8 and '4 of' not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match='nothing built'):
        furniture_source.find(tmp_path)
    built_here = furniture.build(**arguments)  # what the third would have rendered, and the set
    assert '8 of 12 objects were rendered before' in capsys.readouterr().out and len(set(calls)) == len(calls) == 12
    same(folder, built_here)


def test_damage_is_named_and_repaired_by_the_same_command(built, tmp_path, capsys):
    _, library, _ = built
    arguments = {'source': str(library), 'out': str(tmp_path), 'size': SIZE, 'limit': 3, 'processes': 1}
    folder = furniture.build(**arguments)
    split = present(folder)[0]
    data = next(folder.glob(f'*-{split}.array_record*'))
    whole = data.read_bytes()
    middle = len(whole) // 2 - len(whole) % 2
    data.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    source = furniture_source.FurnitureSource(tmp_path, split)
    with pytest.raises(ValueError, match=r'does not read back as it was written .* delete the folder'):
        [source[index] for index in range(len(source))]
    for name in (furniture_source.SIZES, 'dataset_info.json', 'features.json'):
        good = (folder / name).read_bytes()
        for damage in (b'[' * len(good), b'[]'.ljust(len(good)), b'{}'.ljust(len(good)), b'\xff' * len(good)):
            (folder / name).write_bytes(damage)
            with pytest.raises(ValueError, match='run `t3d data build furniture` again|is no JSON'):
                furniture_source.FurnitureSource(tmp_path, split)
        (folder / name).write_bytes(good)
    data.write_bytes(whole[:1000])
    with pytest.raises(ValueError, match=f'has 1000 bytes, but {len(whole)} were written: it is truncated.* again'):
        furniture_source.FurnitureSource(tmp_path, split)
    data.unlink()
    with pytest.raises(ValueError, match=r'array_record.* is missing: run `t3d data build furniture`'):
        furniture_source.FurnitureSource(tmp_path, split)
    furniture.build(**arguments)
    assert 'building again, because' in capsys.readouterr().out
    assert len(furniture_source.FurnitureSource(tmp_path, split)) > 0


def test_bad_arguments_are_answered(built, tmp_path):
    root, library, folder = built
    with pytest.raises(FileNotFoundError, match=r'no furniture data under .*\(there: nothing built\): run `t3d data build'):
        furniture_source.FurnitureSource(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf'no furniture data size=64 .*there: {SIZE}px_recolour2'):
        furniture_source.FurnitureSource(root / 'data', size=64)
    with pytest.raises(FileNotFoundError, match='--size 64 --variants 7 --out '):
        furniture_source.FurnitureSource(root / 'data', size=64, variants=7)
    with pytest.raises(ValueError, match="split='dev' of .*: choose one of"):
        furniture_source.FurnitureSource(folder, 'dev')
    with pytest.raises(ValueError, match='choose 0 .originals only. to 7'):
        furniture.build(str(library), str(tmp_path), variants=9)
    with pytest.raises(ValueError, match='choose one of all, cc0'):
        furniture.build(str(library), str(tmp_path), license='gpl')
    with pytest.raises(ValueError, match='choose 8 to 1024'):
        furniture.build(str(library), str(tmp_path), size=4)
    with pytest.raises(ValueError, match='no object under license'):
        furniture.build(str(library), str(tmp_path), size=SIZE, license='cc0', processes=1)
    with pytest.raises(FileNotFoundError, match='no furniture source at'):
        furniture.build(str(tmp_path / 'gone.deb'), str(tmp_path), size=SIZE)
    assert furniture_source.find(root / 'data', size=SIZE, variants=2) == folder


def test_attribution_names_creator_and_licence(built):
    text = (built[2] / 'ATTRIBUTION.md').read_text()
    assert '## Mine: see the library' in text and '* Maker: ' in text and 'Kettle' in text


def test_sources_pickle_for_worker_processes(built):
    source = furniture_source.FurnitureSource(built[2], 'train')
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[1]['image'], source[1]['image'])


def test_reading_needs_no_tensorflow(built):
    code = (
        f'import sys; from t3d.data.sets import furniture_source as fs; fs.FurnitureSource({str(built[2])!r}, "train")[0]; '
        'assert not {"tensorflow", "torch", "embreex"} & set(sys.modules)'
    )
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120)


@pytest.mark.data
def test_twenty_real_objects(tmp_path):
    folder = furniture.build(os.environ['T3D_FURNITURE'], str(tmp_path), 32, variants=1, limit=20)
    records = every_record(folder)
    originals = [record for members in records.values() for record in members if record['attributes']['variant'] == '0']
    assert len(originals) == 20
    share = np.mean(
        [
            captions.PALETTE.keys() >= {record['attributes']['colour']}
            for members in records.values()
            for record in members
            if record['attributes']['variant'] != '0'
        ]
    )
    assert share == 1.0
    for record in originals:
        assert (record['image'][:, [0, -1], :, 3] == 0).all()  # nothing touches the frame
        covered = (record['image'][..., 3] > 0).mean((1, 2))
        assert covered.max() > 0.003
