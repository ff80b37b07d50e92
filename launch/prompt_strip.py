"""`python -m launch.prompt_strip --out docs/images/prompts.png`: prompts, each as its field beside its mesh, as one strip.

Prompts are given with the weights that make them: `--prompt instant3d-scenes "a red cube"`, as often as wanted.
"""

import numpy as np

from t3d.core import parsing
from t3d.core.errors import UsageError
from t3d.core.outputs import Field, kind_of
from t3d.core.rules import Whole
from t3d.export import extraction, mesh_pictures, renders, sheets
from t3d.geom import cameras, meshing
from t3d.parallel import devices

SHOWN = (
    ('instant3d-scenes', 'a red cone on top of a blue cube'),
    ('instant3d-scenes', 'a yellow cylinder'),
    ('instant3d-scenes', 'a green cube on top of an orange cylinder'),
    ('instant3d-furniture', 'a blue child chair'),
)
AZIMUTH, ELEVATION = np.radians(30.0), np.radians(20.0)
CLOSER = 0.75  # of the field of view that the models were trained with: an object fills more of its picture


def main(argv: list[str] | None = None) -> None:
    parser = parsing.Parser(prog='python -m launch.prompt_strip', description=__doc__)
    parser.add_argument('--prompt', nargs=2, action='append', metavar=('WEIGHTS', 'PROMPT'), help='default: four of ours')
    parser.add_argument('--size', type=int, default=192, help='pixels of a picture (default: 192)')
    parser.add_argument('--out', default='prompts.png')
    args = parser.parse_args(argv)
    devices.compilation_cache()
    with parsing.refusing(parser):
        parsing.held(args, {'size': Whole(16, 2048, 'pixels of a picture')})
        parsing.picture(args.out)
        image = strip(args.prompt or SHOWN, args.size)
    from PIL import Image

    Image.fromarray(image).save(args.out, optimize=True)
    print(f'{len(args.prompt or SHOWN)} prompts in {args.out}')


def strip(shown, size: int) -> np.ndarray:
    """uint8 [H, W, 3]: a cell for each (weights, prompt): the prompt above its field, left, and its mesh, right."""
    from t3d.inference import loading

    known, cells = {}, []
    for weights, prompt in shown:
        if weights not in known:
            known[weights] = loading.load(weights)
        ((_, asset),) = loading.generate(known[weights], [prompt], [0])
        if not isinstance(asset, Field):
            raise UsageError(f'{weights} makes {kind_of(asset)}: fields are shown beside their meshes.')
        print(f'{prompt} ...', flush=True)
        cells.append(sheets.sheet(pictures(asset, known[weights].config.export, size)[None], [prompt]))
    height = max(len(cell) for cell in cells)
    padded = [np.pad(cell, ((height - len(cell), 0), (0, 0), (0, 0)), constant_values=255) for cell in cells]
    return np.concatenate(padded, 1)


def pictures(asset: Field, settings, size: int) -> np.ndarray:
    """uint8 [2, size, size, 3]: the field and its textured mesh, made with export `settings`, from one camera."""
    view = cameras.orbit(np.array([AZIMUTH]), np.array([ELEVATION]), asset.camera['radius'], CLOSER * asset.camera['fov'])
    densities = meshing.density_grid(asset.field, asset.scene, asset.bound, settings['grid'])
    level_set = extraction.surface(asset, densities)
    mesh = extraction.textured(asset, level_set, most=settings['faces'], texture=settings['texture'])
    field = sheets.to_uint8(renders.smooth_views(asset, view, size, grid=densities).rgb[0])
    drawn = mesh_pictures.draw_mesh(mesh, np.asarray(view.world_from_cam[0]), np.asarray(view.intrinsics[0]), size)
    return np.stack([field, drawn])


if __name__ == '__main__':
    main()
