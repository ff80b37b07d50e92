"""Fewer triangles for a closed surface, within a distance and an angle that are checked, not estimated. Host side, NumPy.

Edges collapse in the order of their quadrics (Garland and Heckbert, SIGGRAPH 1997): each vertex carries the sum of the squared
distances to the planes of the triangles around it, weighted by their areas, and the new vertex of an edge lies where the sum of
both is least. Whether a collapse is taken does not follow from the quadric. Every vertex of the surface that came in is a
witness: it is assigned to a triangle, and must stay within `distance` of it, its normal within `angle` of that triangle's.

Many edges collapse in each round, no two of them beside one triangle. Edges whose collapse would pinch the surface (their ends
have other than two common neighbours) stay, so that what is closed and manifold remains so.
"""

import math
from typing import NamedTuple

import numpy as np

ANGLE = math.radians(15.0)
TURN = 0.2  # cosine: a triangle may turn by less than 78 degrees in one collapse
SHORT = 1e-4  # weight of squared lengths in the order of collapses: on flat sides short edges go first
LAST, WORTH = 8, 0.01  # the last rounds that are looked at, and the share of triangles that they must have removed together
WIDER = 2.0  # factor of distance and angle where there are still more triangles than allowed


class Bounds(NamedTuple):
    """What a collapse may change: distance in scene units, angle in radians, difference of the attributes (inf: any)."""

    distance: float
    angle: float = ANGLE
    difference: float = math.inf


class _Witnesses(NamedTuple):
    """The S vertices of the surface that came in."""

    points: np.ndarray  # float64 [S, 3]
    normals: np.ndarray  # float64 [S, 3] unit
    cosine: np.ndarray  # [S] of its angle to the triangle that was turned away most: at a crease either side will do
    attributes: np.ndarray  # float64 [S, C]


def simplify(
    vertices: np.ndarray,
    faces: np.ndarray,
    bounds: Bounds,
    *,
    most: int | None = None,
    attributes: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """The surface with as few triangles as `bounds` allow.

    Args:
      vertices: [N, 3] of a closed, manifold, consistently wound surface, all of them used.
      faces: integers [M, 3].
      bounds: of every witness.
      most: triangles; where there are more, the bounds are doubled until there are not.
      attributes: [N, C] of the vertices, for example colours; None for none.

    Returns:
      (vertices float32 [N', 3], faces int32 [M', 3], attributes float32 [N', C], the largest distance of a witness to the
      surface, at most `bounds.distance` unless `most` asked for more).
    """
    mesh = _Mesh(vertices, faces, np.zeros((len(vertices), 0)) if attributes is None else attributes)
    mesh.collapse(bounds, least=0)
    while most is not None and len(mesh.faces) > most and bounds.distance < 2.0 * np.ptp(mesh.witnesses.points, axis=0).max():
        angle = min(WIDER * bounds.angle, math.pi)
        bounds = Bounds(WIDER * bounds.distance, angle, WIDER * bounds.difference)
        mesh.collapse(bounds, least=most)
    used, index = np.unique(mesh.faces, return_inverse=True)
    distance = float(mesh.far.max(initial=0.0))
    return (
        mesh.vertices[used].astype(np.float32),
        index.reshape(-1, 3).astype(np.int32),
        mesh.attributes[used].astype(np.float32),
        distance,
    )


class _Mesh:
    """The surface while edges collapse: positions, triangles, quadrics, and which triangle each witness is assigned to."""

    def __init__(self, vertices, faces, attributes):
        self.vertices, self.faces = np.array(vertices, np.float64), np.array(faces, np.int64)
        self.attributes = np.array(attributes, np.float64)
        normals, areas = _normals(self.vertices[self.faces])
        self.quadrics = _scatter(self.faces, _planes(self.vertices[self.faces], normals) * areas[:, None], len(vertices))
        mean = _unit(_scatter(self.faces, normals * areas[:, None], len(vertices)))
        cosine = np.ones(len(vertices))
        np.minimum.at(cosine, self.faces.reshape(-1), np.einsum('fkc,fc->fk', mean[self.faces], normals).reshape(-1))
        self.witnesses = _Witnesses(self.vertices.copy(), mean, cosine, self.attributes.copy())
        self.assigned = np.zeros(len(vertices), np.int64)
        self.assigned[self.faces.reshape(-1)] = np.repeat(np.arange(len(self.faces)), 3)
        self.far = np.zeros(len(vertices))
        self.random = np.random.default_rng(0)  # breaks ties of flat sides

    def collapse(self, bounds: Bounds, least: int) -> None:
        """Collapses edges until none can, or `least` triangles are left."""
        refused = np.zeros((0, 2), np.int64)  # edges that were tried and stay until something beside them changes
        counts = [len(self.faces)]
        while len(counts) <= LAST or counts[-1] < (1.0 - WORTH) * counts[-1 - LAST]:
            edges, places, costs = self._candidates(bounds, refused)
            room = (len(self.faces) - least) // 2
            chosen = self._independent(edges, costs)
            chosen = chosen[np.argsort(costs[chosen], kind='stable')[: max(room, 0)]]
            if len(chosen) == 0:
                return
            good, changed = self._apply(edges[chosen], places[chosen], bounds)
            refused = np.concatenate([refused[~changed[refused].any(1)], edges[chosen[~good]]])
            counts.append(len(self.faces))

    def _candidates(self, bounds: Bounds, refused):
        """(edges [E, 2], where their collapse would lie [E, 3], costs [E]) of those whose quadric lies within the bounds."""
        ends = np.concatenate([self.faces[:, [0, 1]], self.faces[:, [1, 2]], self.faces[:, [2, 0]]])
        edges = ends[ends[:, 0] < ends[:, 1]]  # of a closed surface: each edge runs both ways, once each
        if len(refused):
            size = len(self.vertices)
            edges = edges[~np.isin(edges[:, 0] * size + edges[:, 1], refused[:, 0] * size + refused[:, 1])]
        first, second = self.vertices[edges[:, 0]], self.vertices[edges[:, 1]]
        places, errors = _least(self.quadrics[edges[:, 0]] + self.quadrics[edges[:, 1]], 0.5 * (first + second))
        near = errors <= bounds.distance**2
        length = np.sum((second - first)[near] ** 2, -1)
        costs = errors[near] + SHORT * length
        return edges[near], places[near], costs * (1.0 + 1e-3 * self.random.random(len(costs)))

    def _independent(self, edges, costs) -> np.ndarray:
        """Indices of edges no two of which share a triangle: those of the least cost among all that touch their neighbours."""
        count = len(self.vertices)
        links = np.concatenate([self.faces[:, [0, 1]], self.faces[:, [1, 2]], self.faces[:, [2, 0]]])  # each edge both ways
        chosen, free = [], np.arange(len(edges))
        for _ in range(2):
            lowest = np.full(count, np.inf)
            np.minimum.at(lowest, edges[free].reshape(-1), np.repeat(costs[free], 2))
            around = lowest.copy()
            np.minimum.at(around, links[:, 0], lowest[links[:, 1]])
            best = free[costs[free] <= around[edges[free]].min(1)]
            chosen.append(best)
            taken = np.zeros(count, bool)  # the ends, their neighbours, and the neighbours of those
            taken[edges[best].reshape(-1)] = True
            for _ in range(2):
                taken[links[taken[links[:, 1]], 0]] = True
            free = free[~taken[edges[free]].any(1)]
            if len(free) == 0:
                break
        return np.concatenate(chosen)

    def _apply(self, edges, places, bounds: Bounds):
        """Collapses those of E independent edges that may: (which [E], which vertices have changed surroundings [N])."""
        count = len(edges)
        tag = np.full(len(self.vertices), -1)
        tag[edges[:, 0]] = tag[edges[:, 1]] = np.arange(count)
        corner = tag[self.faces]
        star = corner.max(1)
        touched = np.flatnonzero(star >= 0)
        star, corner, faces = star[touched], corner[touched], self.faces[touched]
        dying = np.sum(corner >= 0, 1) == 2
        good = self._links(edges, faces, corner, star, dying)

        along = self.vertices[edges[:, 1]] - self.vertices[edges[:, 0]]
        share = np.einsum('ec,ec->e', places - self.vertices[edges[:, 0]], along) / np.maximum((along**2).sum(1), 1e-300)
        share = np.clip(share, 0.0, 1.0)[:, None]
        colour = (1.0 - share) * self.attributes[edges[:, 0]] + share * self.attributes[edges[:, 1]]

        left = np.flatnonzero(~dying)
        moved = corner[left] >= 0
        corners = np.where(moved[..., None], places[star[left], None], self.vertices[faces[left]])
        colours = np.where(moved[..., None], colour[star[left], None], self.attributes[faces[left]])
        normals, areas = _normals(corners)
        before, old = _normals(self.vertices[faces[left]])
        turned = (np.einsum('fc,fc->f', normals, before) < TURN) & (old > 1e-3 * old.mean()) | (areas <= 1e-9 * old.mean())
        good &= np.bincount(star[left], turned, count) == 0

        watched, face, far, bad = self._judge(bounds, touched, star, left, corners, normals, colours, good)
        good &= np.bincount(star[watched[1]], bad, count) == 0 if len(bad) else good
        kept = good[star[watched[1]]]
        self.assigned[watched[0][kept]], self.far[watched[0][kept]] = touched[left[face[kept]]], far[kept]

        changed = np.zeros(len(self.vertices), bool)
        changed[faces[good[star]].reshape(-1)] = True
        first, second = edges[good].T
        self.vertices[first], self.attributes[first] = places[good], colour[good]
        self.quadrics[first] += self.quadrics[second]
        into = np.arange(len(self.vertices))
        into[second] = first
        alive = np.ones(len(self.faces), bool)
        alive[touched[dying & good[star]]] = False
        place = np.cumsum(alive) - 1
        self.faces, self.assigned = into[self.faces[alive]], place[self.assigned]
        return good, changed

    def _links(self, edges, faces, corner, star, dying) -> np.ndarray:
        """bool [E]: the ends have exactly two common neighbours, and those have more than three triangles."""
        count, size = len(edges), len(self.vertices)
        third = faces[dying][corner[dying] < 0]
        thin = np.bincount(self.faces.reshape(-1), minlength=size)[third] <= 3
        good = np.bincount(star[dying], thin, count) == 0
        sides = []
        for end in range(2):
            at = np.any(faces == edges[star, end][:, None], 1)
            beside = np.where(corner[at] < 0, faces[at], -1)
            keys = (star[at][:, None] * size + beside)[beside >= 0]
            sides.append(np.unique(keys))
        common = np.intersect1d(*sides, assume_unique=True)
        return good & (np.bincount(common // size, minlength=count) == 2)

    def _judge(self, bounds: Bounds, touched, star, left, corners, normals, colours, good):
        """((witnesses [K], their row of `touched` [K]), nearest of the triangles `left` [K], distance [K], too far [K])."""
        row = np.full(len(self.faces), -1)
        row[touched] = np.where(good[star], np.arange(len(touched)), -1)
        place = row[self.assigned]
        witness = np.flatnonzero(place >= 0)
        place = place[witness]
        order = np.argsort(star[left], kind='stable')  # the triangles left of each edge, one after the other
        starts = np.searchsorted(star[left][order], np.arange(len(good) + 1))
        counts = np.diff(starts)[star[place]]
        pair = np.repeat(np.arange(len(witness)), counts)
        within = np.arange(len(pair)) - np.repeat(np.cumsum(counts) - counts, counts)
        face = order[starts[star[place[pair]]] + within]
        face, far, weights = _nearest_of(self.witnesses.points[witness], corners, normals, pair, face, counts)
        known = self.witnesses
        cosine = np.einsum('kc,kc->k', known.normals[witness], normals[face])
        bad = (far > bounds.distance) | (cosine < np.minimum(known.cosine[witness], math.cos(bounds.angle)) - 1e-6)
        if colours.shape[-1]:
            there = np.einsum('kf,kfc->kc', weights, colours[face])
            bad |= np.abs(there - known.attributes[witness]).max(-1) > bounds.difference
        return (witness, place), face, far, bad


# -------------------------------------------------------------------------------------------------------------- geometry


def _normals(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(unit normals [M, 3], areas [M]) of triangles [M, 3, 3]."""
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return _unit(cross), 0.5 * np.linalg.norm(cross, axis=-1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-300)


def _scatter(faces: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """[N, C] sums of the values [M, C] of the triangles around each vertex."""
    columns = [sum(np.bincount(faces[:, k], column, count) for k in range(3)) for column in values.T]
    return np.stack(columns, -1)


def _planes(corners: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """[M, 11]: n n^T (6 numbers), d n (3), d^2 and 1 of the planes n x + d = 0; the last becomes the weight."""
    x, y, z = normals.T
    d = -np.einsum('fc,fc->f', normals, corners[:, 0])
    return np.stack([x * x, x * y, x * z, y * y, y * z, z * z, d * x, d * y, d * z, d * d, np.ones_like(d)], -1)


def _least(quadrics: np.ndarray, middle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places [E, 3] of the least weighted mean of squared distances, that mean [E]); near `middle` where many are equal."""
    a, b, c, d, e, f, *linear, constant, weight = quadrics.T
    pull = 1e-3 * (a + d + f)  # keeps the place along a flat side or an edge
    a, d, f = a + pull, d + pull, f + pull
    x, y, z = (pull * middle[:, k] - linear[k] for k in range(3))
    p, q, r = d * f - e * e, c * e - b * f, b * e - c * d
    inverse = 1.0 / np.maximum(a * p + b * q + c * r, 1e-300)
    u = (p * x + q * y + r * z) * inverse
    v = (q * x + (a * f - c * c) * y + (b * c - a * e) * z) * inverse
    w = (r * x + (b * c - a * e) * y + (a * d - b * b) * z) * inverse
    a, d, f = a - pull, d - pull, f - pull
    squared = u * (a * u + 2.0 * (b * v + c * w + linear[0])) + v * (d * v + 2.0 * (e * w + linear[1]))
    squared += w * (f * w + 2.0 * linear[2]) + constant
    return np.stack([u, v, w], -1), np.maximum(squared, 0.0) / np.maximum(weight, 1e-300)


def _nearest_of(points, corners, normals, pair, face, counts):
    """The nearest of several triangles for each point.

    Args:
      points: [K, 3]; corners: [F, 3, 3]; normals: [F, 3] unit.
      pair, face: [P] point and triangle of each pair, sorted by point; counts: [K] pairs of each point, at least 1.

    Returns:
      (triangle [K], distance [K], barycentric weights [K, 3]). Of triangles that the point lies straight above or below it is
      the one whose plane is nearest; only where there is none are edges and corners measured.
    """
    if len(points) == 0:
        return np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 3))
    a, ab, ac = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.maximum(np.linalg.norm(np.cross(ab, ac), axis=-1, keepdims=True), 1e-300)
    axes = np.concatenate([np.cross(ac, normals), np.cross(normals, ab), area * normals], 1) / area  # of v, w and height
    axes = np.concatenate([axes, np.einsum('fkc,fc->fk', axes.reshape(-1, 3, 3), a)], 1)[face]
    at = points[pair]
    v, w, height = (np.einsum('pc,pc->p', at, axes[:, 3 * k : 3 * k + 3]) - axes[:, 9 + k] for k in range(3))
    squared = np.where((v >= 0.0) & (w >= 0.0) & (v + w <= 1.0), height**2, np.inf)
    first = np.cumsum(counts) - counts
    beside = np.flatnonzero(~np.isfinite(np.minimum.reduceat(squared, first))[pair])
    squared[beside], v[beside], w[beside] = _to_edges(at[beside] - a[face[beside]], ab[face[beside]], ac[face[beside]])
    least = np.minimum.reduceat(squared, first)
    hit = np.flatnonzero(squared <= least[pair])
    hit = hit[np.searchsorted(pair[hit], np.arange(len(points)))]
    return face[hit], np.sqrt(least), np.stack([1.0 - v[hit] - w[hit], v[hit], w[hit]], -1)


def _to_edges(ap, ab, ac):
    """(squared distance, v, w) of the nearest point a + v ab + w ac on the edges of triangles; ap [K, 3] from the corner a."""
    dot = lambda one, other: np.einsum('kc,kc->k', one, other)
    d11, d12, d22, d1, d2 = dot(ab, ab), dot(ab, ac), dot(ac, ac), dot(ap, ab), dot(ap, ac)
    s = np.clip(d1 / np.maximum(d11, 1e-300), 0.0, 1.0)
    t = np.clip(d2 / np.maximum(d22, 1e-300), 0.0, 1.0)
    r = np.clip((d2 - d1 - d12 + d11) / np.maximum(d11 - 2.0 * d12 + d22, 1e-300), 0.0, 1.0)
    zero, best = np.zeros_like(s), (np.full_like(s, np.inf), s, s)
    for v, w in ((s, zero), (zero, t), (1.0 - r, r)):
        off = ap - v[:, None] * ab - w[:, None] * ac
        squared = dot(off, off)
        best = tuple(np.where(squared < best[0], new, old) for new, old in zip((squared, v, w), best))
    return best
