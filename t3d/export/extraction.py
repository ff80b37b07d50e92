"""From a Field to a mesh in scene units: level set, thin parts, fewer triangles, colours or a texture.

The triangles follow the shape: flat sides get few, and every vertex that marching cubes made stays within DISTANCE cells and
`decimate.ANGLE` of what is written. With a texture the shape alone decides. Vertex colours are carried by the triangles, so
without one they keep within DIFFERENCE of the field's colours too.
"""

from typing import NamedTuple

import numpy as np

from t3d.core.outputs import Field
from t3d.export import meshes
from t3d.export import texture as textures
from t3d.geom import decimate, meshing, thin_parts

DISTANCE = 0.125  # cells of the grid
DIFFERENCE = 8.0  # of 255


class Surface(NamedTuple):
    """The closed level set of a density grid as marching cubes makes it, in scene units, and what is known of it."""

    vertices: np.ndarray  # float32 [N, 3]
    faces: np.ndarray  # int32 [M, 3]
    cell: float
    facts: dict


def surface(asset: Field, densities: np.ndarray, *, threshold: float | None = None, log=print) -> Surface:
    """The level set at `threshold`; without one, at that which fits the render, with thin parts at thresholds of their own."""
    facts, cell = {}, 2.0 * asset.bound / len(densities)
    level = meshing.choose_threshold(densities, asset.bound, log) if threshold is None else threshold
    grid, levels = densities, level
    local = thin_parts.thresholds(np.maximum(densities, 0.0), level, asset.bound) if threshold is None else None
    if local is not None:
        lowest = float(local.min())
        log(f'mesh: thin parts joined to the body at thresholds down to {lowest:.3g}')
        facts['threshold of thin parts'] = lowest
        grid, levels = np.minimum(densities * (level / local), densities.max()), local
    grid = meshing.fill_cavities(grid, level)
    vertices, faces = meshes.clean(*meshing.surface(grid, level, asset.bound), log=log)
    vertices = meshing.refined(asset.field, asset.scene, vertices, grid >= level, levels, asset.bound)
    facts = {'threshold': float(level), **facts, 'density': f'{densities.min():.4g} to {densities.max():.4g}'}
    return Surface(vertices, faces, cell, facts)


def coloured(asset: Field, level_set: Surface, *, most: int, light=None, log=print) -> tuple[meshes.Mesh, dict]:
    """(Mesh with vertex colours, welded and closed, facts) of at most about `most` triangles; `light` is that of `bake`."""
    vertices, faces = level_set.vertices, level_set.faces
    normals = meshes.smooth_normals(vertices, faces)
    colors = textures.surface_colors(asset, vertices, -normals, step=level_set.cell, light=light)
    vertices, faces, colors, distance = decimate.simplify(
        vertices, faces, _bounds(level_set, DIFFERENCE), most=most, attributes=colors
    )
    colors = np.clip(np.round(colors), 0.0, 255.0).astype(np.uint8)
    mesh = meshes.Mesh(vertices, faces, meshes.smooth_normals(vertices, faces), colors, name=meshes.name_of(asset.prompt))
    return mesh, _facts(level_set, mesh, distance, most, log)


def plain(asset: Field, level_set: Surface, *, most: int, log=print) -> tuple[meshes.Mesh, dict]:
    """(Mesh without colours, welded and closed, facts) of at most about `most` triangles."""
    vertices, faces, _, distance = decimate.simplify(level_set.vertices, level_set.faces, _bounds(level_set), most=most)
    mesh = meshes.Mesh(vertices, faces, meshes.smooth_normals(vertices, faces), name=meshes.name_of(asset.prompt))
    return mesh, _facts(level_set, mesh, distance, most, log)


def textured(asset: Field, level_set: Surface, *, most: int, texture: int, light=None, log=print) -> meshes.Mesh:
    """Mesh with a texture of `texture` texels a side, closed but for seams and creases, of at most about `most` triangles."""
    mesh, _ = plain(asset, level_set, most=most, log=log)
    return textures.bake(asset, meshes.creased(mesh), texture, step=level_set.cell, light=light, log=log)


def extract(asset: Field, densities: np.ndarray, *, faces: int, threshold: float | None = None, log=print):
    """(Mesh with vertex colours, welded and closed, facts about it as a dict) of a density grid."""
    level_set = surface(asset, densities, threshold=threshold, log=log)
    mesh, facts = coloured(asset, level_set, most=faces, log=log)
    return mesh, {**level_set.facts, **facts}


def _bounds(level_set: Surface, difference: float = np.inf) -> decimate.Bounds:
    return decimate.Bounds(DISTANCE * level_set.cell, difference=difference)


def _facts(level_set: Surface, mesh: meshes.Mesh, distance: float, most: int, log) -> dict:
    count = len(mesh.faces)
    if count > most:
        log(f'mesh: {count} faces, more than the {most} asked for: with fewer the shape would have other holes')
    return {
        'faces': count,
        'faces before simplification': len(level_set.faces),
        'moved by simplification': f'{distance:.2g}, {distance / level_set.cell:.2g} cells of the grid',
        'volume': meshes.volume(mesh.vertices, mesh.faces),
        'size x y z, scene units': ' x '.join(f'{side:.3f}' for side in np.ptp(mesh.vertices, axis=0)),
    }
