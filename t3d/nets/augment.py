"""Adaptive discriminator augmentation (StyleGAN2-ADA, arXiv 2006.06676): random, differentiable changes of what D sees.

Every operation is switched on with probability p for each sample by itself. Flips, quarter turns and whole-pixel shifts move
pixels. Scale, rotation, squeeze and fractional shift are one affine lookup in the image upsampled by two with a six-moment
Symlet, and filtered down again by the same Symlet (App. B): its filters are orthonormal, so that no move loses nothing. Colour
operations are one affine map of red, green and blue. p is traced; a sample with nothing switched on comes back bit for bit.

Differences: the picture goes on beyond its edge as its mirror image, filtered mirrored too (the original pads the mirror image
first: the same but for the Symlet's slight asymmetry); p stops at 1; the corruptions (filters, noise, cutout) are left out.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import grids, prng
from t3d.core.typing import Array, Float, Key
from t3d.nets import fir

SYM6 = (  # low-pass filter of the Symlet with six vanishing moments (Daubechies, Ten Lectures, Tab. 6.3); sums to sqrt(2)
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
LAG = float(np.dot(np.arange(12), SYM6) / np.sum(SYM6)) - 5.0  # of `_up`: pixel i lies at texel 2 i + LAG, to fifth order
LUMA = np.full(3, 3**-0.5, np.float32)  # the grey axis
OPERATIONS = (
    'xflip',
    'rotate90',
    'xint',
    'scale',
    'rotate',
    'aniso',
    'xfrac',
    'brightness',
    'contrast',
    'lumaflip',
    'hue',
    'saturation',
)


class Strengths(NamedTuple):
    """How far each operation goes (arXiv 2006.06676, App. B: the values of its experiments)."""

    xint: float = 0.125  # most, of the side
    scale: float = 0.2  # standard deviation of log2
    rotate: float = 1.0  # most, of half a turn
    aniso: float = 0.2  # standard deviation of log2
    xfrac: float = 0.125  # standard deviation, of the side
    brightness: float = 0.2  # standard deviation, of half the range
    contrast: float = 0.5  # standard deviation of log2
    hue: float = 1.0  # most, of half a turn
    saturation: float = 1.0  # standard deviation of log2


PAPER = Strengths()


class Draw(NamedTuple):
    """What happens to each sample of a batch; `identity` does nothing."""

    flip: jax.Array  # [B] bool, left-right
    turns: jax.Array  # [B] int32 0..3, quarter turns, counter-clockwise as seen
    shift: jax.Array  # [B, 2] int32 pixels (x right, y down) that the picture moves
    warp: jax.Array  # [B, 3, 3] source from output positions: pixels from the centre, x right, y down
    warped: jax.Array  # [B] bool, whether `warp` is not the identity
    colour: jax.Array  # [B, 3, 4] of (r, g, b, 1) in [-1, 1]
    coloured: jax.Array  # [B] bool

    @property
    def active(self) -> jax.Array:
        """[B] bool: anything at all."""
        return self.flip | (self.turns > 0) | jnp.any(self.shift != 0, -1) | self.warped | self.coloured


def identity(batch: int) -> Draw:
    """The draw that changes nothing."""
    off = jnp.zeros(batch, bool)
    zero, eye = jnp.zeros(batch, jnp.int32), jnp.broadcast_to(jnp.eye(3, dtype=jnp.float32), (batch, 3, 3))
    return Draw(
        off,
        zero,
        jnp.zeros((batch, 2), jnp.int32),
        eye,
        off,
        jnp.broadcast_to(jnp.eye(3, 4, dtype=jnp.float32), (batch, 3, 4)),
        off,
    )


# ------------------------------------------------------------------------------------------------------------- matrices


def scaling(x, y) -> jax.Array:
    """[B, 3, 3] of factors [B] along x and y."""
    zero, one = jnp.zeros_like(x), jnp.ones_like(x)
    return _matrix([[x, zero, zero], [zero, y, zero], [zero, zero, one]])


def rotation(angle) -> jax.Array:
    """[B, 3, 3] of angles [B] in radians, from x to y: clockwise as seen, since y points down."""
    c, s, zero, one = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle), jnp.ones_like(angle)
    return _matrix([[c, -s, zero], [s, c, zero], [zero, zero, one]])


def translation(x, y) -> jax.Array:
    """[B, 3, 3] of moves [B] along x and y."""
    zero, one = jnp.zeros_like(x), jnp.ones_like(x)
    return _matrix([[one, zero, x], [zero, one, y], [zero, zero, one]])


def hue(angle) -> jax.Array:
    """[B, 3, 3]: rotation of (r, g, b) by angles [B] about the grey axis (Rodrigues)."""
    x, y, z = LUMA
    cross = jnp.asarray([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], jnp.float32)
    c, s = jnp.cos(angle)[:, None, None], jnp.sin(angle)[:, None, None]
    return c * jnp.eye(3, dtype=jnp.float32) + s * cross + (1.0 - c) * np.outer(LUMA, LUMA)


def saturation(factor) -> jax.Array:
    """[B, 3, 3]: what is not grey times factors [B]."""
    grey = np.outer(LUMA, LUMA)
    return grey + (np.eye(3, dtype=np.float32) - grey) * factor[:, None, None]


def _matrix(rows):
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


# ---------------------------------------------------------------------------------------------------------------- draws


def draw(key: Key, batch: int, size: int, p, operations: tuple[str, ...] = OPERATIONS, strengths: Strengths = PAPER) -> Draw:
    """A Draw for `batch` images of size x size pixels; each of `operations` is on with probability p (traced, in [0, 1]).

    Order (App. B): flip, quarter turns, whole shift, scale, rotation, squeeze, rotation, shift; then brightness, contrast,
    luma flip, hue, saturation. Each of the two rotations has probability 1 - sqrt(1 - p), so that one of them has p. Flips are
    a coin, quarter turns a die of four, when on: they change 1/2 and 3/4 of the samples at p = 1.

    Raises: ValueError for an unknown operation.
    """
    unknown = [name for name in operations if name not in OPERATIONS]
    if unknown:
        raise ValueError(f'unknown augmentation {unknown[0]!r}: choose from {", ".join(OPERATIONS)}.')
    keys = iter(jax.random.split(key, 40))
    p = jnp.clip(jnp.asarray(p, jnp.float32), 0.0, 1.0)

    def on(name, chance=None):
        coin = jax.random.uniform(next(keys), (batch,), jnp.float32) < (p if chance is None else chance)
        return coin & (name in operations)

    def uniform(most):
        return jax.random.uniform(next(keys), (batch,), jnp.float32, -1.0, 1.0) * most

    def normal(deviation):
        return jax.random.normal(next(keys), (batch,), jnp.float32) * deviation

    flip = on('xflip') & prng.coin(next(keys), 0.5, (batch,))
    turns = jnp.where(on('rotate90'), jax.random.randint(next(keys), (batch,), 0, 4, jnp.int32), 0)
    whole = jnp.stack([jnp.round(uniform(strengths.xint) * size) for _ in range(2)], -1).astype(jnp.int32)
    shift = jnp.where(on('xint')[:, None], whole, 0)
    warp, warped = _draw_warp(on, uniform, normal, p, size, strengths)
    colour, coloured = _draw_colour(on, uniform, normal, keys, strengths)
    return Draw(flip, turns, shift, warp, warped, colour, coloured)


def _draw_warp(on, uniform, normal, p, size, strengths):
    """(warp, warped) of a Draw: the inverses of the moves, composed in the order in which they happen."""
    is_scaled, is_squeezed, is_moved = on('scale'), on('aniso'), on('xfrac')
    half = 1.0 - jnp.sqrt(1.0 - p)
    before, after = on('rotate', half), on('rotate', half)
    scale = jnp.where(is_scaled, jnp.exp2(normal(strengths.scale)), 1.0)
    first, second = (jnp.where(coin, uniform(strengths.rotate * math.pi), 0.0) for coin in (before, after))
    squeeze = jnp.where(is_squeezed, jnp.exp2(normal(strengths.aniso)), 1.0)
    x, y = (jnp.where(is_moved, normal(strengths.xfrac) * size, 0.0) for _ in range(2))
    product = lambda a, b: jnp.einsum('bij,bjk->bik', a, b, precision='highest')
    warp = scaling(1.0 / scale, 1.0 / scale)
    for step in (rotation(-first), scaling(1.0 / squeeze, squeeze), rotation(-second), translation(-x, -y)):
        warp = product(warp, step)
    return warp, is_scaled | is_squeezed | is_moved | before | after


def _draw_colour(on, uniform, normal, keys, strengths):
    """(colour, coloured) of a Draw."""
    is_bright, is_contrast, is_luma, is_hue, is_saturated = (
        on(name) for name in ('brightness', 'contrast', 'lumaflip', 'hue', 'saturation')
    )
    brightness = jnp.where(is_bright, normal(strengths.brightness), 0.0)
    contrast = jnp.where(is_contrast, jnp.exp2(normal(strengths.contrast)), 1.0)
    is_luma = is_luma & prng.coin(next(keys), 0.5, is_luma.shape)
    angle = jnp.where(is_hue, uniform(strengths.hue * math.pi), 0.0)
    factor = jnp.where(is_saturated, jnp.exp2(normal(strengths.saturation)), 1.0)
    flip = jnp.eye(3, dtype=jnp.float32) - 2.0 * np.outer(LUMA, LUMA) * is_luma[:, None, None]
    product = lambda a, b: jnp.einsum('bij,bjk->bik', a, b, precision='highest')
    linear = product(product(saturation(factor), hue(angle)), flip) * contrast[:, None, None]
    offset = jnp.einsum('bij,b->bi', linear, brightness, precision='highest')  # brightness comes first
    coloured = is_bright | is_contrast | is_luma | is_hue | is_saturated
    return jnp.concatenate([linear, offset[..., None]], -1), coloured


# ------------------------------------------------------------------------------------------------------------ operations


def apply(images: Float[Array, 'b s s c'], plan: Draw) -> Float[Array, 'b s s c']:
    """Square images [B, S, S, 3 n], whose channels are n times red, green, blue, all treated alike; values about [-1, 1]."""
    moved = _turn(jnp.where(_each(plan.flip), images[:, :, ::-1], images), plan.turns)
    moved = _shift(moved, plan.shift)
    moved = jnp.where(_each(plan.warped), warp(moved, plan.warp), moved)
    colours = moved.reshape(*moved.shape[:3], -1, 3)
    linear, offset = plan.colour[:, :, :3], plan.colour[:, :, 3]
    coloured = jnp.einsum('bij,bhwnj->bhwni', linear, colours, precision='highest') + offset[:, None, None, None]
    return jnp.where(_each(plan.coloured), coloured.reshape(moved.shape), moved)


def _each(flag):
    return flag[:, None, None, None]


def _turn(images, turns):
    """Quarter turns, counter-clockwise as seen."""
    transposed = images.transpose(0, 2, 1, 3)
    choices = (images, transposed[:, ::-1], images[:, ::-1, ::-1], transposed[:, :, ::-1])
    out = images
    for count in (1, 2, 3):
        out = jnp.where(_each(turns == count), choices[count], out)
    return out


def _mirror(position, size: int):
    """The pixel of 0 ... size - 1 that a mirror at the outer pixels' centres shows at any position; ints or floats."""
    period = 2 * (size - 1)
    return (size - 1) - jnp.abs(jnp.mod(position, period) - (size - 1))


def _shift(images, shift):
    size = images.shape[1]
    columns, rows = (_mirror(jnp.arange(size) - shift[:, axis, None], size) for axis in (0, 1))
    images = jnp.take_along_axis(images, rows[:, :, None, None], 1)
    return jnp.take_along_axis(images, columns[:, None, :, None], 2)


def warp(images: Float[Array, 'b s s c'], matrix: Float[Array, 'b 3 3']) -> Float[Array, 'b s s c']:
    """out(q) = image(matrix q), positions in pixels from the centre; beyond the edge, its mirror image.

    Up by two, bilinear lookup at twice the size (three more pixels on each side for the filter), down by two.
    """
    size, margin = images.shape[1], len(SYM6) // 4
    fine = _up(_up(images, 1), 2)
    centre = 0.5 * (size - 1)
    centres = 0.5 * (jnp.arange(2 * (size + 2 * margin), dtype=jnp.float32) - LAG) - margin - centre
    grid = jnp.stack(jnp.broadcast_arrays(centres[None, :], centres[:, None], 1.0), -1)  # [S', S', 3]: x, y, 1
    places = jnp.einsum('bij,yxj->byxi', matrix[:, :2], grid, precision='highest')
    places = 2.0 * _mirror(places + centre, size) + LAG  # texels of `fine`
    looked_up = jax.vmap(_lookup)(fine, places)
    return _down(_down(looked_up, 1, size, margin), 2, size, margin)


def _lookup(fine, places):
    height, width, channels = fine.shape
    index, weight = grids.bilinear_corners(places[..., 0].reshape(-1), places[..., 1].reshape(-1), height, width)
    return grids.weighted_rows(fine.reshape(-1, channels), index, weight).reshape(*places.shape[:2], channels)


def _up(x, axis):
    """Twice as many: fine[j] = sqrt(2) sum_i SYM6[j - 2 i + 5] x[i], the mirror image beyond the ends."""
    size, reach = x.shape[axis], len(SYM6) // 4
    x = jnp.take(x, _mirror(np.arange(-reach, size + reach), size), axis=axis)
    phases = []
    for phase in (0, 1):  # pixel i reaches fine texels 2 i - 5 ... 2 i + 6
        taps = [(i, SYM6[phase + 5 - 2 * i]) for i in range(-reach, reach + 1) if 0 <= phase + 5 - 2 * i < len(SYM6)]
        views = (tap * jax.lax.slice_in_dim(x, reach + i, reach + i + size, axis=axis) for i, tap in taps)
        phases.append(math.sqrt(2.0) * sum(views))
    shape = (*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return jnp.stack(phases, axis + 1).reshape(shape)


def _down(x, axis, size, margin):
    """The adjoint of `_up`, halved, of texels -2 margin ... 2 (size + margin) - 1: pixels 0 ... size - 1."""
    views = (
        tap * jax.lax.slice_in_dim(x, 2 * margin - 5 + i, 2 * margin - 5 + i + 2 * size - 1, stride=2, axis=axis)
        for i, tap in enumerate(SYM6)
    )
    return math.sqrt(0.5) * sum(views)


def augment(key: Key, image: Float[Array, 'b s s 3'], raw: Float[Array, 'b r r 3'], p, **options):
    """(image, raw) as the dual discriminator is to see them, both of a sample changed alike (EG3D).

    raw is resized up to the image and back down for it. `options` are those of `draw`. Samples that drew nothing come back bit
    for bit, so that p = 0 is the identity.
    """
    size = image.shape[1]
    plan = draw(key, image.shape[0], size, p, **options)
    both = apply(jnp.concatenate([image, fir.resize_aa(raw, size)], -1), plan)
    active = _each(plan.active)
    return jnp.where(active, both[..., :3], image), jnp.where(active, fir.resize_aa(both[..., 3:], raw.shape[1]), raw)


# ------------------------------------------------------------------------------------------------------------- controller


class Controller(NamedTuple):
    """The running probability, and the signs collected since it last moved."""

    p: jax.Array  # in [0, 1]
    signs: jax.Array  # sum over iterations of mean sign(D(real))
    count: jax.Array  # int32, iterations since the last move


def controller(p: float = 0.0) -> Controller:
    """The controller of a new run."""
    return Controller(jnp.float32(p), jnp.float32(0.0), jnp.int32(0))


def ada_update(p, sign_mean, batch: int, *, target: float = 0.6, interval: int = 4, images: float = 500_000):
    """p + sign(sign_mean - target) batch * interval / images, within [0, 1] (Sec. 3.1: p crosses [0, 1] in 500 k images).

    Args:
      sign_mean: mean of sign(D(real)) over the last `interval` iterations; above the target, D overfits.
      images: 100,000 after resuming from another run's weights.
    """
    step = jnp.sign(jnp.asarray(sign_mean, jnp.float32) - target) * (batch * interval / images)
    return jnp.clip(p + step, 0.0, 1.0)


def observe(state: Controller, sign_mean, batch: int, *, interval: int = 4, **options) -> Controller:
    """After an iteration's mean sign(D(real)): every `interval`-th moves p by `ada_update` and starts counting again."""
    signs, count = state.signs + sign_mean, state.count + 1
    due = count >= interval
    moved = ada_update(state.p, signs / count, batch, interval=interval, **options)
    return Controller(jnp.where(due, moved, state.p), jnp.where(due, 0.0, signs), jnp.where(due, 0, count))
