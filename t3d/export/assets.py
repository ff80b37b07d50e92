"""From a Field to files: mesh, turntable, labelled views, cameras and a report, with one timing line for each part.

`write` makes everything, `write_meshes` and `write_views` a part.
"""

import math
import pathlib
import time

import numpy as np

from t3d.core import environment, files
from t3d.core.errors import UsageError
from t3d.core.outputs import Field
from t3d.export import beside, camera_file, meshes, report, video
from t3d.export import texture as textures
from t3d.geom import cameras, meshing

SHEET_VIEWS = (('front', 0.0, None), ('right', 90.0, None), ('back', 180.0, None), ('left', 270.0, None), ('top', 0.0, 75.0))

NEAREST = 1e-3  # scene units: what is nearer to the camera, or behind it, is not drawn
NEEDLESS = 3  # marching cubes makes this many times the faces the shape needs: at a third the surface moves by 1/100 cell


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
    views=None,
    report_info=None,
    log=print,
) -> dict[str, pathlib.Path]:
    """Writes everything people expect of one asset into `out_dir`.

    Args:
      asset: what a system's `generate` returned.
      formats: of {'glb', 'obj', 'ply', 'stl'}; the GLB is always written, the report shows it.
      texture: side of the texture in texels; 0 for vertex colours only.
      faces: upper bound of the mesh's triangles.
      grid: cells per side of the density grid.
      frames: of the turntable, at 30 per second; 0 for none.
      size: height of the video, the next even number where it is odd; each frame is three squares of it side by side.
      render_size: height at which frames are rendered; ffmpeg scales them up to `size`.
      gif: also write turntable.gif (colour only, at the rendered size).
      images: also write the frames as images/0000.png ... (colour only, at the rendered size).
      threshold: density of the surface; None chooses the one that matches the render.
      views: a core.outputs.Views that the asset was made of: written too (cameras.json is theirs then, and turntable.json that
        of the turntable), and compared with the field and the mesh from the same cameras.
      report_info: dict of report.write's `metrics`, `config`, `environment`, `title`, `subtitle`; any may be missing.

    Returns:
      paths by name: 'glb' ..., 'mp4', 'gif', 'images', 'views' (folders), 'sheet', 'beside', 'cameras', 'report'.
    """
    check_formats(formats)
    if frames and not gif:
        video.ffmpeg()  # its absence is better known before the work than after it
    out, clock = pathlib.Path(out_dir), _Clock(log)
    densities = _densities(asset, grid, clock)
    mesh, facts, paths = _mesh_files(
        asset,
        densities,
        out,
        formats=('glb', *formats),
        texture=texture,
        faces=faces,
        threshold=threshold,
        clock=clock,
        log=log,
    )
    paths['sheet'] = write_sheet(asset, mesh, densities, out / 'sheet.png', size=min(size, max(render_size, 256)))
    clock.lap('sheet')
    if frames:
        moving = {'frames': frames, 'size': size, 'render_size': render_size, 'gif': gif, 'images': images}
        moving['cameras_file'] = 'cameras.json' if views is None else 'turntable.json'
        paths |= write_turntable(asset, densities, out, **moving, log=log)
        clock.lap(f'turntable of {frames} frames')
    if views is not None:
        paths |= {**beside.write_views(views, out), 'beside': out / 'beside.png'}
        facts |= beside.write(asset, mesh, densities, views, draw_mesh, paths['beside'])
        clock.lap(f'beside {len(views.images)} views')
    info = dict(report_info or {})
    info.setdefault('environment', environment.summary())
    facts['texture'] = f'{texture} x {texture}' if texture else 'vertex colours'
    pictures = {'sheet': paths['sheet'], 'beside': paths.get('beside'), 'video': paths.get('mp4', paths.get('gif'))}
    paths['report'] = report.write(out / 'report.html', prompt=asset.prompt, **pictures, glb=paths['glb'], facts=facts, **info)
    clock.lap('report')
    log(f'export: {out} in {clock.total():.1f} s')
    return paths


def write_meshes(
    asset: Field, out_dir, *, formats=('glb',), texture=1024, faces=40_000, grid=128, threshold=None, log=print
) -> dict[str, pathlib.Path]:
    """The mesh alone, in the formats asked for; arguments as of `write`. Returns paths by format."""
    check_formats(formats)
    clock = _Clock(log)
    _, _, paths = _mesh_files(
        asset,
        _densities(asset, grid, clock),
        pathlib.Path(out_dir),
        formats=formats,
        texture=texture,
        faces=faces,
        threshold=threshold,
        clock=clock,
        log=log,
    )
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


def _mesh_files(asset, densities, out: pathlib.Path, *, formats, texture, faces, threshold, clock, log):
    """(Mesh, facts about it, paths by format) with the files written."""
    mesh, facts = extract(asset, densities, faces=faces, threshold=threshold, log=log)
    clock.lap(f'mesh, {len(mesh.faces)} faces')
    if texture:
        mesh = textures.bake(asset, mesh, texture, step=2.0 * asset.bound / densities.shape[0], log=log)
        clock.lap(f'texture {texture}')
    out.mkdir(parents=True, exist_ok=True)
    paths = {kind: meshes.write(mesh, out / f'mesh.{kind}') for kind in dict.fromkeys(formats)}
    clock.lap('mesh files')
    return mesh, facts, paths


def extract(asset: Field, densities: np.ndarray, *, faces: int, threshold: float | None = None, log=print):
    """(Mesh with vertex colours, facts about it as a dict) of a density grid."""
    if threshold is None:
        threshold = meshing.choose_threshold(densities, asset.bound, log)
    filled = meshing.fill_cavities(densities, threshold)
    vertices, triangles = meshing.surface(filled, threshold, asset.bound)
    vertices, triangles = meshes.clean(vertices, triangles, log=log)
    raw = len(triangles)
    vertices, triangles = meshes.simplify(vertices, triangles, min(faces, raw // NEEDLESS))
    normals = meshes.smooth_normals(vertices, triangles)
    colors = textures.surface_colors(asset, vertices, -normals, step=2.0 * asset.bound / densities.shape[0])
    facts = {
        'threshold': float(threshold),
        'density': f'{densities.min():.4g} to {densities.max():.4g}',
        'faces': len(triangles),
        'faces before simplification': raw,
        'volume': meshes.volume(vertices, triangles),
        'size x y z': ' x '.join(f'{side:.3f}' for side in np.ptp(vertices, axis=0)),
        'frame': 'y up, front +z, scene units (a GLB viewer reads metres)',
        'colours': 'sRGB, with the lighting that the model learned',
    }
    return meshes.Mesh(vertices, triangles, normals, colors, name=meshes.name_of(asset.prompt)), facts


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


def write_sheet(asset: Field, mesh: meshes.Mesh, densities, path: pathlib.Path, *, size: int = 256) -> pathlib.Path:
    """A labelled PNG: one column for each of five views; the field's render, its normals, and the mesh that was written."""
    from PIL import Image, ImageDraw, ImageFont

    level = asset.camera.get('elevation', video.ELEVATION)
    views = _sheet_cameras(level, asset.camera['radius'], asset.camera['fov'])
    rendered = video.render_views(asset, views, size, grid=densities)
    normals = video.normal_maps(rendered, views, video.inward_gradient(densities, asset.bound), asset.bound)
    images = video.panels(rendered, normals, video.depth_limits(asset, densities))
    drawn = np.stack(
        [
            draw_mesh(mesh, np.asarray(pose), np.asarray(lens), size)
            for pose, lens in zip(views.world_from_cam, views.intrinsics)
        ]
    )
    rows = {'field': images[:, :, :size], 'normal': images[:, :, size : 2 * size], 'mesh': drawn}
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


def draw_mesh(mesh: meshes.Mesh, world_from_cam, intrinsics, size: int | tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3]: the mesh's own colours (texture or vertices), unlit, over white; a z-buffer in numpy.

    Faces that reach behind the camera are left out. `size` is that of `video.render_views`.
    """
    height, width = (size, size) if isinstance(size, int) else size
    shape = 2 * height, 2 * width  # drawn at twice the size and averaged, against stairs at the outline
    local = (mesh.vertices - world_from_cam[:3, 3]) @ world_from_cam[:3, :3]
    faces = mesh.faces[np.all(local[mesh.faces, 2] > NEAREST, axis=-1)]
    uv = local @ intrinsics.T
    places = uv[:, :2] / np.where(uv[:, 2:] > NEAREST, uv[:, 2:], 1.0) * shape[::-1]
    pixel, face, weights = textures.rasterize(places, faces, shape, depth=local[:, 2])
    weights = weights / local[faces[face], 2]  # perspective: interpolate attribute / z
    weights /= weights.sum(-1, keepdims=True)
    image = np.full((shape[0] * shape[1], 3), 255, np.uint8)
    if mesh.texture is not None:
        st = np.einsum('kf,kfc->kc', weights, mesh.uv[faces[face]])
        side = np.array(mesh.texture.shape[1::-1])
        at = np.clip((st * [1, -1] + [0, 1]) * side, 0, side - 1).astype(int)
        image[pixel] = mesh.texture[at[:, 1], at[:, 0]]
    elif mesh.colors is not None:
        image[pixel] = np.round(np.einsum('kf,kfc->kc', weights, mesh.colors[faces[face]].astype(float)))
    return np.round(image.reshape(height, 2, width, 2, 3).mean((1, 3))).astype(np.uint8)


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
