"""Scores of triplane GANs against sets of pictures whose quality is known."""

import jax
import numpy as np
import pytest
import small_triplanes

from t3d import systems
from t3d.build import captioners
from t3d.core import config as configs
from t3d.core import tree
from t3d.core.errors import UsageError
from t3d.core.outputs import Request
from t3d.data.adapters import single_view
from t3d.data.sets import shapes
from t3d.evaluate import generated_objects, table
from t3d.evaluate import scores as chosen
from t3d.fields import triplane_generator
from t3d.fields.triplane_generator import Generator
from t3d.geom import cameras

GREY = 0.5


def true_pictures(scenes, labels, size=32):
    """[N, S, S, 3] in [0, 1] of scenes from their labels [N, 25]."""
    images = []
    for scene, label in zip(scenes, labels, strict=True):
        slots = scene.attributes
        rgba = generated_objects.toy.render(
            shapes.single(slots['shape'], slots['colour'], slots['size']),
            label[:16].reshape(1, 4, 4),
            label[16:].reshape(1, 3, 3),
            size,
            supersample=3,
        )['image']
        images.append(generated_objects.oracle.composite(rgba, GREY)[0])
    return np.stack(images)


@pytest.fixture(scope='module')
def config():
    """Ninety-six pictures of toy and more."""
    return small_triplanes.config(data__poses=4)


@pytest.fixture(scope='module')
def renderer(config):
    return generated_objects.GanRenderer(Generator(config), small_triplanes.loaded().weights, batch=3)


def test_pictures_are_those_of_the_generator_whatever_the_batch(renderer, config):
    seeds, labels = np.arange(4) + 7, generated_objects.drawn_labels(config, 4)
    images = renderer.images(renderer.styles(seeds, 0.7), labels)
    tree, generator = small_triplanes.loaded().weights, triplane_generator.Generator(config)
    ws = generator.ws(tree['generator'], tree['buffers'], generator.z_of_seed(np.uint32(seeds)), psi=0.7)
    want = jax.jit(lambda ws, labels: generator.image(tree['generator'], tree['buffers'], ws, labels)[0])(ws, labels)
    np.testing.assert_allclose(images, np.clip(0.5 + 0.5 * want, 0, 1), atol=2e-6)
    other = renderer.with_weights(small_triplanes.loaded(1).weights)
    assert np.abs(other.images(other.styles(seeds, 0.7), labels) - images).max() > 0.01
    np.testing.assert_array_equal(renderer.images(renderer.styles(seeds, 0.7), labels), images)
    rgb, depth, opacity = renderer.raw(renderer.styles(seeds), labels)
    assert rgb.shape == (4, generated_objects.SIDE, generated_objects.SIDE, 3) and depth.shape == opacity.shape == rgb.shape[:3]


def test_real_pictures_are_two_disjoint_sets(config):
    true, others = generated_objects.real(config, 10)
    assert true.shape == others.shape == (10, 32, 32, 3) and 0 <= true.min() < true.max() <= 1
    assert not {image.tobytes() for image in true} & {image.tobytes() for image in others}
    whole = len(single_view.open_set(config))
    assert len(generated_objects.real(config, 10**6)[0]) == whole // 2


def test_labels_are_those_of_the_data(config):
    table = {label.tobytes() for label in single_view.labels(config)}
    assert {label.tobytes() for label in generated_objects.drawn_labels(config, 50)} <= table


def test_distances_tell_real_from_worse(config):
    true, others = generated_objects.real(config, 90)
    pale = GREY + 0.5 * (others - GREY)
    noise = np.random.default_rng(0).uniform(size=others.shape)
    scores = generated_objects.distances(pale, true, others, noise)
    assert scores['control/real/fid_tiny'] < scores['fid_tiny'] < 0.3 * scores['control/untrained/fid_tiny']
    assert scores['control/real/kid_tiny'] < scores['kid_tiny'] < scores['control/untrained/kid_tiny']
    assert (
        scores['untrained_over_fid_tiny'] == scores['control/untrained/fid_tiny'] / scores['fid_tiny']
        and scores['fid_tiny_n'] == 90
    )
    few = generated_objects.distances(pale[:20], true[:20], others[:20])
    assert set(few) == {'kid_tiny', 'control/real/kid_tiny', 'fid_tiny_n'}  # 64 features want more than 64 pictures


def test_variety_counts_what_appears(config):
    """Three colours and two shapes; a fourth colour once in 150 pictures, which is below 1 %; ten pictures of nothing."""
    pairs = [('cube', 'red'), ('cube', 'blue'), ('cone', 'white')]
    scenes = [shapes.single(*pairs[k % 3], 'large' if k % 2 else 'small') for k in range(139)]
    scenes += [shapes.single('cube', 'green')]
    labels = generated_objects.drawn_labels(config, 150)
    nothing = np.full((10, 32, 32, 3), GREY)
    images = np.concatenate([true_pictures(scenes, labels[:140]), nothing])
    scores = generated_objects.variety(captioners.ToyReader(GREY), images, labels)
    assert (scores['colours'], scores['shapes'], scores['sizes']) == (3, 2, 2)
    assert scores['readable'] == 140 / 150 and scores['readable_n'] == 150
    np.testing.assert_allclose(scores['share/green'], 1 / 140)
    np.testing.assert_allclose(scores['share/cone'], 46 / 140)
    np.testing.assert_allclose(scores['distance'], 10 / 150, atol=0.02)
    assert scores['control/colours_there_are'] == 8


@pytest.mark.parametrize('span', [2.0 * np.pi, 1.0], ids=['all around', 'from the front'])
def test_cameras_go_as_far_around_as_the_data_set(config, span, monkeypatch):
    random = np.random.default_rng(0)
    views = cameras.orbit(random.uniform(-span / 2, span / 2, 400), random.uniform(0.1, 0.5, 400), 2.7, 0.5)
    table = np.asarray(cameras.to_eg3d(views))
    monkeypatch.setattr(single_view, 'labels', lambda config: table)
    ring = generated_objects.ring(config, 8)
    azimuth, elevation, radius = cameras.angles(ring.world_from_cam)
    if span > 5:
        steps = np.diff(np.unwrap(np.asarray(azimuth)))
        np.testing.assert_allclose(steps, np.pi / 4, atol=1e-5)
    else:
        assert 0.4 < azimuth.max() < 0.5 and -0.5 < azimuth.min() < -0.4
    np.testing.assert_allclose(elevation, 0.3, atol=0.03)
    np.testing.assert_allclose(radius, 2.7, rtol=1e-5)
    np.testing.assert_array_equal(ring.intrinsics[3], views.intrinsics[0])


def test_true_objects_are_as_solid_as_themselves(config, monkeypatch):
    """A renderer that shows toy objects has the numbers of the control; one that paints boards has not."""
    monkeypatch.setattr(generated_objects, 'SOLID', 3)
    scenes = [shapes.single('sphere', 'red'), shapes.single('cube', 'blue'), shapes.single('cone', 'yellow')]

    class Truth:
        flat = False

        def styles(self, seeds):
            return np.arange(len(seeds))[:, None, None]

        def raw(self, styles, labels):
            rgb, depth, opacity = generated_objects.of_toy(scenes[int(styles[0, 0, 0])].attributes, labels, GREY)
            depth = np.where(np.asarray(opacity) > 0, shapes.RADIUS, 0.0) if self.flat else depth
            return rgb, depth, opacity

    reader = captioners.ToyReader(GREY)
    scores = generated_objects.solidity(Truth(), config, reader)
    names = ('depth_deviation', 'bent', 'half_opaque', 'agreement_error', 'agreement_seen', 'agreement_overlap')
    for name in names:
        assert scores[f'solid/{name}'] == scores[f'control/true/solid/{name}'], name
    assert scores['solid/agreement_seen'] > 0.95 and scores['solid/bent'] > 0.08 and scores['solid_n'] == 3
    Truth.flat = True
    board = generated_objects.solidity(Truth(), config, reader)
    assert board['solid/bent'] < 0.3 * board['control/true/solid/bent']
    assert board['solid/agreement_seen'] < board['control/true/solid/agreement_seen'] - 0.1


def test_outlines_are_those_of_the_shape_that_is_read(config, monkeypatch):
    """True objects fill their own outlines; of a body that is a half taller the share is that of a naive count."""
    monkeypatch.setattr(generated_objects, 'OUTLINED', 3)
    scenes = [shapes.single('sphere', 'red'), shapes.single('cube', 'blue', 'small'), shapes.single('cone', 'yellow')]
    made = []

    class Truth:
        taller = False

        def styles(self, seeds):
            return np.arange(len(seeds))[:, None, None]

        def raw(self, styles, labels):
            rgb, depth, opacity = generated_objects.of_toy(scenes[int(styles[0, 0, 0])].attributes, labels, GREY)
            if self.taller:
                more = opacity.copy()
                more[:, :-6] = np.maximum(more[:, :-6], opacity[:, 6:])
                made.append(
                    [
                        sum(((a > 0.5) & (b > 0.5)).sum() for a, b in zip(more, opacity, strict=True)),
                        sum(((a > 0.5) | (b > 0.5)).sum() for a, b in zip(more, opacity, strict=True)),
                    ]
                )
                opacity = more
            return rgb, depth, opacity

    reader = captioners.ToyReader(GREY)
    scores = generated_objects.outlines(Truth(), config, reader)
    assert scores['outline'] == 1.0 and scores['outline_n'] == 3
    assert {name for name in scores if name.startswith('outline/')} == {'outline/sphere', 'outline/cube', 'outline/cone'}
    assert 0.5 < scores['control/other_shape/outline'] < 0.97
    Truth.taller = True
    taller = generated_objects.outlines(Truth(), config, reader)
    np.testing.assert_allclose(taller['outline'], np.mean([both / any_ for both, any_ in made]), rtol=1e-6)
    assert taller['outline'] < 0.9


def test_a_whole_evaluation(tmp_path, monkeypatch, config):
    """Every score is there, with what it is to be read against, and the sheets are in the run folder."""
    monkeypatch.setattr(generated_objects, 'SOLID', 1)
    monkeypatch.setattr(generated_objects, 'OUTLINED', 1)
    monkeypatch.setattr(generated_objects, 'ROWS', 2)
    (tmp_path / 'checkpoints').mkdir()
    loaded = small_triplanes.loaded(data__poses=4)._replace(folder=tmp_path)
    lines = []
    scores = table.evaluate(loaded, lines.append, limit=70)
    assert scores['fid_tiny_n'] == 70 and scores['readable_n'] == 70
    assert all(np.isfinite(value) for value in scores.values())
    for name in (
        'fid_tiny',
        'control/real/fid_tiny',
        'control/untrained/fid_tiny',
        'kid_tiny',
        'solid/agreement_seen',
        'outline',
    ):
        assert name in scores
    assert {path.name for path in tmp_path.iterdir()} == {'checkpoints', 'truncation.png', 'interpolation.png', 'yaw.png'}
    with pytest.raises(UsageError, match="split 'val'"):
        table.evaluate(loaded, split='val')


def test_chosen_scores():
    """`t3d eval --metrics`: distances between sets at one n; nothing that wants true views or captions."""
    loaded = small_triplanes.loaded(data__poses=4)
    scores = chosen.evaluate(loaded, ['fid_tiny', 'kid_tiny'], limit=70)
    assert scores['fid_tiny_n'] == scores['fid_tiny_candidates'] == 70
    assert scores['fid_tiny'] > 3.0 * scores['control/fid_tiny_shuffled']
    for name, why in (('psnr', 'psnr compares with the true view'), ('clip', 'clip compares with captions')):
        with pytest.raises(UsageError, match=why):
            chosen.evaluate(loaded, [name])
    for judge in (table.evaluate, lambda loaded, limit: chosen.evaluate(loaded, ['kid_tiny'], limit=limit)):
        with pytest.raises(UsageError, match='--limit 0: '):
            judge(loaded, limit=0)


def test_the_gate_of_upsamplers_that_read_w():
    """The stand-ins for w change the pictures; where the affine layers are 0, w says nothing and the gap is 0."""
    loaded = small_triplanes.loaded(generator__sr_style='w', data__poses=4)
    true, _ = generated_objects.real(loaded.config, 30)
    seeds, labels = np.arange(30), generated_objects.drawn_labels(loaded.config, 30)
    gate = lambda tree: generated_objects.style_gate(loaded.config, tree, seeds, labels, true)
    scores = gate(loaded.weights)
    assert set(scores) == {f'sr_style/{style}/{what}' for style in ('ones_w', 'w_avg') for what in ('kid_tiny', 'gap')}
    assert abs(scores['sr_style/ones_w/gap']) > 0.01 and scores['sr_style/ones_w/gap'] != scores['sr_style/w_avg/gap']
    mute = lambda name, leaf: 0.0 * leaf if name.startswith('superres') and name.endswith('affine/weight') else leaf
    generator = tree.map_with_name(mute, loaded.weights['generator'])
    silent = gate({**loaded.weights, 'generator': generator})
    assert max(abs(silent[f'sr_style/{style}/gap']) for style in ('ones_w', 'w_avg')) < 1e-5  # two programs: they round


def test_other_data_sets_have_no_words(config):
    other = configs.from_dict({**config.to_dict(), 'data': {**config.data.to_dict(), 'name': 'eg3d'}})
    assert generated_objects.knows_words(config) and not generated_objects.knows_words(other)


def test_the_prompt_of_a_gan_is_a_name():
    check = systems.make(configs.load('configs/ganfusion_gan.py:tiny')).check
    check([Request('seed'), Request('words that nobody knows')])
    with pytest.raises(UsageError, match='empty prompt'):
        check([Request('')])
    with pytest.raises(UsageError, match='an image was given, and ganfusion_gan reads text alone'):
        check([Request('seed', np.zeros((2, 2, 4)))])
