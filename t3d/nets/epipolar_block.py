"""The epipolar consistency block: features of a view compared, along its rays, with what other views see there.

For each position a ray, on it M points, for each point the features of all views at its projections: attention over the views
gives one feature a point, attention over the M points one a position, which is added to the map. The last projection starts at
zero, so that a new block is the identity and the weights of a network without one load unchanged.
Source: Guided multi-view diffusion, Sec. 3.2 ("Epipolar Attention", "Ray Aggregation"); widths, encodings and the order of
projection and sampling are ours (docs/multiview.md).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import grids, platforms, spread
from t3d.core.typing import Array, Float, PyTree, typechecked
from t3d.nets.unet_blocks import LAYER_EPSILON, NEVER

OCTAVES = 6  # of the points' sines and cosines
WIDEST = 256  # the block's width is that of the map, up to this
BLOCK = 2**10  # lookups at once on a CPU: what they make stays in the cache (elsewhere all are one block)


class EpipolarBlock(nn.Module):
    """Attributes:
    heads: of both attentions.
    dtype: of products; logits and softmax are float32.
    axis: the mesh axis that the views are spread over: each device looks up its own rays, in the maps of all views, which are
      gathered; '' for none.
    """

    heads: int
    dtype: jnp.dtype = jnp.float32
    axis: str = ''

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'n h w c'], rays: PyTree) -> Float[Array, 'n h w c']:
        """x: [B V, h, w, C], views fastest; rays: geom.epipolar.RayPoints of leading axes [B, V], at this level's size."""
        objects, views, height, width, samples = rays.depths.shape
        channels = x.shape[-1]
        inner = min(channels, WIDEST) // self.heads * self.heads

        def dense(name, value, width=inner):
            return nn.Dense(width, dtype=self.dtype, name=name)(value)

        def norm(name, value):
            return nn.LayerNorm(epsilon=LAYER_EPSILON, use_fast_variance=False, dtype=self.dtype, name=name)(value)

        def heads(value):
            return value.reshape(*value.shape[:-1], self.heads, inner // self.heads)

        own = norm('norm', x).reshape(objects, views, height, width, channels)
        # Products of a few numbers for very many places: sums of products fuse where XLA's batched matrix products do not.
        # Linear maps and bilinear lookup commute: keys and values are projected once, then looked up.
        query, key, value = dense('to_q', own), dense('to_k', own), dense('to_v', own)
        place = dense('place', encoding(rays).astype(self.dtype))  # [B, V, h, w, M, d]
        look = lambda own, maps: attend_views(*own, *maps, self.heads)
        mixed = spread.over(look, self.axis, (query[..., None, :] + place, rays.uv, rays.valid), (key, value))
        tokens = value[..., None, :] + place + dense('to_out_views', mixed)
        tokens = tokens + dense('mlp_out', nn.gelu(dense('mlp_in', norm('norm_mlp', tokens), 2 * inner), approximate=False))
        tokens = norm('norm_ray', tokens)
        asked, ray_key = heads(dense('to_q_ray', own)), heads(dense('to_k_ray', tokens))
        logits = jnp.sum(asked[..., None, :, :] * ray_key, -1, dtype=jnp.float32) * (inner // self.heads) ** -0.5
        weights = jax.nn.softmax(logits, axis=-2).astype(self.dtype)  # over the M points
        out = jnp.sum(weights[..., None] * heads(dense('to_v_ray', tokens)), -3)
        last = nn.Dense(channels, dtype=self.dtype, kernel_init=nn.initializers.zeros, name='to_out')
        return x + last(out.reshape(objects * views, height, width, inner))


def encoding(rays) -> Float[Array, '*b e']:
    """[B, V, h, w, M, 6 OCTAVES + 3 + 1 + 6]: sines and cosines of the points, the points, their depth, the ray."""
    frequencies = 2.0 ** np.arange(OCTAVES, dtype=np.float32) * np.float32(0.5 * np.pi)
    waves = rays.points[..., None] * frequencies
    waves = jnp.concatenate([jnp.sin(waves), jnp.cos(waves)], -1).reshape(*rays.points.shape[:-1], -1)
    plucker = jnp.broadcast_to(rays.plucker[..., None, :], (*rays.points.shape[:-1], 6))
    return jnp.concatenate([waves, rays.points, rays.depths[..., None], plucker], -1)


def attend_views(query, uv, valid, key, value, heads: int):
    """What points of rays find in the maps of the views that see them.

    In blocks of points, looked up again in the backward pass: what all points see in all views never exists at once.

    Args:
      query: of the points, [B, V, h, w, M, d].
      uv, valid: their projections into the S views, [B, V, S, h, w, M, 2], and whether they are in the picture.
      key, value: maps of those views, [B, S, h, w, d].
    Returns: [B, V, h, w, M, d].
    """
    objects, views = key.shape[:2]
    count = query[0, ..., 0].size
    room = max(1, BLOCK // (spread.rows_here(objects) * views)) if platforms.name() == 'cpu' else count
    size = next(size for size in range(min(room, count), 0, -1) if count % size == 0)

    def part(block):
        query, uv, valid = block
        split = lambda x: x.reshape(*x.shape[:-1], heads, -1)
        seen_key, seen_value = split(lookup(key, uv)), split(lookup(value, uv))  # [B, S, n, heads, d]
        logits = jnp.sum(split(query)[:, None] * seen_key, -1, dtype=jnp.float32) * seen_key.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(valid[..., None], logits, NEVER), axis=1).astype(query.dtype)
        return jnp.sum(weights[..., None] * seen_value, 1).reshape(query.shape)

    cut = lambda x, axis: jnp.moveaxis(x.reshape(*x.shape[:axis], count // size, size, *x.shape[axis + 1 :]), axis, 0)
    uv, valid = jnp.moveaxis(uv, 2, 1), jnp.moveaxis(valid, 2, 1)  # [B, S, V, h, w, M]
    flat = (query.reshape(objects, count, -1), uv.reshape(objects, views, count, 2), valid.reshape(objects, views, count))
    if size == count:
        return jax.checkpoint(part)(flat).reshape(query.shape)
    blocks = (cut(flat[0], 1), cut(flat[1], 2), cut(flat[2], 2))
    return jnp.moveaxis(jax.lax.map(jax.checkpoint(part), blocks), 0, 1).reshape(query.shape)


def lookup(maps: Float[Array, 'b s h w c'], uv: Float[Array, 'b s n 2']) -> Float[Array, 'b s n c']:
    """Features of each view's map at image coordinates in [0, 1]^2, bilinear, the border repeated."""
    objects, views, height, width, channels = maps.shape
    x, y = uv[..., 0] * width - 0.5, uv[..., 1] * height - 0.5
    if min(height, width) < 2:  # one row or column: the bilinear cell wants two
        maps = jnp.concatenate([maps, maps], -3 if height < 2 else -2)
        height, width = maps.shape[-3:-1]
    index, weight = grids.bilinear_corners(x, y, height, width)  # [4, B, S, n]
    index = index + (height * width * np.arange(views, dtype=np.int32))[:, None]  # one table for all views of an object
    flat = lambda value: jnp.moveaxis(value.reshape(4, objects, -1), 0, 1)
    tables = maps.reshape(objects, -1, channels)
    rows = jax.vmap(grids.weighted_rows)(tables, flat(index), flat(weight.astype(maps.dtype)))
    return rows.reshape(*x.shape, channels)
