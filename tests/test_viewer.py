"""The viewer's pictures, and its loop with a stand-in for viser."""

import sys
import types

import jax
import numpy as np
import pytest
import small_run

from t3d import viewer
from t3d.core.errors import UsageError
from t3d.geom import cameras
from t3d.train import inference


@pytest.fixture(scope='module')
def shown():
    shown = viewer.Shown(small_run.loaded(), 16)
    shown.read('a red cube')
    return shown


def test_the_picture_is_the_render_of_the_asset(shown):
    camera = cameras.orbit(0.3, 0.2, 3.2, 0.7)
    picture = np.asarray(shown.draw(camera.world_from_cam, 0.7))
    assert picture.shape == (16, 16, 3) and picture.dtype == np.uint8
    asset = shown.asset
    rendered = jax.jit(asset.render)(asset.scene, cameras.rays(camera, 16, 16)).features
    np.testing.assert_allclose(picture, 255.0 * np.clip(rendered, 0.0, 1.0), atol=1.5)


def test_a_wide_window_sees_more_at_the_sides(shown):
    """The picture is stretched to the window: in one twice as wide the ball covers half as many columns, as many rows."""
    matrix = cameras.orbit(0.0, 0.0, 3.2, 0.7).world_from_cam
    square, wide = (np.any(np.asarray(shown.draw(matrix, 0.7, aspect)) < 230, -1) for aspect in (1.0, 2.0))
    assert abs(int(wide.any(1).sum()) - int(square.any(1).sum())) <= 2
    assert abs(2 * int(wide.any(0).sum()) - int(square.any(0).sum())) <= 3 and square.any(0).sum() >= 6


def test_a_refused_prompt_leaves_the_old_asset(shown):
    before, count = shown.asset, shown.count
    with pytest.raises(UsageError, match='corgi'):
        shown.read('a corgi')
    assert shown.asset is before and shown.count == count


class StandIn:
    """As much of viser as the viewer uses; one client, whose pictures are kept."""

    def __init__(self):
        self.pictures, self.handlers, self.up = [], {}, None
        camera = types.SimpleNamespace(wxyz=(0.0, 1.0, 0.0, 0.0), position=(0.0, 0.0, 3.2), fov=0.7, aspect=1.5)
        picture = types.SimpleNamespace(set_background_image=lambda image, format: self.pictures.append(image))
        self.clients = {7: types.SimpleNamespace(camera=camera, scene=picture)}
        self.scene = types.SimpleNamespace(set_up_direction=lambda direction: setattr(self, 'up', direction))
        self.initial_camera = types.SimpleNamespace()
        self.gui = types.SimpleNamespace(
            add_text=lambda name, value: self.widget(name, value),
            add_number=lambda name, value, **_: self.widget(name, value),
            add_markdown=lambda content: self.widget('note', content),
        )

    def widget(self, name, value):
        widget = types.SimpleNamespace(value=value, content=value)
        widget.on_update = lambda handler: self.handlers.setdefault(name, (widget, handler))
        self.handlers.setdefault(f'{name} itself', widget)
        return widget

    def get_clients(self):
        return self.clients


def test_the_loop_draws_when_something_changed(monkeypatch, capsys):
    server, turn, loaded = StandIn(), [], small_run.loaded()
    monkeypatch.setitem(sys.modules, 'viser', types.SimpleNamespace(ViserServer=lambda port, verbose: server))
    monkeypatch.setattr(inference, 'load', lambda folder: loaded)
    monkeypatch.setattr(viewer.time, 'sleep', lambda seconds: None)

    def stop():
        turn.append(len(server.pictures))
        if len(turn) == 4:
            server.clients[7].camera.fov = 0.8
        if len(turn) == 6:
            box, handler = server.handlers['prompt']
            box.value = 'a corgi'
            handler(None)
        if len(turn) == 8:
            assert '"corgi"' in server.handlers['note itself'].content
            box, handler = server.handlers['prompt']
            box.value = 'a blue cone'
            handler(None)
        return len(turn) > 10

    viewer.serve('x', 'a red cube', size=16, stop=stop)
    assert turn == [0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3] and server.handlers['note itself'].content == ''
    assert server.up == '+y' and server.initial_camera.position[2] > 3.0 and server.initial_camera.fov > 0.5
    assert 'open http://localhost:8080' in capsys.readouterr().out
    assert server.pictures[0].shape == (16, 16, 3) and np.ptp(server.pictures[0]) > 20  # the ball is in sight


def test_without_viser_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'viser', None)
    with pytest.raises(ModuleNotFoundError, match=r'`t3d view` needs viser: pip install "t3d\[view\]"'):
        viewer.serve(None)


def test_a_model_without_prompts_asks_for_one(monkeypatch):
    monkeypatch.setitem(sys.modules, 'viser', types.SimpleNamespace())
    loaded = small_run.loaded()._replace(config=small_run.config('export.prompts=()'))
    monkeypatch.setattr(inference, 'load', lambda folder: loaded)
    with pytest.raises(UsageError, match='names no prompt to begin with'):
        viewer.serve('x')
