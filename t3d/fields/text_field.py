"""A radiance field from text in one pass: tower, conditional decoder, three planes, point MLP (Instant3D, arXiv 2311.08403).

prompt -> tokens -> text tower -> decoder (+ noise) -> planes [3, R, R, C] -> MLP -> raw density and albedo -> rays -> image.

The albedo is the scaled sigmoid sigmoid(alpha x) / alpha, alpha a leaf of the parameters that no gradient moves; while it is
below 1, colours may lie above 1.
"""

import jax
import jax.numpy as jnp

from t3d.core import numerics, optim, precision
from t3d.core.config import unknown
from t3d.core.errors import UsageError
from t3d.fields import fused_render, triplane_field
from t3d.geom import triplanes, volume
from t3d.geom.rays import Rays, ray_box
from t3d.nets.text_condition import TextCondition
from t3d.nets.text_decoder import TextDecoder

# Outputs for the albedo, functions of (x, alpha): the paper's, and others whose slope at 0 is 1/4 too but that never saturate.
# `field.alpha=1` makes the first a plain sigmoid.
ALBEDOS = {
    'scaled_sigmoid': numerics.scaled_sigmoid,
    'linear': lambda x, alpha: 0.5 + 0.25 * x,
    'relu': lambda x, alpha: jax.nn.relu(0.5 + 0.25 * x),
    'leaky_relu': lambda x, alpha: jax.nn.leaky_relu(0.5 + 0.25 * x, 0.01),
    'swish': lambda x, alpha: 0.5 + jax.nn.silu(0.5 * x),
}
CHUNK = 2**14  # rays of one object rendered at once for people to see
PAIRS, APART = 1024, 0.004  # of points whose densities are compared, and their distance


class TextField:
    """The networks of a config and the functions that join them; holds no arrays."""

    def __init__(self, config):
        self.precision = precision.policy(config)
        self.text = TextCondition(config.text, self.precision.compute)
        self.decoder = TextDecoder(
            **{name: tuple(value) if isinstance(value, (list, tuple)) else value for name, value in config.decoder.items()},
            dtype=self.precision.compute,
        )
        self.plane_channels = config.decoder.out_channels // 3
        self.field, self.render = config.field, config.render
        self.kernel = config.render.get('kernel', 'xla')
        fused_render.check(self.kernel)
        albedo = config.field.get('albedo', 'scaled_sigmoid')  # weights from before there were others
        if albedo not in ALBEDOS:
            raise UsageError(unknown(albedo, ALBEDOS, 'output for the albedo (field.albedo)'))
        self.albedo = ALBEDOS[albedo]
        self.steps = config.steps
        self.noise_scale = config.noise

    def init(self, key, ids):
        """Parameters {'text', 'decoder', 'field'}."""
        key_text, key_decoder, key_field, key_noise = jax.random.split(key, 4)
        text = self.text.init(key_text, ids)
        features, _ = self.text.features(text, ids)
        decoder = self.decoder.init(key_decoder, features, self.noise(key_noise, ids.shape[0]))['params']
        field = triplane_field.init(key_field, self.plane_channels, hidden=self.field.hidden, outputs=3, equalised=False)
        field['alpha'] = jnp.float32(self.field.alpha)  # not learned: the scaled sigmoid's coefficient, kept for inference
        return {'text': text, 'decoder': decoder, 'field': field}

    def alpha(self, step):
        """Coefficient of the scaled sigmoid (Sec. 3.3): linear from `field.alpha` to 1 at half the steps; the shape is ours."""
        return optim.piecewise(step, ((0, self.field.alpha), (self.steps // 2, 1.0)))

    def noise(self, key, batch: int):
        return self.noise_scale * jax.random.normal(key, (batch, self.decoder.style_width), jnp.float32)

    def scene(self, params, ids, key):
        """Planes [B, 3, R, R, C] and the point MLP for token ids [B, N], with fresh noise."""
        return self.scene_from_noise(params, ids, self.noise(key, ids.shape[0]))

    def scene_from_noise(self, params, ids, noise):
        return self.scene_from_features(params, self.features(params, ids), noise)

    def features(self, params, ids):
        """Text features [B, N, D], what one caption's scenes of several noises share."""
        return self.text.features(params['text'], ids)[0]

    def scene_from_features(self, params, features, noise):
        flat = self.decoder.apply({'params': params['decoder']}, features, noise)
        return {'planes': triplanes.unpack(precision.result(self.precision, flat)), 'field': params['field']}

    def raw_field(self, scene):
        """The renderer's field: raw density with the central blob, albedo by `field.albedo`, the scaled sigmoid of Sec. 3.3."""
        alpha = jax.lax.stop_gradient(scene['field']['alpha'])
        plain = triplane_field.make(
            scene['field'],
            scene['planes'],
            bound=1.0,
            plane_axes=self.render.plane_axes,
            equalised=False,
            activation=lambda features: self.albedo(features, alpha),
        )

        def field(points, directions=None):
            raw, albedo = plain(points.reshape(points.shape[0], -1, 3))
            raw, albedo = raw.reshape(points.shape[:-1]), albedo.reshape(*points.shape[:-1], 3)
            return raw + self.field.density_bias + self.blob(points), albedo

        return field

    def blob(self, points):
        """What the middle of the box has in addition (the released code's, as is its bias of -1)."""
        return self.field.blob * (1.0 - numerics.safe_norm(points) / 0.6)

    def density(self, raw):
        """Density per scene unit from the raw output; `field.density_scale` is 1 in the paper."""
        return self.field.density_scale * numerics.softplus(raw)

    def density_steps(self, scene, key):
        """|density(p) - density(p + noise)| [B, PAIRS] at random points of the box, noise N(0, APART^2) (the released code)."""
        key_points, key_noise = jax.random.split(key)
        shape = (scene['planes'].shape[0], PAIRS, 3)
        points = jax.random.uniform(key_points, shape, jnp.float32, -1.0, 1.0)
        near = points + APART * jax.random.normal(key_noise, shape, jnp.float32)
        density = self.density(self.raw_field(scene)(jnp.concatenate([points, near], 1))[0])
        return jnp.abs(density[:, :PAIRS] - density[:, PAIRS:])

    def render_rays(self, scene, rays: Rays, key, samples: int):
        """RenderOutput for rays [B, R, 3]; `features` are albedo over black, in (0, 1 / alpha)."""
        shape = rays.origins.shape[:-1]
        return self.render_drawn(scene, rays, volume.draws(key, shape, samples, self.render.importance))

    def render_drawn(self, scene, rays: Rays, u, field=None):
        """RenderOutput for rays [B, R, 3] with the draws u of `volume.draws`; of `field`, one with further channels, if given.

        By the fused kernel where `render.kernel` asks for it and it takes the planes.
        """
        near, far = ray_box(rays, 2.0)
        if field is not None or self.kernel == 'xla' or not fused_render.takes(scene['planes']):
            field = field or self.raw_field(scene)
            return volume.render_at(field, rays, *u, near=near, far=far, density_activation=self.density)
        scenes = fused_render.Scenes(scene['planes'], scene['field'], jax.lax.stop_gradient(scene['field']['alpha']))
        options = fused_render.Options(self.albedo, self.density, 1.0, self.render.plane_axes, equalised=False)
        added = lambda points: self.field.density_bias + self.blob(points)
        return fused_render.render_at(scenes, rays, *u, near=near, far=far, options=options, added=added)

    def render_scene(self, scene, rays: Rays):
        """Deterministic render of batched scenes, rays [B, ..., 3], over the config's background."""
        shape = rays.origins.shape
        flat = jax.tree.map(lambda leaf: leaf.reshape(shape[0], -1, 3), rays)
        near, far = ray_box(flat, 2.0)
        out = volume.render_chunked(
            self.raw_field(scene),
            flat,
            None,
            chunk=min(CHUNK, flat.origins.shape[1]),
            near=near,
            far=far,
            num_samples=self.render.samples_shown,
            num_importance=self.render.importance,
            density_activation=self.density,
        )
        return volume.shown(out, self.render.background, shape)

    def render_one(self, scene, rays: Rays):
        """Field.render: one scene, rays of any shape."""
        single = jax.tree.map(lambda leaf: leaf[None], scene)
        out = self.render_scene({**single, 'field': scene['field']}, jax.tree.map(lambda leaf: leaf[None], rays))
        return jax.tree.map(lambda leaf: leaf[0], out)

    def field_at(self, scene, points):
        """Field.field: (density [N], rgb [N, 3])."""
        field = self.raw_field({'planes': scene['planes'][None], 'field': scene['field']})
        raw, rgb = field(points[None])
        return self.density(raw)[0], jnp.clip(rgb[0], 0.0, 1.0)
