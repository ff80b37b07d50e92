"""Seeds beside real objects: the metric in a loop, the captions that are asked, models whose seeds are known, and the sheet."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from test_evaluate import loaded_with, looked_up
from test_evaluate import objects as objects  # the fixture: records with the furniture's rig

import launch.seed_sheet
from t3d import cli
from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.core.outputs import Field, Request
from t3d.data.sets import open_captions, oracle, shapes, toy
from t3d.evaluate import object_seeds, table
from t3d.export import renders, sheets
from t3d.inference import loading
from t3d.metrics import seeds


def test_the_scores_are_those_of_loops():
    random = np.random.default_rng(0)
    shown, true = random.uniform(size=(5, 2, 3, 3, 3)), random.uniform(size=(4, 2, 3, 3, 3))
    rms = lambda a, b: np.sqrt(np.mean((a - b) ** 2))
    apart = [[rms(a, b) for b in true] for a in shown]
    pairs = lambda views: np.mean([rms(views[i], views[j]) for i in range(len(views)) for j in range(i)])
    scores = seeds.beside(shown, true)
    np.testing.assert_allclose(scores['best'], min(map(min, apart)), rtol=1e-6)
    np.testing.assert_allclose(scores['nearest'], np.mean([min(row) for row in apart]), rtol=1e-6)
    np.testing.assert_allclose(scores['reached'], np.mean([min(column) for column in zip(*apart, strict=True)]), rtol=1e-6)
    np.testing.assert_allclose(scores['spread'], pairs(shown) / pairs(true), rtol=1e-6)
    np.testing.assert_allclose(seeds.distances(shown, true), apart, rtol=1e-6)


@pytest.fixture
def named(objects, monkeypatch):
    """Twelve objects: five chairs, seven tables of which four are low; lamps are too few to be asked for."""
    said = (
        [('chair', 'a chair')] * 5
        + [('table', 'a table', 'a low table')] * 4
        + [('table', 'a table')] * 2
        + [('table', 'a lamp')]
    )
    objects[:] = [{**record, 'captions': captions} for record, captions in zip(objects, said, strict=True)]
    monkeypatch.setattr(object_seeds, 'SIZE', 8)
    return objects


def test_captions_that_are_asked_are_one_for_each_set_of_objects(named):
    config = loaded_with({}, 'instant3d.py:furniture').config
    groups = object_seeds.asked(config, None, None)
    assert {caption: len(records) for caption, records in groups.items()} == {
        'table': 7,
        'chair': 5,
        'a low table': 4,
        'a table': 6,
    }
    assert list(object_seeds.asked(config, 2, None)) == ['table', 'a low table']
    views = object_seeds.views_of(named[:3], 1.0)
    assert views.shape == (3, 4, 8, 8, 3)
    whole = oracle.composite(named[2]['image'][7], 1.0)
    np.testing.assert_allclose(views[2, 2, 3, 5], whole[6:8, 10:12].mean((0, 1)), rtol=1e-6)


def that_shows(records, chosen):
    """A model whose k-th request of a caption shows its object `chosen(k, how many there are)`."""
    loaded, asked = loaded_with({}, 'instant3d.py:furniture'), {}

    def generate(params, requests, keys, given):
        fields = []
        for request in requests:
            k = asked[request.prompt] = asked.get(request.prompt, -1) + 1
            true = [record for record in records if request.prompt in record['captions']]
            record = true[chosen(k, len(true))]
            names = ('world_from_cam', 'intrinsics')
            scene = {'image': oracle.composite(record['image'], 1.0), 'knows': 1.0} | {name: record[name] for name in names}
            fields.append(Field(request.prompt, scene, None, looked_up, 1.0, {}))
        return fields

    return loaded._replace(system=loaded.system._replace(generate=generate), weights={'knows': jnp.ones(())})


def test_seeds_that_show_every_object_are_told_from_seeds_that_show_one(named, monkeypatch):
    monkeypatch.setattr(object_seeds, 'SIZE', 16)
    every = table.evaluate(table.with_evaluators(that_shows(named, lambda k, count: k % count), ('object_seeds',)))
    assert every['seeds/captions'] == 4 and every['seeds/n'] == 32
    assert every['seeds/best'] < 0.03 and every['seeds/nearest'] < 0.03 and every['seeds/reached'] < 0.03
    assert 0.7 < every['seeds/spread'] <= 1.0 and every['control/mean_picture/spread'] < 1e-3
    assert every['control/objects_at_random/nearest'] < 1e-6 < 0.05 < every['control/other_caption/best']
    one = table.evaluate(table.with_evaluators(that_shows(named, lambda k, count: 0), ('object_seeds',)))
    assert one['seeds/best'] < 0.03 and one['seeds/spread'] < 1e-3 and one['seeds/reached'] > 0.1


def test_every_caption_has_a_row_of_its_own(named, monkeypatch, tmp_path, capsys):
    """A model that shows every chair, and of the tables one alone: the rows say so, on the screen and in the file."""
    monkeypatch.setattr(object_seeds, 'SIZE', 16)
    model = that_shows(named, lambda k, count: k % count if count == 5 else 0)
    monkeypatch.setattr(loading, 'load', lambda *args, **options: model)
    asked = ['eval', 'my_run', '--evaluate', 'object_seeds', '--json', str(tmp_path / 'scores.json')]
    assert cli.main(asked) == 0
    scores = json.loads((tmp_path / 'scores.json').read_text())
    rows = {row['caption']: row for row in scores['seeds/by_caption']}
    assert [(caption, row['objects']) for caption, row in rows.items()] == [
        ('table', 7),
        ('a table', 6),
        ('chair', 5),
        ('a low table', 4),
    ]
    assert (
        rows['chair']['spread'] > 0.7 > 0.01 > rows['table']['spread'] and rows['table']['reached'] > rows['chair']['reached']
    )
    for caption, row in rows.items():
        true = object_seeds.views_of([record for record in named if caption in record['captions']], 1.0)
        pairs = [np.sqrt(np.mean((a - b) ** 2)) for n, a in enumerate(true) for b in true[:n]]
        assert row['of objects'] == pytest.approx(np.mean(pairs), abs=6e-5)
        assert row['spread'] == pytest.approx(row['of seeds'] / row['of objects'], abs=2e-3)
    for name in ('best', 'nearest', 'reached', 'spread'):
        assert scores[f'seeds/{name}'] == pytest.approx(np.mean([row[name] for row in rows.values()]), abs=6e-5)
    printed = capsys.readouterr().out.split('seeds/by_caption\n')[1].splitlines()
    assert printed[0].split()[:3] == ['caption', 'objects', 'best'] and len(printed) == 5
    assert printed[3].split()[:2] == ['chair', '5'] and printed[3].split()[5] == f'{rows["chair"]["spread"]:.4g}'


def test_sets_without_such_captions_are_refused(objects):
    loaded = loaded_with({}, 'instant3d.py:furniture')
    with pytest.raises(UsageError, match='captions that are true of 4 objects or more, and furniture has 0 of them'):
        table.evaluate(table.with_evaluators(loaded, ('object_seeds',)))


def for_sheets(model):
    """A model of `that_shows` with a density everywhere in the box, which the sheet asks for before it renders."""

    def whole(scene, points):
        return jnp.ones(points.shape[:-1]), jnp.zeros(points.shape)

    def rendered(scene, rays):  # which start at several cameras
        return jax.vmap(functools.partial(looked_up, scene))(rays)

    def generate(params, requests, keys, given):
        fields = model.system.generate(params, requests, keys, given)
        camera = {'radius': shapes.RADIUS, 'fov': shapes.FOV}
        return [one._replace(field=whole, render=rendered, camera=camera) for one in fields]

    return model._replace(system=model.system._replace(generate=generate))


def test_below_each_seed_stands_the_object_that_it_shows(named, monkeypatch, tmp_path, capsys):
    chosen, made, write = (2, 0, 2, 3, 2), [], sheets.sheet
    model = for_sheets(that_shows(named, lambda k, count: chosen[k] if count == 4 else 1))
    monkeypatch.setattr(object_seeds, 'SIZE', 16)
    monkeypatch.setattr(loading, 'load', lambda run: model)
    monkeypatch.setattr(launch.seed_sheet, 'GRID', 8)
    monkeypatch.setattr(sheets, 'sheet', lambda rows, labels: made.append((rows, labels)) or write(rows, labels))
    asked = ['my_run', 'a low table', 'a chair', '--seeds', '5', '--size', '16', '--true', '--out', str(tmp_path / 'seeds.png')]
    launch.seed_sheet.main(asked)
    [(rows, labels)] = made
    tables = [record for record in named if 'a low table' in record['captions']]
    for k, place in enumerate(chosen):
        true = oracle.composite(tables[place]['image'][1], 1.0)  # azimuth 30, elevation 15
        np.testing.assert_allclose(rows[1][k], true, atol=1e-3)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith('a low table: nearest to 3 different of 4 objects (3, 1, 3, 4, 3), 0.0')
    assert printed[1].startswith('a chair: nearest to 1 different of 5 objects (2, 2, 2, 2, 2), 0.0')
    assert printed[2] == f'5 seeds of 2 prompts in {tmp_path / "seeds.png"}'
    assert labels[1] == printed[0].removeprefix('a low table: ') and labels[2] == 'a chair: seeds 0 to 4'


def test_the_nearest_object_is_that_of_a_loop_over_the_evaluators_pictures(named, monkeypatch):
    """Chairs beside the tables: none is one of them, and the distances are those of whole pictures from the shared cameras."""
    monkeypatch.setattr(object_seeds, 'SIZE', 16)
    tables = [record for record in named if 'table' in record['captions']]
    true, chairs = object_seeds.views_of(tables, 1.0), object_seeds.views_of(named[:5], 1.0)
    model = for_sheets(that_shows(named, lambda k, count: k))
    for k, asset in enumerate(model.system.generate({}, [Request('a chair')] * 5, None, {})):
        found = launch.seed_sheet.nearest(asset, np.ones((8, 8, 8), np.float32), tables, 1.0)
        apart = [np.sqrt(np.mean((chairs[k] - one) ** 2)) for one in true]
        assert found.distance == pytest.approx(min(apart), abs=0.01) and apart[found.place] < min(apart) + 0.01


def test_objects_whose_cameras_differ_are_compared_each_from_its_own(monkeypatch):
    """toy_open, whose records have cameras of their own: drawings of the third object are nearest to it."""
    config = configs.load('configs/instant3d.py:toy_places', ['data.size=16', 'data.poses=3', 'data.views=3'])
    records = launch.seed_sheet.objects(config, ['a red object', 'a sofa'])
    assert len(records['a red object']) == 4 and records['a sofa'] == []
    scene = open_captions.groups('all')['a red object'][2]

    def drawn(asset, views, size, grid):
        rgba = toy.render(scene, views.world_from_cam, views.intrinsics, size, 3)['image']
        return renders.Frames(oracle.composite(rgba, config.render.background), None, None)

    monkeypatch.setattr(renders, 'render_views', drawn)
    found = launch.seed_sheet.nearest(None, None, records['a red object'], config.render.background)
    assert found.place == 2 and found.distance < 1e-6
    assert launch.seed_sheet.summary([], 0) == 'the set says it of no object'
    side = launch.seed_sheet.picture(records['a red object'][2], 24, config.render.background)
    assert side.shape == (24, 24, 3) and np.ptp(side) > 0.2


def test_objects_count_once_and_cameras_are_shared(named, monkeypatch):
    config = loaded_with({}, 'instant3d.py:furniture').config
    named[:] = [{**record, 'captions': record['captions'] * 2} for record in named]
    assert {caption: len(records) for caption, records in object_seeds.asked(config, None, None).items()}['a low table'] == 4
    whole = list(named)
    named[6] = {**whole[6], 'world_from_cam': np.roll(whole[6]['world_from_cam'], 1, 0)}
    with pytest.raises(UsageError, match='those of furniture differ from object to object'):
        object_seeds.asked(config, None, None)
    named[:] = [{**record, 'image': record['image'][:6]} for record in whole]
    with pytest.raises(UsageError, match='reads view 10, and a record of furniture has 6 views'):
        object_seeds.asked(config, None, None)


def test_the_sheet_has_a_row_for_each_prompt(tmp_path, capsys):
    from PIL import Image

    out = tmp_path / 'sheet.png'
    asked = ['a red cube', 'a blue cone', 'a red cube']
    launch.seed_sheet.main([str(small_run.folder()), *asked, '--seeds', '3', '--size', '32', '--out', str(out)])
    image = np.asarray(Image.open(out))
    assert image.shape[1] == 3 * 96 + 8 and image.shape[0] > 2 * 96
    assert capsys.readouterr().out.endswith(f'3 seeds of 2 prompts in {out}\n')


@pytest.mark.parametrize(
    ('seeds', 'message'), [('0', '--seeds 0'), ('1', 'image_diffusion-toy makes picture: a sheet of seeds shows fields')]
)
def test_the_sheet_refuses_what_cannot_be(seeds, message, capsys):
    with pytest.raises(SystemExit):
        launch.seed_sheet.main(['image_diffusion-toy', 'a red cube', '--seeds', seeds])
    assert message in capsys.readouterr().err
