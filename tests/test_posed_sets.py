"""What a set of posed objects is: captions, splits, views of a record, its place in the box, batches, the check command."""

import json

import numpy as np
import pytest
import small_posed
from PIL import Image
from small_cli import alone, refusal, said  # noqa: F401

from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.core.outputs import Views
from t3d.data import layouts, pipeline, sources
from t3d.data.adapters import single_view
from t3d.data.layouts import scene, world
from t3d.data.sets import camera_labels, posed, posed_captions
from t3d.export import writers
from t3d.plan import dry_run

LENS = small_posed.FIELDS['zero123']


@pytest.fixture
def folder(tmp_path):
    """Three objects of four views, 12 pixels."""
    root = tmp_path / 'set'
    root.mkdir()
    for k, name in enumerate(('red_chair', '0a3f4455aa', 'sofa')):
        small_posed.zero123(root, small_posed.look(size=12, seed=k, fov=LENS), name)
    return root


# ------------------------------------------------------------------------------------------------------------- captions


def test_captions_come_from_json_csv_text_or_the_name(folder):
    def captions():
        source = posed.PosedSource(folder, 'all', size=12)
        return {source.text(k)['name']: source.text(k)['captions'] for k in range(3)}, source.made_captions()

    names = {'red_chair': ('red chair',), '0a3f4455aa': ('an object',), 'sofa': ('sofa',)}
    assert captions() == (names, {name: texts[0] for name, texts in names.items()})
    (folder / 'captions.csv').write_bytes(
        '\ufeffuid,caption\r\nred_chair,"a chair, red"\r\nred_chair,ein Stühlchen\r\n'.encode()
    )
    table, made = captions()
    assert table['red_chair'] == ('a chair, red', 'ein Stühlchen') and 'red_chair' not in made
    (folder / 'captions.json').write_text(json.dumps({'0a3f4455aa': 'a ball', 'sofa': ['a sofa', ' a couch ']}))
    (folder / 'red_chair' / 'caption.txt').write_text('a seat\n\nof wood \n')
    assert captions() == (
        {'red_chair': ('a seat', 'of wood'), '0a3f4455aa': ('a ball',), 'sofa': ('a sofa', 'a couch')},
        {},
    )


@pytest.mark.parametrize(
    ('name', 'content', 'says'),
    [
        ('captions.json', b'["a"]', 'holds a list: wanted {object: caption}'),
        ('captions.json', b'{"sofa": 3}', 'is no caption: wanted a text, or a list of texts'),
        ('captions.json', b'{"sofa": [""]}', 'is no caption'),
        ('captions.json', b'{"sofa": "a", "sofa": "b"}', "has the key 'sofa' twice"),
        ('captions.csv', b'sofa,a couch,red\n', 'line 1: 3 columns, wanted 2'),
        ('captions.csv', b'sofa,caf\xe9\n', 'is no UTF-8'),
        ('sofa/caption.txt', b'caf\xe9\n', 'is no UTF-8'),
    ],
)
def test_wrong_captions_are_refused(folder, name, content, says):
    (folder / name).write_bytes(content)
    with pytest.raises(UsageError, match=says):
        posed.PosedSource(folder, 'all', size=12).text(2)


NAMES = {
    'old_chair-02': 'old chair 02', 'RedCube': 'red cube', 'Würfel': 'würfel', '00017': 'an object', 'deadbeef': 'an object',
    'x': 'an object', '110_13051_23361': 'an object', '_-_': 'an object',
}  # fmt: skip


@pytest.mark.parametrize('name, words', NAMES.items())
def test_names_made_words(name, words):
    assert posed_captions.in_words(name) == words


# --------------------------------------------------------------------------------------------------------------- splits


def test_splits_are_those_of_the_set_or_stated(tmp_path):
    entries = [scene.Entry(str(k), tmp_path, None) for k in range(300)]
    sizes = {split: len(scene.divided(entries, split).entries) for split in scene.SPLITS}
    assert sizes == {'train': 297, 'val': 3, 'test': 3, 'all': 300}
    assert [entry.name for entry in scene.divided(entries[:2], 'val').entries] == ['1']
    for count, (train, test) in {16: (14, 2), 9: (7, 2), 7: (7, 7)}.items():
        small_posed.ours(tmp_path / str(count), small_posed.look(count=count, size=8))
        both = [posed.PosedSource(tmp_path / str(count), split, size=8)[0]['world_from_cam'] for split in ('train', 'test')]
        assert [len(pose) for pose in both] == [train, test]
        shared = {pose.tobytes() for pose in both[0]} & {pose.tobytes() for pose in both[1]}
        assert bool(shared) == (count < scene.HELD_OUT)
    small_posed.nerf_synthetic(tmp_path / 'n', small_posed.look(size=8))
    assert layouts.find(tmp_path / 'n', 'auto', 'test')[1].rule.startswith('the views of transforms_')
    with pytest.raises(UsageError, match="no objects of split 'val'"):
        layouts.find(tmp_path / 'n', 'auto', 'val')


def test_splits_of_srn_and_co3d(tmp_path):
    truth = small_posed.look(size=8)
    for split, names in {'cars_train': 'ab', 'cars_val': 'c', 'cars_test': 'd'}.items():
        for name in names:
            small_posed.srn(tmp_path / 'srn' / split, truth, name)
    small_posed.srn(tmp_path / 'srn' / 'chairs_train' / 'chairs_2.0_train', truth, 'e')
    names = {split: [e.name for e in layouts.find(tmp_path / 'srn', 'auto', split)[1].entries] for split in scene.SPLITS}
    assert names['train'] == ['cars_train/a', 'cars_train/b', 'chairs_train/chairs_2.0_train/e']
    assert names['val'] == ['cars_val/c'] and names['test'] == ['cars_test/d'] and len(names['all']) == 5
    small_posed.co3d(tmp_path / 'co3d', truth)
    assert len(posed.PosedSource(tmp_path / 'co3d', 'train', size=8)[0]['image']) == 3
    whole = posed.PosedSource(tmp_path / 'co3d' / 'chair', 'val', size=8)  # the category itself
    assert len(whole[0]['image']) == 1 and whole[0]['captions'] == ('a chair',)


def test_a_record_has_as_many_views_as_asked_for(tmp_path):
    for k, count in enumerate((4, 6, 3)):
        small_posed.zero123(tmp_path, small_posed.look(count=count, size=8, fov=LENS), f'o{k}')
    source = posed.PosedSource(tmp_path, 'all', size=8)
    assert [len(source[k]['image']) for k in (0, 1, 2)] == [4, 4, 4]
    np.testing.assert_array_equal(source[2]['image'][3], source[2]['image'][0])
    assert posed.kept(6, 4).tolist() == [0, 1, 3, 4] and posed.kept(3, 4).tolist() == [0, 1, 2, 0]
    assert len(posed.PosedSource(tmp_path, 'all', size=8)[2]['image']) == 4  # whichever is read first
    assert len(posed.PosedSource(tmp_path, 'all', size=8, views_kept=2)[1]['image']) == 2
    with pytest.raises(IndexError):
        source[3]


# ---------------------------------------------------------------------------------------------------------------- place


@pytest.mark.parametrize('up', scene.AXES)
def test_every_axis_can_be_up(up, tmp_path):
    truth = small_posed.look(size=8)
    turn = np.eye(4)
    turn[:3, :3] = np.array(world.TURNS[up]).T  # the world whose `up` is our y
    small_posed.ours(tmp_path, truth._replace(pose=turn @ truth.pose))
    tree = json.loads((tmp_path / 'cameras.json').read_text()) | {'up': up}
    (tmp_path / 'cameras.json').write_text(json.dumps(tree))
    np.testing.assert_allclose(posed.PosedSource(tmp_path, 'all', size=8)[0]['world_from_cam'], truth.pose, atol=1e-6)
    assert np.linalg.det(world.TURNS[up]) == pytest.approx(1.0)


def test_the_cameras_tell_place_size_and_up(tmp_path):
    """A world that is turned, moved and in millimetres: the object comes back to the middle, upright."""
    truth = small_posed.look(count=12, size=16)
    tilt = np.eye(4)
    tilt[:3, :3] = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    tilt[:3, :3] *= np.sign(np.linalg.det(tilt[:3, :3]))
    moved = truth.scaled(1000.0)
    pose = tilt @ moved.pose
    pose[:, :3, 3] += [500.0, -70.0, 3000.0]
    small_posed.nerfstudio(tmp_path, moved._replace(pose=pose))
    source = posed.PosedSource(tmp_path, 'all', size=16)
    record, fit = source[0], source.posed(0).fit
    camera_labels.check_views(record, 'x')
    position = record['world_from_cam'][:, :3, 3]
    np.testing.assert_allclose(np.linalg.norm(position, axis=1), np.linalg.norm(position[0]), rtol=1e-4)
    half = np.linalg.norm(position[0]) / (2.0 * record['intrinsics'][0, 0, 0])
    assert half == pytest.approx(world.FRAME, rel=1e-4)
    assert abs(position[:, 1] - truth.pose[:, 1, 3] * fit.factor * 1000.0).max() < 0.1 and 'mean upright' in fit.up


def test_data_fit_says_how_the_object_is_placed(tmp_path):
    small_posed.zero123(tmp_path, small_posed.look(count=8, size=8, fov=LENS))

    def radius(fit):
        return np.linalg.norm(posed.PosedSource(tmp_path, 'all', size=8, fit=fit)[0]['world_from_cam'][0, :3, 3])

    assert radius('auto') == pytest.approx(3.2, rel=1e-5) and radius('1.5') == pytest.approx(2.4, rel=1e-5)
    assert radius('cameras') == pytest.approx(1.2 / np.tan(0.5 * LENS), rel=1e-4)
    assert radius('cameras:1') == pytest.approx(1.0 / np.tan(0.5 * LENS), rel=1e-4)
    for wrong in ('big', '-1', '0', 'nan', 'inf', 'camera:2', 'cameras:x', '1:2'):
        with pytest.raises(UsageError, match='data.fit=.*wanted auto, cameras'):
            world.read_rule(wrong)


def test_views_that_this_package_generated_are_read(tmp_path):
    truth = small_posed.look(count=4, size=16)
    views = Views('a red cube', truth.images[..., :3].astype(np.float32) / 255.0, truth.pose, truth.intrinsics)
    writers.write(views, tmp_path, log=lambda text: None)
    record = posed.PosedSource(tmp_path, 'all', size=16)[0]
    np.testing.assert_allclose(record['world_from_cam'], truth.pose, atol=1e-6)
    np.testing.assert_allclose(record['intrinsics'], truth.intrinsics, atol=1e-6)
    np.testing.assert_array_equal(record['image'][..., :3], truth.images[..., :3])


# -------------------------------------------------------------------------------------------------------------- batches

SMALL = ('data.name=posed', 'data.size=12', 'batch=2', 'preview.rows=2', 'preview.views=3')


def test_views_of_folders_make_batches(folder):
    config = sources.resolve(configs.load('instant3d:tiny', [*SMALL, f'data.path={folder}', 'data.views=2', 'data.split=all']))
    assert set(config.text.words) == {'an', 'chair', 'object', 'red', 'sofa'}
    assert config.export.prompts == ('an object', 'red chair', 'sofa')  # those of the file speak of cubes
    own = configs.load('instant3d:tiny', [*SMALL, f'data.path={folder}', 'export.prompts=("a tree",)'])
    assert sources.resolve(own).export.prompts == ('a tree',)  # which generating refuses by its words
    source, transform = sources.make(config, batch_spec=None)
    batch = next(pipeline.make(source, transform, batch=2, seed=0))
    assert batch['image'].shape == (2, 2, 12, 12, 4) and batch['world_from_cam'].shape == (2, 2, 4, 4)
    rows, captions = sources.preview(config, {})
    assert rows['image'].shape == (2, 3, 12, 12, 4) and len(captions) == 2
    assert sources.folder(source) == str(folder)
    with pytest.raises(UsageError, match='has no depth, which this config reads'):
        sources.make(config, batch_spec={'image': 0, 'depth': 0})
    with pytest.raises(UsageError, match='a record of posed has 4 views'):
        config = configs.load('instant3d:tiny', [*SMALL, f'data.path={folder}', 'data.views=5', 'text.open_vocabulary=true'])
        source, transform = sources.make(config)
        transform(source[0], np.random.default_rng(0))


@pytest.mark.parametrize('spec', ['renderdiffusion:tiny', 'ganfusion_gan:tiny'])
def test_every_view_is_a_picture_for_learning_from_single_views(folder, spec, capsys):
    (folder / 'sofa' / '001.npy').write_bytes(b'')
    config = configs.load(spec, [*SMALL, f'data.path={folder}', 'data.split=all', 'data.mirror=true'])
    config = sources.resolve(config)
    source, transform = sources.make(config)
    assert len(source) == 2 * 11 and '1 views or objects are left out' in capsys.readouterr().err
    record, other = source[0], source[11]
    np.testing.assert_array_equal(record['image'], other['image'][:, ::-1])
    first = posed.PosedSource(folder, 'all', size=12)[0]
    np.testing.assert_array_equal(record['label'][:16].reshape(4, 4), first['world_from_cam'][0])
    batch = next(pipeline.make(source, transform, batch=2, seed=0))
    assert batch['image'].shape == (2, 12, 12, 3) and ('tokens' in batch) == ('text' in config)
    assert sources.preview(config, {})[0]['label'].shape == (2, 25)
    assert single_view.labels(config).shape == (22, 25)


def test_a_large_set_is_not_kept_whole(folder, monkeypatch):
    from t3d.data.adapters import views

    monkeypatch.setattr(views, 'CACHE', 4 * 12 * 12 * 4 + 1000)
    cached = views.Cached(posed.PosedSource(folder, 'all', size=12), ('image', 'captions'))
    for _ in range(2):
        assert [cached[k]['image'].shape[0] for k in range(3)] == [4, 4, 4]
    assert list(cached.records) == [0]


@pytest.mark.parametrize(
    'words',
    [
        ('instant3d:tiny', 'batch=8'),
        ('renderdiffusion:tiny', 'batch=8'),
        ('ganfusion_gan:tiny', 'batch=8'),
        ('mvdiffusion:tiny', 'batch=2', 'given.prior=', 'data.rig=free', 'data.size=12'),
    ],
)
def test_systems_train_on_the_same_folder_through_the_command(folder, words, capsys, monkeypatch):
    monkeypatch.setattr(dry_run, 'compiled', lambda *args: ['train step compiled'])
    text = said(capsys, 'train', *words, 'data.name=posed', f'data.path={folder}', '--dry-run')
    assert 'parameters' in text and 'posed' in text


# ---------------------------------------------------------------------------------------------------------------- check


def test_the_check_says_what_is_there_and_draws_the_axes(folder, capsys, tmp_path):
    text = said(capsys, 'data', 'check', str(folder), '--out', str(tmp_path / 'c'))
    for part in (
        'layout zero123', 'objects   3 of split all; train 2, val 1, test 1', 'views     4 of an object', 'sizes     12 x 12',
        '+z by the layout', 'positions x 2, by the layout', 'radius    3.2 scene units', 'field     49.1 degrees',
        "first 'an object'; 3 of 3 made of the folder's name", 'nothing wrong was found', 'sheet.png',
    ):  # fmt: skip
        assert part in text, text
    sheet = np.array(Image.open(tmp_path / 'c' / 'sheet.png'))
    for colour in ((220, 30, 30), (20, 150, 30), (30, 60, 230), (120, 120, 120)):
        assert (sheet == colour).all(-1).any()


def test_the_check_says_what_is_wrong_with_what(folder, capsys, tmp_path):
    save = small_posed.save
    truth = small_posed.look(size=12, fov=LENS)
    for file in (folder / 'sofa').glob('*.npy'):  # camera-from-world taken for the other way round
        matrix = np.vstack([np.load(file), [0, 0, 0, 1]])
        np.save(file, np.linalg.inv(matrix)[:3])
    save(folder / 'red_chair' / '000.png', np.zeros((12, 12, 4), np.uint8))
    save(folder / 'red_chair' / '001.png', np.full((12, 12, 4), [9, 9, 9, 255], np.uint8))
    below = np.zeros((4, 12, 12, 4), np.uint8)
    below[:, 6:] = [200, 0, 0, 255]
    small_posed.zero123(folder, truth._replace(images=below), 'near')
    text = said(capsys, 'data', 'check', str(folder), '--out', str(tmp_path / 'c'))
    assert 'sofa: the cameras do not look at the object' in text.partition('wrong')[2]
    assert 'red_chair: 000.png: nothing of the object is in the picture' in text
    assert 'near: the frame cuts the object in 4 of 4 pictures' in text and 'set data.fit=' in text


def test_the_check_sees_an_object_on_its_side_and_other_lenses(capsys, tmp_path):
    truth = small_posed.look(count=6, size=12)
    small_posed.ours(tmp_path / 'side', truth)
    tree = json.loads((tmp_path / 'side' / 'cameras.json').read_text())
    for frame in tree['frames'][:2]:
        frame['fl_x'] = frame['fl_y'] = 1.2 * frame['fl_x']
    (tmp_path / 'side' / 'cameras.json').write_text(json.dumps(tree | {'up': '+z'}))
    text = said(capsys, 'data', 'check', str(tmp_path / 'side'), '--out', str(tmp_path / 'c'))
    assert 'the cameras stand upright along +y of the world, but up is +z' in text and 'fields of view differ: 34.' in text


def test_the_check_refuses_in_one_sentence(capsys, tmp_path, folder):
    assert 'no folder of posed pictures' in refusal(capsys, 'data', 'check', str(tmp_path / 'none'))
    assert 'no layout of posed pictures' in refusal(capsys, 'data', 'check', str(tmp_path))
    assert 'give that folder' in refusal(capsys, 'data', 'check', str(tmp_path))
    assert "data.layout='x'" in refusal(capsys, 'data', 'check', str(folder), '--layout', 'x')
    assert 'data.fit=' in refusal(capsys, 'data', 'check', str(folder), '--fit', 'x')
    assert '--objects 0: ' in refusal(capsys, 'data', 'check', str(folder), '--objects', '0')
    (tmp_path / 'a.zip').write_bytes(b'')
    assert 'a zip has to be unpacked first' in refusal(capsys, 'data', 'check', str(tmp_path / 'a.zip'))
