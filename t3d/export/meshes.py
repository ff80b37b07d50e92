"""Triangle meshes on their way to a file: clean, normals, and GLB, OBJ, PLY and STL writers.

World as everywhere: y up, front +z, scene units read as metres (or scaled by export.placing): glTF's frame as it stands.
Colours are sRGB bytes, here and in every file but one: the vertex colours of a GLB are linear, as glTF 2.0 wants them (section
3.7.2.1); its textures are sRGB.
"""

import io
import math
import pathlib
from typing import NamedTuple

import numpy as np

from t3d.core import files
from t3d.core.errors import UsageError

FORMATS = ('glb', 'obj', 'ply', 'stl')
CREASE = math.radians(40.0)  # between faces: sharper edges are not shaded over


class Mesh(NamedTuple):
    """A triangle mesh on the host."""

    vertices: np.ndarray  # float32 [N, 3] world
    faces: np.ndarray  # int32 [M, 3], counter-clockwise from outside
    normals: np.ndarray  # float32 [N, 3] unit
    colors: np.ndarray | None = None  # uint8 [N, 3] sRGB
    uv: np.ndarray | None = None  # float32 [N, 2] in [0, 1], v upwards
    texture: np.ndarray | None = None  # uint8 [T, T, 3] sRGB, row 0 at v = 1
    charts: int = 0  # of the texture
    name: str = 't3d'  # of the object in a GLB or OBJ: printable, without white space


def face_areas(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(normals times twice the area [M, 3], area [M])."""
    corners = vertices[faces].astype(np.float64)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return cross, 0.5 * np.linalg.norm(cross, axis=-1)


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Signed volume of a closed mesh: positive when wound outwards (sum of tetrahedra to the origin)."""
    corners = vertices[faces].astype(np.float64)
    return float(np.sum(corners[:, 0] * np.cross(corners[:, 1], corners[:, 2])) / 6.0)


def smooth_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit vertex normals, the mean of the adjoining faces' normals weighted by area; [N, 3] float32."""
    cross, _ = face_areas(vertices, faces)
    total = np.zeros((len(vertices), 3))
    for corner in range(3):
        for axis in range(3):
            total[:, axis] += np.bincount(faces[:, corner], weights=cross[:, axis], minlength=len(vertices))
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    return np.where(length > 1e-20, total / np.maximum(length, 1e-20), [0.0, 1.0, 0.0]).astype(np.float32)


def creased(mesh: Mesh, crease: float = CREASE) -> Mesh:
    """The mesh with its vertices doubled along creases, so that flat sides beside an edge are shaded as flat.

    The normal of a face's corner is the mean, weighted by area, of the faces around its vertex that turn from the face by less
    than `crease` radians. Corners of one vertex and one normal stay one vertex.
    """
    cross, area = face_areas(mesh.vertices, mesh.faces)
    unit = cross / np.maximum(2.0 * area, 1e-300)[:, None]
    flat = mesh.faces.reshape(-1)  # vertex of each of 3 M corners
    order = np.argsort(flat, kind='stable')
    starts = np.searchsorted(flat[order], np.arange(len(mesh.vertices) + 1))
    counts = np.diff(starts)[flat]  # corners at the vertex of each corner
    corner = np.repeat(np.arange(len(flat)), counts)
    other = order[starts[flat[corner]] + np.arange(len(corner)) - np.repeat(np.cumsum(counts) - counts, counts)]
    near = np.einsum('kc,kc->k', unit[corner // 3], unit[other // 3]) >= math.cos(crease)
    corner, other = corner[near], other[near]
    total = np.stack([np.bincount(corner, cross[other // 3, axis], len(flat)) for axis in range(3)], -1)
    normals = total / np.maximum(np.linalg.norm(total, axis=-1, keepdims=True), 1e-300)
    keys = np.column_stack([flat, np.round(normals * 1e4)])
    _, index, faces = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    split = flat[index]
    colors = None if mesh.colors is None else mesh.colors[split]
    faces, normals = faces.reshape(-1, 3).astype(np.int32), normals[index].astype(np.float32)
    return mesh._replace(vertices=mesh.vertices[split], faces=faces, normals=normals, colors=colors)


def components(faces: np.ndarray, count: int) -> np.ndarray:
    """Label of the connected component of each of the M faces; `count` is the number of vertices."""
    from scipy import sparse

    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = sparse.coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(count, count))
    labels = sparse.csgraph.connected_components(graph, directed=False)[1]
    return np.unique(labels[faces[:, 0]], return_inverse=True)[1]


def clean(vertices, faces, *, share: float = 0.01, log=print) -> tuple[np.ndarray, np.ndarray]:
    """Drops floaters: components whose volume is below `share` of the largest one's, and cavities (volume < 0).

    The largest component always stays.
    """
    labels = components(faces, len(vertices))
    corners = vertices[faces].astype(np.float64)
    signed = np.sum(corners[:, 0] * np.cross(corners[:, 1], corners[:, 2]), axis=-1) / 6.0
    volumes = np.bincount(labels, weights=signed)
    keep = volumes >= share * volumes.max()
    keep[np.argmax(volumes)] = True
    if not keep.all():
        log(f'mesh: kept {keep.sum()} of {len(keep)} parts; dropped the parts below {share:.1%} of the largest')
    return compact(vertices, faces[keep[labels]])


def compact(vertices, faces) -> tuple[np.ndarray, np.ndarray]:
    """The same faces over only the vertices they use."""
    used, index = np.unique(faces, return_inverse=True)
    return vertices[used], index.reshape(-1, 3).astype(np.int32)


# --------------------------------------------------------------------------------------------------------------- writing


def write(mesh: Mesh, path) -> pathlib.Path:
    """Writes by the suffix of `path`: .glb and .obj with the texture if there is one, .ply with vertex colours, .stl bare."""
    path = pathlib.Path(path)
    kind = path.suffix.lstrip('.').lower()
    if kind not in FORMATS:
        raise UsageError(f'cannot write a mesh as {path.name!r}: choose a format in {list(FORMATS)}.')
    if len(mesh.faces) == 0:
        raise UsageError(
            f'the mesh for {path.name} has no faces and {len(mesh.vertices)} vertices, wanted at least one face: leave '
            '--threshold out, or give a lower one, and look at the object first with `t3d render`.'
        )
    if not (np.isfinite(mesh.vertices).all() and np.isfinite(mesh.normals).all()):
        raise UsageError(f'the mesh for {path.name} has vertices that are not finite: give another --threshold or --grid.')
    path.parent.mkdir(parents=True, exist_ok=True)
    {'glb': _write_glb, 'obj': _write_obj, 'ply': _write_ply, 'stl': _write_stl}[kind](mesh, path)
    return path


def name_of(prompt: str) -> str:
    """A prompt as the name of an object: what is printable, with `_` for white space; any script."""
    return '_'.join(''.join(sign if sign.isprintable() else ' ' for sign in prompt).split()) or 't3d'


def _trimesh(mesh: Mesh, visual=None):
    import trimesh

    return trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=mesh.normals, visual=visual, process=False)


def linear(colors: np.ndarray) -> np.ndarray:
    """sRGB bytes as linear bytes (IEC 61966-2-1)."""
    value = colors.astype(np.float64) / 255.0
    value = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.round(255.0 * value).astype(np.uint8)


def _write_glb(mesh: Mesh, path: pathlib.Path) -> None:
    """One node, one mesh, one material: a base colour texture, or vertex colours, on a rough dielectric."""
    import trimesh
    from PIL import Image

    material = trimesh.visual.material.PBRMaterial(
        name='t3d',
        baseColorTexture=Image.fromarray(mesh.texture) if mesh.texture is not None else None,
        baseColorFactor=[255, 255, 255, 255],
        metallicFactor=0.0,  # glTF's default is 1: without this line a mesh is a mirror of nothing, black
        roughnessFactor=1.0,
        doubleSided=False,
    )
    visual = trimesh.visual.TextureVisuals(uv=mesh.uv if mesh.texture is not None else None, material=material)
    if mesh.texture is None and mesh.colors is not None:
        opaque = np.full((len(mesh.vertices), 1), 255, np.uint8)
        visual.vertex_attributes['color'] = np.concatenate([linear(mesh.colors), opaque], -1)
    scene = trimesh.Scene()
    scene.add_geometry(_trimesh(mesh, visual), node_name=mesh.name, geom_name=mesh.name)
    files.write(path, scene.export(file_type='glb', include_normals=True))


def _write_obj(mesh: Mesh, path: pathlib.Path) -> None:
    from PIL import Image

    rows = io.StringIO()
    textured = mesh.texture is not None
    stem = path.stem
    rows.write('# t3d: y up, front +z, scene units (the object fits [-1, 1]^3), colours sRGB\n')
    if textured:
        rows.write(f'mtllib {stem}.mtl\n')
    rows.write(f'o {mesh.name}\n')
    position = mesh.vertices
    if not textured and mesh.colors is not None:
        position = np.concatenate([position, mesh.colors / 255.0], -1)  # the widespread extension: v x y z r g b
    np.savetxt(rows, position, fmt='v ' + ' '.join(['%.6f'] * position.shape[1]))
    if textured:
        np.savetxt(rows, mesh.uv, fmt='vt %.6f %.6f')
    np.savetxt(rows, mesh.normals, fmt='vn %.6f %.6f %.6f')
    if textured:
        rows.write('usemtl t3d\n')
    corner = '%d/%d/%d' if textured else '%d//%d'
    index = np.repeat(mesh.faces + 1, 3 if textured else 2, axis=1)
    np.savetxt(rows, index, fmt='f ' + ' '.join([corner] * 3))
    files.write(path, rows.getvalue())
    if textured:
        files.write_image(path.with_suffix('.png'), Image.fromarray(mesh.texture))
        material = f'newmtl t3d\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {stem}.png\n'
        files.write(path.with_suffix('.mtl'), material)


def _write_ply(mesh: Mesh, path: pathlib.Path) -> None:
    names = [(name, '<f4') for name in ('x', 'y', 'z', 'nx', 'ny', 'nz')]
    columns = np.concatenate([mesh.vertices, mesh.normals], -1)
    kinds = {'<f4': 'float', 'u1': 'uchar'}
    if mesh.colors is not None:
        names += [(name, 'u1') for name in ('red', 'green', 'blue')]
    table = np.empty(len(mesh.vertices), names)
    for index, (name, kind) in enumerate(names):
        table[name] = columns[:, index] if kind == '<f4' else mesh.colors[:, index - 6]
    polygons = np.empty(len(mesh.faces), [('count', 'u1'), ('index', '<i4', 3)])
    polygons['count'], polygons['index'] = 3, mesh.faces
    head = [
        'ply',
        'format binary_little_endian 1.0',
        'comment t3d: y up, front +z, scene units',
        f'element vertex {len(table)}',
    ]
    head += [f'property {kinds[kind]} {name}' for name, kind in names]
    head += [f'element face {len(polygons)}', 'property list uchar int vertex_indices', 'end_header\n']
    files.write(path, '\n'.join(head).encode() + table.tobytes() + polygons.tobytes())


def _write_stl(mesh: Mesh, path: pathlib.Path) -> None:
    files.write(path, _trimesh(mesh).export(file_type='stl'))
