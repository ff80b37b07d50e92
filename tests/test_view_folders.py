"""Folders of posed pictures that `t3d generate --views` reads: ours, nerfstudio's, other layouts; axes, masks, damage."""

import json

import numpy as np
import pytest
import small_posed
import small_reconstruct as small
from PIL import Image

from t3d.core.errors import UsageError
from t3d.data.layouts import world
from t3d.data.sets import posed, shapes
from t3d.export import beside
from t3d.geom import cameras
from t3d.inference import requests


def test_a_folder_of_views_is_read_as_it_was_written(tmp_path):
    for alpha in (True, False):
        some = small.views(count=3, alpha=alpha)
        beside.write_views(some, tmp_path)
        read = requests.read_views(str(tmp_path))
        assert read.images.shape == some.images.shape
        for one, other in zip(read[1:], some[1:]):
            np.testing.assert_allclose(one, other, atol=2e-3)
    assert requests.make([], views=str(tmp_path))[0].prompt == tmp_path.name


def test_nerfstudio_files_are_z_up_and_name_pictures_without_an_ending(tmp_path):
    some = small.views(count=2)
    beside.write_views(some, tmp_path)
    blender = np.asarray(cameras.to_blender(some.world_from_cam)).tolist()
    frames = [{'file_path': f'views/{k:03d}', 'transform_matrix': matrix} for k, matrix in enumerate(blender)]
    (tmp_path / 'cameras.json').unlink()
    (tmp_path / 'transforms.json').write_text(json.dumps({'camera_angle_x': shapes.FOV, 'frames': frames}))
    read = requests.read_views(str(tmp_path))
    np.testing.assert_allclose(read.world_from_cam, some.world_from_cam, atol=1e-5)
    np.testing.assert_allclose(read.intrinsics, some.intrinsics, atol=1e-5)


@pytest.mark.parametrize('up', world.TURNS)
@pytest.mark.parametrize('convention', ['opengl', 'opencv'])
def test_files_that_name_their_axes_are_read_in_them(tmp_path, up, convention):
    some = small.views(count=2)
    beside.write_views(some, tmp_path)
    document = json.loads((tmp_path / 'cameras.json').read_text())
    turn = np.eye(4)
    turn[:3, :3] = world.TURNS[up]
    axes = np.diag([1.0, -1.0, -1.0, 1.0]) if convention == 'opengl' else np.eye(4)
    for frame, pose in zip(document['frames'], some.world_from_cam):
        frame['transform_matrix'] = (turn.T @ pose @ axes).tolist()
        frame['file_path'] = frame['file_path'].replace('/', '\\')
    (tmp_path / 'cameras.json').write_text(json.dumps(document | {'up': up, 'convention': convention}))
    np.testing.assert_allclose(requests.read_views(str(tmp_path)).world_from_cam, some.world_from_cam, atol=1e-5)


def test_a_mask_beside_a_picture_is_its_background_and_exif_turns_no_posed_picture(tmp_path):
    some = small.views(count=2)
    beside.write_views(some, tmp_path)
    document = json.loads((tmp_path / 'cameras.json').read_text())
    turned, sheet = Image.Exif(), (np.arange(32 * 32 * 3) % 251).astype(np.uint8).reshape(32, 32, 3)
    turned[0x0112] = 6
    Image.fromarray(sheet).save(tmp_path / 'views' / '000.png', exif=turned)
    Image.new('L', (32, 32), 51).save(tmp_path / 'mask.png')
    document['frames'][0]['mask_path'] = 'mask.png'
    (tmp_path / 'cameras.json').write_text(json.dumps(document))
    read = requests.read_views(str(tmp_path)).images[0]
    np.testing.assert_allclose(read, np.dstack([sheet / 255.0, np.full((32, 32), 0.2)]), atol=1e-6)


def damage(tmp_path, change):
    beside.write_views(small.views(count=2), tmp_path)
    document = json.loads((tmp_path / 'cameras.json').read_text())
    change(document)
    (tmp_path / 'cameras.json').write_text(json.dumps(document))


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda d: d.pop('frames'), 'names no pictures'),
        (lambda d: [frame.pop('file_path') for frame in d['frames']], 'as of a video: `t3d generate --images` writes frames'),
        (lambda d: d['frames'][1].pop('file_path'), 'frame 1 has no file_path'),
        (lambda d: d['frames'][1].pop('transform_matrix'), r'frame 1 .* has no transform_matrix'),
        (lambda d: d['frames'][0].update(transform_matrix=[[1]]), r'frame 0 .* has shape'),
        (lambda d: d['frames'][0].update(transform_matrix=(2.0 * np.eye(4)).tolist()), r'frame 0 .* the last row of the pose'),
        (lambda d: d['frames'][0].update(transform_matrix=np.diag([2.0, 2, 2, 1]).tolist()), r'frame 0 .* not orthonormal'),
        (lambda d: d['frames'][0].update(transform_matrix=np.diag([-1.0, 1, 1, 1]).tolist()), r'frame 0 .* a mirrored frame'),
        (lambda d: d['frames'][0].update(fl_x=0), r'frame 0.* are none of a camera'),
        (lambda d: d['frames'][0].update(w=0), r'frame 0.* are none of a camera'),
        (lambda d: d['frames'][0].update(w=64, h=32), r'frame 0.* the picture has 32 x 32: another shape'),
        (lambda d: d['frames'].append(3), 'frame 2 is a int'),
        (lambda d: d['frames'][0].update(file_path='views/none.png'), r'none\.png is missing'),
        (lambda d: d['frames'][0].update(file_path='../views/000.png'), 'leads out of its folder'),
        (lambda d: d.update(k1=0.1), 'has k1=0.1: lenses that bend straight lines are not read'),
        (lambda d: d.update(camera_model='OPENCV_FISHEYE'), "camera_model 'OPENCV_FISHEYE': lenses that bend"),
        (lambda d: d.update(up='up'), "up 'up': wanted one of"),
        (lambda d: d.update(convention='blender'), "convention 'blender': wanted opengl or opencv"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_sentence(tmp_path, change, message):
    damage(tmp_path, change)
    with pytest.raises(UsageError, match=message) as error:
        requests.read_views(str(tmp_path))
    assert '\n' not in str(error.value)


def test_folders_without_cameras_and_pictures_of_other_sizes(tmp_path):
    with pytest.raises(UsageError, match='has neither cameras.json nor transforms.json, and as a data set: .*no layout'):
        requests.read_views(str(tmp_path))
    with pytest.raises(UsageError, match='is no folder'):
        requests.read_views(str(tmp_path / 'none'))
    damage(tmp_path, lambda d: None)
    Image.new('RGBA', (8, 8)).save(tmp_path / 'views' / '001.png')
    with pytest.raises(UsageError, match='is of 8 x 8 pixels, the first of 32 x 32'):
        requests.read_views(str(tmp_path))


@pytest.mark.parametrize('write', (small_posed.zero123, small_posed.srn, small_posed.nerf_synthetic))
def test_folders_of_data_sets_are_read_with_their_cameras(tmp_path, write, capsys):
    """The views of a layout of other people's, compared with its set's own record; of two objects the first is made."""
    truth = small_posed.look(4, size=24)
    write(tmp_path, truth)
    read = requests.read_views(str(tmp_path))
    record = posed.PosedSource(tmp_path, 'all', size=requests.SIDE)[0]
    np.testing.assert_array_equal(read.world_from_cam, record['world_from_cam'])
    np.testing.assert_array_equal(read.intrinsics, record['intrinsics'])
    colours = np.asarray(record['image'], np.float32)[..., : read.images.shape[-1]] / 255.0
    np.testing.assert_array_equal(read.images, colours)
    assert read.images.shape[1:3] == (256, 256) and 'objects' not in capsys.readouterr().err


def test_of_several_objects_the_first_is_made_and_named(tmp_path, capsys):
    for name in ('first', 'second'):
        small_posed.zero123(tmp_path, small_posed.look(4, size=24), name)
    assert requests.read_views(str(tmp_path)).prompt == 'first'
    assert 'has 2 objects; first is made' in capsys.readouterr().err
