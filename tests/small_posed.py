"""Posed pictures that tests write themselves, in every layout, of toy scenes seen from known cameras."""

import gzip
import json
import pathlib
import pickle
from typing import NamedTuple

import numpy as np
from PIL import Image

from t3d.data.sets import shapes, toy
from t3d.geom import cameras

ZUP = np.float64(cameras.ZUP_FROM_YUP)
GL = np.float64(cameras.OPENGL_AXES)


class Truth(NamedTuple):
    """Pictures of a scene and their cameras in our convention."""

    images: np.ndarray  # uint8 [V, H, W, 4]
    pose: np.ndarray  # float64 [V, 4, 4]
    intrinsics: np.ndarray  # float64 [V, 3, 3], divided by width and height

    def cropped(self, left: int, top: int, width: int, height: int) -> 'Truth':
        """A part of the pictures."""
        k = self.in_pixels().copy()
        k[:, :2, 2] -= [left, top]
        images = self.images[:, top : top + height, left : left + width]
        return Truth(images, self.pose, k / [[width], [height], [1.0]])

    def in_pixels(self) -> np.ndarray:
        height, width = self.images.shape[1:3]
        return self.intrinsics * [[width], [height], [1.0]]

    def scaled(self, factor: float) -> 'Truth':
        """The same in a world that is `factor` times as large."""
        pose = self.pose.copy()
        pose[:, :3, 3] *= factor
        return self._replace(pose=pose)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        return project(self.pose, self.in_pixels(), points)


def project(pose, intrinsics, points) -> np.ndarray:
    """[V, N, 2] in the units of the intrinsics, in float64."""
    local = (points[None] - pose[:, None, :3, 3]) @ pose[:, :3, :3]
    pixel = local @ intrinsics.transpose(0, 2, 1)
    return pixel[..., :2] / pixel[..., 2:]


def look(count: int = 4, size: int = 24, fov: float = shapes.FOV, radius: float = shapes.RADIUS, seed: int = 0) -> Truth:
    """A toy scene from `count` sides, all round, 0.1 to 0.5 radians up."""
    random = np.random.default_rng(seed)
    azimuth = (np.arange(count) + random.uniform(0.0, 0.5, count)) * (2.0 * np.pi / count)
    pose, lens = toy.camera_arrays(azimuth, random.uniform(0.1, 0.5, count), radius, fov)
    scene = shapes.singles('all')[seed]
    images = toy.render(scene, pose, lens, size)['image']
    exact = np.float64(pose)  # orthonormal beyond float32, so that what a layout writes is the truth
    left, _, right = np.linalg.svd(exact[:, :3, :3])
    exact[:, :3, :3] = left @ right
    return Truth(images, exact, np.float64(lens))


def save(path: pathlib.Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def angle(truth: Truth) -> float:
    return float(2.0 * np.arctan(0.5 / truth.intrinsics[0, 0, 0]))


def zup(truth: Truth) -> np.ndarray:
    """world_from_cam of a world with z up, the camera's axes OpenCV's."""
    return ZUP @ truth.pose


def nerf_synthetic(root, truth, splits=('train', 'test')):
    for split in splits:
        frames = []
        for k, image in enumerate(truth.images):
            save(root / split / f'r_{k}.png', image)
            frames.append(
                {'file_path': f'./{split}/r_{k}', 'rotation': 0.01, 'transform_matrix': (zup(truth) @ GL)[k].tolist()}
            )
        text = json.dumps({'camera_angle_x': angle(truth), 'frames': frames})
        (root / f'transforms_{split}.json').write_text(text)
    return root


def nerfstudio(root, truth, each: bool = False):
    height, width = truth.images.shape[1:3]
    frames = []
    for k, (image, lens) in enumerate(zip(truth.images, truth.in_pixels())):
        save(root / 'images' / f'frame_{k + 1:05d}.png', image)
        keys = {'fl_x': lens[0, 0], 'fl_y': lens[1, 1], 'cx': lens[0, 2], 'cy': lens[1, 2], 'w': width, 'h': height}
        keys |= dict.fromkeys(('k1', 'k2', 'p1', 'p2'), 0.0)
        name = {'file_path': f'images/frame_{k + 1:05d}.png', 'transform_matrix': (zup(truth) @ GL)[k].tolist()}
        frames.append({**name, **(keys if each else {})})
    tree = {'camera_model': 'OPENCV', 'frames': frames, 'applied_transform': np.eye(4)[[0, 2, 1]].tolist()}
    (root / 'transforms.json').write_text(json.dumps(tree | ({} if each else keys)))
    return root


def ours(root, truth, convention='opencv', up='+y'):
    pose = truth.pose if up == '+y' else zup(truth)
    height, width = truth.images.shape[1:3]
    frames = []
    for k, (image, lens) in enumerate(zip(truth.images, truth.in_pixels())):
        save(root / f'{k:03d}.png', image)
        keys = {'fl_x': lens[0, 0], 'fl_y': lens[1, 1], 'cx': lens[0, 2], 'cy': lens[1, 2], 'w': width, 'h': height}
        frames.append({**keys, 'transform_matrix': (pose[k] @ (GL if convention == 'opengl' else np.eye(4))).tolist()})
    (root / 'cameras.json').write_text(json.dumps({'convention': convention, 'up': up, 'frames': frames}))
    return root


def zero123(root, truth, name='object'):
    small = truth.scaled(0.5)
    for k, image in enumerate(truth.images):
        save(root / name / f'{k:03d}.png', image)
        np.save(root / name / f'{k:03d}.npy', np.linalg.inv(zup(small)[k] @ GL)[:3])
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    (root / 'valid_paths.json').write_text(json.dumps(names))
    return root


def instantmesh(root, truth, name='object'):
    folder = root / 'rendering_random_32views' / name
    for k, image in enumerate(truth.images):
        save(folder / f'{k:03d}.png', image)
        save(folder / f'{k:03d}_normal.png', image)
    np.savez(folder / 'cameras.npz', cam_poses=np.linalg.inv(zup(truth) @ GL)[:, :3])
    names = sorted(path.name for path in folder.parent.iterdir())
    (root / 'valid_paths.json').write_text(json.dumps({'good_objs': names}))
    return root


def mv_adapter(root, truth, name='00a4'):
    folder, small = root / 'texture_rand_easylight_objaverse' / name[:2] / name, truth.scaled(0.5)
    locations = []
    for k, image in enumerate(truth.images):
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f'color_{k:04d}.webp', lossless=True, exact=True)
        matrix = (zup(small) @ GL)[k].tolist()
        locations.append({'index': f'{k:04d}', 'projection_type': 'PERSP', 'transform_matrix': matrix})
    (folder / 'meta.json').write_text(json.dumps({'camera_angle_x': angle(truth), 'locations': locations}))
    return root


def spad(root, truth, name='object'):
    (root / name / 'cameras').mkdir(parents=True)
    for k, (image, pose) in enumerate(zip(truth.images, zup(truth) @ GL)):
        save(root / name / 'images' / f'{k}.png', image)
        x, y, z = pose[:3, 3]
        polar = np.degrees(np.arccos(z / np.linalg.norm([x, y, z])))
        with np.printoptions(precision=17):
            camera = {'camera_id': f'camera_{np.degrees(np.arctan2(y, x)):.6f}_{polar:.6f}', 'matrix_world': str(pose)}
        np.save(root / name / 'cameras' / f'{k}.npy', camera | {'fov': angle(truth)}, allow_pickle=True)
    return root


def syncdreamer(root, truth, name='object'):
    small = truth.scaled(0.5)
    for k, image in enumerate(truth.images):
        save(root / name / f'{k:03d}.png', image)
    poses = np.linalg.inv(zup(small))[:, :3]
    angles = np.zeros(len(poses), np.float32)
    meta = [truth.in_pixels()[0], angles, angles, angles, poses]
    (root / name / 'meta.pkl').write_bytes(pickle.dumps(meta))
    return root


def srn(root, truth, name='object', factor: int = 4, one_line: bool = True):
    """The intrinsics are for pictures `factor` times as large."""
    folder = root / name
    (folder / 'pose').mkdir(parents=True)
    for k, (image, pose) in enumerate(zip(truth.images, zup(truth))):
        white = np.where(image[..., 3:] > 0, np.minimum(image[..., :3], 254), 255).astype(np.uint8)
        save(folder / 'rgb' / f'{k:06d}.png', white)
        rows = [' '.join(map(repr, row)) for row in pose.tolist()]
        (folder / 'pose' / f'{k:06d}.txt').write_text((' ' if one_line else '\n').join(rows))
    height, width = truth.images.shape[1:3]
    lens = factor * truth.in_pixels()[0]
    last = f'0. 0. 0.\n1.\n{factor * height} {factor * width}\n'
    (folder / 'intrinsics.txt').write_text(f'{float(lens[0, 0])} {float(lens[0, 2])} {float(lens[1, 2])} 0.\n{last}')
    return root


def co3d(root, truth, name='110_1', category='chair', units='ndc_isotropic'):
    height, width = truth.images.shape[1:3]
    half = np.array([width, height]) / 2.0
    scale = np.full(2, half.min()) if units == 'ndc_isotropic' else half
    flip, frames, rows = np.diag([-1.0, -1.0, 1.0]), [], []
    for k, (image, lens) in enumerate(zip(truth.images, truth.in_pixels())):
        path, mask = f'{category}/{name}/images/frame{k + 1:06d}.jpg', f'{category}/{name}/masks/frame{k + 1:06d}.png'
        save(root / path, image[..., :3])
        save(root / mask, image[..., 3])
        world = np.linalg.inv(truth.pose[k])
        viewpoint = {
            'R': (flip @ world[:3, :3]).T.tolist(),
            'T': (flip @ world[:3, 3]).tolist(),
            'focal_length': (np.diag(lens)[:2] / scale).tolist(),
            'principal_point': ((half - lens[:2, 2]) / scale).tolist(),
        } | ({'intrinsics_format': units} if units == 'ndc_isotropic' else {})
        frames.append({
            'sequence_name': name, 'frame_number': k, 'image': {'path': path, 'size': [height, width]},
            'mask': {'path': mask, 'mass': 1.0}, 'viewpoint': viewpoint,
        })  # fmt: skip
        rows.append([name, k, path])
    (root / category / 'frame_annotations.jgz').write_bytes(gzip.compress(json.dumps(frames).encode()))
    (root / category / 'set_lists').mkdir(exist_ok=True)
    lists = {'train': rows[:-1], 'val': rows[-1:], 'test': rows[-1:]}
    (root / category / 'set_lists' / 'set_lists_fewview_dev.json').write_text(json.dumps(lists))
    return root


WRITERS = {
    'nerf_synthetic': nerf_synthetic, 'nerfstudio': nerfstudio, 'ours': ours, 'zero123': zero123, 'instantmesh': instantmesh,
    'mv_adapter': mv_adapter, 'spad': spad, 'syncdreamer': syncdreamer, 'srn': srn, 'co3d': co3d,
}  # fmt: skip
FIELDS = {'zero123': 2.0 * np.arctan(16.0 / 35.0), 'instantmesh': np.radians(50.0)}  # of layouts that have one lens
