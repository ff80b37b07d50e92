"""From any output to files: one writer for each kind of t3d.core.outputs, and the formats that each has.

A writer takes an output, a folder and options, and returns the paths that it wrote by name. A user's own is named by its
module, `export.writer='my_package.my_writer'` in a config, which has `write(output, out, *, report_info, log, **options)`.
"""

import inspect
import pathlib
from collections.abc import Mapping

import numpy as np

from t3d.core import environment, outputs, tables
from t3d.core.errors import UsageError
from t3d.export import assets, beside, clouds, mesh_pictures, meshes, placing, report, sheets

FORMATS = {
    'field': meshes.FORMATS,
    'mesh': meshes.FORMATS,
    'splats': ('ply',),
    'points': ('ply',),
    'views': ('png',),
    'picture': ('png',),
}


def write(output: outputs.Output, out, *, report_info: Mapping | None = None, log=print, **options) -> dict[str, pathlib.Path]:
    """Writes everything people expect of an output into a folder.

    Args:
      report_info: of report.write: metrics, config, environment, title, subtitle; any may be missing.
      options: of the writer; those it does not have are left out, `formats` must be of its kind.
    """
    kind = outputs.kind_of(output)
    check_formats(kind, options.get('formats') or ())
    check_place(kind, options)
    writer = own(options) or WRITERS[kind]
    return writer(output, pathlib.Path(out), report_info=report_info, log=log, **_taken(writer, options))


def own(options: Mapping):
    """The writer of a user's own that options name (`writer`), or None; UsageError where it cannot be found."""
    return tables.find(options['writer'], {}, 'writer (export.writer)', 'write').write if options.get('writer') else None


def meshes_of(output: outputs.Output, out, *, log=print, **options) -> dict[str, pathlib.Path]:
    """The 3D files alone: meshes of a field or mesh, the PLY of splats or points. Returns paths by format."""
    kind, out = outputs.kind_of(output), pathlib.Path(out)
    check_formats(kind, options.get('formats') or ())
    check_place(kind, options)
    if kind == 'field':
        return assets.write_meshes(output, out, log=log, **_taken(assets.write_meshes, options))
    if kind == 'mesh':
        mesh = _placed(output, options.get('origin') or 'scene', options.get('height'))
        return {name: meshes.write(mesh, out / f'mesh.{name}') for name in options.get('formats') or ('glb',)}
    if kind in ('splats', 'points'):
        return {'ply': CLOUDS[kind](output, out / f'{kind}.ply')}
    raise UsageError(f'a {kind} has no mesh: use `t3d generate`, which writes its pictures.')


def turntable_of(output: outputs.Output, out, *, log=print, **options) -> dict[str, pathlib.Path]:
    """The turntable alone, of a field."""
    kind = outputs.kind_of(output)
    if kind != 'field':
        raise UsageError(f'a turntable is rendered of a field, and this system makes {kind}: use `t3d generate`.')
    return assets.write_views(output, pathlib.Path(out), log=log, **_taken(assets.write_views, options))


def check_formats(kind: str, formats) -> None:
    """Raises UsageError for a format that an output of this kind does not have."""
    unknown = [name for name in formats if name not in FORMATS[kind]]
    if unknown:
        raise UsageError(f'format {unknown[0]!r}: {kind} can be written as {", ".join(FORMATS[kind])}.')


def check_place(kind: str, options: Mapping) -> None:
    """Raises UsageError for an origin, a height or a light that an output of this kind has no place for."""
    placing.check(options.get('origin') or 'scene', options.get('height'))
    for name, kinds in (('origin', ('field', 'mesh')), ('height', ('field', 'mesh')), ('light', ('field',))):
        value = options.get(name)
        if kind not in kinds and value not in (None, 'scene'):
            shown = f' {value}' if isinstance(value, str | int | float) else ''
            raise UsageError(f'--{name}{shown} is of the mesh of a {kinds[0]}, and this system makes {kind}: leave it out.')


def options_of(kind: str, command: str = 'generate') -> set[str]:
    """Names of the options of a command for outputs of a kind."""
    functions = {'generate': assets.write, 'export': assets.write_meshes, 'render': assets.write_views}
    writer = functions[command] if kind == 'field' else WRITERS[kind]
    return set(inspect.signature(writer).parameters) - {'output', 'asset', 'out', 'out_dir', 'views', 'report_info', 'log'}


def _taken(writer, options: dict) -> dict:
    parameters = inspect.signature(writer).parameters
    every = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in options.items() if every or name in parameters}


def _field(output: outputs.Field, out, *, report_info, log, **options):
    return assets.write(output, out, report_info=report_info, log=log, **_taken(assets.write, options))


def _mesh(output: outputs.Mesh, out, *, report_info, log, formats=('glb',), origin='scene', height=None):
    mesh, stands = _on_host(output), _placed(output, origin, height)
    paths = {name: meshes.write(stands, out / f'mesh.{name}') for name in dict.fromkeys(('glb', *formats))}
    views = assets.sheet_views(bound=float(np.abs(mesh.vertices).max()))
    drawn = [mesh_pictures.draw_mesh(mesh, pose, lens, 256) for pose, lens in zip(*views, strict=True)]
    paths['sheet'] = _sheet(out, output.prompt, [np.stack(drawn)], [name for name, _, _ in assets.SHEET_VIEWS])
    facts = {'faces': len(mesh.faces), 'volume': meshes.volume(mesh.vertices, mesh.faces), 'frame': 'y up, front +z, metres'}
    return _reported(paths, out, output, report_info, facts, paths['glb'])


def _splats(output: outputs.Splats, out, *, report_info, log):
    alive = slice(None) if output.alive is None else np.asarray(output.alive, bool)
    position, radius = np.asarray(output.means)[alive], np.asarray(output.scales)[alive].mean(-1)
    paths = {'ply': clouds.write_splats(output, out / 'splats.ply')}
    drawn = clouds.pictures(position, clouds.splat_colors(output)[alive], radius)
    paths['sheet'] = _sheet(out, output.prompt, [drawn], [name for name, _ in clouds.SIDES])
    return _reported(paths, out, output, report_info, {'splats': len(position)})


def _points(output: outputs.Points, out, *, report_info, log):
    position = np.asarray(output.positions)
    colour = np.full(position.shape, 0.6) if output.colors is None else np.asarray(output.colors)
    paths = {'ply': clouds.write_points(output, out / 'points.ply')}
    radius = np.full(len(position), 0.5 * np.abs(position).max(initial=1e-6) / max(len(position), 1) ** (1.0 / 3.0))
    paths['sheet'] = _sheet(out, output.prompt, [clouds.pictures(position, colour, radius)], [name for name, _ in clouds.SIDES])
    return _reported(paths, out, output, report_info, {'points': len(position)})


def _views(output: outputs.Views, out, *, report_info, log):
    images = sheets.to_uint8(np.asarray(output.images)[..., :3])
    paths = beside.write_views(output, out)
    paths['sheet'] = _sheet(out, output.prompt, [images], [f'view {number}' for number in range(len(images))])
    return _reported(paths, out, output, report_info, {'views': len(images)})


def _picture(output: outputs.Picture, out, *, report_info, log):
    sheets.write(out / 'image.png', sheets.to_uint8(output.image))
    return {'image': out / 'image.png'}


WRITERS = {'field': _field, 'mesh': _mesh, 'splats': _splats, 'points': _points, 'views': _views, 'picture': _picture}
CLOUDS = {'splats': clouds.write_splats, 'points': clouds.write_points}


def _sheet(out: pathlib.Path, prompt: str, rows, columns) -> pathlib.Path:
    sheets.write(out / 'sheet.png', sheets.sheet(np.stack(rows), [prompt], title='   '.join(columns)))
    return out / 'sheet.png'


def _reported(paths, out, output, report_info, facts, glb=None) -> dict[str, pathlib.Path]:
    info = {'environment': environment.summary(), **(report_info or {})}
    written = report.write(out / 'report.html', prompt=output.prompt, sheet=paths['sheet'], glb=glb, facts=facts, **info)
    return {**paths, 'report': written}


def _on_host(output: outputs.Mesh) -> meshes.Mesh:
    vertices, faces = np.asarray(output.vertices, np.float32), np.asarray(output.faces, np.int32)
    if not np.isfinite(vertices).all():
        raise UsageError('the mesh has vertices that are NaN or infinite: the object has diverged.')
    if not len(faces):
        raise UsageError('the mesh has no triangles: it has not been trained, or nothing of it is left.')
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise UsageError(f'the mesh has triangles of vertices {faces.min()} to {faces.max()}, and {len(vertices)} vertices.')
    colors = None if output.colors is None else sheets.to_uint8(output.colors)
    return meshes.Mesh(vertices, faces, meshes.smooth_normals(vertices, faces), colors, name=meshes.name_of(output.prompt))


def _placed(output: outputs.Mesh, origin: str, height: float | None) -> meshes.Mesh:
    mesh = _on_host(output)
    return placing.placed(mesh, placing.of(mesh, origin, height))
