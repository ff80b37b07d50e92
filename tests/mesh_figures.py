"""`python -m tests.mesh_figures`: meshes of solids in closed form, and of the shipped weights, as a table.

Of a solid: faces before and after, charts, how far the vertices of marching cubes lie from the mesh that is written, the volume
(IoU at random points) that the field's level set shares with the solid, and that the mesh, by winding numbers, shares with the
solid and with the level set, and processor seconds of each part.
"""

import argparse
import pathlib
import tempfile
import time

import jax.numpy as jnp
import numpy as np

from t3d.core.outputs import Field, Request
from t3d.export import assets, extraction, meshes, sides
from t3d.export import texture as textures
from t3d.geom import meshing
from tests import analytic_assets

POINTS = 20_000
TURN = np.array(  # a cube that no grid is aligned with
    [[0.8776, 0.2298, 0.4207], [0.0, 0.8776, -0.4794], [-0.4794, 0.4207, 0.7702]], np.float32
)
SOLIDS = {
    'cube, side 1.04': lambda p: jnp.abs(p).max(-1) - 0.52,
    'the same, turned': lambda p: jnp.abs(p @ TURN).max(-1) - 0.52,
    'cylinder, radius 0.5': lambda p: jnp.maximum(jnp.linalg.norm(p[..., ::2], axis=-1) - 0.5, jnp.abs(p[..., 1]) - 0.65),
    'sphere, radius 0.6': lambda p: jnp.linalg.norm(p, axis=-1) - 0.6,
}


def solid(name: str, distance) -> Field:
    """Density 40 inside, with a soft step of a 150th at the surface."""

    def field(scene, points):
        return analytic_assets._solid(scene, distance(points)), 0.5 * jnp.ones_like(points)

    return analytic_assets.asset(name, field)


def inside(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray, chunk: int = 2**21) -> np.ndarray:
    """bool [P]: whether the winding number of a closed mesh is 1 (van Oosterom and Strackee, IEEE Trans. BME 1983)."""
    corners, parts = vertices[faces].astype(np.float64), []
    for some in np.array_split(points, max(1, len(points) * len(faces) // chunk)):
        a, b, c = (corners[None, :, k] - some[:, None] for k in range(3))
        la, lb, lc = (np.linalg.norm(side, axis=-1) for side in (a, b, c))
        dot = lambda one, other: np.einsum('pfc,pfc->pf', one, other)
        volume = dot(a, np.cross(b, c))
        below = la * lb * lc + dot(a, b) * lc + dot(b, c) * la + dot(c, a) * lb
        parts.append(np.arctan2(volume, below).sum(1) / (2.0 * np.pi) > 0.5)
    return np.concatenate(parts)


def shared(asset: Field, distance, made: dict) -> list[float]:
    """IoU of (level set, solid), (mesh, solid), (mesh, level set)."""
    points = np.random.default_rng(0).uniform(-0.85, 0.85, (POINTS, 3)).astype(np.float32)
    level = np.asarray(asset.field(asset.scene, points)[0]) >= made['level set'].facts['threshold']
    mesh, true = inside(points, made['mesh'].vertices, made['mesh'].faces), np.asarray(distance(points)) <= 0.0
    return [float(np.sum(one & other) / np.sum(one | other)) for one, other in ((level, true), (mesh, true), (mesh, level))]


def measure(asset: Field, grid: int, texture: int) -> dict:
    """Figures of one asset, as it is exported."""
    quiet = {'log': lambda line: None}
    densities = meshing.density_grid(asset.field, asset.scene, asset.bound, grid)
    clock = [time.process_time()]
    level_set = extraction.surface(asset, densities, **quiet)
    clock.append(time.process_time())
    mesh, facts = extraction.plain(asset, level_set, most=40_000, **quiet)
    clock.append(time.process_time())
    baked = textures.bake(asset, meshes.creased(mesh), texture, step=level_set.cell, **quiet)
    clock.append(time.process_time())
    comparison = sides.compare(asset, mesh, densities)
    clock.append(time.process_time())
    seconds = dict(zip(('surface', 'faces', 'texture', 'silhouettes'), np.round(np.diff(clock), 1).tolist(), strict=True))
    kept = {'level set': level_set, 'mesh': mesh}
    return {**kept, **facts, 'charts': baked.charts, 'comparison': comparison, 'seconds': seconds}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--grid', type=int, default=128)
    parser.add_argument('--prompts', nargs='*', default=(), help='of --weights; without any, the solids')
    parser.add_argument('--weights', default='instant3d-furniture')
    args = parser.parse_args(argv)
    if not args.prompts:
        for name, distance in SOLIDS.items():
            asset = solid(name, distance)
            made = measure(asset, args.grid, 256)
            shares = ' | '.join(f'{share:.3f}' for share in shared(asset, distance, made))
            row = [name, f'{made["faces before simplification"]:,}', f'{made["faces"]:,}', made['charts']]
            print('|', *(f'{cell} |' for cell in row), made['moved by simplification'], '|', shares, '|', made['seconds'], '|')
        return
    from t3d.inference import loading

    loaded = loading.load(args.weights)
    for _, asset in loading.generate(loaded, [Request(prompt) for prompt in args.prompts], [0]):
        made = measure(asset, loaded.config.export.grid, loaded.config.export.texture)
        print(f'| {asset.prompt} | {made["faces before simplification"]:,} | {made["faces"]:,} | {made["charts"]} | ', end='')
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            assets.write(asset, pathlib.Path(folder), **written(loaded), log=lambda line: None)
            print(f'{made["seconds"]} | all {time.process_time() - started:.1f} s | {sides.sentence(made["comparison"])} |')


def written(loaded) -> dict:
    names = ('texture', 'faces', 'grid', 'size', 'render_size')
    return {**{name: loaded.config.export[name] for name in names}, 'frames': 0}


if __name__ == '__main__':
    main()
