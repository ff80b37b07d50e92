"""docs/2d_playground.ipynb: its cells run from top to bottom, and what its texts say of the figures is so."""

import contextlib
import functools
import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

BOOK = pathlib.Path(__file__).parent.parent / 'docs' / '2d_playground.ipynb'


def cells(kind: str) -> list[dict]:
    return [cell for cell in json.loads(BOOK.read_text())['cells'] if cell['cell_type'] == kind]


@functools.cache
def run(pictures: bool) -> dict:
    """The names after all code cells, or after those that distil no pictures, which take most of the time."""
    names = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for cell in cells('code'):
            if pictures or 'pictures' not in cell['metadata'].get('tags', ()):
                exec(compile(''.join(cell['source']), f'{BOOK.name} {cell["id"]}', 'exec'), names)
    return names


def test_it_is_a_small_notebook_with_its_figures():
    book = json.loads(BOOK.read_text())
    assert book['nbformat'] == 4 and BOOK.stat().st_size < 200_000
    assert len({cell['id'] for cell in book['cells']}) == len(book['cells'])
    kinds = [output['output_type'] for cell in cells('code') for output in cell['outputs']]
    assert kinds.count('execute_result') > 6 and 'error' not in kinds


def test_gradients_point_to_the_picture_and_guesses_to_what_the_noise_leaves_open():
    names = run(False)
    one, mean = (np.array(column) for column in zip(*names['alignment'].values()))
    assert 0.3 < one[0] < 0.6 and np.all(np.diff(one) > -1e-3) and one[-1] > 0.98 and mean.min() > 0.98
    to_one, to_average = names['to_one'], names['to_average']
    assert names['rising'][2:4] == (500, 700)
    assert to_one[:3].max() < 0.02 and to_average[:3].min() > 0.03
    assert to_average[3:].max() < 0.01 and to_one[3:].min() > 0.03


def test_numbers_end_where_the_text_says():
    """SDS on modes and not on their shares; DDIM on both; the variational gradient keeps the spread."""
    names = run(False)
    left, right, spread = names['left'], names['right'], names['spread']
    assert abs(left['DDIM'] - 0.29) < 0.03 and abs(right['DDIM'][1] - 0.19) < 0.02
    assert left['SDS, t up to 500'] == 0.0 and abs(right['SDS, t up to 500'][0] - 0.83) < 0.02
    assert abs(left['SDS, t up to 200'] - 0.48) < 0.03 and abs(right['SDS, t up to 200'][0] - 1.0) < 0.02
    assert all(right[f'SDS, t up to {high}'][1] < right['DDIM'][1] / 6 for high in (500, 200))
    assert abs(spread['VSD'].std() - 0.5) < 0.05 and spread['SDS'].std() < 0.05
    assert all(abs(numbers.mean() - 0.3) < 0.03 for numbers in spread.values())


def test_the_negative_prompt_takes_the_eyes_from_the_back_of_the_head():
    names = run(False)
    np.testing.assert_allclose(names['to_front'], [0.424, 0.832, 1.244], atol=1e-2)
    np.testing.assert_allclose(names['to_back'], [0.990, 0.594, 0.262], atol=1e-2)


@pytest.mark.slow
def test_pictures_end_where_the_text_says():
    """Half a minute on two idle cores."""
    names = run(True)
    away, largest, scales = names['away'], names['largest'], names['scales']
    for high in (980, 500):
        assert np.all(np.diff([away[scale, high] for scale in scales]) > 0.0)
    assert away[1.0, 980] < 0.05 and away[100.0, 980] > 10 * away[100.0, 500] and away[100.0, 500] < 0.1
    assert largest[100.0, 980] > 4.0 and largest[100.0, 500] < 1.1
    by_weighting = names['by_weighting']
    assert by_weighting['uniform'] < by_weighting['fantasia3d'] < by_weighting['sds']
    assert names['sought_away'].mean() < 0.5 * names['sample_away'].mean() and names['sought_away'].max() < 0.02
    assert len(set(names['sample_pose'])) == 8 and len(set(names['sought_pose'])) == 4
    assert isinstance(names['show'](names['fronts'][None], ['']), Image.Image)
