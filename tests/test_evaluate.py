"""Scores against systems whose quality is known: one that renders the truth, one that is untrained, one that knows nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.core.outputs import Field
from t3d.core.system import System, TrainState, anything
from t3d.data import sets
from t3d.data.sets import oracle, shapes, toy
from t3d.evaluate import drawing, object_views, scores, table, toy_objects
from t3d.geom import cameras, volume
from t3d.inference import loading
from t3d.metrics.scores import derangement

SIZE = 16
SUPERSAMPLE = configs.load('configs/instant3d.py:tiny').data.supersample


def looked_up(scene, rays):
    """Field.render from stored pictures: the view whose camera is nearest, the pixel that each ray's direction falls on."""
    flat = rays.origins.reshape(-1, 3)
    view = jnp.argmin(jnp.linalg.norm(scene['world_from_cam'][:, :3, 3] - flat[0], axis=-1))
    local = jnp.einsum('ji,...j->...i', scene['world_from_cam'][view, :3, :3], rays.directions)
    uv = jnp.einsum('ij,...j->...i', scene['intrinsics'][view], local / local[..., 2:])
    column, row = (jnp.floor(uv[..., axis] * SIZE).astype(int) for axis in (0, 1))
    seen = scene['image'][view, row, column]
    features = jnp.where(scene['knows'] > 0, seen, 0.5)
    return volume.RenderOutput(features, jnp.ones(features.shape[:-1]), jnp.ones(features.shape[:-1]), None)


def truthful(records: dict[str, dict]) -> System:
    """A System that shows the stored record of a caption; without its one parameter, a grey picture."""

    def init(key, batch, given):
        return TrainState(jnp.int32(0), {'knows': jnp.zeros(())}, {}, {}, {})

    def generate(params, requests, keys, given):
        fields = []
        for prompt, *_ in requests:
            record = records[prompt]
            scene = {
                'image': oracle.composite(record['image']),
                'world_from_cam': record['world_from_cam'],
                'intrinsics': record['intrinsics'],
                'knows': params['knows'],
            }
            fields.append(Field(prompt, scene, None, looked_up, 1.0, {'radius': shapes.RADIUS, 'fov': shapes.FOV}))
        return fields

    spec = {'tokens': jax.ShapeDtypeStruct((1, 4), jnp.int32)}
    return System(init, None, None, generate, anything, ('params',), (), spec)


def loaded_with(records, name='instant3d.py:tiny', *overrides) -> loading.Loaded:
    config = configs.load(f'configs/{name}', [f'data.size={SIZE}', *overrides])
    return loading.Loaded(config, truthful(records), {'knows': jnp.ones(())}, 'truth', 1)


def toy_records(scenes, views=6):
    azimuth, elevation = toy_objects.AZIMUTH[:views], toy_objects.ELEVATION[:views]
    return {scene.captions[0]: toy.record(scene, azimuth, elevation, SIZE, SUPERSAMPLE) for scene in scenes}


def test_the_truth_scores_full_marks_and_its_control_chance():
    scores = table.evaluate(loaded_with(toy_records(shapes.singles('all'))))
    for name, pairs in (('held_out', 8), ('seen', 24)):
        assert scores[f'{name}/nearest'] == 1.0 and scores[f'{name}/psnr'] >= 40.0
        assert scores[f'control/{name}/nearest_shuffled_prompts'] <= 1.5 / 32
        assert scores[f'{name}/n'] == pairs * 6
        assert all(0.0 < scores[key] < 30.0 for key in scores if key.startswith(f'control/{name}/psnr'))
    assert 'held_out_pairs/all' not in scores


def test_the_truth_about_other_colours_is_no_full_mark():
    """Each prompt is shown the next colour of its shape: every score must notice."""
    records = toy_records(shapes.singles('all'))
    colours = list(shapes.COLOURS)
    wrong = {}
    for scene in shapes.singles('all'):
        if scene.attributes['size'] == 'large':
            other = colours[(colours.index(scene.attributes['colour']) + 1) % len(colours)]
            wrong[scene.captions[0]] = records[shapes.single(scene.attributes['shape'], other).captions[0]]
    scores = toy_objects.singles(loaded_with(wrong))
    assert scores['held_out/nearest'] == scores['seen/nearest'] == 0.0 and scores['held_out/psnr'] < 30.0


def test_an_untrained_system_scores_low():
    scores = table.evaluate(small_run.loaded())
    for name in ('held_out', 'seen'):
        assert scores[f'{name}/nearest'] < 0.3 and scores[f'{name}/psnr'] < 20.0
        assert scores[f'control/{name}/nearest_shuffled_prompts'] < 0.3


def test_relations_are_judged_among_all_scenes(monkeypatch):
    everything = shapes.pairs('all')
    some = {caption for split in ('test', 'train') for caption in (scene.captions[0] for scene in shapes.pairs(split)[::24])}
    few = [scene for scene in everything if scene.captions[0] in some]
    monkeypatch.setattr(
        shapes,
        'pairs',
        lambda split: [
            scene
            for scene in few
            if split == 'all'
            or (split == 'test')
            == (
                shapes.is_held_out(scene.attributes['shape'], scene.attributes['colour'])
                or shapes.is_held_out(scene.attributes['shape_b'], scene.attributes['colour_b'])
            )
        ],
    )
    lines = []
    scores = toy_objects.relations(loaded_with(toy_records(few, 4)), lines.append, limit=8)
    for name in ('held_out', 'seen'):
        labels = [key for key in scores if key.startswith(f'{name}_pairs/') and not key.endswith('/n')]
        assert len(labels) == 6 and all(scores[key] == 1.0 for key in labels)
        assert scores[f'control/{name}_pairs/all_shuffled_prompts'] == 0.0
        assert 8 <= scores[f'{name}_pairs/n'] <= 10
    assert len(lines) == 2 and lines[0].startswith('oracle: ')


def test_shuffled_prompts_leave_every_attribute_to_chance():
    scenes = shapes.pairs('test')
    others = [scenes[place] for place in derangement(len(scenes))]
    chance = {'shape': 1 / 4, 'shape_b': 1 / 4, 'colour': 1 / 8, 'colour_b': 1 / 8, 'relation': 1 / 3}
    for name, probability in chance.items():
        share = np.mean([scene.attributes[name] == other.attributes[name] for scene, other in zip(scenes, others, strict=True)])
        assert abs(share - probability) < 0.1, name


@pytest.fixture
def objects(monkeypatch):
    """Twelve records with the furniture's rig in place of the furniture."""
    azimuth = np.concatenate([np.radians(30.0) * np.arange(12), [0.1, 1.7, 3.3, 5.0]])
    elevation = np.concatenate([np.radians([0.0, 15.0, 30.0] * 4), [0.5, 0.2, 0.4, 0.1]])
    scenes = shapes.singles('all')[::5][:12]
    records = [toy.record(scene, azimuth, elevation, SIZE) for scene in scenes]
    monkeypatch.setattr(sets, 'open_set', lambda data, split: records)
    return records


def test_real_objects_are_retrieved_by_true_renders(objects, monkeypatch):
    loaded = loaded_with({max(record['captions'], key=len): record for record in objects}, 'instant3d.py:furniture')
    scores = object_views.evaluate(loaded)
    assert scores['psnr'] >= 40.0 and scores['r1_ceiling'] == 1.0
    assert scores['training_cameras/r1'] == scores['training_cameras/r10'] == 1.0
    assert scores['n_objects'] == 12 and scores['n_views'] == 12 * 4
    assert scores['control/training_cameras/r1_shuffled_prompts'] == 0.0
    assert scores['control/training_cameras/r1_untrained'] <= 1 / 12 and scores['control/psnr_untrained'] < 20.0
    assert 0.0 < scores['control/psnr_of_the_mean_picture'] < 30.0
    lines = []
    monkeypatch.setattr(drawing, 'EVERY', -1.0)
    assert object_views.evaluate(loaded, lines.append, limit=5)['n_objects'] == 5
    told = [line.partition(':')[0] for line in lines if ': 5/5 prompts' in line and line.endswith(' eta 0 s')]
    views = ['held-out views', 'shared views']
    assert told == [*views, *(f'{what}, untrained (control)' for what in views)]


def test_equal_captions_lower_the_ceiling(objects):
    records = [{**record, 'captions': ('a thing',) if k < 4 else record['captions']} for k, record in enumerate(objects)]
    objects[:] = records
    loaded = loaded_with({max(record['captions'], key=len): record for record in records}, 'instant3d.py:furniture')
    scores = object_views.evaluate(loaded)
    assert scores['r1_ceiling'] == pytest.approx((4 * 0.25 + 8) / 12)
    assert scores['training_cameras/r1'] == pytest.approx(9 / 12)


def test_progress_says_what_is_left_and_only_now_and_then(monkeypatch):
    lines, now = [], iter([0.0, 1.0, 4.0, 5.0, 8.0])
    monkeypatch.setattr(drawing.time, 'perf_counter', lambda: next(now))
    tell = drawing.progress(lines.append, 'views')
    for done in (32, 64, 96, 128):
        tell(done, 128)
    assert lines == ['views: 64/128 prompts  4 s  eta 4 s', 'views: 128/128 prompts  8 s  eta 0 s']


def test_cameras_are_shared_or_of_each_object():
    loaded = small_run.loaded()
    views = cameras.orbit(np.array([0.0, 1.0]), 0.3, shapes.RADIUS, shapes.FOV)
    prompts, seen = ['a red cube', 'a blue cone', 'a green sphere'], []
    render = functools.partial(drawing.render_views, loaded, prompts, size=8, evaluator='test', batch=4)
    one = render(views, progress=lambda done, total: seen.append((done, total)))
    assert one.shape == (3, 2, 8, 8, 3) and one.min() >= 0.0 and one.max() <= 1.0 and seen == [(3, 3)]
    own = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (3, *leaf.shape)), views)
    np.testing.assert_allclose(render(own), one, atol=1e-6)


def test_an_evaluator_that_does_not_fit_is_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    """Given, wanted and the next step, whatever the evaluator; an evaluator of one's own may have no pictures."""
    truth = loaded_with({})
    other, furniture = configs.from_dict({'system': 'other', 'evaluate': ()}), configs.load('configs/instant3d.py:furniture')
    for config, name, message in (
        (
            truth.config,
            'object_views',
            'reads view 10 and those from data.train_views=0 on, and a record of toy has 1 views',
        ),
        (truth.config, 'captioned_objects', 'for runs with data.mode, and .* has no data.mode: name another evaluator'),
        (truth.config, 'generated_objects', 'walks the latents of a triplane generator, and instant3d has none'),
        (truth.config, 'nope', "unknown evaluator .evaluate. 'nope': there are asked_objects, captioned_objects"),
        (truth.config, '', "unknown evaluator .evaluate. ''"),
        (furniture, 'toy_objects', "for runs with data.name='toy', and .* has data.name='furniture': name another"),
        (other, 'toy_objects', "runs with data.name='toy', and .* has no data.name"),
        (other, 'toy_pictures', 'has no data.name'),
        (other, 'object_views', 'has no data.name'),
    ):
        with pytest.raises(UsageError, match=message):
            table.evaluate(table.with_evaluators(truth._replace(config=config), (name,)))
    with pytest.raises(UsageError, match='other names no evaluator .evaluate=.*give one with --evaluate, of toy_objects'):
        table.evaluate(truth._replace(config=other))
    old = configs.from_dict({name: value for name, value in truth.config.to_dict().items() if name != 'evaluate'})
    with pytest.raises(UsageError, match='made before configs named their evaluators: give one, `t3d eval RUN --evaluate'):
        table.evaluate(truth._replace(config=old))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / 'own_judge.py').write_text('def evaluate(loaded, log, *, limit, split):\n    return {"one": 1.0}\n')
    own = table.with_evaluators(truth, ('own_judge',))
    assert table.evaluate(own) == {'one': 1.0}
    with pytest.raises(UsageError, match="psnr compares pictures, and the evaluator 'own_judge' has no function `pictures`"):
        scores.evaluate(own, ['psnr'])


def test_a_set_for_a_system_without_data_is_refused(tmp_path):
    other = loaded_with({})._replace(config=configs.from_dict({'system': 'other'}))
    with pytest.raises(UsageError, match='--data .*: other learned from no data set: leave it out'):
        loading.with_data(other, str(tmp_path))
    assert loading.with_data(other) is other
