"""`python -m launch.leg_figures instant3d-furniture --captions 40`: what meshes lack of their fields, and what they add.

For captions of the set that the weights learned from, an asset is made as the exporter makes it, and its mesh is compared with
the silhouettes of its field from the exporter's nine sides (t3d.export.sides). The control is the body alone: the same field at
the body's threshold everywhere, without the thin parts that have thresholds of their own (t3d.geom.thin_parts).
"""

import numpy as np

from t3d.core import parsing
from t3d.core.errors import UsageError
from t3d.core.outputs import Field, kind_of
from t3d.core.rules import Whole
from t3d.export import extraction, sides
from t3d.geom import meshing
from t3d.parallel import devices

WORST = 5  # captions told by name
COLUMNS = ('mesh lacks', 'mesh adds', 'body alone lacks', 'body alone adds')
THIN = 'thin parts'


def main(argv: list[str] | None = None) -> None:
    parser = parsing.Parser(prog='python -m launch.leg_figures', description=__doc__)
    parser.add_argument('run', help='run folder, weights folder, or the name of shipped weights')
    parser.add_argument('--captions', type=int, default=40, help='how many, of objects drawn at random (default: 40)')
    parser.add_argument('--data', metavar='DIR', help="the data set, where the run's own data.path is not here")
    args = parser.parse_args(argv)
    devices.compilation_cache()
    with parsing.refusing(parser):
        parsing.held(args, {'captions': Whole(1, 10_000, 'to make meshes of')})
        from t3d.inference import given, loading

        loaded = loading.with_data(loading.load(args.run), args.data)
        chosen, rows = captions(given.pictures_config(loaded.config, loaded.given), args.captions), []
        for number, caption in enumerate(chosen, 1):
            ((_, asset),) = loading.generate(loaded, [caption], [0])
            if not isinstance(asset, Field):
                raise UsageError(f'{loaded.name} makes {kind_of(asset)}: fields are compared with their meshes.')
            rows.append(measure(asset, loaded.config.export))
            told = ', '.join(f'{name} {rows[-1][name]:.1%}' for name in COLUMNS)
            print(f'{number:3d}/{len(chosen)} {caption:<48} {told}', flush=True)
        print('\n'.join(table(chosen, rows)))


def captions(config, count: int) -> list[str]:
    """The longest captions of objects drawn at random, each text once; fewer than `count` where the set has no more."""
    from t3d.data import sets
    from t3d.data.adapters.object_rays import within

    source, made = sets.open_set(config.data, config.data.split), {}
    read = getattr(within(source, 'text'), 'text', source.__getitem__)  # pictures are left alone where captions are
    for index in np.random.default_rng(0).permutation(len(source)):
        if len(made) == count:
            break
        made.setdefault(max(read(int(index))['captions'], key=len))
    return list(made)


def measure(asset: Field, settings) -> dict[str, float]:
    """Shares of what the field shows that the mesh lacks and adds, and those of the body alone; THIN: 1 where it has some.

    Args:
      settings: the `export` section of a config.
    """
    densities = meshing.density_grid(asset.field, asset.scene, asset.bound, settings['grid'])
    level_set = extraction.surface(asset, densities, threshold=settings.get('threshold'), log=quiet)
    whole = compared(asset, densities, level_set, settings)
    thin = 'threshold of thin parts' in level_set.facts
    body = extraction.surface(asset, densities, threshold=level_set.facts['threshold'], log=quiet) if thin else level_set
    alone = compared(asset, densities, body, settings) if thin else whole
    shares = (whole.missing, whole.added, alone.missing, alone.added)
    return {**dict(zip(COLUMNS, shares, strict=True)), THIN: float(thin)}


def compared(asset: Field, densities: np.ndarray, level_set: extraction.Surface, settings) -> sides.Comparison:
    """A surface as the mesh of at most `faces` triangles that would be written, beside its field."""
    simplified = extraction.plain if settings['texture'] else extraction.coloured
    mesh, _ = simplified(asset, level_set, most=settings['faces'], log=quiet)
    return sides.compare(asset, mesh, densities)


def quiet(line: str) -> None:
    """A log that says nothing."""


def table(chosen: list[str], rows: list[dict[str, float]]) -> list[str]:
    """Lines of a Markdown table: mean and median, also of those with thin parts alone, and the captions that lack most."""
    values, thin = np.array([[row[name] for name in COLUMNS] for row in rows]), np.array([row[THIN] > 0 for row in rows])
    lines = ['| share of what the field shows | ' + ' | '.join(COLUMNS) + ' |', '|---' * (len(COLUMNS) + 1) + '|']
    groups = {f'{len(rows)} captions': values}
    if thin.any() and not thin.all():
        groups[f'the {thin.sum()} with thin parts'] = values[thin]
    for name, some in groups.items():
        lines += [_line(f'mean of {name}', some.mean(0)), _line(f'median of {name}', np.median(some, 0))]
    worst = np.argsort(-values[:, 0], kind='stable')[:WORST]
    return lines + [_line(f'"{chosen[k]}"', values[k]) for k in worst]


def _line(name: str, shares: np.ndarray) -> str:
    return f'| {name} | ' + ' | '.join(f'{share:.1%}' for share in shares) + ' |'


if __name__ == '__main__':
    main()
