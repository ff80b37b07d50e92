"""Scalar functions with safe values and gradients."""

import jax
import jax.numpy as jnp

from t3d.core.typing import Array, Float


@jax.custom_jvp
def softplus(x: Float[Array, '*b']) -> Float[Array, '*b']:
    """log(1 + exp(x)) as max(x, 0) + log1p(exp(-|x|)): no overflow, and cheaper than jax.nn.softplus on a CPU."""
    return jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _softplus_jvp(primals, tangents):
    (x,), (t,) = primals, tangents  # by hand: automatic differentiation of max and abs gives 0 at x = 0
    return softplus(x), jax.nn.sigmoid(x) * t


@jax.custom_jvp
def trunc_exp(x: Float[Array, '*b']) -> Float[Array, '*b']:
    """exp(x) whose gradient is that of exp(clip(x, -15, 15)) (the density activation of instant-ngp's followers)."""
    return jnp.exp(x)


@trunc_exp.defjvp
def _trunc_exp_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    return jnp.exp(x), jnp.exp(jnp.clip(x, -15.0, 15.0)) * t


def safe_norm(x: Float[Array, '*b c'], eps: float = 1e-20) -> Float[Array, '*b']:
    """Euclidean norm over the last axis, with gradient 0 at the origin instead of NaN."""
    squared = jnp.sum(jnp.square(x), axis=-1)
    positive = squared > eps
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def normalize(x: Float[Array, '*b c'], eps: float = 1e-20) -> Float[Array, '*b c']:
    """x over its norm; the zero vector stays zero, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), eps))


def scaled_sigmoid(x: Float[Array, '*b'], alpha) -> Float[Array, '*b']:
    """sigmoid(alpha x) / alpha (Instant3D, arXiv 2311.08403, Sec. 3.3).

    The slope at 0 is 1/4 for every alpha; the range is (0, 1 / alpha), so values above 1 are legal while alpha < 1.
    """
    return jax.nn.sigmoid(alpha * x) / alpha


def side_by_side(images: jax.Array) -> jax.Array:
    """Views [B, V, H, W, C] of objects as one picture each, [B, H, V W, C], left to right."""
    return images.transpose(0, 2, 1, 3, 4).reshape(images.shape[0], images.shape[2], -1, images.shape[4])


def to_unit(x):
    """[-1, 1] -> [0, 1], clipped."""
    return jnp.clip(0.5 * x + 0.5, 0.0, 1.0)
