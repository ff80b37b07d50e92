"""Perp-Neg against products written out sample by sample, its weights at known angles, its severity, and the Janus toy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from t3d.core import prng
from t3d.diffusion import distill, guidance, perp_neg, schedules, view_prompts

B, SHAPE = 3, (4, 5, 2)
RANDOM = np.random.default_rng(5)
OUTPUTS = jnp.asarray(RANDOM.normal(size=(4, B, *SHAPE)), jnp.float32)
WEIGHTS = jnp.asarray(-RANDOM.uniform(0.2, 2.0, (2, B)), jnp.float32)


def by_hand(outputs, weights, scale):
    """[B, ...] in float64, one sample and one negative at a time."""
    outputs, out = np.asarray(outputs, np.float64), []
    for b in range(outputs.shape[1]):
        positive = outputs[0, b] - outputs[1, b]
        steered = positive.copy()
        for k in range(len(weights)):
            negative = outputs[2 + k, b] - outputs[1, b]
            steered += weights[k, b] * (negative - np.sum(negative * positive) / np.sum(positive**2) * positive)
        out.append(outputs[1, b] + scale * steered)
    return np.stack(out)


def network(x, t, condition):
    """Every sample with what is its own: a mix of rows would show."""
    t = jnp.asarray(t, jnp.float32).reshape(-1, 1, 1, 1) / 100.0
    return jnp.sin(x * condition['a'] + t) + condition['b'] * x**2


def conditions(count):
    a, b = (jnp.asarray(RANDOM.normal(size=(4, count, 1, 1, 1)), jnp.float32) for _ in range(2))
    return {'a': a, 'b': b}


def test_the_combination_is_the_one_written_out():
    np.testing.assert_allclose(perp_neg.combined(OUTPUTS, WEIGHTS, 7.0), by_hand(OUTPUTS, WEIGHTS, 7.0), rtol=1e-5, atol=2e-5)


def test_what_is_subtracted_is_across_the_positive_one_of_each_sample():
    positive = (OUTPUTS[0] - OUTPUTS[1]).astype(jnp.bfloat16)
    across = np.asarray(perp_neg.perpendicular(OUTPUTS[2:] - OUTPUTS[1], positive), np.float64).reshape(2, B, -1)
    along = np.asarray(positive, np.float64).reshape(B, -1)
    cosine = np.einsum('kbn,bn->kb', across, along) / np.linalg.norm(across, axis=-1) / np.linalg.norm(along, axis=-1)
    assert np.abs(cosine).max() < 1e-6
    assert np.isfinite(perp_neg.perpendicular(OUTPUTS[2:], jnp.zeros_like(OUTPUTS[0]))).all()


def test_without_weight_and_with_parallel_negatives_it_is_plain_guidance():
    plain = guidance.cfg(OUTPUTS[1], OUTPUTS[0], 3.0)
    np.testing.assert_allclose(perp_neg.combined(OUTPUTS, 0.0 * WEIGHTS, 3.0), plain, atol=1e-6)
    parallel = OUTPUTS.at[2:].set(OUTPUTS[1] + jnp.array([-0.7, 1.4]).reshape(2, 1, 1, 1, 1) * (OUTPUTS[0] - OUTPUTS[1]))
    np.testing.assert_allclose(perp_neg.combined(parallel, WEIGHTS, 3.0), plain, atol=1e-5)


def test_one_call_holds_all_rows_each_with_its_own_latents_and_weights():
    rows, x, t, calls = conditions(B), OUTPUTS[0], jnp.array([5, 300, 999]), []

    def predict(x, t, condition):
        calls.append(x.shape)
        return network(x, t, condition)

    found = perp_neg.guided(predict, rows, WEIGHTS, 20.0)(x, t)
    assert calls == [(4 * B, *SHAPE)]
    each = jnp.stack([network(x, t, jax.tree.map(lambda leaf, row=row: leaf[row], rows)) for row in range(4)])
    np.testing.assert_allclose(found, by_hand(each, WEIGHTS, 20.0), rtol=1e-4, atol=1e-4)
    by_time = perp_neg.guided(network, rows, WEIGHTS, lambda t: jnp.where(t > 100, 20.0, 0.0))(x, t)
    np.testing.assert_allclose(by_time[1:], found[1:], atol=1e-5)
    np.testing.assert_allclose(by_time[0], each[1, 0], atol=1e-6)


def test_a_permuted_batch_gives_permuted_outputs_and_one_alone_its_own():
    rows, x, t, order = conditions(B), OUTPUTS[0], jnp.array([5, 300, 999]), np.array([2, 0, 1])
    found = perp_neg.guided(network, rows, WEIGHTS, 9.0)(x, t)
    moved = jax.tree.map(lambda leaf: leaf[:, order], rows)
    permuted = perp_neg.guided(network, moved, WEIGHTS[:, order], 9.0)(x[order], t[order])
    np.testing.assert_allclose(permuted, found[order], rtol=1e-6, atol=1e-6)
    for b in range(B):
        alone = {name: leaf[:, b : b + 1] for name, leaf in rows.items()}
        one = perp_neg.guided(network, alone, WEIGHTS[:, b : b + 1], 9.0)(x[b : b + 1], t[b])
        np.testing.assert_allclose(one[0], found[b], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    'degrees, front, side, shares',
    [
        (90.001, 1.574, 0.001, (0, 1, 0, 0)),  # r = 0 before 90 degrees, 1 after
        (89.999, 1.574, 0.0, (0, 1, 0, 0)),
        (45.0, 0.689, 0.689, (0.5, 0.5, 0, 0)),
        (0.0, 0.0, 1.574, (1, 0, 0, 0)),
        (135.0, 1.746, 0.173, (0, 0.5, 0.5, 0)),
        (180.0, 1.967, 0.394, (0, 0, 1, 0)),
    ],
)
def test_weights_at_known_angles(degrees, front, side, shares):
    for sign in (1.0, -1.0):
        rows = perp_neg.by_view(jnp.deg2rad(jnp.array([sign * degrees, sign * degrees + 360.0])), jnp.zeros(2))
        np.testing.assert_allclose(rows.weights, -np.array([[front] * 2, [side] * 2]), atol=1e-3)
        np.testing.assert_allclose(rows.shares[0], [shares] * 2, atol=1e-4)
        np.testing.assert_array_equal(rows.shares[1:, 0], np.eye(4)[:2])
    above = perp_neg.by_view(jnp.deg2rad(jnp.array([degrees])), jnp.deg2rad(jnp.array([61.0])))
    assert not np.any(above.weights)
    np.testing.assert_array_equal(above.shares[0, 0], np.eye(4)[3])


def test_rows_are_positive_unconditional_front_and_side():
    features, none = RANDOM.normal(size=(2, 4, 3, 5)).astype(np.float32), np.zeros((2, 3, 5), np.float32)
    shares = perp_neg.by_view(jnp.deg2rad(jnp.array([135.0, 10.0])), jnp.deg2rad(jnp.array([0.0, 80.0]))).shares
    rows = perp_neg.rows(features, none, shares)
    assert rows.shape == (4, 2, 3, 5) and not np.any(rows[1])
    np.testing.assert_allclose(rows[0, 0], 0.5 * features[0, 1] + 0.5 * features[0, 2], atol=1e-6)
    np.testing.assert_allclose(rows[0, 1], features[1, 3], atol=1e-6)
    np.testing.assert_allclose(rows[2], features[:, view_prompts.FRONT], atol=1e-6)
    np.testing.assert_allclose(rows[3], features[:, view_prompts.SIDE], atol=1e-6)


def unit(angle):
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)


def test_severity_at_its_ends_and_its_order():
    cache = perp_neg.visited(perp_neg.empty_cache(4, 2), jnp.array([1, 2]), unit(jnp.zeros(2)), jnp.array([0.3, -2.0]))
    ids, same = jnp.array([1, 1, 1, 0]), unit(jnp.zeros(4))
    azimuth = jnp.array([0.3, 0.3 + jnp.pi, 0.3 + 0.5 * jnp.pi, 1.0])
    np.testing.assert_allclose(perp_neg.severity(same, azimuth, cache, ids), [0.0, 1.0, 0.5, 0.5], atol=1e-6)
    assert perp_neg.severity(same, azimuth, cache, ids)[0] == 0.0
    steps = jnp.linspace(0.0, jnp.pi, 13)
    one = jnp.full(13, 2)
    apart = perp_neg.severity(unit(jnp.zeros(13)), -2.0 - steps, cache, one)
    unlike = perp_neg.severity(unit(steps), jnp.full(13, -2.0 + jnp.pi), cache, one)
    assert np.all(np.diff(apart) > 0.0) and np.all(np.diff(unlike) < 0.0)
    assert min(apart.min(), unlike.min()) >= 0.0 and max(apart.max(), unlike.max()) <= 1.0
    stretched = perp_neg.severity(
        unit(jnp.arccos(jnp.array([0.4, 0.75]))), jnp.full(2, -2.0 + jnp.pi), cache, one[:2], (0.5, 1.0)
    )
    np.testing.assert_allclose(stretched, [0.0, 0.5], atol=1e-6)
    assert not np.any(jax.grad(lambda f: perp_neg.severity(f, azimuth, cache, ids).sum())(same))
    np.testing.assert_allclose(perp_neg.adapted(WEIGHTS[:, :2], jnp.array([0.0, 1.0])), WEIGHTS[:, :2] * np.array([1.0, 4.0]))


def test_the_cache_keeps_the_last_visit_on_any_number_of_devices():
    ids = RANDOM.integers(0, 5, 16)
    features, azimuth = RANDOM.normal(size=(16, 3)).astype(np.float32), RANDOM.uniform(-3, 3, 16).astype(np.float32)
    start = perp_neg.visited(perp_neg.empty_cache(7, 3), jnp.array([6, 0]), jnp.ones((2, 3)), jnp.array([1.0, 2.0]))
    expected = jax.tree.map(np.array, start)
    for b in range(16):  # one after another
        expected.features[ids[b]], expected.azimuth[ids[b]], expected.valid[ids[b]] = features[b], azimuth[b], True
    assert len(set(ids)) == 5 and not expected.valid[5]
    update = jax.jit(perp_neg.visited)
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    spread = [jax.device_put(array, NamedSharding(mesh, PartitionSpec('data'))) for array in (ids, features, azimuth)]
    for found in (update(start, ids, features, azimuth), update(start, *spread)):
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize('weight, front, back', [(0.0, 0.424, 0.990), (1.0, 0.832, 0.594), (2.0, 1.244, 0.262)])
def test_a_view_prompt_that_leans_to_the_front_finds_the_back(weight, front, back):
    """Orthonormal pictures: subject, front, back; the prior of the back view is N(subject + .7 front + .3 back, .05^2)."""
    schedule, views = schedules.scaled_linear(), 64
    means = jnp.array([[1.0, 0.7, 0.3], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])  # positive, unconditional, negative

    def predict(x, t, mean):
        signal, sigma = schedules.levels_like(schedule, t, x)
        return sigma * (x - signal * mean) / (signal**2 * 0.05**2 + sigma**2)

    rows = jnp.broadcast_to(means[:, None], (3, views, 3))
    denoise = perp_neg.guided(predict, rows, jnp.full((1, views), -weight), 1.0)

    def step(k, z):
        key_t, key_noise = jax.random.split(jax.random.fold_in(prng.key(2), k))
        t, noise = (
            jax.random.randint(key_t, (views,), 20, 981, jnp.int32),
            jax.random.normal(key_noise, (views, 3), jnp.float32),
        )
        gradient, _ = distill.sds_gradient(denoise, schedule, jnp.broadcast_to(z, (views, 3)), t, noise)
        return z - 0.5 * jnp.mean(gradient, 0)

    z = np.asarray(jax.jit(lambda: jax.lax.fori_loop(0, 200, step, jnp.zeros(3)))())
    assert abs(np.linalg.norm(z - [1.0, 1.0, 0.0]) - front) < 1e-2
    assert abs(np.linalg.norm(z - [1.0, 0.0, 1.0]) - back) < 1e-2
