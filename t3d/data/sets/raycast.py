"""Renders triangle meshes on the CPU: Embree finds the hits, NumPy shades them.

Images are RGBA with straight alpha, averaged over `supersample`^2 rays a pixel in display (sRGB) values; depth is planar z of
one ray through the pixel's centre, so that unprojecting it is exact, and 0 where that ray meets nothing. Parts with d < 1 and
texels with alpha < 1 are composited front to back over at most MAX_LAYERS surfaces; depth is that of the surface at which
opacity passes one half.

Shading is **independent of the view**, so that a radiance field without view directions can represent it: with the unit normal
n turned towards the viewer (windings in real files are unreliable) and a light l fixed in the world,

    shade = clip(AMBIENT + SKY n_y + SUN max(n . l, 0), 0, 1),    colour = shade * albedo.

The only view dependence left is which side of an infinitely thin sheet is seen. A head light, the common choice for previews,
would brighten what faces each camera and leave the views inconsistent. The procedural scenes use the same formula.
"""

import dataclasses
import io
from collections.abc import Callable

import numpy as np

from t3d.data.sets.objmesh import Mesh
from t3d.data.sets.shapes import AMBIENT, LIGHT, SKY
from t3d.data.sets.shapes import KEY as SUN  # one light for both data sets

MAX_LAYERS = 8
OPAQUE = 0.98  # opacity at which a ray stops
STEP = 1e-4  # how far past a transparent surface the ray goes on, scene units
DEPTH_OPACITY = 0.5


@dataclasses.dataclass(frozen=True)
class Hits:
    """The surfaces that rays meet, front to back. L layers, N rays; where nothing is met, part is -1 and alpha 0."""

    part: np.ndarray  # int32 [L, N] index into Mesh.parts
    albedo: np.ndarray  # float32 [L, N, 3] unlit display colour
    alpha: np.ndarray  # float32 [L, N] opacity of the surface
    shade: np.ndarray  # float32 [L, N] brightness in [0, 1]
    dist: np.ndarray  # float32 [L, N] ray distance, scene units

    def weights(self) -> np.ndarray:
        """float32 [L, N]: what each surface contributes to its ray's colour; the sum over layers is the ray's opacity."""
        through = np.cumprod(np.concatenate([np.ones_like(self.alpha[:1]), 1.0 - self.alpha[:-1]]), 0)
        return through * self.alpha


class Scene:
    """A mesh ready to be traced: Embree's hierarchy, normals, decoded textures."""

    def __init__(self, mesh: Mesh, read: Callable[[str], bytes] | None = None):
        """`read(path)` gives the bytes of a texture; without it, or where decoding fails, `Kd` is used.

        `unread` names the textures that fail, each with the reason.
        """
        try:
            from embreex.mesh_construction import TriangleMesh
            from embreex.rtcore_scene import EmbreeScene
        except ImportError as error:
            raise ModuleNotFoundError(
                'rendering meshes needs Embree (package embreex): pip install t3d[data]. Its wheels are '
                'for x86-64 Linux, Windows and macOS.'
            ) from error
        if not len(mesh.positions):
            raise ValueError('the mesh has no triangle: wanted at least one to render; check the OBJ it came from.')
        self.mesh = mesh
        self.textures, self.unread = [], []
        for part in mesh.parts:
            try:
                self.textures.append(_pyramid(part.texture, read))
            except Exception as error:  # Pillow lets through what its decoders meet: struct.error, IndexError, ...
                self.textures.append([])
                self.unread.append(f'{part.texture} ({error or type(error).__name__})')
        a, b, c = (mesh.positions[:, corner] for corner in range(3))
        cross = np.cross(b - a, c - a)
        self.face_normals = _unit(cross)
        self.texel_density = self._texel_density(np.linalg.norm(cross, axis=-1))
        self._embree = EmbreeScene()
        TriangleMesh(self._embree, np.ascontiguousarray(mesh.positions, np.float32))

    def _texel_density(self, double_area: np.ndarray) -> np.ndarray:
        """Texels per scene unit of each triangle [T], 0 without a texture or uvs."""
        size = np.array([levels[0].shape[0] * levels[0].shape[1] if levels else 0 for levels in self.textures], np.float64)
        a, b, c = (self.mesh.uvs[:, corner].astype(np.float64) for corner in range(3))
        first, second = b - a, c - a
        double_uv_area = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])
        return np.nan_to_num(np.sqrt(double_uv_area * size[self.mesh.part] / np.maximum(double_area, 1e-12)))

    def trace(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(triangle int32 [N] or -1, barycentric [N, 3], ray distance [N]) of the nearest hits."""
        origins, directions = (np.ascontiguousarray(array, np.float32) for array in (origins, directions))
        hits = self._embree.run(origins, directions, output=1)
        barycentric = np.stack([1.0 - hits['u'] - hits['v'], hits['u'], hits['v']], -1)
        return hits['primID'].astype(np.int32), barycentric, hits['tfar']

    def hits(self, origins: np.ndarray, directions: np.ndarray, spread: float) -> Hits:
        """Follows unit rays [N, 3] through whatever is transparent; `spread` is the width of a ray per unit distance."""
        count = len(origins)
        layers, travelled, through = [], np.zeros(count, np.float32), np.ones(count, np.float32)
        alive = np.arange(count)
        while len(alive) and len(layers) < MAX_LAYERS:
            start = origins[alive] + travelled[alive, None] * directions[alive]
            triangle, barycentric, near = self.trace(start, directions[alive])
            met = triangle >= 0
            alive, triangle, barycentric, near = alive[met], triangle[met], barycentric[met], near[met]
            if layers and not len(alive):
                break
            travelled[alive] += near
            layer = [np.full(count, -1, np.int32), np.zeros((count, 3), np.float32), *np.zeros((3, count), np.float32)]
            albedo, alpha = self._albedo(triangle, barycentric, travelled[alive] * spread)
            shade = self._shade(triangle, barycentric, directions[alive])
            for target, values in zip(layer, (self.mesh.part[triangle], albedo, alpha, shade, travelled[alive])):
                target[alive] = values
            layers.append(layer)
            through[alive] *= 1.0 - alpha
            travelled[alive] += STEP
            alive = alive[through[alive] > 1.0 - OPAQUE]
        return Hits(*(np.stack(parts) for parts in zip(*layers)))

    def _shade(self, triangle, barycentric, directions) -> np.ndarray:
        """Brightness [N] of hits; corner normals where the file has them, else the triangle's own."""
        face = self.face_normals[triangle]
        face = np.where((face * directions).sum(-1, keepdims=True) > 0.0, -face, face)
        smooth = _unit((self.mesh.normals[triangle] * barycentric[..., None]).sum(1))
        smooth = np.where((smooth * face).sum(-1, keepdims=True) < 0.0, -smooth, smooth)
        usable = np.isfinite(smooth).all(-1, keepdims=True) & (np.abs(smooth).max(-1, keepdims=True) > 0.0)
        return shade(np.where(usable, smooth, face))

    def _albedo(self, triangle, barycentric, width) -> tuple[np.ndarray, np.ndarray]:
        """(colour [N, 3], opacity [N]) of hits; `width` [N] is how much of the surface a ray stands for."""
        part = self.mesh.part[triangle]
        colour = np.array([part.diffuse for part in self.mesh.parts], np.float32)[part]
        alpha = np.array([part.opacity for part in self.mesh.parts], np.float32)[part]
        uv = (self.mesh.uvs[triangle] * barycentric[..., None]).sum(1)
        textured = np.array([bool(levels) for levels in self.textures])[part] & np.isfinite(uv).all(-1)
        level = np.log2(np.maximum(self.texel_density[triangle] * width, 1.0)).round()
        level = np.minimum(level, 31).astype(np.int32)
        for code in np.unique(part[textured] * 32 + level[textured]):
            which = textured & (part == code // 32) & (level == code % 32)
            levels = self.textures[code // 32]
            texel = _bilinear(levels[min(code % 32, len(levels) - 1)], uv[which])
            colour[which] = texel[:, :3]  # instead of Kd: beside a map, exporters write a meaningless default there
            alpha[which] *= texel[:, 3]
        return colour, alpha


def shade(normals: np.ndarray) -> np.ndarray:
    """Brightness [...] in [0, 1] of unit normals [..., 3] that face the viewer: the formula at the top."""
    return np.clip(AMBIENT + SKY * normals[..., 1] + SUN * np.maximum(normals @ LIGHT, 0.0), 0.0, 1.0).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- images


def pixel_rays(world_from_cam: np.ndarray, intrinsics: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(origins, unit directions) float32 [size * size, 3], row-major; `geom.cameras.rays` in NumPy, without skew."""
    centres = (np.arange(size) + 0.5) / size
    v, u = np.meshgrid(centres, centres, indexing='ij')
    x, y = (u - intrinsics[0, 2]) / intrinsics[0, 0], (v - intrinsics[1, 2]) / intrinsics[1, 1]
    local = np.stack([x, y, np.ones_like(u)], -1)
    directions = _unit(local.reshape(-1, 3) @ world_from_cam[:3, :3].T.astype(np.float64)).astype(np.float32)
    return np.broadcast_to(world_from_cam[:3, 3].astype(np.float32), directions.shape), directions


def view_hits(scene: Scene, world_from_cam: np.ndarray, intrinsics: np.ndarray, size: int, supersample: int) -> Hits:
    """What the rays of one image meet; N = (size * supersample)^2."""
    fine = size * supersample
    return scene.hits(*pixel_rays(world_from_cam, intrinsics, fine), 1.0 / (intrinsics[0, 0] * fine))


def image(hits: Hits, albedo: np.ndarray, size: int, supersample: int) -> np.ndarray:
    """uint8 [size, size, 4], straight alpha, of the hits of `view_hits` with an albedo [L, N, 3], theirs or another."""
    weights = hits.weights()
    lit = ((weights * hits.shade)[..., None] * albedo).sum(0)
    rgba = np.concatenate([lit, weights.sum(0)[:, None]], -1)
    rgba = rgba.reshape(size, supersample, size, supersample, 4).mean((1, 3))
    alpha = rgba[..., 3:]
    straight = np.concatenate([rgba[..., :3] / np.maximum(alpha, 1e-6), alpha], -1)
    result = np.round(np.clip(straight, 0.0, 1.0) * 255.0).astype(np.uint8)
    result[result[..., 3] == 0] = 0
    return result


def planar_depth(scene: Scene, world_from_cam: np.ndarray, intrinsics: np.ndarray, size: int) -> np.ndarray:
    """float32 [size, size]: z of the surface at each pixel's centre, 0 where there is none."""
    origins, directions = pixel_rays(world_from_cam, intrinsics, size)
    hits = scene.hits(origins, directions, 1.0 / (intrinsics[0, 0] * size))
    opaque = np.cumsum(hits.weights(), 0) >= DEPTH_OPACITY
    first = opaque.argmax(0)
    dist = np.where(opaque.any(0), np.take_along_axis(hits.dist, first[None], 0)[0], 0.0)
    return (dist * (directions @ world_from_cam[:3, 2])).astype(np.float32).reshape(size, size)


def fit_sphere(positions: np.ndarray, radius: float) -> np.ndarray:
    """Positions [..., 3] moved and scaled so that the sphere about their bounding box's centre has `radius`, at the origin."""
    points = positions.reshape(-1, 3).astype(np.float64)
    centre = 0.5 * (points.min(0) + points.max(0))
    extent = np.sqrt(((points - centre) ** 2).sum(-1).max())
    return ((positions - centre) * (radius / max(extent, 1e-12))).astype(np.float32)


# ----------------------------------------------------------------------------------------------------------- textures


MAX_TEXTURE = 1024  # texels a side of the finest level kept


def _pyramid(path: str | None, read) -> list[np.ndarray]:
    """float32 [h, w, 4] levels, each half the size of the one before; [] without a texture. Raises what Pillow raises."""
    if path is None or read is None:
        return []
    import PIL
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(read(path)))
    except PIL.UnidentifiedImageError as error:
        raise ValueError('no picture of a format that is read') from error
    if picture.mode[0] == 'F':
        raise ValueError('pixels are floating-point numbers: wanted 8 or 16 bits')
    if picture.mode[0] == 'I':  # 16 bits
        picture = Image.fromarray((np.clip(np.asarray(picture), 0, 65535) >> 8).astype(np.uint8))
    picture = picture.convert('RGBA')
    shrink = -(-max(picture.size) // MAX_TEXTURE)
    levels = [picture.reduce(shrink) if shrink > 1 else picture]
    while max(levels[-1].size) > 1:
        levels.append(levels[-1].reduce(2))
    return [np.asarray(level, np.float32) / 255.0 for level in levels]


def _bilinear(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Texels [N, 4] at uv [N, 2], v upwards, repeating."""
    height, width = texture.shape[:2]
    x, y = uv[:, 0] % 1.0 * width - 0.5, (1.0 - uv[:, 1]) % 1.0 * height - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    dx, dy = (x - left)[:, None], (y - top)[:, None]
    rows, columns = (top % height, (top + 1) % height), (left % width, (left + 1) % width)
    upper = texture[rows[0], columns[0]] * (1.0 - dx) + texture[rows[0], columns[1]] * dx
    lower = texture[rows[1], columns[0]] * (1.0 - dx) + texture[rows[1], columns[1]] * dx
    return upper * (1.0 - dy) + lower * dy


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-20)
