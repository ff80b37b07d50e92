"""Single-view sets: labels against cameras, the two kinds of batch, the four modes, furniture, and `t3d data single-view`."""

import jax
import numpy as np
import PIL.Image
import pytest
from small_single_view import TEXT, make_config

from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.data import pipeline, sources
from t3d.data.adapters import single_view
from t3d.data.sets import furniture_source, one_view, shapes, toy
from t3d.geom import cameras


def cameras_of(label):
    return jax.tree.map(np.asarray, cameras.from_eg3d(label))


# ----------------------------------------------------------------------------------------------------------------- toy


def test_a_record_is_a_view_of_toy_on_grey_with_its_label():
    source, _ = sources.make(make_config())
    plain = toy.ToySource('train', scenes='singles', size=12, views=1, poses=2, seed=3)
    assert len(source) == len(plain) == 96
    for index in (0, 17, 95):
        record, truth = source[index], plain[index]
        rig = cameras_of(record['label'])
        np.testing.assert_array_equal(rig.world_from_cam, truth['world_from_cam'][0])
        np.testing.assert_array_equal(rig.intrinsics, truth['intrinsics'][0])
        alpha = truth['image'][0, ..., 3:] / 255.0
        laid = truth['image'][0, ..., :3] * alpha + 127.5 * (1.0 - alpha)
        assert record['image'].dtype == np.uint8 and np.abs(record['image'] - laid).max() <= 0.5 + 1e-4
        assert record['captions'] == truth['captions'] and record['attributes'] == truth['attributes']
    assert source[0] is not None and source[0]['image'] is source[0]['image']  # kept once rendered


def test_the_table_of_labels_is_known_without_rendering(monkeypatch):
    config = make_config(poses=3)
    source, _ = sources.make(config)
    truth = np.stack([source[index]['label'] for index in range(0, len(source), 7)])

    def refuse(*args, **kwargs):
        raise AssertionError('rendered')

    monkeypatch.setattr(toy, 'render', refuse)
    table = single_view.labels(config)
    assert table.shape == (144, 25) and table.dtype == np.float32
    np.testing.assert_array_equal(table[::7], truth)


def test_fake_labels_are_drawn_from_the_table_whatever_the_image_is():
    config = make_config()
    source, transform = sources.make(config)
    rows = {row.tobytes(): k for k, row in enumerate(source.labels)}
    draws = []
    for seed in range(400):
        example = transform(source[seed % 2], np.random.default_rng(seed))
        assert set(example) == {'image', 'label', 'fake_labels'} and example['fake_labels'].shape == (3, 25)
        draws.append([rows[row.tobytes()] for row in example['fake_labels']])
    draws = np.array(draws)
    assert len(np.unique(draws)) == 96  # 1,200 draws: each of the 96 comes
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.2  # the three are independent of each other
    one, other = (transform(source[k], np.random.default_rng(5)) for k in (0, 1))
    np.testing.assert_array_equal(one['fake_labels'], other['fake_labels'])
    assert (one['label'] != other['label']).any()


def test_batches_have_the_shapes_of_the_contract_and_images_keep_their_labels():
    source, transform = sources.make(make_config())
    batches = pipeline.make(source, transform, batch=8, seed=1)
    batch = next(batches)
    shapes_of = {name: (value.shape, value.dtype.name) for name, value in batch.items()}
    assert shapes_of == {
        'image': ((8, 12, 12, 3), 'uint8'),
        'label': ((8, 25), 'float32'),
        'fake_labels': ((8, 3, 25), 'float32'),
    }
    pairs = {record['label'].tobytes(): record['image'] for record in (source[k] for k in range(len(source)))}
    for image, label in zip(batch['image'], batch['label']):
        np.testing.assert_array_equal(image, pairs[label.tobytes()])
    again = next(pipeline.make(*sources.make(make_config()), batch=8, seed=1))
    assert all(np.array_equal(batch[name], again[name]) for name in batch)


@pytest.mark.parametrize('text', [None, TEXT])
def test_the_preview_is_a_batch_of_the_same_kind(text):
    config = sources.resolve(make_config(text))
    batch, names = sources.preview(config, {})
    full = next(pipeline.make(*sources.make(config), batch=5, seed=0))
    assert {name: (v.shape, v.dtype) for name, v in batch.items()} == {name: (v.shape, v.dtype) for name, v in full.items()}
    again, same = sources.preview(config, {})
    assert names == same and len(set(names)) == 5 and all(np.array_equal(batch[name], again[name]) for name in batch)
    held_out = {scene.captions[0] for scene in shapes.singles('test')}
    assert (set(names) <= held_out) == bool(text)


def test_a_config_with_text_gets_tokens():
    config = sources.resolve(make_config(TEXT, system='renderdiffusion'))
    assert config.text.words == shapes.WORDS
    source, transform = sources.make(config)
    example = transform(source[4], np.random.default_rng(0))
    assert set(example) == {'tokens', 'image', 'label'}
    assert example['tokens'].shape == (8,) and example['tokens'].dtype == np.int32
    seen = {transform(source[4], np.random.default_rng(k))['tokens'].tobytes() for k in range(40)}
    assert len(seen) == len(source[4]['captions'])


# ----------------------------------------------------------------------------------------------------------- mirroring


def test_a_mirrored_label_sees_the_mirrored_point_at_the_mirrored_pixel():
    label = np.float32(cameras.to_eg3d(cameras.orbit(0.7, 0.3, 3.2, 0.7)))[None].copy()
    label[0, 17:19] = 0.03, 0.52  # skew, an off-centre principal point
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 3)).astype(np.float32)
    uv, depth = cameras.project(cameras.from_eg3d(label[0]), points)
    mirrored_uv, mirrored_depth = cameras.project(cameras.from_eg3d(single_view.mirror_labels(label)[0]), points * [-1, 1, 1])
    np.testing.assert_allclose(mirrored_uv[:, 0], 1.0 - uv[:, 0], atol=2e-6)
    np.testing.assert_allclose(mirrored_uv[:, 1], uv[:, 1], atol=2e-6)
    np.testing.assert_allclose(mirrored_depth, depth, atol=2e-6)


def test_mirrored_records_are_what_the_mirrored_camera_sees():
    source, _ = sources.make(make_config(mirror=True, size=32))
    assert len(source) == 192 and len(source.labels) == 192
    symmetric = []
    for index in (1, 12, 14, 30, 45):
        plain, mirrored = source[index], source[96 + index]
        np.testing.assert_array_equal(mirrored['image'], plain['image'][:, ::-1])
        np.testing.assert_array_equal(mirrored['label'], source.labels[96 + index])
        assert mirrored['captions'] == plain['captions']
        rig = cameras_of(mirrored['label'])
        scene = source.pictures.source.scene(index)  # each of the four shapes is its own mirror image
        seen = toy.render(scene, rig.world_from_cam[None], rig.intrinsics[None], 32)['image'][0, ..., 3]
        truth = toy.record(scene, *source.pictures.source.angles(index), 32)['image'][0, ..., 3]
        assert (seen != truth[:, ::-1]).mean() < 0.01
        symmetric.append((seen == truth).all())
    assert not all(symmetric)


def test_mirroring_drops_captions_of_left_and_right():
    class Pictures:
        labels, size = np.zeros((1, 25), np.float32), 2

        def __len__(self):
            return 1

        def text(self, index):
            return {
                'captions': ('a lamp left of a bed', 'a lamp', 'the right shoe', 'copyright'),
                'attributes': {},
                'name': 'x',
            }

    source = single_view.SingleView(Pictures(), background=1.0, posed=True, mirror=True)
    assert len(source.text(0)['captions']) == 4 and source.text(1)['captions'] == ('a lamp', 'copyright')
    assert len(list(source.captions())) == 6
    with pytest.raises(UsageError, match='data.mirror with data.scenes=both: captions of left and right'):
        sources.make(make_config(mirror=True, scenes='both'))


# --------------------------------------------------------------------------------------------------------------- modes


def test_poses_of_a_distribution_are_drawn_from_its_ranges():
    config = make_config(mode='pose-distribution', yaw=(-0.5, 1.0), pitch=(0.1, 0.4), radius=2.7, fov=0.3)
    source, transform = sources.make(config)
    example = transform(source[3], np.random.default_rng(1))
    assert source.labels is None and not example['label'].any() and example['label'].shape == (25,)
    assert example['fake_labels'].shape == (3, 25) and example['fake_labels'].dtype == np.float32
    table = single_view.labels(config)
    np.testing.assert_array_equal(table, single_view.labels(config))
    yaw, pitch, radius = cameras.angles(cameras.from_eg3d(table).world_from_cam)
    for values, low, high in ((yaw, -0.5, 1.0), (pitch, 0.1, 0.4)):
        assert low - 1e-5 <= values.min() < low + 0.01 and high - 0.01 < values.max() <= high + 1e-5
        assert abs(np.mean(values) - (low + high) / 2) < 0.02 * (high - low)
    truth = cameras.to_eg3d(cameras.orbit(yaw, pitch, 2.7, 0.3))
    np.testing.assert_allclose(table, truth, atol=2e-6)
    np.testing.assert_allclose(radius, 2.7, atol=1e-5)
    config = configs.load(
        'configs/ganfusion_gan.py:ffhq', ['data.mode=pose-distribution', 'data.yaw=(0.2, 0.3)', 'data.radius=5.0']
    )
    yaw, _, radius = cameras.angles(cameras.from_eg3d(single_view.labels(config)).world_from_cam)
    assert 0.2 - 1e-5 <= yaw.min() and yaw.max() <= 0.3 + 1e-5 and abs(radius[0] - 5.0) < 1e-5
    with pytest.raises(UsageError, match='data.yaw and data.pitch: all 100 labels are of one pose'):
        sources.make(make_config(mode='pose-distribution', yaw=(0.0, 0.0), pitch=(0.2, 0.2)))


@pytest.mark.parametrize(
    'data, message',
    [
        ({'mode': 'single-view frontal'}, "data.mode='single-view frontal' is refused: .* degenerates to a billboard"),
        ({'mode': 'posed-knwon'}, "unknown data.mode 'posed-knwon'. Did you mean 'posed-known'"),
        ({'name': 'ffhq'}, "unknown single-view data set .data.name. 'ffhq'"),
        ({'name': 'eg3d'}, "data.name='eg3d' needs data.path"),
        ({'split': 'tset'}, "unknown split of toy .data.split. 'tset'. Did you mean 'test'"),
        ({'scenes': 'triples'}, "unknown toy scenes .data.scenes. 'triples'"),
    ],
)
def test_what_is_wrong_is_refused(data, message):
    with pytest.raises(UsageError, match=message):
        sources.make(make_config(**data))


# ----------------------------------------------------------------------------------------------------------- furniture


class Catalogue:
    """Forty records of sixteen views; the red of a picture is its record, the green its view, the alpha a column."""

    def __init__(self, path, split, *, size, variants):
        self.size, self.folder = size, 'furniture'
        assert (path, split, size, variants) == (None, 'train', 4, 7)
        self.folder = 'where it was built'

    def __len__(self):
        return 40

    def __getitem__(self, index):
        assert type(index) is int
        views = np.zeros((16, 4, 4, 4), np.uint8)
        views[..., 0], views[..., 1], views[..., :3, 3] = index, np.arange(16)[:, None, None], 255
        pose, lens = toy.camera_arrays(np.arange(16) * 0.3, np.full(16, 0.2), 3.5, 0.7)
        text = {'captions': ('a chair',), 'attributes': {'noun': 'chair'}, 'name': f'chair-{index}'}
        return {'image': views, 'depth': 0, 'world_from_cam': pose, 'intrinsics': lens, **text}


def test_furniture_shows_one_view_of_each_object_and_variant(monkeypatch):
    monkeypatch.setattr(furniture_source, 'FurnitureSource', Catalogue)
    one_view.furniture.cache_clear()
    config = make_config(name='furniture', size=4, variants=7, background=1.0)
    source, _ = sources.make(config)
    pose, lens = toy.camera_arrays(np.arange(16) * 0.3, np.full(16, 0.2), 3.5, 0.7)
    views = []
    for index in range(40):
        record = source[index]
        view = int(record['image'][0, 0, 1])
        views.append(view)
        np.testing.assert_array_equal(record['image'][:, :3], np.broadcast_to([index, view, 0], (4, 3, 3)))
        np.testing.assert_array_equal(record['image'][:, 3], 255)
        np.testing.assert_array_equal(record['label'], np.concatenate([pose[view].ravel(), lens[view].ravel()]))
        assert record['name'] == f'chair-{index}' and record['captions'] == ('a chair',)
    assert len(set(views)) >= 13  # 40 throws of 16
    again, other = (
        [int(made[k]['image'][0, 0, 1]) for k in range(40)]
        for made in (sources.make(config)[0], sources.make(make_config(name='furniture', size=4, variants=7, seed=4))[0])
    )
    assert again == views and other != views
    few, _ = sources.make(make_config(name='furniture', size=4, variants=7, train_views=5))
    assert {int(few[k]['image'][0, 0, 1]) for k in range(40)} == {0, 1, 2, 3, 4}
    words = sources.resolve(make_config(TEXT, name='furniture', size=4, variants=7)).text.words
    assert words == ('a', 'chair')
    one_view.furniture.cache_clear()


def test_the_hash_picks_every_view_about_as_often():
    counts = np.bincount([one_view.chosen_view(index, 0, 16) for index in range(4213)], minlength=16)
    expected = 4213 / 16
    assert np.sum((counts - expected) ** 2 / expected) < 37.7  # chi-squared, 15 degrees of freedom, 0.1 %


def test_transparency_is_laid_on_the_background():
    image = np.zeros((1, 4, 4), np.uint8)
    image[0, :, :3], image[0, :, 3] = 200, (0, 64, 128, 255)
    laid = single_view.composite(image, 0.5)
    truth = [200 * a / 255 + 127.5 * (1 - a / 255) for a in (0, 64, 128, 255)]
    assert laid.dtype == np.uint8 and np.abs(laid[0, :, 0] - truth).max() <= 0.5 + 1e-4 and laid[0, 3, 0] == 200
    rgb = np.asarray(PIL.Image.new('RGB', (2, 2), (1, 2, 3)))
    assert single_view.composite(rgb, 0.5) is rgb
