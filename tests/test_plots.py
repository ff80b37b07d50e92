"""Line plots: where points fall, and what is refused."""

import json

import numpy as np
import pytest

from t3d.export import plots


def test_points_fall_where_their_values_say():
    image = plots.lines({'a': ([0.0, 1.0, 2.0], [0.0, 0.5, 2.0]), 'b': ([0.0, 2.0], [1.0, 0.25])}, 'title', 'x')
    assert image.shape == (400, 640, 3) and image.dtype == np.uint8
    left, top, right, bottom = plots.BOX
    middle = (left + right) // 2, (top + bottom) // 2
    for x, y in ((left, bottom), middle, (right, top)):  # the last is beyond the limit and drawn at it
        assert tuple(image[y, x]) == plots.COLOURS[0]
    assert tuple(image[top, left]) == plots.COLOURS[1]
    assert tuple(image[bottom - (bottom - top) // 4, right]) == plots.COLOURS[1]


def test_too_many_curves_are_refused():
    with pytest.raises(ValueError, match='6 curves, wanted 1 to 5'):
        plots.lines({str(k): ([0.0], [0.0]) for k in range(6)}, '', '')


def test_a_history_has_a_panel_for_each_curve_and_its_running_mean():
    steps = np.arange(0.0, 100.0)
    noisy = 1.0 + np.where(steps % 2, 0.5, -0.5)
    image = plots.histories(
        {'a': (steps, noisy), 'b': (steps, steps), 'c': (steps, -steps), 'd': (steps, noisy)}, 't', smooth=2
    )
    assert image.shape == (30 + 2 * 150, 900, 3)
    strong = (image == plots.COLOURS[0]).all(-1)
    left, top, right, bottom = plots.MARGIN
    low, height = 30 + 150 - bottom, 150 - top - bottom
    rows = np.flatnonzero(strong[30:180, left + 5 : 300 - right].any(1)) + 30
    assert abs(rows.mean() - (low - height / 1.5)) <= 1 and np.ptp(rows) <= 1  # the mean of 0.5 and 1.5, of 0 to 1.5: level
    for panel, falls in ((1, False), (2, True)):
        part = strong[30:180, 300 * panel : 300 * (panel + 1)]
        first, last = np.flatnonzero(part[:, left + 20])[0], np.flatnonzero(part[:, 300 - right - 20])[0]
        assert (last > first) == falls
    assert not strong[180:, 300:].any()  # places without a curve stay empty
    with pytest.raises(ValueError, match='no curves'):
        plots.histories({}, '')


def test_curves_of_a_run_folder(tmp_path, capsys):
    from launch import curves

    rows = [{'step': 5, 'loss': 2.0, 'perf/x': 1.0}, {'step': 10, 'loss': 1.5}, {'step': 10, 'loss': 1.0, 'loss/rgb': 0.5}]
    (tmp_path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    with open(tmp_path / 'metrics.jsonl', 'ab') as file:  # killed in the middle of a line, and what no run writes
        file.write(b'\n[1]\n{"loss": 3.0}\n{"step": 11, "loss": "x"}\n\xff\n{"step": 12, "lo')
    series = plots.history(tmp_path)
    assert series['loss'][0].tolist() == [5, 10] and series['loss'][1].tolist() == [2.0, 1.0]
    assert list(plots.chosen(series, [])) == ['loss', 'loss/rgb'] == list(plots.chosen(series, ['loss*']))
    out = tmp_path / 'c.png'
    curves.main([str(tmp_path), 'loss', '--out', str(out)])
    assert out.stat().st_size > 1000 and '1 curves in' in capsys.readouterr().out
    for argv, message in (([str(tmp_path), 'los'], "Did you mean 'loss'"), ([str(tmp_path / 'none')], 'does not exist: give')):
        with pytest.raises(SystemExit):
            curves.main(argv)
        assert message in capsys.readouterr().err


def test_points_lie_where_their_numbers_are_and_names_do_not_lie_on_each_other():
    image = plots.points({'a': (0.1, 0.5), 'b': (0.2, 0.5), 'c': (0.0, 1.0)}, 'title', 'x')
    left, top, right, bottom = plots.BOX
    assert image.shape == (400, 640, 3) and image.dtype == np.uint8
    names = []
    for colour, (x, y) in zip(plots.COLOURS, ((0.0, 1.0), (0.1, 0.5), (0.2, 0.5)), strict=False):  # from the highest on
        assert tuple(image[round(bottom - (bottom - top) * y), round(left + (right - left) * x / 0.2)]) == colour
        rows = np.flatnonzero((image[:, right + 12 :] == colour).all(-1).any(1))
        names.append((rows[0], rows[-1]))
    assert all(last - first < 14 for first, last in names) and names[2][0] > names[1][1]
