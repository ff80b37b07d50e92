"""Camera labels of posed pictures: 25 numbers each, and whether they can be meant.

A label is world_from_cam row-major in OpenCV axes, then the intrinsics divided by the image size (geom.cameras.from_eg3d). The
object lies about the origin inside [-1, 1]^3. Sets in other conventions are told by what their cameras would see:

| labels | would see | told by |
|---|---|---|
| OpenGL or Blender axes | nothing: they look away | the direction of the origin |
| camera-from-world matrices | a panorama from one place | how far the cameras turn and how far they move |
| millimetres, centimetres | a speck | the distance, beside the field of view |
| PyTorch3D axes, a world with y down | the object upside down | which side of the pictures is up |

What is accepted: an object off the middle of the picture or partly out of it, cameras of any roll that are not all upside down,
principal points up to `CENTRE` off, distances from `NEAREST` to where [-1, 1] spans 1 / `SPANS` of the picture; and a share of
`STRAYS` of the labels that look elsewhere, which are named. A world with z up cannot be told from its labels: it is a set of
objects that lie on their backs.
"""

import sys

import numpy as np

from t3d.core.errors import UsageError
from t3d.geom import cameras

LABEL = 25  # numbers
ORTHONORMAL = 1e-3  # largest |R^T R - 1| that files with rounded numbers may have
CENTRE = 0.05  # largest distance of the principal point from 0.5
SPREAD = 0.01  # labels no further apart, of rotation and of position / distance, count as one pose
STRAYS = 0.05  # share of labels that may look elsewhere: poses of estimators
NEAREST = 0.3  # median distance from the origin: nearer cameras are inside of the object
SPANS = 5.0  # the picture shows at most so many times [-1, 1] where the origin is
TURN = 0.05  # radians that the direction of the origin varies by before cameras can be said to turn in one place
UPSIDE_DOWN = 0.2  # least cosine between the world's vertical and the camera's by which this one is told
MEETING = 0.1  # axes that pass a point at this share of their distance look at it


def concatenate(world_from_cam: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """float32 [N, 25] of [N, 4, 4] and [N, 3, 3]: geom.cameras.to_eg3d without JAX."""
    count = len(world_from_cam)
    return np.concatenate([world_from_cam.reshape(count, 16), intrinsics.reshape(count, 9)], 1).astype(np.float32)


def parts(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(world_from_cam [N, 4, 4], intrinsics [N, 3, 3]) of labels [N, 25]: `concatenate` backwards."""
    return labels[:, :16].reshape(-1, 4, 4), labels[:, 16:].reshape(-1, 3, 3)


def mirrored(table: np.ndarray) -> np.ndarray:
    """The labels [N, 25] of horizontally mirrored images."""
    other = table.copy()
    other[:, :16] = cameras.mirror(table[:, :16].reshape(-1, 4, 4)).reshape(-1, 16)
    other[:, 17] = -table[:, 17]  # skew
    other[:, 18] = 1.0 - table[:, 18]  # principal point
    return other


def check_views(record: dict, where: str) -> None:
    """Raises UsageError where the views of a multi-view record are none of an object: world_from_cam [V, 4, 4], intrinsics."""
    table = concatenate(np.asarray(record['world_from_cam']), np.asarray(record['intrinsics']))
    check_labels(np.float64(table), [f'view {k} of {record["name"]}' for k in range(len(table))], where)


def check_labels(labels: np.ndarray, names: list[str], where: str) -> None:
    """Raises UsageError at the first of labels [N, 25] that is no camera looking through the middle of its image, and where
    the cameras together are those of another convention.
    """
    pose, lens = parts(labels)
    rotation = pose[:, :3, :3]
    finite = np.isfinite(labels).all(1)
    if not finite.all():
        first = int(np.argmin(finite))
        raise UsageError(
            f'{where}, label of {names[first]}: NaN or infinite numbers. ({int((~finite).sum())} of {len(labels)} labels.)'
        )
    off = np.abs(rotation.transpose(0, 2, 1) @ rotation - np.eye(3)).max((1, 2))
    determinant = np.linalg.det(rotation)
    last_rows = np.abs(pose[:, 3] - [0, 0, 0, 1]).max(1) + np.abs(lens[:, 2] - [0, 0, 1]).max(1)
    centre = np.abs(lens[:, :2, 2] - 0.5).max(1)
    focal = np.minimum(lens[:, 0, 0], lens[:, 1, 1])
    for wrong, say in (
        (
            last_rows > 1e-4,
            lambda k: (
                f'the last rows are {pose[k, 3].tolist()} and {lens[k, 2].tolist()}, wanted [0, 0, 0, 1] and [0, 0, 1]: is '
                'the label row-major, pose before intrinsics?'
            ),
        ),
        (
            off > ORTHONORMAL,
            lambda k: f'the rotation is not orthonormal: |R^T R - 1| is {off[k]:.3g}. Remove scale and shear from the pose.',
        ),
        (
            determinant < 0.0,
            lambda k: (
                f'the rotation has determinant {determinant[k]:.3f}, wanted 1: a mirrored frame. From OpenGL or Blender negate '
                'two columns (y and z), not one.'
            ),
        ),
        (
            centre > CENTRE,
            lambda k: (
                f'the principal point is ({lens[k, 0, 2]:.4g}, {lens[k, 1, 2]:.4g}), wanted about 0.5: '
                + ('divide the intrinsics by the image size.' if centre[k] > 2.0 else 'crop the pictures about it.')
            ),
        ),
        (focal <= 0.0, lambda k: f'the focal lengths are {lens[k, 0, 0]:.4g} and {lens[k, 1, 1]:.4g}, wanted positive.'),
    ):
        if wrong.any():
            first = int(np.argmax(wrong))
            raise UsageError(f'{where}, label of {names[first]}: {say(first)} ({int(wrong.sum())} of {len(labels)} labels.)')
    check_meant(labels, where)


def check_meant(labels: np.ndarray, where: str, render=()) -> None:
    """Raises UsageError where labels [N, 25], each a camera, are together in another convention; it names what mends them.

    A few that look elsewhere are named on stderr.

    Args:
      render: a config's section of this name: where it fixes near and far, the origin has to lie between them.
    """
    labels = np.asarray(labels, np.float64)
    pose, focal = labels[:, :16].reshape(-1, 4, 4), 0.5 * (labels[:, 16] + labels[:, 20])
    distance = np.linalg.norm(pose[:, :3, 3], axis=1)
    _check_distance(distance, focal, where)
    if 'limits' in render and render.limits == 'fixed' and not render.near < np.median(distance) < render.far:
        raise UsageError(
            f'{where}: the cameras are {np.median(distance):.4g} from the origin (median), but rays are followed from '
            f'render.near={render.near} to render.far={render.far} only: set these about the object, or render.limits=box.'
        )
    astray = _astray(pose, focal)
    if astray.mean() > STRAYS or _panorama(pose):
        place = _meeting(pose)
        fix = next((text for text, mend in MENDS if _sees(mend(pose), focal)), None)
        what = 'stand in one place and turn' if _panorama(pose) else 'do not look at the object'
        shares = f'{int(astray.sum())} of {len(labels)} cannot see the origin, about which it has to lie'
        hint = f'They look like labels for {fix}.' if fix else 'Move the world so that it lies there, or mend the poses.'
        if place is not None:
            hint = f'They look at ({", ".join(f"{x:.3g}" for x in place)}): subtract this point from the positions.'
        raise UsageError(f'{where}: the cameras {what} ({shares}). {hint} Wanted: world_from_cam in OpenCV axes.')
    if astray.any():
        first = int(np.argmax(astray))
        print(
            f'note: {where}: {int(astray.sum())} of {len(labels)} cameras cannot see the origin, first label {first}',
            file=sys.stderr,
        )
    down = pose[:, 1, 1]  # world y of the camera's down: nearly 0 where it looks straight down or up
    down = down[np.abs(down) > UPSIDE_DOWN]
    if len(down) and np.mean(down > 0.0) > 1.0 - STRAYS:
        raise UsageError(
            f'{where}: {int((down > 0.0).sum())} of {len(labels)} cameras hang upside down in a world with y up. In '
            "PyTorch3D's axes (x left, y up) they are labels for geom.cameras.from_pytorch3d; of a world with y down turn the "
            'world by half a turn about x: negate the second and third row of world_from_cam.'
        )


def _check_distance(distance: np.ndarray, focal: np.ndarray, where: str) -> None:
    middle, span = float(np.median(distance)), float(np.median(distance / (2.0 * focal)))
    if middle >= NEAREST and span <= SPANS:
        return
    powers = sorted((10.0**k for k in range(-6, 7)), key=lambda factor: abs(np.log10(max(middle, 1e-12) * factor / 2.0)))
    factor = next((f for f in powers if middle * f >= NEAREST and span * f <= SPANS), 2.0 / max(span, 1e-12))
    mend = f'Are they in other units? geom.cameras.scaled(world_from_cam, {factor:.3g}) brings them to {middle * factor:.3g}.'
    if middle <= 1e-9:
        mend = 'Are the positions missing?'
    raise UsageError(
        f'{where}: the cameras are {middle:.4g} from the origin (median), where their pictures are {2.0 * span:.3g} wide. '
        f'The object has to fit [-1, 1]^3: wanted at least {NEAREST} from it, at most {2.0 * SPANS:.3g} wide. {mend}'
    )


def _directions(pose: np.ndarray) -> np.ndarray:
    """Unit directions [N, 3] of the origin in the axes of cameras [N, 4, 4]."""
    toward = -np.einsum('nji,nj->ni', pose[:, :3, :3], pose[:, :3, 3])
    return toward / np.maximum(np.linalg.norm(toward, axis=1, keepdims=True), 1e-12)


def _astray(pose: np.ndarray, focal: np.ndarray) -> np.ndarray:
    """bool [N]: whether the unit ball about the origin is wholly out of the cone about the picture's corners."""
    distance = np.linalg.norm(pose[:, :3, 3], axis=1)
    corner = np.arctan((np.sqrt(0.5) + CENTRE) / focal)
    return np.arccos(np.clip(_directions(pose)[:, 2], -1.0, 1.0)) > corner + np.arcsin(
        np.minimum(1.0 / np.maximum(distance, 1e-12), 1.0)
    )


def _meeting(pose: np.ndarray) -> np.ndarray | None:
    """The point [3] that all cameras look at, the nearest one to their axes; None where there is none in front of them."""
    position, forward = pose[:, :3, 3], pose[:, :3, 2]
    across = np.eye(3) - forward[:, :, None] * forward[:, None]  # projections onto the planes that the axes stand on
    normal = across.sum(0)
    if np.linalg.cond(normal) > 1e4:  # parallel axes meet nowhere
        return None
    point = np.linalg.solve(normal, np.einsum('nij,nj->i', across, position))
    ahead = np.einsum('ni,ni->n', point - position, forward)
    aside = np.linalg.norm(point - position - ahead[:, None] * forward, axis=1)
    meet = np.mean(aside < MEETING * ahead) >= 1.0 - STRAYS
    return point if meet and np.median(ahead) >= NEAREST else None  # cameras that turn in one place meet where they stand


def _panorama(pose: np.ndarray) -> bool:
    """Whether the cameras turn far more than they move around the origin: so do those of inverted matrices."""
    position = pose[:, :3, 3] / np.maximum(np.linalg.norm(pose[:, :3, 3], axis=1, keepdims=True), 1e-12)
    moves, turns = (np.linalg.norm(way - way.mean(0), axis=1).mean() for way in (position, _directions(pose)))
    return bool(turns > TURN and moves < 0.5 * turns)


def _sees(pose: np.ndarray, focal: np.ndarray) -> bool:
    return _astray(pose, focal).mean() <= STRAYS and not _panorama(pose)


MENDS = (  # what a message proposes, and the poses it makes of those given; turning the world changes nothing that is seen
    ('geom.cameras.from_opengl (of a z-up world: from_blender)', cameras.from_opengl),
    ('geom.cameras.from_colmap: they are camera-from-world', cameras.from_colmap),
    (
        'geom.cameras.from_opengl(from_colmap(...)) (of a z-up world: from_zero123): they are camera-from-world in OpenGL axes',
        lambda pose: cameras.from_opengl(cameras.from_colmap(pose)),
    ),
)


def check_varied(labels: np.ndarray, where: str) -> None:
    """Raises UsageError if labels [N, 25] are all of one pose: nothing then tells a shape from a painted board."""
    distance = max(float(np.linalg.norm(labels[0, [3, 7, 11]])), 1e-6)
    scale = np.ones(16, np.float32)
    scale[[3, 7, 11]] = distance
    if (np.abs(labels[:, :16] - labels[0, :16]) / scale).max() <= SPREAD:
        raise UsageError(
            f'{where}: all {len(labels)} labels are of one pose. A set seen from one side alone (single-view frontal) is '
            'refused: its geometry degenerates to a billboard. Give images with different camera poses, or their true poses.'
        )
