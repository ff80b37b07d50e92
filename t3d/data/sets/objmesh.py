"""Wavefront OBJ, as real libraries write it: triangle soups with one part per material.

What is read: `v`, `vt`, `vn`, `f` (triangles, quads, concave polygons; `v`, `v/t`, `v//n`, `v/t/n`; negative indices),
`usemtl`, `mtllib`, and from the MTL (data/sets/mtl.py) `newmtl`, `Kd`, `d`, `Tr`, `map_Kd`. Everything else is skipped. Text
may be of any encoding (core/text.py) with comments and continued lines anywhere. A missing MTL, an undefined material and a
missing texture are ordinary in the wild: the part is then drawn with the colours that are known, and `Mesh.missing` names what
was not found.

Source: the OBJ format as published by Wavefront (appendix B of the Advanced Visualizer manual).
"""

import array
import dataclasses
import posixpath
from collections.abc import Callable

import numpy as np

from t3d.core import text as texts
from t3d.core.errors import UsageError
from t3d.data.sets import archives, mtl
from t3d.data.sets.mtl import UNDEFINED_DIFFUSE, Part, parse_mtl  # noqa: F401  what a mesh's parts are

PREDEFINED_OPACITY = {'glasstransparent': 0.35}  # a name that Java 3D's loader defines itself and some files rely on
WIDTHS = {'v': 3, 'vt': 2, 'vn': 3}  # numbers read of a row
MOST_TESTS = 50  # of corners for an ear, times the corners of the polygon: what takes longer is drawn as a fan
FAR = 1 << 40  # an index beyond every table


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
    dropped: int = 0  # faces with fewer than three corners, or with a vertex that the file lacks or that is not finite


def load(path: str, read: Callable[[str], bytes], locate: Callable[[str], str | None] | None = None) -> Mesh:
    """Reads the OBJ at `path` and what it names.

    Args:
      read: `read(path)` gives a file's bytes, or raises KeyError, OSError or UsageError.
      locate: `locate(path)` gives the name under which `read` knows a path in other letters, None where there is none
        (data/sets/archives.py); without it the usual spellings are tried.
    Raises:
      UsageError: a statement that is none, with its line.
      what `read` raises of the OBJ itself.
    """
    locate = locate or archives.locate_by_reading(read)
    raw, folder = _read(texts.decode(read(path))), posixpath.dirname(path)
    materials, folders, missing = {}, {}, []
    for rest in dict.fromkeys(raw.libraries):
        libraries, absent = mtl.library_names(rest, lambda name: archives.find(locate, name, (folder,)))
        missing += absent
        for library in libraries:
            try:
                parsed = parse_mtl(texts.decode(read(library)))
            except (KeyError, OSError, UsageError) as error:
                missing.append(str(error))
                continue
            for name, part in parsed.items():
                if name not in materials:  # the library named first defines it
                    materials[name] = part
                    folders.setdefault(part, (posixpath.dirname(library), folder))
    mesh = _assemble(raw, materials)
    parts = []
    for part in mesh.parts:
        if part not in folders and part.name:
            missing.append(f'material {part.name}')
        if part.spectrum is not None:
            missing.append(f'spectrum {part.spectrum} of material {part.name}')
        if part.texture is not None:
            spelled = mtl.spellings(part.texture)
            paths = (archives.find(locate, spelling, folders[part]) for spelling in spelled)
            texture = next((existing for existing in paths if existing is not None), None)
            if texture is None:
                missing.append(spelled[min(1, len(spelled) - 1)])
            part = dataclasses.replace(part, texture=texture)
        parts.append(part)
    return dataclasses.replace(mesh, parts=tuple(parts), missing=tuple(dict.fromkeys(missing)))


def parse_obj(text: str, materials: dict[str, Part]) -> Mesh:
    """The triangles of an OBJ text; parts in order of first use, those without a face left out."""
    return _assemble(_read(text), materials)


@dataclasses.dataclass(frozen=True)
class _Raw:
    """The statements of a file. N rows of a table, F faces, C corners."""

    tables: dict[str, np.ndarray]  # 'v', 'vt', 'vn': float32 [N, 3 or 2]
    corners: np.ndarray  # int64 [C, 3] zero-based (v, vt, vn), -1 where absent
    sizes: np.ndarray  # int64 [F] corners of a face
    owners: np.ndarray  # int64 [F] index into `names`
    names: tuple[str, ...]  # as `usemtl` has them; '' for faces before the first
    libraries: tuple[str, ...]  # as `mtllib` has them
    short: int  # faces with fewer than three corners


def _read(text: str) -> _Raw:
    columns = {key: array.array('d') for key in WIDTHS}
    corners, sizes, owners = (array.array('q') for _ in range(3))
    names, current, libraries, short = {}, None, [], 0
    counts = dict.fromkeys(WIDTHS, 0)
    for number, line in mtl.statements(text):
        words = line.split()
        key = words[0].lower() if words else ''
        try:
            if key in counts:
                columns[key].extend(_row(key, words))
                counts[key] += 1
            elif key in ('f', 'fo'):
                if '#' in line:
                    words = mtl.numeric_words(line)
                if len(words) < 4:
                    short += 1
                    continue
                if current is None:
                    current = names.setdefault('', len(names))
                ends = tuple(counts.values())
                for word in words[1:]:
                    corners.extend(_corner(word, ends))
                sizes.append(len(words) - 1)
                owners.append(current)
            elif key == 'usemtl':
                current = names.setdefault(mtl.statement(line)[1], len(names))
            elif key == 'mtllib' and len(words) > 1:
                libraries.append(mtl.statement(line)[1])
        except ValueError as error:
            numbers = 'corners v, v/t, v//n or v/t/n of whole numbers' if key in ('f', 'fo') else f'{WIDTHS[key]} numbers'
            raise UsageError(f'line {number} is {line[:60]!r}: wanted {numbers}') from error
    tables = {key: _table(columns[key], width) for key, width in WIDTHS.items()}
    flat = (np.array(values, np.int64) for values in (corners, sizes, owners))
    return _Raw(tables, next(flat).reshape(-1, 3), next(flat), next(flat), tuple(names), tuple(libraries), short)


def _row(key: str, words: list[str]) -> list[float]:
    """The numbers of a `v`, `vt` or `vn` statement."""
    width = WIDTHS[key]
    try:
        values = [float(word) for word in words[1 : width + 1]]
    except ValueError:
        values = [mtl.number(word) for word in mtl.numeric_words(' '.join(words))[1 : width + 1]]
    if None in values or len(values) < width - (key == 'vt'):
        raise ValueError(key)
    return values + [0.0] * (width - len(values))  # a texture may have one coordinate


def _corner(word: str, counts: tuple[int, ...]) -> list[int]:
    """Zero-based (v, vt, vn) of a corner; -1 where absent. Negative numbers count back from the last one read."""
    result = [-1, -1, -1]
    for axis, digits in enumerate(word.split('/')[:3]):
        if digits:
            index = int(digits)
            if index:  # 0 is no index
                result[axis] = min(index - 1, FAR) if index > 0 else max(counts[axis] + index, -1)
    return result


def _assemble(raw: _Raw, materials: dict[str, Part]) -> Mesh:
    positions, uvs, normals = raw.tables.values()
    table, order = mtl.Table(materials), {}
    owner = [order.setdefault(_part(table, name), len(order)) for name in raw.names]  # the part of each name
    points = _lookup(positions, raw.corners[:, 0])
    whole = np.ones(len(raw.sizes), bool)
    if len(raw.sizes):
        whole = np.logical_and.reduceat(np.isfinite(points).all(-1), np.cumsum(raw.sizes) - raw.sizes)
    kept = np.repeat(whole, raw.sizes)
    points, corners, sizes = points[kept], raw.corners[kept], raw.sizes[whole]
    triangles, faces = _triangulate(points, sizes)
    part = np.array(owner, np.int64)[raw.owners[whole]][faces]
    used, part = np.unique(part, return_inverse=True)
    parts = list(order)
    return Mesh(
        points[triangles],
        _lookup(uvs, corners[:, 1])[triangles],
        _lookup(normals, corners[:, 2])[triangles],
        part.astype(np.int32).reshape(-1),
        tuple(parts[index] for index in used),
        num_vertices=len(positions),
        dropped=raw.short + int((~whole).sum()),
    )


def _part(table: mtl.Table, name: str) -> Part:
    part = table.get(name)
    if part is None:
        name = mtl.unquoted(mtl.uncommented(name))
        part = Part(name, opacity=PREDEFINED_OPACITY.get(name, 1.0))
    return part


def _table(column: array.array, width: int) -> np.ndarray:
    """float32 [N, width]; what is too large for float32 becomes infinite."""
    with np.errstate(over='ignore'):
        return np.array(column, np.float64).astype(np.float32).reshape(-1, width)


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
    left, triangles, place, tests = list(range(len(points))), [], 0, 0
    while len(left) > 3:
        for _ in range(len(left) if tests < MOST_TESTS * len(points) else 0):
            before, here, after = left[place - 1], left[place], left[(place + 1) % len(left)]
            tests += 1
            if _is_ear(flat, left, before, here, after):
                triangles.append((before, here, after))
                del left[place]
                place = max(place - 1, 0) % len(left)
                break
            place = (place + 1) % len(left)
        else:  # self-intersecting: no triangulation is right, and a fan at least shows the outline
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
