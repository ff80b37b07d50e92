"""What a closed, manifold surface is, counted edge by edge; and the distance of points from a mesh by sampling it."""

import collections

import numpy as np


def assert_closed(vertices, faces):
    """Each edge belongs to two faces that run along it both ways; the faces around each vertex are one fan."""
    directed = collections.Counter((int(a), int(b)) for face in faces for a, b in zip(face, np.roll(face, -1)))
    assert set(directed.values()) == {1}, 'an edge runs twice the same way'
    assert all((b, a) in directed for a, b in directed), 'an edge has one face'
    following = collections.defaultdict(dict)  # around each vertex: from one neighbour to the next
    for face in faces:
        for k in range(3):
            following[int(face[k])][int(face[(k + 1) % 3])] = int(face[(k + 2) % 3])
    for fan in following.values():
        first = here = next(iter(fan))
        for step in range(len(fan)):
            here = fan[here]
            if here == first:
                assert step == len(fan) - 1, 'a vertex where two fans touch'
    assert len(following) == len(vertices), 'a vertex without a face'


def euler(vertices, faces) -> int:
    """V - E + F: 2 of a sphere, 0 of a torus."""
    return len(vertices) - 3 * len(faces) // 2 + len(faces)


def sampled(vertices, faces, count: int, seed: int = 0):
    """(points [count, 3] uniform on a mesh, normals of their faces)."""
    rng, corners = np.random.default_rng(seed), vertices[faces].astype(np.float64)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(cross, axis=-1)
    face = rng.choice(len(faces), count, p=area / area.sum())
    weights = rng.dirichlet([1.0] * 3, count)
    return np.einsum('pk,pkc->pc', weights, corners[face]), (cross / np.maximum(area, 1e-30)[:, None])[face]
