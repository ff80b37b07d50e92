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

from t3d.core import config as configs
from t3d.core import numerics
from t3d.core.errors import UsageError
from t3d.data import shapes
from t3d.geom import cameras
from t3d.train import evaluate, evaluate_gan, evaluate_triplanes, inference

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
        }
    )


def paints(scene_of):
    """A Painter that shows scene_of(attributes of the caption)."""
    by_caption = {scene.captions[0]: scene for scene in shapes.singles('all')}

    class Fake:
        asked = []

        def __init__(self, loaded):
            pass

        def pictures(self, prompts, labels, *, seed=0, scale=None):
            Fake.asked.append(scale)
            return true_pictures([scene_of(by_caption[text].attributes) for text in prompts], labels)

    return Fake


def truth(attributes):
    return shapes.single(attributes['shape'], attributes['colour'], attributes['size'])


def wrong_colour(attributes):
    colour = COLOURS[(COLOURS.index(attributes['colour']) + 1) % 8]
    return shapes.single(attributes['shape'], colour, attributes['size'])


def scored(monkeypatch, scene_of, params=None, **options):
    monkeypatch.setattr(evaluate_triplanes, 'Painter', paints(scene_of))
    loaded = inference.Loaded(config(), None, params or {}, 'fake', 1)
    return evaluate.evaluate(loaded, limit=2, **options)


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
    whole = evaluate_triplanes.prompts_of(config('all'), config('all'))
    assert set(whole) == {'seen'} and len(whole['seen']) == 64
    parted = evaluate_triplanes.prompts_of(config(), config())
    assert [(name, len(rows)) for name, rows in parted.items()] == [('seen', 48), ('held_out', 16)]
    assert not {text for text, _ in parted['seen']} & {text for text, _ in parted['held_out']}


def test_the_ceiling_is_the_generator_alone(monkeypatch):
    frozen = {**small_triplanes.loaded().params, 'stats': {}}
    scores = scored(monkeypatch, truth, {'frozen': frozen})
    assert scores['ceiling/kid_tiny'] > scores['kid_tiny'] + 0.01  # a random generator: worse than the truth
    assert scores['to_ceiling/kid_tiny'] > 0.01


@pytest.mark.parametrize('two_faced', [False, True])
def test_the_ceiling_of_captions_is_what_two_views_agree_on(monkeypatch, two_faced):
    class Studio:
        """Every object is a cube of a size and a colour, which another camera sees as the next one."""

        calls = 0

        def __init__(self, config, tree):
            pass

        def styles(self, seeds, psi):
            return np.asarray(seeds)

        def images(self, styles, labels):
            Studio.calls += 1
            lie = two_faced and Studio.calls == 2
            cubes = [shapes.single('cube', COLOURS[(k + lie) % 8], ('small', 'large')[k % 2]) for k in styles]
            return true_pictures(cubes, labels)

    monkeypatch.setattr(evaluate_gan, 'Studio', Studio)
    scores = scored(monkeypatch, truth, {'frozen': {'generator': {}, 'buffers': {}}})
    found = {slot: scores[f'ceiling/{slot}'] for slot in ('colour', 'shape', 'size', 'both')}
    assert found == {'colour': 1.0 - two_faced, 'shape': 1.0, 'size': 1.0, 'both': 1.0 - two_faced}


def test_the_sweep_sets_the_guidance(monkeypatch):
    fake = paints(truth)
    monkeypatch.setattr(evaluate_triplanes, 'Painter', fake)
    lines = []
    rows = evaluate_triplanes.sweep(inference.Loaded(config(), None, {}, 'fake', 1), (1, 7.5), lines.append, samples=1)
    assert [row['guidance'] for row in rows] == [1.0, 7.5] and fake.asked == [1.0, 1.0, 7.5, 7.5]
    assert lines[1].startswith('guidance 7.5: seen/colour 1.000, seen/shape 1.000, held_out/both 1.000, kid_tiny')
    assert rows[0]['seen/n'] == 48


def test_the_command_writes_figures_and_plots(tmp_path, monkeypatch, capsys):
    from launch import guidance_sweep

    monkeypatch.setattr(evaluate_triplanes, 'Painter', paints(wrong_colour))
    monkeypatch.setattr(inference, 'load', lambda folder: inference.Loaded(config(), None, {}, 'fake', 1))
    guidance_sweep.main(['run', '--scales', '1', '3', '--samples', '1', '--out', str(tmp_path / 'sweep.png')])
    assert {path.name for path in tmp_path.iterdir()} == {'sweep.png', 'sweep.json', 'sweep-kid_tiny.png'}
    rows = json.loads((tmp_path / 'sweep.json').read_text())
    assert [(row['guidance'], row['seen/colour'], row['seen/shape']) for row in rows] == [(1.0, 0.0, 1.0), (3.0, 0.0, 1.0)]
    assert f'open {tmp_path / "sweep.png"}' in capsys.readouterr().out


def test_the_set_of_a_run_without_its_pairs():
    """Shared weights of toy are scored on toy; others say where to run."""
    made = configs.from_dict({**config().to_dict(), 'data': {'name': 'triplanes', 'path': 'nowhere'}})
    data = evaluate_triplanes.data_config(made)
    assert (data.data.name, data.data.size, data.data.split, data.render) == ('toy', 32, 'all', made.render)
    assert evaluate_gan.real(data, 4)[0].shape == (4, 32, 32, 3)
    other = configs.from_dict({**made.to_dict(), 'text': {'words': ('chair',), 'length': 8}})
    with pytest.raises(UsageError, match='nowhere .data.path., which names them, is not here: run it where the pairs are'):
        evaluate_triplanes.data_config(other)


# ------------------------------------------------------------------------------------------------------------- painter


def labels(count):
    random = np.random.default_rng(0)
    views = cameras.orbit(random.uniform(-3, 3, count), random.uniform(0, 0.6, count), 3.2, 0.7)
    return np.asarray(cameras.to_eg3d(views))


@pytest.mark.parametrize('peer', [test_ganfusion_diffusion, test_renderdiffusion], ids=['ganfusion', 'renderdiffusion'])
def test_a_picture_is_that_of_its_own_planes_prompt_and_label(peer):
    """Three pictures in batches of two, against the model one by one."""
    made, model, params = peer.config(), peer.model(), peer.params()
    painter = evaluate_triplanes.Painter(inference.Loaded(made, None, params, 'x', 1), batch=2)
    prompts, where = ['a red cube', 'a blue cone', 'a red cube'], labels(3)
    shown = painter.pictures(prompts, where, seed=5, scale=2.0)
    size = shown.shape[1]
    assert shown.shape == (3, size, size, 3) and 0 <= shown.min() and shown.max() <= 1
    if hasattr(model, 'generator'):
        look = lambda planes, views: numerics.to_unit(model.rendered(model.scene(params, planes), views)[1])
    else:
        look = lambda planes, views: model.render_rays(model.scene(params, planes), cameras.rays(views, size, size)).features
    look = jax.jit(look)
    for k in (0, 2):
        key = jax.random.fold_in(jax.random.key(5), k)
        planes = model.draw(params, model.text.tokenize([prompts[k]] * 2), jax.numpy.stack([key, key]), 2.0)  # compiled for two
        want = look(planes[0], cameras.from_eg3d(where[k : k + 1]))[0]
        np.testing.assert_allclose(shown[k], want, atol=2e-4)
    assert np.abs(shown[0] - shown[2]).max() > 1e-3  # other noise and another side
    other = painter.pictures(prompts, where, seed=5, scale=7.5)
    assert np.abs(shown - other).max() > 1e-4
    turned = painter.around(prompts[:2], where[:2], seed=5)
    for view in range(2):
        same = painter.pictures(prompts[:2], np.stack([where[view]] * 2), seed=5)
        np.testing.assert_allclose(turned[:, view], same, atol=1e-6)


def test_the_sheet_shows_captions_of_the_whole_list_from_all_sides(tmp_path):
    class Painter:
        def around(self, prompts, labels):
            self.asked = prompts, labels
            return np.zeros((len(prompts), len(labels), 32, 32, 3), np.float32)

    painter, captions = Painter(), [text for text, _ in evaluate_triplanes.prompts_of(config('all'), config('all'))['seen']]
    path = evaluate_triplanes.sheet(painter, captions, config('all'), tmp_path)
    prompts, where = painter.asked
    assert len(prompts) == len(set(prompts)) == 8 and prompts[0] == captions[0] and prompts[-1] == captions[-1]
    azimuth = np.unwrap(cameras.angles(cameras.from_eg3d(where).world_from_cam)[0])
    np.testing.assert_allclose(np.diff(azimuth), np.pi / 4, atol=1e-5)
    assert path == str(tmp_path / 'samples.png') and Image.open(path).width >= 8 * 96
