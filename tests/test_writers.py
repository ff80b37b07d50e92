"""What a system makes that cannot be written is refused in one sentence, and nothing is left behind."""

import numpy as np
import pytest

from t3d.core.errors import UsageError
from t3d.core.outputs import Mesh, Points, Splats, Views
from t3d.export import clouds, writers

CORNERS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
NONE = np.zeros((0, 3), np.float32)
NAN = np.full((3, 3), np.nan, np.float32)


def splats(means=CORNERS, scale=0.1, alive=None) -> Splats:
    count = len(means)
    turns = np.tile(np.array([1.0, 0, 0, 0], np.float32), (count, 1))
    return Splats('x', means, np.full((count, 3), scale), turns, np.full(count, 0.5), np.zeros((count, 1, 3)), alive)


@pytest.mark.parametrize(
    'output, message',
    [
        (Mesh('x', NAN, np.array([[0, 1, 2]])), 'NaN or infinite: the object has diverged'),
        (Mesh('x', CORNERS, np.zeros((0, 3), int)), 'the mesh has no triangles'),
        (Mesh('x', CORNERS, np.array([[0, 1, 3]])), 'triangles of vertices 0 to 3, and 3 vertices'),
        (Points('x', NONE), 'the object has no points'),
        (Points('x', NAN), '9 of 9 positions are NaN or infinite'),
        (splats(alive=np.zeros(3, bool)), 'the object has no points'),
        (splats(scale=0.0), 'splats need scales above 0'),
        ('a red cube', 'generate returned str: wanted one of t3d.core.outputs'),
    ],
)
def test_what_cannot_be_written(output, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        writers.write(output, tmp_path / 'out', log=lambda line: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['nowhere', 'no.where', '..', 'a b'])
def test_a_writer_that_nobody_has(name, tmp_path):
    with pytest.raises(UsageError, match='writer'):
        writers.write(Points('x', CORNERS), tmp_path / 'out', writer=name, log=lambda line: None)
    assert not list(tmp_path.iterdir())


def test_formats_and_parts_that_a_kind_does_not_have(tmp_path):
    views = Views('x', np.zeros((1, 8, 8, 3)), np.eye(4)[None], np.eye(3)[None])
    with pytest.raises(UsageError, match="format 'glb': views can be written as png"):
        writers.write(views, tmp_path / 'out', formats=('glb',), log=lambda line: None)
    with pytest.raises(UsageError, match='a views has no mesh'):
        writers.meshes_of(views, tmp_path / 'out')
    with pytest.raises(UsageError, match='this system makes points'):
        writers.turntable_of(Points('x', CORNERS), tmp_path / 'out')
    assert not list(tmp_path.iterdir())


def test_colours_beyond_white_are_white_in_the_sheet_as_in_the_file():
    pictures = clouds.pictures(np.zeros((1, 3)), np.full((1, 3), 1.2), np.array([0.1]))
    assert (pictures == 255).all()
