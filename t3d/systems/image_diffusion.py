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
import numpy as np
import optax

from t3d.core import optim, prng, replicas, tokens, tree
from t3d.core.errors import UsageError
from t3d.core.system import Picture, System, TrainState
from t3d.diffusion import guidance, losses, samplers, schedules
from t3d.nets import patched_unet, text_condition, unet
from t3d.nets.clip import TextTower

SHARDING = unet.SHARDING


def make(config) -> System:
    """The system of a config (configs/image_diffusion.py): sections text, unet, diffusion, sample, optimizer."""
    check(config)
    tokenize = tokens.make(config.text)
    model = Denoiser(config, tokenize)
    optimizer = optim.adamw(**config.optimizer, total=config.steps)

    def init(key, batch) -> TrainState:
        params = model.init(key, batch['tokens'][:1])
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), tree.copy(params), {})

    def train_step(state: TrainState, batch, key):
        (_, metrics), grads = jax.value_and_grad(model.loss, has_aux=True)(state.params, batch, key)
        grads, metrics = replicas.mean((grads, metrics))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(jnp.add, state.params, updates)
        if config.text.frozen:
            params['text'] = state.params['text']  # weight decay would move it all the same
        decay = optim.ema_decay(state.step, config.ema_decay)
        metrics['grad_norm'] = optax.tree.norm(grads)
        metrics['lr'] = optim.warmup_cosine(
            state.step, config.optimizer.learning_rate, config.optimizer.warmup, config.steps, config.optimizer.final
        )
        return TrainState(state.step + 1, params, opt_state, tree.ema(state.ema, params, decay), state.extras), metrics

    def preview(params, batch, key) -> jax.Array:
        ids = jnp.repeat(batch['tokens'], PREVIEWED, axis=0)
        images = model.sample(params, ids, key, steps=config.sample.steps, scale=config.sample.guidance)
        rows = images.reshape(-1, PREVIEWED, *images.shape[1:])
        return rows.transpose(0, 2, 1, 3, 4).reshape(rows.shape[0], images.shape[1], -1, 3)

    @jax.jit
    def draw(params, ids, keys):
        """One image for each key, the same whatever the others are."""
        noise = jax.vmap(lambda key: jax.random.normal(key, model.shape, jnp.float32))(keys)
        return model.sample_from(params, ids, noise, steps=config.sample.steps, scale=config.sample.guidance)

    def generate(params, prompts, key) -> list[Picture]:
        keys = prng.each(key, len(prompts))
        images = draw(params, jnp.asarray(tokenize(list(prompts))), keys)
        return [Picture(prompt, image) for prompt, image in zip(prompts, images, strict=True)]

    return System(init, train_step, preview, generate, SHARDING, batch_spec(config))


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


class Denoiser:
    """The networks of a config and the functions that join them; holds no parameters."""

    def __init__(self, config, tokenize):
        text, dtype = config.text, jnp.dtype(config.dtype)
        vocabulary = int(text.vocabulary_size) if text.get('folder') else tokenize.vocabulary_size
        self.tower = TextTower(
            vocabulary,
            text.length,
            text.width,
            text.layers,
            text.heads,
            activation=text.activation,
            embedding_scale=text.embedding_scale,
            dtype=dtype,
        )
        self.patch, self.size = config.patch, config.data.size
        self.unet = patched_unet.from_section(config.unet, 3 * self.patch**2, 3 * self.patch**2, dtype=dtype)
        self.schedule = make_schedule(config.diffusion)
        self.min_snr, self.drop_text = config.diffusion.min_snr, config.drop_text
        self.background, self.frozen_text = config.render.background, bool(text.frozen)
        self.empty = np.asarray(tokenize(['']))
        self.shape = (self.size, self.size, 3)

    def init(self, key, ids):
        """Parameters {'text', 'unet'}."""
        key_text, key_unet = jax.random.split(key)
        text = self.tower.init(key_text, ids)['params']
        features = self.tower.apply({'params': text}, ids)
        noisy = patched_unet.to_patches(jnp.zeros((1, *self.shape), jnp.float32), self.patch)
        return {'text': text, 'unet': self.unet.init(key_unet, noisy, jnp.zeros((1,), jnp.int32), features)['params']}

    def features(self, params, ids):
        """Text features [B, N, C] of token ids [B, N]."""
        found = self.tower.apply({'params': params['text']}, ids)
        return jax.lax.stop_gradient(found) if self.frozen_text else found

    def predict(self, params, noisy, t, features):
        """The network's output (v, x0 or eps, by the config) for pixels [B, S, S, 3] in [-1, 1] and timesteps [B]."""
        out = self.unet.apply({'params': params['unet']}, patched_unet.to_patches(noisy, self.patch), t, features)
        return patched_unet.from_patches(out.astype(jnp.float32), self.patch)

    def loss(self, params, batch, key):
        """(loss, metrics) of a batch of captioned views."""
        key_drop, key_noise = jax.random.split(key)
        rgba = batch['image'][:, 0].astype(jnp.float32) / 255.0
        clean = 2.0 * (rgba[..., :3] * rgba[..., 3:] + self.background * (1.0 - rgba[..., 3:])) - 1.0
        dropped = prng.coin(key_drop, self.drop_text, (clean.shape[0], 1))
        features = self.features(params, jnp.where(dropped, self.empty, batch['tokens']))
        found = losses.denoising(
            lambda x, t: self.predict(params, x, t, features), self.schedule, clean, key_noise, gamma=self.min_snr or None
        )
        return found.loss, {'loss': found.loss, 'mse': jnp.mean(found.each)}

    def sample(self, params, ids, key, *, steps: int, scale: float):
        """Images [B, S, S, 3] in [0, 1] of token ids [B, N], by DDIM."""
        noise = jax.random.normal(key, (ids.shape[0], *self.shape), jnp.float32)
        return self.sample_from(params, ids, noise, steps=steps, scale=scale)

    def sample_from(self, params, ids, noise, *, steps: int, scale: float):
        """`sample` from given noise [B, S, S, 3]."""
        text = self.features(params, ids)

        def predict(x, t, features):
            return self.predict(params, x, jnp.broadcast_to(t, x.shape[:1]), features)

        if isinstance(scale, float) and scale == 1.0:  # the conditional model alone, at half the cost
            denoise = lambda x, t: predict(x, t, text)
        else:
            none = self.features(params, jnp.broadcast_to(self.empty, ids.shape))
            denoise = guidance.guided(predict, text, none, scale)
        found = samplers.ddim(denoise, self.schedule, noise, steps=steps)
        return jnp.clip(0.5 + 0.5 * found, 0.0, 1.0)


def make_schedule(section) -> schedules.Schedule:
    """The noise schedule of a config's `diffusion` section."""
    tables = {'cosine': schedules.cosine, 'linear': schedules.linear, 'scaled_linear': schedules.scaled_linear}
    return tables[section.schedule](section.timesteps, prediction=section.prediction, spacing='trailing', clip=1.0)


def check(config) -> None:
    """Raises UsageError where sections do not fit each other."""
    text_condition.check(config.text, config.unet)
    if config.data.size % config.patch:
        near = config.data.size // config.patch * config.patch or config.patch
        raise UsageError(f'patch={config.patch} does not divide data.size={config.data.size}: set data.size={near}.')
