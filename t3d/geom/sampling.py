"""Where along a ray to look: stratified samples, inverse-CDF samples, and the order of both together.

Layout: samples before rays, `[..., S, R]`, so that every step along a ray is a vector operation over rays, and no search, sort
or [S, S, R] array is needed: a count of comparisons or a sum of ramps is a loop over one S with one [S, R] result.
Depths are constants of the renderer, as in EG3D: gradients do not pass through them.
"""

import jax
import jax.numpy as jnp

from t3d.core.typing import Array, Float, Int, typechecked


@typechecked
def stratified(near: Float[Array, '*b r'], far: Float[Array, '*b r'], u: Float[Array, '*b s r']) -> Float[Array, '*b s r']:
    """linspace(near, far, S) plus u * (far - near) / (S - 1), u in [0, 1): EG3D's jitter. The last sample may exceed `far`.

    u = 0 gives the plain linspace, both ends included. Sorted along S.
    """
    samples = u.shape[-2]
    if samples < 2:
        raise ValueError(f'{samples} samples along a ray: at least 2 make an interval. Raise num_samples.')
    steps = jnp.arange(samples, dtype=jnp.float32)[:, None]
    return near[..., None, :] + (steps + u) * ((far - near) / (samples - 1))[..., None, :]


def _loop(function, count: int, start):
    """start + function(0) + ... + function(count - 1), one term alive at a time."""
    return jax.lax.fori_loop(0, count, lambda i, total: total + function(i), start)


def _row(values, i):
    return jax.lax.dynamic_index_in_dim(values, i, values.ndim - 2, keepdims=True)  # [..., 1, R]


@typechecked
def importance(
    depths: Float[Array, '*b s r'],
    weights: Float[Array, '*b s1 r'],
    u: Float[Array, '*b n r'],
) -> Float[Array, '*b n r']:
    """Inverse-CDF samples from the S - 1 weights between S >= 4 depths, at the given u in [0, 1): EG3D's second pass.

    The weights are widened (maximum, then mean, of neighbours) and lifted by 0.01; the bins are the midpoints of the depths.
    Inherited from EG3D: the first and last weight are dropped while the bins are not, so bin i is drawn with the weight of
    interval i + 1 and nothing falls beyond the last but one midpoint. The order of the samples is that of u.

    The inverse of a piecewise linear CDF is a sum of clipped ramps, b_0 + sum_k (b_k+1 - b_k) clip((u - c_k) / p_k, 0, 1).
    """
    if depths.shape[-2] < 4:
        raise ValueError(f'{depths.shape[-2]} samples leave no bin for importance samples: raise num_samples to 4 or more.')
    widest = jnp.maximum(weights[..., 1:, :], weights[..., :-1, :])
    widest = jnp.concatenate([weights[..., :1, :], widest, weights[..., -1:, :]], -2)
    smooth = 0.5 * (widest[..., 1:, :] + widest[..., :-1, :]) + 0.01
    mass = smooth[..., 1:-1, :] + 1e-5
    mass = mass / jnp.sum(mass, -2, keepdims=True)  # [..., S - 3, R], never below 0.01 / (S + 1)
    start = jnp.cumsum(mass, -2) - mass
    middle = 0.5 * (depths[..., 1:, :] + depths[..., :-1, :])
    width, slope = middle[..., 1:-1, :] - middle[..., :-2, :], 1.0 / mass

    def ramp(k):
        return jnp.clip((u - _row(start, k)) * _row(slope, k), 0.0, 1.0) * _row(width, k)

    return _loop(ramp, mass.shape[-2], jnp.broadcast_to(middle[..., :1, :], u.shape))


@typechecked
def count_below(values: Float[Array, '*b s r'], others: Float[Array, '*b n r'], *, equal: bool) -> Int[Array, '*b s r']:
    """How many of `others` lie below (or at, if `equal`) each of `values` on the same ray."""
    compare = jnp.less_equal if equal else jnp.less
    return _loop(
        lambda j: compare(_row(others, j), values).astype(jnp.int32), others.shape[-2], jnp.zeros(values.shape, jnp.int32)
    )


@typechecked
def merge(coarse: Float[Array, '*b s r'], fine: Float[Array, '*b n r']) -> tuple[Int[Array, '*b sn r'], Int[Array, '*b sn r']]:
    """(ranks, order) of [coarse, fine], each sorted: entry i of the concatenation is number ranks[i] of the union sorted by
    depth, and number p of the union is entry order[p]. Ties: coarse first.
    """
    samples, extra = coarse.shape[-2], fine.shape[-2]
    places = lambda count: jnp.arange(count, dtype=jnp.int32)[:, None]
    of_coarse = places(samples) + count_below(coarse, fine, equal=False)
    of_fine = places(extra) + count_below(fine, coarse, equal=True)
    total = places(samples + extra)
    taken = _loop(
        lambda j: (_row(of_fine, j) < total).astype(jnp.int32),
        extra,  # fine samples before each place
        jnp.zeros((*coarse.shape[:-2], samples + extra, coarse.shape[-1]), jnp.int32),
    )
    after = jnp.concatenate([taken[..., 1:, :], jnp.full_like(taken[..., :1, :], extra)], -2)
    return jnp.concatenate([of_coarse, of_fine], -2), jnp.where(after > taken, samples + taken, total - taken)


@jax.custom_vjp
def permute(values: Float[Array, '*b s r'], order: Int[Array, '*b s r'], ranks: Int[Array, '*b s r']) -> Float[Array, '*b s r']:
    """result[p] = values[order[p]] along S; `ranks` is the inverse permutation, so that the gradient is a gather too."""
    return jnp.take_along_axis(values, order, axis=-2, mode='promise_in_bounds')


permute.defvjp(
    lambda values, order, ranks: (permute(values, order, ranks), (order, ranks)),
    lambda saved, gradient: (permute(gradient, saved[1], saved[0]), None, None),
)
