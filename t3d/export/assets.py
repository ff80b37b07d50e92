"""From a Field to files: mesh, turntable, labelled views, cameras and a report, with one timing line for each part.

`write` makes everything, `write_meshes` and `write_views` a part.
"""

import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from t3d.core import environment, files
from t3d.core.errors import UsageError
from t3d.core.outputs import Field
from t3d.export import beside, camera_file, extraction, mesh_pictures, meshes, placing, renders, report, sides, video
from t3d.export import texture as textures
from t3d.geom import cameras, meshing

SHEET_VIEWS = (('front', 0.0, None), ('right', 90.0, None), ('back', 180.0, None), ('left', 270.0, None), ('top', 0.0, 75.0))


def write(
    asset: Field,
    out_dir,
    *,
    formats=('glb',),
    texture=1024,
    faces=40_000,
    grid=128,
    frames=120,
    size=512,
    render_size=256,
    gif=False,
    images=False,
    threshold=None,
    origin='scene',
    height=None,
    light=None,
    views=None,
    report_info=None,
    log=print,
) -> dict[str, pathlib.Path]:
    """Writes everything people expect of one asset into `out_dir`.

    Args:
      asset: what a system's `generate` returned.
      formats: of {'glb', 'obj', 'ply', 'stl'}; the GLB is always written, the report shows it.
      texture: side of the texture in texels; 0 for vertex colours only.
      faces: upper bound of the mesh's triangles; flat sides take fewer.
      grid: cells per side of the density grid.
      frames: of the turntable, at 30 per second; 0 for none.
      size: height of the video, the next even number where it is odd; each frame is three squares of it side by side.
      render_size: height at which frames are rendered; ffmpeg scales them up to `size`.
      gif: also write turntable.gif (colour only, at the rendered size).
      images: also write the frames as images/0000.png ... (colour only, at the rendered size).
      threshold: density of the surface, everywhere; None: the one that matches the render, with lower ones for thin parts.
      origin, height: of the mesh files, as of `placing.of`: 'scene' or 'floor', and metres or None for scene units.
      light: what to divide out of the colours, as of `texture.surface_colors`; None leaves the light of the pictures in.
      views: a core.outputs.Views that the asset was made of: written too (cameras.json is theirs then, and turntable.json that
        of the turntable), and compared with the field and the mesh from the same cameras.
      report_info: dict of report.write's `metrics`, `config`, `environment`, `title`, `subtitle`; any may be missing.

    Returns:
      paths by name: 'glb' ..., 'facts', 'mp4', 'gif', 'images', 'views' (folders), 'sheet', 'beside', 'cameras', 'report'.
    """
    check_formats(formats)
    placing.check(origin, height)
    if frames and not gif:
        video.ffmpeg()  # its absence is better known before the work than after it
    out, clock = pathlib.Path(out_dir), _Clock(log)
    densities = _densities(asset, grid, clock)
    wanted = _Wanted(('glb', *formats), texture, faces, threshold, origin, height, light)
    mesh, facts, paths = _mesh_files(asset, densities, out, wanted, clock, log)
    side, lit = min(size, max(render_size, 256)), 'mesh' if light is None else 'mesh,\nunlit'
    paths['sheet'] = write_sheet(asset, mesh, densities, out / 'sheet.png', size=side, mesh_label=lit)
    clock.lap('sheet')
    if frames:
        moving = {'frames': frames, 'size': size, 'render_size': render_size, 'gif': gif, 'images': images}
        moving['cameras_file'] = 'cameras.json' if views is None else 'turntable.json'
        paths |= write_turntable(asset, densities, out, **moving, log=log)
        clock.lap(f'turntable of {frames} frames')
    if views is not None:
        paths |= {**beside.write_views(views, out), 'beside': out / 'beside.png'}
        facts |= beside.write(asset, mesh, densities, views, paths['beside'])
        clock.lap(f'beside {len(views.images)} views')
    info = dict(report_info or {})
    info.setdefault('environment', environment.summary())
    pictures = {'sheet': paths['sheet'], 'beside': paths.get('beside'), 'video': paths.get('mp4', paths.get('gif'))}
    paths['report'] = report.write(out / 'report.html', prompt=asset.prompt, **pictures, glb=paths['glb'], facts=facts, **info)
    clock.lap('report')
    log(f'export: {out} in {clock.total():.1f} s')
    return paths


def write_meshes(
    asset: Field,
    out_dir,
    *,
    formats=('glb',),
    texture=1024,
    faces=40_000,
    grid=128,
    threshold=None,
    origin='scene',
    height=None,
    light=None,
    log=print,
) -> dict[str, pathlib.Path]:
    """The mesh alone, in the formats asked for; arguments as of `write`. Returns paths by format, and 'facts'."""
    check_formats(formats)
    placing.check(origin, height)
    clock = _Clock(log)
    densities = _densities(asset, grid, clock)
    wanted = _Wanted(tuple(formats), texture, faces, threshold, origin, height, light)
    _, _, paths = _mesh_files(asset, densities, pathlib.Path(out_dir), wanted, clock, log)
    log(f'export: {out_dir} in {clock.total():.1f} s')
    return paths


def write_views(
    asset: Field, out_dir, *, grid=128, frames=120, size=512, render_size=256, gif=False, images=False, log=print
) -> dict[str, pathlib.Path]:
    """The turntable and its cameras; arguments as of `write`. Returns paths by name: 'mp4', 'gif', 'images', 'cameras'."""
    if frames < 1:
        raise UsageError(f'{frames} frames: a turntable has at least 1.')
    if not gif:
        video.ffmpeg()
    out, clock = pathlib.Path(out_dir), _Clock(log)
    densities = _densities(asset, grid, clock)
    out.mkdir(parents=True, exist_ok=True)
    moving = {'frames': frames, 'size': size, 'render_size': render_size, 'gif': gif, 'images': images}
    paths = write_turntable(asset, densities, out, **moving, log=log)
    log(f'export: {out_dir} in {clock.total():.1f} s')
    return paths


def check_formats(formats) -> None:
    """Raises UsageError for a mesh format that is not one of `meshes.FORMATS`."""
    unknown = sorted(set(formats) - set(meshes.FORMATS))
    if unknown:
        raise UsageError(f'unknown mesh format {unknown[0]!r}: choose from {list(meshes.FORMATS)}.')


def _densities(asset: Field, grid: int, clock: '_Clock') -> np.ndarray:
    densities = meshing.density_grid(asset.field, asset.scene, asset.bound, grid)
    clock.lap(f'density grid {grid}^3')
    return densities


class _Wanted(NamedTuple):
    """The mesh files asked for; as of `write`."""

    formats: tuple[str, ...]
    texture: int
    faces: int
    threshold: float | None
    origin: str
    height: float | None
    light: Callable | None


def _mesh_files(asset, densities, out: pathlib.Path, wanted: _Wanted, clock, log):
    """(Mesh in scene units, facts about it, paths by name) with the files written, and mesh.json."""
    level_set = extraction.surface(asset, densities, threshold=wanted.threshold, log=log)
    options, formats, made = {'most': wanted.faces, 'log': log}, dict.fromkeys(wanted.formats), {}
    if not wanted.texture or 'ply' in formats:  # a PLY has the colours of its vertices
        mesh, facts = extraction.coloured(asset, level_set, light=wanted.light, **options)
        made['ply'] = mesh = meshes.creased(mesh)
        clock.lap(f'mesh, {facts["faces"]} faces with colours')
    if wanted.texture:
        mesh, facts = extraction.plain(asset, level_set, **options)
        clock.lap(f'mesh, {facts["faces"]} faces')
        baking = {'step': level_set.cell, 'light': wanted.light, 'log': log}
        mesh = textures.bake(asset, meshes.creased(mesh), wanted.texture, **baking)
        facts |= {'texture': f'{wanted.texture} x {wanted.texture}', 'charts': mesh.charts}
        clock.lap(f'texture {wanted.texture}')
    else:
        facts['texture'] = 'none: vertex colours'
    comparison = sides.compare(asset, mesh, densities)
    log(f'mesh: {sides.sentence(comparison)}')
    clock.lap('silhouettes')
    place = placing.of(mesh, wanted.origin, wanted.height)
    out.mkdir(parents=True, exist_ok=True)
    paths = {kind: meshes.write(placing.placed(made.get(kind, mesh), place), out / f'mesh.{kind}') for kind in formats}
    facts = {**level_set.facts, **facts, **_frame(wanted, place), 'silhouettes': sides.sentence(comparison)}
    paths['facts'] = out / 'mesh.json'
    known = {'prompt': asset.prompt, 'name': mesh.name, **facts, 'silhouettes': comparison._asdict(), 'place': place._asdict()}
    files.write(paths['facts'], json.dumps(known, indent=1, ensure_ascii=False))
    clock.lap('mesh files')
    return mesh, facts, paths


def _frame(wanted: _Wanted, place: placing.Place) -> dict[str, str]:
    """What a report says of a mesh's units, origin and colours."""
    units = 'scene units (a GLB viewer reads metres)' if wanted.height is None else f'metres, {wanted.height:g} high'
    floor = ', base at y = 0' if wanted.origin == 'floor' else ''
    light = 'with the lighting that the model learned' if wanted.light is None else 'the light of the data divided out'
    return {'frame': f'y up, front +z{floor}, {units}', 'colours': f'sRGB, {light}'}


def write_turntable(
    asset: Field,
    densities,
    out: pathlib.Path,
    *,
    frames: int,
    size: int,
    render_size: int,
    gif: bool = False,
    images: bool = False,
    cameras_file: str = 'cameras.json',
    log=print,
) -> dict[str, pathlib.Path]:
    """turntable.mp4, turntable.gif and images/ if asked for, and cameras.json, whose numbers are those of the files.

    Without ffmpeg only the GIF, or an error without `gif`.
    """
    views, height = video.orbit(asset, frames), size + size % 2
    if height != size:
        log(f'video: {height} px high, not {size}: H.264 takes even sizes')
    pictures = video.turntable(asset, views, render_size, densities, log=log)
    colour, paths, videos = pictures[:, :, :render_size], {}, []
    try:
        paths['mp4'] = video.write_mp4(pictures, out / 'turntable.mp4', height=height)
        videos.append(camera_file.video(paths['mp4'], height, camera_file.PANELS, video.FPS))
    except UsageError as error:
        if not gif:
            raise
        log(f'video: {error}')
    if gif:
        paths['gif'] = video.write_gif(colour, out / 'turntable.gif')
        videos.append(camera_file.video(paths['gif'], render_size, camera_file.PANELS[:1], video.GIF_FPS))
    names = None
    if images:
        paths['images'] = out / 'images'
        names = camera_file.write_frames(colour, paths['images'])
    paths['cameras'] = out / cameras_file
    camera_file.write(paths['cameras'], views, render_size if images else videos[0]['h'], names=names, videos=videos)
    return paths


# ----------------------------------------------------------------------------------------------------------------- sheet


def write_sheet(
    asset: Field, mesh: meshes.Mesh, densities, path: pathlib.Path, *, size: int = 256, mesh_label: str = 'mesh'
) -> pathlib.Path:
    """A labelled PNG: one column for each of five views; the field's render, its normals, and the mesh that was written."""
    from PIL import Image, ImageDraw, ImageFont

    level = asset.camera.get('elevation', video.ELEVATION)
    views = _sheet_cameras(level, asset.camera['radius'], asset.camera['fov'])
    rendered = renders.smooth_views(asset, views, size, grid=densities)
    normals = video.normal_maps(rendered, views, video.inward_gradient(densities, asset.bound), asset.bound)
    images = video.panels(rendered, normals, video.depth_limits(asset, densities))
    drawn = np.stack(
        [
            mesh_pictures.draw_mesh(mesh, np.asarray(pose), np.asarray(lens), size)
            for pose, lens in zip(views.world_from_cam, views.intrinsics)
        ]
    )
    rows = {'field': images[:, :, :size], 'normal': images[:, :, size : 2 * size], mesh_label: drawn}
    font = ImageFont.load_default(max(11, size // 16))
    margin, head = max(44, size // 4), max(18, size // 10)
    sheet = Image.new('RGB', (margin + len(SHEET_VIEWS) * size, 2 * head + len(rows) * size), 'white')
    pen = ImageDraw.Draw(sheet)
    pen.text((6, head // 2), asset.prompt, fill='black', font=font, anchor='lm')
    for column, (name, _, _) in enumerate(SHEET_VIEWS):
        pen.text((margin + (column + 0.5) * size, 1.5 * head), name, fill='black', font=font, anchor='mm')
    for row, (name, strip) in enumerate(rows.items()):
        pen.text((6, 2 * head + (row + 0.5) * size), name, fill='black', font=font, anchor='lm')
        for column, image in enumerate(strip):
            sheet.paste(Image.fromarray(image), (margin + column * size, 2 * head + row * size))
    files.write_image(path, sheet)
    return path


def sheet_views(bound: float, fov: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """(world_from_cam [5, 4, 4], intrinsics [5, 3, 3]) around an object within [-bound, bound]^3."""
    views = _sheet_cameras(video.ELEVATION, 1.8 * bound / math.tan(0.5 * fov), fov)
    return np.asarray(views.world_from_cam), np.asarray(views.intrinsics)


def _sheet_cameras(level: float, radius: float, fov: float) -> cameras.Cameras:
    azimuths = np.radians([azimuth for _, azimuth, _ in SHEET_VIEWS])
    elevations = np.array([level if angle is None else math.radians(angle) for _, _, angle in SHEET_VIEWS])
    return cameras.orbit(azimuths, elevations, radius, fov)


# ------------------------------------------------------------------------------------------------------------- odds, ends


class _Clock:
    """Prints the time since the last lap."""

    def __init__(self, log):
        self._log, self._start = log, time.perf_counter()
        self._last = self._start

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._log(f'export: {name:<28} {now - self._last:6.1f} s')
        self._last = now

    def total(self) -> float:
        return time.perf_counter() - self._start
