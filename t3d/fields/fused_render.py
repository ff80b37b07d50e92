"""Triplane look-up, point MLP and compositing along rays in one Pallas kernel for TPUs: samples stay on the chip.

TPUs are slow to gather, and their kernels cannot. But bilinear weights are a product of hats along height and width, max(0, 1
- |x - i|) at texel i, and nothing lies beyond a plane's edge, as `geom.triplanes` has it. So the features of N points are the
plane [W C, H] times hats [H, N], a product for the matrix unit, whose rows are then weighed by the other hats and summed over
W. That is H W / 4 times the arithmetic of four corners: it is for small planes (MOST), which stay in the chip's fast memory,
and MLP and compositing follow without a way through main memory.

The gradient: the forward pass keeps the summed features of the samples, and their densities and colours. XLA takes the
compositing back (`_composited`), a second kernel the MLP and the look-up, whose transpose is a product with hats too. Rays,
depths and the activation's `level` have none: who asks for it gets an error.

XLA's path (`volume.render_at` of a `triplane_field`) is the default; a config asks for the kernel by `render.kernel=fused`.
Off TPU and for larger planes it is XLA's path all the same (`takes`). Speed was never measured on a TPU; docs/pods.md has what
the compiler says.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec as P

from t3d.core import platforms, spread
from t3d.core.errors import UsageError
from t3d.core.typing import PyTree
from t3d.fields import triplane_field
from t3d.geom import sampling, volume
from t3d.geom.rays import Rays

KERNELS = ('xla', 'fused')
MOST = 128 * 128 * 32  # numbers of a plane: three fill 9 MiB of the fast memory, twice over to load the next scene's


class Options(NamedTuple):
    """What a field is besides arrays; hashable.

    Attributes:
      activation: `(features [F, n], level) -> colours [F, n]`, elementwise.
      density: from raw densities, averaged between neighbours, to densities per scene unit; elementwise.
      bound, plane_axes, equalised: as of `triplane_field.make`.
    """

    activation: Callable
    density: Callable
    bound: float = 1.0
    plane_axes: str = 'orthogonal'
    equalised: bool = True


class Scenes(NamedTuple):
    """B fields.

    Attributes:
      planes: [B, 3, R, R, C] float32.
      decoder: of `triplane_field.init`, one for all.
      level: a scalar that the activation reads.
    """

    planes: jax.Array
    decoder: PyTree
    level: jax.Array


def check(kernel: str) -> None:
    """Raises UsageError for a kernel that is not there."""
    if kernel not in KERNELS:
        raise UsageError(f"render.kernel={kernel!r}: wanted 'xla', or 'fused' for the fused kernel on TPUs.")


def takes(planes: jax.Array) -> bool:
    """Whether a render of planes [B, 3, R, R, C] that asks for the kernel gets it."""
    height, width, channels = planes.shape[-3:]
    return platforms.name() == 'tpu' and planes.dtype == jnp.float32 and height * width * channels <= MOST


def render_at(scenes: Scenes, rays: Rays, u_coarse, u_fine, *, near, far, options: Options, added=None) -> volume.RenderOutput:
    """`volume.render_at` of scenes along rays [B, R, 3]; `weights` is None. Gradients to planes, MLP and `added`.

    With u_fine a first pass gives densities alone, and the second looks all samples up again, in their order. On the mesh of
    the context scenes lie on the axes of the batch, where they divide: no plane moves.

    Args:
      added: `points [B, S, R, 3] -> [B, S, R]`, added to the raw density.
    """
    near, far = volume.limits(rays, near, far)
    depths = jax.lax.stop_gradient(sampling.stratified(near, far, u_coarse))
    march = functools.partial(_march, scenes, rays, options=options, added=added)
    if u_fine.shape[-2]:
        coarse = volume.midpoint_weights(march(depths, function=_raw), depths, options.density)
        fine = jax.lax.stop_gradient(sampling.importance(depths, coarse, u_fine))
        ranks, order = sampling.merge(depths, fine)
        depths = sampling.permute(jnp.concatenate([depths, fine], -2), order, ranks)
    seen = march(depths, function=_seen)
    features, opacity, weighted = seen[:, :-2], seen[:, -2], seen[:, -1]
    depth = volume.mean_depth(weighted, opacity, depths[..., 0, :], depths[..., -1, :])
    return volume.RenderOutput(jnp.moveaxis(features, -2, -1), opacity, depth, None)


def _march(scenes: Scenes, rays: Rays, depths, *, function, options: Options, added):
    """The result of `_raw` or `_seen` at depths [B, S, R]."""
    from t3d.fields import fused_kernels as kernels  # half a second

    count, offset = depths.shape[-1], jnp.zeros_like(depths)
    if added is not None:
        offset = added(rays.origins[:, None] + depths[..., None] * rays.directions[:, None])
    lanes = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, -count % kernels.RAYS)))
    along = tuple(map(lanes, (rays.origins.swapaxes(1, 2), rays.directions.swapaxes(1, 2), depths, offset)))
    level = jnp.reshape(scenes.level, 1).astype(jnp.float32)
    arguments = (along, scenes.planes, _weights(scenes.decoder, options.equalised, kernels.ROWS), level)
    place = Place(tuple(spread.axes()), spread.batch_axes(depths.shape[0]))
    return function(options, place, *arguments)[..., :count]


class Place(NamedTuple):
    """Axes of the context's mesh, and those of them that scenes lie on."""

    axes: tuple[str, ...]
    rows: tuple[str, ...]

    def each(self, function, arguments, results):
        """The function on each device, 'r' in the letters of its arguments and results: of its own scenes, 'w': whole ones."""
        if not self.axes:
            return function
        specs = {'r': P(self.rows or None), 'w': P()}
        arguments, results = (tuple(specs[letter] for letter in letters) for letters in (arguments, results))
        # The kernels do not say over which axes their results vary, as check_vma wants it.
        return jax.shard_map(function, in_specs=arguments, out_specs=results, axis_names=set(self.axes), check_vma=False)


def _weights(decoder: PyTree, equalised: bool, rows: int):
    """The MLP for points along the lanes, ([H, C], [H, 1], [1 + F, H], [1 + F, 1]), C and H up to multiples of `rows`."""
    kernel, bias, out_kernel, out_bias = triplane_field.folded(decoder, equalised=equalised)
    wide, deep = ((0, -size % rows) for size in kernel.shape)
    return jnp.pad(kernel.T, (deep, wide)), jnp.pad(bias, deep)[:, None], jnp.pad(out_kernel, ((0, 0), deep)), out_bias[:, None]


def _forward(options, place, names, arguments):
    from t3d.fields import fused_kernels as kernels

    function = lambda *arguments: tuple(kernels.forward(options, names, *arguments))
    return place.each(function, 'rrww', 'r' * len(names))(*arguments)


def _raw(options, place, *arguments):
    """Raw densities [B, S, R], without a gradient."""
    from t3d.fields import fused_kernels as kernels

    with jax.named_scope(kernels.AGAIN):  # the samples are looked up again with those between them
        return _forward(options, place, ('raw',), jax.lax.stop_gradient(arguments))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _seen(options, place, along, planes, weights, level):
    """What rays see, [B, F + 2, R]: features, opacity, depth times opacity."""
    return _forward(options, place, ('seen',), (along, planes, weights, level))[0]


def _seen_forward(options, place, *arguments):
    is_leaf = lambda x: hasattr(x, 'perturbed')
    constant, arguments = (arguments[0][:3], arguments[3]), jax.tree.map(lambda x: x.value, arguments, is_leaf=is_leaf)
    if any(leaf.perturbed for leaf in jax.tree.leaves(constant, is_leaf=is_leaf)):
        raise UsageError('render.kernel=fused has no gradient for rays, depths or the level of colours: set render.kernel=xla.')
    seen, sums, values = _forward(options, place, ('seen', 'sums', 'values'), arguments)
    return seen, (*arguments, sums, values)


def _seen_backward(options, place, saved, gradient):
    from t3d.fields import fused_kernels as kernels

    along, planes, weights, level, sums, values = saved
    if isinstance(gradient, SymbolicZero):
        gradient = jnp.zeros(gradient.shape, gradient.dtype)
    (to_values,) = jax.vjp(functools.partial(_composited, options, depths=along[2]), values)[1](gradient)

    def backward(*arguments):
        to_planes, to_weights = kernels.backward(options, planes.shape[-3:], *arguments)
        return to_planes, jax.lax.psum(to_weights, place.rows) if place.rows else to_weights

    to_planes, to_weights = place.each(backward, 'rwwrr', 'rw')(along[:3], weights, level, sums, to_values)
    return (*map(jnp.zeros_like, along[:3]), to_values[:, :, 0]), to_planes, to_weights, jnp.zeros_like(level)


_seen.defvjp(_seen_forward, _seen_backward, symbolic_zeros=True)


def _composited(options, values, depths):
    """What the kernel makes of raw densities and colours [B, S, 1 + F, R], by XLA."""
    weights = volume.midpoint_weights(values[:, :, 0], depths, options.density)
    features = jnp.sum(volume.sample_weights(weights)[:, :, None] * values[:, :, 1:], 1)
    middle = 0.5 * (depths[:, 1:] + depths[:, :-1])
    return jnp.concatenate([features, jnp.sum(weights, 1)[:, None], jnp.sum(weights * middle, 1)[:, None]], 1)
