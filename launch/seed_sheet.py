"""`python -m launch.seed_sheet RUN "a dining table" "a sofa" --out seeds.png`: a row for each prompt, a column for each seed.

With `--true` the row below shows objects of the training set that the prompt is said of, from the nearest side that it has.
"""

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
    parser.add_argument('--true', action='store_true', help='also objects of the training set with this caption')
    parser.add_argument('--out', default='seeds.png')
    args = parser.parse_args(argv)
    devices.compilation_cache()
    with parsing.refusing(parser):
        parsing.held(args, RANGES)
        parsing.picture(args.out)
        image = sheet(args.run, list(dict.fromkeys(args.prompt)), args.seeds, args.size, args.true)
    sheets.write(args.out, image)
    print(f'{args.seeds} seeds of {len(dict.fromkeys(args.prompt))} prompts in {args.out}')


def sheet(run, prompts: list[str], seeds: int, size: int, true: bool) -> np.ndarray:
    """uint8 [H, W, 3]."""
    from t3d.inference import loading

    loaded = loading.load(run)
    shown = {prompt: [] for prompt in prompts}
    for _, asset in loading.generate(loaded, prompts, list(range(seeds))):
        if not isinstance(asset, Field):
            raise UsageError(f'{loaded.name} makes {kind_of(asset)}: a sheet of seeds shows fields.')
        view = cameras.orbit(np.array([AZIMUTH]), np.array([ELEVATION]), asset.camera['radius'], asset.camera['fov'])
        grid = meshing.density_grid(asset.field, asset.scene, asset.bound, GRID)
        shown[asset.prompt].append(renders.smooth_views(asset, view, size, grid=grid).rgb[0])
    found = objects(loaded.config, prompts, seeds, size) if true else {}
    rows, labels = [], []
    for prompt, images in shown.items():
        rows.append(np.stack(images))
        labels.append(f'{prompt}: seeds 0 to {seeds - 1}')
        if true:
            pictures, count = found[prompt]
            rows.append(pictures)
            labels.append(f'true objects, {min(count, seeds)} of {count}')
    return sheets.sheet(np.stack(rows), labels)


def objects(config, prompts: list[str], most: int, size: int) -> dict[str, tuple[np.ndarray, int]]:
    """{prompt: (float [most, size, size, 3], white where there are no more; how many there are)} of what it is said of."""
    import jax

    from t3d.data import sets
    from t3d.data.adapters.object_rays import Numbered
    from t3d.data.sets import oracle

    source, made = sets.open_set(config.data, config.data.split), {}
    named = Numbered(source).named()
    for prompt in prompts:
        places = list(named.get(prompt, {}).values())
        images = np.ones((most, size, size, 3), np.float32)
        for k, number in enumerate(np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)):
            record = source[places[number]]
            view = np.argmin(cameras_apart(record['world_from_cam']))
            image = oracle.composite(record['image'][view], config.render.background)
            images[k] = jax.image.resize(image, (size, size, 3), 'linear')
        made[prompt] = np.clip(images, 0.0, 1.0), len(places)
    return made


def cameras_apart(world_from_cam: np.ndarray) -> np.ndarray:
    """How far [V] cameras are from the side that the sheet shows, radians."""
    azimuth, elevation, _ = (np.asarray(angle) for angle in cameras.angles(world_from_cam))
    return np.abs(np.angle(np.exp(1j * (azimuth - AZIMUTH)))) + np.abs(elevation - ELEVATION)


if __name__ == '__main__':
    main()
