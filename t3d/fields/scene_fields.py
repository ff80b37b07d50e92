"""The fields that are optimised for one prompt, of four kinds behind one form: points in, raw density and features out.

| kind | what is looked up | then |
|---|---|---|
| 'hash' | multiresolution hash grid (`geom/hashgrid.py`), coarse levels first | ReLU MLP without bias |
| 'dense' | one grid, trilinear | ReLU MLP without bias |
| 'triplane' | three planes, bilinear, summed | EG3D's MLP (`triplane_field.py`) |
| 'mlp' | Fourier features | NeRF's MLP without directions (`nerf_field.py`) |

Points are in [-1, 1]^3. The raw density is what the network says plus a blob in the middle, so that space begins with something
to carve, plus a bias; `density` makes a density of it, after the averaging of neighbours (`volume.render`'s
`density_activation`). Populations are P scenes at once: parameters and points with a leading axis (`raw_each`).

Blobs: 10 (1 - |p| / .5) (Magic3D, arXiv 2211.10440) and 5 exp(-|p|^2 / (2 .2^2)) (DreamFusion, arXiv 2209.14988).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from t3d.core import grids, numerics
from t3d.core.errors import UsageError
from t3d.core.typing import Array, Float, Key, PyTree, typechecked
from t3d.fields import nerf_field, triplane_field
from t3d.geom import hashgrid, triplanes

KINDS = ('hash', 'dense', 'triplane', 'mlp')
ACTIVATIONS = ('softplus', 'exp')
BLOBS = ('none', 'cone', 'gaussian')
INIT = 0.1  # deviation of new planes


class Options(NamedTuple):
    """A field's form; numbers and names, so that it is static for the compiler. The config section `scene` has these keys.

    Attributes:
      kind: one of KINDS.
      features: F raw outputs beside the density.
      hidden, layers: of the MLP; for 'mlp' its trunk, whose points join again after layer layers // 2 + 1 (5 of 8). EG3D's has
        one layer, whatever `layers` says.
      channels: of a row of the table ('hash', there usually 2), of a cell or texel ('dense', 'triplane').
      levels, log2_rows, base, growth: of the hash grid.
      first_levels, start, every: levels that are read at first, the step until which no other is, and how many steps later
        each further one is read.
      resolution: grid points ('dense') or texels ('triplane') per side.
      octaves: of the Fourier features ('mlp').
      activation: of the density, one of ACTIVATIONS.
      blob, blob_height, blob_width: one of BLOBS; its raw density in the middle; where the cone is 0, the Gaussian's deviation.
      bias: added to the raw density.
    """

    kind: str = 'hash'
    features: int = 3
    hidden: int = 64
    layers: int = 1
    channels: int = 2
    levels: int = 16
    log2_rows: int = 19
    base: int = 16
    growth: float = 1.4472692
    first_levels: int = 16
    start: int = 0
    every: int = 1
    resolution: int = 64
    octaves: int = 6
    activation: str = 'softplus'
    blob: str = 'cone'
    blob_height: float = 10.0
    blob_width: float = 0.5
    bias: float = 0.0


def check(options: Options) -> None:
    """Raises UsageError for options that no field has."""
    for name, choices in (('kind', KINDS), ('activation', ACTIVATIONS), ('blob', BLOBS)):
        if getattr(options, name) not in choices:
            raise UsageError(f'scene.{name}={getattr(options, name)!r}: wanted one of {", ".join(choices)}.')
    if options.kind == 'hash':
        hashgrid.layout(options.levels, options.log2_rows, options.base, options.growth)


# --------------------------------------------------------------------------------------------------------- parameters


def init(key: Key, options: Options) -> PyTree:
    """Parameters of one scene: {'grid': table, cells or planes, 'mlp': ...}; of P scenes, `jax.vmap` over keys [P]."""
    key_grid, key_mlp = jax.random.split(key)
    if options.kind == 'mlp':
        return {'mlp': nerf_field.init(key_mlp, _sizes(options))}
    if options.kind == 'triplane':
        shape = (3, options.resolution, options.resolution, options.channels)
        planes = INIT * jax.random.normal(key_grid, shape, jnp.float32)
        outputs = {'hidden': options.hidden, 'outputs': options.features}
        return {'grid': planes, 'mlp': triplane_field.init(key_mlp, options.channels, equalised=False, **outputs)}
    if options.kind == 'hash':
        layout = _layout(options)
        grid, inputs = hashgrid.init(key_grid, layout, options.channels), layout.levels * options.channels
    else:
        shape, inputs = (*[options.resolution] * 3, options.channels), options.channels
        grid = jax.random.uniform(key_grid, shape, jnp.float32, -hashgrid.INIT, hashgrid.INIT)
    widths = (inputs, *[options.hidden] * options.layers, 1 + options.features)
    keys = jax.random.split(key_mlp, len(widths) - 1)
    kernel = lambda key, width, outputs: math.sqrt(2.0 / width) * jax.random.normal(key, (width, outputs), jnp.float32)
    return {'grid': grid, 'mlp': {str(n): kernel(keys[n], *widths[n : n + 2]) for n in range(len(keys))}}


def _layout(options: Options) -> hashgrid.Layout:
    return hashgrid.layout(options.levels, options.log2_rows, options.base, options.growth)


def _sizes(options: Options) -> nerf_field.Sizes:
    skip = options.layers // 2 + 1 if options.layers > 2 else 0
    return nerf_field.Sizes(options.octaves, 0, options.hidden, options.layers, skip, 0, options.features)


# ------------------------------------------------------------------------------------------------------------- fields


@typechecked
def raw(params: PyTree, points: Float[Array, '*b 3'], options: Options, step=None) -> tuple[jax.Array, jax.Array]:
    """(raw density [...], raw features [..., F]) of one scene at points in [-1, 1]^3.

    Args:
      step: of the optimisation, which may be traced: which levels of a hash grid are read. None: all.
    """
    if options.kind == 'hash':
        density, features = _mlp(params['mlp'], _hash(params['grid'], points, options, step))
    elif options.kind == 'dense':
        place = (points + 1.0) * (0.5 * (options.resolution - 1))
        density, features = _mlp(params['mlp'], grids.trilinear(params['grid'], place))
    elif options.kind == 'triplane':
        summed = triplanes.sample_sum(triplanes.pad(params['grid']), points.reshape(-1, 3), 1.0)
        summed = summed.reshape(*points.shape[:-1], -1)
        density, features = triplane_field.decode(params['mlp'], summed, equalised=False)
    else:
        density, features = nerf_field.apply(params['mlp'], points, None, _sizes(options))
    return density + blob(points, options) + options.bias, features


@typechecked
def raw_each(params: PyTree, points: Float[Array, 'p *b 3'], options: Options, step=None) -> tuple[jax.Array, jax.Array]:
    """`raw` of P scenes, each at its own points: (raw density [P, ...], raw features [P, ..., F]); tables in one gather.

    Args:
      params: leaves [P, ...].
    """
    if options.kind != 'hash':
        return jax.vmap(lambda params, points: raw(params, points, options, step))(params, points)
    flat = points.reshape(points.shape[0], -1, 3)
    density, features = _mlp(params['mlp'], _hash(params['grid'], flat, options, step))
    density = density.reshape(points.shape[:-1]) + blob(points, options) + options.bias
    return density, features.reshape(*points.shape[:-1], -1)


def _hash(table, points, options: Options, step):
    layout, mask = _layout(options), None
    if step is not None and options.first_levels < options.levels:
        shown = {'first': options.first_levels, 'start': options.start, 'every': options.every}
        mask = hashgrid.progressive(options.levels, step, **shown)
    return hashgrid.encode(layout, table, 0.5 * (points + 1.0), mask)


def _mlp(kernels, hidden):
    """(density [...], features [..., F]): ReLU layers of kernels [in, out] on [..., in], or [P, in, out] on [P, N, in]."""
    for n in range(len(kernels) - 1):
        hidden = jax.nn.relu(hidden @ kernels[str(n)])
    out = hidden @ kernels[str(len(kernels) - 1)]
    return out[..., 0], out[..., 1:]


def blob(points: jax.Array, options: Options) -> jax.Array:
    """The raw density [...] that is added at points [..., 3]: a cone or a Gaussian about the origin."""
    if options.blob == 'none':
        return jnp.zeros(points.shape[:-1], jnp.float32)
    if options.blob == 'cone':
        return options.blob_height * (1.0 - numerics.safe_norm(points) / options.blob_width)
    return options.blob_height * jnp.exp(-0.5 * jnp.sum(jnp.square(points), -1) / options.blob_width**2)


def density(raw: jax.Array, options: Options) -> jax.Array:
    """Density per unit of the cube, at least 0, of a raw density: softplus(raw) or exp(raw)."""
    return numerics.softplus(raw) if options.activation == 'softplus' else numerics.trunc_exp(raw)


def albedo(features: jax.Array) -> jax.Array:
    """Colours [..., 3] in (0, 1): the sigmoid of the first three features."""
    return jax.nn.sigmoid(features[..., :3])


def field(params: PyTree, options: Options, step=None, *, population: bool = False):
    """The renderer's field `(points, directions) -> (raw density, albedo)`, with `density` for its `density_activation`."""
    evaluate = functools.partial(raw_each if population else raw, params, options=options, step=step)

    def at(points, directions=None):
        density, features = evaluate(points)
        return density, albedo(features)

    return at
