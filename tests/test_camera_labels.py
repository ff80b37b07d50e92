"""Cameras that cannot be meant: sets of other conventions are refused, with the converter that mends them; true ones pass."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.core.errors import UsageError
from t3d.data.sets import camera_labels, images, toy
from t3d.geom import cameras


def aimed(position, target, roll=0.0) -> np.ndarray:
    """world_from_cam [N, 4, 4] of cameras at [N, 3] that look at [N, 3], upright but for `roll`; in float64, without t3d."""
    forward = (target - position) / np.linalg.norm(target - position, axis=1, keepdims=True)
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    down = np.cross(forward, right)
    roll = np.broadcast_to(roll, len(position))[:, None]
    pose = np.tile(np.eye(4), (len(position), 1, 1))
    pose[:, :3, 0], pose[:, :3, 1] = np.cos(roll) * right + np.sin(roll) * down, np.cos(roll) * down - np.sin(roll) * right
    pose[:, :3, 2], pose[:, :3, 3] = forward, position
    return pose


def ball(count, radius, yaw, pitch, seed=0) -> np.ndarray:
    random = np.random.default_rng(seed)
    yaw, pitch = random.uniform(-yaw, yaw, count), random.uniform(*pitch, count)
    return radius * np.stack([np.cos(pitch) * np.sin(yaw), np.sin(pitch), np.cos(pitch) * np.cos(yaw)], -1)


def lens(focal, count, x=0.5, y=0.5) -> np.ndarray:
    return np.broadcast_to([[focal, 0.0, x], [0.0, focal, y], [0.0, 0.0, 1.0]], (count, 3, 3))


def sets() -> dict[str, np.ndarray]:
    """Labels [N, 25] as real sets have them."""
    random, n = np.random.default_rng(1), 60
    zero, all_round = np.zeros((n, 3)), np.pi
    face = ball(n, 2.7, 0.5, (-0.3, 0.3))
    wide = ball(n, 1.2, all_round, (0.0, 1.2))
    made = {
        'FFHQ': (aimed(face, zero), lens(4.2647, n)),
        'FFHQ about its pivot': (aimed(face, zero + [0.0, 0.0, 0.2]), lens(4.2647, n)),
        'cats within 10 degrees of the front': (aimed(ball(n, 2.7, 0.17, (-0.15, 0.15)), zero), lens(4.2647, n)),
        'ShapeNet cars': (aimed(wide, zero), lens(1.025390625, n)),
        'cars at 1.7': (aimed(1.7 / 1.2 * wide, zero), lens(1.025390625, n)),
        'NeRF synthetic': (aimed(ball(n, 4.03, all_round, (0.0, 1.5)), zero), lens(1.39, n)),
        'from all sides and below': (aimed(ball(n, 2.0, all_round, (-1.5, 1.5)), zero), lens(1.094, n)),
        'from above alone': (aimed(ball(n, 3.0, all_round, (1.4, 1.56)), zero), lens(1.2, n)),
        'of any roll': (aimed(wide * 2.0, zero, random.uniform(-3.1, 3.1, n)), lens(1.4, n)),
        'hand-held, the object off the middle': (
            aimed(2.0 * wide + random.normal(0, 0.2, (n, 3)), random.normal(0, 0.3, (n, 3))),
            lens(1.2, n),
        ),
        'cropped off the middle': (aimed(face, zero), lens(4.2647, n, 0.46, 0.54)),
        'two cameras': (aimed(np.array([[0.0, 0.0, 2.7], [1.5, 0.0, 2.2]]), zero[:2]), lens(2.0, 2)),
        'one camera': (aimed(np.array([[0.5, 0.2, 2.7]]), zero[:1]), lens(4.2647, 1)),
        'a long lens from afar': (aimed(ball(n, 40.0, 1.0, (0.0, 0.5)), zero), lens(15.0, n)),
        'toy': toy.camera_arrays(random.uniform(-3, 3, n), random.uniform(-0.2, 0.9, n), 3.2, 0.7),
    }
    return {name: (np.asarray(pose, np.float64), np.asarray(k, np.float64)) for name, (pose, k) in made.items()}


SETS = sets()
GL, ZUP = np.diag([1.0, -1.0, -1.0, 1.0]), np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
WRONG = {  # how a set is spoilt, what the message names, and what it names done to the labels
    'OpenGL': (lambda pose: pose @ GL, 'labels for geom.cameras.from_opengl ', cameras.from_opengl),
    'Blender': (lambda pose: ZUP @ pose @ GL, 'from_opengl .of a z-up world: from_blender', cameras.from_blender),
    'COLMAP': (np.linalg.inv, 'labels for geom.cameras.from_colmap: they are camera-from-world', cameras.from_colmap),
    'OpenGL, camera from world': (
        lambda pose: np.linalg.inv(pose @ GL),
        r'labels for geom.cameras.from_opengl\(from_colmap\(\.\.\.\)\) ',
        lambda pose: cameras.from_opengl(cameras.from_colmap(pose)),
    ),
    'Zero-1-to-3': (
        lambda pose: np.linalg.inv(ZUP @ pose @ GL),
        'of a z-up world: from_zero123',
        lambda pose: cameras.from_zero123(pose[:, :3]),
    ),
    'PyTorch3D': (
        lambda pose: pose @ np.diag([-1.0, -1.0, 1.0, 1.0]),
        'upside down .* geom.cameras.from_pytorch3d',
        cameras.from_pytorch3d,
    ),
    'y down': (
        lambda pose: np.diag([1.0, -1.0, -1.0, 1.0]) @ pose,
        'negate the second and third row',
        lambda pose: pose * [[1], [-1], [-1], [1]],
    ),
}
BLIND = {  # where labels alone cannot tell, and why
    'Blender': (),
    'Zero-1-to-3': (),
    'COLMAP': ('one camera', 'two cameras'),
    'OpenGL, camera from world': ('one camera', 'two cameras'),
    'PyTorch3D': ('of any roll', 'from above alone'),
    'y down': ('of any roll', 'from above alone'),
    'OpenGL': (),
}


def check(pose, intrinsics) -> np.ndarray:
    table = np.concatenate([np.reshape(pose, (-1, 16)), np.reshape(intrinsics, (-1, 9))], 1)
    camera_labels.check_labels(table, [f'{k}.png' for k in range(len(table))], 'the set')
    return table


@pytest.mark.parametrize('name', SETS)
def test_true_sets_pass(name, capsys):
    check(*SETS[name])
    assert not capsys.readouterr().err


@pytest.mark.parametrize('wrong', WRONG)
@pytest.mark.parametrize('name', SETS)
def test_other_conventions_are_refused_with_what_mends_them(name, wrong):
    spoil, message, mend = WRONG[wrong]
    pose, intrinsics = SETS[name]
    if name in BLIND[wrong]:
        return
    with pytest.raises(UsageError, match=f'^the set: the cameras .*{message}|^the set: .* cameras hang .*{message}'):
        check(spoil(pose), intrinsics)
    mended = np.asarray(mend(spoil(pose)))
    np.testing.assert_allclose(mended, pose, atol=1e-4)
    check(mended, intrinsics)


@pytest.mark.parametrize('number', [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(number):
    pose, intrinsics = SETS[next(iter(SETS))]
    for spoilt in (0, 1):
        arrays = [np.array(pose), np.array(intrinsics)]
        arrays[spoilt][2, 0, 0] = number
        with pytest.raises(UsageError, match=r'the set, label of 2\.png: NaN or infinite numbers\. \(1 of '):
            check(*arrays)


@pytest.mark.parametrize(
    'factor, unit', [(1000.0, 'millimetres'), (100.0, 'centimetres'), (39.37, 'inches'), (0.001, 'kilometres')]
)
@pytest.mark.parametrize('name', SETS)
def test_other_units_are_refused_with_the_factor(name, factor, unit):
    pose, intrinsics = SETS[name]
    spoilt = cameras.scaled(pose, factor)
    with pytest.raises(UsageError, match=r'the set: the cameras are .* from the origin .*scaled\(world_from_cam, ') as error:
        check(spoilt, intrinsics)
    named = float(str(error.value).split('scaled(world_from_cam, ')[1].split(')')[0])
    check(cameras.scaled(spoilt, named), intrinsics)
    if unit in ('millimetres', 'kilometres') and name != 'a long lens from afar':
        assert named == pytest.approx(1.0 / factor)


def test_units_and_axes_both_wrong_are_told_one_after_the_other():
    pose, intrinsics = SETS['FFHQ']
    spoilt = cameras.scaled(np.linalg.inv(pose), 1000.0)
    with pytest.raises(UsageError, match='0.001'):
        check(spoilt, intrinsics)
    spoilt = cameras.scaled(spoilt, 0.001)
    with pytest.raises(UsageError, match='from_colmap'):
        check(spoilt, intrinsics)
    check(cameras.from_colmap(spoilt), intrinsics)


def test_positions_that_are_missing_and_objects_elsewhere():
    pose, intrinsics = SETS['toy']
    missing, moved = pose.copy(), pose.copy()
    missing[:, :3, 3] = 0.0
    with pytest.raises(UsageError, match='the cameras are 0 from the origin.*Are the positions missing'):
        check(missing, intrinsics)
    moved[:, :3, 3] += [0.0, 0.0, 12.0]
    with pytest.raises(UsageError, match=r'They look at \(.*, .*, 12\): subtract this point from the positions'):
        check(moved, intrinsics)
    scattered = pose.copy()
    scattered[:, :3, :3] = pose[np.random.default_rng(0).permutation(60), :3, :3]
    with pytest.raises(UsageError, match='do not look at the object .* Move the world so that it lies there, or mend'):
        check(scattered, intrinsics)


def test_a_few_strays_of_an_estimator_are_named_and_more_are_refused(capsys):
    pose, intrinsics = (np.concatenate([part] * 2) for part in SETS['FFHQ'])
    pose[[7, 30]] = pose[[7, 30]] @ GL
    check(pose, intrinsics)
    assert 'note: the set: 2 of 120 cameras cannot see the origin, first label 7' in capsys.readouterr().err
    pose[40:60] = pose[40:60] @ GL
    with pytest.raises(UsageError, match='22 of 120 cannot see the origin'):
        check(pose, intrinsics)


@settings(max_examples=150, deadline=None)
@given(
    radius=st.floats(1.0, 6.0),
    focal=st.floats(0.8, 6.0),
    yaw=st.floats(0.5, np.pi),
    pitch=st.floats(-0.6, 0.6),
    aim=st.floats(0.0, 0.04),
    wrong=st.sampled_from(['OpenGL', 'Blender', 'COLMAP', 'OpenGL, camera from world', 'Zero-1-to-3']),
    seed=st.integers(0, 99),
)
def test_any_set_about_an_object_passes_and_spoilt_does_not(radius, focal, yaw, pitch, aim, wrong, seed):
    if radius / (2.0 * focal) > 4.5:
        focal = radius / 9.0
    position = ball(24, radius, yaw, (pitch - 0.3, pitch + 0.3), seed)
    pose, intrinsics = aimed(position, np.random.default_rng(seed).normal(0.0, aim, (24, 3))), lens(focal, 24)
    check(pose, intrinsics)
    with pytest.raises(UsageError, match=WRONG[wrong][1]):
        check(WRONG[wrong][0](pose), intrinsics)


def test_the_reader_of_sets_checks(tmp_path):
    pose, intrinsics = SETS['toy']
    table = camera_labels.concatenate(pose @ GL, intrinsics)
    records = [{'image': np.zeros((4, 4, 3), np.uint8), 'label': row} for row in table]
    images.write(tmp_path / 'a.zip', records)
    with pytest.raises(UsageError, match='a.zip: dataset.json: the cameras do not look at the object .*from_opengl'):
        images.ImageSet(tmp_path / 'a.zip')
