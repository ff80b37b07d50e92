"""Text to several views of one object at once: multi-view diffusion in three forms (MVDream, SPAD, epipolar blocks).

prompt, cameras -> text features, camera inputs -> UNet over all views -> eps, v or x0 -> DDIM with guidance -> posed views.

It grows out of a text-to-image model: `given.prior` (a trained tiny model, or a Stable Diffusion folder) lends its text tower,
autoencoder, noise schedule and the weights that the UNet starts from; without one a text tower is trained along, on pixels.
With `given.clip` it can be shown a picture of the object beside the prompt: the first view of each in training.
Sources: MVDream, arXiv 2308.16512; SPAD, arXiv 2402.05235; Guided multi-view diffusion, Sec. 3.1 and 3.2.

Differences from the papers:
- Steps of single pictures (2D), a compiled program of its own chosen by seed and step (`flat_share`), see the views of the same
  records without their cameras, where MVDream's come from a set of photographs.
- The guided report gives no sizes for its epipolar blocks and left them in training; those of `views` are ours, and the views
  see each other through these blocks alone.
- Small configs predict v on pixels, and sample 4 views at the front, right, back and left; elevations are those of the set.
- The masks of `masked` follow the geometry of each level; `views.masks='spad_legacy'` has those of the released weights.
- Text, camera and picture are dropped apart from each other; the released models drop the text alone.
- The picture is one token beside the text; ImageDream (arXiv 2312.02201), MVDream's kin, has image features at three levels.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from t3d.core import accumulate, numerics, optim, precision, prng, replicas, tokens, tree
from t3d.core.errors import UsageError
from t3d.core.outputs import Views, only_prompts
from t3d.core.system import System, TrainState, require
from t3d.diffusion import guidance, likeness, losses, samplers, schedules
from t3d.diffusion.prior import MultiViewPrior, Prior
from t3d.fields import view_inputs
from t3d.fields.view_inputs import ViewOptions
from t3d.geom.cameras import Cameras, turntable
from t3d.nets import image_condition, mv_unet, patched_unet, text_condition, unet
from t3d.nets.text_condition import TextCondition
from t3d.nets.unet_blocks import Masked

TAKES, GIVES = {'prior': (Prior,), 'clip': (likeness.Likeness,)}, MultiViewPrior
LEARNED = ('prior',)  # whose UNet is the start of this one
SHARDING = (*mv_unet.SHARDING, *unet.SHARDING)


def make(config, given=None) -> System:
    """The system of a config (configs/mvdiffusion.py): sections text, unet, views, diffusion, sample, optimizer.

    Args:
      given: 'prior', the text-to-image model it grows out of, without which it learns from nothing; 'clip', what sees pictures
        that are given beside prompts.
    """
    model = Model(config, given or {})
    parts = config.get('accumulate', 1)
    optimizer = optim.staged(optim.adamw(**config.optimizer, total=config.steps), is_new, **config.staged)

    def init(key, batch, given) -> TrainState:
        params = model.init(key, batch, given)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), tree.copy(params), {})

    def step_of(loss):
        def train_step(state: TrainState, batch, key, given):
            of_batch = lambda params, batch, key: loss(params, given, batch, key)
            (_, metrics), grads = accumulate.value_and_grad(of_batch, parts)(state.params, batch, key)
            grads, metrics = replicas.mean((grads, metrics))
            params, opt_state = optim.update(optimizer, state, grads)
            return optim.advance(config, state, params, opt_state, {**metrics, 'grad_norm': optax.tree.norm(grads)})

        return train_step

    def choose(step: int) -> int:
        """1, a step of single pictures, with probability `flat_share`, drawn by seed and step."""
        return int(np.random.default_rng((config.seed, FLAT, step)).random() < config.flat_share)

    def preview(params, batch, key, given) -> jax.Array:
        cameras = Cameras(batch['world_from_cam'], batch['intrinsics'])
        keys = jax.random.split(key, batch['tokens'].shape[0])
        images = model.sample(params, given, batch['tokens'], cameras, keys)
        return numerics.side_by_side(jnp.concatenate([images, model.composite(batch['image'])], 1))

    draw = jax.jit(model.sample)

    def generate(params, requests, keys, given) -> list[Views]:
        prompts, shown = model.asked(requests)
        cameras = model.rig(len(prompts))
        images = draw(params, given, jnp.asarray(model.tokenize(prompts)), cameras, keys, shown)
        return [
            Views(prompt, *one)
            for prompt, one in zip(prompts, zip(images, cameras.world_from_cam, cameras.intrinsics, strict=True), strict=True)
        ]

    def check(requests) -> None:
        prompts, _ = model.asked(requests)
        if model.text is not None:
            return tokens.check_prompts(config.text, prompts)
        model.tokenize(prompts)

    step, flat_step = step_of(model.loss), (step_of(model.flat_loss),) if config.flat_share else ()
    spec, functions = batch_spec(config), model.functions()
    chooses = choose if config.flat_share else None
    return System(init, step, preview, generate, check, ('ema',), SHARDING, spec, functions, flat_step, chooses)


FLAT, IMAGE = 2, 4  # of the draws that choose between views and single pictures, and that make and drop a picture's token


def is_new(name: str) -> bool:
    """Whether a parameter is of a layer that the text-to-image UNet does not have."""
    return 'camera_embedding' in name or 'epipolar' in name or name.startswith('image/')


def batch_spec(config) -> dict[str, jax.ShapeDtypeStruct]:
    """What the data pipeline delivers: posed RGBA views of captioned objects."""
    batch, views, size = config.batch, config.data.views, config.data.size
    spec = {
        'tokens': ((batch, config.text.length), jnp.int32),
        'image': ((batch, views, size, size, 4), jnp.uint8),
        'world_from_cam': ((batch, views, 4, 4), jnp.float32),
        'intrinsics': ((batch, views, 3, 3), jnp.float32),
    }
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in spec.items()}


class Model:
    """The networks of a config and the functions that join them; holds no parameters.

    Parameters are {'unet'}, 'text' where no prior is given, and 'image' where pictures are seen. `given` has the parameters of
    'prior' and of 'clip', of what there is.
    """

    def __init__(self, config, given):
        self.config, self.alone, self.size, self.patch = config, not given, config.data.size, config.patch
        self.prior, self.text, self.precision = None, None, precision.policy(config)
        if 'prior' not in given:
            text_condition.check(config.text, config.unet)
            self.text = TextCondition(config.text, self.precision.compute)
            self.tokenize, self.schedule = self.text.tokenize, schedules.from_section(config.diffusion)
            self.shape = (self.size, self.size, 3)
        else:
            wanted = 'a text-to-image model: image_diffusion-toy, a run of image_diffusion, or a Stable Diffusion folder'
            self.prior = require(given, 'prior', Prior, wanted).functions
            if config.start and 'unet' not in given['prior'].params:
                raise UsageError(f'given.prior={given["prior"].name!r} has no UNet to start from: wanted {wanted}.')
            self.tokenize, self.schedule = self.prior.tokenize, self.prior.schedule
            self.shape = self.prior.shape(self.size)
            tokens.refuse_other(config.text, self.tokenize, tokens.probe(config.text))
        check(config, self.shape)
        channels, v = self.shape[2] * self.patch**2, config.views
        self.unet = patched_unet.from_section(
            config.unet,
            channels,
            channels,
            kind=mv_unet.MultiViewUNet,
            dtype=self.precision.compute,
            form=v.form,
            camera=view_inputs.VECTORS[v.camera] if v.camera else 0,
            camera_zero=v.camera_zero,
            plucker=v.plucker,
            block_levels=tuple(v.block_levels),
            view_axis=v.get('axis', ''),
            remat=config.get('remat', False),
        )
        self.options = ViewOptions(v.camera, v.masks, v.line_width, v.samples, v.get('reach', 1.0))
        self.empty = jnp.asarray(self.tokenize(['']))
        alike = likeness.of_given(given)
        self.image = alike and image_condition.ImageCondition(alike, config.unet.cross_attention_dim)

    # ---------------------------------------------------------------------------------------------------------- parameters

    def init(self, key, batch, given):
        """New parameters; the UNet's are the prior's where it has them."""
        key_text, key_unet = jax.random.split(key)
        params = {} if self.text is None else {'text': self.text.init(key_text, batch['tokens'][:1])}
        if self.image is not None:
            params['image'] = self.image.init(jax.random.fold_in(key, IMAGE))
        features = self.features(params, given, batch['tokens'][:1])
        cameras = Cameras(batch['world_from_cam'][:1], batch['intrinsics'][:1])
        noisy = self.patched(jnp.zeros((1, cameras.intrinsics.shape[1], *self.shape), jnp.float32))
        made = self.unet.init(key_unet, noisy, jnp.zeros((1,), jnp.int32), features, self.inputs(cameras))['params']
        if self.prior is not None and self.config.start:
            made = mv_unet.graft(made, given['prior']['unet'])
        return {**params, 'unet': made}

    # ------------------------------------------------------------------------------------------------------------ networks

    def features(self, params, given, ids):
        """Text features [B, N, D] of ids [B, N]; those of a prior are never trained."""
        if self.text is None:
            return jax.lax.stop_gradient(self.prior.encode(given['prior'], ids))
        return self.text.features(params['text'], ids)[0]

    def beside(self, params, given, features, shown: image_condition.Shown | None):
        """What the network reads: text features, and a token of the pictures that are shown beside them."""
        return features if shown is None else self.image.beside(params['image'], given['clip'], features, shown)

    def patched(self, x):
        """[B, V, H, W, C] with `patch` x `patch` of them as one position."""
        return patched_unet.to_patches(x.reshape(-1, *x.shape[2:]), self.patch).reshape(
            *x.shape[:2], x.shape[2] // self.patch, x.shape[3] // self.patch, -1
        )

    def inputs(self, cameras: Cameras, shape=None, jitter=None) -> mv_unet.ViewInputs:
        """What the network is told of cameras [B, V]; shape: (H, W, C) of x, None for that of the config."""
        height, width = (side // self.patch for side in (shape or self.shape)[:2])
        return view_inputs.make(self.unet, cameras, height, width, self.options, jitter)

    def predict(self, params, x, t, features, views: mv_unet.ViewInputs):
        """The network's output for x [B, V, H, W, C], t [B] or scalar; with empty `views` and V = 1 that of pictures."""
        features, mask = features if isinstance(features, Masked) else (features, None)
        out = self.unet.apply({'params': params['unet']}, self.patched(x), t, features, views, mask)
        flat = precision.result(self.precision, out).reshape(-1, *out.shape[2:])
        return patched_unet.from_patches(flat, self.patch).reshape(x.shape)

    def composite(self, rgba):
        """uint8 RGBA over the background, [0, 1]."""
        rgba = rgba.astype(jnp.float32) / 255.0
        return rgba[..., :3] * rgba[..., 3:] + self.config.render.background * (1.0 - rgba[..., 3:])

    def clean(self, given, images):
        """What the network denoises, of images [B, V, S, S, 3] in [0, 1]."""
        x = 2.0 * images - 1.0
        if self.prior is None:
            return x
        flat = self.prior.latents(given['prior'], x.reshape(-1, *x.shape[2:]))
        return flat.reshape(*x.shape[:2], *self.shape)

    # -------------------------------------------------------------------------------------------------------------- losses

    def loss(self, params, given, batch, key):
        """(loss, metrics) of posed views: one time for all views of an object, noise of each its own."""
        key_text, key_camera, key_jitter, key_noise = jax.random.split(key, 4)
        cameras = Cameras(batch['world_from_cam'], batch['intrinsics'])
        features = self.dropped(params, given, batch['tokens'], key_text)
        views = self.inputs(cameras, jitter=key_jitter)
        if views.camera is not None and self.config.drop_camera > 0.0:
            keep = ~prng.coin(key_camera, self.config.drop_camera, (features.shape[0],))
            views = views._replace(keep=jnp.broadcast_to(keep[:, None], views.camera.shape[:2]))
        images, shown = self.composite(batch['image']), None
        if self.image is not None:
            shown = image_condition.in_training(jax.random.fold_in(key, IMAGE), images, self.config.drop_image)
        return self._denoising(params, given, images, self.beside(params, given, features, shown), views, key_noise)

    def flat_loss(self, params, given, batch, key):
        """(loss, metrics) of the views as pictures of their own, without cameras: B V objects of one view."""
        key_text, key_noise = jax.random.split(key)
        images = self.composite(batch['image'])
        features = self.dropped(params, given, batch['tokens'], key_text, images.shape[1])
        images = images.reshape(-1, 1, *images.shape[2:])
        return self._denoising(params, given, images, features, mv_unet.ViewInputs(), key_noise)

    def _denoising(self, params, given, images, features, views, key):
        denoised = losses.denoising(
            lambda x, t: self.predict(params, x, t, features, views),
            self.schedule,
            self.clean(given, images),
            key,
            gamma=self.config.diffusion.min_snr or None,
            least=self.config.diffusion.get('least_snr', 0.0),
        )
        return denoised.loss, {'loss': denoised.loss, 'mse': jnp.mean(denoised.each)}

    def dropped(self, params, given, ids, key, copies=1):
        """Text features of ids [B, N], each `copies` times and `drop_text` of these those of no text; a text is read once."""
        features = jnp.repeat(self.features(params, given, ids), copies, axis=0)
        drop = prng.coin(key, self.config.drop_text, (features.shape[0], 1, 1))
        return jnp.where(drop, self.features(params, given, self.empty), features)

    # ------------------------------------------------------------------------------------------------------------ sampling

    def rig(self, objects: int) -> Cameras:
        """The cameras of generated views, [objects, V]: once around, front first."""
        sample, render = self.config.sample, self.config.render
        views = turntable(sample.views, elevation=sample.elevation, radius=render.radius, fov=render.fov)
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (objects, *leaf.shape)), views)

    def asked(self, requests):
        """(prompts, the pictures beside them or None) of requests; UsageError for what this system cannot take."""
        if self.image is None:
            return only_prompts(requests, self.config.system), None
        prompts = only_prompts([request._replace(image=None) for request in requests], self.config.system)
        pictures = [request.image for request in requests]
        return prompts, image_condition.requested(pictures, self.size, self.config.render.background)

    def sample(self, params, given, ids, cameras: Cameras, keys, shown=None):
        """Images [B, V, S, S, 3] in [0, 1], each object a function of its ids, cameras, key and picture alone."""
        sample, count = self.config.sample, cameras.intrinsics.shape[1]
        noise = jax.vmap(lambda key: jax.random.normal(key, (count, *self.shape), jnp.float32))(keys)
        views, features = self.inputs(cameras), self.features(params, given, ids)
        text = self.beside(params, given, features, shown)

        def predict(x, t, condition):
            return self.predict(params, x, jnp.broadcast_to(t, x.shape[:1]), *condition)

        if sample.guidance == 1.0:  # the conditional model alone, at half the cost
            denoise = lambda x, t: predict(x, t, (text, views))
        else:
            none = jnp.broadcast_to(self.features(params, given, self.empty), features.shape)
            none = self.beside(params, given, none, image_condition.dropped(shown))
            denoise = guidance.guided(predict, (text, views), (none, views), sample.guidance, sample.rescale)
        x = samplers.ddim(denoise, self.schedule, noise, steps=sample.steps)
        return self.decoded(given, x)

    def decoded(self, given, x):
        """Images in [0, 1] of x [B, V, H, W, C]."""
        if self.prior is not None:
            flat = self.prior.decode(given['prior'], x.reshape(-1, *x.shape[2:]))
            x = flat.reshape(*x.shape[:2], *flat.shape[1:])
        return jnp.clip(0.5 + 0.5 * x, 0.0, 1.0)

    def functions(self) -> MultiViewPrior:
        """The multi-view model that this system is to others. Its parameters are {'weights', 'given'}, or the weights alone."""

        def parts(params):
            return (params, {}) if self.alone else (params['weights'], params['given'])

        def encode(params, ids):
            return self.features(*parts(params), ids)

        def predict(params, x, t, features, views):
            return self.predict(parts(params)[0], x, t, features, views)

        def decode(params, x):
            return self.decoded(parts(params)[1], x)

        def latents(params, images):
            return self.clean(parts(params)[1], images)

        sample = self.config.sample
        return MultiViewPrior(
            self.schedule,
            self.tokenize,
            encode,
            predict,
            self.inputs,
            decode,
            latents,
            self.shape,
            self.size // self.shape[0],
            self.rig,
            sample.guidance,
        )


def check(config, shape) -> None:
    """Raises UsageError where sections do not fit each other."""
    patch, size = config.patch, config.data.size
    if shape[0] % patch:
        raise UsageError(f'patch={patch} does not divide the {shape[0]} positions of data.size={size}: set patch=1.')
    if config.views.camera and config.views.camera not in view_inputs.VECTORS:
        raise UsageError(f"views.camera={config.views.camera!r}: wanted one of {', '.join(view_inputs.VECTORS)}, or ''.")
    if config.data.views < 2 and not config.flat_share:
        raise UsageError(f'data.views={config.data.views}: wanted 2 or more, the views of one object learned together.')
