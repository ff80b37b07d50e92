"""The page on Python: every block of docs/python.md runs, and what it says of the results is so."""

import pathlib
import re

import numpy as np
import pytest
import small_run

import t3d
from t3d.core.errors import UsageError
from t3d.core.outputs import Picture
from t3d.inference import loading
from t3d.python import Asset, Model

PAGE = pathlib.Path(__file__).parent.parent / 'docs' / 'python.md'


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.S):
        exec(compile(block, str(PAGE), 'exec'), names)
    assert names['page'] == pathlib.Path('out/cone/report.html') and names['page'].exists()
    assert names['pictures'].shape == (4, 64, 64, 3) and 0.0 <= names['pictures'].min() < names['pictures'].max() <= 1.0
    assert names['pictures'][:, 0, 0].min() > 0.95 and names['pictures'].min() < 0.3  # white behind a coloured object
    density, colour = names['density'], names['colour']
    assert density[0] > 20.0 and density[1] == 0.0 and colour.shape == (2, 3) and colour[0].argmax() == 2
    assert names['above'].shape == (2, 64, 64, 3) and names['opacity'].shape == (32, 32)
    vertices, faces, colours = names['vertices'], names['faces'], names['colours']
    assert len(vertices) == len(colours) and faces.max() < len(vertices) and np.abs(vertices).max() <= 1.0
    assert any(np.abs(leaf).max() > 0 for leaf in names['slope']['field']['out'].values())
    assert 'cone' in names['words']


def test_lists_seeds_and_what_the_command_makes():
    model = Model(small_run.loaded())
    one = model.generate('a red cube', seed=3)
    many = model.generate(['a blue cone', 'a red cube'], seed=3)
    np.testing.assert_array_equal(many[1].output.scene['planes'], one.output.scene['planes'])
    ((_, made),) = loading.generate(small_run.loaded(), ['a red cube'], [3])
    np.testing.assert_array_equal(made.scene['planes'], one.output.scene['planes'])
    assert repr(one) == "<t3d field of 'a red cube'>" and 'instant3d' in repr(model)


def test_what_an_asset_is_not():
    model = Model(small_run.loaded())
    with pytest.raises(UsageError, match='an image was given, and instant3d reads text alone'):
        model.generate('a red cube', image=np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UsageError, match=r'image of shape \(4, 4\): wanted'):
        model.generate('a red cube', image=np.zeros((4, 4)))
    picture = Asset(Picture('a red cube', np.zeros((4, 4, 3))), small_run.loaded())
    for call in (picture.render, picture.mesh, lambda: picture.at([[0.0, 0.0, 0.0]])):
        with pytest.raises(UsageError, match='is of a field, and small makes picture: its arrays are in `.output`'):
            call()
    with pytest.raises(UsageError, match=r"unknown option of save\(\) 'texure'. Did you mean 'texture'"):
        picture.save('out', texure=16)
    with pytest.raises(AttributeError, match="module 't3d' has no attribute 'nothing'"):
        t3d.nothing  # noqa: B018
