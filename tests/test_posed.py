"""Folders of posed pictures: every layout, written by the test from known cameras, gives these cameras and pictures back."""

import numpy as np
import pytest
import small_posed

from t3d.core.errors import UsageError
from t3d.data import layouts
from t3d.data.sets import posed, posed_images

POINTS = np.random.default_rng(0).uniform(-0.9, 0.9, (100, 3))
SIZE = 24


def compare(source, truth, views=None, size=SIZE, points=POINTS) -> dict:
    """The record of the only object, whose cameras see 100 points where those of the truth do, to 1e-4 px."""
    record = source[0]
    fit = source.posed(0).fit
    views = list(range(len(truth.images))) if views is None else views
    assert record['image'].shape == (len(views), size, size, 4) and record['image'].dtype == np.uint8
    assert record['world_from_cam'].dtype == record['intrinsics'].dtype == np.float32
    turned = fit.world_from_cam[:, :3, :3] @ truth.pose[views, :3, :3].transpose(0, 2, 1)  # ours from the truth's world
    np.testing.assert_allclose(turned, np.broadcast_to(turned[0], turned.shape), atol=1e-6)
    here, there = fit.world_from_cam[:, :3, 3], truth.pose[views, :3, 3]
    factor = np.linalg.norm(here[1] - here[0]) / np.linalg.norm(there[1] - there[0]) if len(views) > 1 else 1.0
    ours = here[0] + factor * (points - there[0]) @ turned[0].T
    at = small_posed.project(np.float64(record['world_from_cam']), np.float64(record['intrinsics']), ours) * size
    windows = [source.posed(0).geometry[k].window for k in range(len(views))]
    expected = [(pixels - [w.left, w.top]) * size / w.side for pixels, w in zip(truth.pixels(points)[views], windows)]
    assert np.abs(at - expected).max() < 1e-4
    return record


def truth_of(layout: str, **options):
    return small_posed.look(fov=small_posed.FIELDS.get(layout, 0.7), **options)


@pytest.mark.parametrize('layout', small_posed.WRITERS)
def test_a_layout_is_recognised_and_gives_its_cameras_and_pictures(layout, tmp_path):
    truth = truth_of(layout)
    source = posed.PosedSource(small_posed.WRITERS[layout](tmp_path, truth), 'all', size=SIZE)
    views = [0, 1, 2, 3] * (2 if layout == 'nerf_synthetic' else 1)  # of train and of test
    record = compare(source, truth, views)
    assert source.layout == layout and len(source) == 1
    if layout in ('zero123', 'instantmesh', 'mv_adapter', 'spad', 'syncdreamer', 'ours'):  # whose size is known: as it was
        np.testing.assert_allclose(record['world_from_cam'], truth.pose, atol=2e-6)
    if layout == 'co3d':  # JPEG, and a world whose up is that of the cameras
        assert np.abs(record['image'][..., 3].astype(int) - truth.images[..., 3]).max() == 0
        assert record['captions'] == ('a chair',)
    elif layout == 'srn':
        solid = truth.images[..., 3] > 0
        np.testing.assert_array_equal(record['image'][..., 3], np.where(solid, 255, 0))
        np.testing.assert_array_equal(record['image'][solid][:, :3], np.minimum(truth.images[solid][:, :3], 254))
    else:
        np.testing.assert_array_equal(record['image'], truth.images[views])
    up = record['world_from_cam'][:, 1, 1]
    assert (up < -0.8).all()  # the camera's down is the world's: y is up


@pytest.mark.parametrize('box', [(0, 4, 24, 16), (6, 0, 12, 24), (0, 3, 20, 14)])
@pytest.mark.parametrize('layout', ['nerfstudio', 'ours', 'srn', 'co3d', 'nerf_synthetic'])
def test_pictures_that_are_not_square_keep_every_point_in_place(layout, box, tmp_path):
    left, _, width, _ = box
    if layout == 'nerf_synthetic' and 2 * left + width != 24 or layout == 'nerf_synthetic' and box[1] == 3:
        pytest.skip('camera_angle_x means a centred principal point')
    truth = small_posed.look().cropped(*box)
    small_posed.WRITERS[layout](tmp_path, truth)
    views = [0, 1, 2, 3] * (2 if layout == 'nerf_synthetic' else 1)
    source = posed.PosedSource(tmp_path, 'all', size=32, layout=layout)
    compare(source, truth, views, size=32)
    assert all(geometry.window.side >= max(box[2:]) for geometry in source.posed(0).geometry)  # all of the picture


def test_a_photo_is_cropped_and_a_picture_with_alpha_is_framed(tmp_path):
    photo = small_posed.look(size=32).cropped(0, 4, 32, 24)
    photo = photo._replace(images=photo.images[..., :3])
    record = compare(posed.PosedSource(small_posed.ours(tmp_path / 'photo', photo), 'all', size=24), photo)
    np.testing.assert_array_equal(record['image'][..., :3], photo.images[:, :, 4:28])
    assert (record['image'][..., 3] == 255).all()
    alpha = small_posed.look(size=32).cropped(0, 4, 32, 24)
    record = compare(posed.PosedSource(small_posed.ours(tmp_path / 'alpha', alpha), 'all', size=32), alpha, size=32)
    np.testing.assert_array_equal(record['image'][:, 4:28], alpha.images)
    assert not record['image'][:, :4].any() and not record['image'][:, 28:].any()


def test_resampling_weighs_colours_by_alpha_and_keeps_the_middle_in_the_middle(tmp_path):
    image = np.zeros((1, 8, 8, 4), np.uint8)
    image[0, :, ::2] = [200, 0, 0, 255]  # the others are transparent black, which must not darken red
    truth = small_posed.look(count=1, size=8)._replace(images=image)
    small_posed.ours(tmp_path, truth)
    small = posed.PosedSource(tmp_path, 'all', size=4)[0]['image'][0]
    assert (abs(small[..., 0].astype(int) - 200) <= 1).all() and (abs(small[..., 3].astype(int) - 128) <= 1).all()
    ramp = np.zeros((1, 8, 8, 4), np.uint8) + np.uint8([0, 0, 0, 255])
    ramp[0, :, :, 0] = 16 * np.arange(8) + 8
    small_posed.ours(tmp_path, truth._replace(images=ramp))
    for size in (4, 5, 6, 16):
        row = posed.PosedSource(tmp_path, 'all', size=size)[0]['image'][0, 0, :, 0]
        middle = 128.0 * (np.arange(size) + 0.5) / size
        inner = (middle > 14) & (middle < 114)
        assert np.abs(row.astype(float) - middle)[inner].max() <= 1.0


@pytest.mark.parametrize(
    'x, y, whole', [(16, 12, True), (16, 12, False), (10.5, 20.25, True), (25, 9, False), (16.5, 12.1, True)]
)
def test_a_window_holds_the_picture_or_lies_inside_it(x, y, whole):
    window = posed_images.square(32, 24, x, y, whole, 'x.png')
    ends = [window.left, window.top, window.left + window.side - 32, window.top + window.side - 24]
    assert all(end <= 0 for end in ends[:2]) if whole else all(end >= 0 for end in ends[:2])
    assert all(end >= 0 for end in ends[2:]) if whole else all(end <= 0 for end in ends[2:])
    middle = (window.left + window.side / 2, window.top + window.side / 2)
    assert middle == ((x, y) if abs(x - 16) > 1.7 or abs(y - 12) > 1.3 else (16, 12))


def test_an_unknown_folder_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match='no folder of posed pictures'):
        layouts.find(tmp_path / 'none', 'auto', 'all')
    with pytest.raises(UsageError, match='has no layout of posed pictures that is known .*cameras.json'):
        layouts.find(tmp_path, 'auto', 'all')
    with pytest.raises(UsageError, match="data.layout='zero12': .*Did you mean 'zero123'"):
        layouts.find(tmp_path, 'zero12', 'all')
    (tmp_path / 'sets').mkdir()
    small_posed.zero123(tmp_path / 'sets', small_posed.look(count=2, size=8))
    with pytest.raises(UsageError, match="data.split='validation'"):
        layouts.find(tmp_path / 'sets', 'auto', 'validation')
    with pytest.raises(UsageError, match='no objects of split .all. as layout srn'):
        layouts.find(tmp_path / 'sets', 'srn', 'all')
    with pytest.raises(UsageError, match='needs data.path'):
        posed.PosedSource('', 'all', size=8)
