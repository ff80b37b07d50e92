"""GANFusion stage 1 (arXiv 2412.16717): a triplane GAN from single-view images with camera labels, of EG3D's design.

z -> w -> triplanes -> volume render at the image's camera -> upsampler -> image; a discriminator sees the image and the raw
render together, under the camera label (EG3D, arXiv 2112.07945; StyleGAN2, 1912.04958).

One train step is one iteration of four phases, each an Adam step of its own on its network's one optimizer state:

| phase | every | moves | loss |
|---|---|---|---|
| generator | iteration | generator | softplus(-D(fake)) + `opacity.weight` mean 4 o (1 - o), o the opacities of its rays |
| density | `density.every` | generator | 0.25 mean |sigma(p) - sigma(p + noise)| (EG3D, Sec. 5.1), times the interval |
| discriminator | iteration | discriminator, w_avg | softplus(D(fake)) + softplus(-D(real)) |
| r1 | `r1.every` | discriminator | gamma / 2 |grad of D(real)|^2 (1801.04406), times the interval |

Differences from the paper (and from EG3D, whose recipe it is):
- The third plane is (z, y); EG3D's code repeats (x, z) there. `render.plane_axes='legacy'` for released weights.
- The upsampler is trained without w by default (`generator.sr_style='unit'`), because stage 2 has none to give.
- Rays that miss the box see the background; EG3D samples the field outside it. `render.limits='fixed'` has its fixed range.
- The raw picture of a real image is the blurred image made small; EG3D blurs after that, with as many pixels of the small one.
- The neural resolution climbs a short ladder (`ladder`), not every integer in between: each rung is one compiled branch.
- Minibatch statistics and swapped labels stay inside micro-batches of fixed size: the result does not depend on the devices.
- `opacity.weight` (0: off, as in the paper) is ours: on a plain background a picture cannot tell coloured fog from a solid.
- The label noise of the discriminator (`discriminator.label_noise`) is drawn anew at each use; it does not pile up.
- `fakes='shared'` shows the discriminator the fakes that the generator was just judged by, of before its move: a render less an
  iteration. `'new'` draws others, as the paper does. `average.images` may be longer than EG3D's rule for small batches.
"""

import functools

import jax
import jax.numpy as jnp

from t3d.core import cadence, numerics, optim, precision, prng, replicas, tokens, tree
from t3d.core.errors import UsageError
from t3d.core.outputs import Field, only_prompts
from t3d.core.system import System, TrainState
from t3d.fields.triplane_generator import LABEL, Generator
from t3d.geom import cameras
from t3d.nets import augment, fir
from t3d.nets import stylegan2_discriminator as discriminators
from t3d.systems import ganfusion_gan_schedules as schedules
from t3d.systems.ganfusion_gan_schedules import Schedules

SHARDING = ()  # the networks are small: every device holds them whole (fsdp_floor divides what is larger)
DENSITY_WEIGHT, DENSITY_POINTS, DENSITY_REACH = 0.25, 1000, 0.004  # EG3D's, in scene units
GIVES = Generator
AVERAGED, W_DECAY = ('generator', 'buffers'), 0.998  # the second: of the average of w, which truncation pulls to


def make(config, given=None) -> System:
    """The system of a config (configs/ganfusion_gan.py)."""
    model = Model(config)

    def init(key, batch, given=None) -> TrainState:
        params = model.init(key)
        ema = tree.copy({name: params[name] for name in AVERAGED})
        opt_state = {name: model.optimizers[name].init(params[name]) for name in model.optimizers}
        extras = {'density': jnp.float32(0.0), 'r1': jnp.float32(0.0), 'augment': augment.controller(config.augment.p)}
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state, ema, extras)

    def preview(params, batch, key, given=None) -> jax.Array:
        return model.sheet(params, key, min(config.preview.rows, config.batch), config.preview.views)

    def generate(params, requests, keys, given=None) -> list[Field]:
        draw = jax.vmap(lambda key: jax.random.normal(key, (model.generator.z_dim,), jnp.float32))
        styles = model.generator.map(params['generator'], draw(keys))
        return [model.object(params, request.prompt, w) for request, w in zip(requests, styles, strict=True)]

    def check(requests) -> None:
        tokens.refuse_empty(only_prompts(requests, config.system))  # prompts only name the objects

    return System(init, model.train_step, preview, generate, check, ('ema',), SHARDING, batch_spec(config), model.generator)


def batch_spec(config) -> dict[str, jax.ShapeDtypeStruct]:
    """What the data pipeline delivers: images on the background, their labels, and labels for the three phases' fakes."""
    batch, size = config.batch, config.data.size
    return {
        'image': jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
        'label': jax.ShapeDtypeStruct((batch, LABEL), jnp.float32),
        'fake_labels': jax.ShapeDtypeStruct((batch, 3, LABEL), jnp.float32),
    }


class Model:
    """The networks of a config, their losses and the iteration; holds no parameters.

    Parameters are {'generator', 'buffers', 'discriminator'}; averages are kept of the first, copies of the second.
    """

    def __init__(self, config):
        schedules.check(config)
        self.config, self.generator = config, Generator(config)
        self.gamma = config.r1.gamma or discriminators.r1_gamma(config.data.size, config.batch)
        net = config.discriminator
        self.micro = min(config.micro_batch, config.batch)
        self.discriminator = discriminators.Discriminator(
            config.data.size,
            channel_base=net.channel_base,
            channel_max=net.channel_max,
            c_dim=LABEL if net.pose else 0,
            mapping_layers=net.mapping_layers,
            group=net.group,
            micro_batch=self.micro,
            clamp=net.clamp or None,
            dtype=precision.policy(config).compute,
        )
        self.optimizers = {
            'generator': optim.lazy_adam(**config.optimizer.generator, interval=config.density.every),
            'discriminator': optim.lazy_adam(**config.optimizer.discriminator, interval=config.r1.every),
        }
        self.blur_radius = int(3 * config.blur.sigma)
        self.ladder = schedules.rungs(config)
        self.shares = config.get('fakes', 'new') == 'shared'

    def init(self, key):
        """Parameters of both networks."""
        key_generator, key_discriminator = jax.random.split(key)
        generator, buffers = self.generator.init(key_generator)
        size = self.config.data.size
        images = (jnp.zeros((1, size, size, 3), jnp.float32), jnp.zeros((1, size, size, 3), jnp.float32))
        discriminator = self.discriminator.init(key_discriminator, *images, jnp.zeros((1, LABEL), jnp.float32))['params']
        return {'generator': generator, 'buffers': buffers, 'discriminator': discriminator}

    # -------------------------------------------------------------------------------------------------------- the networks

    def schedules(self, step) -> Schedules:
        """The schedules at a step."""
        return schedules.at(self.config, step)

    def conditioning(self, key, label, swap, per_sample: bool = True):
        """The label that the mapping sees: with probability `swap` that of the next sample of the micro-batch."""
        if not self.generator.label_dim:
            return None
        rolled = jnp.roll(label.reshape(-1, self.micro, LABEL), 1, axis=1).reshape(label.shape)
        chosen = prng.coin(key, swap, (label.shape[0], 1) if per_sample else ())
        return jnp.where(chosen, rolled, label)

    def fake(self, params, buffers, label, key, now: Schedules, size: int):
        """(image [B, S, S, 3], raw [B, s, s, 3], w [B, W], opacity [B, s, s]) of new latents seen from `label`."""
        key_z, key_swap, key_noise, key_march = jax.random.split(key, 4)
        z = self.generator.latents(key_z, label.shape[0])
        w = self.generator.map(params, z, self.conditioning(key_swap, label, now.swap))
        ws = jnp.broadcast_to(w[:, None], (w.shape[0], self.generator.num_ws, w.shape[1]))
        planes = self.generator.planes(params, buffers, ws, 'random', key_noise)
        features, _, opacity = self.generator.render(params, planes, label, key_march, size=size)
        return self.generator.upsample(params, features, self.generator.style_of(buffers, w)), features[..., :3], w, opacity

    def blurred(self, image, sigma):
        """The image as the discriminator sees it early in training; costs nothing once the blur is over."""
        blur = lambda x: fir.blur(x, sigma, self.blur_radius)
        return jax.lax.cond(3 * sigma >= 1, blur, lambda x: x, image) if self.blur_radius else image

    def discriminate(self, params, image, raw, label, key, p):
        """Logits [B]; the pair augmented with strength p and the label with noise, where the config has them."""
        key_augment, key_label = jax.random.split(key)
        return self.discriminator_logits(
            params, *self.augmented(key_augment, image, raw, p), self.noisy_label(key_label, label)
        )

    def augmented(self, key, image, raw, p):
        """The pair behind ADA's augmentations (2006.06676)."""
        return augment.augment(key, image, raw, p) if self.config.augment.on else (image, raw)

    def noisy_label(self, key, label):
        """The label plus `label_noise` standard deviations of the batch, against learning poses by heart."""
        noise = self.config.discriminator.label_noise
        return label + noise * jnp.std(label, 0) * jax.random.normal(key, label.shape, jnp.float32) if noise else label

    def discriminator_logits(self, params, image, raw, label):
        """Logits [B] of exactly these inputs."""
        return self.discriminator.apply({'params': params}, image, raw, label)

    # ---------------------------------------------------------------------------------------------------------- the losses

    def generator_loss(self, params, fixed, batch, key, now: Schedules, size: int, p):
        """softplus(-D(fake)) plus the weighted translucency, and what it measured with the fakes that it `showed`.

        `fixed` are the buffers and the discriminator.
        """
        key_fake, key_discriminate = jax.random.split(key)
        label = batch['fake_labels'][:, 0]
        image, raw, w, opacity = self.fake(params, fixed['buffers'], label, key_fake, now, size)
        logits = self.discriminate(fixed['discriminator'], self.blurred(image, now.sigma), raw, label, key_discriminate, p)
        loss, translucency = jnp.mean(numerics.softplus(-logits)), jnp.mean(4.0 * opacity * (1.0 - opacity))
        showed = {'showed': (image, raw, w, label)} if self.shares else {}
        return loss + now.opaque * translucency, {'loss/generator': loss, 'translucency': translucency, **showed}

    def density_loss(self, params, fixed, batch, key, now: Schedules):
        """Neighbouring points should have nearly the same raw density."""
        key_z, key_swap, key_noise, key_points, key_near = jax.random.split(key, 5)
        label = batch['fake_labels'][:, 1]
        z = self.generator.latents(key_z, label.shape[0])
        w = self.generator.map(params, z, self.conditioning(key_swap, label, now.swap, per_sample=False))
        ws = jnp.broadcast_to(w[:, None], (w.shape[0], self.generator.num_ws, w.shape[1]))
        planes = self.generator.planes(params, fixed['buffers'], ws, 'random', key_noise)
        points = jax.random.uniform(key_points, (label.shape[0], DENSITY_POINTS, 3), jnp.float32, -1.0)
        near = points + DENSITY_REACH * jax.random.normal(key_near, points.shape, jnp.float32)
        raw, _ = self.generator.field(params, planes)(jnp.concatenate([points, near], 1))
        difference = jnp.mean(jnp.abs(raw[:, :DENSITY_POINTS] - raw[:, DENSITY_POINTS:]))
        return DENSITY_WEIGHT * self.config.density.weight * self.config.density.every * difference, difference

    def discriminator_loss(self, params, fixed, batch, key, now: Schedules, size: int, p, showed=None):
        """softplus(D(fake)) + softplus(-D(real)); the fakes, new ones or those `showed`, carry no gradient."""
        key_fake, key_discriminate, key_real = jax.random.split(key, 3)
        if showed is None:
            label = batch['fake_labels'][:, 2]
            image, raw, w, _ = self.fake(fixed['generator'], fixed['buffers'], label, key_fake, now, size)
            showed = image, raw, w, label
        image, raw, w, label = jax.lax.stop_gradient(showed)
        fake = self.discriminate(params, self.blurred(image, now.sigma), raw, label, key_discriminate, p)
        real = self.discriminate(params, *self.real(batch, now, size), batch['label'], key_real, p)
        loss = jnp.mean(numerics.softplus(fake)) + jnp.mean(numerics.softplus(-real))
        signs = {'sign_real': jnp.mean(jnp.sign(real)), 'sign_fake': jnp.mean(jnp.sign(fake))}
        return loss, {'loss/discriminator': loss, 'w': jnp.mean(w, 0), **signs}

    def r1_loss(self, params, batch, key, now: Schedules, size: int, p):
        """gamma / 2 times the squared gradient of D(real) by what it sees, times the interval."""
        key_augment, key_label = jax.random.split(key)
        label = self.noisy_label(key_label, batch['label'])
        image, raw = jax.lax.stop_gradient(self.augmented(key_augment, *self.real(batch, now, size), p))
        penalty = jnp.mean(
            discriminators.r1(lambda image, raw: self.discriminator_logits(params, image, raw, label), image, raw)
        )
        return 0.5 * self.gamma * self.config.r1.every * penalty, penalty

    def real(self, batch, now: Schedules, size: int):
        """(image, raw) of the batch in [-1, 1], both blurred."""
        image = self.blurred(batch['image'].astype(jnp.float32) / 127.5 - 1.0, now.sigma)
        return image, fir.resize_aa(image, size)

    # ------------------------------------------------------------------------------------------------------- the iteration

    def train_step(self, state: TrainState, batch, key, given=None):
        """One iteration at the neural resolution of its rung."""
        if len(batch['label']) % self.micro:  # under pmap this is one device's share
            raise UsageError(f'{len(batch["label"])} samples on a device do not fall into micro-batches of {self.micro}.')
        if len(self.ladder) == 1:
            return self.iteration(state, batch, key, self.ladder[0][1])
        rung = sum((state.step * self.config.batch >= start).astype(jnp.int32) for start, _ in self.ladder[1:])
        branches = [functools.partial(self.iteration, size=size) for _, size in self.ladder]
        return jax.lax.switch(rung, branches, state, batch, key)

    def iteration(self, state: TrainState, batch, key, size: int):
        """The four phases at a neural resolution of `size`."""
        keys, config, now, p = jax.random.split(key, 4), self.config, self.schedules(state.step), state.extras['augment'].p
        params, opt, extras = dict(state.params), dict(state.opt_state), dict(state.extras)

        def run(name, loss, *args):
            """A step of one network by one loss; what the loss measured here."""
            params[name], opt[name], measured = self.move(name, now.rate, loss, params[name], opt[name], *args)
            return measured

        def run_lazily(name, kind, every, loss, *args):
            def move(params, opt, last):
                params, opt, measured = self.move(name, now.rate, loss, params, opt, *args)
                return params, opt, replicas.mean(measured)

            skip = lambda params, opt, last: (params, opt, last)
            lately = params[name], opt[name], extras[kind]
            params[name], opt[name], extras[kind] = cadence.once_in(every, state.step, move, skip, *lately)

        generator = run('generator', self.generator_loss, dict(params), batch, keys[0], now, size, p)
        run_lazily('generator', 'density', config.density.every, self.density_loss, dict(params), batch, keys[1], now)
        showed = generator.pop('showed', None)
        discriminator = run('discriminator', self.discriminator_loss, dict(params), batch, keys[2], now, size, p, showed)
        run_lazily('discriminator', 'r1', config.r1.every, self.r1_loss, batch, keys[3], now, size, p)

        generator, discriminator = replicas.mean((generator, discriminator))
        w_avg = tree.ema(params['buffers']['w_avg'], discriminator.pop('w'), W_DECAY)
        params['buffers'] = {**params['buffers'], 'w_avg': w_avg}
        if config.augment.on:
            images = config.augment.images
            extras['augment'] = augment.observe(extras['augment'], discriminator['sign_real'], config.batch, images=images)
        averaged = tree.ema(state.ema['generator'], params['generator'], now.decay)
        metrics = {
            **discriminator,
            **generator,
            'loss': generator['loss/generator'] + discriminator['loss/discriminator'],
            **{name: extras[name] for name in ('density', 'r1')},
            'blur': now.sigma,
            **({'augment_p': p} if config.augment.on else {}),
        }
        ema = {'generator': averaged, 'buffers': tree.copy(params['buffers'])}
        return TrainState(state.step + 1, params, opt, ema, extras), metrics

    def move(self, name: str, rate, loss, params, opt_state, *args):
        """An Adam step by the gradients of all replicas: (parameters, optimizer state, what the loss measured on this one).

        `rate` is the share of the learning rate.
        """
        (_, measured), grads = jax.value_and_grad(loss, has_aux=True)(params, *args)
        finite = lambda gradient: jnp.nan_to_num(gradient, nan=0.0, posinf=1e5, neginf=-1e5)
        grads = jax.tree.map(finite, replicas.mean(grads))
        updates, opt_state = self.optimizers[name].update(grads, opt_state, params)
        return jax.tree.map(lambda value, update: value + rate * update, params, updates), opt_state, measured

    # -------------------------------------------------------------------------------------------------------------- output

    def planes_of(self, params, w):
        """Planes [B, 3, R, R, C] of w [B, W], for averaged parameters {'generator', 'buffers'}."""
        ws = jnp.broadcast_to(w[:, None], (w.shape[0], self.generator.num_ws, w.shape[1]))
        return self.generator.planes(params['generator'], params['buffers'], ws)

    def sheet(self, params, key, rows: int, views: int):
        """[rows, S, S * (2 views + 1), 3] in [0, 1]: upsampled views around the object, the raw ones, and the first depth."""
        render = self.config.render
        around = cameras.turntable(views, elevation=self.config.preview.elevation, radius=render.radius, fov=render.fov)
        labels = cameras.to_eg3d(around)
        ws = self.generator.ws(params['generator'], params['buffers'], self.generator.latents(key, rows))
        panel = lambda styles: self.generator.panel(params['generator'], params['buffers'], styles, labels)
        images = numerics.to_unit(jax.lax.map(panel, ws))
        return numerics.side_by_side(images)

    def object(self, params, prompt: str, w) -> Field:
        """The object of a style w [W]: field and render are of the raw colour, the picture of the upsampler."""
        planes = self.planes_of(params, w[None])[0]
        parts = {name: params['generator'][name] for name in ('decoder', 'superres')}
        scene = {'planes': planes, 'generator': parts, 'w': self.generator.style_of(params['buffers'], w)}
        camera = {name: float(self.config.render[name]) for name in ('radius', 'fov')}
        return Field(prompt, scene, self.field_at, self.render_rays, self.generator.bound, camera, self.picture)

    def field_at(self, scene, points):
        """Field.field."""
        return self.generator.field_at(scene['generator'], scene['planes'], points)

    def render_rays(self, scene, rays):
        """Field.render."""
        return self.generator.render_rays(scene['generator'], scene['planes'], rays)

    def picture(self, scene, views: cameras.Cameras):
        """Field.picture."""
        planes, w = (jnp.broadcast_to(scene[name], (len(views.world_from_cam), *scene[name].shape)) for name in ('planes', 'w'))
        rendered = self.generator.render(scene['generator'], planes, cameras.to_eg3d(views), size=self.generator.render_size)
        return numerics.to_unit(self.generator.upsample(scene['generator'], rendered.features, w))
