"""An object beside the views that it was made of: field and mesh from the same cameras, and how far they are off."""

import json
import pathlib

import numpy as np

from t3d.core import files
from t3d.core.outputs import Field, Views
from t3d.export import mesh_pictures, meshes, renders, sheets
from t3d.geom import cameras, silhouettes

MOST = 8  # views on the sheet, spread over all
TOLERANCE = 0.04  # of the background of views without alpha


def write(asset: Field, mesh: meshes.Mesh, densities, views: Views, path: pathlib.Path) -> dict[str, float]:
    """Writes the sheet (rows: the views, the field, the mesh; columns: cameras) and returns the facts.

    Silhouettes are compared as IoU at half opacity, the mean over views; colours as mean absolute difference in [0, 1] over
    the pixels that either shows. Views without alpha are cut out from the colour of their frame.

    Args:
      mesh: what was written.
      densities: the density grid of the asset.
    """
    images = np.asarray(views.images, np.float32)
    alpha, _, background = silhouettes.alpha_of(images, TOLERANCE)
    posed = cameras.Cameras(np.asarray(views.world_from_cam), np.asarray(views.intrinsics))
    size = images.shape[1:3]
    seen = renders.smooth_views(asset, posed, size, grid=densities)
    poses = zip(posed.world_from_cam, posed.intrinsics, strict=True)
    drawn = np.stack([mesh_pictures.draw_mesh(mesh, pose, lens, size) for pose, lens in poses]) / np.float32(255.0)
    covered = mesh_pictures.coverage(mesh, posed, size)
    rows = {
        'view': silhouettes.over(images, background),
        'field': seen.rgb,
        'mesh': drawn - (1.0 - covered[..., None]) * (1.0 - background),
    }
    facts = {}
    for name, opacity in (('mesh', covered), ('field', seen.opacity)):
        union = (alpha > 0.5) | (opacity > 0.5)
        facts[f'{name} and views: silhouette IoU'] = silhouettes.iou(alpha, opacity)
        facts[f'{name} and views: colour error'] = silhouettes.colour_error(rows['view'], rows[name], union)
    facts['views compared'] = len(images)
    chosen = np.unique(np.linspace(0, len(images) - 1, MOST).round().astype(int))
    title = f'from the cameras of views {", ".join(map(str, chosen))}'
    sheets.write(path, sheets.sheet(np.stack([row[chosen] for row in rows.values()]), list(rows), title=title))
    return facts


def write_views(views: Views, out: pathlib.Path) -> dict[str, pathlib.Path]:
    """views/000.png and so on, and cameras.json, which names them in nerfstudio's form; paths by name."""
    names = [f'views/{number:03d}.png' for number in range(len(views.images))]
    for name, image in zip(names, sheets.to_uint8(views.images), strict=True):
        sheets.write(out / name, image)
    posed = cameras.Cameras(np.asarray(views.world_from_cam), np.asarray(views.intrinsics))
    size = tuple(int(side) for side in views.images.shape[1:3])
    files.write(out / 'cameras.json', json.dumps(cameras.transforms_json(posed, size, names)))
    return {'cameras': out / 'cameras.json', 'views': out / 'views'}
