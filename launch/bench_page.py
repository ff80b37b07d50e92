"""`python -m launch.bench_page`: the table, curves and plots of docs/goals.md from the figures of `t3d bench goals`.

What stands between the two marks of the page is written anew, the rest of it stays, and so between the marks of each section of
the `benchmarks.md` beside it, if there is one (t3d/bench/sections.py). What has no figures says why. Plots are written beside
docs/images.
"""

import math
import pathlib

from t3d.bench import scale, sections, series, verdicts
from t3d.core import files, parsing
from t3d.core.errors import UsageError

BEGIN, END = '<!-- made by python -m launch.bench_page: begin -->', '<!-- made by python -m launch.bench_page: end -->'
ROOT = pathlib.Path(__file__).resolve().parent.parent
RATIOS, CURVES = 'goals_ratios.png', 'goals_curves.png'


def block(lines: list[dict]) -> str:
    """The part of the page that is made of the figures, Markdown."""
    parts = [verdicts.machine(lines), verdicts.table(lines)]
    if ratios(lines):
        parts.append(f'![Ratio to the peer of each workload, with its range over the turns and its goal](images/{RATIOS})')
    parts.append(verdicts.curve_table(lines, {axis: unit for axis, (_, unit) in scale.AXES.items()}))
    if verdicts.curves(lines):
        parts.append(f'![What of the throughput of the first point is left](images/{CURVES})')
    return '\n\n'.join([BEGIN, *parts, END])


def replaced(page: str, text: str) -> str:
    """A page with its block replaced; UsageError for one without the two marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f'the page has no place for the figures: add the lines {BEGIN} and {END}.')
    return before + text + after


def ratios(lines: list[dict]) -> dict[str, tuple]:
    """name -> (median, lowest, highest, goal) of the goals that are ratios and were measured."""
    goals = [(goal, verdicts.measured(goal, lines)) for goal in verdicts.GOALS if not goal.most]
    return {f'{goal.workload}, {goal.what}': (*value, goal.least) for goal, value in goals if value}


def efficiencies(lines: list[dict]) -> dict[str, tuple]:
    """axis -> (doublings, units a second over those of the first point) of each curve."""
    curves = {}
    for axis, curve in verdicts.curves(lines).items():
        first = curve['points'][0]
        doublings = [math.log2(point['value'] / first['value']) for point in curve['points']]
        curves[axis] = (doublings, [point['per_s'] / first['per_s'] for point in curve['points']])
    return curves


def pictures(lines: list[dict]) -> dict:
    """file name -> picture, uint8 [H, W, 3]."""
    from t3d.export import plots

    made, curves = {}, efficiencies(lines)
    if ratios(lines):
        made[RATIOS] = plots.ranges(ratios(lines), "The peer's time over ours", 'above 1: t3d is quicker; strokes: goals')
    if curves:
        high = math.ceil(max(max(values) for _, values in curves.values()))
        title = 'Units a second, times those of the first point'
        made[CURVES] = plots.lines(curves, title, 'times that the number was doubled', high=float(high))
    return made


def main(argv: list[str] | None = None) -> None:
    parser = parsing.Parser(prog='python -m launch.bench_page', description=__doc__)
    parser.add_argument('--figures', type=pathlib.Path, default=ROOT / 'docs/figures/goals.jsonl', help='of t3d bench goals')
    parser.add_argument('--page', type=pathlib.Path, default=ROOT / 'docs/goals.md')
    args = parser.parse_args(argv)
    with parsing.refusing(parser):
        lines = series.read(args.figures)
        pages, beside = {args.page: replaced(args.page.read_text(), block(lines))}, args.page.parent / 'benchmarks.md'
        if beside.exists():
            pages[beside] = sections.filled(beside.read_text(), lines)
        for page, text in pages.items():
            files.write(page, text)
    from PIL import Image

    folder = args.page.parent / 'images'
    folder.mkdir(exist_ok=True)
    for name, picture in pictures(lines).items():
        Image.fromarray(picture).save(folder / name, optimize=True)
    said = ', '.join(f'{goal.workload} {goal.what}: {verdicts.verdict(goal, lines)}' for goal in verdicts.GOALS)
    print(f'{args.page}: {said.replace("**", "")}')


if __name__ == '__main__':
    main()
