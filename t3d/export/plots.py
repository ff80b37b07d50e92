"""Line plots as PNG, of logs and of guidance sweeps, for documentation; drawn with Pillow, which is here anyway."""

import math
import pathlib

import numpy as np

from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.export import report

SIZE = (640, 400)
BOX = (60, 40, 460, 350)  # left, top, right, bottom of the axes
INK, SOFT = (30, 35, 41), (217, 222, 227)
COLOURS = ((31, 111, 235), (207, 34, 46), (26, 127, 55), (154, 103, 0), (130, 80, 223))
RIGHT = {  # curves of a guidance sweep: label -> score
    'seen: shape': 'seen/shape',
    'seen: colour': 'seen/colour',
    'held out: shape': 'held_out/shape',
    'held out: colour': 'held_out/colour',
    'held out: both': 'held_out/both',
}
DISTANCES = {'to real': '{}', 'real to real': 'control/real/{}', 'generator': 'ceiling/{}', 'to generator': 'to_ceiling/{}'}


def lines(
    series: dict[str, tuple], title: str, x_label: str, *, low: float = 0.0, high: float = 1.0, x_range: tuple | None = None
) -> np.ndarray:
    """A plot of named curves.

    Args:
      series: name -> (x [N], y [N]), at most five.
      low, high: limits of y; values outside are drawn at the limit.
      x_range: limits of x; None for those of the data.
    Returns:
      uint8 [400, 640, 3].
    """
    from PIL import Image, ImageDraw, ImageFont

    if not 1 <= len(series) <= len(COLOURS):
        raise ValueError(f'lines: {len(series)} curves, wanted 1 to {len(COLOURS)}.')
    image = Image.new('RGB', SIZE, 'white')
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    left, top, right, bottom = BOX
    every = np.concatenate([np.asarray(x, float) for x, _ in series.values()])
    first, last = x_range or (every.min(), every.max())

    def place(x, y):
        across = (x - first) / max(last - first, 1e-12)
        up = (min(max(y, low), high) - low) / (high - low)
        return left + across * (right - left), bottom - up * (bottom - top)

    for k in range(6):
        y = low + (high - low) * k / 5
        height = place(first, y)[1]
        pen.line([(left, height), (right, height)], fill=SOFT)
        pen.text((left - 6, height), f'{y:g}', fill=INK, font=font, anchor='rm')
    for x in np.unique(every):
        across = place(x, low)[0]
        pen.line([(across, bottom), (across, bottom + 4)], fill=INK)
        pen.text((across, bottom + 6), f'{x:g}', fill=INK, font=font, anchor='mt')
    pen.line([(left, top), (left, bottom), (right, bottom)], fill=INK)
    pen.text(((left + right) / 2, bottom + 26), x_label, fill=INK, font=font, anchor='mt')
    pen.text((left, 18), title, fill=INK, font=font, anchor='lm')
    for (name, (xs, ys)), colour, row in zip(series.items(), COLOURS, range(len(series))):
        points = [place(x, y) for x, y in zip(xs, ys, strict=True)]
        pen.line(points, fill=colour, width=2)
        for x, y in points:
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
        pen.line([(right + 14, top + 10 + 22 * row), (right + 32, top + 10 + 22 * row)], fill=colour, width=3)
        pen.text((right + 38, top + 10 + 22 * row), name, fill=INK, font=font, anchor='lm')
    return np.asarray(image)


def points(named: dict[str, tuple[float, float]], title: str, x_label: str) -> np.ndarray:
    """Single points with their names beside them, both axes from 0.

    Args:
      named: name -> (x, y), none negative.
    Returns:
      uint8 [400, 640, 3].
    """
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new('RGB', SIZE, 'white')
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    left, top, right, bottom = BOX
    across, up = (_above(max(pair[axis] for pair in named.values())) for axis in (0, 1))
    for k in range(6):
        x, y = left + (right - left) * k / 5, bottom - (bottom - top) * k / 5
        pen.line([(left, y), (right, y)], fill=SOFT)
        pen.text((left - 6, y), f'{up * k / 5:.3g}', fill=INK, font=font, anchor='rm')
        pen.text((x, bottom + 6), f'{across * k / 5:.3g}', fill=INK, font=font, anchor='mt')
    pen.line([(left, top), (left, bottom), (right, bottom)], fill=INK)
    pen.text(((left + right) / 2, bottom + 26), x_label, fill=INK, font=font, anchor='mt')
    pen.text((left, 18), title, fill=INK, font=font, anchor='lm')
    heights = []  # of names: each 14 pixels under the one before it, where they would lie on each other
    for k, (name, (x, y)) in enumerate(sorted(named.items(), key=lambda item: -item[1][1])):
        x, y = left + (right - left) * x / across, bottom - (bottom - top) * y / up
        heights.append(max([y, *(height + 14 for height in heights[-1:])]))
        pen.line([(x, y), (right + 10, heights[-1])], fill=SOFT)
        pen.ellipse([x - 4, y - 4, x + 4, y + 4], fill=COLOURS[k % len(COLOURS)])
        pen.text((right + 12, heights[-1]), name, fill=COLOURS[k % len(COLOURS)], font=font, anchor='lm')
    return np.asarray(image)


def ranges(named: dict[str, tuple[float, float, float, float | None]], title: str, x_label: str) -> np.ndarray:
    """Medians with their ranges as bars one under the other, and the goal of each as a stroke across; the axis from 0.

    Args:
      named: name -> (median, lowest, highest, goal or None), none negative. A bar below its goal has another colour.
    Returns:
      uint8 [80 + 26 * N, 900, 3].
    """
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new('RGB', (900, 80 + 26 * len(named)), 'white')
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    left, right, top, bottom = 330, 860, 36, 40 + 26 * len(named)
    limit = _above(max(max(value or 0.0 for value in four) for four in named.values()))
    at = lambda value: left + (right - left) * value / limit
    pen.text((12, 18), title, fill=INK, font=font, anchor='lm')
    for k in range(6):
        pen.line([(at(limit * k / 5), top), (at(limit * k / 5), bottom)], fill=SOFT)
        pen.text((at(limit * k / 5), bottom + 6), f'{limit * k / 5:.3g}', fill=INK, font=font, anchor='mt')
    pen.text(((left + right) / 2, bottom + 24), x_label, fill=INK, font=font, anchor='mt')
    for k, (name, (median, low, high, goal)) in enumerate(named.items()):
        y = top + 16 + 26 * k
        reached = goal is None or median >= goal
        pen.text((left - 8, y), name, fill=INK, font=font, anchor='rm')
        pen.rectangle([left, y - 7, at(median), y + 7], fill=COLOURS[0] if reached else COLOURS[1])
        pen.line([(at(low), y), (at(high), y)], fill=INK, width=2)
        for end in (low, high):
            pen.line([(at(end), y - 4), (at(end), y + 4)], fill=INK, width=2)
        if goal is not None:
            pen.line([(at(goal), y - 11), (at(goal), y + 11)], fill=COLOURS[3], width=3)
    return np.asarray(image)


PANEL, COLUMNS, MARGIN = (300, 150), 3, (52, 26, 12, 24)  # a panel's size; margins: left, top, right, bottom


def histories(series: dict[str, tuple], title: str, x_label: str = 'step', *, smooth: int = 1) -> np.ndarray:
    """One small panel for each curve, with axes of its own: the values faint, their running mean strong.

    Args:
      series: name -> (x [N], y [N]), x rising; values that are not finite are left out.
      smooth: points that the running mean spans; 1 draws the values alone.
    Returns:
      uint8 [30 + 150 * rows, 900, 3], three panels a row.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not series:
        raise ValueError('histories: no curves.')
    rows = -(-len(series) // COLUMNS)
    image = Image.new('RGB', (COLUMNS * PANEL[0], 30 + rows * PANEL[1]), 'white')
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    pen.text((MARGIN[0], 15), f'{title}; {x_label} to the right', fill=INK, font=font, anchor='lm')
    for k, (name, (xs, ys)) in enumerate(series.items()):
        corner = PANEL[0] * (k % COLUMNS), 30 + PANEL[1] * (k // COLUMNS)
        xs, ys = np.asarray(xs, float), np.asarray(ys, float)
        finite = np.isfinite(ys)
        _panel(pen, font, corner, name, xs[finite], ys[finite], smooth)
    return np.asarray(image)


def _panel(pen, font, corner, name, xs, ys, smooth):
    left, top = corner[0] + MARGIN[0], corner[1] + MARGIN[1]
    right, bottom = corner[0] + PANEL[0] - MARGIN[2], corner[1] + PANEL[1] - MARGIN[3]
    pen.text((left, top - 12), name, fill=INK, font=font, anchor='lm')
    pen.line([(left, top), (left, bottom), (right, bottom)], fill=INK)
    if not len(xs):
        return
    low, high = min(float(ys.min()), 0.0), max(float(ys.max()), 0.0)
    high = high if high > low else low + 1.0

    def place(x, y):
        across = (x - xs[0]) / max(xs[-1] - xs[0], 1e-12)
        return left + across * (right - left), bottom - (y - low) / (high - low) * (bottom - top)

    for value in (low, high):
        pen.text((left - 4, place(xs[0], value)[1]), f'{value:.3g}', fill=INK, font=font, anchor='rm')
    for value, anchor in ((xs[0], 'lt'), (xs[-1], 'rt')):
        pen.text((place(value, low)[0], bottom + 5), f'{value:g}', fill=INK, font=font, anchor=anchor)
    faint = SOFT if smooth > 1 else COLOURS[0]
    pen.line([place(x, y) for x, y in zip(xs, ys)], fill=faint, width=1)
    if smooth > 1 and len(xs) >= smooth:
        mean = np.convolve(ys, np.full(smooth, 1.0 / smooth), 'valid')
        middle = np.convolve(xs, np.full(smooth, 1.0 / smooth), 'valid')
        pen.line([place(x, y) for x, y in zip(middle, mean)], fill=COLOURS[0], width=2)


# ---------------------------------------------------------------------------------------------------------------- runs


def history(run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """name -> (steps, values) of a run folder; of a step that was logged twice (a run that resumed) the last counts.

    Raises:
      FileNotFoundError: no metrics.jsonl there.
    """
    path = pathlib.Path(run) / 'metrics.jsonl'
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist: give the folder of a run (t3d train ... --workdir RUN).')
    rows = {}
    for row in report.read_metrics(path):  # without lines cut short
        if isinstance(row.get('step'), int):
            step = row.pop('step')
            rows[step] = {name: value for name, value in row.items() if isinstance(value, int | float)}
    names = sorted({name for row in rows.values() for name in row})
    steps = sorted(rows)
    curves = {name: [(step, rows[step][name]) for step in steps if name in rows[step]] for name in names}
    return {name: tuple(np.array(points, float).T) for name, points in curves.items()}


def chosen(series: dict, names: list[str]) -> dict:
    """The curves asked for, in that order; none asked for: all but the machine's."""
    if not names:
        return {name: value for name, value in series.items() if not name.startswith('perf/')}
    selected = {}
    for name in names:
        matches = [key for key in series if key == name or (name.endswith('*') and key.startswith(name[:-1]))]
        if not matches:
            raise UsageError(configs.unknown(name, series, 'name in the log'))
        selected |= {key: series[key] for key in matches}
    return selected


def guidance(rows: list[dict], scales, what: str, samples: int) -> dict[str, np.ndarray]:
    """The plots of a guidance sweep, as its rows have the scores: '' what is right, 'fid_tiny' or 'kid_tiny' distances."""
    name = 'fid_tiny' if 'fid_tiny' in rows[0] else 'kid_tiny'
    distances = {label: key.format(name) for label, key in DISTANCES.items()}
    highest = max((row[key] for row in rows for key in distances.values() if key in row), default=0.0)
    figures = {}
    for kind, title, curves, high in (
        ('', f'{what}: samples right by the oracle, {samples} of each caption', RIGHT, 1.0),
        (name, f'{what}: {name}', distances, _above(highest)),
    ):
        series = {label: (scales, [row[key] for row in rows]) for label, key in curves.items() if key in rows[0]}
        if series:
            figures[kind] = lines(series, title, 'guidance scale', high=high)
    return figures


def _above(value: float) -> float:
    """The least of five equal steps of one digit that reaches a value: 0.0974 gives 0.1, 0.27 gives 0.3."""
    digit = 10.0 ** math.floor(math.log10(max(value, 1e-9) / 5.0))
    return 5.0 * digit * math.ceil(value / (5.0 * digit))
