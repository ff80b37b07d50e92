"""Where along a ray to look: stratified samples, inverse-CDF samples, and the order of both together.

Layout: samples before rays, `[..., S, R]`, so that every step along a ray is a vector operation over rays.
Nothing here is differentiated: depths are constants of the renderer, as in EG3D.
"""

import jax.numpy as jnp

from t3d.core.typing import Array, Float, Int, typechecked


@typechecked
def stratified(near: Float[Array, '*b r'], far: Float[Array, '*b r'], u: Float[Array, '*b s r']) -> Float[Array, '*b s r']:
    """linspace(near, far, S) plus u * (far - near) / (S - 1), u in [0, 1): EG3D's jitter. The last sample may exceed `far`.

    u = 0 gives the plain linspace, both ends included.
    """
    samples = u.shape[-2]
    if samples < 2:
        raise ValueError(f'{samples} samples along a ray: at least 2 make an interval. Raise num_samples.')
    steps = jnp.arange(samples, dtype=jnp.float32)[:, None]
    return near[..., None, :] + (steps + u) * ((far - near) / (samples - 1))[..., None, :]


@typechecked
def importance(
    depths: Float[Array, '*b s r'], weights: Float[Array, '*b s1 r'], u: Float[Array, '*b n r'],
) -> Float[Array, '*b n r']:
    """Inverse-CDF samples from the S - 1 weights between S depths, at the given u in [0, 1): EG3D's second pass.

    The weights are widened (maximum, then mean, of neighbours) and lifted by 0.01; the bins are the midpoints of the depths.
    Inherited from EG3D: the first and last weight are dropped while the bins are not, so bin i is drawn with the weight of
    interval i + 1 and nothing falls beyond the last but one midpoint. Not sorted unless u is.

    The inverse of a piecewise linear CDF is written as a sum of clipped ramps, b_0 + sum_k db_k clip((u - c_k) / dc_k, 0, 1): no
    search and no gather.
    """
    largest = jnp.concatenate([weights[..., :1, :], jnp.maximum(weights[..., 1:, :], weights[..., :-1, :]), weights[..., -1:, :]], -2)
    smooth = 0.5 * (largest[..., 1:, :] + largest[..., :-1, :]) + 0.01
    density = smooth[..., 1:-1, :] + 1e-5
    density = density / jnp.sum(density, -2, keepdims=True)  # [..., S - 3, R], each at least about 1e-3 / S
    start = jnp.cumsum(density, -2) - density
    middle = 0.5 * (depths[..., 1:, :] + depths[..., :-1, :])
    width = middle[..., 1:-1, :] - middle[..., :-2, :]
    ramps = jnp.clip((u[..., :, None, :] - start[..., None, :, :]) / density[..., None, :, :], 0.0, 1.0)
    return middle[..., :1, :] + jnp.sum(ramps * width[..., None, :, :], -2)


@typechecked
def merge_ranks(
    coarse: Float[Array, '*b s r'], fine: Float[Array, '*b n r'],
) -> Int[Array, '*b sn r']:
    """The position of each of [coarse, fine] in their union sorted by depth; ties keep the given order.

    Counts of comparisons; `coarse` must be sorted, `fine` need not be.
    """
    count = lambda mask, axis: jnp.sum(mask, axis, dtype=jnp.int32)
    before = fine[..., None, :, :] < coarse[..., :, None, :]  # [..., S, N, R]
    own = jnp.arange(fine.shape[-2])
    left, right = fine[..., :, None, :], fine[..., None, :, :]
    earlier = (right < left) | ((right == left) & (own[None, :, None] < own[:, None, None]))
    of_coarse = jnp.arange(coarse.shape[-2], dtype=jnp.int32)[:, None] + count(before, -2)
    of_fine = coarse.shape[-2] - count(before, -3) + count(earlier, -2)
    return jnp.concatenate([of_coarse, of_fine], -2)


def sort_by_rank(values: Float[Array, '*b s r'], ranks: Int[Array, '*b s r']) -> Float[Array, '*b s r']:
    """values moved to their ranks: result[rank[i]] = values[i]."""
    places = jnp.arange(values.shape[-2], dtype=jnp.int32)[:, None, None]  # [S', S, R]
    return jnp.sum(jnp.where(ranks[..., None, :, :] == places, values[..., None, :, :], 0.0), -2)
