"""`python -m launch.seed_sheet RUN "a dining table" "a sofa" --out seeds.png`: a row for each prompt, a column for each seed.

With `--true` below each seed stands the object nearest to it, of those of the training set that the prompt is said of, from the
nearest side that its pictures have; a line on the screen says how many different ones these are. The distance is that of
t3d.metrics.seeds, from the cameras and at the size of the evaluator `object_seeds` where the set has them, else from all of an
object's views.
"""

from typing import NamedTuple

import numpy as np

from t3d.core import parsing
from t3d.core.errors import UsageError
from t3d.core.outputs import Field, kind_of
from t3d.core.rules import Whole
from t3d.export import renders, sheets
from t3d.geom import cameras, meshing
from t3d.parallel import devices

RANGES = {'seeds': Whole(1, 64, 'of each prompt'), 'size': Whole(16, 1024, 'pixels of a picture')}
AZIMUTH, ELEVATION = np.radians(30.0), np.radians(15.0)  # the second view of furniture
GRID = 64  # cells a side of what tells where a field is empty


def main(argv: list[str] | None = None) -> None:
    parser = parsing.Parser(prog='python -m launch.seed_sheet', description=__doc__)
    parser.add_argument('run', help='run folder, weights folder, or the name of shipped weights')
    parser.add_argument('prompt', nargs='+', help='in quotes')
    parser.add_argument('--seeds', type=int, default=8, help='how many (default: 8)')
    parser.add_argument('--size', type=int, default=160, help='pixels of a picture (default: 160)')
    parser.add_argument('--true', action='store_true', help='also the object of the training set nearest to each seed')
    parser.add_argument('--out', default='seeds.png')
    args = parser.parse_args(argv)
    devices.compilation_cache()
    with parsing.refusing(parser):
        parsing.held(args, RANGES)
        parsing.picture(args.out)
        image, lines = sheet(args.run, list(dict.fromkeys(args.prompt)), args.seeds, args.size, args.true)
    sheets.write(args.out, image)
    print(''.join(f'{line}\n' for line in lines), end='')
    print(f'{args.seeds} seeds of {len(dict.fromkeys(args.prompt))} prompts in {args.out}')


class Nearest(NamedTuple):
    """The object nearest to a seed: its place among those of the caption, and how far it is."""

    place: int
    distance: float


def sheet(run, prompts: list[str], seeds: int, size: int, true: bool) -> tuple[np.ndarray, list[str]]:
    """(uint8 [H, W, 3], a line for each prompt about the objects that were met, none without `true`)."""
    from t3d.inference import loading

    loaded = loading.load(run)
    known = objects(loaded.config, prompts) if true else {}
    shown, met = {prompt: [] for prompt in prompts}, {prompt: [] for prompt in prompts}
    for _, asset in loading.generate(loaded, prompts, list(range(seeds))):
        if not isinstance(asset, Field):
            raise UsageError(f'{loaded.name} makes {kind_of(asset)}: a sheet of seeds shows fields.')
        view = cameras.orbit(np.array([AZIMUTH]), np.array([ELEVATION]), asset.camera['radius'], asset.camera['fov'])
        grid = meshing.density_grid(asset.field, asset.scene, asset.bound, GRID)
        shown[asset.prompt].append(renders.smooth_views(asset, view, size, grid=grid).rgb[0])
        if records := known.get(asset.prompt):
            met[asset.prompt].append(nearest(asset, grid, records, loaded.config.render.background))
    rows, labels, lines = [], [], []
    for prompt, images in shown.items():
        rows.append(np.stack(images))
        labels.append(f'{prompt}: seeds 0 to {seeds - 1}')
        if true:
            told, records = summary(met[prompt], len(known[prompt])), known[prompt]
            if met[prompt]:
                rows.append(
                    np.stack([picture(records[one.place], size, loaded.config.render.background) for one in met[prompt]])
                )
                labels.append(told)
            else:
                labels[-1] += f'; {told}'
            lines.append(f'{prompt}: {told}')
    return sheets.sheet(np.stack(rows), labels), lines


def summary(met: list[Nearest], count: int) -> str:
    """What is said of the objects that the seeds of a caption are nearest to, of `count` that it is said of."""
    if not met:
        return 'the set says it of no object'
    far, numbers = [one.distance for one in met], ', '.join(str(one.place + 1) for one in met)
    different = len({one.place for one in met})
    return f'nearest to {different} different of {count} objects ({numbers}), {min(far):.3f} to {max(far):.3f} from them'


def objects(config, prompts: list[str]) -> dict[str, list[dict]]:
    """{prompt: a record of each object that it is said of}."""
    from t3d.data import sets
    from t3d.data.adapters.object_rays import Numbered

    source = sets.open_set(config.data, config.data.split)
    named = Numbered(source).named()
    return {prompt: [source[place] for place in named.get(prompt, {}).values()] for prompt in prompts}


def nearest(asset: Field, grid: np.ndarray, records: list[dict], background: float) -> Nearest:
    """The one of the records' objects to which an asset is nearest, from the cameras of their pictures."""
    from t3d.data.sets import oracle
    from t3d.evaluate import object_seeds
    from t3d.metrics import seeds

    seen, distances = {}, []
    for record in records:
        views = list(object_seeds.SHARED if len(record['image']) > max(object_seeds.SHARED) else range(len(record['image'])))
        side = record['image'].shape[1]
        side = side if side % object_seeds.SIZE else object_seeds.SIZE
        posed = cameras.Cameras(record['world_from_cam'][views], record['intrinsics'][views])
        key = (side, posed.world_from_cam.tobytes(), posed.intrinsics.tobytes())
        if key not in seen:  # objects share cameras in most sets
            seen[key] = renders.render_views(asset, posed, side, grid=grid).rgb
        true = oracle.shrink(oracle.composite(record['image'][views], background), side)
        distances.append(float(seeds.distances(seen[key][None], true[None])[0, 0]))
    place = int(np.argmin(distances))
    return Nearest(place, distances[place])


def picture(record: dict, size: int, background: float) -> np.ndarray:
    """float [size, size, 3] in [0, 1]: the view of a record that is nearest to the side that the sheet shows."""
    import jax

    from t3d.data.sets import oracle

    view = np.argmin(cameras_apart(record['world_from_cam']))
    image = oracle.composite(record['image'][view], background)
    return np.clip(jax.image.resize(image, (size, size, 3), 'linear'), 0.0, 1.0)


def cameras_apart(world_from_cam: np.ndarray) -> np.ndarray:
    """How far [V] cameras are from the side that the sheet shows, radians."""
    azimuth, elevation, _ = (np.asarray(angle) for angle in cameras.angles(world_from_cam))
    return np.abs(np.angle(np.exp(1j * (azimuth - AZIMUTH)))) + np.abs(elevation - ELEVATION)


if __name__ == '__main__':
    main()
