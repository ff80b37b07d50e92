"""RenderDiffusion with text: diffusion of pictures whose denoiser is a 3D object (arXiv 2211.09869), GANFusion's baseline.

noisy picture x_t, t, text, camera -> UNet -> three planes -> MLP -> volume rendering from the picture's camera -> x_0.

The loss is the squared error of that picture; the planes of the last step of sampling are the asset. Text enters by cross
attention, as GANFusion's comparison has it. There is no public code.

Differences from the paper, and what is decided here where it leaves room:
- `loss.stride` s: of each s x s pixels one, chosen at random, is rendered in training, at full resolution: an unbiased estimate
  of the mean over all pixels at 1 / s^2 of the cost. Sampling renders all of them at each step.
- The camera, EG3D's 25 numbers, is added to the time embedding (`camera_embedding`): planes live in the world, not before the
  camera, and a noisy picture does not say where it was taken from.
- The point decoder, density and box are EG3D's, so that the two systems differ in what they learn from, not in their renderer.
- Guidance mixes the pictures of two renders, x_0 = none + s (text - none); planes are taken from the text's pass.
- No score distillation on a second view, which a later version of the paper has against flat solutions.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from t3d.core import accumulate, numerics, optim, precision, replicas, tokens, tree
from t3d.core.errors import UsageError
from t3d.core.outputs import Field, only_prompts
from t3d.core.system import System, TrainState
from t3d.diffusion import guidance, losses, samplers, schedules
from t3d.fields import triplane_field
from t3d.geom import cameras, triplanes, volume
from t3d.geom.rays import Rays, ray_box
from t3d.nets import patched_unet, text_condition, unet
from t3d.nets.text_condition import TextCondition

CHUNK = 2**12  # rays of one object rendered at once outside of training
SHARDING = unet.SHARDING


def make(config, given=None) -> System:
    """The system of a config (configs/renderdiffusion.py): sections text, unet, planes, render, loss, diffusion, sample."""
    model = Model(config)
    optimizer = optim.adamw(**config.optimizer, total=config.steps)
    frozen = ('text',) if config.text.frozen else ()

    def init(key, batch, given=None) -> TrainState:
        params = model.init(key, batch['tokens'][:1])
        opt_state = optimizer.init(optim.trained(params, frozen))
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state, tree.copy(params), {})

    def train_step(state: TrainState, batch, key, given=None):
        def loss(trained, batch, key):
            return model.loss({**state.params, **trained}, batch, key)

        gradients = accumulate.value_and_grad(loss, config.get('accumulate', 1))
        (_, metrics), grads = gradients(optim.trained(state.params, frozen), batch, key)
        grads, metrics = replicas.mean((grads, metrics))
        params, opt_state = optim.update(optimizer, state, grads, frozen)
        return optim.advance(config, state, params, opt_state, {**metrics, 'grad_norm': optax.tree.norm(grads)})

    def preview(params, batch, key, given=None) -> jax.Array:
        keys = jax.random.split(key, batch['tokens'].shape[0])
        planes = model.draw(params, batch['tokens'], keys)
        views = model.orbit(config.preview.views)
        rays = cameras.rays(views, config.data.size, config.data.size)
        frames = jax.lax.map(lambda one: model.render_rays(model.scene(params, one), rays).features, planes)
        return numerics.side_by_side(frames)

    def generate(params, requests, keys, given=None) -> list[Field]:
        prompts = only_prompts(requests, config.system)
        planes = model.draw(params, jnp.asarray(model.text.tokenize(prompts)), keys)
        camera = {name: float(config.render[name]) for name in ('radius', 'fov')}
        make_field = functools.partial(Field, field=model.field_at, render=model.render_rays, bound=model.bound, camera=camera)
        return [make_field(prompt, model.scene(params, one)) for prompt, one in zip(prompts, planes, strict=True)]

    def check(requests) -> None:
        tokens.check_prompts(config.text, only_prompts(requests, config.system))

    return System(init, train_step, preview, generate, check, ('ema',), SHARDING, batch_spec(config))


def batch_spec(config) -> dict[str, jax.ShapeDtypeStruct]:
    """What the data pipeline delivers: captioned single pictures, on the background colour, with their camera labels."""
    size = config.data.size
    return {
        'tokens': jax.ShapeDtypeStruct((config.batch, config.text.length), jnp.int32),
        'image': jax.ShapeDtypeStruct((config.batch, size, size, 3), jnp.uint8),
        'label': jax.ShapeDtypeStruct((config.batch, 25), jnp.float32),
    }


class Model:
    """The networks of a config and the functions that join them; holds no parameters.

    Parameters are {'text', 'unet', 'decoder'[, 'camera']}.
    """

    def __init__(self, config):
        check(config)
        self.precision = precision.policy(config)
        self.config, self.text, self.size = config, TextCondition(config.text, self.precision.compute), config.data.size
        planes, patch = config.planes, config.patch
        self.grow = planes.resolution * patch // self.size  # texels of the planes for one position of the network
        self.unet = patched_unet.from_section(
            config.unet, 3 * patch**2, 3 * planes.channels * self.grow**2, dtype=self.precision.compute, remat=config.remat
        )
        self.camera = unet.TimeEmbedding(4 * config.unet.block_out_channels[0]) if config.camera_embedding else None
        self.schedule, self.bound = make_schedule(config.diffusion), 0.5 * config.render.box_warp
        self.draw_planes = jax.jit(self._draw_planes, static_argnums=4)

    def init(self, key, ids):
        """New parameters, whose planes are 0 and whose picture is therefore one colour."""
        key_text, key_net, key_decoder, key_camera = jax.random.split(key, 4)
        text = self.text.init(key_text, ids)
        features, _ = self.text.features(text, ids)
        x, planes = jnp.zeros((1, self.size, self.size, 3), jnp.float32), self.config.planes
        net = self.unet.init(
            key_net, patched_unet.to_patches(x, self.config.patch), jnp.zeros((1,), jnp.float32), features[:1]
        )['params']
        decoder = triplane_field.init(key_decoder, planes.channels, hidden=planes.hidden, outputs=3)
        params = {'text': text, 'unet': patched_unet.zero_output(net), 'decoder': decoder}
        if self.camera is not None:
            params['camera'] = self.camera.init(key_camera, jnp.zeros((1, 25), jnp.float32))['params']
        return params

    def planes(self, params, x, t, condition, label):
        """Planes [B, 3, R, R, C] of noisy pictures [B, S, S, 3], t, the text's (features, mask), and camera labels [B, 25]."""
        features, mask = condition
        camera = None if self.camera is None else self.camera.apply({'params': params['camera']}, label)
        patches = patched_unet.to_patches(x, self.config.patch)
        out = self.unet.apply({'params': params['unet']}, patches, t, features, camera, mask)
        return triplanes.unpack(patched_unet.from_patches(precision.result(self.precision, out), self.grow))

    # ----------------------------------------------------------------------------------------------------------- rendering

    def field(self, decoder, planes):
        """The renderer's field of planes [B, 3, R, R, C]."""
        return triplane_field.make(decoder, planes, bound=self.bound, plane_axes=self.config.render.plane_axes)

    def colour(self, decoder, planes, rays: Rays, key=None, chunk: int = 0) -> volume.RenderOutput:
        """Colour over the background, in [0, 1], along rays [B, N, 3]; a key jitters the samples; chunk 0 for all at once."""
        render = self.config.render
        near, far = ray_box(rays, render.box_warp)
        options = dict(near=near, far=far, num_samples=render.samples, num_importance=render.importance)
        options['density_activation'] = triplane_field.eg3d_density
        field = self.field(decoder, planes)
        if chunk and rays.origins.shape[-2] > chunk:
            out = volume.render_chunked(field, rays, key, chunk=chunk, **options)
        else:
            out = volume.render(field, rays, key, **options).replace(weights=None)
        return out.replace(features=volume.over(out, render.background))

    # ------------------------------------------------------------------------------------------------------------ training

    def loss(self, params, batch, key):
        """(loss, metrics) of a batch."""
        key_drop, key_t, key_noise, key_pixels, key_jitter = jax.random.split(key, 5)
        clean = batch['image'].astype(jnp.float32) / 127.5 - 1.0
        count = clean.shape[0]
        condition = self.text.features(params['text'], self.text.drop(key_drop, batch['tokens'], self.config.drop_text))
        t = losses.draw_t(key_t, count, self.schedule.length, stratified=True)
        x = schedules.q_sample(self.schedule, clean, t, jax.random.normal(key_noise, clean.shape, jnp.float32))
        planes = self.planes(params, x, t, condition, batch['label'])
        index = draw_pixels(key_pixels, count, self.size, self.config.loss.stride)
        uv = (jnp.stack([index % self.size, index // self.size], -1).astype(jnp.float32) + 0.5) / self.size
        rays = jax.vmap(cameras.rays_at)(cameras.from_eg3d(batch['label']), uv)
        rendered = 2.0 * self.colour(params['decoder'], planes, rays, key_jitter).features - 1.0
        target = jnp.take_along_axis(clean.reshape(count, -1, 3), index[..., None], axis=1)
        each = losses.per_object(rendered, target)
        gamma = self.config.diffusion.min_snr
        loss = jnp.mean(each * losses.min_snr(self.schedule, t, gamma)) if gamma else jnp.mean(each)
        return loss, {'loss': loss, 'psnr': -10.0 * jnp.log10(0.25 * jnp.mean(each)), 'count/rays': jnp.float32(index.size)}

    # ------------------------------------------------------------------------------------------------------------ sampling

    def draw(self, params, ids, keys, scale: float | None = None, steps: int | None = None):
        """Planes [B, 3, R, R, C] for token ids [B, N], one for each key [B], the same whatever the others are.

        Pictures are sampled from the front at `sample.elevation`. Args: scale of the guidance and number of DDIM steps, the
        config's where None. A new scale compiles nothing but for 1, the conditional network alone at half the cost.
        """
        scale = self.config.sample.guidance if scale is None else scale
        plain = isinstance(scale, int | float) and scale == 1.0
        steps = self.config.sample.steps if steps is None else steps
        return self.draw_planes(params, ids, keys, None if plain else jnp.float32(scale), steps)

    def _draw_planes(self, params, ids, keys, scale, steps: int):
        noise = jax.vmap(lambda key: jax.random.normal(key, (self.size, self.size, 3), jnp.float32))(keys)
        return self.sample_from(params, ids, noise, scale, steps)[1]

    def sample_from(self, params, ids, noise, scale, steps: int):
        """(pictures [B, S, S, 3] in [-1, 1], planes of the last step) from noise; scale None: the conditional network alone."""
        views = self.orbit(1, self.config.sample.elevation)
        label = cameras.to_eg3d(views)
        rays = jax.tree.map(lambda leaf: leaf.reshape(1, -1, 3), cameras.rays(views, self.size, self.size))
        condition = self.text.features(params['text'], ids)

        def predict(x, t, condition):
            planes = self.planes(params, x, t, condition, jnp.broadcast_to(label, (x.shape[0], 25)))
            all_rays = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (x.shape[0], *leaf.shape[1:])), rays)
            return 2.0 * self.colour(params['decoder'], planes, all_rays, chunk=CHUNK).features.reshape(x.shape) - 1.0

        if scale is None:
            denoise = lambda x, t: predict(x, t, condition)
        else:
            denoise = guidance.guided(predict, condition, self.text.features(params['text'], self.text.none(ids)), scale)
        last, states = samplers.ddim(denoise, self.schedule, noise, steps=steps, rederive=True, scan=samplers.path)
        before = states[-2] if steps > 1 else noise
        t = int(samplers.intervals(self.schedule, steps)[0][-1])
        return last, self.planes(params, before, t, condition, jnp.broadcast_to(label, (ids.shape[0], 25)))

    # -------------------------------------------------------------------------------------------------------------- assets

    def scene(self, params, planes):
        """Field.scene of planes [3, R, R, C]."""
        return {'planes': planes, 'decoder': params['decoder']}

    def field_at(self, scene, points):
        """Field.field: (density [N], rgb [N, 3])."""
        raw, rgb = self.field(scene['decoder'], scene['planes'][None])(points[None])
        return triplane_field.eg3d_density(raw)[0], jnp.clip(rgb[0], 0.0, 1.0)

    def render_rays(self, scene, rays: Rays) -> volume.RenderOutput:
        """Field.render: one scene, rays of any shape."""
        shape = rays.origins.shape[:-1]
        flat = jax.tree.map(lambda leaf: leaf.reshape(1, -1, 3), rays)
        out = self.colour(scene['decoder'], scene['planes'][None], flat, chunk=CHUNK)
        shaped = {name: getattr(out, name).reshape(shape) for name in ('opacity', 'depth')}
        return out.replace(features=jnp.clip(out.features.reshape(*shape, 3), 0.0, 1.0), **shaped)

    def orbit(self, count: int, elevation: float | None = None) -> cameras.Cameras:
        """`count` cameras around the object, front first; the preview's elevation where None."""
        render = self.config.render
        elevation = self.config.preview.elevation if elevation is None else elevation
        return cameras.turntable(count, elevation=elevation, radius=render.radius, fov=render.fov)


def draw_pixels(key, batch: int, size: int, stride: int):
    """Indices [B, (S / s)^2] of pixels of an S x S picture: one of each s x s, drawn evenly and independently."""
    side = size // stride
    corner = jnp.arange(side) * stride
    row, column = jax.random.randint(key, (2, batch, side, side), 0, stride, jnp.int32)
    return ((corner[:, None] + row) * size + corner + column).reshape(batch, -1)


def make_schedule(section) -> schedules.Schedule:
    """The noise schedule of a config's `diffusion` section; the network says x_0, pictures are in [-1, 1]."""
    tables = {'cosine': schedules.cosine, 'linear': schedules.linear, 'scaled_linear': schedules.scaled_linear}
    return tables[section.schedule](section.timesteps, prediction='x0', spacing='trailing', clip=1.0)


def check(config) -> None:
    """Raises UsageError where sizes do not divide."""
    text_condition.check(config.text, config.unet)
    size, patch, resolution, stride = config.data.size, config.patch, config.planes.resolution, config.loss.stride
    if size % patch or resolution * patch % size:
        near = max(1, round(resolution * patch / size)) * (size // patch)
        raise UsageError(
            f'data.size={size}, patch={patch}, planes.resolution={resolution}: the network has {size / patch:g} positions a '
            f'side, of which planes want a whole multiple: set planes.resolution={near}.'
        )
    if size % stride:
        raise UsageError(f'loss.stride={stride} does not divide data.size={size}: set loss.stride to 1, 2 or 4.')
