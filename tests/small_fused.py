"""A render of triplanes by XLA and by the fused kernel, with gradients: what tests of the kernel share, without pytest."""

import jax
import jax.numpy as jnp

from t3d.core import numerics
from t3d.fields import fused_render, triplane_field
from t3d.geom import volume
from t3d.geom.rays import Rays, ray_box

LEVEL = 0.7


def density(raw):
    return 20.0 * numerics.softplus(raw - 1.0)


SIGMOID = fused_render.Options(numerics.scaled_sigmoid, density)


def lump(points):
    """Raw density in the middle of the box."""
    return 1.0 - 2.0 * jnp.sum(points * points, -1)


def drawn(size, channels, rays, scenes=1, hidden=12, outputs=3, samples=5, fine=0):
    """(planes, decoder), rays and draws. Many rays miss the box, some begin in it, all leave the planes' box."""
    keys = jax.random.split(jax.random.key(0), 5)
    planes = jax.random.normal(keys[0], (scenes, 3, size, size, channels))
    decoder = triplane_field.init(keys[1], channels, hidden=hidden, outputs=outputs)
    decoder['hidden']['bias'] += jnp.linspace(-0.5, 0.5, hidden)
    decoder['out']['bias'] += jnp.linspace(-0.5, 0.5, outputs + 1)
    ways = jax.random.normal(keys[3], (scenes, rays, 3))
    ways /= jnp.linalg.norm(ways, axis=-1, keepdims=True)
    return (
        (planes, decoder),
        Rays(1.5 * jax.random.normal(keys[2], (scenes, rays, 3)), ways),
        volume.draws(keys[4], (scenes, rays), samples, fine),
    )


def by_xla(scene, rays, draws, options, added):
    field = triplane_field.make(
        scene[1],
        scene[0],
        bound=options.bound,
        plane_axes=options.plane_axes,
        equalised=options.equalised,
        activation=lambda features: options.activation(features, LEVEL),
    )

    def whole(points, directions):
        raw, colours = field(points)
        return raw + (added(points) if added else 0.0), colours

    near, far = ray_box(rays, 3.0)
    return volume.render_at(whole, rays, *draws, near=near, far=far, density_activation=options.density)


def by_kernel(scene, rays, draws, options, added):
    near, far = ray_box(rays, 3.0)
    scenes = fused_render.Scenes(*scene, jnp.float32(LEVEL))
    return fused_render.render_at(scenes, rays, *draws, near=near, far=far, options=options, added=added)


def both(render, scene, rays, draws, options, added=None):
    """What rays see, and gradients of planes and decoder for a slope of all of it."""
    out, pull = jax.vjp(lambda *scene: render(scene, rays, draws, options, added).replace(weights=None), *scene)
    slope = jax.tree.map(lambda x: jnp.cos(7.0 * jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), out)
    return out, pull(slope)
