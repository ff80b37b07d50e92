"""Times of score distillation: their range, their schedules at known steps, and the same draws on one and on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from t3d.core import prng
from t3d.diffusion import schedules, timesteps

SCHEDULE = schedules.scaled_linear()
SHORT = schedules.cosine(50)


def drawn(keys, schedule=SCHEDULE, **limits):
    return timesteps.draw(keys, schedule, (2, 3), **limits)


def test_times_are_uniform_and_hold_both_ends():
    keys = timesteps.view_keys(prng.key(0), jnp.arange(40_000))
    t = np.asarray(timesteps.draw(keys, SCHEDULE, ())[0])
    assert (t.min(), t.max()) == (20, 980) and t.dtype == np.int32
    counts = np.bincount(t - 20, minlength=961)
    assert abs((counts - counts.mean()) ** 2 / counts.mean()).sum() < 961 + 5.0 * np.sqrt(2 * 961)  # chi squared
    t = np.asarray(timesteps.draw(keys, SHORT, (), low=100, high=500)[0])
    assert sorted(set(t)) == list(range(5, 26))


def test_noise_is_normal_and_apart_from_t():
    t, noise = drawn(timesteps.view_keys(prng.key(2), jnp.arange(4000)))
    assert noise.shape == (4000, 2, 3) and noise.dtype == jnp.float32
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1.0) < 0.02
    assert abs(np.corrcoef(t, noise[:, 0, 0])[0, 1]) < 0.06


def test_a_view_draws_the_same_on_one_and_on_eight_devices_and_in_any_batch():
    key, index = prng.key(11), jnp.arange(16)
    draw = jax.jit(lambda index: drawn(timesteps.view_keys(key, index)))
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    spread = draw(jax.device_put(index, NamedSharding(mesh, PartitionSpec('data'))))
    for one, many in zip(draw(index), spread, strict=True):
        np.testing.assert_array_equal(one, many)
    np.testing.assert_array_equal(draw(index[5:9])[1], spread[1][5:9])
    assert len(np.unique(np.asarray(spread[1])[:, 0, 0])) == 16


def test_the_range_moves_with_the_step_in_one_program():
    keys, traces = timesteps.view_keys(prng.key(0), jnp.arange(2000)), []

    @jax.jit
    def draw(step):
        traces.append(step)
        return timesteps.draw(keys, SCHEDULE, (), high=timesteps.anneal_step(step, 980, 500, 5000))[0]

    assert draw(4999).max() > 960 and 490 < draw(5000).max() <= 500
    assert len(traces) == 1


def test_annealed_times_at_known_steps():
    assert timesteps.anneal_sqrt(0, 400) == 980.0
    assert timesteps.anneal_sqrt(100, 400) == 500.0  # half of the way after a quarter of the steps
    assert timesteps.anneal_sqrt(400, 400) == timesteps.anneal_sqrt(999, 400) == 20.0


def test_the_times_of_dreamgaussian():
    """980 at first, 20 at last, round(1000 (1 - step / 500)) between; renders grow at steps 150 and 300."""
    t = np.asarray([int(timesteps.linear(step, 500)) for step in range(501)])
    assert (t[0], t[500], t[600 - 350]) == (980, 20, 500)
    np.testing.assert_array_equal(t, np.clip(1000 - 2 * np.arange(501), 20, 980))
    stages = [timesteps.stage(step, 500, (0.3, 0.6)) for step in range(500)]
    assert [stages.index(k) for k in (0, 1, 2)] == [0, 150, 300] and stages == sorted(stages)


@pytest.mark.parametrize('part, expected', [(0, 0), (20, 1), (980, 49), (1000, 49)])
def test_thousandths_of_another_length(part, expected):
    assert timesteps.of_thousandths(SHORT, part) == expected
