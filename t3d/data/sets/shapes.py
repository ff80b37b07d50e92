"""`toy`: procedural captioned scenes with exact colour, depth, normals and masks, by closed-form ray casting.

A scene holds one object ("a large red cube") or two in a relation ("a green cone on top of a black cylinder"). It is a pure
function of its caption, and a view of it a pure function of (seed, index): nothing is stored, nothing is downloaded. It is
the ground truth that renderers, fields and generators are tested on.

Held out by rule: shape s of `SHAPES` never appears in training with colours 2s and 2s + 1 of `COLOURS`, so 8 of the 32 pairs
are unseen although every colour is seen with three shapes and every shape with six colours; a scene of two objects is held
out if either object is. Relations are those of the front view: left is -x, in front is +z.
"""

import math
from typing import NamedTuple

import numpy as np

from t3d.core.config import unknown
from t3d.core.errors import UsageError

SPLITS = ('train', 'test', 'all')
SHAPES = ('sphere', 'cube', 'cylinder', 'cone')
COLOURS = {
    'red': (0.86, 0.12, 0.12),
    'orange': (0.95, 0.50, 0.08),
    'yellow': (0.95, 0.85, 0.12),
    'green': (0.15, 0.62, 0.20),
    'blue': (0.12, 0.28, 0.85),
    'purple': (0.50, 0.16, 0.65),
    'white': (0.95, 0.95, 0.95),
    'black': (0.08, 0.08, 0.08),
}
SIZES = {'large': 1.0, 'small': 0.6}
RELATIONS = ('on top of', 'to the left of', 'in front of')
SHORTER = {'on top of': 'on', 'to the left of': 'left of', 'in front of': 'in front of'}
RADIUS, FOV = 3.2, 0.7027699  # camera distance and field of view (40.27 degrees) of every view
AMBIENT, SKY, KEY = 0.55, 0.15, 0.30  # shade = AMBIENT + SKY n_y + KEY max(n . light, 0): no view dependence
LIGHT = np.array([0.5, 0.8, 0.6]) / math.sqrt(0.5**2 + 0.8**2 + 0.6**2)

SPHERE_RADIUS = 0.75
CUBE_HALF = 0.52
CYLINDER_RADIUS, CYLINDER_HALF = 0.50, 0.65
CONE_RADIUS, CONE_HALF = 0.62, 0.65
EXTENT = {  # radius (of the cube: half a side) and half the height of each
    'sphere': (SPHERE_RADIUS, SPHERE_RADIUS),
    'cube': (CUBE_HALF, CUBE_HALF),
    'cylinder': (CYLINDER_RADIUS, CYLINDER_HALF),
    'cone': (CONE_RADIUS, CONE_HALF),
}
MOST = 2  # objects of a scene
HALF_HEIGHT = {shape: half for shape, (_, half) in EXTENT.items()}
PAIR_SCALE, PAIR_OFFSET = 0.55, 0.45
WORDS = tuple(sorted({'a', 'an', *SHAPES, *COLOURS, *SIZES, *(word for relation in RELATIONS for word in relation.split())}))


class Object(NamedTuple):
    """A solid of EXTENT times `scale` and `stretch` along x, y, z, turned by `turn` radians from +z to +x, moved to `centre`.

    `rgb` is the colour in [0, 1] where it is not that of COLOURS.
    """

    shape: str
    colour: str
    scale: float
    centre: tuple[float, float, float]
    stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)
    turn: float = 0.0
    rgb: tuple[float, float, float] | None = None


class Scene(NamedTuple):
    """Objects, the captions that name them (the plainest first), and the labels an oracle scores."""

    objects: tuple[Object, ...]
    captions: tuple[str, ...]
    attributes: dict[str, str]


def article(word: str) -> str:
    return 'an' if word[0] in 'aeiou' else 'a'


def is_held_out(shape: str, colour: str) -> bool:
    return list(COLOURS).index(colour) // 2 == SHAPES.index(shape)


def single(shape: str, colour: str, size: str = 'large') -> Scene:
    """One object at the origin. "a red cube" means the large one."""
    captions = (f'a {size} {colour} {shape}', f'{size} {colour} {shape}')
    if size == 'large':
        captions = (f'{article(colour)} {colour} {shape}', f'{colour} {shape}', *captions)
    thing = Object(shape, colour, SIZES[size], (0.0, 0.0, 0.0))
    return Scene((thing,), captions, {'shape': shape, 'colour': colour, 'size': size})


def pair(first: tuple[str, str], relation: str, second: tuple[str, str]) -> Scene:
    """Two objects, each (shape, colour): the first in `relation` to the second, resting on each other or on a floor."""
    (shape_a, colour_a), (shape_b, colour_b) = first, second
    half_a, half_b = PAIR_SCALE * HALF_HEIGHT[shape_a], PAIR_SCALE * HALF_HEIGHT[shape_b]
    floor = -max(half_a, half_b)
    if relation == 'on top of':
        centre_a, centre_b = (0.0, half_b, 0.0), (0.0, -half_a, 0.0)
    elif relation == 'to the left of':
        centre_a, centre_b = (-PAIR_OFFSET, floor + half_a, 0.0), (PAIR_OFFSET, floor + half_b, 0.0)
    elif relation == 'in front of':
        centre_a, centre_b = (0.0, floor + half_a, PAIR_OFFSET), (0.0, floor + half_b, -PAIR_OFFSET)
    else:
        raise ValueError(f'unknown relation {relation!r}: wanted one of {RELATIONS}')
    objects = (Object(shape_a, colour_a, PAIR_SCALE, centre_a), Object(shape_b, colour_b, PAIR_SCALE, centre_b))
    things = f'{article(colour_a)} {colour_a} {shape_a}', f'{article(colour_b)} {colour_b} {shape_b}'
    captions = (
        f'{things[0]} {relation} {things[1]}',
        f'{things[0]} {SHORTER[relation]} {things[1]}',
        f'{colour_a} {shape_a} {relation} {colour_b} {shape_b}',
    )
    labels = {'shape': shape_a, 'colour': colour_a, 'relation': relation, 'shape_b': shape_b, 'colour_b': colour_b}
    return Scene(objects, captions, labels)


def singles(split: str) -> list[Scene]:
    """`train` (48 scenes), `test` (16, held-out pairs) or `all` (64), in a fixed order."""
    things = [(shape, colour) for shape in SHAPES for colour in COLOURS if _belongs(split, is_held_out(shape, colour))]
    return [single(shape, colour, size) for shape, colour in things for size in SIZES]


def pairs(split: str) -> list[Scene]:
    """`train` (1,728 scenes), `test` (1,344) or `all` (3,072), in a fixed order."""
    things = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    return [
        pair(first, relation, second)
        for relation in RELATIONS
        for first in things
        for second in things
        if _belongs(split, is_held_out(*first) or is_held_out(*second))
    ]


def _belongs(split: str, held_out: bool) -> bool:
    if split not in SPLITS:
        raise UsageError(unknown(split, SPLITS, 'split of toy (data.split)'))
    return split == 'all' or (split == 'test') == held_out


# ---------------------------------------------------------------------------------------------------------- ray casting


def cast(scene: Scene, origins: np.ndarray, directions: np.ndarray):
    """First hits of rays with a scene.

    Args:
      origins, directions: float64 [R, 3], world; directions of unit length.
    Returns:
      distance [R] (inf where missed), normal [R, 3] (outward), object index [R] (-1 where missed).
    """
    best = np.full(len(origins), np.inf)
    normal = np.zeros_like(origins)
    which = np.full(len(origins), -1)
    for k, thing in enumerate(scene.objects):
        local = (origins - np.asarray(thing.centre)) / thing.scale
        cast_one = _HIT[thing.shape] if _is_plain(thing) else _deformed(thing)
        distance, local_normal = cast_one(local, directions)
        distance = distance * thing.scale
        closer = distance < best
        best = np.where(closer, distance, best)
        normal = np.where(closer[:, None], local_normal, normal)
        which = np.where(closer, k, which)
    return best, normal, which


def _is_plain(thing: Object) -> bool:
    return thing.stretch == (1.0, 1.0, 1.0) and thing.turn == 0.0


def _deformed(thing: Object):
    """First hits with a solid that is stretched, then turned about y: rays are brought to the plain one, normals back."""
    cos, sin = math.cos(thing.turn), math.sin(thing.turn)
    turned = np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])
    stretch = np.asarray(thing.stretch)

    def cast_one(o, d):
        o, d = (o @ turned) / stretch, (d @ turned) / stretch
        length = np.linalg.norm(d, axis=-1)
        distance, normal = _HIT[thing.shape](o, d / length[:, None])
        normal = (normal / stretch) @ turned.T
        return distance / length, normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)

    return cast_one


def _nearest(candidates):
    """The smallest positive of several (distance, normal) answers."""
    distance, normal = candidates[0]
    for other, other_normal in candidates[1:]:
        closer = other < distance
        distance, normal = np.where(closer, other, distance), np.where(closer[:, None], other_normal, normal)
    return distance, normal


def _roots(a, half_b, c):
    """Both roots of a t^2 + 2 half_b t + c, ordered; inf where there are none."""
    discriminant = half_b * half_b - a * c
    with np.errstate(divide='ignore', invalid='ignore'):
        root = np.sqrt(discriminant)
        low, high = (-half_b - root) / a, (-half_b + root) / a
    none = ~(discriminant >= 0) | (a == 0)
    low, high = np.where(none, np.inf, low), np.where(none, np.inf, high)
    return np.minimum(low, high), np.maximum(low, high)


def _ahead(distance, inside):
    return np.where((distance > 1e-9) & inside & np.isfinite(distance), distance, np.inf)


def _at(o, d, distance):
    return o + d * np.where(np.isfinite(distance), distance, 0.0)[:, None]


def _sphere(o, d):
    low, high = _roots(np.ones(len(o)), np.sum(o * d, -1), np.sum(o * o, -1) - SPHERE_RADIUS**2)
    distance = np.minimum(_ahead(low, True), _ahead(high, True))
    return distance, _at(o, d, distance) / SPHERE_RADIUS


def _cube(o, d):
    with np.errstate(divide='ignore', invalid='ignore'):
        first, second = (-CUBE_HALF - o) / d, (CUBE_HALF - o) / d
    near, far = np.minimum(first, second), np.maximum(first, second)
    enter, leave = near.max(-1), far.min(-1)
    distance = _ahead(np.where(enter > 1e-9, enter, leave), enter <= leave)
    point = _at(o, d, distance)
    face = np.abs(point).argmax(-1)
    normal = np.zeros_like(o)
    rows = np.arange(len(o))
    normal[rows, face] = np.sign(point[rows, face])
    return distance, normal


def _disc(o, d, height, radius, up):
    with np.errstate(divide='ignore', invalid='ignore'):
        distance = (height - o[:, 1]) / d[:, 1]
    point = _at(o, d, distance)
    inside = point[:, 0] ** 2 + point[:, 2] ** 2 <= radius**2
    return _ahead(distance, inside), np.broadcast_to([0.0, up, 0.0], o.shape)


def _cylinder(o, d):
    flat_o, flat_d = o[:, [0, 2]], d[:, [0, 2]]
    roots = _roots(np.sum(flat_d**2, -1), np.sum(flat_o * flat_d, -1), np.sum(flat_o**2, -1) - CYLINDER_RADIUS**2)
    answers = []
    for root in roots:
        point = _at(o, d, root)
        answers.append((_ahead(root, np.abs(point[:, 1]) <= CYLINDER_HALF), point * [1.0, 0.0, 1.0] / CYLINDER_RADIUS))
    answers += [_disc(o, d, CYLINDER_HALF, CYLINDER_RADIUS, 1.0), _disc(o, d, -CYLINDER_HALF, CYLINDER_RADIUS, -1.0)]
    return _nearest(answers)


def _cone(o, d):
    slope = CONE_RADIUS / (2.0 * CONE_HALF)  # radius lost for each unit of height
    depth_o, depth_d = CONE_HALF - o[:, 1], -d[:, 1]  # distance below the apex
    a = d[:, 0] ** 2 + d[:, 2] ** 2 - (slope * depth_d) ** 2
    half_b = o[:, 0] * d[:, 0] + o[:, 2] * d[:, 2] - slope**2 * depth_o * depth_d
    c = o[:, 0] ** 2 + o[:, 2] ** 2 - (slope * depth_o) ** 2
    answers = []
    for root in _roots(a, half_b, c):
        point = _at(o, d, root)
        normal = point * [1.0, 0.0, 1.0]
        normal[:, 1] = slope * (slope * (CONE_HALF - point[:, 1]))
        normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
        answers.append((_ahead(root, np.abs(point[:, 1]) <= CONE_HALF), normal))
    return _nearest([*answers, _disc(o, d, -CONE_HALF, CONE_RADIUS, -1.0)])


_HIT = {'sphere': _sphere, 'cube': _cube, 'cylinder': _cylinder, 'cone': _cone}


def light(normal: np.ndarray) -> np.ndarray:
    """Brightness [R], from 0.4 to 1, of outward normals [R, 3]: hemispheric ambient and one fixed light."""
    return AMBIENT + SKY * normal[:, 1] + KEY * np.maximum(normal @ LIGHT, 0.0)


def shade(albedo: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Lit colour [R, 3] in [0, 1], the same from every side."""
    return np.clip(albedo * light(normal)[:, None], 0.0, 1.0)


def palette(scene: Scene) -> np.ndarray:
    """[objects, 3] colours in [0, 1]."""
    return np.array([thing.rgb or COLOURS[thing.colour] for thing in scene.objects])


def table(scene: Scene) -> np.ndarray:
    """The scene as rows of `t3d.geom.solids.ROW`, float32 [MOST, 9]; rows without an object have kind -1.

    Raises: ValueError for objects that are stretched or turned, of which a row has no numbers.
    """
    if not all(map(_is_plain, scene.objects)):
        raise ValueError('a row of solids has no stretch and no turn')
    rows = np.zeros((MOST, 9), np.float32)
    rows[:, 0] = -1.0
    for row, thing, colour in zip(rows, scene.objects, palette(scene)):
        radius, half = EXTENT[thing.shape]
        row[:] = SHAPES.index(thing.shape), *thing.centre, radius * thing.scale, half * thing.scale, *colour
    return rows


LAMP = np.array([AMBIENT, SKY, KEY, *LIGHT], np.float32)  # as t3d.geom.solids.LAMP
