"""Priors in closed form, for tests of what is guided: Gaussian pictures, and Gaussian views that see their cameras."""

import jax.numpy as jnp
import numpy as np

from t3d.core.system import Given
from t3d.diffusion import schedules
from t3d.diffusion.prior import MultiViewPrior, Prior

SPREAD = 0.3  # standard deviation of the pictures
WORDS = ('', 'red', 'green', 'blue', 'cube', 'front', 'side', 'back')  # of `overhead` and `view` it knows nothing


def tokenize(prompts):
    """[B, 3] of the first three known words."""
    rows = [[WORDS.index(word) for word in text.replace(',', '').split() if word in WORDS][:3] for text in prompts]
    return np.array([row + [0] * (3 - len(row)) for row in rows], np.int32)


def mean_of(ids):
    """The mean colour [B, 3] in [-1, 1] of ids [B, 3]."""
    table = jnp.array(
        [
            [0.0, 0.0, 0.0],
            [0.8, -0.6, -0.5],
            [-0.5, 0.7, -0.3],
            [-0.7, -0.4, 0.9],
            [0.1, 0.2, 0.3],
            [0.5, 0.1, -0.2],
            [-0.1, 0.4, 0.2],
            [-0.3, -0.5, 0.1],
        ]
    )
    return table[ids[:, 0]] + 0.25 * table[ids[:, 1]] + 0.2 * table[ids[:, 2]]


def gaussian_output(schedule, x, t, mean):
    """What a network says of x_t where x_0 is N(mean, SPREAD^2)."""
    signal, sigma = schedules.levels_like(schedule, t, x)
    eps = sigma * (x - signal * mean) / (signal**2 * SPREAD**2 + sigma**2)
    if schedule.prediction == 'eps':
        return eps
    x0 = (x - sigma * eps) / signal
    return signal * eps - sigma * x0 if schedule.prediction == 'v' else x0


def pictures(size=8, prediction='eps', broken=False, seen=None) -> Given:
    """A text-to-image model of plain colours; `params` scale its means. `seen` is a list that takes (x, t, features)."""
    schedule = schedules.cosine(100, prediction=prediction)

    def predict(params, x, t, features):
        if seen is not None:
            seen.append((x, t, features))
        mean = params['scale'] * features[:, 0, None, None, :3]
        out = gaussian_output(schedule, x, t, mean)
        return out * jnp.nan if broken else out

    def shape(side):
        assert side == size
        return (size, size, 3)

    encode = lambda params, ids: mean_of(ids)[:, None]
    same = lambda params, x: x
    functions = Prior(schedule, tokenize, encode, predict, same, shape, same, size, 3.0)
    return Given(functions, {'scale': jnp.float32(1.0)}, name='closed form')


def views(size=8, seen=None) -> Given:
    """A multi-view model whose mean colour is brighter the higher a camera stands."""
    schedule = schedules.cosine(100, prediction='v')

    def predict(params, x, t, features, inputs):
        if seen is not None:
            seen.append((x, t, features, inputs))
        mean = params['scale'] * features[:, 0, None, None, None, :3] + 0.2 * inputs[:, :, None, None, None]
        return gaussian_output(schedule, x, t, mean)

    heights = lambda cameras, shape=None: cameras.world_from_cam[..., 1, 3]
    encode = lambda params, ids: mean_of(ids)[:, None]
    latents = lambda params, images: 2.0 * images - 1.0
    decode = lambda params, x: 0.5 + 0.5 * x
    functions = MultiViewPrior(
        schedule, tokenize, encode, predict, heights, decode, latents, (size, size, 3), 1, lambda count: None, 3.0
    )
    return Given(functions, {'scale': jnp.float32(1.0)}, name='closed views')
