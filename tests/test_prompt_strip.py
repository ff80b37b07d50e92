"""The strip of prompts: a cell for each, the field left, its mesh right, both of the prompt's own colours."""

import types

import analytic_assets
import numpy as np
import pytest
from PIL import Image

from launch import prompt_strip
from t3d.core.outputs import Picture
from t3d.inference import loading


@pytest.fixture
def weights(monkeypatch):
    """Weights whose prompt names the asset in closed form that they make."""
    settings = {'grid': 24, 'faces': 1000, 'texture': 32}
    loaded = types.SimpleNamespace(config=types.SimpleNamespace(export=settings))
    made = {'cone': analytic_assets.cone_on_cube, 'picture': lambda: Picture('picture', np.zeros((4, 4, 3)))}
    monkeypatch.setattr(loading, 'load', lambda name: loaded)
    monkeypatch.setattr(loading, 'generate', lambda loaded, prompts, seeds: [(0, made[prompts[0]]())])


def test_field_and_mesh_stand_beside_each_other(weights, tmp_path):
    path = tmp_path / 'strip.png'
    prompt_strip.main(['--prompt', 'any', 'cone', '--size', '96', '--out', str(path)])
    image = np.asarray(Image.open(path)).astype(int)
    field, mesh = image[-100:-4, 4:100], image[-100:-4, 100:196]
    for red, green, blue in (np.moveaxis(half, -1, 0) for half in (field, mesh)):
        cone, cube = np.argwhere((red > 150) & (green < 90)), np.argwhere((blue > 150) & (red < 90))
        assert len(cone) > 100 and len(cube) > 300 and cone[:, 0].mean() < cube[:, 0].mean()
    assert np.mean(np.any(np.abs(field - mesh) > 60, -1)) < 0.05


def test_what_is_no_field_is_refused(weights, tmp_path, capsys):
    with pytest.raises(SystemExit):
        prompt_strip.main(['--prompt', 'any', 'picture', '--size', '32', '--out', str(tmp_path / 'strip.png')])
    assert 'fields are shown beside their meshes' in capsys.readouterr().err
