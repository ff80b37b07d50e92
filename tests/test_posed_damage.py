"""Posed pictures that are damaged, wrong or hostile: named, left out or refused; nothing of a file is ever run."""

import gzip
import json
import os
import pickle

import numpy as np
import pytest
import small_posed
from PIL import Image

from t3d.core.errors import UsageError
from t3d.data.layouts import pickles
from t3d.data.sets import posed
from t3d.data.sets.archives import Damaged


def source(root, **options) -> posed.PosedSource:
    return posed.PosedSource(root, options.pop('split', 'all'), size=12, **options)


def refusal(root, **options) -> str:
    with pytest.raises(UsageError) as error:
        source(root, **options)[0]
    return str(error.value)


def edit(path, change) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


@pytest.fixture
def scene():
    return small_posed.look(size=12)


# ------------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize('layout', ['zero123', 'spad', 'srn', 'nerfstudio', 'ours', 'syncdreamer', 'mv_adapter', 'instantmesh'])
def test_a_missing_and_a_truncated_picture_cost_their_views_alone(layout, tmp_path, capsys):
    truth = small_posed.look(size=12, fov=small_posed.FIELDS.get(layout, 0.7))
    small_posed.WRITERS[layout](tmp_path, truth)
    files = sorted(path for path in tmp_path.rglob('*.*') if path.suffix in ('.png', '.webp') and 'normal' not in path.name)
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:-30])
    record = source(tmp_path, views_kept=2)[0]
    np.testing.assert_array_equal(record['image'][..., 3] > 0, truth.images[[0, 3]][..., 3] > 0)
    told = capsys.readouterr().err
    assert files[2].name in told and (files[1].name in told or layout == 'srn')  # SRN lists its pictures, not its cameras


def test_a_wholly_damaged_object_is_counted_and_the_next_stands_in(tmp_path, scene, capsys):
    truth = small_posed.look(size=12, fov=small_posed.FIELDS['zero123'])
    for name in ('a', 'b', 'c'):
        small_posed.zero123(tmp_path, truth, name)
    for file in (tmp_path / 'b').glob('*.npy'):
        np.save(file, np.full((3, 4), np.nan))
    records = source(tmp_path)
    assert [records[k]['name'] for k in range(3)] == ['a', 'c', 'c'] and list(records.bad) == [1]
    assert 'numbers that are not finite' in records.bad[1]
    told = capsys.readouterr().err
    assert told.count('Left out, 1 of 3; the next object stands in.') == 1
    edit(tmp_path / 'valid_paths.json', lambda names: names.append('gone'))
    assert source(tmp_path)[3]['name'] == 'a'
    assert 'gone is missing: valid_paths.json names it' in capsys.readouterr().err
    for file in tmp_path.rglob('*.npy'):
        file.write_bytes(b'no')
    assert 'has no object that can be used' in refusal(tmp_path)


def test_pictures_of_several_sizes_become_one_and_other_shapes_are_named(tmp_path, scene, capsys):
    small_posed.ours(tmp_path, scene)
    Image.fromarray(scene.images[1]).resize((36, 36)).save(tmp_path / '001.png')
    Image.fromarray(scene.images[2]).resize((36, 24)).save(tmp_path / '002.png')
    record = source(tmp_path)[0]
    np.testing.assert_allclose(record['intrinsics'], scene.intrinsics[[0, 1, 3]], atol=1e-6)
    assert 'intrinsics are for 12 x 12 pixels, the picture has 36 x 24' in capsys.readouterr().err


def test_sixteen_bits_and_masks_of_another_size_are_named(tmp_path, scene, capsys):
    small_posed.nerfstudio(tmp_path, scene)
    Image.fromarray(np.zeros((12, 12), np.uint16)).save(tmp_path / 'images' / 'frame_00001.png')
    small_posed.save(tmp_path / 'm.png', scene.images[1, :6, :6, 3])
    edit(tmp_path / 'transforms.json', lambda tree: tree['frames'][1].update(mask_path='m.png'))
    edit(tmp_path / 'transforms.json', lambda tree: tree['frames'][2].update(mask_path='n.png'))
    assert len(np.unique(source(tmp_path)[0]['image'], axis=0)) == 1
    told = capsys.readouterr().err
    assert 'pixels of kind I;16' in told and 'm.png has 6 x 6 pixels' in told and 'n.png is missing' in told


# -------------------------------------------------------------------------------------------------------------- cameras


def wrong_pose(tree, change):
    matrix = np.array(tree['frames'][1]['transform_matrix'])
    change(matrix)
    tree['frames'][1]['transform_matrix'] = matrix.tolist()


CHANGES = {
    'numbers that are not finite': lambda m: m.__setitem__((0, 3), np.nan),
    'not orthonormal': lambda m: m.__setitem__(slice(0, 3), 2.0 * m[:3]),
    'a mirrored frame': lambda m: m.__setitem__((slice(None), 0), -m[:, 0]),
    'is it transposed?': lambda m: m.__setitem__(slice(None), m.T.copy()),
}
FRAMES = {
    'has no transform_matrix': lambda frame: frame.pop('transform_matrix'),
    'wanted 3 x 4 or 4 x 4': lambda frame: frame.update(transform_matrix=[[1.0, 0.0]]),
    'is no table of numbers': lambda frame: frame.update(transform_matrix=[['a']]),
    'has no file_path': lambda frame: frame.update(file_path=3),
    'leads out of its folder': lambda frame: frame.update(file_path='../../etc/passwd'),
    'lenses that bend straight lines': lambda frame: frame.update(k1=0.01),
    "camera_model 'EQUIRECTANGULAR'": lambda frame: frame.update(camera_model='EQUIRECTANGULAR'),
    'has fl_x and no h': lambda frame: frame.pop('h'),
    'has no intrinsics': lambda frame: frame.pop('fl_x'),
    'is no finite number': lambda frame: frame.update(fl_x='12'),
    'are none of a camera': lambda frame: frame.update(fl_x=-1.0),
}


@pytest.mark.parametrize('says', [*CHANGES, *FRAMES])
def test_a_wrong_frame_is_named_and_left_out(says, tmp_path, scene, capsys):
    small_posed.nerfstudio(tmp_path, scene, each=True)
    change = FRAMES.get(says)
    file = tmp_path / 'transforms.json'
    edit(file, (lambda tree: change(tree['frames'][1])) if change else (lambda tree: wrong_pose(tree, CHANGES[says])))
    record = source(tmp_path)[0]
    told = capsys.readouterr().err
    assert len(record['image']) == 3 and says in told and 'frame 1' in told and 'The view is left out.' in told


@pytest.mark.parametrize('layout', ['ours', 'nerfstudio'])
def test_camera_from_world_by_mistake_is_told(layout, tmp_path):
    truth = small_posed.look(count=8, size=12)
    small_posed.WRITERS[layout](tmp_path, truth)
    [file] = tmp_path.glob('*.json')

    def invert(tree):
        for frame in tree['frames']:
            frame['transform_matrix'] = np.linalg.inv(frame['transform_matrix']).tolist()

    edit(file, invert)
    assert 'camera-from-world' in refusal(tmp_path)


def test_cameras_that_look_away_are_told(tmp_path, scene):
    small_posed.ours(tmp_path, scene, convention='opengl')
    edit(tmp_path / 'cameras.json', lambda tree: tree.update(convention='opencv'))
    assert 'in the other camera axes: OpenGL and Blender' in refusal(tmp_path)
    edit(tmp_path / 'cameras.json', lambda tree: tree.update(convention='blender'))
    assert "convention 'blender': wanted opengl or opencv" in refusal(tmp_path)
    edit(tmp_path / 'cameras.json', lambda tree: tree.update(convention='opengl', up='up'))
    assert "up 'up': wanted one of +x" in refusal(tmp_path)


def test_files_as_other_programs_write_them(tmp_path, scene):
    """A byte-order mark, UTF-16, backslashes, a suffix left out, numbers without zeros before."""
    small_posed.nerf_synthetic(tmp_path, scene, ('train',))
    file, good = tmp_path / 'transforms_train.json', source(tmp_path)[0]['image']
    for encoding in ('utf-8-sig', 'utf-16'):
        text = json.dumps(json.loads(file.read_bytes())).replace('./train/', '.\\\\train\\\\')
        (tmp_path / 'transforms_train.json').write_bytes(text.encode(encoding))
        np.testing.assert_array_equal(source(tmp_path)[0]['image'], good)
        file.write_text(text)
    file.write_text('{"frames": [')
    assert 'is no JSON' in refusal(tmp_path)
    file.write_text('{"frames": {}}')
    assert 'has no "frames"' in refusal(tmp_path)
    many = small_posed.look(count=12, size=12, fov=0.7)
    small_posed.spad(tmp_path / 'spad', many)
    np.testing.assert_array_equal(source(tmp_path / 'spad')[0]['image'], many.images)  # 2 before 10


def test_other_files_of_cameras_are_named(tmp_path, capsys):
    truth = small_posed.look(size=12, fov=small_posed.FIELDS['instantmesh'])
    small_posed.instantmesh(tmp_path / 'i', truth)
    np.savez(tmp_path / 'i' / 'rendering_random_32views' / 'object' / 'cameras.npz', other=np.eye(3))
    assert "has no array 'cam_poses'" in refusal(tmp_path / 'i')
    (tmp_path / 'i' / 'valid_paths.json').write_text('"object"')
    assert 'valid_paths.json holds a str' in refusal(tmp_path / 'i')
    small_posed.srn(tmp_path / 's', truth)
    (tmp_path / 's' / 'object' / 'pose' / '000001.txt').write_text('1 2 3')
    assert len(source(tmp_path / 's')[0]['image']) == 3 and '000001.txt holds no 16 numbers' in capsys.readouterr().err
    (tmp_path / 's' / 'object' / 'intrinsics.txt').write_text('1 2\n')
    assert 'wanted `f cx cy 0`' in refusal(tmp_path / 's')
    small_posed.mv_adapter(tmp_path / 'm', truth)
    [file] = tmp_path.glob('m/*/*/*/meta.json')
    edit(file, lambda tree: tree['locations'][0].update(projection_type='ORTHO', ortho_scale=1.1))
    assert len(source(tmp_path / 'm')[0]['image']) == 3 and 'orthographic' in capsys.readouterr().err


def test_co3d_damage(tmp_path, capsys):
    small_posed.co3d(tmp_path, small_posed.look(size=12))
    file = tmp_path / 'chair' / 'frame_annotations.jgz'
    frames = json.loads(gzip.decompress(file.read_bytes()))
    frames[0]['viewpoint']['intrinsics_format'] = 'pixels'
    frames[1]['viewpoint']['R'] = [1.0, 2.0]
    frames[2].pop('image')
    file.write_bytes(gzip.compress(json.dumps(frames).encode()))
    assert len(np.unique(source(tmp_path)[0]['image'], axis=0)) == 1
    told = capsys.readouterr().err
    assert "intrinsics_format 'pixels'" in told and 'R: wanted 3 numbers' in told and 'no image.path' in told
    file.write_bytes(gzip.compress(json.dumps(frames).encode())[:-20])
    assert 'frame_annotations.jgz' in refusal(tmp_path)
    file.write_bytes(gzip.compress(b'{}'))
    assert 'wanted a list of frames' in refusal(tmp_path)
    assert 'no whole gzip file' in (file.write_bytes(b'plain'), refusal(tmp_path))[1]


# -------------------------------------------------------------------------------------------------------------- pickles


def test_damage_seen_in_published_spad_renders(tmp_path, capsys):
    truth = small_posed.look(size=12)
    small_posed.spad(tmp_path, truth)
    cameras = tmp_path / 'object' / 'cameras'
    (cameras / '0.npy').write_bytes((tmp_path / 'object' / 'images' / '0.png').read_bytes())
    camera = np.load(cameras / '1.npy', allow_pickle=True).item()
    matrix = np.fromstring(camera['matrix_world'].replace('[', ' ').replace(']', ' '), sep=' ').reshape(4, 4)
    matrix[:3, 3] = 0.0
    with np.printoptions(precision=17):
        np.save(cameras / '1.npy', camera | {'matrix_world': str(matrix)}, allow_pickle=True)
        np.save(cameras / '2.npy', camera | {'matrix_world': str(matrix), 'camera_id': 'camera_0_10'}, allow_pickle=True)
    record = source(tmp_path)[0]
    expected = truth.pose[[1, 3]].copy()
    expected[0, :3, 3] *= 3.5 / np.linalg.norm(expected[0, :3, 3])  # SPAD's radius; the rotation tells the rest
    np.testing.assert_allclose(record['world_from_cam'], expected, atol=1e-5)
    told = capsys.readouterr().err
    assert '0.npy is a PNG picture under the name of a camera file' in told and "'camera_0_10' does not agree" in told


class Evil:
    def __reduce__(self):
        return os.system, ('touch ran',)


class Nested:
    def __reduce__(self):
        return getattr, (np.ndarray, '__init__')


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('value', [Evil(), Nested(), {'a': [Evil()]}, np.array([Evil()], object)])
def test_a_pickle_with_anything_but_data_is_refused_and_not_run(value, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'c.pkl').write_bytes(pickle.dumps(value, protocol))
    with pytest.raises(Damaged, match='only arrays, numbers and texts are read'):
        pickles.load(tmp_path / 'c.pkl')
    np.save(tmp_path / 'c.npy', np.array(value, object), allow_pickle=True)
    with pytest.raises(Damaged, match='only arrays, numbers and texts are read'):
        pickles.load(tmp_path / 'c.npy')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('protocol', range(6))
def test_pickles_of_data_are_read(protocol, tmp_path):
    value = [
        np.eye(3, dtype=np.float32),
        np.arange(4.0)[::-1],
        {'fov': np.float64(0.7), 'n': 3, 'id': 'é', 'b': b'x'},
        (None, True),
    ]
    read = pickles.loads(pickle.dumps(value, protocol), 'x')
    np.testing.assert_array_equal(read[0], value[0])
    np.testing.assert_array_equal(read[1], value[1])
    assert read[2:] == value[2:]


def test_damaged_pickles_are_refused(tmp_path):
    data = pickle.dumps([np.eye(4), 'text'] * 3)
    for end in range(0, len(data), 7):
        with pytest.raises(Damaged):
            pickles.loads(data[:end], 'x')
    deep = []
    for _ in range(200):
        deep = [deep]
    laughs = [0.0] * 100
    for _ in range(6):
        laughs = [laughs] * 100
    for wrong in (pickle.dumps(laughs), pickle.dumps(deep), pickle.dumps(10**40), pickle.dumps({1, 2}), b'\x80\x04P1\n.'):
        with pytest.raises(Damaged):
            pickles.loads(wrong, 'x')
    with pytest.raises(Damaged, match='cannot be read'):
        pickles.load(tmp_path / 'none.pkl')
