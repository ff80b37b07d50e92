"""The reader of toy_endless on objects that it has never seen, against errors written out; and the scores made of it."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import small_triplanes
from PIL import Image

from t3d.build import captioners
from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.core.outputs import Field
from t3d.core.system import Given, System, anything
from t3d.data.sets import endless, endless_reader, oracle, shapes, toy
from t3d.evaluate import endless_objects, generated_objects
from t3d.export import sheets
from t3d.geom import cameras
from t3d.inference import loading

GREY, COUNT = 0.5, 60


@functools.cache
def reader():
    """A tenth of the drawings of the real one."""
    return endless_reader.Reader(GREY, singles=12, pairs=4)


def drawn(scenes, labels, size=64):
    """[N, V, S, S, 3] of scenes from their labels [N, V, 25]."""
    images = []
    for scene, own in zip(scenes, labels, strict=True):
        poses, lenses = own[:, :16].reshape(-1, 4, 4), own[:, 16:].reshape(-1, 3, 3)
        images.append(oracle.composite(toy.render(scene, poses, lenses, size, 3)['image'], GREY))
    return np.stack(images)


@functools.cache
def objects():
    """(scenes of the test split, labels [N, 2, 25], pictures)."""
    scenes, labels = [endless.scene(3, 'test', k) for k in range(COUNT)], endless_objects.seen_from(COUNT)
    return scenes, labels, drawn(scenes, labels)


def test_objects_that_were_never_drawn_are_read():
    scenes, labels, images = objects()
    read = reader()(images, labels)
    assert all(slots['solids'] == len(scene.objects) for slots, scene in zip(read, scenes, strict=True))
    for slot in ('shape', 'colour', 'size', 'shape_b', 'colour_b'):
        right = [slots[slot] == scene.attributes.get(slot) for slots, scene in zip(read, scenes) if slot in slots]
        assert np.mean(right) >= 0.9 and len(right) > 8
    assert max(slots['distance'] for slots in read) < endless_objects.CLEAR
    captions = [endless_reader.caption(slots, k) in scene.captions for k, (slots, scene) in enumerate(zip(read, scenes))]
    assert np.mean(captions) > 0.8


def test_nothing_and_noise_are_not_clear():
    labels = endless_objects.seen_from(2)
    nothing, noise = np.full((2, 2, 64, 64, 3), GREY), np.random.default_rng(0).uniform(size=(2, 2, 64, 64, 3))
    for images in (nothing, noise):
        assert min(slots['distance'] for slots in reader()(images, labels)) > endless_objects.CLEAR


@pytest.mark.parametrize('solids', [1, 2])
def test_colours_and_distance_are_the_least_squares_of_the_drawing(solids):
    """A candidate itself in colours of its own: numpy's least squares over all pixels of both views find nothing better."""
    number = next(k for k, (scene, _) in enumerate(reader().things) if len(scene.objects) == solids)
    scene, words = reader().things[number]
    rgb = ((0.8, 0.1, 0.1), (0.1, 0.6, 0.2))[:solids]
    true = scene._replace(objects=tuple(one._replace(rgb=own) for one, own in zip(scene.objects, rgb)))
    labels = endless_objects.seen_from(1)
    images = drawn([true], labels, endless_reader.SIZE)
    images += np.random.default_rng(1).normal(0, 0.02, images.shape)
    [slots] = reader()(images, labels)
    assert {name: slots[name] for name in words} == words
    light, hidden = [], []
    for camera in reader().cameras(labels)[0]:
        bank = reader().banks[camera]
        light.append(bank.light[number, :solids])
        hidden.append(bank.hidden[number])
    light, hidden = np.concatenate(light, -1).T.astype(np.float64), np.concatenate(hidden)[:, None]
    colours, errors, *_ = np.linalg.lstsq(light, images.reshape(-1, 3) - hidden, rcond=None)
    np.testing.assert_allclose(colours, rgb, atol=0.03)
    added = np.sum((light @ colours - (GREY - hidden)) ** 2)
    assert slots['distance'] == pytest.approx(np.sqrt(errors.sum() / added), abs=2e-3)


def test_what_cannot_be_read_is_refused():
    labels = endless_objects.seen_from(1)
    with pytest.raises(UsageError, match='does not know'):
        reader()(np.zeros((1, 2, 32, 32, 3)), labels + 0.01)
    with pytest.raises(UsageError, match='40 px'):
        reader()(np.zeros((1, 2, 40, 40, 3)), labels)
    with pytest.raises(UsageError, match='toy_endless'):
        captioners.make('endless', small_triplanes.config())


def test_scores_are_whole_for_the_truth_and_chance_for_others():
    scenes, labels, images = objects()
    scores = endless_objects.readings(reader(), images, labels, scenes)
    assert min(scores[name] for name in ('colour', 'alike/colour', 'clear')) > 0.9 and scores['both'] > 0.75
    assert scores['control/both_shuffled'] < 0.1 and scores['objects_n'] == COUNT
    others = endless_objects.readings(reader(), np.roll(images, 7, 0), np.roll(labels, 7, 0), scenes)
    assert others['both'] < 0.2 and others['alike/colour'] == scores['alike/colour']


def test_a_captioner_that_knows_its_cameras_has_words_for_every_slot():
    config = configs.load('configs/ganfusion_gan.py:endless', [])
    captioner = captioners.make('endless', config)
    np.testing.assert_array_equal(captioner.labels, endless_reader.labels())
    assert captioner.render({'solids': 1, 'shape': 'cone', 'colour': 'red', 'size': 'small'}) == 'a small red cone'
    two = {'solids': 2, 'shape': 'cone', 'colour': 'red', 'shape_b': 'cube', 'colour_b': 'black'}
    assert captioner.render(two) == shapes.pair(('cone', 'red'), 'on top of', ('cube', 'black')).captions[0]


def test_a_slot_is_scored_where_the_caption_has_it():
    """Readings by hand: of three single solids one is read as a pair, and of two pairs one as a single solid."""
    one = {'solids': 1, 'shape': 'cone', 'colour': 'red', 'size': 'small', 'distance': 0.1}
    two = {'solids': 2, 'shape': 'cone', 'colour': 'red', 'shape_b': 'cube', 'colour_b': 'black', 'distance': 0.1}
    scenes = [shapes.single('cone', 'red', 'small')] * 3 + [shapes.pair(('cone', 'red'), 'on top of', ('cube', 'black'))] * 2
    read = [one, {**one, 'size': 'large'}, two, one, {**two, 'colour_b': 'red'}]
    nothing = np.zeros((5, 2, 8, 8, 3))
    scores = endless_objects.readings(lambda images, labels: read, nothing, np.zeros((5, 2, 25)), scenes)
    assert scores['size'] == 1 / 3 and scores['shape_b'] == 1 / 2 and scores['colour_b'] == 0.0  # not 2/5, 3/5, 2/5
    assert scores['shape'] == scores['colour'] == 1.0 and scores['both'] == 2 / 5 and scores['solids'] == 3 / 5
    assert [scores[f'{slot}_n'] for slot in endless_objects.SLOTS] == [5, 5, 3, 2, 2]
    assert scores['control/size_shuffled'] == 1 / 3 and scores['control/shape_b_shuffled'] == 1 / 2


# --------------------------------------------------------------------------------------------------- what evaluate says


@pytest.fixture
def generator(monkeypatch):
    """A random generator whose set is toy_endless."""
    monkeypatch.setattr(endless_reader, 'Reader', lambda background: reader())
    loaded = small_triplanes.loaded()
    changed = {**loaded.config.to_dict(), 'data': {**loaded.config.data.to_dict(), 'name': 'toy_endless', 'count': 9}}
    return loaded._replace(config=configs.from_dict(changed))


def painter(generator, psi=1.0):
    """A text model that was given the generator and shows a true object of each caption, from the nearest known camera."""
    known = endless_reader.labels()
    scenes = {scene.captions[0]: scene for scene in endless_objects.asked_for(generator.config, 40)}

    def picture(scene, views):
        places = jnp.asarray(known[:, :16].reshape(-1, 4, 4)[:, :3, 3])
        far = jnp.linalg.norm(views.world_from_cam[:, None, :3, 3] - places, axis=-1)
        return scene[jnp.argmin(far, -1)]

    @functools.cache
    def seen(caption):
        return jnp.asarray(drawn([scenes[caption]], known[None], 32)[0])

    def generate(weights, requests, keys, given):
        return [Field(request.prompt, seen(request.prompt), None, None, 1.0, {}, picture) for request in requests]

    given = {'generator': Given(generator.system.functions, generator.weights, generator.config, 'small')}
    config = configs.from_dict({'system': 'my_system', 'psi': psi, 'data': {'name': 'triplanes'}})
    return loading.Loaded(config, System(None, None, None, generate, anything, (), (), {}), {}, 'painter', 1, None, given)


def test_a_generator_is_scored_by_itself(generator):
    """All scores of an untrained one: objects of nothing, the true ones beside them."""
    scores = endless_objects.evaluate(generator, limit=6)
    assert scores['control/true/colour'] > 0.9 and scores['clear'] < 0.5 and 'shape' not in scores
    assert {'test/kid_tiny', 'control/test/real/kid_tiny'} <= set(scores) and 'kid_tiny' not in scores
    assert scores['test/fid_tiny_n'] == 6 == scores['objects_n'] and generator.config.data.size == 32


def test_the_sets_of_a_distance_share_neither_objects_nor_cameras(generator, monkeypatch):
    rendered, compared = [], []
    true_pictures, distances = endless_objects.true_pictures, generated_objects.distances
    monkeypatch.setattr(
        endless_objects, 'true_pictures', lambda *args: rendered.append((*args, true_pictures(*args))) or rendered[-1][-1]
    )
    monkeypatch.setattr(generated_objects, 'distances', lambda *sets: compared.append(sets) or distances(*sets))
    endless_objects.evaluate(painter(generator), limit=5)
    samples, ceiling = compared
    sets = [next(row for row in rendered if np.array_equal(row[3][:, 0], pictures)) for pictures in samples[1:]]
    np.testing.assert_array_equal(ceiling[1:], samples[1:])
    views = endless_objects.views_of(5)
    drawn_samples = endless_objects.draw(painter(generator), [s.captions[0] for s in rendered[0][0]], views, generator.config)
    np.testing.assert_array_equal(samples[0], drawn_samples[:, 2])
    asked = endless_objects.asked_for(generator.config, 5)
    objects = [scene.objects for some in (asked, *(scenes for scenes, *_ in sets)) for scene in some]
    seen_from = np.concatenate([views[:, 2], *(labels[:, 0] for _, labels, *_ in sets)])
    assert len(set(objects)) == len(objects) == 15 and len(np.unique(seen_from, axis=0)) == 15
    apart = np.abs(seen_from[:, None] - endless_reader.labels()).max(-1)
    assert apart.min() > 1e-3  # none of the cameras that are read from
    elevation = np.arcsin(seen_from[:, 7] / shapes.RADIUS)
    assert toy.ELEVATION[0] <= elevation.min() and elevation.max() <= toy.ELEVATION[1] and np.ptp(elevation) > 0.6


def test_a_text_model_is_scored_beside_its_generator(generator):
    """One that shows what is asked for is right; its ceiling is what the generator scores when it is loaded alone."""
    scores = endless_objects.evaluate(painter(generator), limit=8)
    assert min(scores['colour'], scores['solids'], scores['alike/colour'], scores['clear']) > 0.8
    assert scores['control/colour_shuffled'] < 0.5 and scores['size_n'] + scores['shape_b_n'] == 8 == scores['shape_n']
    alone = endless_objects.evaluate(generator, limit=8)
    own = {f'ceiling/{name}': value for name, value in alone.items() if 'control' not in name}
    assert {name: value for name, value in scores.items() if name.startswith('ceiling')} == pytest.approx(own)
    assert own['ceiling/clear'] < scores['clear'] and own['ceiling/test/kid_tiny'] > scores['test/kid_tiny']
    cut = endless_objects.evaluate(painter(generator, psi=0.3), limit=8)
    assert cut['ceiling/distance'] != pytest.approx(own['ceiling/distance'])


def test_the_sheet_has_a_sample_over_its_true_object(generator, monkeypatch, tmp_path):
    monkeypatch.setattr(endless_objects, 'ROWS', 2)
    monkeypatch.setattr(endless_objects, 'TURNS', 4)
    made, sheet = [], sheets.sheet
    monkeypatch.setattr(sheets, 'sheet', lambda rows, names, **options: made.append((rows, names)) or sheet(rows, names))
    loaded = painter(generator)
    path = endless_objects.write_sheet(loaded, generator.config, tmp_path)
    [(rows, names)] = made
    scenes = endless_objects.asked_for(generator.config, 2)
    assert names == [scenes[0].captions[0], 'true', scenes[1].captions[0], 'true'] and rows.shape == (4, 4, 32, 32, 3)
    label = np.asarray(cameras.to_eg3d(generated_objects.ring(generator.config, 4)))
    expected = drawn(scenes, np.broadcast_to(label, (2, 4, 25)), 32)
    np.testing.assert_allclose(rows[1::2], expected, atol=0.5)  # other rays in a pixel: only edges differ
    assert np.abs(rows[1::2] - expected).mean() < 0.01 < np.abs(rows[1] - rows[3]).mean()
    assert np.asarray(Image.open(path)).shape[1] >= 4 * 32 and path == str(tmp_path / 'samples.png')


def test_pictures_stand_beside_the_true_ones_from_their_cameras(generator):
    shown = endless_objects.pictures(painter(generator), limit=4)
    scenes = endless_objects.asked_for(generator.config, 4)
    assert shown.prompts == [scene.captions[0] for scene in scenes] and shown.paired
    assert shown.shown.shape == shown.true.shape == (4, 2, 32, 32, 3)
    assert np.abs(shown.true - drawn(scenes, endless_objects.seen_from(4), 32)).mean() < 0.01
    own, other = (np.abs(shown.shown - true).mean() for true in (shown.true, np.roll(shown.true, 1, 0)))
    assert own < 0.5 * other
