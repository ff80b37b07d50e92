"""Wavefront OBJ and MTL, as real libraries write them: triangle soups with one part per material.

What is read: `v`, `vt`, `vn`, `f` (triangles, quads, concave polygons; `v`, `v/t`, `v//n`, `v/t/n`; negative indices),
`usemtl`, `mtllib`, and from the MTL `newmtl`, `Kd`, `d`, `Tr`, `map_Kd` (names with spaces, options skipped). Everything else
is skipped. Files are Latin-1, so any byte decodes. A missing MTL, an undefined material and a missing texture are ordinary in
the wild: the part is then drawn with the colours that are known, and `Mesh.missing` names what was not found.

Source: the OBJ and MTL formats as published by Wavefront (appendix B of the Advanced Visualizer manual).
"""

import dataclasses
import posixpath
from collections.abc import Callable

import numpy as np

ENCODING = 'latin-1'
UNDEFINED_DIFFUSE = (0.8, 0.8, 0.8)  # what Blender gives a material that says nothing
PREDEFINED_OPACITY = {'glasstransparent': 0.35}  # a name that Java 3D's loader defines itself and some files rely on
MAP_OPTIONS = {
    '-s': 3,
    '-o': 3,
    '-t': 3,
    '-mm': 2,
    '-bm': 1,
    '-blendu': 1,
    '-blendv': 1,
    '-boost': 1,
    '-cc': 1,
    '-clamp': 1,
    '-texres': 1,
    '-imfchan': 1,
    '-type': 1,
}  # option of a map statement -> the most arguments it takes


@dataclasses.dataclass(frozen=True)
class Part:
    """One material of a model."""

    name: str
    diffuse: tuple[float, float, float] = UNDEFINED_DIFFUSE  # Kd, display values in [0, 1]
    opacity: float = 1.0  # d, 0 = invisible
    texture: str | None = None  # map_Kd, as a path for the reader that gave the OBJ


@dataclasses.dataclass(frozen=True)
class Mesh:
    """A triangle soup. T triangles; a corner without uv or normal holds NaN."""

    positions: np.ndarray  # float32 [T, 3, 3] the file's units
    uvs: np.ndarray  # float32 [T, 3, 2] v upwards
    normals: np.ndarray  # float32 [T, 3, 3] as written, any length
    part: np.ndarray  # int32 [T] index into `parts`
    parts: tuple[Part, ...]
    missing: tuple[str, ...] = ()  # files and materials that were named but not found
    num_vertices: int = 0  # `v` statements


def load(path: str, read: Callable[[str], bytes]) -> Mesh:
    """Reads the OBJ at `path` and what it names; `read(path)` gives a file's bytes or raises KeyError or OSError."""
    text = read(path).decode(ENCODING)
    folder = posixpath.dirname(path)
    materials, missing = {}, []
    for name in _libraries(text):
        library = _find(read, folder, name)
        if library is None:
            missing.append(name)
        else:
            materials |= parse_mtl(read(library).decode(ENCODING))
    mesh = parse_obj(text, materials)
    parts = []
    for part in mesh.parts:
        if part.name not in materials:
            missing.append(f'material {part.name}')
        if part.texture is not None:
            found = _find(read, folder, part.texture)
            if found is None:
                missing.append(part.texture)
            part = dataclasses.replace(part, texture=found)
        parts.append(part)
    return dataclasses.replace(mesh, parts=tuple(parts), missing=tuple(missing))


def _libraries(text: str) -> list[str]:
    return [line.split(None, 1)[1].strip() for line in text.splitlines() if line.startswith('mtllib ') and line[7:].strip()]


def _find(read, folder: str, name: str) -> str | None:
    """The path under which `read` knows `name`: as written beside the OBJ, else its last component (absolute paths)."""
    name = name.replace('\\', '/')
    for candidate in (name, posixpath.basename(name)):
        path = posixpath.normpath(posixpath.join(folder, candidate))
        try:
            read(path)
        except (KeyError, OSError):
            continue
        return path
    return None


# ---------------------------------------------------------------------------------------------------------------- MTL


def parse_mtl(text: str) -> dict[str, Part]:
    """Materials by name."""
    materials, fields = {}, None
    for line in text.splitlines():
        key, _, rest = line.strip().partition(' ')
        key, rest = key.strip(), rest.strip()
        if key == 'newmtl':
            fields = materials.setdefault(rest, {'name': rest})
        elif fields is None:
            continue
        elif key == 'Kd':
            values = [float(word) for word in rest.split()[:3] if _is_number(word)]
            if values:  # one number means grey
                fields['diffuse'] = tuple(np.clip((values * 3)[:3] if len(values) < 3 else values, 0.0, 1.0).tolist())
        elif key == 'd':
            words = [word for word in rest.split() if _is_number(word)]  # skips -halo
            if words:
                fields['opacity'] = float(np.clip(float(words[0]), 0.0, 1.0))
        elif key == 'Tr' and 'opacity' not in fields and _is_number(rest):
            fields['opacity'] = float(np.clip(1.0 - float(rest), 0.0, 1.0))
        elif key.lower() == 'map_kd' and rest:
            fields['texture'] = _map_name(rest)
    return {name: Part(**fields) for name, fields in materials.items()}


def _map_name(rest: str) -> str:
    """The file of a map statement: what follows its options, spaces and all."""
    words = rest.split(' ')
    while words and words[0] in MAP_OPTIONS:
        option, words = words[0], words[1:]
        taken = 0
        while words and taken < MAP_OPTIONS[option] and (_is_number(words[0]) or option in _WORD_OPTIONS):
            words, taken = words[1:], taken + 1
    return ' '.join(words).strip()


_WORD_OPTIONS = {'-blendu', '-blendv', '-cc', '-clamp', '-imfchan', '-type'}  # those whose argument is not a number


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------------------------------------------------------- OBJ


def parse_obj(text: str, materials: dict[str, Part]) -> Mesh:
    """The triangles of an OBJ text; parts in order of first use, those without a face left out."""
    columns = {'v': [], 'vt': [], 'vn': []}
    corners, sizes, owners = [], [], []  # flat (v, vt, vn) indices, corners per face, material per face
    names, current = {}, None
    for line in text.replace('\\\n', ' ').replace('\\\r\n', ' ').splitlines():
        key, _, rest = line.strip().partition(' ')
        if key == 'f':
            words = rest.split()
            if len(words) < 3:
                continue
            if current is None:
                current = names.setdefault('', len(names))
            sizes.append(len(words))
            owners.append(current)
            counts = len(columns['v']), len(columns['vt']), len(columns['vn'])
            for word in words:
                corners.append(_corner(word, counts))
        elif key in columns:
            columns[key].append(rest.split())
        elif key == 'usemtl':
            current = names.setdefault(rest.strip(), len(names))
    positions, uvs, normals = (_table(columns[key], width) for key, width in (('v', 3), ('vt', 2), ('vn', 3)))
    corners = np.array(corners, np.int64).reshape(-1, 3)
    points = _lookup(positions, corners[:, 0])
    triangles, faces = _triangulate(points, np.array(sizes, np.int64))
    part = np.array(owners, np.int32)[faces]
    whole = np.isfinite(points[triangles]).all((1, 2))  # drops faces that name a vertex the file lacks
    triangles, part = triangles[whole], part[whole]
    used, part = np.unique(part, return_inverse=True)
    ordered = list(names)
    parts = tuple(
        materials.get(ordered[index]) or Part(ordered[index], opacity=PREDEFINED_OPACITY.get(ordered[index], 1.0))
        for index in used
    )
    return Mesh(
        points[triangles],
        _lookup(uvs, corners[:, 1])[triangles],
        _lookup(normals, corners[:, 2])[triangles],
        part.astype(np.int32).reshape(-1),
        parts,
        num_vertices=len(positions),
    )


def _corner(word: str, counts: tuple[int, int, int]) -> tuple[int, int, int]:
    """Zero-based (v, vt, vn) of a corner; -1 where absent. Negative numbers count back from the last one read."""
    result = [-1, -1, -1]
    for axis, digits in enumerate(word.split('/')[:3]):
        if digits:
            index = int(digits)
            result[axis] = index - 1 if index > 0 else counts[axis] + index
    return tuple(result)


def _table(rows: list[list[str]], width: int) -> np.ndarray:
    """float32 [N, width] of the first `width` numbers of each row."""
    return np.array([(row + ['0'] * width)[:width] for row in rows], np.float32).reshape(-1, width)


def _lookup(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Rows of a table, NaN where the index is -1 or beyond it."""
    padded = np.concatenate([table, np.full((1, table.shape[1]), np.nan, np.float32)])
    return padded[np.where((index < 0) | (index >= len(table)), len(table), index)]


def _triangulate(points: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(corner indices [T, 3], face of each triangle [T]) of polygons that follow each other in `points` [C, 3]."""
    starts = np.cumsum(sizes) - sizes
    triangles, faces = [], []
    three = np.flatnonzero(sizes == 3)
    triangles.append(starts[three, None] + np.arange(3))
    faces.append(three)
    four = np.flatnonzero(sizes == 4)
    quads = starts[four, None] + np.arange(4)
    a, b, c, d = (points[quads[:, corner]] for corner in range(4))
    concave = np.einsum('ni,ni->n', np.cross(b - a, c - a), np.cross(c - a, d - a)) < 0.0  # cut from b to d instead
    first = np.where(concave[:, None], [0, 1, 3], [0, 1, 2])
    second = np.where(concave[:, None], [1, 2, 3], [0, 2, 3])
    for half in (first, second):
        triangles.append(np.take_along_axis(quads, half, 1))
        faces.append(four)
    for face in np.flatnonzero(sizes > 4):
        ears = ear_clip(points[starts[face] : starts[face] + sizes[face]])
        triangles.append(starts[face] + ears)
        faces.append(np.full(len(ears), face))
    triangles, faces = np.concatenate(triangles), np.concatenate(faces)
    order = np.argsort(faces, kind='stable')
    return triangles[order], faces[order]


def ear_clip(points: np.ndarray) -> np.ndarray:
    """Triangles [N - 2, 3] of a simple, possibly concave polygon [N, 3] that is nearly flat; a fan where none exists."""
    following = np.roll(points, -1, 0)
    normal = np.cross(points, following).sum(0)  # twice the area vector (Newell's method)
    if not np.isfinite(normal).all() or np.abs(normal).max() == 0.0:
        return _fan(np.arange(len(points)))
    drop = int(np.abs(normal).argmax())
    flat = np.delete(points.astype(np.float64), drop, 1)
    if normal[drop] * (-1.0 if drop == 1 else 1.0) < 0.0:
        flat = flat * [1.0, -1.0]  # counter-clockwise from here on
    left, triangles = list(range(len(points))), []
    while len(left) > 3:
        for place in range(len(left)):
            before, here, after = left[place - 1], left[place], left[(place + 1) % len(left)]
            if _is_ear(flat, left, before, here, after):
                triangles.append((before, here, after))
                del left[place]
                break
        else:  # self-intersecting: nothing is right, a fan shows the outline at least
            return np.concatenate([np.array(triangles, np.int64).reshape(-1, 3), _fan(np.array(left))])
    return np.array([*triangles, tuple(left)], np.int64)


def _is_ear(flat: np.ndarray, left: list[int], before: int, here: int, after: int) -> bool:
    a, b, c = flat[before], flat[here], flat[after]

    def side(start, end, point):
        return (end[0] - start[0]) * (point[..., 1] - start[1]) - (end[1] - start[1]) * (point[..., 0] - start[0])

    if side(a, b, c) <= 0.0:
        return bool(side(a, b, c) == 0.0)  # collinear corners may go
    others = flat[[index for index in left if index not in (before, here, after)]]
    inside = (side(a, b, others) >= 0.0) & (side(b, c, others) >= 0.0) & (side(c, a, others) >= 0.0)
    same = np.any([(others == corner).all(-1) for corner in (a, b, c)], 0)  # the bridge to a hole visits points twice
    return not np.any(inside & ~same)


def _fan(index: np.ndarray) -> np.ndarray:
    return np.stack([np.full(len(index) - 2, index[0]), index[1:-1], index[2:]], -1)
