"""Instant3D: text to a triplane in one forward pass (arXiv 2311.08403).

prompt -> tokens -> text tower -> conditional decoder (+ noise) -> three planes -> MLP -> density and albedo -> rays -> image.

Differences from the paper:
- Supervision is a function of the render. Here it is `photometric`: the colour, mask and (optionally) depth of rendered views
  of captioned objects. Score distillation from a text-to-image prior replaces that function without touching the decoder.
- The text tower has CLIP's shape. `tiny` and `furniture` train it from scratch with the decoder; the paper uses the frozen
  tower of Stable Diffusion (`text.frozen`).
- Planes are corrected (`orthogonal`), where the released code inherits EG3D's duplicated plane; `plane_axes='legacy'` is there.
- Plain linear layers, not equalised ones, in the text branches and the point MLP. Parameter shapes are the released ones.
- The object lives in [-1, 1]^3 and rays are clipped to that box; the released code has a box of side 3.5.
- Small configs start the sigmoid at 0.7 instead of 0.5, scale the density by 20, have no central blob and little style noise;
  there are no density, orientation or smoothness terms, and the learning rate follows a cosine.
- Pixels are drawn at random from each view, half of them near the object, where the paper renders whole 64 x 64 views.
- `dtype` bfloat16 is for the decoder; sampling, MLP, compositing and losses are float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from t3d.core import numerics, optim, replicas, tokens, tree
from t3d.core.outputs import Field, only_prompts
from t3d.core.system import System, TrainState
from t3d.fields import triplane_field
from t3d.geom import cameras, triplanes, volume
from t3d.geom.rays import Rays, ray_box
from t3d.nets import text_condition, text_decoder
from t3d.nets.text_condition import TextCondition
from t3d.nets.text_decoder import TextDecoder

CHUNK = 2**14  # rays of one object rendered at once for people to see
INWARD, OUTWARD = r'(query|key|value|query_key|proj_in|mlp_in|in)/kernel$', r'(out|proj_out|mlp_out)/kernel$'
SHARDING = (  # scanned stacks have a layer axis in front; convolutions go by the fallback rule
    # Cut along the outputs: cut along the inputs, XLA would gather the activations, whose batch lies on 'fsdp', not the kernel.
    # (80 outputs at the least in the released size: where fsdp x tensor does not divide them, the log says what is left out.)
    (r'/(plane|style)_text/kernel$', P(None, ('fsdp', 'tensor'))),  # plane_text: 45 % of all parameters in the released size
    (r'/rest/(.*/)?affine/kernel$', P(None, None, ('fsdp', 'tensor'))),
    (r'/affine/kernel$', P(None, ('fsdp', 'tensor'))),
    (r'/(layers|rest)/(.*/)?' + INWARD, P(None, 'fsdp', 'tensor')),
    (r'/(layers|rest)/(.*/)?' + OUTWARD, P(None, 'tensor', 'fsdp')),
    (r'/(decoder|text)/(.*/)?' + INWARD, P('fsdp', 'tensor')),
    (r'/(decoder|text)/(.*/)?' + OUTWARD, P('tensor', 'fsdp')),
)


def make(config, given=None) -> System:
    """The system of a config (configs/instant3d.py): sections text, decoder, field, render, loss, optimizer."""
    text_condition.check(config.text)
    text_decoder.check(config.decoder)
    model = Model(config)
    optimizer = optim.adamw(**config.optimizer, total=config.steps)
    supervise = photometric(config)
    frozen = ('text',) if config.text.frozen else ()

    def init(key, batch, given=None) -> TrainState:
        params = model.init(key, batch['tokens'][:1])
        opt_state = optimizer.init(optim.trained(params, frozen))
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state, tree.copy(params), {})

    def train_step(state: TrainState, batch, key, given=None):
        def loss_fn(trained):
            return supervise(model, {**state.params, **trained}, batch, key)

        (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(optim.trained(state.params, frozen))
        grads, metrics = replicas.mean((grads, metrics))
        params, opt_state = optim.update(optimizer, state, grads, frozen)
        params['field'] = {**params['field'], 'alpha': model.alpha(state.step)}
        return optim.advance(config, state, params, opt_state, {**metrics, 'grad_norm': optax.tree.norm(grads)})

    def preview(params, batch, key, given=None) -> jax.Array:
        scene = model.scene(params, batch['tokens'], key)
        views = cameras.Cameras(batch['world_from_cam'], batch['intrinsics'])
        height, width = batch['image'].shape[2:4]
        out = model.render_scene(scene, cameras.rays(views, height, width))
        rendered = jnp.clip(out.features, 0.0, 1.0)  # [B, V, H, W, 3]
        true = over(batch['image'], config.render.background)
        both = jnp.concatenate([rendered, true], 1)
        return both.transpose(0, 2, 1, 3, 4).reshape(both.shape[0], height, -1, 3)

    def generate(params, requests, keys, given=None) -> list[Field]:
        prompts = only_prompts(requests, config.system)
        scenes = generate_scenes(params, jnp.asarray(model.text.tokenize(prompts)), keys)
        camera = {'radius': config.render.radius, 'fov': config.render.fov}
        each = [jax.tree.map(lambda leaf, k=k: leaf[k], scenes) for k in range(len(prompts))]
        return [
            Field(prompt, scene, model.field_at, model.render_one, 1.0, camera)
            for prompt, scene in zip(prompts, each, strict=True)
        ]

    def check(requests) -> None:
        tokens.check_prompts(config.text, only_prompts(requests, config.system))

    @jax.jit
    def generate_scenes(params, ids, keys):
        noise = jax.vmap(lambda key: model.noise(key, 1)[0])(keys)
        scene = model.scene_from_noise(params, ids, noise)
        return {
            'planes': scene['planes'],
            'field': jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (ids.shape[0], *leaf.shape)), scene['field']),
        }

    return System(init, train_step, preview, generate, check, ('ema',), SHARDING, batch_spec(config))


def batch_spec(config) -> dict[str, jax.ShapeDtypeStruct]:
    """What the data pipeline delivers: posed RGBA views of captioned objects."""
    batch, views, size = config.batch, config.data.views, config.data.size
    spec = {
        'tokens': ((batch, config.text.length), jnp.int32),
        'image': ((batch, views, size, size, 4), jnp.uint8),
        'world_from_cam': ((batch, views, 4, 4), jnp.float32),
        'intrinsics': ((batch, views, 3, 3), jnp.float32),
    }
    if config.loss.depth > 0.0:
        spec['depth'] = ((batch, views, size, size), jnp.float32)
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in spec.items()}


def over(rgba: jax.Array, background) -> jax.Array:
    """uint8 straight-alpha RGBA over a grey level or colour: float32 in [0, 1]."""
    rgba = rgba.astype(jnp.float32) / 255.0
    return rgba[..., :3] * rgba[..., 3:] + background * (1.0 - rgba[..., 3:])


class Model:
    """The networks of a config and the functions that join them; holds no arrays."""

    def __init__(self, config):
        dtype = jnp.dtype(config.dtype)
        self.text = TextCondition(config.text, dtype)
        self.decoder = TextDecoder(
            **{name: tuple(value) if isinstance(value, (list, tuple)) else value for name, value in config.decoder.items()},
            dtype=dtype,
        )
        self.plane_channels = config.decoder.out_channels // 3
        self.field, self.render = config.field, config.render
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
        features, _ = self.text.features(params['text'], ids)
        flat = self.decoder.apply({'params': params['decoder']}, features, noise).astype(jnp.float32)
        return {'planes': triplanes.unpack(flat), 'field': params['field']}

    def raw_field(self, scene):
        """The renderer's field: raw density with the central blob, albedo by the scaled sigmoid of Sec. 3.3."""
        alpha = jax.lax.stop_gradient(scene['field']['alpha'])
        plain = triplane_field.make(
            scene['field'],
            scene['planes'],
            bound=1.0,
            plane_axes=self.render.plane_axes,
            equalised=False,
            activation=lambda features: numerics.scaled_sigmoid(features, alpha),
        )

        def field(points, directions=None):
            raw, albedo = plain(points)
            blob = self.field.blob * (1.0 - numerics.safe_norm(points) / 0.6)  # the released code's, as is its bias of -1
            return raw + self.field.density_bias + blob, albedo

        return field

    def density(self, raw):
        """Density per scene unit from the raw output; `field.density_scale` is 1 in the paper."""
        return self.field.density_scale * numerics.softplus(raw)

    def render_rays(self, scene, rays: Rays, key, samples: int):
        """RenderOutput for rays [B, R, 3]; `features` are albedo over black, in (0, 1 / alpha)."""
        near, far = ray_box(rays, 2.0)
        return volume.render(
            self.raw_field(scene),
            rays,
            key,
            near=near,
            far=far,
            num_samples=samples,
            num_importance=self.render.importance,
            density_activation=self.density,
        )

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
        colour = volume.over(out, self.render.background)
        return volume.RenderOutput(
            features=colour.reshape(shape),
            opacity=out.opacity.reshape(shape[:-1]),
            depth=out.depth.reshape(shape[:-1]),
            weights=None,
        )

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


def draw_pixels(key, alpha, count: int, foreground: float):
    """Random pixel indices [B, V, count] of masks uint8 [B, V, H, W].

    A share `foreground` comes from the object and the pixels next to it, the rest from the whole image; stratified inverse
    CDF, with replacement.
    """
    batch, views, height, width = alpha.shape
    solid = alpha.astype(jnp.float32) / 255.0
    near = jax.lax.reduce_window(solid, np.float32(0.0), jax.lax.max, (1, 1, 5, 5), (1, 1, 1, 1), 'SAME')
    near = near.reshape(batch, views, -1)
    share = near / jnp.maximum(jnp.sum(near, -1, keepdims=True), 1.0)
    cdf = jnp.cumsum(foreground * share + (1.0 - foreground) / (height * width), -1)
    u = (jnp.arange(count) + jax.random.uniform(key, (batch, views, count), jnp.float32)) / count * cdf[..., -1:]
    index = jax.vmap(jax.vmap(lambda row, at: jnp.searchsorted(row, at, side='right', method='compare_all')))(cdf, u)
    return jnp.minimum(index, height * width - 1)


def photometric(config):
    """Supervision by posed views: `(model, params, batch, key) -> (loss, metrics)`.

    Each view gives `loss.rays` random pixels, a share `loss.foreground` of them from the object's surroundings. Colour is
    compared over a random background per view, so that the mask is learned too; opacity and, where asked for, distance along
    the ray have terms of their own.
    """

    def supervise(model: Model, params, batch, key):
        key_noise, key_pixels, key_background, key_jitter = jax.random.split(key, 4)
        batch_size, views, height, width, _ = batch['image'].shape
        pixels = draw_pixels(key_pixels, batch['image'][..., 3], config.loss.rays, config.loss.foreground)
        uv = (jnp.stack([pixels % width, pixels // width], -1).astype(jnp.float32) + 0.5) / jnp.array([width, height])
        views_of = cameras.Cameras(batch['world_from_cam'], batch['intrinsics'])
        rays = jax.vmap(jax.vmap(cameras.rays_at))(views_of, uv)  # [B, V, R, 3]
        rgba = jnp.take_along_axis(batch['image'].reshape(batch_size, views, -1, 4), pixels[..., None], axis=2)
        scene = model.scene(params, batch['tokens'], key_noise)
        flat = jax.tree.map(lambda leaf: leaf.reshape(batch_size, -1, 3), rays)
        out = model.render_rays(scene, flat, key_jitter, config.render.samples)
        background = jax.random.uniform(key_background, (batch_size, views, 1, 3), jnp.float32)
        shape = (batch_size, views, config.loss.rays)
        opacity = out.opacity.reshape(shape)
        colour = out.features.reshape(*shape, 3) + background * (1.0 - opacity[..., None])
        mask = rgba[..., 3].astype(jnp.float32) / 255.0
        error = jnp.mean(jnp.square(colour - over(rgba, background)))
        parts = {'rgb': error, 'mask': config.loss.mask * jnp.mean(jnp.square(opacity - mask))}
        if config.loss.depth > 0.0:
            depth = jnp.take_along_axis(batch['depth'].reshape(batch_size, views, -1), pixels, axis=2)
            cosine = jnp.sum(rays.directions * cameras.forward_axis(views_of)[:, :, None], -1)
            off = jnp.abs(out.depth.reshape(shape) - depth / cosine) * mask * (depth > 0.0)  # 0 is background
            parts['depth'] = config.loss.depth * jnp.mean(off)
        loss = sum(parts.values())
        metrics = {
            'loss': loss,
            **{f'loss/{name}': part for name, part in parts.items()},
            'psnr': -10.0 * jnp.log10(error),
            'alpha': params['field']['alpha'],
            'count/rays': jnp.float32(opacity.size),
        }
        return loss, metrics

    return supervise
