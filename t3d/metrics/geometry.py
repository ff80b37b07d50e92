"""How far a mesh is from solids in closed form: volume, normals, and the place where two colours meet. Host side, NumPy.

Solids are rows of `t3d.geom.solids.ROW`, float [K, 9]; rows of kind -1 are left out. Lengths are scene units.
"""

from typing import NamedTuple

import numpy as np

from t3d.geom import solids

SPHERE, CUBE, CYLINDER, CONE = range(len(solids.KINDS))
LIT = (
    0.4,
    1.0,
)  # brightness of lit colours: a colour counts as that of the solid whose own colour it is nearest to at one of these
NEAR = 0.15  # of a contact curve: further away colours are not looked at


class Samples(NamedTuple):
    """Points drawn uniformly on a surface.

    Attributes:
      points: [P, 3]; normals: [P, 3] unit, outward.
      which: int [P], the solid or the triangle that the point lies on.
      weights: [P, 3] barycentric, of a mesh; of solids [P, 1] the distance along the surface to the nearest edge or tip.
      area: of the whole surface, which P points share.
    """

    points: np.ndarray
    normals: np.ndarray
    which: np.ndarray
    weights: np.ndarray
    area: float


def known(table: np.ndarray) -> np.ndarray:
    """float64 [K', 9]: the rows that are solids."""
    table = np.asarray(table, np.float64)
    return table[table[:, 0] >= 0.0]


def distances(table: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[K, P] signed distance of points [P, 3] to the surface of each solid, negative inside."""
    out = []
    for kind, *centre, radius, half in known(table)[:, :6]:
        x, y, z = (np.asarray(points, np.float64) - centre).T
        if kind == SPHERE:
            out.append(np.sqrt(x * x + y * y + z * z) - radius)
        elif kind == CUBE:
            out.append(_box(np.abs(x) - radius, np.abs(y) - half, np.abs(z) - radius))
        elif kind == CYLINDER:
            out.append(_box(np.hypot(x, z) - radius, np.abs(y) - half))
        else:
            out.append(_cone(np.hypot(x, z), y, radius, half))
    return np.stack(out)


def _box(*over) -> np.ndarray:
    """Distance to a box from how far a point lies beyond each pair of its sides."""
    over = np.stack(over)
    return np.linalg.norm(np.maximum(over, 0.0), axis=0) + np.minimum(over.max(0), 0.0)


def _cone(across, y, radius, half) -> np.ndarray:
    """Distance to a cone's side and base, in the half plane through its axis."""
    along = np.clip((across * radius + (half - y) * 2.0 * half) / (radius**2 + 4.0 * half**2), 0.0, 1.0)  # 0 at the tip
    side = np.hypot(across - along * radius, half - y - along * 2.0 * half)
    base = np.hypot(np.maximum(across - radius, 0.0), y + half)
    within = (y >= -half) & (across <= radius * (half - y) / (2.0 * half))
    return np.where(within, -1.0, 1.0) * np.minimum(side, base)


# --------------------------------------------------------------------------------------------------------------- volume


def inside(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray, chunk: int = 2**20) -> np.ndarray:
    """bool [P]: whether the winding number of a closed mesh is 1 (van Oosterom and Strackee, IEEE Trans. BME 1983)."""
    corners = vertices[faces].astype(np.float32)
    dot = lambda one, other: np.einsum('pfc,pfc->pf', one, other)
    parts = []
    for some in np.array_split(np.asarray(points, np.float32), max(1, len(points) * len(faces) // chunk)):
        a, b, c = (corners[None, :, k] - some[:, None] for k in range(3))
        la, lb, lc = (np.sqrt(dot(side, side)) for side in (a, b, c))
        volume = dot(a, np.cross(b, c))
        below = la * lb * lc + dot(a, b) * lc + dot(b, c) * la + dot(c, a) * lb
        parts.append(np.arctan2(volume, below).sum(1) / (2.0 * np.pi) > 0.5)
    return np.concatenate(parts)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """|a and b| / |a or b| of bools [P]; 1 where both are empty."""
    either = int(np.sum(one | other))
    return float(np.sum(one & other) / either) if either else 1.0


# -------------------------------------------------------------------------------------------------------------- surfaces


def on_mesh(vertices: np.ndarray, faces: np.ndarray, count: int, seed: int = 0) -> Samples:
    """Points on a mesh, with the normals of their triangles."""
    rng, corners = np.random.default_rng(seed), vertices[faces].astype(np.float64)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    double = np.linalg.norm(cross, axis=-1)
    which = rng.choice(len(faces), count, p=double / double.sum())
    weights = rng.dirichlet([1.0] * 3, count)
    normals = (cross / np.maximum(double, 1e-30)[:, None])[which]
    return Samples(np.einsum('pk,pkc->pc', weights, corners[which]), normals, which, weights, 0.5 * float(double.sum()))


def on_solids(table: np.ndarray, count: int, seed: int = 0) -> Samples:
    """Points on the solids, where no other solid covers them; fewer than `count` where some do."""
    rng, table = np.random.default_rng(seed), known(table)
    areas = np.array([_area(*row[[0, 4, 5]]) for row in table])
    drawn = [_drawn(rng, row, round(count * share)) for row, share in zip(table, areas / areas.sum(), strict=True)]
    points, normals, edges = (np.concatenate(part) for part in zip(*drawn, strict=True))
    which = np.repeat(np.arange(len(table)), [len(part[0]) for part in drawn])
    far = distances(table, points)
    far[which, np.arange(len(points))] = np.inf
    free = far.min(0) > 0.0
    area = float(areas.sum()) * free.mean()
    return Samples(points[free], normals[free], which[free], edges[free, None], area)


def _area(kind, radius, half) -> float:
    if kind == SPHERE:
        return 4.0 * np.pi * radius**2
    if kind == CUBE:
        return 8.0 * radius**2 + 16.0 * radius * half
    wall, ends = (
        (4.0 * np.pi * radius * half, 2.0) if kind == CYLINDER else (np.pi * radius * np.hypot(radius, 2.0 * half), 1.0)
    )
    return wall + ends * np.pi * radius**2


def _drawn(rng, row, count: int):
    """(points [N, 3], normals [N, 3], distance to the nearest edge or tip [N]) of one solid."""
    kind, centre, radius, half = row[0], row[1:4], row[4], row[5]
    if kind == SPHERE:
        normals = rng.normal(size=(count, 3))
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
        points, gaps = radius * normals, np.full(count, np.inf)
    elif kind == CUBE:
        points, normals, gaps = _on_cube(rng, np.array([radius, half, radius]), count)
    else:
        points, normals, gaps = _on_turned(rng, kind, radius, half, count)
    return centre + points, normals, gaps


def _on_cube(rng, sides, count: int):
    shares = np.prod(sides) / sides
    axis, sign, rows = rng.choice(3, count, p=shares / shares.sum()), rng.choice([-1.0, 1.0], count), np.arange(count)
    points, normals = rng.uniform(-1.0, 1.0, (count, 3)) * sides, np.zeros((count, 3))
    points[rows, axis], normals[rows, axis] = sign * sides[axis], sign
    gaps = sides - np.abs(points)
    gaps[rows, axis] = np.inf
    return points, normals, gaps.min(-1)


def _on_turned(rng, kind, radius, half, count: int):
    """Of a cylinder or cone: its wall, and one cap or two."""
    up = np.array([0.0, 1.0, 0.0])
    angle, place, part = rng.uniform(0.0, 2.0 * np.pi, count), rng.uniform(size=count), rng.uniform(size=count)
    around = np.stack([np.cos(angle), np.zeros(count), np.sin(angle)], -1)
    if kind == CYLINDER:
        tilt, across, height = 0.0, np.full(count, radius), (2.0 * part - 1.0) * half
        gaps = 2.0 * half * np.minimum(part, 1.0 - part)
    else:
        along, slant = np.sqrt(part), np.hypot(radius, 2.0 * half)  # along: 0 at the tip, 1 at the rim
        tilt, across, height = radius / slant, radius * along, half - 2.0 * half * along
        gaps = slant * np.minimum(along, 1.0 - along)
    share = np.pi * radius**2 / _area(kind, radius, half)  # of one cap
    cap, side = place < (2.0 * share if kind == CYLINDER else share), np.where(place < share, -1.0, 1.0)
    on_cap = radius * np.sqrt(rng.uniform(size=count))
    across, height = np.where(cap, on_cap, across), np.where(cap, side * half, height)
    normals = np.where(cap[:, None], side[:, None] * up, np.sqrt(1.0 - tilt**2) * around + tilt * up)
    return across[:, None] * around + height[:, None] * up, normals, np.where(cap, radius - on_cap, gaps)


def turned(truth: Samples, samples: Samples, normals: np.ndarray) -> np.ndarray:
    """[P] radians between the true normals and those ([Q, 3] unit, of `samples`) of the nearest sample."""
    from scipy import spatial

    nearest = spatial.cKDTree(samples.points).query(truth.points)[1]
    return np.arccos(np.clip(np.einsum('pc,pc->p', truth.normals, normals[nearest]), -1.0, 1.0))


# --------------------------------------------------------------------------------------------------------------- colours


def contact(table: np.ndarray, count: int = 4096) -> tuple[np.ndarray, float]:
    """(points [N, 3], length) of the curve along which the flat top of one of two solids meets the flat bottom of the other.

    None where they do not touch, or in a point.
    """
    table = known(table)
    if len(table) != 2:
        return np.zeros((0, 3)), 0.0
    upper, lower = table[np.argsort(-table[:, 2])]
    level = lower[2] + lower[5]
    flat = lower[0] in (CUBE, CYLINDER) and upper[0] in (CUBE, CYLINDER, CONE)
    if not flat or abs(upper[2] - upper[5] - level) > 1e-3:
        return np.zeros((0, 3)), 0.0
    curves, total = [], 0.0
    for one, other in ((upper, lower), (lower, upper)):
        t = (np.arange(count) + 0.5) / count
        if one[0] == CUBE:
            side, along = np.floor(4.0 * t), 2.0 * ((4.0 * t) % 1.0) - 1.0
            around, length = np.stack([np.where(side % 2, 1.0, along), np.where(side % 2, along, 1.0)], -1), 8.0 * one[4]
            around *= np.where(side < 2.0, 1.0, -1.0)[:, None]
        else:
            around, length = np.stack([np.cos(2.0 * np.pi * t), np.sin(2.0 * np.pi * t)], -1), 2.0 * np.pi * one[4]
        flat_points = one[[1, 3]] + one[4] * around
        off = flat_points - other[[1, 3]]
        within = (np.abs(off).max(-1) if other[0] == CUBE else np.linalg.norm(off, axis=-1)) < other[4] + 1e-9 * (one is upper)
        curves.append(np.insert(flat_points[within], 1, level, axis=1))
        total += length * within.mean()
    return np.concatenate(curves), total


def near_contact(table: np.ndarray, samples: Samples) -> Samples:
    """The samples within NEAR of the curve of contact, and the area that they share."""
    from scipy import spatial

    near = spatial.cKDTree(contact(table)[0]).query(samples.points)[0] < NEAR
    kept = (part[near] for part in samples[:4])
    return Samples(*kept, samples.area * float(near.mean()))


def displacement(table: np.ndarray, points: np.ndarray, colours: np.ndarray, area: float) -> float:
    """Mean distance of the line between two colours from the line between two solids, scene units.

    The area whose colour is that of the solid that it does not lie on, within NEAR of the curve of contact, over the length of
    that curve.

    Args:
      points: [P, 3] uniform on a surface of `area`, which may be a part of the whole that holds all near the curve.
      colours: [P, 3] in [0, 1], lit or not.
    """
    from scipy import spatial

    curve, length = contact(table)
    near = spatial.cKDTree(curve).query(points)[0] < NEAR
    true = np.abs(distances(table, points[near])).argmin(0)
    return float(np.sum(coloured_as(table, colours[near]) != true) * area / len(points) / length)


def coloured_as(table: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """int [P]: the solid whose own colour, at some brightness in LIT, is nearest to each colour [P, 3] in [0, 1]."""
    own = known(table)[:, 6:9]
    colours = np.asarray(colours, np.float64)
    bright = np.clip(colours @ own.T / np.maximum((own**2).sum(-1), 1e-12), *LIT)  # [P, K]
    return np.linalg.norm(colours[:, None] - bright[..., None] * own, axis=-1).argmin(-1)
