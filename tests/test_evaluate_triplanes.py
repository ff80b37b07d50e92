"""Scores of text to triplanes, against painters that tell the truth and that lie."""

import functools
import json

import jax
import numpy as np
import pytest
import small_triplanes
import test_ganfusion_diffusion
import test_renderdiffusion
from PIL import Image
from test_evaluate_gan import true_pictures

from t3d import systems
from t3d.checkpoint import judges
from t3d.core import config as configs
from t3d.core import numerics
from t3d.data.sets import shapes
from t3d.evaluate import align_head, captioned_objects, drawing, generated_objects, table
from t3d.evaluate import scores as chosen
from t3d.geom import cameras
from t3d.inference import loading

COLOURS = list(shapes.COLOURS)


@functools.cache
def config(split='train'):
    made = small_triplanes.config(data__split=split).to_dict()
    return configs.from_dict(
        {
            **made,
            'system': 'renderdiffusion',
            'text': {'words': shapes.WORDS, 'length': 8},
            'psi': 1.0,
            'sample': {'guidance': 2.0},
            'evaluate': ('captioned_objects',),
        }
    )


def paints(scene_of, asked=None):
    """A `draw` that shows scene_of(attributes of the caption)."""
    by_caption = {scene.captions[0]: scene for scene in shapes.singles('all')}

    def draw(loaded, prompts, labels, size):
        if asked is not None:
            asked.append(loaded.config.sample.guidance)
        return true_pictures([scene_of(by_caption[text].attributes) for text in prompts], labels)

    return draw


def truth(attributes):
    return shapes.single(attributes['shape'], attributes['colour'], attributes['size'])


def wrong_colour(attributes):
    colour = COLOURS[(COLOURS.index(attributes['colour']) + 1) % 8]
    return shapes.single(attributes['shape'], colour, attributes['size'])


def scored(monkeypatch, scene_of, given=None, **options):
    monkeypatch.setattr(captioned_objects, 'draw', paints(scene_of))
    loaded = loading.Loaded(config(), None, {}, 'fake', 1, None, given or {})
    return table.evaluate(loaded, limit=2, **options)


def test_the_truth_has_full_marks_and_its_control_chance(monkeypatch):
    scores = scored(monkeypatch, truth)
    chance = {  # of the other captions: 48 objects of 6 colours for each shape, 16 of 2
        'seen': dict(colour=5 / 47, shape=11 / 47, size=23 / 47, both=1 / 47),
        'held_out': dict(colour=1 / 15, shape=3 / 15, size=7 / 15, both=1 / 15),
    }
    for name, count in (('seen', 96), ('held_out', 32)):
        assert scores[f'{name}/n'] == count
        for slot in ('colour', 'shape', 'size', 'both'):
            assert scores[f'{name}/{slot}'] == 1.0
        control = {slot: scores[f'control/{name}/{slot}_shuffled'] for slot in ('colour', 'shape', 'size', 'both')}
        assert control == pytest.approx(chance[name])
        assert scores[f'{name}/readable'] == 1.0 and scores[f'{name}/distance'] < 0.15
    assert scores['fid_tiny_n'] == 48  # half of the small data set
    assert abs(scores['kid_tiny'] - scores['control/real/kid_tiny']) < 0.1


def test_a_wrong_colour_is_noticed_and_only_that(monkeypatch):
    scores = scored(monkeypatch, wrong_colour)
    assert scores['seen/colour'] == scores['seen/both'] == scores['held_out/colour'] == 0.0
    assert scores['seen/shape'] == scores['seen/size'] == scores['held_out/shape'] == 1.0


def test_all_objects_are_seen_where_the_generator_knew_all():
    whole = captioned_objects.prompts_of(config('all'), config('all'))
    assert set(whole) == {'seen'} and len(whole['seen']) == 64
    parted = captioned_objects.prompts_of(config(), config())
    assert [(name, len(rows)) for name, rows in parted.items()] == [('seen', 48), ('held_out', 16)]
    assert not {text for text, _ in parted['seen']} & {text for text, _ in parted['held_out']}


def test_the_ceiling_is_the_generator_alone(monkeypatch):
    scores = scored(monkeypatch, truth, small_triplanes.given(data__split='train'))
    assert scores['ceiling/kid_tiny'] > scores['kid_tiny'] + 0.01  # a random generator: worse than the truth
    assert scores['to_ceiling/kid_tiny'] > 0.01


@pytest.mark.parametrize('two_faced', [False, True])
def test_the_ceiling_of_captions_is_what_two_views_agree_on(monkeypatch, two_faced):
    class Fake:
        """Every object is a cube of a size and a colour, which another camera sees as the next one."""

        calls = 0

        def __init__(self, generator, tree):
            pass

        def styles(self, seeds, psi):
            return np.asarray(seeds)

        def images(self, styles, labels):
            Fake.calls += 1
            lie = two_faced and Fake.calls == 2
            cubes = [shapes.single('cube', COLOURS[(k + lie) % 8], ('small', 'large')[k % 2]) for k in styles]
            return true_pictures(cubes, labels)

    monkeypatch.setattr(generated_objects, 'GanRenderer', Fake)
    scores = scored(monkeypatch, truth, small_triplanes.given(data__split='train'))
    ceiling = {slot: scores[f'ceiling/{slot}'] for slot in ('colour', 'shape', 'size', 'both')}
    assert ceiling == {'colour': 1.0 - two_faced, 'shape': 1.0, 'size': 1.0, 'both': 1.0 - two_faced}


def test_the_sweep_sets_the_guidance(monkeypatch):
    asked, lines = [], []
    monkeypatch.setattr(captioned_objects, 'draw', paints(truth, asked))
    monkeypatch.setattr(systems, 'make', lambda config, given: None)
    rows = captioned_objects.sweep(loading.Loaded(config(), None, {}, 'fake', 1), (1, 7.5), lines.append, samples=1)
    assert [row['guidance'] for row in rows] == [1.0, 7.5] and asked == [1.0, 1.0, 7.5, 7.5]
    assert lines[1].startswith('guidance 7.5: seen/colour 1.000, seen/shape 1.000, held_out/both 1.000, kid_tiny')
    assert rows[0]['seen/n'] == 48


def test_the_command_writes_figures_and_plots(tmp_path, monkeypatch, capsys):
    from launch import guidance_sweep

    monkeypatch.setattr(captioned_objects, 'draw', paints(wrong_colour))
    monkeypatch.setattr(systems, 'make', lambda config, given: None)
    monkeypatch.setattr(loading, 'load', lambda folder: loading.Loaded(config(), None, {}, 'fake', 1))
    guidance_sweep.main(['run', '--scales', '1', '3', '--samples', '1', '--out', str(tmp_path / 'sweep.png')])
    assert {path.name for path in tmp_path.iterdir()} == {'sweep.png', 'sweep.json', 'sweep-kid_tiny.png'}
    rows = json.loads((tmp_path / 'sweep.json').read_text())
    assert [(row['guidance'], row['seen/colour'], row['seen/shape']) for row in rows] == [(1.0, 0.0, 1.0), (3.0, 0.0, 1.0)]
    assert f'open {tmp_path / "sweep.png"}' in capsys.readouterr().out


def test_the_set_is_the_runs_own_or_that_of_the_generator_it_was_given():
    alone = loading.Loaded(config(), None, {}, 'fake', 1)
    assert captioned_objects.data_config(alone) is alone.config
    given = small_triplanes.given()
    assert captioned_objects.data_config(alone._replace(given=given)) is given['generator'].config


def test_judges_of_captions_read_the_background_of_the_set_that_the_generator_was_trained_on(monkeypatch):
    """Stage 2 has no `render` and no colours of its own."""
    second = configs.from_dict({**test_ganfusion_diffusion.config().to_dict(), 'evaluate': ('captioned_objects',)})
    assert 'render' not in second
    loaded, seen = loading.Loaded(second, None, {}, 'fake', 1, None, small_triplanes.given()), {}
    monkeypatch.setattr(captioned_objects, 'draw', paints(truth))
    for name in ('image_encoder', 'text_encoder', 'imagenet_names'):
        monkeypatch.setattr(judges, name, lambda name=name: name)

    def judge(head, images, prompts, encode_images, encode_texts, background, colours):
        seen.update(corner=images[:, 0, 0, 0], count=len(images), background=background, colours=colours)
        return []

    monkeypatch.setattr(align_head, 'judge_pictures', judge)
    assert chosen.evaluate(loaded, ['align'], limit=2) == {}
    assert seen['count'] == 96 and seen['background'] == small_triplanes.RENDER['background'] and seen['colours'] is True
    np.testing.assert_allclose(seen['corner'], seen['background'], atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- drawing


def labels(count):
    random = np.random.default_rng(0)
    views = cameras.orbit(random.uniform(-3, 3, count), random.uniform(0, 0.6, count), 3.2, 0.7)
    return np.asarray(cameras.to_eg3d(views))


def loaded_of(peer):
    """A model with random weights, of the small system of another test file."""
    if peer is test_ganfusion_diffusion:
        return loading.Loaded(peer.config(), peer.system(), peer.params(), 'x', 1, None, peer.given())
    return loading.Loaded(peer.config(), systems.make(peer.config()), peer.params(), 'x', 1)


@pytest.mark.parametrize('peer', [test_ganfusion_diffusion, test_renderdiffusion], ids=['ganfusion', 'renderdiffusion'])
def test_a_picture_is_that_of_its_own_planes_prompt_and_label(peer):
    """Three pictures in batches of two, against the model one by one."""
    model, params, loaded = peer.model(), peer.params(), loaded_of(peer)
    prompts, where = ['a red cube', 'a blue cone', 'a red cube'], cameras.from_eg3d(labels(3))
    draw = lambda loaded, prompts, views: drawing.pictures(loaded, prompts, views, 16, evaluator='test', batch=2, seed=5)
    each = jax.tree.map(lambda leaf: leaf[:, None], where)
    images = draw(loaded, prompts, each)[:, 0]
    size = images.shape[1]
    assert images.shape == (3, size, size, 3) and 0 <= images.min() and images.max() <= 1
    if peer is test_ganfusion_diffusion:
        look = lambda planes, views: numerics.to_unit(model.rendered(model.scene(peer.frozen(), planes), views)[1])
    else:
        look = lambda planes, views: model.render_rays(model.scene(params, planes), cameras.rays(views, size, size)).features
    look = jax.jit(look)
    for k in (0, 2):
        key = jax.random.fold_in(jax.random.key(5), k)
        planes = model.draw(params, model.text.tokenize([prompts[k]] * 2), jax.numpy.stack([key, key]))  # compiled for two
        want = look(planes[0], jax.tree.map(lambda leaf, k=k: leaf[k : k + 1], where))[0]
        np.testing.assert_allclose(images[k], want, atol=2e-4)
    assert np.abs(images[0] - images[2]).max() > 1e-3  # other noise and another side
    around = jax.tree.map(lambda leaf: leaf[:2], where)
    turned = draw(loaded, prompts[:2], around)
    np.testing.assert_allclose(turned[0, 0], images[0], atol=1e-5)
    np.testing.assert_allclose(turned[1, 1], images[1], atol=1e-5)


def test_the_sheet_shows_captions_of_the_whole_list_from_all_sides(tmp_path, monkeypatch):
    def pictures(loaded, prompts, views, size, *, evaluator):
        asked.append((prompts, views))
        return np.zeros((len(prompts), len(views.world_from_cam), 32, 32, 3), np.float32)

    asked, captions = [], [text for text, _ in captioned_objects.prompts_of(config('all'), config('all'))['seen']]
    monkeypatch.setattr(drawing, 'pictures', pictures)
    path = captioned_objects.write_sheet(None, captions, config('all'), tmp_path)
    ((prompts, views),) = asked
    assert len(prompts) == len(set(prompts)) == 8 and prompts[0] == captions[0] and prompts[-1] == captions[-1]
    azimuth = np.unwrap(cameras.angles(views.world_from_cam)[0])
    np.testing.assert_allclose(np.diff(azimuth), np.pi / 4, atol=1e-5)
    assert path == str(tmp_path / 'samples.png') and Image.open(path).width >= 8 * 96
