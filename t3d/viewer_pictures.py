"""What `t3d view` shows: an object or picture, drawn as colour, normals or depth at any shape of window, and as files."""

import io
import math
import pathlib
import tempfile
from typing import NamedTuple

import numpy as np

from t3d.core.errors import UsageError
from t3d.core.outputs import Field, Picture, kind_of

MODES = ('colour', 'normal', 'depth', 'mesh')
GRID = 64  # cells per side of the density grid that normals come from and that spares rays


class Shown(NamedTuple):
    """What a prompt and a seed gave."""

    prompt: str
    seed: int
    made: Field | Picture
    densities: np.ndarray | None  # [GRID, GRID, GRID]; None for a picture
    inward: np.ndarray | None  # `video.inward_gradient` of it


def make(loaded, prompt: str, seed: int = 0) -> Shown:
    """Generates; raises UsageError for a prompt or a seed that the model cannot take."""
    from t3d.export import video
    from t3d.geom import meshing
    from t3d.inference import loading

    if not 0 <= seed < 2**32:
        raise UsageError(f'seed {seed}: wanted a whole number from 0 to 2^32 - 1.')
    ((_, made),) = loading.generate(loaded, [prompt], [seed])
    if isinstance(made, Picture):
        return Shown(prompt, seed, made, None, None)
    if not isinstance(made, Field):
        raise UsageError(
            f'{loaded.name} makes {kind_of(made)}: `t3d generate` writes them, `t3d view` shows fields and pictures.'
        )
    densities = meshing.density_grid(made.field, made.scene, made.bound, GRID)
    return Shown(prompt, seed, made, densities, video.inward_gradient(densities, made.bound))


def draw(shown: Shown, mode: str, world_from_cam, fov: float, shape: tuple[int, int], mesh=None) -> np.ndarray:
    """uint8 [H, W, 3].

    Args:
      mode: of MODES. A picture has its colours only.
      world_from_cam: 4x4, OpenCV axes.
      fov: vertical, radians.
      shape: (height, width) in pixels, which are square.
      mesh: of `build_mesh`, for 'mesh': drawn unlit, as the lighting is in its colours.
    """
    import jax

    from t3d.export import mesh_pictures, renders, video
    from t3d.geom import cameras

    if shown.densities is None:
        return fit(to_bytes(shown.made.image), shape)
    lens = np.array(cameras.intrinsics_from_fov(fov))
    lens[0, 0] *= shape[0] / shape[1]
    if mode == 'mesh':
        return mesh_pictures.draw_mesh(mesh, world_from_cam, lens, shape)
    views = jax.tree.map(lambda leaf: np.float32(leaf)[None], cameras.Cameras(world_from_cam, lens))
    frames = renders.render_views(shown.made, views, shape, grid=shown.densities)
    normals = np.zeros_like(frames.rgb)
    if mode == 'normal':
        normals = video.normal_maps(frames, views, shown.inward, shown.made.bound)
    near, far = video.depth_limits(shown.made, shown.densities)
    distance = float(np.linalg.norm(world_from_cam[:3, 3]))
    limits = distance - 0.5 * (far - near), distance + 0.5 * (far - near)
    panel = {'normal': 1, 'depth': 2}.get(mode, 0)
    return video.panels(frames, normals, limits)[0][:, panel * shape[1] : (panel + 1) * shape[1]]


def to_bytes(image) -> np.ndarray:
    """The pixels of a generated picture, uint8 [H, W, 3]."""
    from t3d.export import sheets

    return sheets.to_uint8(image)


def fit(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A picture in the middle of a white window, as large as fits with its proportions; small ones by a whole factor."""
    from PIL import Image

    scale = min(shape[0] / image.shape[0], shape[1] / image.shape[1])
    scale = math.floor(scale) if scale >= 1 else scale
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    window = Image.new('RGB', shape[::-1], 'white')
    window.paste(Image.fromarray(image).resize((width, height), how), ((shape[1] - width) // 2, (shape[0] - height) // 2))
    return np.asarray(window)


def greyed(image: np.ndarray) -> np.ndarray:
    """The picture without colours and pale: what stands behind a refusal is not what was asked for."""
    grey = image.astype(np.float32) @ np.float32([0.2126, 0.7152, 0.0722])
    return np.repeat((175 + grey[..., None] * 0.3).astype(np.uint8), 3, -1)


def build_mesh(loaded, shown: Shown, log=print):
    """The `meshes.Mesh` that `t3d export` writes: grid, faces and texture of the model's config."""
    from t3d.export import extraction
    from t3d.geom import meshing

    asset, options = shown.made, loaded.config.export
    densities = meshing.density_grid(asset.field, asset.scene, asset.bound, options.grid)
    level_set = extraction.surface(asset, densities, log=log)
    if options.texture:
        return extraction.textured(asset, level_set, most=options.faces, texture=options.texture, log=log)
    return extraction.coloured(asset, level_set, most=options.faces, log=log)[0]


def glb(mesh) -> bytes:
    """The mesh as a GLB file."""
    from t3d.export import meshes

    with tempfile.TemporaryDirectory() as folder:
        return meshes.write(mesh, pathlib.Path(folder, 'mesh.glb')).read_bytes()


def png(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, 'png')
    return file.getvalue()
