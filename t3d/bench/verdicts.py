"""What the lines of `t3d bench goals` say of the goals on a processor: ratios, verdicts, shares of the roofs, curves.

Everything here reads lines of JSON (t3d/bench/figures.py) and measures nothing. The goals are those that were set before the
code was written; a ratio is the peer's time over ours, turn by turn, so above 1 t3d is quicker.
"""

import statistics
from typing import NamedTuple

ROOFS = ('products', 'streams', 'rows')
LONGEST = 160  # letters of a reason in a table
LIMIT = 1 / 3  # of a roof: below it that roof is not what limits
HEADER = (
    '| workload | pass | peer | goal | measured: median [min, max] | | t3d, ms | peer, ms | share of the roofs: '
    'products, streams, rows | nearest | turns, commit, date |',
    '|---|---|---|---|---|---|---|---|---|---|---|',
)


class Goal(NamedTuple):
    """A workload and what was wanted of it.

    Attributes:
      least: of the ratio, or most: of the seconds; both None where the figure is only reported.
      benchmark, words: of the line that has it. path: of its row in the figures.
    """

    workload: str
    what: str
    peer: str
    benchmark: str
    path: tuple
    words: dict = {}
    least: float | None = None
    most: float | None = None

    @property
    def wish(self) -> str:
        return f'>= {self.least:g}' if self.least else f'<= {self.most:g} s' if self.most else 'reported'


GRID, MODULES, ALL_VIEWS = 'PyTorch, grid_sample', 'PyTorch modules', 'diffusers, all views'
BOTH = 'forward + backward'
GOALS = (
    Goal('triplane render, tiny', 'forward', GRID, 'render', ('tiny', 0), least=2.5),
    Goal('triplane render, tiny', BOTH, GRID, 'render', ('tiny', 1), least=2.0),
    Goal('triplane render, 64 x 64 rays x 96', 'forward', GRID, 'render', ('64', 0), least=1.5),
    Goal('triplane render, 64 x 64 rays x 96', BOTH, GRID, 'render', ('64', 1), least=1.5),
    Goal('GAN, tiny', 'iteration', MODULES, 'gan', ('phases', 'iteration'), {'size': None}, least=1.0),
    Goal('GAN, 128 px', 'iteration', MODULES, 'gan', ('phases', 'iteration'), {'size': '128'}, least=1.0),
    Goal('UNet of SD 2.1, 4 x 32 x 32 latents', 'forward', 'diffusers', 'unet', ('sd21',), least=0.9),
    Goal(
        'multi-view UNet, tiny, 4 views',
        'forward',
        ALL_VIEWS,
        'mv',
        ('dense', 'peer', 'dense', 'forward'),
        least=0.9,
    ),
    Goal('multi-view UNet, tiny, 4 views', BOTH, ALL_VIEWS, 'mv', ('dense', 'peer', 'dense', 'both'), least=0.9),
    Goal('text to triplane, released size', 'forward', 'PyTorch', 'decoder', ('released-planes', 'planes')),
    Goal('first step, tiny, cold cache', 'the step alone', '-', 'start', ('the step alone, cold',), most=15.0),
    Goal('first step, tiny, warm cache', 'the step alone', '-', 'start', ('the step alone, warm',), most=2.0),
)


def found(goal: Goal, lines: list[dict]) -> tuple[dict, object] | None:
    """(line, row) of the newest line that has the figures of a goal, or None."""
    for line in reversed(lines):
        same = line['benchmark'] == goal.benchmark and 'figures' in line
        if same and all(line['words'].get(name) == value for name, value in goal.words.items()):
            row = line['figures']
            try:
                for step in goal.path:
                    row = row[step]
            except (KeyError, IndexError, TypeError):
                continue
            return line, row
    return None


def measured(goal: Goal, lines: list[dict]) -> tuple[float, float, float] | None:
    """(median, lowest, highest) of the ratio, or of the seconds of a first step; None where it was not measured."""
    there = found(goal, lines)
    if there is None:
        return None
    row = there[1]
    if isinstance(row, list):
        return statistics.median(row), min(row), max(row)
    return tuple(row['ratio']) if row.get('ratio') else None


def not_measured(benchmark: str, words: dict, lines: list[dict]) -> str:
    """'not measured: why', of a benchmark with these words and no figures: what its newest line says.

    `words`: {name: value}, None where the word is not among those of the command.
    """

    def same(asked: list[str]) -> bool:
        pairs = {(word.removeprefix('--'), value) for word, value in zip(asked, asked[1:])}
        return all((name, value) in pairs if value else f'--{name}' not in asked for name, value in words.items())

    failed = [line for line in lines if 'failed' in line and line['benchmark'] == benchmark and same(line['words'])]
    why = ' '.join(failed[-1]['failed'].split())[:LONGEST].replace('|', '/') if failed else 'not reached yet'
    return f'not measured: {why}'


def verdict(goal: Goal, lines: list[dict]) -> str:
    """'met', '**missed**', 'reported' or 'not measured: why'."""
    value = measured(goal, lines)
    if value is None:
        return not_measured(goal.benchmark, goal.words, lines)
    if goal.least is None and goal.most is None:
        return 'reported'
    return 'met' if (value[0] >= goal.least if goal.least else value[0] <= goal.most) else '**missed**'


def roofs(lines: list[dict]) -> dict[str, float]:
    """The highest of each roof among the lines, {} without one."""
    rows = [line['figures'] for line in lines if line['benchmark'] == 'roof' and 'figures' in line]
    return {name: max(row[name] for row in rows) for name in rows[0] if name != 'dtype'} if rows else {}


def shares(row: dict, roof: dict[str, float]) -> dict[str, float]:
    """What a row reaches of each roof that it can be compared with: 'products', 'streams', 'rows'."""
    seconds, reached = 1e-3 * row['t3d_ms'][0], {}
    for name, amount, most in (
        ('products', row.get('gflop'), roof.get('gflop_per_s')),
        ('streams', row.get('gbyte'), roof.get('copy_gb_per_s')),
        ('rows', row.get('gathered_gbyte'), roof.get('rows_gb_per_s')),
    ):
        if amount and most:
            reached[name] = amount / seconds / most
    return reached


def nearest(share: dict[str, float]) -> str:
    """The roof that a row comes nearest to, if it comes near one."""
    if not share:
        return '-'
    name = max(share, key=share.get)
    return name if share[name] >= LIMIT else 'none'


def table(lines: list[dict]) -> str:
    """A Markdown table of all goals."""
    roof, rows = roofs(lines), list(HEADER)
    for goal in GOALS:
        value, there = measured(goal, lines), found(goal, lines)
        head = f'| {goal.workload} | {goal.what} | {goal.peer} | {goal.wish} '
        if value is None:
            rows.append(f'{head}| - | {verdict(goal, lines)} |' + ' - |' * 5)
            continue
        line, row = there
        unit = ' s' if isinstance(row, list) else ''
        cells = [f'{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]{unit}', verdict(goal, lines)]
        share = {} if isinstance(row, list) else shares(row, roof)
        count = len(row) if isinstance(row, list) else line['words']['repeats']
        cells += ['-', '-'] if isinstance(row, list) else [_timing(row['t3d_ms']), _timing(row['peer_ms'])]
        cells.append(
            ', '.join(f'{100 * share[name]:.0f} %' if name in share else '-' for name in ('products', 'streams', 'rows'))
        )
        cells += [nearest(share), f'{count}, {short(line["machine"]["commit"])}, {line["when"][:10]}']
        rows.append(f'{head}| ' + ' | '.join(cells) + ' |')
    return '\n'.join(rows)


def short(commit: str | None) -> str:
    """The first digits of a commit, with the '+' of a checkout that differed from it."""
    return commit[:8] + '+' * commit.endswith('+') if commit else '-'


def _timing(three) -> str:
    return '{:.1f} [{:.1f}, {:.1f}]'.format(*three)


def _rate(value: float) -> str:
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def machine(lines: list[dict]) -> str:
    """Sentences on where the lines come from and what the roofs are."""
    whole = [line for line in lines if 'figures' in line]
    if not whole:
        return 'Nothing was measured yet.'
    last, loads = whole[-1], [line['load'] for line in whole]
    packages = {'jax': last['machine']['packages'].get('jax'), **last.get('peers', {})}
    versions = ', '.join(f'{name} {version}' for name, version in packages.items())
    text = f'{last["processor"]}, {last["cores"]} cores, Python {last["machine"]["python"]}, {versions}; '
    text += f'load at the end of each benchmark {min(loads):.1f} to {max(loads):.1f}, its own included.'
    if roof := roofs(lines):
        products, streams, rows = roof['gflop_per_s'], roof['copy_gb_per_s'], roof['rows_gb_per_s']
        text += f' The roofs of this machine, in the same run: products {products:.0f} GFLOP/s (float32), streams '
        text += f'{streams:.0f} GB/s (read and written), rows of 32 numbers at random {rows:.1f} GB/s.'
    return text


def curves(lines: list[dict]) -> dict[str, dict]:
    """{axis: {'unit', 'points'}}, the newest of each."""
    rows = [line['figures'] for line in lines if line['benchmark'] == 'scale' and 'figures' in line]
    return {axis: curve for row in rows for axis, curve in row.items()}


def curve_table(lines: list[dict], units: dict[str, str]) -> str:
    """A Markdown table of the curves over these axes: units a second at each point, and what of the first point's is left."""
    rows = ['| over | point: units a second (times the first) | unit |', '|---|---|---|']
    drawn = curves(lines)
    for axis, unit in units.items():
        if axis not in drawn:
            rows.append(f'| {axis} | {not_measured("scale", {"axes": axis}, lines)} | {unit} |')
            continue
        points = drawn[axis]['points']
        first = points[0]['per_s']
        cells = [f'{point["value"]}: {_rate(point["per_s"])} ({point["per_s"] / first:.2f})' for point in points]
        rows.append(f'| {axis} | {"; ".join(cells)} | {unit} |')
    return '\n'.join(rows)
