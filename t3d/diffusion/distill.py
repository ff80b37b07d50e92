"""Score distillation: the gradient that a text-to-image model gives to a picture, and how it reaches what drew the picture.

z = encode(render(scene)); x_t = a_t z + s_t eps; g = w(t) (eps_hat(x_t) - eps); the scene gets (dz / dscene)^T g / B.
Source: DreamFusion, arXiv 2209.14988, Sec. 3, Eq. 3; the Jacobian of the network is left out there too.

Nothing here knows of scenes. `denoise(x_t, t)` is any network with its condition and its guidance, `guidance.guided(...)` or
`perp_neg.guided(...)`, in the schedule's prediction type; z is pixels or latents of any rank, [B, ...]. A gradient is computed
in float32 and stops all gradients: nothing of it is differentiated. `inner` turns it into a loss:

    gradient, told = distill.sds_gradient(denoise, schedule, z, t, noise)
    loss = distill.inner(gradient, z)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from t3d.core.config import unknown
from t3d.core.errors import UsageError
from t3d.core.typing import PyTree
from t3d.diffusion import guidance, losses, schedules
from t3d.diffusion.schedules import Schedule

WEIGHTINGS = ('sds', 'uniform', 'fantasia3d')


class Told(NamedTuple):
    """What is worth logging of a gradient; the loss of distillation itself says nothing.

    Attributes:
      norm: [B] |g| of each object.
      residual: [B] root mean square of what the weight multiplies: eps_hat - eps, or eps_pre - eps_lora.
      broken: int32 scalar, entries of g that were not finite and count as 0.
    """

    norm: jax.Array
    residual: jax.Array
    broken: jax.Array


def inner(gradient, z):
    """sum(sg(g) z) / B, a float32 scalar whose gradient to z is exactly g / B.

    The popular 0.5 mse(z, sg(z - g)) has the same gradient on paper and loses g to cancellation where |g| << |z|.
    """
    gradient = jax.lax.stop_gradient(gradient).astype(jnp.float32)
    return jnp.sum(gradient * z.astype(jnp.float32)) / z.shape[0]


def weight(schedule: Schedule, t, weighting: str = 'sds'):
    """w(t): 'sds' 1 - abar, 'uniform' 1, 'fantasia3d' sqrt(abar) (1 - abar).

    Raises:
      UsageError: another weighting.
    """
    signal, sigma = schedules.levels(schedule, t)
    if weighting == 'sds':
        return sigma**2
    if weighting == 'uniform':
        return jnp.ones_like(sigma)
    if weighting == 'fantasia3d':
        return signal * sigma**2
    raise UsageError(unknown(weighting, WEIGHTINGS, 'weighting of score distillation'))


def predicted_eps(denoise: Callable, schedule: Schedule, z, t, noise):
    """eps_hat at x_t, float32, without gradient, whatever the network predicts."""
    x_t, z32 = _noised(schedule, z, t, noise)
    output = denoise(x_t.astype(z.dtype), t).astype(jnp.float32)
    return jax.lax.stop_gradient(schedules.to_eps(schedule, output, x_t, t))


def _noised(schedule: Schedule, z, t, noise):
    """(x_t, z), float32, without gradient."""
    z = jax.lax.stop_gradient(z).astype(jnp.float32)
    return schedules.q_sample(schedule, z, t, noise.astype(jnp.float32)), z


def weighted(residual, schedule: Schedule, t, weighting: str = 'sds') -> tuple[jax.Array, Told]:
    """w(t) residual: the last step of every gradient here, for callers that have their residual from one batched call.

    Args:
      residual: [B, ...] float32, in units of eps.
      t: [B] or scalar int32.
    """
    w = weight(schedule, t, weighting)
    return finished(w.reshape(w.shape + (1,) * (residual.ndim - w.ndim)) * residual, residual)


def finished(gradient, residual) -> tuple[jax.Array, Told]:
    """A gradient without its entries that are not finite, which are counted, and what is told of it."""
    axes = tuple(range(1, gradient.ndim))
    finite = jnp.isfinite(gradient)
    gradient = jax.lax.stop_gradient(jnp.where(finite, gradient, 0.0))
    residual = jax.lax.stop_gradient(jnp.where(finite, residual, 0.0))
    norm, spread = jnp.sqrt(jnp.sum(gradient**2, axes)), jnp.sqrt(jnp.mean(residual**2, axes))
    return gradient, Told(norm, spread, jnp.sum(~finite, dtype=jnp.int32))


def sds_gradient(denoise: Callable, schedule: Schedule, z, t, noise, weighting: str = 'sds') -> tuple[jax.Array, Told]:
    """w(t) (eps_hat - eps) (arXiv 2209.14988, Eq. 3); score Jacobian chaining (2212.00774) leaves out -eps.

    Args:
      denoise: `(x_t, t)` -> the guided output, in the schedule's prediction type.
      z: [B, ...], noise: the same shape, standard normal. t: [B] or scalar int32.
    Returns:
      (g like z in float32, Told).
    """
    noise = noise.astype(jnp.float32)
    return weighted(predicted_eps(denoise, schedule, z, t, noise) - noise, schedule, t, weighting)


def reconstruction_gradient(
    denoise: Callable, schedule: Schedule, z, t, noise, phi: float = 0.0, axes: tuple[int, ...] | None = None
) -> tuple[jax.Array, Told]:
    """z - x_0_hat: the gradient of |z - sg(x_0_hat)|^2 / 2 (MVDream, arXiv 2308.16512, Sec. 3.3 and Eq. 4).

    That is SDS with weight s_t / a_t; what is new is that x_0_hat can be rescaled to the contrast of the conditional one
    (2305.08891, Eq. 15-16), which large guidance scales burn out.

    Args:
      denoise: `(x_t, t)` -> (guided, conditional) outputs, `guidance.guided_pair(...)`.
      phi: share of the rescaled x_0_hat, 0 for none; MVDream takes .5.
      axes: of one object, as in `guidance.rescale`; None: all but the first, for views in an axis of their own.
    """
    x_t, z = _noised(schedule, z, t, noise)
    both = [schedules.to_x0(schedule, output.astype(jnp.float32), x_t, t) for output in denoise(x_t, t)]
    x0 = guidance.rescale(*both, phi, axes) if phi else both[0]
    signal, sigma = schedules.levels_like(schedule, t, z)
    return finished(z - x0, (z - x0) * (signal / sigma))


def vsd_gradient(
    denoise_pre: Callable, denoise_lora: Callable, schedule: Schedule, z, t, noise, weighting: str = 'sds'
) -> tuple[jax.Array, Told]:
    """w(t) (eps_pre - eps_lora): variational score distillation (ProlificDreamer, arXiv 2305.16213, Eq. 9).

    Args:
      denoise_pre: the guided prior (scale 7.5 there). denoise_lora: the network that `lora_loss` trains on the renders,
        without guidance; both `(x_t, t)` -> output in the schedule's prediction type.
    """
    before = predicted_eps(denoise_pre, schedule, z, t, noise)
    return weighted(before - predicted_eps(denoise_lora, schedule, z, t, noise), schedule, t, weighting)


def lora_loss(denoise_lora: Callable, schedule: Schedule, z, t, noise):
    """Mean squared error of the network of the renders (arXiv 2305.16213, Eq. 8), float32; no gradient reaches z.

    Args:
      t: drawn over the full range, apart from that of the gradient.
    """
    x_t, z = _noised(schedule, z, t, noise)
    return losses.mse(denoise_lora(x_t, t), losses.target(schedule, z, t, noise.astype(jnp.float32)))


def clip_pixels(gradient, limit):
    """Vectors over channels, g[..., :], longer than `limit` are cut to it (threestudio's clip per pixel)."""
    norm = jnp.sqrt(jnp.maximum(jnp.sum(gradient**2, -1, keepdims=True), 1e-20))
    return gradient * jnp.minimum(1.0, limit / norm)


class Deferred(NamedTuple):
    """loss: scalar; grads: like the parameters; image: all chunks, [n, R / n, ...] of each leaf; aux: of `image_loss`."""

    loss: jax.Array
    grads: PyTree
    image: PyTree
    aux: PyTree


def deferred_grad(render_chunk: Callable, params: PyTree, chunks: PyTree, image_loss: Callable) -> Deferred:
    """Deferred back-propagation (arXiv 2206.06360): the gradient of image_loss(render) in the memory of one chunk.

    Renders without gradient, differentiates the loss to the image alone, then renders each chunk again and pulls that
    gradient back. Exact, for one more forward render.

    Args:
      render_chunk: `(params, chunk) -> pytree` of float arrays: pixels, and sums of regularisers over the chunk.
      chunks: pytree with n chunks in front of each leaf: rays [n, R / n, ...], keys [n]. Both passes see the same keys.
      image_loss: `(image) -> (scalar, aux)` of what render_chunk returns, with n in front.
    """
    image = jax.lax.map(lambda chunk: render_chunk(params, chunk), chunks)
    image = jax.lax.stop_gradient(image)
    (loss, aux), pulled = jax.value_and_grad(image_loss, has_aux=True)(image)

    def accumulate(total, one):
        chunk, cotangent = one
        _, pull = jax.vjp(lambda params: render_chunk(params, chunk), params)
        return jax.tree.map(jnp.add, total, pull(cotangent)[0]), None

    grads, _ = jax.lax.scan(accumulate, jax.tree.map(jnp.zeros_like, params), (chunks, pulled))
    return Deferred(loss, grads, image, aux)
