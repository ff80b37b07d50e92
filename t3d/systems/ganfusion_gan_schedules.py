"""What changes in the course of a GANFusion stage 1 training (systems/ganfusion_gan.py), and what its config may ask for.

Everything counts real images shown, `step * batch`, so that another batch keeps the schedule (EG3D, arXiv 2112.07945, Sec. 5;
StyleGAN2-ADA, 2006.06676, App. C).

| schedule | from | to |
|---|---|---|
| blur in front of the discriminator | `blur.sigma` pixels | 0 at `blur.images` |
| probability that the mapping sees another sample's label | 1 | `swap.p` at `swap.images` |
| weight of the translucency | 0 up to `opacity.images[0]` | `opacity.weight` at `opacity.images[1]` |
| half-life of the generator's average | 0 | `average.images`, never more than `average.rampup` of those shown |
| both learning rates, as a share of them | 1 up to `fall.images[0]` | `fall.final` at `fall.images[1]` |
| rays per side | the first rung of `ladder` | its last |
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from t3d.core import optim
from t3d.core.errors import UsageError
from t3d.nets import stylegan2_discriminator as discriminators


class Schedules(NamedTuple):
    """What the schedules say at an iteration."""

    images: jax.Array  # real images shown so far
    sigma: jax.Array  # of the blur in front of the discriminator, pixels of the image
    swap: jax.Array  # probability that the mapping is given another sample's label
    opaque: jax.Array  # weight of the translucency
    decay: jax.Array  # of the generator's average, an iteration
    rate: jax.Array | float  # of both learning rates, a share of them


def at(config, step) -> Schedules:
    """The schedules at a step, traced or not."""
    images = jnp.asarray(step).astype(jnp.float32) * config.batch
    sigma = config.blur.sigma * jnp.maximum(1.0 - images / max(config.blur.images, 1), 0.0)
    swap = 1.0 + (config.swap.p - 1.0) * jnp.minimum(images / max(config.swap.images, 1), 1.0)
    start, full = config.opacity.images
    opaque = config.opacity.weight * jnp.clip((images - start) / max(full - start, 1), 0.0, 1.0)
    decay = optim.ema_decay_of_images(images, config.batch, *average(config))
    return Schedules(images, sigma, swap, opaque, decay, rate(config, images))


def rate(config, images):
    """The share of the learning rates at `images` shown; the number 1.0 where they do not fall, and of runs of before."""
    fall = config.get('fall', {'images': (0, 1), 'final': 1.0})
    start, end = fall['images']
    return 1.0 if fall['final'] == 1.0 else 1.0 - (1.0 - fall['final']) * jnp.clip((images - start) / (end - start), 0.0, 1.0)


def average(config) -> tuple[float, float]:
    """(half-life of the generator's average in images, its greatest share of the images shown); runs of before have no keys."""
    asked = config.get('average', {'images': 0, 'rampup': optim.AVERAGE_RAMPUP})
    return float(asked['images'] or optim.average_images(config.batch)), float(asked['rampup'])


def rungs(config) -> tuple[tuple[int, int], ...]:
    """((images shown, rays per side), ...) from 0 images on."""
    return tuple((int(images), int(size)) for images, size in config.ladder) or ((0, config.render.size),)


def check(config) -> None:
    """Raises UsageError for what cannot be trained, with what can."""
    micro = min(config.micro_batch, config.batch)
    group = min(config.discriminator.group, micro)
    if config.batch % micro or micro % group:
        sizes = f'batch={config.batch}, micro_batch={config.micro_batch}, discriminator.group={config.discriminator.group}'
        raise UsageError(f'{sizes}: the batch must fall into whole micro-batches, and these into whole groups.')
    if config.data.get('mode') == 'pose-distribution' and (config.discriminator.pose or config.generator.pose_conditioning):
        advice = 'discriminator.pose=False and generator.pose_conditioning=False'
        raise UsageError(f"data.mode='pose-distribution': these pictures have no labels to show to a network: set {advice}.")
    discriminators.check('data.size', config.data.size)
    made, size = config.generator.sr.input_size * 2 ** sum(config.generator.sr.ups), config.data.size
    if made != size:
        raise UsageError(f'generator.sr makes images of {made} pixels, data.size={size}: give them the same size.')
    starts = [images for images, _ in config.ladder]
    if starts and (starts[0] or starts != sorted(set(starts)) or not all(size for _, size in config.ladder)):
        raise UsageError(f'ladder={config.ladder}: wanted (images shown, neural resolution) pairs that rise from 0 images.')
