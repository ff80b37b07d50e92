"""Pictures of meshes: a z-buffer in NumPy. Unlit, for the light is in the colours."""

import numpy as np

from t3d.export import texture as textures
from t3d.export.meshes import Mesh
from t3d.geom import cameras

NEAREST = 1e-3  # scene units: what is nearer to the camera, or behind it, is not drawn


def draw_mesh(mesh: Mesh, world_from_cam, intrinsics, size: int | tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3]: the mesh's own colours (texture or vertices) over white.

    Faces that reach behind the camera are left out. `size` is that of `renders.render_views`.
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


def coverage(mesh: Mesh, views: cameras.Cameras, size: int | tuple[int, int]) -> np.ndarray:
    """float32 [V, H, W] in [0, 1]: the share of each pixel that the mesh covers."""
    black = mesh._replace(texture=None, colors=np.zeros((len(mesh.vertices), 3), np.uint8))
    poses = zip(np.asarray(views.world_from_cam), np.asarray(views.intrinsics), strict=True)
    drawn = np.stack([draw_mesh(black, pose, lens, size)[..., 0] for pose, lens in poses])
    return 1.0 - drawn / np.float32(255.0)
