"""Text-to-image diffusion in pixel space, small enough to train on a CPU: the embedded prior of this project.

prompt -> tokens -> text tower -> SD-shaped UNet on noisy pixels -> v, x0 or eps -> DDIM with classifier-free guidance -> image.

Score distillation and guided multi-view sampling need a text-to-image model; real ones are the user's (checkpoint.convert),
this one ships with the package and is trained by `t3d train configs/image_diffusion.py:tiny`.

Differences from the paper (latent diffusion, arXiv 2112.10752):
- No autoencoder: the network sees pixels, `patch` x `patch` of them as one position, so that 32 px cost what 16 latents cost.
- The text tower has CLIP's shape and trains with the network instead of being frozen.
- Cosine schedule (2102.09672) and v-prediction (2202.00512), because pictures on white need a terminal signal of nearly zero to
  get their brightness right; the loss is weighted by min-SNR (2303.09556).
- The network of `pod` is Stable Diffusion 2.1's, on pixels.
"""

import jax
import jax.numpy as jnp
import optax

from t3d.core import accumulate, numerics, optim, precision, replicas, tokens, tree
from t3d.core.errors import UsageError
from t3d.core.outputs import Picture, only_prompts
from t3d.core.system import System, TrainState
from t3d.diffusion import guidance, losses, samplers, schedules
from t3d.diffusion.prior import Prior
from t3d.nets import patched_unet, text_condition, unet
from t3d.nets.text_condition import TextCondition

GIVES = Prior
SHARDING = unet.SHARDING


def make(config, given=None) -> System:
    """The system of a config (configs/image_diffusion.py): sections text, unet, diffusion, sample, optimizer."""
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
        ids = jnp.repeat(batch['tokens'], PREVIEWED, axis=0)
        images = model.sample(params, ids, key, steps=config.sample.steps, scale=config.sample.guidance)
        return numerics.side_by_side(images.reshape(-1, PREVIEWED, *images.shape[1:]))

    @jax.jit
    def draw(params, ids, keys):
        """One image for each key, the same whatever the others are."""
        noise = jax.vmap(lambda key: jax.random.normal(key, model.shape, jnp.float32))(keys)
        return model.sample_from(params, ids, noise, steps=config.sample.steps, scale=config.sample.guidance)

    def generate(params, requests, keys, given=None) -> list[Picture]:
        prompts = only_prompts(requests, config.system)
        images = draw(params, jnp.asarray(model.text.tokenize(prompts)), keys)
        return [Picture(prompt, image) for prompt, image in zip(prompts, images, strict=True)]

    def check(requests) -> None:
        tokens.check_prompts(config.text, only_prompts(requests, config.system))

    functions = prior_of(model, config.sample.guidance)
    return System(init, train_step, preview, generate, check, ('ema',), SHARDING, batch_spec(config), functions)


PREVIEWED = 4  # samples of each caption in a preview


def batch_spec(config) -> dict[str, jax.ShapeDtypeStruct]:
    """What the data pipeline delivers: captioned RGBA views; their cameras are not used."""
    batch, views, size = config.batch, config.data.views, config.data.size
    spec = {
        'tokens': ((batch, config.text.length), jnp.int32),
        'image': ((batch, views, size, size, 4), jnp.uint8),
        'world_from_cam': ((batch, views, 4, 4), jnp.float32),
        'intrinsics': ((batch, views, 3, 3), jnp.float32),
    }
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in spec.items()}


def prior_of(model: 'Model', guidance_scale: float) -> Prior:
    """The text-to-image model that this system is to others."""

    def encode(params, ids):
        return model.text.features(params['text'], ids)[0]

    def shape(size: int):
        if size != model.size:
            raise UsageError(f'{size} pixels: this model makes pictures of {model.size} pixels only.')
        return model.shape

    def same(params, x):
        return x

    tokenize, native = model.text.tokenize, model.size
    return Prior(model.schedule, tokenize, encode, model.predict, same, shape, same, native, guidance_scale)


class Model:
    """The networks of a config and the functions that join them; holds no parameters."""

    def __init__(self, config):
        check(config)
        self.precision = precision.policy(config)
        self.text = TextCondition(config.text, self.precision.compute)
        self.patch, self.size = config.patch, config.data.size
        self.unet = patched_unet.from_section(config.unet, 3 * self.patch**2, 3 * self.patch**2, dtype=self.precision.compute)
        self.schedule = schedules.from_section(config.diffusion)
        self.min_snr, self.least_snr = config.diffusion.min_snr or None, config.diffusion.get('least_snr', 0.0)
        self.drop_text = config.drop_text
        self.background = config.render.background
        self.shape = (self.size, self.size, 3)

    def init(self, key, ids):
        """Parameters {'text', 'unet'}."""
        key_text, key_unet = jax.random.split(key)
        text = self.text.init(key_text, ids)
        features, _ = self.text.features(text, ids)
        noisy = patched_unet.to_patches(jnp.zeros((1, *self.shape), jnp.float32), self.patch)
        return {'text': text, 'unet': self.unet.init(key_unet, noisy, jnp.zeros((1,), jnp.int32), features)['params']}

    def predict(self, params, noisy, t, features):
        """The network's output (v, x0 or eps, by the config) for pixels [B, S, S, 3] in [-1, 1] and timesteps [B]."""
        out = self.unet.apply({'params': params['unet']}, patched_unet.to_patches(noisy, self.patch), t, features)
        return patched_unet.from_patches(precision.result(self.precision, out), self.patch)

    def loss(self, params, batch, key):
        """(loss, metrics) of a batch of captioned views."""
        key_drop, key_noise = jax.random.split(key)
        rgba = batch['image'][:, 0].astype(jnp.float32) / 255.0
        clean = 2.0 * (rgba[..., :3] * rgba[..., 3:] + self.background * (1.0 - rgba[..., 3:])) - 1.0
        features, _ = self.text.features(params['text'], self.text.drop(key_drop, batch['tokens'], self.drop_text))
        denoised = losses.denoising(
            lambda x, t: self.predict(params, x, t, features),
            self.schedule,
            clean,
            key_noise,
            gamma=self.min_snr,
            least=self.least_snr,
        )
        return denoised.loss, {'loss': denoised.loss, 'mse': jnp.mean(denoised.each)}

    def sample(self, params, ids, key, *, steps: int, scale: float):
        """Images [B, S, S, 3] in [0, 1] of token ids [B, N], by DDIM."""
        noise = jax.random.normal(key, (ids.shape[0], *self.shape), jnp.float32)
        return self.sample_from(params, ids, noise, steps=steps, scale=scale)

    def sample_from(self, params, ids, noise, *, steps: int, scale: float):
        """`sample` from given noise [B, S, S, 3]."""
        text, _ = self.text.features(params['text'], ids)

        def predict(x, t, features):
            return self.predict(params, x, jnp.broadcast_to(t, x.shape[:1]), features)

        if isinstance(scale, float) and scale == 1.0:  # the conditional model alone, at half the cost
            denoise = lambda x, t: predict(x, t, text)
        else:
            none, _ = self.text.features(params['text'], self.text.none(ids))
            denoise = guidance.guided(predict, text, none, scale)
        x = samplers.ddim(denoise, self.schedule, noise, steps=steps)
        return jnp.clip(0.5 + 0.5 * x, 0.0, 1.0)


def check(config) -> None:
    """Raises UsageError where sections do not fit each other."""
    text_condition.check(config.text, config.unet)
    if config.data.size % config.patch:
        near = config.data.size // config.patch * config.patch or config.patch
        raise UsageError(f'patch={config.patch} does not divide data.size={config.data.size}: set data.size={near}.')
