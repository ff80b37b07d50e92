"""What the viewer draws, what its controls do, and its loop: with a stand-in for viser."""

import functools
import io
import sys
import types

import analytic_assets
import jax
import numpy as np
import pytest
import small_run
import trimesh
import viser_stub
from PIL import Image

from t3d import viewer, viewer_panel, viewer_pictures
from t3d.core.errors import UsageError
from t3d.core.outputs import Picture
from t3d.core.system import System, anything
from t3d.geom import cameras
from t3d.inference import loading


@pytest.fixture(scope='module')
def shown():
    return viewer_pictures.make(small_run.loaded(), 'a red cube')


def shows(output):
    """A system that makes output(request) of each request."""
    generate = lambda weights, requests, keys, given: [output(request) for request in requests]
    return System(None, None, None, generate, anything, ('ema',), (), {})


def pose(camera):
    return np.asarray(camera.world_from_cam)


def test_the_picture_is_the_render_of_the_asset(shown):
    camera = cameras.orbit(0.3, 0.2, 3.2, 0.7)
    picture = viewer_pictures.draw(shown, 'colour', pose(camera), 0.7, (16, 16))
    assert picture.shape == (16, 16, 3) and picture.dtype == np.uint8
    rendered = jax.jit(shown.made.render)(shown.made.scene, cameras.rays(camera, 16, 16)).features
    np.testing.assert_allclose(picture, 255.0 * np.clip(rendered, 0.0, 1.0), atol=2.5)


def test_a_wide_window_sees_more_at_the_sides_with_square_pixels(shown):
    """At the same height the ball covers as many rows and columns; the middle of the wide picture is the square one."""
    matrix = pose(cameras.orbit(0.0, 0.0, 3.2, 0.7))
    square, wide = (viewer_pictures.draw(shown, 'colour', matrix, 0.7, shape) for shape in ((24, 24), (24, 48)))
    assert wide.shape == (24, 48, 3)
    np.testing.assert_allclose(wide[:, 12:36].astype(float), square, atol=4)


def test_normals_and_depth_are_those_of_a_ball_from_any_distance():
    ball = analytic_assets.sphere()  # whose colours are its normals
    loaded = small_run.loaded()._replace(system=shows(lambda request: ball))
    shown = viewer_pictures.make(loaded, 'a red cube')
    for radius in (3.5, 2.4):
        matrix = pose(cameras.orbit(0.3, 0.2, radius, 0.7))
        modes = [viewer_pictures.draw(shown, mode, matrix, 0.7, (24, 36)).astype(int) for mode in ('colour', 'normal', 'depth')]
        colour, normal, depth = (image[6:18, 12:24] for image in modes)
        assert np.abs(colour - normal).mean() < 6
        assert 200 < depth[6, 6, 0] < 245 and depth[6, 6, 0] > depth[6, 2, 0] + 5  # the middle is nearest, so lightest
        assert all((image[0, 0] == 255).all() for image in modes)


def test_a_small_picture_is_enlarged_by_whole_factors_and_never_stretched():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    fitted = viewer_pictures.fit(pixels, (10, 21))
    assert fitted.shape == (10, 21, 3)
    np.testing.assert_array_equal(fitted[1:9, 6:14], pixels.repeat(2, 0).repeat(2, 1))
    assert (np.delete(fitted, np.s_[6:14], 1) == 255).all()
    assert viewer_pictures.fit(np.zeros((40, 20, 3), np.uint8), (10, 30))[:, 13:17].max() == 0


# ------------------------------------------------------------------------------------------------------------- a browser


class Session:
    """Browsers on a viewer, with a clock of its own; `made` are the prompts and seeds that were generated."""

    def __init__(self, monkeypatch, shown, browsers=1):
        self.now, self.made, self.panels = 0.0, [], {}
        real = functools.partial(self._make, viewer_pictures.make)
        monkeypatch.setattr(viewer_pictures, 'make', real)
        monkeypatch.setattr(viewer_panel.time, 'monotonic', lambda: self.now)
        self.shown, self.clients = shown, {name: viser_stub.Client() for name in range(browsers)}
        self.step()

    def _make(self, real, loaded, prompt, seed=0):
        self.made.append((prompt, seed))
        return real(loaded, prompt, seed)

    def step(self, seconds=0.0):
        self.now += seconds
        viewer_panel.step(self.panels, self.clients, small_run.loaded(), self.shown, 24)


@pytest.fixture
def session(monkeypatch, shown):
    return Session(monkeypatch, shown)


def test_a_prompt_is_made_on_enter_or_after_a_pause_and_not_at_every_key(session):
    client = session.clients[0]
    client['prompt'].type('a blue cone')
    session.step(0.5)
    client['prompt'].type('a blue cone on top of a red cube')
    session.step(0.9)
    assert session.made == []
    session.step(1.1)
    assert session.made == [('a blue cone on top of a red cube', 0)]
    client['prompt'].type('a green sphere')
    client['form'].enter()
    session.step()
    assert session.made[1:] == [('a green sphere', 0)] and 'shown: "a green sphere", seed 0' in client['note'].content
    client['seed'].type(7)
    session.step(0.1)
    session.step(1.1)
    session.step(1.1)
    assert session.made[2:] == [('a green sphere', 7)]
    client['form'].enter()  # nothing new
    session.step()
    assert len(session.made) == 3


@pytest.mark.parametrize(
    ('prompt', 'seed', 'text'),
    [
        ('a corgi', 0, '&quot;corgi&quot;'),
        ('', 0, 'empty prompt'),
        ('a <script>alert(1)</script> {cube}', 0, '&quot;script&quot;'),
        ('a red cube', -1, 'seed -1: wanted a whole number from 0'),
        ('a red cube', 2**32, 'seed 4294967296'),
        ('a red cube', None, 'TypeError'),
    ],
)
def test_a_refusal_says_what_is_wrong_and_greys_the_picture(session, prompt, seed, text):
    client = session.clients[0]
    assert np.ptp(client.scene.pictures[-1].astype(int), axis=-1).max() > 20  # the ball is in sight, in its colours
    client['prompt'].type(prompt)
    client['seed'].type(seed)
    client['form'].enter()
    session.step()
    session.step()
    grey = client.scene.pictures[-1]
    assert np.ptp(grey, axis=-1).max() == 0 and grey.min() >= 175 and np.ptp(grey) > 5
    note = client['note'].content
    assert text in note and '<script>' not in note and 'shown: "a red cube", seed 0' in note
    client['prompt'].type('a red cube')
    client['seed'].type(0)
    client['form'].enter()
    session.step()
    assert np.ptp(client.scene.pictures[-1].astype(int), axis=-1).max() > 20 and 'Not made' not in client['note'].content


def test_a_moving_camera_gets_drafts_and_a_still_one_the_chosen_rows_once(session):
    client = session.clients[0]
    client['resolution'].value = '256'
    client.camera.aspect = 0.75
    session.step(0.1)
    assert [picture.shape for picture in client.scene.pictures] == [(24, 36, 3), (128, 96, 3)]
    session.step(1.0)
    session.step(1.0)
    assert [picture.shape for picture in client.scene.pictures[2:]] == [(256, 192, 3)]


def test_two_browsers_have_each_their_own_prompt_and_a_third_begins_anew(monkeypatch, shown):
    session = Session(monkeypatch, shown, browsers=2)
    first, second = session.clients.values()
    first['prompt'].type('a corgi')
    second['prompt'].type('a blue cone')
    first['form'].enter()
    second['form'].enter()
    session.step()
    assert 'corgi' in first['note'].content and 'shown: "a blue cone"' in second['note'].content
    session.clients[2] = viser_stub.Client()
    del session.clients[0]
    session.step()
    assert set(session.panels) == {1, 2} and session.clients[2]['prompt'].value == 'a red cube'


def test_the_mesh_is_shown_and_downloaded(session):
    client = session.clients[0]
    client['download GLB'].click()
    client['download PNG'].click()
    session.step()
    assert client.files['a_red_cube-0.glb'][:4] == b'glTF'
    with Image.open(io.BytesIO(client.files['a_red_cube-0.png'])) as png:
        np.testing.assert_array_equal(np.asarray(png), client.scene.pictures[-1])
    client['view'].value = 'mesh'
    session.step()
    mesh, field = client.scene.pictures[-1], client.scene.pictures[-2]
    solid = [np.any(image < 200, -1) for image in (mesh, field)]
    assert mesh.shape == field.shape and np.mean(solid[0] == solid[1]) > 0.9 and solid[0].any()
    loaded = trimesh.load(io.BytesIO(client.files['a_red_cube-0.glb']), file_type='glb', force='mesh')
    assert len(loaded.faces) == len(session.panels[0].mesh.faces)
    client['download PNG'].click()
    session.step()
    with Image.open(io.BytesIO(client.files['a_red_cube-0.png'])) as png:
        np.testing.assert_array_equal(np.asarray(png), mesh)
    client.camera.position = (0.0, 0.0, 0.1)  # inside: no face behind the camera is drawn, and nothing fails
    session.step(1.0)
    session.step(1.0)
    assert 'Failed' not in client['note'].content


def test_an_error_of_the_program_is_told_in_its_browser_alone(monkeypatch, shown, capsys):
    session = Session(monkeypatch, shown, browsers=2)
    monkeypatch.setattr(viewer_pictures, 'draw', lambda *_: 1 / 0)
    first, second = session.clients.values()
    first['view'].value = 'normal'
    session.step()
    assert 'Failed:</b> ZeroDivisionError' in first['note'].content and 'Failed' not in second['note'].content
    assert capsys.readouterr().err.count('ZeroDivisionError') == 1
    session.step()
    assert capsys.readouterr().err == ''  # not again while nothing changes


def test_a_system_of_pictures_shows_them(monkeypatch):
    pixels = np.float32([[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [1, 1, 1]]])
    system = shows(lambda request: Picture(request.prompt, pixels))
    loaded = small_run.loaded()._replace(system=system)
    client = viser_stub.Client(aspect=2.0)
    viewer_panel.step({}, {0: client}, loaded, viewer_pictures.make(loaded, 'a red cube'), 8)
    assert client['view'].options == ('colour',) and 'download GLB' not in client.gui.fields
    np.testing.assert_array_equal(client.scene.pictures[-1][:, 4:12], np.uint8(pixels * 255).repeat(4, 0).repeat(4, 1))


# -------------------------------------------------------------------------------------------------------------- the server


def test_the_link_is_the_port_that_is_listened_on(monkeypatch, capsys):
    servers, client, rounds = [], viser_stub.Client(), iter(range(3))

    def start(**options):
        servers.append(viser_stub.Server(**options, taken=(8080, 8081)))
        servers[0].clients[0] = client
        return servers[0]

    monkeypatch.setitem(sys.modules, 'viser', types.SimpleNamespace(ViserServer=start))
    loaded = small_run.loaded()
    monkeypatch.setattr(loading, 'load', lambda folder: loaded)
    monkeypatch.setattr(viewer.socket, 'gethostname', lambda: 'node7')
    viewer.serve('x', 'a red cube', size=16, stop=lambda: next(rounds, None) is None)
    lines = capsys.readouterr().out.splitlines()
    assert 'open http://localhost:8082  (port 8080 is taken)' in lines
    assert 'from another machine: ssh -L 8082:localhost:8082 node7, then the same link' in lines
    (server,) = servers
    assert server.host == '127.0.0.1' and server.stopped and server.up == '+y'
    assert server.initial_camera.position[2] > 3.0 and server.initial_camera.fov > 0.5
    assert [picture.shape for picture in client.scene.pictures] == [(16, 24, 3)] and np.ptp(client.scene.pictures[0]) > 20


@pytest.mark.parametrize(('host', 'expected'), [('0.0.0.0', 'http://localhost:80'), ('10.0.0.7', 'http://10.0.0.7:80')])
def test_listening_for_others_is_said(host, expected):
    first, second = viewer.links(80, 80, host)
    assert first == f'open {expected}' and second.startswith('every machine that reaches')


@pytest.mark.parametrize(
    ('options', 'text'),
    [({'port': 99999}, '--port 99999: wanted 0 to 65535'), ({'port': -1}, '--port -1')]
    + [({'host': host}, f'--host {host}: cannot listen there') for host in ('203.0.113.7', 'no host', 'x' * 70, '1.2.3.4.5')],
)
def test_addresses_that_cannot_be_are_refused_before_the_weights_are_read(options, text, monkeypatch):
    monkeypatch.setattr(loading, 'load', lambda folder: pytest.fail('read'))
    with pytest.raises(UsageError, match=text):
        viewer.serve('x', 'a red cube', **options)


def test_without_viser_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'viser', None)
    with pytest.raises(ModuleNotFoundError, match=r'`t3d view` needs viser: pip install "t3d\[view\]"'):
        viewer.serve(None)


def test_a_model_without_prompts_asks_for_one(monkeypatch):
    monkeypatch.setitem(sys.modules, 'viser', types.SimpleNamespace())
    loaded = small_run.loaded()._replace(config=small_run.config('export.prompts=()'))
    monkeypatch.setattr(loading, 'load', lambda folder: loaded)
    with pytest.raises(UsageError, match='names no prompt to begin with'):
        viewer.serve('x')
