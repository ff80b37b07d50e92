"""`python -m launch.mesh_figures instant3d-scenes`: meshes of held-out toy scenes beside the solids that they should be.

Volume, normals and the place where two colours meet are measured at every stage from the field to the mesh that is written, so
that a loss has a place. `python -m launch.mesh_figures solids` gives the exporter the solids themselves as fields without
fault: what is lost there is the exporter's alone.
"""

import itertools
import time

import jax.numpy as jnp
import numpy as np

from t3d.core import parsing
from t3d.core.outputs import Field
from t3d.core.rules import Whole
from t3d.data.sets import shapes
from t3d.export import extraction, meshes
from t3d.export import texture as textures
from t3d.geom import meshing, solids
from t3d.metrics import geometry
from t3d.parallel import devices

SOLIDS = 'solids'
DENSITY = 200.0  # of the solids as fields: nothing of what lies 0.02 below the surface is seen
RANGES = {
    'scenes': Whole(1, 1000, 'to measure'),
    'points': Whole(100, 10**6, 'at which volumes are compared'),
    'grid': Whole(8, 1024, 'cells a side'),
    'texture': Whole(16, 8192, 'texels a side'),
}
ON_SURFACE, ON_MESH, AT_CONTACT = 5_000, 100_000, 40_000  # points; the last on the solids, of which few lie near the contact
EDGE = 0.06  # of edges, tips and other solids, where normals are not looked at
RIGHT = np.radians(5.0)
AROUND = 0.1  # of the solids: points further outside are not drawn
CANDIDATES = 16  # thresholds of which the best is told


def main(argv: list[str] | None = None) -> None:
    parser = parsing.Parser(prog='python -m launch.mesh_figures', description=__doc__)
    parser.add_argument('run', help=f'run folder, weights folder, name of shipped weights, or "{SOLIDS}"')
    parser.add_argument('--scenes', type=int, default=56, help='how many, spread over single solids and pairs (default: 56)')
    parser.add_argument('--points', type=int, default=10_000, help='at which volumes are compared (default: 10000)')
    parser.add_argument('--grid', type=int, help='cells a side (default: those of the weights; 96 of solids)')
    parser.add_argument('--texture', type=int, help='texels a side (default: those of the weights; 512 of solids)')
    args = parser.parse_args(argv)
    devices.compilation_cache()
    with parsing.refusing(parser):
        parsing.held(args, {name: rule for name, rule in RANGES.items() if getattr(args, name) is not None})
        make, settings = source(args.run)
        grid, texture = args.grid or settings['grid'], args.texture or settings['texture']
        chosen, rows = held_out(args.scenes), []
        for number, scene in enumerate(chosen, 1):
            rows.append(measure(make(scene), shapes.table(scene), grid=grid, texture=texture, points=args.points))
            told = ', '.join(f'{name} {rows[-1][name]:.3f}' for name in TOLD if np.isfinite(rows[-1][name]))
            print(f'{number:3d}/{len(chosen)} {scene.captions[0]:<48} {told}', flush=True)
        print('\n'.join(table(chosen, rows)))


def source(run: str):
    """(a function from a scene to its Field, export settings) of weights, or of the solids themselves."""
    if run == SOLIDS:
        return as_field, {'grid': 96, 'texture': 512}
    from t3d.inference import loading

    loaded = loading.load(run)
    return lambda scene: loading.generate(loaded, [scene.captions[0]], [0])[0][1], loaded.config.export


def as_field(scene: shapes.Scene) -> Field:
    """The scene's solids, unlit, as a field of one density; it cannot be rendered."""
    rows = jnp.asarray(shapes.table(scene))

    def field(rows, points):
        which = solids.inside(rows, points)
        return jnp.where(which >= 0, DENSITY, 0.0), rows[jnp.maximum(which, 0), 6:9]

    return Field(scene.captions[0], rows, field, None, 1.0, {'radius': shapes.RADIUS, 'fov': shapes.FOV})


def held_out(count: int) -> list[shapes.Scene]:
    """Scenes unseen in training, the same for every run: single solids, pairs that touch along a line, other pairs, in turn."""
    kinds = [shapes.singles('test'), [], []]
    for scene in shapes.pairs('test'):
        kinds[1 if len(geometry.contact(shapes.table(scene))[0]) else 2].append(scene)
    rng = np.random.default_rng(0)
    drawn = [[kind[index] for index in rng.permutation(len(kind))] for kind in kinds]
    return [scene for row in itertools.zip_longest(*drawn) for scene in row if scene is not None][:count]


# ------------------------------------------------------------------------------------------------------------- one scene


def measure(asset: Field, rows: np.ndarray, *, grid: int, texture: int, points: int) -> dict[str, float]:
    """Every figure of one scene by name; NaN where there is none.

    Args:
      rows: the true solids, of `t3d.geom.solids.ROW`.
      grid, texture: cells and texels a side.
      points: at which volumes are compared.
    """
    quiet, clock = {'log': lambda line: None}, [time.process_time()]
    densities = meshing.density_grid(asset.field, asset.scene, asset.bound, grid)
    clock.append(time.process_time())
    level_set = extraction.surface(asset, densities, **quiet)
    clock.append(time.process_time())
    mesh, facts = extraction.plain(asset, level_set, most=40_000, **quiet)
    clock.append(time.process_time())
    baked = textures.bake(asset, meshes.creased(mesh), texture, step=level_set.cell, **quiet)
    clock.append(time.process_time())
    seconds = np.diff(clock)
    figures = {
        'faces': facts['faces'],
        'charts': baked.charts,
        'closed': float(closed(mesh.faces)),
        **dict(zip(('s grid', 's surface', 's faces', 's texture'), seconds, strict=True)),
        's': float(seconds.sum()),
    }
    figures |= volumes(asset, densities, level_set, mesh, rows, points)
    figures |= directions(asset, level_set, mesh, baked, rows)
    return figures | boundaries(asset, baked, rows, level_set.cell)


def closed(faces: np.ndarray) -> bool:
    """Whether every edge runs exactly once each way."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64)
    size = int(edges.max()) + 1
    there, back = edges[:, 0] * size + edges[:, 1], edges[:, 1] * size + edges[:, 0]
    return len(np.unique(there)) == len(there) and np.isin(there, back).all()


def volumes(asset: Field, densities, level_set, mesh, rows, count: int) -> dict[str, float]:
    """IoU of volumes with the solids: the field's at its best threshold and at the chosen one, and the mesh's."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-asset.bound, asset.bound, (16 * count, 3))
    true = geometry.distances(rows, points).min(0)
    points, true = points[true < AROUND][:count].astype(np.float32), true[true < AROUND][:count] <= 0.0
    values = np.maximum(np.asarray(asset.field(asset.scene, jnp.asarray(points))[0]), 0.0)
    cells = np.clip(((points / asset.bound + 1.0) * 0.5 * len(densities)).astype(int), 0, len(densities) - 1)
    chosen = level_set.facts['threshold']

    def level(threshold: float) -> float:
        full = meshing.fill_cavities(densities, threshold)
        within = (values >= threshold) | ((full > densities)[tuple(cells.T)])
        return geometry.iou(within, true)

    candidates = np.append(np.geomspace(0.01 * densities.max(), 0.9 * densities.max(), CANDIDATES), chosen)
    scores = [level(threshold) for threshold in candidates]
    return {
        'IoU field, best threshold': max(scores),
        'IoU field, threshold': scores[-1],
        'IoU mesh': geometry.iou(geometry.inside(points, mesh.vertices, mesh.faces), true),
    }


def directions(asset: Field, level_set, mesh, baked, rows) -> dict[str, float]:
    """Share of the surface away from edges whose normals are within RIGHT of the solids' own."""
    truth = geometry.on_solids(rows, ON_SURFACE)
    others = geometry.distances(rows, truth.points)
    others[truth.which, np.arange(len(truth.points))] = np.inf
    away = (truth.weights[:, 0] > EDGE) & (others.min(0) > EDGE)
    truth = truth._replace(points=truth.points[away], normals=truth.normals[away], which=truth.which[away])

    def share(vertices, faces, normals) -> float:
        samples = geometry.on_mesh(vertices, faces, ON_MESH)
        there = np.einsum('pk,pkc->pc', samples.weights, normals[faces[samples.which]])
        there /= np.maximum(np.linalg.norm(there, axis=-1, keepdims=True), 1e-12)
        return float(np.mean(geometry.turned(truth, samples, there) <= RIGHT))

    smooth = meshes.smooth_normals(level_set.vertices, level_set.faces)
    return {
        'normals, before simplification': share(level_set.vertices, level_set.faces, smooth),
        'normals': share(baked.vertices, baked.faces, baked.normals),
    }


def boundaries(asset: Field, baked, rows, cell: float) -> dict[str, float]:
    """How far the line between two colours is from that between two solids: the field's on the true surface, the texture's."""
    curve, _ = geometry.contact(rows)
    if len(curve) == 0 or np.ptp(rows[:, 6:9], axis=0).max() == 0.0:
        return {'colour line, field': np.nan, 'colour line': np.nan}
    truth = geometry.near_contact(rows, geometry.on_solids(rows, AT_CONTACT))
    colours = textures.surface_colors(asset, truth.points, -truth.normals, step=cell, chunk=2**14) / 255.0
    samples = geometry.on_mesh(baked.vertices, baked.faces, ON_MESH)
    uv = np.einsum('pk,pkc->pc', samples.weights, baked.uv[baked.faces[samples.which]])
    side = len(baked.texture)
    column, row = (np.clip((value * side).astype(int), 0, side - 1) for value in (uv[:, 0], 1.0 - uv[:, 1]))
    return {
        'colour line, field': geometry.displacement(rows, truth.points, colours, truth.area),
        'colour line': geometry.displacement(rows, samples.points, baked.texture[row, column] / 255.0, samples.area),
    }


# ----------------------------------------------------------------------------------------------------------------- table

TOLD = ('IoU field, best threshold', 'IoU field, threshold', 'IoU mesh', 'normals, before simplification', 'normals')
TOLD += ('colour line, field', 'colour line', 'faces', 's')


def table(scenes: list[shapes.Scene], rows: list[dict[str, float]]) -> list[str]:
    """Lines of a Markdown table: means over scenes, by kind of scene."""
    kinds = {'all': np.ones(len(scenes), bool)}
    kinds |= {f'one {shape}': np.array([_only(scene) == shape for scene in scenes]) for shape in shapes.SHAPES}
    kinds |= {'two solids': np.array([_only(scene) is None for scene in scenes])}
    kinds = {name: mask for name, mask in kinds.items() if mask.any()}
    lines = ['| mean | ' + ' | '.join(f'{name} (n = {mask.sum()})' for name, mask in kinds.items()) + ' |']
    lines.append('|---' * (len(kinds) + 1) + '|')
    for name in rows[0]:
        values = np.array([row[name] for row in rows], float)
        cells = [_mean(values[mask & np.isfinite(values)]) for mask in kinds.values()]
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return lines


def _only(scene: shapes.Scene) -> str | None:
    return scene.objects[0].shape if len(scene.objects) == 1 else None


def _mean(values: np.ndarray) -> str:
    if len(values) == 0:
        return ''
    return f'{values.mean():,.0f}' if values.mean() >= 20.0 else f'{values.mean():.3f}'


if __name__ == '__main__':
    main()
