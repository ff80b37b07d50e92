"""The two Pallas kernels of `fused_render`: blocks of 128 rays of one scene at a time, each ray in a lane, sample after sample.

Where arrays are whole, R is a multiple of RAYS, and what the matrix unit reads is padded to whole registers (ROWS): the planes
[B, 3, W C, H], hats [H, RAYS] along their height and [W, 1, RAYS] along their width, the MLP as (kernel [H, C], bias [H, 1],
kernel [1 + F, H], bias [1 + F, 1]). A device has one of the scenes' tables in its fast memory while it renders its rays.

Importing this loads Pallas, which takes half a second.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from t3d.fields import triplane_field
from t3d.geom import triplanes

RAYS = 128  # at once: the lanes of a register
ROWS = 8  # of a register
MEMORY = 64 * 2**20  # bytes of fast memory that a kernel may take, which v5e, v5p and v6e grant; v4 has 16 MiB
AGAIN = 'rematted_computation'  # the names by which `metrics.flops` knows work that is no model FLOP
LOOK_UP = 'look_up_by_products'


def table(planes: jax.Array) -> jax.Array:
    """Planes [B, 3, H, W, C] as [B, 3, W C, H], height and channels up to whole registers."""
    up = lambda axis: (0, -planes.shape[axis] % ROWS)
    planes = jnp.pad(planes, ((0, 0), (0, 0), up(2), (0, 0), up(4))).transpose(0, 1, 3, 4, 2)
    return planes.reshape(*planes.shape[:2], -1, planes.shape[-1])


def forward(options, names, along, planes, weights, level) -> list[jax.Array]:
    """What is asked for by name, of rays along arrays (origins [B, 3, R], directions, depths [B, S, R], added [B, S, R]).

    'seen' [B, F + 2, R]: colours, opacity, depth times opacity; 'raw' [B, S, R]: densities, and then nothing else;
    'sums' [B, S, C, R]: features; 'values' [B, S, 1 + F, R]: raw densities and colours.
    """
    (batch, samples, rays), outputs = along[2].shape, weights[2].shape[0]
    sizes = {'seen': (outputs + 1,), 'raw': (samples,), 'values': (samples, outputs), 'sums': (samples, weights[0].shape[1])}
    parts = _parts(table(planes), (0, 1, 0), -1)
    with jax.named_scope('fused_render_forward'):
        return _call(
            functools.partial(_forward_kernel, options, planes.shape[-3:], names),
            (batch, rays // RAYS),
            [pl.BlockSpec(memory_space=tpu.SMEM), *map(_tiled, along), _scene(parts), *map(_shared, weights)],
            [_tile(sizes[name]) for name in names],
            [jax.ShapeDtypeStruct((batch, *sizes[name], rays), jnp.float32) for name in names],
        )(level, *along, parts, *weights)


def backward(options, shape, along, weights, level, sums, to_values):
    """Gradients of planes of `shape` (H, W, C) and of the weights, by those of `values`; along: without `added`."""
    batch, _, rays = along[2].shape
    planes = jax.ShapeDtypeStruct((batch, 3, *shape), jnp.float32)
    out = [jax.eval_shape(table, planes), *(jax.ShapeDtypeStruct((batch, *x.shape), jnp.float32) for x in weights)]
    with jax.named_scope('fused_render_backward'):
        to_table, *to_weights = _call(
            functools.partial(_backward_kernel, options, shape),
            (batch, rays // RAYS),
            [
                *(pl.BlockSpec(memory_space=tpu.SMEM), *map(_tiled, along), *map(_shared, weights)),
                *map(_tiled, (sums, to_values)),
            ],
            list(map(_scene, out)),
            out,
        )(level, *along, *weights, sums, to_values)
    (to_planes,) = jax.linear_transpose(table, planes)(to_table)
    return to_planes, tuple(jnp.sum(x, 0) for x in to_weights)


def _forward_kernel(options, shape, names, level, origins, directions, depths, added, parts, *refs):
    weights, outs = [ref[...] for ref in refs[:4]], dict(zip(names, refs[4:], strict=True))

    def sample(s, carry):
        row = (0, pl.ds(s, 1), slice(None))
        sums = 0.0
        for plane, (low, high) in enumerate(_hats(options, shape, origins[0], directions[0], depths[row])):
            with jax.named_scope(LOOK_UP):
                rows = _product(parts[0, plane], _parts(low, (0, 0, 1), 0))
            sums += jnp.sum(rows.reshape(shape[1], -1, RAYS) * high, 0)
        _, out = _decoded(weights, sums)
        raw = out[:1] + added[row]
        if 'raw' in outs:
            outs['raw'][row] = raw
            return carry
        colour = options.activation(out[1:], level[0])
        if 'sums' in outs:
            outs['sums'][0, s], outs['values'][0, s] = sums, jnp.concatenate([raw, colour])
        return _step(options, carry, (raw, colour, depths[row]))

    def start():  # no interval lies before the first sample
        none, black = jnp.zeros((1, RAYS), jnp.float32), jnp.zeros((weights[3].shape[0] - 1, RAYS), jnp.float32)
        return (none, black, depths[0, :1, :]), none, (black, none, none)

    carry = jax.lax.fori_loop(0, depths.shape[1], sample, () if 'raw' in outs else start())
    if 'seen' in outs:
        outs['seen'][0] = jnp.concatenate(carry[2])


def _step(options, carry, here):
    """The interval between two samples, each (raw [1, n], colour [F, n], depth [1, n]), as `volume.composite_samples` has it.

    carry: the sample before, the optical depth up to it, and the sums of colours, weights, and depths by weight.
    """
    (raw, colour, depth), through, (colours, opacity, weighted) = carry
    optical = options.density(0.5 * (raw + here[0])) * (here[2] - depth)
    half = jnp.tanh(0.5 * optical)
    weight = jnp.exp(-through) * (2.0 * half / (1.0 + half))  # 1 - exp(-optical), with all its digits where it is small
    sums = (colours + weight * (0.5 * (colour + here[1])), opacity + weight, weighted + weight * (0.5 * (depth + here[2])))
    return here, through + optical, sums


def _backward_kernel(options, shape, level, origins, directions, depths, *refs):
    weights, (sums, to_values), (to_table, *to_weights) = [ref[...] for ref in refs[:4]], refs[4:6], refs[6:]

    @pl.when(pl.program_id(1) == 0)  # the results of a scene stay in fast memory for all of its rays
    def _():
        for ref in (to_table, *to_weights):
            ref[...] = jnp.zeros(ref.shape, jnp.float32)

    def sample(s, carry):
        here, gradient = sums[0, s], to_values[0, s]
        with jax.named_scope(AGAIN):
            hidden, out = _decoded(weights, here)
        _, pull = jax.vjp(lambda x: options.activation(x, level[0]), out[1:])
        to_out = jnp.concatenate([gradient[:1], *pull(gradient[1:])])
        to_hidden = _product(weights[2].T, to_out) * (1.0 - jnp.exp(-hidden))
        each = _over_rays(to_hidden, here), _total(to_hidden), _over_rays(to_out, hidden), _total(to_out)
        for ref, x in zip(to_weights, each, strict=True):
            ref[0] += x
        to_sums = _product(weights[0].T, to_hidden)
        row = depths[0, pl.ds(s, 1), :]
        for plane, (low, high) in enumerate(_hats(options, shape, origins[0], directions[0], row)):
            rows = _parts((high * to_sums[None]).reshape(-1, RAYS), (0, 1, 0), 1)
            with jax.named_scope(LOOK_UP):
                to_table[0, plane] += _over_rays(rows, _parts(low, (0, 0, 1), 1))
        return carry

    jax.lax.fori_loop(0, depths.shape[1], sample, 0)


def _hats(options, shape, origins, directions, depth):
    """Bilinear weights of each plane along its height [H, n] and its width [W, 1, n], of rays [3, n] at a depth [1, n]."""
    points = (origins + depth * directions) * (1.0 / options.bound)
    place = lambda axis, size: 0.5 * ((points[axis : axis + 1] + 1.0) * size - 1.0)  # texels have their centres at the integers

    def hat(x, texels):
        index = jax.lax.broadcasted_iota(jnp.int32, texels, 0).astype(jnp.float32)
        return jnp.maximum(1.0 - jnp.abs(x - index), 0.0)

    for across, up in triplanes.PLANE_AXES[options.plane_axes]:
        low = hat(place(up, shape[0]), (shape[0] + -shape[0] % ROWS, RAYS))
        yield low, hat(place(across, shape[1])[None], (shape[1], 1, RAYS))


def _decoded(weights, sums):
    """(hidden [H, n], raw density and features [1 + F, n]) of sums [C, n], as `triplane_field.decode` has them."""
    hidden = triplane_field.hidden_softplus(_product(weights[0], sums) + weights[1])
    return hidden, _product(weights[2], hidden) + weights[3]


def _parts(x, order, axis):
    """The rounded x (0) and what rounding left of it (1), both bfloat16, one behind the other along an axis.

    A product of (0, 1, 0) and (0, 0, 1) along that axis is a product of x to 2^-17: three runs of the matrix unit, six for all
    digits. By its bits, as a compiler may take a float32 that was rounded to bfloat16 for the number before.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    high = jax.lax.bitcast_convert_type((bits + 0x8000) & jnp.uint32(0xFFFF0000), jnp.float32)
    both = high.astype(jnp.bfloat16), (x - high).astype(jnp.bfloat16)
    return jnp.concatenate([both[part] for part in order], axis)


def _product(a, b):
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _over_rays(a, b):
    return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _total(x):
    return jnp.sum(x, 1, keepdims=True)


# ---------------------------------------------------------------------------------------------------------------- blocks


def _call(kernel, grid, in_specs, out_specs, out_shape):
    options = tpu.CompilerParams(dimension_semantics=('parallel', 'arbitrary'), vmem_limit_bytes=MEMORY)
    return pl.pallas_call(
        kernel, grid=grid, in_specs=in_specs, out_specs=out_specs, out_shape=out_shape, compiler_params=options
    )


def _tile(sizes):
    """Of an array [B, *sizes, R], one scene and RAYS of its rays."""
    return pl.BlockSpec((1, *sizes, RAYS), lambda scene, tile: (scene, *(0,) * len(sizes), tile))


def _tiled(x):
    return _tile(x.shape[1:-1])


def _scene(x):
    """All that an array [B, ...] has of one scene."""
    return pl.BlockSpec((1, *x.shape[1:]), lambda scene, tile: (scene, *(0,) * (len(x.shape) - 1)))


def _shared(x):
    """All of an array, for every scene."""
    return pl.BlockSpec(x.shape, lambda scene, tile: (0,) * len(x.shape))
