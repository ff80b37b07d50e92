"""Posed views to a field: what held-out views show of it, any number and size of views, refusals, the command and lifting."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_reconstruct as small

from t3d import cli
from t3d.commands import train
from t3d.core import config as configs
from t3d.core import prng
from t3d.core.errors import UsageError
from t3d.core.outputs import Request
from t3d.data.sets import shapes
from t3d.export import beside
from t3d.fields import fitting
from t3d.geom import cameras, silhouettes
from t3d.inference import loading, requests

FLOOR = 27.0  # dB; 32 px, 8 views, 200 steps


@pytest.mark.parametrize('alpha', [True, False])
def test_held_out_views_of_a_toy_object_are_near_the_truth(alpha):
    field = small.made(small.views(alpha=alpha))
    held_out = small.views(elevation=0.2, turned=0.4)
    assert small.psnr(field, held_out) > FLOOR
    empty = np.mean(-10.0 * np.log10(np.square(1.0 - small.over_white(held_out.images)).mean((1, 2, 3))))
    assert small.psnr(field, held_out) > empty + 8.0
    opacity = np.asarray(small.rendered(field, held_out).opacity)
    assert silhouettes.iou(held_out.images[..., 3], opacity) > 0.8


def test_a_white_object_on_white_is_cut_out_from_its_frame():
    some = small.views(shapes.single('cube', 'white'), alpha=False)
    truth = small.views(shapes.single('cube', 'white'))
    alpha, sure, background = silhouettes.alpha_of(some.images)
    np.testing.assert_allclose(background, 1.0, atol=1e-6)
    assert silhouettes.iou(alpha, truth.images[..., 3]) > 0.95
    assert np.abs(alpha - truth.images[..., 3])[sure > 0].max() < 0.3
    hole = some.images.copy()
    hole[:, 15:17, 15:17] = 1.0  # within the object: not joined to the frame
    assert silhouettes.alpha_of(hole)[0][:, 15:17, 15:17].min() == 1.0


def test_the_same_seed_gives_the_same_object_and_another_seed_another():
    some = small.views(count=4)
    one, same, other = (small.made(some, seed, 'steps=20') for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one.scene, same.scene)
    assert np.abs(np.asarray(one.scene['planes']) - np.asarray(other.scene['planes'])).max() > 0.0


def test_a_batch_of_objects_is_each_by_itself():
    options = small.options()._replace(steps=20)
    pixels = [
        fitting.pixels(some.images, small.posed(some), 1.1, background=1.0)
        for some in (small.views(count=4), small.views(shapes.single('sphere', 'green'), count=4))
    ]
    keys = jnp.stack([prng.key(3), prng.key(4)])
    both = fitting.fit_each(jax.tree.map(lambda *leaves: jnp.stack(leaves), *pixels), keys, options)
    turned = fitting.fit_each(jax.tree.map(lambda *leaves: jnp.stack(leaves), *pixels[::-1]), keys[::-1], options)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[0]), both, turned)
    assert np.abs(np.asarray(both['planes'][0]) - np.asarray(both['planes'][1])).max() > 0.01


@pytest.mark.slow
def test_one_object_of_a_batch_is_what_it_is_alone():
    options, some = small.options()._replace(steps=20), small.views(count=4)
    pixels = fitting.pixels(some.images, small.posed(some), 1.1, background=1.0)
    keys = jnp.stack([prng.key(3), prng.key(4)])
    both = fitting.fit_each(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), pixels), keys, options)
    alone = fitting.fit_each(jax.tree.map(lambda leaf: leaf[None], pixels), keys[1:], options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b[0], atol=1e-4), both, alone)


@pytest.mark.parametrize('count', [1, 3, 5])
def test_any_number_of_views_and_pictures_that_are_not_square(count):
    some = small.views(count=count, size=33)
    wide = some._replace(images=some.images[:, 4:29], intrinsics=cropped(some.intrinsics, 33, 4, 25))
    small.system().check([Request('x', views=wide)])
    field = small.made(wide)
    out = small.rendered(field, wide)
    assert out.features.shape == (count, 25, 33, 3)
    assert silhouettes.iou(wide.images[..., 3], out.opacity) > 0.8
    assert abs(field.camera['radius'] - shapes.RADIUS) < 1e-3
    with pytest.raises(UsageError, match='lift|views'):
        small.system().check([Request('x', views=wide._replace(images=wide.images[0]))])


def cropped(intrinsics, size, first, count):
    """Of the rows first ... first + count of a picture."""
    lens = np.array(intrinsics)
    lens[:, 1, 1] *= size / count
    lens[:, 1, 2] = (lens[:, 1, 2] * size - first) / count
    return lens


def test_the_mesh_lies_where_the_field_renders_and_nothing_is_outside():
    field = small.made(small.views(shapes.single('sphere', 'red')))
    points = np.array([[0.0, 0.0, 0.0], [0.7, 0.0, 0.0], [0.0, 0.95, 0.0], [0.0, 0.0, -0.95]], np.float32)
    density, rgb = field.field(field.scene, points)
    assert density[2:].max() == 0.0 and density[1] > 1.0
    assert rgb[1, 0] > 0.4 and rgb[1, 1:].max() < 0.4


def test_the_sphere_that_the_cameras_show_is_in_their_frames():
    views = cameras.orbit(np.linspace(0.0, 5.0, 4), 0.3, 3.2, 0.7)
    assert abs(float(fitting.seen_bound(views)) - 3.2 * np.sin(0.35)) < 1e-4


@pytest.mark.parametrize(
    'change, message',
    [
        ({'images': np.zeros((8, 8))}, 'views of shape'),
        ({'world_from_cam': np.zeros((3, 4, 4))}, 'wanted one of each for every view'),
        ({'images': np.full((8, 32, 32, 4), np.nan)}, 'NaN or infinite'),
        ({'images': np.full((8, 32, 32, 4), 255.0)}, 'divide bytes by 255'),
    ],
)
def test_what_is_no_posed_views_is_refused_in_one_sentence(change, message):
    with pytest.raises(UsageError, match=message) as error:
        small.system().check([Request('x', views=small.views()._replace(**change))])
    assert '\n' not in str(error.value)


def test_requests_without_views_and_cameras_that_look_elsewhere_are_refused():
    for request, message in (
        (
            Request('a red cube'),
            "the prompt 'a red cube' was given, and reconstruct makes an object of posed views: give --views",
        ),
        (Request(), 'no view was given, and reconstruct'),
        (Request('x', image=np.zeros((8, 8, 4))), 'an image was given, and reconstruct makes an object of several views'),
    ):
        with pytest.raises(UsageError, match=message):
            small.system().check([request])
    away = np.array(small.views().world_from_cam)
    away[:, :3, 3] += 10.0
    with pytest.raises(UsageError, match='do not show the origin'):
        small.system().check([Request('x', views=small.views()._replace(world_from_cam=away))])
    for override, message in (('fit.stages=7', 'fit.stages=7 does not divide steps=120'), ('fit.levels=6', 'halved 5 times')):
        with pytest.raises(UsageError, match=message):
            small.system_of(override)


# --------------------------------------------------------------------------------------------------------------- commands

QUICK = ('--grid', '24', '--faces', '400', '--texture', '32', '--frames', '2', '--size', '32', '--render-size', '32')
WRITTEN = {'mesh.glb', 'mesh.json', 'sheet.png', 'beside.png', 'report.html', 'views'}
WRITTEN |= {'cameras.json', 'turntable.json', 'turntable.mp4'}


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """In an empty folder whose `configs/quick.py` is the small fit."""
    (tmp_path / 'configs').mkdir()
    lines = [f'    config.{name} = {value}' for name, value in small.PAIRS]
    text = 'from configs import reconstruct\n\n\ndef get_config():\n    config = reconstruct.tiny()\n'
    (tmp_path / 'configs' / 'quick.py').write_text(text + '\n'.join(lines) + '\n    return config.lock()\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def t3d(*words) -> None:
    assert cli.main([str(word) for word in words]) == 0


def test_generate_makes_an_object_of_a_folder(quick, capsys):
    beside.write_views(small.views(count=4, alpha=False), quick / 'chair')
    t3d('generate', '--views', 'chair', '--config', 'configs/quick.py', '--out', 'out', *QUICK)
    assert {path.name for path in pathlib.Path('out').iterdir()} == WRITTEN
    page = pathlib.Path('out/report.html').read_text()
    for fact in ('mesh and views: silhouette IoU', 'field and views: colour error', 'Views, field and mesh from the same'):
        assert fact in page
    assert requests.read_views('out').images.shape == (4, 32, 32, 3)
    capsys.readouterr()
    for words, message in (
        (
            ('generate', 'a chair', '--config', 'configs/quick.py', '--out', 'no'),
            "the prompt 'a chair' was given, and reconstruct",
        ),
        (('generate', '--views', 'none', '--out', 'no'), '--views none is no folder'),
        (('generate', '--views', 'chair', '--system', 'instant3d', '--out', 'no'), 'posed views were given, and instant3d'),
        (('train', 'configs/quick.py'), 'train'),
    ):
        assert cli.main(list(words)) == 2, words
        assert message in capsys.readouterr().err
    assert not pathlib.Path('no').exists()


def test_views_alone_choose_the_system_that_reads_them(quick, capsys):
    beside.write_views(small.views(count=2), quick / 'chair')
    t3d('generate', '--views', 'chair', '--dry-run')
    assert 'reconstruct from reconstruct' in capsys.readouterr().out
    t3d('generate', '--views', 'chair', '--system', 'reconstruct', '--dry-run')


VIEWS = '''
"""Views of toy objects, as a multi-view model would make them."""

import numpy as np
import small_reconstruct as small
from configs import common
from t3d.core.outputs import only_prompts
from t3d.core.system import System


def get_config():
    config = common.defaults()
    config.update({'system': 'viewer_of_toys', 'variant': 'tiny', 'untrained': True})
    config.export = {'prompts': ('a red cube',), 'lift': LIFT, 'texture': 32}
    return config.lock()


def make(config, given):
    def generate(weights, requests, keys, given):
        return [small.views(count=4, alpha=False)._replace(prompt=request.prompt) for request in requests]

    check = lambda requests: only_prompts(requests, config.system)
    return System(lambda key, batch, given: {}, None, None, generate, check, (), (), {})
'''


def test_views_of_a_model_are_lifted_by_the_system_that_its_config_names(quick, monkeypatch):
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))
    for lift in ("'configs/quick.py'", "''"):
        (quick / 'viewer_of_toys.py').write_text(VIEWS.replace('LIFT', lift))
        sys.modules.pop('viewer_of_toys', None)
        out = 'lifted' if len(lift) > 2 else 'plain'
        t3d('generate', 'a red cube', '--config', 'viewer_of_toys.py', '--out', out, *QUICK)
    assert {path.name for path in pathlib.Path('lifted').iterdir()} == WRITTEN
    assert {path.name for path in pathlib.Path('plain').iterdir()} == {'views', 'cameras.json', 'sheet.png', 'report.html'}
    assert len(list(pathlib.Path('lifted/views').iterdir())) == 4
    sys.modules.pop('viewer_of_toys', None)


@pytest.mark.parametrize(
    'lift, message',
    [
        ('nope', "no config 'nope'"),
        ('configs/instant3d.py:tiny', 'instant3d is trained before it generates'),
        ('configs/guided_mv.py:tiny', 'posed views were given, and guided_mv reads text alone'),
    ],
)
def test_a_lift_that_takes_no_views_is_refused_before_any_view_is_made(quick, monkeypatch, capsys, lift, message):
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))
    (quick / 'viewer_of_toys.py').write_text(
        VIEWS.replace('LIFT', repr(lift)).replace('    return [small', '    1 / 0; return [small')
    )
    sys.modules.pop('viewer_of_toys', None)
    assert cli.main(['generate', 'a red cube', '--config', 'viewer_of_toys.py', '--out', 'no']) == 2
    error = capsys.readouterr().err
    assert f"error: export.lift='{lift}': " in error and message in error and not pathlib.Path('no').exists()
    with pytest.raises(UsageError, match='export.lift'):
        train.check_names(configs.load('viewer_of_toys.py'))
    sys.modules.pop('viewer_of_toys', None)


def test_an_asset_of_python_is_lifted_when_it_is_saved(quick):
    loaded = loading.untrained(configs.load('configs/quick.py'))
    from t3d.python import Model

    asset = Model(loaded).generate('', views=small.views(count=4))
    page = asset.save('saved', grid=24, faces=400, texture=0, frames=0)
    names = WRITTEN - {'turntable.json', 'turntable.mp4'}
    assert page.name == 'report.html' and {path.name for path in pathlib.Path('saved').iterdir()} == names
    assert asset.render(size=16, views=2).shape == (2, 16, 16, 3)
