"""EG3D's generator whole (arXiv 2112.07945): z and a label to w, w to triplanes, their features along rays, an image of those.

    z, c -> mapping -> w -> backbone -> planes [3, R, R, C] -> renderer(camera) -> features [s, s, F] -> upsampler(w) -> image

The first three feature channels are the raw colour. The camera that conditions the mapping (`c`) and the one that is rendered
are apart: with pose conditioning, map once with a fixed label and render from anywhere.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from t3d.core import precision, prng, spread
from t3d.core.errors import UsageError
from t3d.core.typing import Key, PyTree
from t3d.fields import triplane_field
from t3d.geom import cameras, triplanes, volume
from t3d.geom import rays as ray_tools
from t3d.nets import stylegan2

LABEL = 25  # numbers of a camera label (geom.cameras.to_eg3d)
SR_STYLES = ('w', 'unit', 'ones_w', 'w_avg')
LIMITS = ('box', 'fixed')


class Rendered(NamedTuple):
    """Views of planes at the neural resolution s."""

    features: jax.Array  # [B, s, s, F] in [-1, 1], over the background; the first three are the raw colour
    depth: jax.Array  # [B, s, s] distance along the ray, scene units
    opacity: jax.Array  # [B, s, s] in [0, 1]


class Generator:
    """The networks of a config and the functions that join them; holds no parameters.

    Reads `config.generator` (networks), `config.render` (cameras, samples, box, background) and `config.dtype`.
    Parameters are {'mapping', 'backbone', 'decoder', 'superres'}, buffers {'w_avg' [W], 'backbone': constant noise}.
    """

    def __init__(self, config):
        check(config)
        net, self.shape = config.generator, config.render
        dtype = precision.policy(config).compute
        clamp = net.clamp or None
        self.z_dim, self.style, self.render_size = net.z, net.sr_style, config.render.size
        self.bound = 0.5 * float(config.render.box_warp)
        self.background = float(config.render.background)
        self.plane_axes = config.render.plane_axes
        self.camera = {name: float(config.render[name]) for name in ('radius', 'fov')}  # the orbit it was trained for
        self.num_ws = stylegan2.num_ws(net.plane_resolution)
        self.resolution, self.channels, self.features = net.plane_resolution, net.plane_channels, net.features
        self.hidden, self.w_dim = net.hidden, net.w
        self.label_dim = LABEL if net.pose_conditioning else 0
        self.mapping = stylegan2.Mapping(net.z, self.label_dim, net.w, net.mapping_layers)
        self.backbone = stylegan2.Synthesis(  # float32 in every preset: its planes are unbounded
            net.plane_resolution, 3 * net.plane_channels, net.w, net.channel_base, net.channel_max
        )
        self.superres = stylegan2.SuperResolution(
            net.sr.input_size,
            net.features,
            tuple(net.sr.channels),
            tuple(net.sr.ups),
            net.w,
            dtype=dtype,
            clamp=clamp,
            styled=net.sr_style != 'unit',
        )
        self.image_size = net.sr.input_size * 2 ** sum(net.sr.ups)

    # ---------------------------------------------------------------------------------------------------------- parameters

    def init(self, key: Key) -> tuple[PyTree, PyTree]:
        """(params, buffers)."""
        key_map, key_backbone, key_decoder, key_sr = jax.random.split(key, 4)
        c = jnp.zeros((1, LABEL), jnp.float32) if self.label_dim else None
        backbone = self.backbone.init(key_backbone, jnp.zeros((1, self.num_ws, self.w_dim), jnp.float32))
        size = self.superres.input_size
        style = None if self.style == 'unit' else jnp.zeros((1, self.w_dim), jnp.float32)
        images = (jnp.zeros((1, size, size, 3), jnp.float32), jnp.zeros((1, size, size, self.features), jnp.float32))
        params = {
            'mapping': self.mapping.init(key_map, jnp.zeros((1, self.z_dim), jnp.float32), c)['params'],
            'backbone': backbone['params'],
            'decoder': triplane_field.init(key_decoder, self.channels, hidden=self.hidden, outputs=self.features),
            'superres': self.superres.init(key_sr, *images, style)['params'],
        }
        return params, {'w_avg': jnp.zeros(self.w_dim, jnp.float32), 'backbone': backbone['buffers']}

    # -------------------------------------------------------------------------------------------------------- z to planes

    def latents(self, key: Key, count: int) -> jax.Array:
        """New z [count, Z], standard normal."""
        return jax.random.normal(key, (count, self.z_dim), jnp.float32)

    def z_of_seed(self, seeds: jax.Array) -> jax.Array:
        """z [B, Z] of seeds [B]: what a manifest of pairs stands for."""
        return prng.normals(seeds, self.z_dim)

    def map(self, params: PyTree, z: jax.Array, c: jax.Array | None = None) -> jax.Array:
        """w [B, W] of z [B, Z] and the conditioning label c [B, 25]; without one, the label of the orbit's front."""
        if not self.label_dim:
            c = None
        elif c is None:
            # A barrier, as XLA:TPU (libtpu 0.0.42.1) aborts where it folds this constant into the product that reads it.
            c = jnp.broadcast_to(jax.lax.optimization_barrier(self.front()), (z.shape[0], LABEL))
        return self.mapping.apply({'params': params['mapping']}, z, c)

    def front(self) -> jax.Array:
        """The label [25] of the orbit's frontal camera."""
        return cameras.to_eg3d(cameras.orbit(0.0, 0.0, self.shape.radius, self.shape.fov))

    def ws(self, params, buffers, z, c=None, psi=1.0, cutoff: int | None = None) -> jax.Array:
        """Styles [B, num_ws, W], the first `cutoff` of them (None: all) drawn to the average by psi."""
        return stylegan2.truncate(self.map(params, z, c), buffers['w_avg'], self.num_ws, psi, cutoff)

    def planes(self, params, buffers, ws, noise: str = 'const', key: Key | None = None) -> jax.Array:
        """Planes [B, 3, R, R, C] of styles [B, num_ws, W], unbounded; noise 'const', 'none' or 'random'."""
        variables = {'params': params['backbone'], 'buffers': buffers['backbone']}
        return triplanes.unpack(spread.rows(self.backbone.apply(variables, spread.rows(ws), noise, key)))

    def planes_of_seeds(self, params, buffers, seeds, *, psi=1.0) -> jax.Array:
        """Planes [B, 3, R, R, C] of seeds [B], constant noise: the planes that captions of a manifest speak of."""
        return self.planes(params, buffers, self.ws(params, buffers, self.z_of_seed(seeds), psi=psi))

    # ----------------------------------------------------------------------------------------------------- planes to image

    def field(self, params, planes):
        """The field (raw density, features in [0, 1]) of planes [*b, 3, R, R, C]."""
        return triplane_field.make(params['decoder'], planes, bound=self.bound, plane_axes=self.shape.plane_axes)

    def render(self, params, planes, label, key: Key | None = None, *, size: int, multiplier: int = 1) -> Rendered:
        """Views of planes [B, 3, R, R, C] from cameras `label` [B, 25] with `size` x `size` rays.

        Args:
          key: for the jitter of the samples; None for none.
          multiplier: times the samples per ray; 2 stills the flicker of turning views.
        """
        rays = cameras.rays(cameras.from_eg3d(label), size, size)
        flat = jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], size * size, 3), rays)
        out = self._march(params, planes, flat, key, multiplier)
        image = (-1, size, size)
        features = 2.0 * volume.over(out, self.background) - 1.0
        return Rendered(features.reshape(*image, self.features), out.depth.reshape(image), out.opacity.reshape(image))

    def _march(self, params, planes, rays, key, multiplier: int = 1) -> volume.RenderOutput:
        near, far = self.shape.near, self.shape.far
        if self.shape.limits == 'box':
            near, far = ray_tools.ray_box(rays, 2.0 * self.bound)
        return volume.render(
            self.field(params, planes),
            rays,
            key,
            near=near,
            far=far,
            num_samples=multiplier * self.shape.samples,
            num_importance=multiplier * self.shape.importance,
            density_activation=triplane_field.eg3d_density,
        )

    def upsample(self, params, features, w: jax.Array | None) -> jax.Array:
        """Image [B, S, S, 3], about [-1, 1], of features [B, s, s, F]; w [B, W], read only where `sr_style` is 'w'.

        The other styles: 'unit' makes each layer's style 1, 'ones_w' sets w to 1, 'w_avg' wants the average as w.
        """
        if self.style == 'unit':
            w = None
        elif self.style == 'ones_w':
            w = jnp.ones((features.shape[0], self.w_dim), jnp.float32)
        return self.superres.apply({'params': params['superres']}, features[..., :3], features, w)

    def image(self, params, buffers, ws, label, *, noise: str = 'const', key: Key | None = None, multiplier: int = 1):
        """(image [B, S, S, 3], Rendered) of styles ws [B, num_ws, W] from cameras `label` [B, 25]."""
        planes = self.planes(params, buffers, ws, noise, key)
        seen = self.render(params, planes, label, key, size=self.render_size, multiplier=multiplier)
        return self.upsample(params, seen.features, self.style_of(buffers, ws[:, -1])), seen

    def style_of(self, buffers, w):
        """What the upsampler gets for w [..., W]: itself, or the average where `sr_style` is 'w_avg'."""
        return jnp.broadcast_to(buffers['w_avg'], w.shape) if self.style == 'w_avg' else w

    def panel(self, params, buffers, styles, labels) -> jax.Array:
        """[2 V + 1, S, S, 3] in [-1, 1] of styles [num_ws, W] seen from labels [V, 25]: images, raw ones, the first's depth."""
        image, seen = self.image(params, buffers, jnp.broadcast_to(styles, (labels.shape[0], *styles.shape)), labels)
        raw = jax.image.resize(seen.features[..., :3], image.shape, 'nearest')
        distance = jnp.linalg.norm(cameras.from_eg3d(labels[:1]).world_from_cam[..., :3, 3], axis=-1)[:, None, None]
        near = jnp.where(seen.opacity[:1] > 0.5, (distance - seen.depth[:1]) / self.bound, -1.0)  # white near, black far
        depth = jax.image.resize(jnp.repeat(near[..., None], 3, -1), (1, *image.shape[1:]), 'nearest')
        return jnp.concatenate([image, raw, depth])

    # -------------------------------------------------------------------------------------------------------------- assets

    def field_at(self, params, planes, points):
        """(density [N] >= 0, rgb [N, 3] in [0, 1]) of planes [3, R, R, C] at points [N, 3]: the raw colour."""
        raw, features = self.field(params, planes)(points)
        inside = jnp.all(jnp.abs(points) <= self.bound, -1)
        return jnp.where(inside, triplane_field.eg3d_density(raw), 0.0), jnp.clip(features[..., :3], 0.0, 1.0)

    def render_rays(self, params, planes, rays) -> volume.RenderOutput:
        """The raw colour of planes [3, R, R, C] along rays of any shape, over the background, in [0, 1]."""
        lead = rays.origins.shape[:-1]
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, 3), rays)
        out = self._march(params, planes, flat, None)
        colour = jnp.clip(volume.over(out, self.background)[..., :3], 0.0, 1.0)
        return volume.RenderOutput(colour.reshape(*lead, 3), out.opacity.reshape(lead), out.depth.reshape(lead), None)


def check(config) -> None:
    """Raises UsageError for a generator that cannot be built."""
    net, render = config.generator, config.render
    for name, value, choices in (
        ('generator.sr_style', net.sr_style, SR_STYLES),
        ('render.plane_axes', render.plane_axes, tuple(triplanes.PLANE_AXES)),
        ('render.limits', render.limits, LIMITS),
    ):
        if value not in choices:
            raise UsageError(f'{name}={value!r}: choose one of {", ".join(choices)}.')
    if render.limits == 'fixed' and not render.near < render.far:
        raise UsageError(
            f"render.near={render.near}, render.far={render.far}: with render.limits='fixed' rays are sampled between them: "
            "give render.near < render.far, or render.limits='box'."
        )
    if net.features < 3 or net.plane_resolution & (net.plane_resolution - 1) or net.plane_resolution < 4:
        raise UsageError(
            f'generator.features={net.features}, generator.plane_resolution={net.plane_resolution}: wanted at least 3 features '
            '(the first are the raw colour) and a power of two from 4.'
        )
