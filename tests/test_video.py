"""Turntables: the right pixels traced, normals and depth in closed form, and files in the format people can play."""

import json
import math
import re
import subprocess

import analytic_assets
import imageio_ffmpeg
import numpy as np
import pytest

from t3d.core.errors import UsageError
from t3d.export import assets, renders, video
from t3d.geom import cameras, meshing


def silent(message):
    pass


def grid_of(asset, resolution=64):
    return meshing.density_grid(asset.field, asset.scene, asset.bound, resolution)


def test_skipping_pixels_changes_nothing_that_can_be_seen():
    for asset in (analytic_assets.cone_on_cube(), analytic_assets.arrows()):
        views = video.orbit(asset, 5)
        grid = grid_of(asset)
        every, some = renders.render_views(asset, views, 48), renders.render_views(asset, views, 48, grid=grid)
        assert np.abs(every.rgb - some.rgb).max() < 2 / 255
        assert np.abs(every.opacity - some.opacity).max() < 2 / 255
        touched = renders.touched_pixels(grid, 1.0, np.asarray(views.world_from_cam), np.asarray(views.intrinsics), 48)
        assert touched.mean() < 0.4 and not touched[every.opacity <= 0].all()


def test_a_camera_inside_the_object_traces_every_pixel():
    views = cameras.orbit(np.zeros(1), 0.0, 0.2, 0.7)
    grid = np.full((16,) * 3, 5.0)
    assert renders.touched_pixels(grid, 1.0, np.asarray(views.world_from_cam), np.asarray(views.intrinsics), 8).all()


def test_chunks_share_one_program_and_agree():
    asset = analytic_assets.sphere()
    traces = []

    def counted(scene, rays):
        traces.append(rays.origins.shape)
        return asset.render(scene, rays)

    counted_asset = asset._replace(render=counted)
    views = video.orbit(asset, 3)
    whole = renders.render_views(asset, views, 20, chunk=4096)
    parts = renders.render_views(counted_asset, views, 20, chunk=128)
    assert traces == [(128, 3)]
    for a, b in zip(whole, parts):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_normals_and_depth_of_a_sphere():
    asset = analytic_assets.sphere(0.6)
    views = video.orbit(asset, 4)
    grid = grid_of(asset)
    frames = renders.render_views(asset, views, 64, grid=grid)
    normals = video.normal_maps(frames, views, video.inward_gradient(grid, 1.0), 1.0)
    solid = frames.opacity > 0.99
    expected = frames.rgb * 2.0 - 1.0  # the sphere wears its normals
    cosine = np.sum(normals * expected, -1)[solid]
    assert cosine.mean() > 0.995 and np.percentile(cosine, 1) > 0.95
    assert frames.depth[:, 31:33, 31:33] == pytest.approx(3.5 - 0.6, abs=0.06)
    assert (frames.depth[frames.opacity <= 1e-3] == 0).all()
    rgb, normal, depth = np.split(video.panels(frames, normals, video.depth_limits(asset, grid)), 3, axis=2)
    assert np.abs(rgb.astype(int) - normal)[solid].mean() < 4
    assert depth[0, 32, 32, 0] > depth[0, 32, 32 - 13, 0] + 20  # the middle is nearer, so brighter
    assert (normal[0, 0, 0] == 255).all() and (depth[0, 0, 0] == 255).all()


def test_normals_of_a_hollow_sphere_point_outwards():
    asset, radius = analytic_assets.shell(0.6, 0.08), 0.6
    views, grid = video.orbit(asset, 3), grid_of(asset, 96)
    frames = renders.render_views(asset, views, 64, grid=grid)
    normals = video.normal_maps(frames, views, video.inward_gradient(grid, 1.0), 1.0)
    rays = cameras.rays(views, 64, 64)
    origins, directions = np.asarray(rays.origins), np.asarray(rays.directions)
    along = -np.sum(origins * directions, -1)
    inside = along**2 - np.sum(origins**2, -1) + radius**2
    first = along - np.sqrt(np.maximum(inside, 0.0))  # where a ray meets the outer sphere
    assert (frames.depth - first)[:, 32, 32].min() > 0.04  # the mean depth is behind the skin
    expected = (origins + directions * first[..., None]) / radius
    cosine = np.sum(normals * expected, -1)[(inside > 0.0) & (frames.opacity > 0.9)]
    assert len(cosine) > 1000 and (cosine > 0.95).mean() > 0.99


def test_orbit_starts_at_the_front_and_honours_the_systems_elevation():
    asset = analytic_assets.arrows()
    azimuth, elevation, radius = cameras.angles(video.orbit(asset, 4).world_from_cam)
    np.testing.assert_allclose(azimuth[:2], [0.0, math.pi / 2], atol=1e-5)
    np.testing.assert_allclose(elevation, video.ELEVATION, atol=1e-5)
    np.testing.assert_allclose(radius, 3.5, rtol=1e-5)
    low = asset._replace(camera={**asset.camera, 'elevation': 0.1})
    np.testing.assert_allclose(cameras.angles(video.orbit(low, 2).world_from_cam)[1], 0.1, atol=1e-5)


def probe(path):
    """ffmpeg's own description of a file."""
    return subprocess.run([video.ffmpeg(), '-i', str(path)], capture_output=True, text=True, check=False).stderr


def decode(path, height, width):
    """All frames of a file, uint8 [V, height, width, 3]."""
    command = [video.ffmpeg(), '-loglevel', 'error', '-i', str(path), '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-']
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def test_write_turntable_gives_120_frames_of_h264_and_cameras(tmp_path):
    asset = analytic_assets.sphere()
    lines = []
    paths = assets.write_turntable(
        asset, grid_of(asset, 32), tmp_path, frames=120, size=64, render_size=24, gif=True, log=lines.append
    )
    report = probe(paths['mp4'])
    assert 'h264' in report and 'yuv420p' in report and '192x64' in report and '30 fps' in report
    assert 'Duration: 00:00:04.00' in report
    assert paths['mp4'].read_bytes()[4:8] == b'ftyp'
    first, *rest = decode(paths['mp4'], 64, 192)
    assert len(rest) == 119
    assert first[32, 32, 2] > 200 > first[32, 32, 0]  # the front, +z, is blue in a sphere that wears its normals
    assert any('120/120' in line for line in lines)
    stored = json.loads(paths['cameras'].read_text())
    assert stored['convention'] == 'opengl' and len(stored['frames']) == 120
    pose = np.array(stored['frames'][0]['transform_matrix'])
    assert pose[2, 3] > 3.0 and pose[:3, 2] @ pose[:3, 3] > 3.0  # at +z, OpenGL's z axis points back at the camera
    assert stored['frames'][0]['w'] == 64


COLOURS = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255], [128, 128, 128], [20, 20, 20]]
COLOURS += [[255, 255, 255], [0, 0, 0], [200, 100, 50], [60, 90, 200], [217, 26, 26], [26, 51, 230]]


@pytest.mark.parametrize(('side', 'height'), [(32, 32), (32, 64), (48, 720), (33, 47)])
def test_colours_survive_the_video_and_are_stated(side, height, tmp_path):
    """The stored luma and chroma are those of BT.709 in limited range, by the recommendation's own numbers."""
    patches = np.uint8(COLOURS)
    images = np.repeat(np.repeat(patches[None], side, 0).repeat(side, 1)[None], 3, 0)  # [3, side, 14 side, 3]
    path = video.write_mp4(images, tmp_path / 'x.mp4', height=height)
    text = probe(path)
    assert 'yuv420p(tv, bt709/bt709/iec61966-2-1' in text
    columns, rows = map(int, re.search(r', (\d+)x(\d+)[, ]', text).groups())
    command = [video.ffmpeg(), '-loglevel', 'error', '-i', str(path), '-f', 'rawvideo', '-pix_fmt', 'yuv420p', '-']
    raw = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    frame = raw[: rows * columns * 3 // 2]
    luma, blue, red = np.split(frame, [rows * columns, rows * columns * 5 // 4])
    middle = (np.arange(len(patches)) + 0.5) * columns / len(patches)
    y = luma.reshape(rows, columns)[rows // 2, middle.astype(int)] / 1.0
    cb, cr = (plane.reshape(rows // 2, columns // 2)[rows // 4, (middle / 2).astype(int)] / 1.0 for plane in (blue, red))
    y, cb, cr = (y - 16) / 219, (cb - 128) / 224, (cr - 128) / 224
    r, b = y + 1.5748 * cr, y + 1.8556 * cb  # ITU-R BT.709, item 3.3
    colours = 255 * np.clip(np.stack([r, (y - 0.2126 * r - 0.0722 * b) / 0.7152, b], -1), 0, 1)
    assert np.abs(colours - patches).max() < 4.0


def test_gif_loops_through_all_frames(tmp_path):
    from PIL import Image

    images = np.zeros((5, 10, 12, 3), np.uint8)
    images[np.arange(5), 0, np.arange(5)] = 255
    with Image.open(video.write_gif(images, tmp_path / 'x.gif')) as gif:
        assert gif.n_frames == 5 and gif.size == (12, 10) and gif.info['loop'] == 0


def test_odd_sizes_become_even(tmp_path):
    path = video.write_mp4(np.zeros((2, 15, 33, 3), np.uint8), tmp_path / 'odd.mp4')
    assert '32x16' in probe(path) or '34x16' in probe(path)


def test_without_ffmpeg_the_error_says_what_to_do_and_no_file_appears(tmp_path, monkeypatch):
    def absent():
        raise RuntimeError('No ffmpeg exe could be found.')

    monkeypatch.setattr(imageio_ffmpeg, 'get_ffmpeg_exe', absent)
    with pytest.raises(UsageError, match='pip install imageio-ffmpeg.*--gif'):
        video.write_mp4(np.zeros((2, 16, 16, 3), np.uint8), tmp_path / 'x.mp4')
    assert not (tmp_path / 'x.mp4').exists()
    lines = []
    asset = analytic_assets.sphere()
    with pytest.raises(UsageError, match='no ffmpeg'):
        assets.write(asset, tmp_path / 'early', log=lines.append)
    assert lines == [] and not (tmp_path / 'early').exists()
    paths = assets.write_turntable(
        asset, grid_of(asset, 16), tmp_path, frames=2, size=16, render_size=16, gif=True, log=lines.append
    )
    assert 'mp4' not in paths and paths['gif'].exists() and any('no ffmpeg' in line for line in lines)
