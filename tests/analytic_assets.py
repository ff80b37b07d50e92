"""Assets in closed form for the export tests: coloured shapes whose every colour and extent is known."""

import jax.numpy as jnp

from t3d.core.outputs import Field
from t3d.geom import rays as ray_geometry
from t3d.geom import volume

CAMERA = {'radius': 3.5, 'fov': 0.7}


def asset(prompt, field, *, sharpness=150.0, bound=1.0, num_samples=64):
    """An Field over `field(scene, points) -> (density, rgb)`, rendered by geom.volume over white."""

    def render(scene, rays):
        near, far = ray_geometry.ray_box(rays, 2.0 * bound)
        out = volume.render(
            lambda points, directions: field(scene, points), rays, None, near=near, far=far, num_samples=num_samples
        )
        return out.replace(features=volume.over(out, jnp.ones(3)))

    return Field(prompt, {'sharpness': jnp.float32(sharpness)}, field, render, bound, CAMERA)


def _solid(scene, distance):
    """Density 40 inside, with a soft step at signed distance 0."""
    return 40.0 / (1.0 + jnp.exp(jnp.clip(scene['sharpness'] * distance, -30.0, 30.0)))


def sphere(radius=0.6, sharpness=150.0):
    """A sphere about the origin whose colour encodes its normal: (n + 1) / 2."""

    def field(scene, points):
        norm = jnp.linalg.norm(points, axis=-1)
        return _solid(scene, norm - radius), 0.5 + 0.5 * points / jnp.maximum(norm, 1e-6)[..., None]

    return asset('a sphere that wears its normals', field, sharpness=sharpness)


def shell(radius=0.6, thickness=0.08):
    """A hollow sphere that is a little transparent, so that the mean depth lies inside; its colour encodes its normal."""

    def field(scene, points):
        norm = jnp.linalg.norm(points, axis=-1)
        distance = jnp.abs(norm - radius + 0.5 * thickness) - 0.5 * thickness
        return _solid(scene, distance), 0.5 + 0.5 * points / jnp.maximum(norm, 1e-6)[..., None]

    return asset('a hollow sphere', field, num_samples=160)


def cone_on_cube():
    """A blue cube over y in [-0.7, 0], a red cone over y in [0, 0.8]."""

    def field(scene, points):
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        cube = jnp.maximum(jnp.maximum(jnp.abs(x) - 0.4, jnp.abs(z) - 0.4), jnp.abs(y + 0.35) - 0.35)
        cone = jnp.maximum(0.9 * (jnp.sqrt(x * x + z * z + 1e-12) - 0.35 * (1.0 - y / 0.8)), -y)
        red, blue = jnp.array([0.85, 0.1, 0.1]), jnp.array([0.1, 0.2, 0.9])
        return _solid(scene, jnp.minimum(cube, cone)), jnp.where((y > 0.0)[..., None], red, blue)

    return asset('a red cone on top of a blue cube', field)


def arrows():
    """Three bars from the origin: +x red, +y green, +z blue, of lengths 0.9, 0.7 and 0.5."""

    def field(scene, points):
        parts = []
        for axis, length in enumerate((0.9, 0.7, 0.5)):
            along = points[..., axis]
            across = jnp.maximum(jnp.abs(points[..., (axis + 1) % 3]), jnp.abs(points[..., (axis + 2) % 3]))
            parts.append(jnp.maximum(across - 0.1, jnp.maximum(-along - 0.1, along - length)))
        color = jnp.eye(3)[jnp.argmax(points, -1)]
        return _solid(scene, jnp.min(jnp.stack(parts), 0)), 0.1 + 0.8 * color

    return asset('three arrows', field)


def _box(points, centre, half):
    return jnp.max(jnp.abs(points - jnp.array(centre)) - jnp.array(half), -1)


def _soft(density, distance, sharpness=150.0):
    return density / (1.0 + jnp.exp(jnp.clip(sharpness * distance, -30.0, 30.0)))


def table(leg, *, fog=0.0, gap=0.0):
    """A top of density 40 over y in [0.25, 0.35], four legs 0.08 wide down to y = -0.7, and a box of fog among them."""

    def field(scene, points):
        parts = [_soft(40.0, _box(points, (0.0, 0.3, 0.0), (0.7, 0.05, 0.5)))]
        half = (0.95 - gap) / 2
        parts += [_soft(leg, _box(points, (x, -0.7 + half, z), (0.04, half, 0.04))) for x in (-0.6, 0.6) for z in (-0.4, 0.4)]
        parts.append(_soft(fog, _box(points, (0.0, -0.2, 0.0), (0.7, 0.5, 0.5)), 30.0))
        density = jnp.max(jnp.stack(parts), 0)
        return density, jnp.broadcast_to(jnp.array([0.6, 0.4, 0.2]), points.shape)

    return asset('a table', field)


def foggy_ball(fog):
    """A ball of density 40 and radius 0.5 in fog that fades from it."""

    def field(scene, points):
        norm = jnp.linalg.norm(points, axis=-1)
        return _soft(40.0, norm - 0.5) + fog * jnp.exp(-jnp.maximum(norm - 0.5, 0.0) / 0.15), 0.5 * jnp.ones_like(points)

    return asset('a ball in fog', field)
