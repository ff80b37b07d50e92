"""From the world of a set to ours: y up, front +z, the object inside [-1, 1]^3.

Up is the axis that the layout states. Where it states none, it is the mean upright of the cameras (as nerfstudio orients by
'up'), or the axis that the layout expects, if that is within `NEAR_AXIS` of it. The front of a z-up world is -y, as in Blender;
of others it is what the turn that brings up to +y makes of it.

| `data.fit` | place and size |
|---|---|
| auto | what the layout states: a factor about the origin of its world; else as `cameras` |
| cameras[:1.1] | the point nearest to all optical axes becomes the origin, the pictures' half-width there `FRAME` (median) |
| a number | positions times that number, about the origin of the set's world |
"""

from typing import NamedTuple

import numpy as np

from t3d.core.errors import UsageError
from t3d.data.layouts import scene
from t3d.geom.cameras import ZUP_FROM_YUP

FRAME = 1.2  # half of what the pictures show across the object: toy has 1.17, SPAD 1.28, and NeRF-synthetic's Lego then fits
NEAR_AXIS = 0.82  # least cosine (35 degrees)
MEET = 0.35  # optical axes that pass a point at this share of their distance look at it
MEETING = 0.9  # least share of cameras that have to look at a point for it to be the object's
TURNS = {  # rotations that bring an axis to +y
    '+x': [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
    '-x': [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],
    '+y': [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    '-y': [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
    '+z': ZUP_FROM_YUP[:3, :3].T.tolist(),
    '-z': [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
}


class Fit(NamedTuple):
    """How the world of a set became ours."""

    world_from_cam: np.ndarray  # float64 [V, 4, 4] in ours
    up: str  # in words
    place: str  # in words
    factor: float  # of positions
    uprightness: dict[str, float]  # by axis of the set's world: mean cosine with the cameras' upright
    frame: float  # the half-width that `cameras` gave the pictures; 0 where the factor is about the world's origin

    def smaller(self, reach: float) -> str:
        """The `data.fit` by which an object that reaches to `reach` ends at 1."""
        return f'cameras:{self.frame / reach:.2f}' if self.frame else f'{self.factor / reach:.3g}'


class Rule(NamedTuple):
    """`data.fit`, read."""

    kind: str  # auto, cameras or factor
    value: float = FRAME  # the half-width of the pictures, or the factor


AUTO = Rule('auto')


def read_rule(text: str | float) -> Rule:
    """`data.fit`: auto, cameras, cameras:1.1 or a positive number."""
    kind, _, number = str(text).strip().lower().rpartition(':')
    if not kind and number in ('auto', 'cameras', ''):
        return Rule(number or 'auto')
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if kind not in ('', 'cameras') or not 1e-9 < value < 1e9:
        raise UsageError(f'data.fit={text!r}: wanted auto, cameras, cameras:{FRAME}, or a factor of positions such as 2.')
    return Rule(kind or 'factor', value)


def fit(seen: scene.Seen, focal: np.ndarray, rule: Rule = AUTO) -> Fit:
    """The cameras of an object in our world.

    Args:
      focal: [V], the focal lengths divided by the (square) picture's size.
      rule: as `read_rule` gives it.
    """
    pose = np.stack([view.world_from_cam for view in seen.views])
    turn, up, uprightness = _upright(pose, seen.up)
    turned = pose.copy()
    turned[:, :3] = turn @ pose[:, :3]
    centre, factor, place, frame = _place(turned, np.asarray(focal, np.float64), rule, seen.scale)
    turned[:, :3, 3] = factor * (turned[:, :3, 3] - centre)
    return Fit(turned, up, place, factor, uprightness, frame)


def _upright(pose: np.ndarray, stated: str) -> tuple[np.ndarray, str, dict[str, float]]:
    mean = -pose[:, :3, 1].mean(0)
    cosines = {f'{sign}{name}': float(mean[k]) * (1 if sign == '+' else -1) for k, name in enumerate('xyz') for sign in '+-'}
    if stated in TURNS:
        return np.array(TURNS[stated], np.float64), f'{stated} by the layout', cosines
    length = float(np.linalg.norm(mean))
    expected = stated.rstrip('?')
    if expected and length > 1e-6 and cosines[expected] > NEAR_AXIS * length:
        return np.array(TURNS[expected], np.float64), f'{expected}, as the cameras stand', cosines
    if length < 0.1:  # cameras of every roll
        axis = expected or '+y'
        return np.array(TURNS[axis], np.float64), f'{axis}, assumed: the cameras stand every way', cosines
    words = ', '.join(f'{x:.2f}' for x in mean / length)
    return _to_y(mean / length), f'({words}), the mean upright of the cameras', cosines


def _to_y(up: np.ndarray) -> np.ndarray:
    """The rotation that brings a unit vector to +y by the nearest way."""
    y = np.array([0.0, 1.0, 0.0])
    axis, cosine = np.cross(up, y), float(up @ y)
    if cosine < -1.0 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    cross = np.array([[0.0, -axis[2], axis[1]], [axis[2], 0.0, -axis[0]], [-axis[1], axis[0], 0.0]])
    return np.eye(3) + cross + cross @ cross / (1.0 + cosine)


def _place(pose, focal, rule: Rule, stated: float | None) -> tuple[np.ndarray, float, str, float]:
    origin = np.zeros(3)
    if rule.kind == 'factor':
        return origin, rule.value, f'positions x {rule.value:g} (data.fit)', 0.0
    if rule.kind == 'auto' and stated is not None:
        return origin, stated, f'positions x {stated:g}, by the layout', 0.0
    point = meeting(pose)
    centre = origin if point is None else point
    half = np.median(np.linalg.norm(pose[:, :3, 3] - centre, axis=1) / (2.0 * focal))
    factor = float(rule.value / half) if half > 1e-9 else 1.0
    rounded = ', '.join(f'{x:.3g}' for x in np.where(np.abs(centre) < 1e-5 * half, 0.0, centre))
    about = 'the origin, for the optical axes meet nowhere' if point is None else f'({rounded})'
    return centre, factor, f'positions about {about}, x {factor:.4g}, by the cameras', rule.value


def meeting(pose: np.ndarray) -> np.ndarray | None:
    """The point [3] nearest to the optical axes of cameras [V, 4, 4], by least squares; None where they do not look at it."""
    position, forward = pose[:, :3, 3], pose[:, :3, 2]
    across = np.eye(3) - forward[:, :, None] * forward[:, None]
    normal = across.sum(0)
    if np.linalg.cond(normal) > 1e4:  # parallel, or one camera alone
        return None
    point = np.linalg.solve(normal, np.einsum('nij,nj->i', across, position))
    ahead = np.einsum('ni,ni->n', point - position, forward)
    aside = np.linalg.norm(point - position - ahead[:, None] * forward, axis=1)
    return point if np.mean(aside < MEET * ahead) >= MEETING else None
