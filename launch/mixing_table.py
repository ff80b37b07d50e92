"""`python -m launch.mixing_table --out DIR --given pictures=RUN`: what each schedule of lambda makes of patterns.

Every setting of configs/guided_mv.py:tiny samples patterned toy objects; their views are read (t3d.evaluate.pattern_views), and
those of some captions reconstructed, as t3d.evaluate.pattern_consistency does, without the halves of the views. Written to DIR:
`scores.jsonl` (one line a setting; a command that was stopped goes on behind those that are there), `table.md`, and
`realism.png`: Fréchet distance to true patterned views against MVC.

`--given` as in `t3d eval`: the 2D model is `toy_patterns`, in closed form, or a run of configs/image_diffusion.py:patterns.
"""

import pathlib

from launch import kept
from t3d.core import config as configs
from t3d.core import parsing
from t3d.core.errors import UsageError
from t3d.core.rules import Whole
from t3d.data.sets import patterns
from t3d.parallel import devices

BASE = 'configs/guided_mv.py:tiny'
SETTINGS = {  # name: overrides; lambda from the noisiest time to the last
    '1, the multi-view model alone': ('mixing.schedule=constant', 'mixing.last=1.0'),
    '0 to 1, rising': ('mixing.first=0.0', 'mixing.last=1.0'),
    '0.5 to 1, rising': ('mixing.first=0.5', 'mixing.last=1.0'),
    '0.5': ('mixing.schedule=constant', 'mixing.last=0.5'),
    '1 to 0, falling': ('mixing.first=1.0', 'mixing.last=0.0'),
    '1 until t = 0.75 T, then 0': ('mixing.schedule=step', 'mixing.at=0.75', 'mixing.first=1.0', 'mixing.last=0.0'),
    '1 until t = 0.9 T, then 0': ('mixing.schedule=step', 'mixing.at=0.9', 'mixing.first=1.0', 'mixing.last=0.0'),
    'consistency, gain 1': ('mixing.form=consistency', 'mixing.schedule=constant', 'mixing.last=1.0'),
    '0, pictures of their own': ('mixing.schedule=constant', 'mixing.last=0.0'),
}
TRUE, PLAIN = 'true views', 'true views without the pattern'
CONTROLS = {TRUE: 'control/patterns/true_renders/', PLAIN: 'control/patterns/plain/'}
MVC = 'patterns/mvc_rmse'
SHARES = {
    'with_pattern': 'views with a pattern',
    'right_pattern': 'with the right one',
    'same': 'objects with one pattern in all views',
    'in_place': "all in the set's places",
    'shape': 'right shape',
    'agree': 'views agree in shape, colour and size',
}
RANGES = {name: Whole(least, 32, name) for name, least in (('samples', 1), ('captions', 2))}


def main(argv: list[str] | None = None) -> None:
    parser = parsing.Parser(prog='python -m launch.mixing_table', description=__doc__.partition('\n')[0])
    parser.add_argument('--out', required=True, help='folder for scores, table and plot')
    parser.add_argument('--given', nargs='+', default=['pictures=toy_patterns'], metavar='NAME=MODEL', help='models to mix')
    parser.add_argument('--samples', type=int, default=2, help='of each of 32 objects, that are read (default: 2)')
    parser.add_argument('--captions', type=int, default=8, help='of 4 samples each, that are reconstructed (default: 8)')
    parser.add_argument('--settings', help='some of the table, by number from 1, split by commas (default: all)')
    args = parser.parse_args(argv)
    devices.compilation_cache()
    with parsing.refusing(parser):
        parsing.held(args, RANGES)
        names = chosen(args.settings)
        parsing.writable(args.out)
        rows = run(pathlib.Path(args.out), names, args.given, args.samples, args.captions)
    text = table(rows)
    (pathlib.Path(args.out) / 'table.md').write_text(text)
    draw(rows, pathlib.Path(args.out))
    print(text)


def chosen(numbers: str | None) -> list[str]:
    """The settings of '1,3'; UsageError for a number that is none of the table's."""
    every = list(SETTINGS)
    if numbers is None:
        return every
    words = [word.strip() for word in numbers.split(',')]
    if wrong := [word for word in words if not (word.isascii() and word.isdigit() and 1 <= int(word) <= len(every))]:
        listed = '; '.join(f'{k} {name}' for k, name in enumerate(every, 1))
        raise UsageError(f'--settings {wrong[0]!r}: wanted numbers of {listed}.')
    return [every[int(word) - 1] for word in words]


def run(out: pathlib.Path, names: list[str], given: list[str], samples: int, captions: int) -> list[dict]:
    """All scores, {'setting', score: value}, those on disk included."""
    read = kept.Kept(out / 'scores.jsonl', {'given': list(given), 'samples': samples, 'captions': captions})
    for name in names:
        if any(row['setting'] == name for row in read.rows):
            continue
        row = {'setting': name, **scores(SETTINGS[name], given, samples, captions, next(iter(read.rows), {}))}
        read.add(row)
        print(f'{name}: right pattern {row["patterns/right_pattern"]:.0%}, MVC {row[MVC]:.3f}', flush=True)
    return read.rows


def scores(overrides: tuple[str, ...], given: list[str], samples: int, captions: int, known: dict) -> dict[str, float]:
    """What is read of a setting, and MVC; that of the true views, which no setting changes, is taken from `known` scores."""
    from t3d.evaluate import pattern_consistency, pattern_views, view_reading
    from t3d.inference import given as givens
    from t3d.inference import loading

    words = tuple(patterns.NAMES.values())
    loaded = loading.untrained(configs.load(BASE, [*overrides, f'unknown_words={words}']), givens.parse(given))
    found = pattern_views.evaluate(loaded, print, limit=samples)
    scenes = pattern_consistency.prompted(captions)
    images, cameras, truth = pattern_consistency.drawn(loaded, scenes, print)
    found[MVC] = consistency(images, cameras)
    names = [f'{prefix}mvc_rmse' for prefix in CONTROLS.values()]
    if all(name in known for name in names):
        return found | {name: known[name] for name in names}
    bare = view_reading.true_views(pattern_views.plain(scenes), cameras, images.shape[2], **view_reading.appearance(loaded))
    return found | {name: consistency(views, cameras) for name, views in zip(names, (truth, bare), strict=True)}


def consistency(images, cameras) -> float:
    """MVC of views [N, V, S, S, 3]: the mean root mean square error of renders of their reconstruction."""
    from t3d.core import prng
    from t3d.metrics import multiview

    return float(multiview.consistency(images, cameras, prng.key(0)).rmse.mean())


def table(rows: list[dict]) -> str:
    """Markdown: a line a setting, then the true views, and these without their pattern."""
    lines = [
        f'| lambda, from the noisiest time to the last | {" | ".join(SHARES.values())} | Fréchet distance of pixels to true '
        'views | PSNR, dB | MVC, rmse |',
        f'|---|{"---|" * (len(SHARES) + 3)}',
    ]
    lines += [_line(row['setting'], row, 'patterns/') for row in rows]
    return '\n'.join([*lines, *(_line(name, rows[-1], prefix) for name, prefix in CONTROLS.items())]) + '\n'


def _line(name: str, row: dict, prefix: str) -> str:
    """A line of the table, of the scores whose names begin with `prefix`; a dash for the PSNR of the truth with itself."""
    cells = [f'{100.0 * row[prefix + score]:.0f} %' for score in SHARES]
    frechet, psnr, mvc = (row[prefix + score] for score in ('frechet_pixels', 'psnr', 'mvc_rmse'))
    return f'| {" | ".join((name, *cells))} | {abs(frechet):.1f} | {"-" if psnr > 90.0 else f"{psnr:.1f}"} | {mvc:.3f} |'


def draw(rows: list[dict], out: pathlib.Path) -> None:
    """`realism.png`: a point a setting, and the two of true views."""
    from PIL import Image

    from t3d.export import plots

    place = lambda row, prefix: (row[f'{prefix}mvc_rmse'], row[f'{prefix}frechet_pixels'])
    points = {row['setting'].partition(',')[0]: place(row, 'patterns/') for row in rows}
    points |= {name.replace(' without the pattern', ', plain'): place(rows[-1], prefix) for name, prefix in CONTROLS.items()}
    image = plots.points(points, 'Frechet distance of pixels to true patterned views', 'MVC, rmse')  # the font has no accents
    Image.fromarray(image).save(out / 'realism.png', optimize=True)


if __name__ == '__main__':
    main()
