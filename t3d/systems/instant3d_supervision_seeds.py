"""Supervision of captions that are true of many objects: the part of `systems/instant3d_supervision.py` for `imle` and `codes`.

A squared error has one minimum for each caption: the mean of its objects. Here the style noise carries what the caption leaves
open, so that a seed chooses an object. Both forms compare scenes as they are told to, along rays, and need to know which
object a row of the batch is (`index`, data/adapters/object_rays.py).

- `imle`: implicit maximum likelihood (Li and Malik, arXiv 1809.09087; conditional: Li et al., arXiv 1811.12373). Of
  `seeds.draws` noises for each object the one whose scene is nearest to it learns. Every object pulls one noise, so none is
  left out; noises that are nearest to nothing are not pushed away. Scenes are compared along `seeds.rays` rays of each view,
  without gradient.
- `codes`: a table of learned codes, one for each object (Bojanowski et al., arXiv 1707.05776; with a prior Park et al., arXiv
  1901.05103). Seeds draw from the Gaussian that fits the table.
- `places`: a caption gives each of its objects places of its own among `places.count` (data/adapters/object_places.py), and a
  place is a noise that never changes. What a caption and a place show is one object, so that nothing is left open; seeds draw
  places. As with noise as targets (Bojanowski and Joulin, arXiv 1704.05310) noises are not learned; here they are not moved.

`seeds.every`: noises are drawn at steps that it divides, for the objects of those batches; at other steps an object has the
noise it was given last. With many more objects than rows of a batch, noises go stale before they are used again: set 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import cadence, prng, replicas
from t3d.core.errors import UsageError
from t3d.fields.text_field import TextField

STREAM = 26_631  # of 80,000 that were tried


class Comparison(NamedTuple):
    """How scenes [B] are compared with what is true of the objects of a batch.

    Attributes:
      truth: `(batch, key) -> truth`.
      fewer: `(truth) -> truth` of as much as noises are compared by.
      apart: `(scene, truth, key) -> [B]`, distances by which noises are chosen.
      loss: `(params, scene, truth, keys [2]) -> (loss, metrics)`.
    """

    truth: Callable
    fewer: Callable
    apart: Callable
    loss: Callable


def check(config, section: str, name: str) -> None:
    """Raises UsageError for a config without the section or the number of its objects, or with more rays than there are."""
    if section not in config:
        raise UsageError(f'supervision={name!r} reads the section {section!r}: start from configs/instant3d.py:toy_{name}.')
    if not config.data.get('count'):
        raise UsageError(f'supervision={name!r} keeps something for each object, and data.count=0: give their number.')
    if section == 'seeds' and config.seeds.rays > config.loss.rays:
        raise UsageError(
            f'seeds.rays={config.seeds.rays} are taken of the loss.rays={config.loss.rays} rays of each view: at most as many. '
            f'Nearest: seeds.rays={config.loss.rays}.'
        )


def spec_of_numbers(config) -> dict[str, jax.ShapeDtypeStruct]:
    """The number of each row's object."""
    return {'index': jax.ShapeDtypeStruct((config.batch,), jnp.int32)}


# ----------------------------------------------------------------------------------------------------------------- imle


def empty(config) -> dict:
    """The noise [N, Z] of each object, standard normal times `noise` at the start, and the step [N] at which it was given."""
    count = config.data.count
    noise = config.noise * prng.normals(jnp.arange(count), config.decoder.style_width)
    return {'noise': noise, 'step': jnp.zeros(count, jnp.int32)}


def imle_fn(config, model: TextField, by: Comparison):
    """`(params, extras, given, batch, key, step) -> (loss, (metrics, extras))`."""

    def loss(params, extras, given, batch, key, step):
        key_draws, key_truth, key_choice, *keys = jax.random.split(key, 5)
        seeds, index = extras['seeds'], batch['index']
        truth = by.truth(batch, key_truth)
        features = model.features(params, batch['tokens'])
        still, plain = jax.lax.stop_gradient((params, features))  # what is compared is not learned from

        def nearest():
            noises = drawn(config, model, key_draws, index.shape[0])
            return chosen(noises, distances(model, by, still, plain, noises, by.fewer(truth), key_choice))

        anew = step % config.seeds.every == 0
        noise = cadence.once_in(config.seeds.every, step, nearest, lambda: seeds['noise'][index])
        scene = model.scene_from_features(params, features, noise)
        total, metrics = by.loss(params, scene, truth, keys)
        seeds = remembered(seeds, *replicas.gather((index, noise)), step, anew)
        age = jnp.mean((step - seeds['step'][index]).astype(jnp.float32))
        return total, ({**metrics, 'seeds/age': age}, {**extras, 'seeds': seeds})

    return loss


def drawn(config, model: TextField, key, objects: int):
    """Noises [M, B, Z]."""
    return model.noise(key, config.seeds.draws * objects).reshape(config.seeds.draws, objects, -1)


def distances(model: TextField, by: Comparison, params, features, noises, truth, key):
    """How far [M, B] the scene of each of noises [M, B, Z] is from its row's truth.

    One noise of every row at a time, so that memory is that of a batch and rows stay on their devices. All are compared by the
    same draws.
    """
    return jax.lax.map(lambda noise: by.apart(model.scene_from_features(params, features, noise), truth, key), noises)


def chosen(noises, apart):
    """The nearest [B, Z] of noises [M, B, Z] at distances [M, B]; of equal ones the first."""
    return jnp.take_along_axis(noises, jnp.argmin(apart, 0)[None, :, None], 0)[0]


def remembered(seeds: dict, index, noise, step, anew) -> dict:
    """The seeds after a step that gave noise [B, Z] to the objects index [B] of the global batch; unchanged unless `anew`.

    Of an object that stands in several rows the last one counts, on any number of devices.
    """
    last = jnp.full(seeds['step'].shape, -1, jnp.int32).at[index].max(jnp.arange(index.shape[0], dtype=jnp.int32))
    new = (last >= 0) & anew
    return {
        'noise': jnp.where(new[:, None], jax.lax.stop_gradient(noise)[last], seeds['noise']),
        'step': jnp.where(new, step, seeds['step']),
    }


# ---------------------------------------------------------------------------------------------------------------- codes


def first_codes(config, key):
    """Codes [N, Z] before training: normal, of deviation `noise`."""
    shape = (config.data.count, config.decoder.style_width)
    return config.noise * jax.random.normal(jax.random.fold_in(key, shape[0]), shape, jnp.float32)


def codes_fn(config, model: TextField, by: Comparison):
    """`(params, extras, given, batch, key, step) -> (loss, (metrics, extras))`: that of rays, and `codes.prior` times the
    negative logarithm of N(0, noise^2) at the codes, mean over the batch."""

    def loss(params, extras, given, batch, key, step):
        key_truth, *keys = jax.random.split(key, 3)
        codes = params['codes'][batch['index']]
        scene = model.scene_from_noise(params, batch['tokens'], codes)
        total, metrics = by.loss(params, scene, by.truth(batch, key_truth), keys)
        prior = config.codes.prior * jnp.mean(jnp.sum(jnp.square(codes), -1)) / (2.0 * config.noise**2)
        metrics |= {'loss': total + prior, 'loss/prior': prior, 'codes/deviation': jnp.mean(jnp.std(params['codes'], 0))}
        return total + prior, (metrics, extras)

    return loss


def of_gaussian(codes, key, count: int):
    """[count, Z] of the Gaussian with the mean and covariance of codes [N, Z], which may be singular.

    Weights that are independent normals give sums of the centred codes that covariance.
    """
    mean = jnp.mean(codes, 0)
    weights = jax.random.normal(key, (count, codes.shape[0]), jnp.float32)
    return mean + weights @ (codes - mean) / np.float32(np.sqrt(codes.shape[0]))


# --------------------------------------------------------------------------------------------------------------- places


def place_noises(config):
    """The noise [N, Z] of each place: waves around a circle of the places, of deviation `noise`, the same in every run.

    Neighbouring places have similar noises, so that the places of an object are one region, and regions are in the same order
    for all captions. The k-th wave has amplitude k^-1/2: with enough of them all places can be told apart.
    """
    count, width = config.places.count, config.decoder.style_width
    angle = 2.0 * np.pi * np.arange(count)[:, None] / count * np.arange(1, (width + 1) // 2 + 1)
    waves = np.stack([np.cos(angle), np.sin(angle)], -1) / np.sqrt(np.arange(1, angle.shape[1] + 1))[:, None]
    waves = waves.reshape(count, -1)[:, :width]
    return jnp.asarray(config.noise * waves * np.sqrt(width / np.sum(np.square(waves), -1, keepdims=True)), jnp.float32)


def places_fn(config, model: TextField, by: Comparison):
    """`(params, extras, given, batch, key, step) -> (loss, (metrics, extras))`: that of rays, by noises of places."""

    def loss(params, extras, given, batch, key, step):
        key_truth, *keys = jax.random.split(key, 3)
        scene = model.scene_from_noise(params, batch['tokens'], place_noises(config)[batch['place']])
        total, metrics = by.loss(params, scene, by.truth(batch, key_truth), keys)
        return total, (metrics, extras)

    return loss


def at_random(config, key, count: int):
    """Noises [count, Z] of places drawn at random: by a stream under which the first eight seeds lie all around the circle."""
    u = jax.random.uniform(jax.random.fold_in(key, STREAM), (count,), jnp.float32)
    return place_noises(config)[(u * config.places.count).astype(jnp.int32)]
