"""GANFusion, stage 2: text to the planes of a frozen triplane GAN, by diffusion.

prompt -> tokens -> text tower -> denoiser of normalised planes -> DDIM with guidance -> planes -> the GAN's renderer and
upsampler. No test-time optimisation, and training needs no camera: pairs are (seed, caption), the planes of a seed are made
again by the frozen generator inside the step.

Source: GANFusion's published figures and summaries; there is no public code.

Differences from the paper, and what is decided here as far as those are silent:
- Planes are normalised by the mean and deviation of each of the 3 C channels over many samples, and clipped at +-`clip`: the
  data as well as x_0 while sampling; the noise that goes on is taken from the clipped x_0.
- Schedule: Stable Diffusion's scaled-linear betas, log SNR moved by `diffusion.shift`. Planes of a GAN are smooth: noise that
  hides a 64 x 64 latent leaves them readable; 2 log(64 / R) is the shift for perfectly redundant planes.
- The network says x_0. With `patch` p its stem is narrower than p p 3 C channels and cannot pass full-rank noise on: v is for
  p <= 2, eps is refused at p >= 4.
- Stage 2 makes no w. The upsampler gets constant styles: `sr_style` 'unit' (each layer's style is 1; stage 1 should be trained
  so), 'ones_w' (w = 1 through the affine layers) or 'w_avg'.
- `aux.weight` adds the raw colour of rendered x_0 at low noise, from random cameras of the orbit. Off.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from t3d.core import accumulate, numerics, optim, precision, prng, replicas, tokens, tree
from t3d.core.errors import UsageError
from t3d.core.outputs import Field, only_prompts
from t3d.core.system import System, TrainState, require
from t3d.diffusion import guidance, losses, samplers, schedules
from t3d.fields.triplane_generator import Generator
from t3d.geom import cameras, triplanes
from t3d.nets import text_condition, triplane_unet
from t3d.nets.text_condition import TextCondition

TAKES = {'generator': (Generator,)}
SHARDING = triplane_unet.SHARDING
SR_STYLES = ('unit', 'ones_w', 'w_avg')


def make(config, given) -> System:
    """The system of a config (configs/ganfusion_diffusion.py): sections text, unet, planes, diffusion, sample.

    Args:
      given: {'generator': a trained triplane GAN}, whose planes are learned and rendered.
    """
    model = Model(
        config, require(given, 'generator', Generator, 'a triplane GAN: a run or weights folder of stage 1').functions
    )
    optimizer = optim.adamw(**config.optimizer, total=config.steps)
    frozen = ('text',) if config.text.frozen else ()

    def init(key, batch, given) -> TrainState:
        params = model.init(key, batch['tokens'][:1])
        opt_state = optimizer.init(optim.trained(params, frozen))
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state, tree.copy(params), {})

    def train_step(state: TrainState, batch, key, given):
        def loss(trained, batch, key):
            clean = model.planes_of_seeds(given['generator'], batch['seed'])
            return model.loss({**state.params, **trained}, given['generator'], clean, batch['tokens'], key)

        gradients = accumulate.value_and_grad(loss, config.get('accumulate', 1))
        (_, metrics), grads = gradients(optim.trained(state.params, frozen), batch, key)
        grads, metrics = replicas.mean((grads, metrics))
        params, opt_state = optim.update(optimizer, state, grads, frozen)
        return optim.advance(config, state, params, opt_state, {**metrics, 'grad_norm': optax.tree.norm(grads)})

    def preview(params, batch, key, given) -> jax.Array:
        keys = jax.random.split(key, batch['tokens'].shape[0])
        planes = model.draw(params, batch['tokens'], keys)
        views = model.orbit(config.preview.views)
        frames = jax.lax.map(lambda one: model.pictures(model.scene(given['generator'], one), views), planes)
        return numerics.side_by_side(frames)

    def generate(params, requests, keys, given) -> list[Field]:
        prompts = only_prompts(requests, config.system)
        planes = model.draw(params, jnp.asarray(model.text.tokenize(prompts)), keys)
        parts = (model.field_at, model.render_rays, model.bound, model.generator.camera, model.picture)
        return [Field(text, model.scene(given['generator'], one), *parts) for text, one in zip(prompts, planes, strict=True)]

    def check(requests) -> None:
        tokens.check_prompts(config.text, only_prompts(requests, config.system))

    return System(init, train_step, preview, generate, check, ('ema',), SHARDING, batch_spec(config))


def batch_spec(config) -> dict[str, jax.ShapeDtypeStruct]:
    """What the data pipeline delivers: a caption and the seed of the planes that it describes."""
    return {
        'tokens': jax.ShapeDtypeStruct((config.batch, config.text.length), jnp.int32),
        'seed': jax.ShapeDtypeStruct((config.batch,), jnp.uint32),
    }


class Model:
    """The networks of a config and the functions that join them; holds no parameters.

    Parameters are {'text', 'denoiser'}; those of the given generator, {'generator', 'buffers'}, are called `frozen`.
    """

    def __init__(self, config, generator: Generator):
        check(config, generator)
        dtype = precision.policy(config).compute
        self.config, self.generator = config, generator
        self.text = TextCondition(config.text, dtype)
        self.resolution, self.channels = self.generator.resolution, self.generator.channels
        self.bound = self.generator.bound
        self.denoiser = triplane_unet.TriplaneDenoiser(
            config.unet,
            layout=config.layout,
            patch=config.patch,
            resolution=self.resolution,
            channels=self.channels,
            axes=triplanes.PLANE_AXES[generator.plane_axes],
            cross_plane=config.cross_plane,
            dtype=dtype,
            remat=config.remat,
        )
        self.shape, self.schedule = (3, self.resolution, self.resolution, self.channels), make_schedule(config.diffusion)
        self.mean, self.std = statistics(config.planes, 3 * self.channels)
        self.draw_planes = jax.jit(self._draw, static_argnums=4)

    # ---------------------------------------------------------------------------------------------------------- parameters

    def init(self, key, ids):
        """New parameters."""
        key_text, key_net, _ = jax.random.split(key, 3)
        text = self.text.init(key_text, ids)
        features, _ = self.text.features(text, ids)
        return {'text': text, 'denoiser': self.denoiser.init(key_net, features)}

    # -------------------------------------------------------------------------------------------------------------- planes

    def planes_of_seeds(self, frozen, seeds):
        """The generator's planes [B, 3, R, R, C] of seeds [B] uint32, as the captions were made from them."""
        return self.generator.planes_of_seeds(frozen['generator'], frozen['buffers'], seeds, psi=self.config.psi)

    def normalise(self, planes):
        """Zero mean and unit deviation for each of the 3 C channels; not clipped."""
        return (planes - self.mean) / self.std

    def denormalise(self, x):
        """The inverse of `normalise`."""
        return x * self.std + self.mean

    # ------------------------------------------------------------------------------------------------------------ training

    def predict(self, params, x, t, condition):
        """The network's output for noisy normalised planes at t, a scalar or [B], under (features, mask)."""
        return self.denoiser(params['denoiser'], x, t, *condition)

    def loss(self, params, frozen, planes, ids, key):
        """(loss, metrics) of the generator's planes [B, 3, R, R, C] and captions [B, N]."""
        key_drop, key_t, key_noise, key_aux = jax.random.split(key, 4)
        limit = self.config.diffusion.clip
        clean = jnp.clip(self.normalise(planes), -limit, limit)
        condition = self.text.features(params['text'], self.text.drop(key_drop, ids, self.config.drop_text))
        t = losses.draw_t(key_t, clean.shape[0], self.schedule.length, stratified=True)
        noise = prng.rows(key_noise, clean.shape)
        x = schedules.q_sample(self.schedule, clean, t, noise)
        output = self.predict(params, x, t, condition)
        each = losses.per_object(output, losses.target(self.schedule, clean, t, noise))
        gamma = self.config.diffusion.min_snr
        loss = jnp.mean(each * losses.min_snr(self.schedule, t, gamma)) if gamma else jnp.mean(each)
        metrics = {'mse': jnp.mean(each), 'clipped': jnp.mean(jnp.abs(clean) >= limit)}
        if self.config.aux.weight:
            x0 = schedules.to_x0(self.schedule, output, x, t)
            metrics['loss/aux'] = self.config.aux.weight * self.rendered_error(frozen, clean, x0, t, key_aux)
            metrics['loss/planes'], loss = loss, loss + metrics['loss/aux']
        return loss, {'loss': loss, **metrics}

    def rendered_error(self, frozen, clean, x0, t, key):
        """Mean squared error of raw colour at `aux.size` pixels from random cameras, of examples at t < T / 4."""
        key_camera, key_jitter = jax.random.split(key)
        label = self.random_labels(key_camera, clean.shape[0])

        def raw(x):
            planes = self.denormalise(x)
            return self.generator.render(frozen['generator'], planes, label, key_jitter, size=self.config.aux.size).features

        each = losses.per_object(raw(x0)[..., :3], jax.lax.stop_gradient(raw(clean)[..., :3]))
        return jnp.mean(jnp.where(t < self.schedule.length // 4, each, 0.0))

    def random_labels(self, key, count: int):
        """Labels [B, 25] of cameras of the orbit: any azimuth, elevations of `aux.elevation` (low, high)."""
        azimuth, height = jax.random.uniform(key, (2, count), jnp.float32)
        low, high = self.config.aux.elevation
        views = cameras.orbit(2.0 * jnp.pi * azimuth, low + (high - low) * height, **self.generator.camera)
        return cameras.to_eg3d(views)

    # ------------------------------------------------------------------------------------------------------------ sampling

    def draw(self, params, ids, keys, scale: float | None = None, steps: int | None = None):
        """The generator's planes [B, 3, R, R, C] for token ids [B, N], one for each key [B], the same whatever the others are.

        Args: scale of the guidance and number of DDIM steps, the config's where None. A new scale compiles nothing but for 1,
        the conditional network alone at half the cost.
        """
        scale = self.config.sample.guidance if scale is None else scale
        steps = self.config.sample.steps if steps is None else steps
        plain = isinstance(scale, int | float) and scale == 1.0
        return self.draw_planes(params, ids, keys, None if plain else jnp.float32(scale), steps)

    def _draw(self, params, ids, keys, scale, steps: int):
        noise = jax.vmap(lambda key: jax.random.normal(key, self.shape, jnp.float32))(keys)
        return self.denormalise(self.sample_from(params, ids, noise, scale, steps))

    def sample_from(self, params, ids, noise, scale, steps: int):
        """Normalised planes of ids [B, N] from noise [B, 3, R, R, C]; scale None for the conditional network alone."""
        condition = self.text.features(params['text'], ids)
        predict = functools.partial(self.predict, params)
        if scale is None:
            denoise = lambda x, t: predict(x, t, condition)
        else:
            denoise = guidance.guided(predict, condition, self.text.features(params['text'], self.text.none(ids)), scale)
        return samplers.ddim(denoise, self.schedule, noise, steps=steps, rederive=True)

    # -------------------------------------------------------------------------------------------------------------- assets

    def scene(self, frozen, planes):
        """Field.scene of planes [3, R, R, C]: they and what renders them."""
        parts = {name: frozen['generator'][name] for name in ('decoder', 'superres') if name in frozen['generator']}
        return {'planes': planes, 'generator': parts, 'w_avg': frozen['buffers']['w_avg']}

    def field_at(self, scene, points):
        """Field.field: (density [N], rgb [N, 3]), the raw colour."""
        return self.generator.field_at(scene['generator'], scene['planes'], points)

    def render_rays(self, scene, rays):
        """Field.render: the raw colour along rays, over the background."""
        return self.generator.render_rays(scene['generator'], scene['planes'], rays)

    def rendered(self, scene, views: cameras.Cameras):
        """(features [V, s, s, F], upsampled [V, S, S, 3]) in [-1, 1] of one scene from cameras [V]."""
        count = views.world_from_cam.shape[0]
        planes = jnp.broadcast_to(scene['planes'], (count, *self.shape))
        label, size = cameras.to_eg3d(views), self.generator.render_size
        features = self.generator.render(scene['generator'], planes, label, None, size=size).features
        return features, self.generator.upsample(scene['generator'], features, self.style(scene, count))

    def style(self, scene, count: int):
        """What the upsampler gets for w: None for unit styles, else [count, W]."""
        if self.config.sr_style == 'unit':
            return None
        w = jnp.ones_like(scene['w_avg']) if self.config.sr_style == 'ones_w' else scene['w_avg']
        return jnp.broadcast_to(w, (count, *w.shape))

    def picture(self, scene, views: cameras.Cameras):
        """Upsampled images [V, S, S, 3] in [0, 1] of one scene: what the model is judged by."""
        return numerics.to_unit(self.rendered(scene, views)[1])

    def pictures(self, scene, views: cameras.Cameras):
        """[2 V, S, S, 3]: the upsampled views, then the raw ones by nearest neighbour."""
        features, fine = self.rendered(scene, views)
        raw = jax.image.resize(features[..., :3], fine.shape, 'nearest')
        return numerics.to_unit(jnp.concatenate([fine, raw]))

    def orbit(self, count: int) -> cameras.Cameras:
        """`count` cameras around the object at the preview's elevation, front first."""
        return cameras.turntable(count, elevation=self.config.preview.elevation, **self.generator.camera)


def statistics(planes, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean, deviation) [3, 1, 1, C] of a config's `planes` section; 0 and 1 where it is empty, as before any data is seen."""
    values = [planes.mean or (0.0,) * channels, planes.std or (1.0,) * channels]
    if any(len(value) != channels for value in values):
        raise UsageError(
            f'planes has {len(planes.mean)} means and {len(planes.std)} deviations, the given generator {channels} channels: '
            'leave both empty, they are those of the pairs (data.path).'
        )
    return tuple(np.float32(value).reshape(3, 1, 1, -1) for value in values)


def make_schedule(section) -> schedules.Schedule:
    """Stable Diffusion's betas with the section's shift of log SNR; x_0 clipped at its `clip` while sampling."""
    plain = schedules.scaled_linear(section.timesteps, prediction=section.prediction, spacing='trailing', clip=section.clip)
    return schedules.shifted(plain, math.exp(-0.5 * section.shift), 1) if section.shift else plain


def check(config, generator: Generator) -> None:
    """Raises UsageError for what cannot work, with what can."""
    text_condition.check(config.text, config.unet)
    prediction, patch = config.diffusion.prediction, config.patch
    if prediction == 'eps' and patch >= 4 or prediction == 'v' and patch > 2:
        width = 3 * patch**2 * generator.channels
        raise UsageError(
            f'diffusion.prediction={prediction!r} with patch={patch}: {width} channels of noise do not pass a stem of '
            f"{config.unet.block_out_channels[0]}: wanted 'x0' (the others for patch <= 2)."
        )
    if config.sr_style == 'w':
        raise UsageError(
            "sr_style='w': the diffusion model makes planes and no w, which is what this style modulates the upsampler by. "
            f'Choose {", ".join(SR_STYLES)}; the first is exact where stage 1 was trained with it.'
        )
    if config.sr_style not in SR_STYLES:
        raise UsageError(f'unknown sr_style {config.sr_style!r}: choose one of {", ".join(SR_STYLES)}.')
    if (config.sr_style == 'unit') != (generator.style == 'unit'):
        reads = 'has no layers that read a w' if generator.style == 'unit' else 'reads a w'
        choices = SR_STYLES[:1] if generator.style == 'unit' else SR_STYLES[1:]
        raise UsageError(
            f'sr_style={config.sr_style!r}: the generator was trained with {generator.style!r}, and its upsampler '
            f'{reads}: choose {" or ".join(choices)}.'
        )
