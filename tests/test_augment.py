"""Adaptive augmentation against NumPy: each operation alone, the resampling by a naive loop, shares at p, the controller."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.nets import augment, fir

SIZE, BATCH = 12, 2


def picture(size=SIZE, batch=BATCH, channels=6, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (batch, size, size, channels)).astype(np.float32)


apply = jax.jit(augment.apply)


def with_parts(**parts):
    """The identity with some parts given for all samples."""
    start = augment.identity(BATCH)
    return start._replace(
        **{
            name: jnp.broadcast_to(jnp.asarray(value, getattr(start, name).dtype), getattr(start, name).shape)
            for name, value in parts.items()
        }
    )


# -------------------------------------------------------------------------------------------------------- the Symlet


def test_the_filter_is_the_symlet_of_six_moments():
    taps, k = np.asarray(augment.SYM6), np.arange(12)
    assert abs(taps.sum() - 2**0.5) < 1e-10
    for lag in range(1, 6):
        assert abs(taps[2 * lag :] @ taps[: -2 * lag]) < 1e-10
    assert abs(taps @ taps - 1) < 1e-10
    for moment in range(6):  # the high-pass filter kills polynomials of degree 5
        assert abs(np.sum((-1.0) ** k * taps * (k - 5.5) ** moment)) < 1e-6


def naive_warp(image, matrix):
    """out(q) = image(matrix q) for one channel [S, S]: zero insertion, np.convolve, one pixel at a time."""
    taps, size = np.asarray(augment.SYM6, np.float64), len(image)
    lag = np.sum(np.arange(12) * taps) / 2**0.5 - 5  # texels by which the filter moves the picture

    def up(row):
        row = np.pad(row, 8, mode='reflect')
        zeros = np.zeros(2 * len(row))
        zeros[::2] = row
        full = np.convolve(zeros, taps) * 2**0.5  # texel j of the padded row lies at j + 5
        return full[5 + 16 : 5 + 16 + 2 * size]

    fine = np.apply_along_axis(up, 0, np.apply_along_axis(up, 1, np.asarray(image, np.float64)))
    wide = np.zeros((2 * size + 12, 2 * size + 12))
    for i in range(len(wide)):
        for j in range(len(wide)):
            q = np.asarray([(j - 6 - lag) / 2 - (size - 1) / 2, (i - 6 - lag) / 2 - (size - 1) / 2, 1.0])
            place = []
            for value in (matrix @ q)[:2] + (size - 1) / 2:
                while not 0 <= value <= size - 1:
                    value = -value if value < 0 else 2 * (size - 1) - value
                place.append(2 * value + lag)
            (x, y), (fx, fy) = np.floor(place).astype(int), np.asarray(place) - np.floor(place)
            at = lambda r, c: fine[min(r, 2 * size - 1), min(c, 2 * size - 1)]
            wide[i, j] = (1 - fy) * ((1 - fx) * at(y, x) + fx * at(y, x + 1)) + fy * (
                (1 - fx) * at(y + 1, x) + fx * at(y + 1, x + 1)
            )

    def down(row):
        return np.correlate(row, taps, mode='valid')[1 : 1 + 2 * size : 2] * 0.5**0.5

    return np.apply_along_axis(down, 0, np.apply_along_axis(down, 1, wide))


MATRICES = {
    'scale': np.diag([1 / 1.3, 1 / 1.3, 1.0]),
    'aniso': np.diag([1 / 1.4, 1.4, 1.0]),
    'rotate': np.asarray([[np.cos(0.7), -np.sin(0.7), 0], [np.sin(0.7), np.cos(0.7), 0], [0, 0, 1.0]]),
    'xfrac': np.asarray([[1, 0, -2.3], [0, 1, 1.6], [0, 0, 1.0]]),
}


@pytest.mark.parametrize('name', MATRICES)
def test_each_warp_is_the_naive_one(name):
    image = picture()
    out = apply(image, with_parts(warp=MATRICES[name], warped=True))
    expected = np.stack([naive_warp(image[1, :, :, c], MATRICES[name]) for c in range(2)], -1)
    np.testing.assert_allclose(out[1, :, :, :2], expected, atol=2e-5)
    assert np.abs(expected - image[1, :, :, :2]).max() > 0.1


def test_matrices_are_those_moves():
    one = jnp.ones(1)
    np.testing.assert_allclose(augment.scaling(one / 1.3, one / 1.3)[0], MATRICES['scale'], atol=1e-6)
    np.testing.assert_allclose(augment.rotation(0.7 * one)[0], MATRICES['rotate'], atol=1e-6)
    np.testing.assert_allclose(augment.translation(-2.3 * one, 1.6 * one)[0], MATRICES['xfrac'], atol=1e-6)


def test_a_smooth_picture_moves_as_its_formula_says():
    """Cosines that continue beyond the edge as their mirror image, so the result is known at every pixel."""
    size, angle = 32, 0.5
    wave = lambda x, y: np.cos(np.pi * 2 * x / (size - 1)) * np.cos(np.pi * 3 * y / (size - 1))
    index = np.arange(size, dtype=np.float64)
    image = np.repeat(wave(index[None, :], index[:, None])[None, :, :, None], 3, -1).astype(np.float32)
    matrix = np.asarray([[np.cos(angle), -np.sin(angle), 4.25], [np.sin(angle), np.cos(angle), -1.5], [0, 0, 1]]) / 1.1
    matrix[2, 2] = 1.0
    x, y = np.meshgrid(index - (size - 1) / 2, index - (size - 1) / 2)
    there = np.einsum('ij,jyx->iyx', matrix, np.stack([x, y, np.ones_like(x)])) + (size - 1) / 2
    out = jax.jit(augment.warp)(image, matrix[None].astype(np.float32))
    np.testing.assert_allclose(out[0, :, :, 0], wave(there[0], there[1]), atol=6e-3)


def test_whole_moves_by_the_warp_lose_nothing():
    image = picture(16)
    matrix = np.asarray([[1, 0, -3.0], [0, 1, 2.0], [0, 0, 1]])
    out = apply(image, with_parts(warp=matrix, warped=True))
    np.testing.assert_allclose(out[:, 4:8, 9:10], image[:, 6:10, 6:7], atol=2e-6)


# ------------------------------------------------------------------------------------------------- pixels and colours


@pytest.mark.parametrize('turns', [0, 1, 2, 3])
def test_flips_and_quarter_turns(turns):
    image = picture()
    np.testing.assert_array_equal(apply(image, with_parts(turns=turns)), np.rot90(image, turns, (1, 2)))
    flipped = np.rot90(image[:, :, ::-1], turns, (1, 2))  # the flip comes first
    np.testing.assert_array_equal(apply(image, with_parts(flip=True, turns=turns)), flipped)


def test_a_whole_shift_brings_the_mirror_image_in():
    image = picture()
    padded = np.pad(image, ((0, 0), (4, 4), (4, 4), (0, 0)), mode='reflect')
    np.testing.assert_array_equal(apply(image, with_parts(shift=(3, -2))), padded[:, 6 : 6 + SIZE, 1 : 1 + SIZE])


def colour_by_numpy(name, value, pixels):
    grey = pixels.mean(-1, keepdims=True)
    if name == 'brightness':
        return pixels + value
    if name == 'contrast':
        return pixels * value
    if name == 'lumaflip':
        return pixels - 2 * grey
    if name == 'saturation':
        return grey + value * (pixels - grey)
    axis, rest = np.ones(3) / 3**0.5, pixels - grey  # hue: in the plane across the grey axis
    return grey + np.cos(value) * rest + np.sin(value) * np.cross(np.broadcast_to(axis, rest.shape), rest)


class Fixed:
    """In place of random numbers: one operation on, with one value."""

    def __init__(self, name, value):
        self.name, self.value = name, value

    def on(self, name, chance=None):
        return jnp.full(BATCH, name == self.name)

    def number(self, most):
        return jnp.full(BATCH, self.value if np.isscalar(self.value) else 0.0)


@pytest.mark.parametrize(
    'name, drawn, acting',
    [
        ('brightness', 0.3, 0.3),
        ('contrast', 0.7, 2**0.7),
        ('lumaflip', 0.0, None),
        ('hue', 1.1, 1.1),
        ('saturation', -0.8, 2**-0.8),
    ],
)
def test_each_colour_operation_is_its_formula(monkeypatch, name, drawn, acting):
    monkeypatch.setattr(jax.random, 'bernoulli', lambda key, p, shape: jnp.ones(shape, bool))
    fixed = Fixed(name, drawn)
    keys = iter(jax.random.split(jax.random.key(0), 9))
    colour, coloured = augment._draw_colour(fixed.on, fixed.number, fixed.number, keys, augment.Strengths())
    image = picture()
    out = np.asarray(apply(image, with_parts()._replace(colour=colour, coloured=coloured)))
    expected = colour_by_numpy(name, acting, image.reshape(BATCH, SIZE, SIZE, 2, 3))
    np.testing.assert_allclose(out, expected.reshape(image.shape), atol=1e-6)
    assert np.abs(out - image).max() > 0.1


def test_a_third_of_a_turn_of_hue_permutes_the_channels():
    third = augment.hue(jnp.asarray([2 * np.pi / 3]))[0]
    np.testing.assert_allclose(third, [[0, 0, 1], [1, 0, 0], [0, 1, 0]], atol=1e-6)


# --------------------------------------------------------------------------------------------------------------- draws


@pytest.fixture(scope='module')
def draws():
    run = jax.jit(lambda key, p: augment.draw(key, 20000, 64, p))
    return {p: jax.tree.map(np.asarray, run(jax.random.key(3), p)) for p in (0.0, 0.3, 1.0)}, run


def test_shares_follow_p(draws):
    plans, run = draws
    assert run._cache_size() == 1  # p is traced
    near = lambda flags, share: abs(np.mean(flags) - share) < 4 * np.sqrt(share * (1 - share) / 20000) + 1e-9
    for p, plan in plans.items():
        none = 1 - (1 - p) ** 4  # scale, squeeze, shift, and one of two rotations
        assert near(plan.flip, 0.5 * p) and near(plan.turns == 1, 0.25 * p) and near(plan.turns == 3, 0.25 * p), p
        assert near(plan.warped, none) and near(plan.coloured, 1 - (1 - p) ** 4 * (1 - 0.5 * p)), (
            p
        )  # the luma flip tosses a coin
        assert near(np.any(plan.shift != 0, -1), p * (1 - (1 / 16) ** 2)) or p == 0
    assert not plans[0.0].active.any()
    assert plans[1.0].active.all()


def test_moves_have_their_strengths(draws):
    plan = draws[0][1.0]
    assert np.abs(plan.shift).max() == 8 and abs(plan.shift.std() - 16 / 12**0.5) < 0.2
    _, values, _ = np.linalg.svd(plan.warp[:, :2, :2].astype(np.float64))
    log2 = np.log2(values)
    assert abs(log2.mean(-1).std() - 0.2) < 0.01  # scale
    assert abs((0.5 * (log2[:, 0] - log2[:, 1])).mean() - 0.2 * (2 / np.pi) ** 0.5) < 0.01  # squeeze
    offset = np.linalg.solve(plan.warp[:, :2, :2], plan.warp[:, :2, 2:])[..., 0]
    assert abs(offset.std() - 8) < 0.2 and abs(offset.mean()) < 0.3
    angle = np.arctan2(plan.warp[:, 1, 0] - plan.warp[:, 0, 1], plan.warp[:, 0, 0] + plan.warp[:, 1, 1])
    assert abs(angle.std() - np.pi / 3**0.5) < 0.03
    grey = plan.colour[:, :, :3].sum((1, 2)) / 3  # contrast, its sign that of the luma flip
    assert abs((grey < 0).mean() - 0.5) < 0.02 and abs(np.log2(np.abs(grey)).std() - 0.5) < 0.02
    brightness = plan.colour[:, :, 3].mean(-1) / grey
    assert abs(brightness.std() - 0.2) < 0.01
    spread = np.linalg.det(plan.colour[:, :, :3].astype(np.float64) / grey[:, None, None])
    assert abs(0.5 * np.log2(spread).std() - 1.0) < 0.03  # saturation, once for each of the two colour directions


def test_one_operation_alone_and_unknown_ones():
    only = augment.draw(jax.random.key(0), 64, 16, 1.0, ('rotate',))
    assert only.warped.all() and not (only.coloured.any() or only.flip.any() or only.turns.any() or only.shift.any())
    np.testing.assert_allclose(np.linalg.det(only.warp), 1.0, atol=1e-5)
    with pytest.raises(ValueError, match="'cutout'"):
        augment.draw(jax.random.key(0), 64, 16, 1.0, ('cutout',))


# ----------------------------------------------------------------------------------------------------------- the pair


@pytest.fixture(scope='module')
def pair():
    def run(image, raw, p):
        def total(image, raw):
            out = augment.augment(jax.random.key(5), image, raw, p)
            return sum(jnp.sum(jnp.sin(jnp.arange(x.size)).reshape(x.shape) * x) for x in out), out

        return jax.value_and_grad(total, (0, 1), has_aux=True)(image, raw)

    return jax.jit(run)


def test_p_0_is_the_identity_bit_for_bit(pair):
    image, raw = picture(32, 8, 3), picture(16, 8, 3, 1)
    (_, out), gradient = pair(image, raw, 0.0)
    for before, got, slope in zip((image, raw), out, gradient):
        np.testing.assert_array_equal(got, before)
        np.testing.assert_allclose(slope, np.sin(np.arange(before.size)).reshape(before.shape), atol=1e-5)


def test_both_pictures_change_alike_and_gradients_are_those_of_the_change(pair):
    index = np.linspace(0, 1, 32)
    image = np.stack([index[:, None] * np.ones(32), index[None, :] * np.ones((32, 1)), np.outer(index, index)], -1)
    image = np.tile(image[None], (8, 1, 1, 1)).astype(np.float32)
    raw = np.asarray(fir.resize_aa(image, 16))
    (value, out), gradient = pair(image, raw, 1.0)
    assert np.abs(np.asarray(out[0]) - image).max() > 0.3
    np.testing.assert_allclose(fir.resize_aa(out[0], 16)[:, 3:-3, 3:-3], out[1][:, 3:-3, 3:-3], atol=0.15)
    assert all(np.isfinite(slope).all() for slope in gradient)
    step = [1e-2 * picture(32, 8, 3, 2), 1e-2 * picture(16, 8, 3, 3)]
    (moved, _), _ = pair(image + step[0], raw + step[1], 1.0)
    linear = sum(np.sum(np.asarray(slope, np.float64) * d) for slope, d in zip(gradient, step))
    assert abs(float(moved) - float(value) - linear) < 2e-3 * max(1.0, abs(linear))  # affine: exact but for rounding


# -------------------------------------------------------------------------------------------------------- controller


def test_the_controller_over_100_iterations():
    rng, batch = np.random.default_rng(0), 32
    observe = jax.jit(lambda state, sign: augment.observe(state, sign, batch, images=20_000))
    state, p, signs = augment.controller(0.01), 0.01, []
    for iteration in range(100):
        logits = rng.normal(1.2 if iteration < 60 else 0.0, 1.0, batch).astype(np.float32)
        state = observe(state, np.sign(logits).mean())
        signs.append(np.sign(logits).mean())
        if len(signs) == 4:
            p = min(max(p + np.sign(np.mean(signs) - 0.6) * 32 * 4 / 20_000, 0.0), 1.0)
            signs = []
        assert abs(float(state.p) - p) < 1e-6, iteration
    assert p == 0.0 or p > 0.01


def test_the_step_of_the_controller():
    assert abs(float(augment.ada_update(0.5, 0.7, 32)) - (0.5 + 32 * 4 / 500_000)) < 1e-7
    assert abs(float(augment.ada_update(0.5, 0.5, 64, images=100_000)) - (0.5 - 64 * 4 / 100_000)) < 1e-7
    assert float(augment.ada_update(0.0, -1.0, 32)) == 0.0 and float(augment.ada_update(1.0, 1.0, 32)) == 1.0
