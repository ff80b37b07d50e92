"""The adapter `rays`: pixels of pictures of any size, gathered by their place, and scenes in closed form without a picture."""

import re

import numpy as np
import pytest
import small_posed

from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.data import pipeline, sets, sources
from t3d.data.adapters import rays
from t3d.data.sets import shapes, toy
from t3d.systems import instant3d_supervision_rays

SMALL = ('batch=4', 'data.views=3', 'loss.rays=40', 'preview.size=16', 'preview.rows=4', 'preview.views=2', 'data.poses=4')
PIXELS = ('rays.truth=pixels', 'data.size=48', 'data.supersample=1')


def chosen(*overrides):
    return sources.resolve(configs.load('configs/instant3d.py:scenes_rays', [*SMALL, *overrides]))


def made(config):
    return sources.make(config, None, instant3d_supervision_rays.batch_spec(config))


class Pictures:
    """Three records of five views of 24 x 32 pixels, in which every byte is known by its place."""

    def __init__(self, depth=True):
        self.depth = depth

    def __len__(self):
        return 3

    def __getitem__(self, index):
        image = np.random.default_rng(index).integers(0, 256, (5, 24, 32, 4), np.uint8)
        image[..., 3] = 0
        image[:, 8:12, 20:25, 3] = 255
        image[4, ..., 3] = 0  # a view without the object
        camera = toy.camera_arrays(np.linspace(0.0, 5.0, 5), np.full(5, 0.3), shapes.RADIUS, shapes.FOV)
        record = {'image': image, 'world_from_cam': camera[0], 'intrinsics': camera[1], 'captions': ('a red cube',)}
        return record | (
            {'depth': np.random.default_rng(9 + index).uniform(1, 4, image.shape[:3]).astype(np.float32)} if self.depth else {}
        )


@pytest.fixture
def pictures(monkeypatch):
    def use(**options):
        monkeypatch.setattr(sets, 'open_set', lambda data, split: Pictures(**options))

    use()
    return use


def test_the_bytes_of_the_drawn_pixels_are_those_of_the_pictures(pictures):
    config = chosen(*PIXELS)
    source, transform = made(config)
    record, whole = source[1], Pictures()[1]
    seen = set()
    for number in range(30):
        row = transform(record, np.random.default_rng(number))
        for v in range(3):
            view = int(np.flatnonzero((whole['world_from_cam'] == row['world_from_cam'][v]).all((1, 2)))[0])
            seen.add(view)
            for uv, pixel, depth in zip(row['uv'][v], row['pixels'][v], row['depth'][v]):
                x, y = uv[0] * 32 - 0.5, uv[1] * 24 - 0.5
                assert abs(x - round(x)) < 1e-4 and abs(y - round(y)) < 1e-4  # through the centres of pixels
                np.testing.assert_array_equal(pixel, whole['image'][view, round(y), round(x)])
                assert depth == whole['depth'][view, round(y), round(x)]
    assert seen == {0, 1, 2, 3, 4}


def test_the_asked_share_lies_near_the_object_and_views_without_one_give_the_rest(pictures):
    source, transform = made(chosen(*PIXELS, 'loss.foreground=0.75', 'loss.edges=0.0', 'data.views=5'))
    places = np.concatenate([transform(source[0], np.random.default_rng(k))['uv'] for k in range(40)], 1)  # [V, R, 2]
    x, y = places[..., 0] * 32, places[..., 1] * 24
    near = (x > 18) & (x < 27) & (y > 6) & (y < 14)  # grown by two pixels
    anywhere = 9 * 8 / (24 * 32)
    assert abs(near[:4].mean() - (0.75 + 0.25 * anywhere)) < 0.02 and abs(near[4].mean() - anywhere) < 0.02
    _, everywhere = made(chosen(*PIXELS, 'loss.foreground=0.0', 'loss.edges=0.0'))
    places = np.concatenate([everywhere(source[0], np.random.default_rng(k))['uv'].reshape(-1, 2) for k in range(60)])
    assert len(np.unique(places, axis=0)) > 0.99 * 24 * 32


@pytest.mark.parametrize('reach', [0, 1, 2])
def test_a_grown_mask_is_that_of_a_loop(reach):
    mask = np.random.default_rng(reach).uniform(size=(9, 13)) < 0.06
    expected = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        expected[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1] = True
    np.testing.assert_array_equal(rays.grown(mask, reach), expected)


def test_views_held_out_are_never_drawn(pictures):
    source, transform = made(chosen(*PIXELS, 'data.train_views=2', 'data.views=2'))
    assert len(source[0]['image']) == len(source[0]['ends']) == 2
    poses = Pictures()[0]['world_from_cam'][:2]
    for number in range(20):
        row = transform(source[0], np.random.default_rng(number))
        assert all((pose == poses).all((1, 2)).any() for pose in row['world_from_cam'])
    with pytest.raises(UsageError, match='data.views=3, but a record of toy has 2 views for training: choose at most 2'):
        made(chosen(*PIXELS, 'data.train_views=2'))[1](source[0], np.random.default_rng(0))


def test_pictures_are_decoded_once_and_stay_bytes(pictures, monkeypatch):
    read = []
    original = Pictures.__getitem__
    monkeypatch.setattr(Pictures, '__getitem__', lambda self, index: read.append(index) or original(self, index))
    source, transform = made(chosen(*PIXELS))
    for _ in range(3):
        record = source[2]
    assert read.count(2) == 1 and record['image'].dtype == np.uint8 and 'attributes' not in record


def test_pixels_of_large_pictures_are_those_of_a_look_up(monkeypatch):
    """512 x 512, whose places no longer fit in 16 bits: every byte by its place, and the share near the object of a loop."""
    random, side = np.random.default_rng(4), 512
    image = random.integers(0, 256, (3, side, side, 4), np.uint8)
    image[..., 3] = 0
    image[:, 470:480, 30:60, 3] = 255
    camera = toy.camera_arrays(np.linspace(0.0, 4.0, 3), np.full(3, 0.3), shapes.RADIUS, shapes.FOV)
    record = {'image': image, 'world_from_cam': camera[0], 'intrinsics': camera[1], 'captions': ('a red cube',)}
    record['depth'] = random.uniform(1, 4, image.shape[:3]).astype(np.float32)
    monkeypatch.setattr(sets, 'open_set', lambda data, split: [record])
    source, transform = made(chosen(*PIXELS, f'data.size={side}', 'loss.rays=400', 'loss.foreground=0.5', 'loss.edges=0.0'))
    row, near = transform(source[0], np.random.default_rng(0)), 0
    assert row['uv'].dtype == np.float32 and row['pixels'].shape == (3, 400, 4)
    for v, (uv, pixels, depth) in enumerate(zip(row['uv'], row['pixels'], row['depth'])):
        view = next(k for k in range(3) if np.array_equal(record['world_from_cam'][k], row['world_from_cam'][v]))
        for (x, y), pixel, far in zip(uv * side - 0.5, pixels, depth):
            assert x == round(x) and y == round(y)
            np.testing.assert_array_equal(pixel, image[view, round(y), round(x)])
            assert far == record['depth'][view, round(y), round(x)]
            near += 28 <= x < 62 and 468 <= y < 482
    assert 600 <= near < 620 and row['uv'][..., 1].max() > 0.99  # half of 1,200, and few by chance; down to the last rows


@pytest.mark.parametrize('size', [16, 48, 128])
def test_a_batch_has_one_size_whatever_that_of_the_pictures(size):
    config = chosen(*PIXELS, f'data.size={size}')
    source, transform = made(config)
    assert source[0]['image'].shape[1:3] == (size, size)
    row = transform(source[0], np.random.default_rng(0))
    spec = instant3d_supervision_rays.batch_spec(config)
    assert {name: (value.shape, value.dtype) for name, value in row.items()} == {
        name: (one.shape[1:], one.dtype) for name, one in spec.items()
    }
    assert sum(value.nbytes for value in row.values()) < 5000


def test_sets_without_depth_are_refused_where_it_is_read_and_taken_where_not(pictures):
    pictures(depth=False)
    with pytest.raises(UsageError, match=re.escape("data.name='toy' has no depth, which this config reads: set loss.depth=0.")):
        made(chosen(*PIXELS))
    source, transform = made(chosen(*PIXELS, 'loss.depth=0.0'))
    assert 'depth' not in transform(source[0], np.random.default_rng(0))


def test_scenes_in_closed_form_are_those_of_the_pictures_and_no_picture_is_made(monkeypatch):
    config = chosen()
    plain = toy.ToySource('train', scenes='both', size=8, views=3, poses=4)
    indices = (0, 1, 2, 500, 7103)
    pictures = [plain[index] for index in indices]
    monkeypatch.setattr(toy, 'render', lambda *args: pytest.fail('a picture was made'))
    source, transform = made(config)
    assert len(source) == len(plain)
    for index, picture in zip(indices, pictures):
        record, scene = source[index], plain.scene(index)
        assert record['captions'] == picture['captions']
        for name in ('world_from_cam', 'intrinsics'):
            np.testing.assert_array_equal(record[name], picture[name])
        for row, thing in zip(record['solids'], scene.objects):
            assert shapes.SHAPES[int(row[0])] == thing.shape
            np.testing.assert_allclose(row[1:4], thing.centre)
            np.testing.assert_allclose(row[5], shapes.HALF_HEIGHT[thing.shape] * thing.scale)
            np.testing.assert_allclose(row[6:], shapes.COLOURS[thing.colour])
        assert np.all(record['solids'][len(scene.objects) :, 0] == -1)
    row = transform(source[1], np.random.default_rng(0))
    assert set(row) == set(instant3d_supervision_rays.batch_spec(config))


@pytest.mark.parametrize('truth', ['solids', 'pixels'])
def test_batches_are_functions_of_their_number_and_cut_into_blocks(truth, pictures):
    config = chosen(*PIXELS, f'rays.truth={truth}')
    source, transform = made(config)
    make = lambda **where: pipeline.make(source, transform, batch=4, seed=3, **where)
    stream = make()
    batches = [next(stream) for _ in range(4)]
    resumed = make(start=stream.state() - 1)
    shards = [make(process_index=k, process_count=2, start=3) for k in range(2)]
    halves = [next(shard) for shard in shards]
    again = next(resumed)
    for name, values in batches[3].items():
        np.testing.assert_array_equal(values, again[name])
        np.testing.assert_array_equal(values, np.concatenate([half[name] for half in halves]))
    assert not all(np.array_equal(batches[2][name], values) for name, values in batches[3].items())


def test_folders_of_posed_pictures_go_through_the_same_door(tmp_path):
    """The pictures of a folder, seen whole by the rays that are drawn: the colours are those at the projected points."""
    truth = small_posed.look(size=40, fov=small_posed.FIELDS['zero123'])
    small_posed.zero123(tmp_path, truth, 'red_chair')
    folder = ('data.name=posed', f'data.path={tmp_path}', 'data.split=all', 'data.size=40', 'loss.depth=0.0')
    with pytest.raises(UsageError, match='set loss.depth=0'):
        made(chosen(*PIXELS, *folder[:-1], 'loss.depth=0.1'))
    source, transform = made(chosen(*PIXELS, *folder))
    row = transform(source[0], np.random.default_rng(0))
    for v in range(3):
        view = int(np.argmin(np.abs(truth.pose - row['world_from_cam'][v]).max((1, 2))))
        np.testing.assert_allclose(row['world_from_cam'][v], truth.pose[view], atol=1e-5)
        place = (row['uv'][v] * 40).astype(int)
        np.testing.assert_array_equal(row['pixels'][v], truth.images[view][place[:, 1], place[:, 0]])


def test_previews_have_a_size_of_their_own():
    batch, labels = sources.preview(chosen(), {})
    assert batch['image'].shape == (4, 2, 16, 16, 4) and len(labels) == 4


def test_sets_of_pictures_have_no_closed_form():
    for name in ('toy_marked', 'toy_patterns', 'furniture', 'posed'):
        with pytest.raises(UsageError, match=f"data.name='{name}' has no scenes in closed form, which rays.truth=solids reads"):
            made(configs.load('configs/instant3d.py:scenes_rays', [*SMALL, f'data.name={name}', 'text.words=("a",)']))
