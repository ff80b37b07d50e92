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

from t3d.core import grids, spread
from t3d.core.typing import Array, Float
from t3d.nets.unet_blocks import LAYER_EPSILON, NEVER

OCTAVES = 6  # of the points' sines and cosines
WIDEST = 256  # the block's width is that of the map, up to this


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
    def __call__(self, x: Float[Array, 'n h w c'], rays) -> Float[Array, 'n h w c']:
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
        asked = heads(query[..., None, :] + place)

        def look(points, maps):
            asked, uv, valid = points
            seen = lookup(maps, uv)  # [B, V, S, h, w, M, 2 d]
            seen_key, seen_value = heads(seen[..., :inner]), heads(seen[..., inner:])
            logits = jnp.sum(asked[:, :, None] * seen_key, -1, dtype=jnp.float32) * (inner // self.heads) ** -0.5
            weights = jax.nn.softmax(jnp.where(valid[..., None], logits, NEVER), axis=2).astype(self.dtype)
            return jnp.sum(weights[..., None] * seen_value, 2)

        points, maps = (asked, rays.uv, rays.valid), jnp.concatenate([key, value], -1)
        mixed = spread.over(look, self.axis, points, maps) if self.axis else look(points, maps)
        mixed = mixed.reshape(place.shape)
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


def lookup(maps: Float[Array, 'b s h w c'], uv: Float[Array, 'b v s h w m 2']) -> Float[Array, 'b v s h w m c']:
    """Features of each view's map at image coordinates in [0, 1]^2, bilinear, the border repeated."""
    height, width, channels = maps.shape[-3:]
    x, y = uv[..., 0] * width - 0.5, uv[..., 1] * height - 0.5
    if min(height, width) < 2:  # one row or column: the bilinear cell wants two
        maps = jnp.concatenate([maps, maps], -3 if height < 2 else -2)
        return lookup_pixels(maps, x, y)
    return lookup_pixels(maps, x, y)


def lookup_pixels(maps, x, y):
    """`lookup` at coordinates in positions, centres at the integers."""
    height, width, channels = maps.shape[-3:]
    index, weight = grids.bilinear_corners(x, y, height, width)  # [4, B, V, S, h, w, M]
    order = (1, 3, 0, 2, 4, 5, 6)  # [B, S, 4, V, h, w, M]
    index, weight = index.transpose(order), weight.astype(maps.dtype).transpose(order)
    tables = maps.reshape(*maps.shape[:2], height * width, channels)
    flat = (*index.shape[:3], -1)
    rows = jax.vmap(jax.vmap(grids.weighted_rows))(tables, index.reshape(flat), weight.reshape(flat))
    return jnp.moveaxis(rows.reshape(*index.shape[:2], *index.shape[3:], channels), 1, 2)
