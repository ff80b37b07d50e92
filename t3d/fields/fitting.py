"""Posed views to a triplane field by optimisation: pure functions of pixels, a key and a capacity.

A scene is fitted in the cube [-1, 1]^3. Its planes are a sum of pyramid levels, which Adam moves at their own scales, so that
one program goes from coarse to fine. Between stages the density is looked up on a grid: rays are then sampled where something
is, and those that see nothing and should see nothing are no longer drawn. The loss of a step, over random rays of all views:

    huber(colour over a background) + mask (opacity - alpha)^2 + tv |differences of planes|^2 + entropy H(opacity)

Views with an alpha of their own are compared over a random background for each ray, those without over the one they have.
Sources: EG3D's field (arXiv 2112.07945); total variation on planes, K-Planes (arXiv 2301.10241, Sec. 4.3); the grid of what is
occupied, instant-ngp (arXiv 2201.05989, Sec. 5.4), here as limits of each ray.
"""

import functools
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax

from t3d.core import numerics, optim, tree
from t3d.core.typing import PyTree
from t3d.fields import triplane_field
from t3d.geom import cameras, occupancy, volume
from t3d.geom.rays import Rays, ray_box

SEEN = 0.01  # opacity of a cell from which it is occupied
SURE = 0.05  # alpha from which a pixel shows some of the object
LEAST = 2**12  # pixels at least: fewer are filled up, to powers of two, so that few programs are compiled


class Options(NamedTuple):
    """What a fit may use; numbers, so that it is static for the compiler.

    Attributes:
      resolution, channels, hidden: of the planes (texels per side, the finest level) and of the point MLP.
      levels: of the pyramid, each of half the resolution of the next.
      cells: per side of the grid of what is occupied.
      samples: on a ray.
      rays, steps: of one object at each step, and how many steps.
      stages: how many times the grid is made anew; divides the steps.
      learning_rate: of the planes at its peak; `decoder_rate`: that of the point MLP.
      huber: colour error from which it counts linearly; 0: squared throughout.
      mask, tv, entropy: weights of the loss; `entropy` grows to its weight over the steps.
      density: per unit length, of a raw output of 1.
    """

    resolution: int = 128
    channels: int = 8
    hidden: int = 32
    levels: int = 4
    cells: int = 64
    samples: int = 32
    rays: int = 1024
    steps: int = 600
    stages: int = 6
    learning_rate: float = 0.06
    decoder_rate: float = 0.01
    huber: float = 0.1
    mask: float = 0.5
    tv: float = 0.003
    entropy: float = 0.002
    density: float = 25.0


@flax.struct.dataclass
class Pixels:
    """What rays saw of one object; positions in units of the cube's half side. With a leading axis: of several objects."""

    rays: Rays  # [N, 3]
    rgb: jax.Array  # [N, 3] over black: what the object adds to its background
    alpha: jax.Array  # [N]
    sure: jax.Array  # [N] weight of the mask: 0 where alpha is not known
    weight: jax.Array  # [N] share in the draws; 0 leaves a pixel out
    background: jax.Array  # [3] behind the pictures
    free: jax.Array  # scalar: 1 where alpha is exact and any background will do, 0 where colours belong to `background`


# ---------------------------------------------------------------------------------------------------------------- pixels


def pixels(images, views: cameras.Cameras, bound, *, background, mask=None, weight=None) -> Pixels:
    """The pixels of one object's views, filled up to a power of two.

    Args:
      images: [V, H, W, 4] straight alpha, or [V, H, W, 3] over `background`; float in [0, 1].
      views: V cameras.
      bound: half the side of the cube, scene units.
      background: a grey or a colour [3].
      mask: for RGB: (alpha [V, H, W], where it is sure [V, H, W]); None: alpha is not supervised.
      weight: [V] of each view; 0 leaves it out. None: all 1.
    """
    images = jnp.asarray(images, jnp.float32)
    count, height, width, channels = images.shape
    background = jnp.broadcast_to(jnp.asarray(background, jnp.float32), (3,))
    if channels == 4:
        alpha, sure, free = images[..., 3], jnp.ones(images.shape[:3], jnp.float32), 1.0
        rgb = images[..., :3] * alpha[..., None]
    else:
        none = jnp.ones(images.shape[:3], jnp.float32), jnp.zeros(images.shape[:3], jnp.float32)
        alpha, sure = none if mask is None else (jnp.asarray(part, jnp.float32) for part in mask)
        rgb, free = images - background * (1.0 - alpha[..., None]), 0.0
    weight = jnp.ones(count, jnp.float32) if weight is None else jnp.asarray(weight, jnp.float32)
    rays = cameras.rays(views, height, width)
    spare = capacity(count * height * width) - count * height * width
    flat = lambda value, last=(): jnp.pad(value.reshape(-1, *last), [(0, spare), *[(0, 0)] * len(last)])
    return Pixels(
        Rays(flat(rays.origins / bound, (3,)), flat(rays.directions, (3,)).at[count * height * width :, 2].set(1.0)),
        flat(rgb, (3,)),
        flat(alpha),
        flat(sure),
        flat(jnp.broadcast_to(weight[:, None, None], images.shape[:3])),
        background,
        jnp.float32(free),
    )


def capacity(count: int) -> int:
    """The power of two, LEAST at least, that `count` pixels are filled up to."""
    return max(LEAST, 1 << (count - 1).bit_length())


def seen_bound(views: cameras.Cameras) -> jax.Array:
    """Radius of the largest sphere about the origin that a camera has whole in its frame, the median over the cameras [V].

    0 or less: half of the cameras do not show the origin.
    """
    corners = jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    rays = cameras.rays_at(views, corners)
    sides = numerics.normalize(jnp.cross(rays.directions, jnp.roll(rays.directions, -1, axis=-2)))  # inwards
    return jnp.median(jnp.min(-jnp.sum(sides * rays.origins, -1), -1))


# ------------------------------------------------------------------------------------------------------------- the scene


def init(key, options: Options) -> PyTree:
    """Parameters {'planes': {level: [3, r, r, C]}, 'field': of triplane_field}: nearly empty space."""
    key_planes, key_field = jax.random.split(key)
    shapes = {str(n): options.resolution >> n for n in range(options.levels)}
    planes = {
        name: 0.1 * jax.random.normal(key, (3, side, side, options.channels), jnp.float32)
        for (name, side), key in zip(shapes.items(), jax.random.split(key_planes, options.levels))
    }
    field = triplane_field.init(key_field, options.channels, hidden=options.hidden, outputs=3, equalised=False)
    return {'planes': planes, 'field': field}


def planes_of(params: PyTree, options: Options) -> jax.Array:
    """[3, R, R, C]: the sum of the levels, each enlarged."""
    shape = (3, options.resolution, options.resolution, options.channels)
    return sum(jax.image.resize(level, shape, 'bilinear') for level in params['planes'].values())


def raw_field(scene: PyTree):
    """The renderer's field of a scene {'planes', 'field'} in [-1, 1]^3."""
    return triplane_field.make(scene['field'], scene['planes'], bound=1.0, equalised=False)


def density(raw: jax.Array, options: Options) -> jax.Array:
    """Density per unit of the cube from the raw output, which starts at 0: then little."""
    return options.density * numerics.softplus(raw - 5.0)


def occupied(scene: PyTree, options: Options) -> jax.Array:
    """bool [G, G, G], axes x, y, z: cells whose opacity is SEEN or more, and their neighbours."""
    raw, _ = raw_field(scene)(occupancy.centres(options.cells))
    full = density(raw, options) * (2.0 / options.cells) >= SEEN
    return occupancy.grow(full.reshape((options.cells,) * 3))


def render(scene: PyTree, rays: Rays, samples: int, options: Options) -> volume.RenderOutput:
    """RenderOutput of rays [N, 3] in units of the cube, over black; evenly spaced samples between the occupied cells."""
    near, far = occupancy.limits(scene['occupied'], rays)
    activation = functools.partial(density, options=options)
    kind = {'near': near, 'far': far, 'num_samples': samples, 'density_activation': activation}
    return volume.render_chunked(raw_field(scene), rays, None, chunk=min(2**14, rays.origins.shape[0]), **kind)


# --------------------------------------------------------------------------------------------------------------- fitting


def fit(pixels: Pixels, key, options: Options) -> PyTree:
    """The scene {'planes' [3, R, R, C], 'field', 'occupied' [G, G, G]} of one object's pixels; the same key, the same scene."""
    key_init, key_steps = jax.random.split(key)
    params, adam = init(key_init, options), optax.scale_by_adam(b1=0.9, b2=0.99, eps=1e-8)
    scene = lambda params: {'planes': planes_of(params, options), 'field': params['field']}
    box = ray_box(pixels.rays, 2.0)
    each = options.steps // options.stages

    def stage(carry, number):
        params, moments = carry
        cells = occupied(scene(params), options) | (number == 0)
        near, far = occupancy.limits(cells, pixels.rays)
        lost = (near > far) & (pixels.alpha > SURE) & (pixels.sure > 0.0)  # must show something: looked for in the whole box
        near, far = jnp.where(lost, box[0], near), jnp.where(lost, box[1], far)
        chance = jnp.cumsum(pixels.weight * (near < far))
        ends = near, far, chance / jnp.maximum(chance[-1], 1e-6)
        step = lambda n, carry: _step(carry, pixels, ends, number * each + n, key_steps, adam, options)
        return jax.lax.fori_loop(0, each, step, (params, moments)), None

    (params, _), _ = jax.lax.scan(stage, (params, adam.init(params)), jnp.arange(options.stages, dtype=jnp.int32))
    return {**scene(params), 'occupied': occupied(scene(params), options)}


def _step(carry, pixels: Pixels, ends, step, key, adam, options: Options):
    """(params, moments) after one step of Adam on random rays."""
    params, moments = carry
    key_draw, key_jitter, key_background = jax.random.split(jax.random.fold_in(key, step), 3)
    near, far, chance = ends
    u = (jnp.arange(options.rays) + jax.random.uniform(key_draw, (options.rays,), jnp.float32)) / options.rays
    index = jnp.minimum(jnp.searchsorted(chance, u, side='right'), chance.shape[0] - 1)
    rays, alpha = jax.tree.map(lambda leaf: leaf[index], (pixels.rays, pixels.alpha))
    random = jax.random.uniform(key_background, (options.rays, 3), jnp.float32)
    background = pixels.background + pixels.free * (random - pixels.background)
    target = pixels.rgb[index] + background * (1.0 - alpha[:, None])
    activation = functools.partial(density, options=options)
    ranges = {'near': near[index], 'far': far[index], 'num_samples': options.samples, 'density_activation': activation}
    ramp = step / options.steps

    def loss(params):
        planes = planes_of(params, options)
        out = volume.render(raw_field({'planes': planes, 'field': params['field']}), rays, key_jitter, **ranges)
        off = volume.over(out, background) - target
        error = optax.losses.huber_loss(off, delta=options.huber) if options.huber else 0.5 * jnp.square(off)
        opacity = jnp.clip(out.opacity, 1e-4, 1.0 - 1e-4)
        entropy = -opacity * jnp.log(opacity) - (1.0 - opacity) * jnp.log1p(-opacity)
        rough = sum(jnp.mean(jnp.square(jnp.diff(planes, axis=axis))) for axis in (1, 2))
        return (
            2.0 * jnp.mean(error)
            + options.mask * jnp.mean(pixels.sure[index] * jnp.square(out.opacity - alpha))
            + options.tv * rough
            + options.entropy * ramp * jnp.mean(entropy)
        )

    updates, moments = adam.update(jax.grad(loss)(params), moments)
    rate = optim.warmup_cosine(step, 1.0, 10, options.steps, 0.05)
    rates = {'planes': options.learning_rate * rate, 'field': options.decoder_rate * rate}
    move = lambda name, leaf, update: leaf - rates[name.split('/')[0]] * update
    return tree.map_with_name(move, params, updates), moments


@functools.partial(jax.jit, static_argnums=2)
def fit_each(pixels: Pixels, keys, options: Options) -> PyTree:
    """`fit` of several objects, one after the other: leading axes [B] on pixels, keys and the scenes."""
    return jax.lax.map(lambda one: fit(*one, options), (pixels, keys))
