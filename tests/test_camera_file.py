"""cameras.json: a point of the world, projected by its numbers as nerfstudio does, is where the file's picture shows it."""

import json
import re
import subprocess

import analytic_assets
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from t3d.export import assets, video
from t3d.geom import meshing

POINTS = np.array([[0.5, -0.2, 0.1], [-0.3, 0.5, -0.4], [0.1, -0.5, 0.5]])  # balls in red, green and blue


def balls():
    def field(scene, points):
        distance = jnp.linalg.norm(points[:, None] - jnp.float32(POINTS), axis=-1) - 0.12
        density = 40.0 / (1.0 + jnp.exp(jnp.clip(scene['sharpness'] * jnp.min(distance, -1), -30.0, 30.0)))
        return density, jnp.eye(3)[jnp.argmin(distance, -1)]

    return analytic_assets.asset('three balls', field, num_samples=96)


def nerfstudio_pixels(frame, points):
    """Pixel (x, y) of world points: nerfstudio's pinhole, with OpenGL camera axes and the first pixel's centre at 0.5."""
    world_from_cam = np.array(frame['transform_matrix'])
    local = (points - world_from_cam[:3, 3]) @ world_from_cam[:3, :3]
    x, y = local[:, 0] / -local[:, 2], -local[:, 1] / -local[:, 2]
    return np.stack([frame['fl_x'] * x + frame['cx'], frame['fl_y'] * y + frame['cy']], -1)


def middle_of(image, channel):
    """Pixel (x, y) at the middle of what is of one primary colour; None where it is hidden or cut."""
    light = image.astype(float)
    mask = (light[..., channel] > 150) & (np.delete(light, channel, -1).max(-1) < 90)
    return np.argwhere(mask)[:, ::-1].mean(0) + 0.5, mask.sum()


def check_pictures(pictures, frames):
    compared = 0
    for image, frame in zip(pictures, frames, strict=True):
        assert image.shape == (frame['h'], frame['w'], 3)
        for channel, expected in enumerate(nerfstudio_pixels(frame, POINTS)):
            place, count = middle_of(image, channel)
            whole = np.pi * (0.12 * frame['fl_x'] / 3.5) ** 2
            if 0.75 * whole < count < 1.6 * whole:  # not hidden by another ball
                np.testing.assert_allclose(place, expected, atol=0.02 * frame['w'])
                compared += 1
    assert compared >= 2 * len(frames)


def decode(path):
    """(frames uint8 [V, H, W, 3], (W, H)) of a video."""
    text = subprocess.run([video.ffmpeg(), '-i', str(path)], capture_output=True, text=True, check=False).stderr
    width, height = map(int, re.search(r', (\d+)x(\d+)[, ]', text).groups())
    command = [video.ffmpeg(), '-loglevel', 'error', '-i', str(path), '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-']
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3), (width, height)


@pytest.mark.parametrize(('size', 'render_size'), [(96, 64), (95, 64), (97, 63), (64, 65)])
def test_projected_points_are_where_the_pictures_show_them(size, render_size, tmp_path):
    asset, lines = balls(), []
    densities = meshing.density_grid(asset.field, asset.scene, asset.bound, 48)
    options = {'frames': 3, 'size': size, 'render_size': render_size, 'log': lines.append}
    paths = assets.write_turntable(asset, densities, tmp_path, **options)
    stored = json.loads(paths['cameras'].read_text())
    assert (stored['camera_model'], stored['convention'], stored['up'], stored['front']) == ('PINHOLE', 'opengl', '+y', '+z')
    (said,) = stored['videos']
    frames, (width, height) = decode(tmp_path / said['file_path'])
    assert (said['w'], said['h'], said['panels']) == (width, height, ['colour', 'normal', 'depth']) and len(frames) == 3
    assert height == size + size % 2 and width == 3 * height
    assert any('even sizes' in line for line in lines) == (size % 2 == 1)
    check_pictures(frames[:, :, :height], stored['frames'])
    assert not any('file_path' in frame for frame in stored['frames'])  # a panel of a video is not a file

    paths = assets.write_turntable(asset, densities, tmp_path, **options, images=True, gif=True)
    stored = json.loads(paths['cameras'].read_text())
    files = [tmp_path / frame['file_path'] for frame in stored['frames']]
    assert sorted(files) == sorted((tmp_path / 'images').iterdir()) and len(files) == 3
    check_pictures([np.asarray(Image.open(path)) for path in files], stored['frames'])
    assert stored['frames'][0]['w'] == render_size and len(stored['videos']) == 2
    with Image.open(tmp_path / stored['videos'][1]['file_path']) as gif:
        assert gif.size == (stored['videos'][1]['w'], stored['videos'][1]['h']) == (render_size, render_size)
