"""Guidance against closed forms, diffusers' rescaling and thresholding, and the one-batched-call promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.diffusion import guidance, schedules

KEYS = jax.random.split(jax.random.key(3), 3)
UNCOND, COND = (jax.random.normal(key, (2, 4, 5, 5, 3)) * (1.0 + i) for i, key in enumerate(KEYS[:2]))  # [B, V, H, W, C]


def test_cfg_at_zero_and_one():
    np.testing.assert_array_equal(guidance.cfg(UNCOND, COND, 0.0), UNCOND)
    np.testing.assert_allclose(guidance.cfg(UNCOND, COND, 1.0), COND, atol=1e-6)
    np.testing.assert_allclose(guidance.cfg(UNCOND, COND, 7.5), UNCOND + 7.5 * (COND - UNCOND), atol=1e-6)
    each = guidance.cfg(UNCOND, COND, jnp.array([0.0, 3.0]))
    np.testing.assert_array_equal(each[0], UNCOND[0])
    np.testing.assert_allclose(each[1], guidance.cfg(UNCOND, COND, 3.0)[1], atol=1e-6)


def test_rescale_at_zero_and_one():
    out = guidance.cfg(UNCOND, COND, 7.5)
    np.testing.assert_allclose(guidance.rescale(out, COND, 0.0), out, atol=1e-6)
    full = np.asarray(guidance.rescale(out, COND, 1.0))
    np.testing.assert_allclose(full.std(axis=(1, 2, 3, 4)), np.asarray(COND).std(axis=(1, 2, 3, 4)), rtol=1e-6)


def test_rescale_takes_the_views_of_an_object_jointly():
    """One factor for the object, so contrast between views stays; per view it would be levelled."""
    contrast = jnp.array([1.0, 2.0, 4.0, 8.0]).reshape(1, 4, 1, 1, 1)
    out = guidance.cfg(UNCOND, COND, 7.5) * contrast
    ratio = np.asarray(guidance.rescale(out, COND, 0.7) / out)
    for b in range(2):
        expected = 0.7 * np.asarray(COND[b]).std() / np.asarray(out[b]).std() + 0.3
        np.testing.assert_allclose(ratio[b], expected, rtol=1e-5)
    per_view = np.asarray(guidance.rescale(out, COND, 0.7, axes=(2, 3, 4)) / out)
    assert np.ptp(per_view[0, :, 0, 0, 0]) > 0.05


def test_rescale_equals_diffusers():
    torch = pytest.importorskip('torch')
    pipelines = pytest.importorskip('diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion')
    out, cond = guidance.cfg(UNCOND, COND, 7.5)[:, 0], COND[:, 0]
    theirs = pipelines.rescale_noise_cfg(torch.tensor(np.asarray(out)), torch.tensor(np.asarray(cond)), 0.7).numpy()
    samples = np.prod(out.shape[1:])  # torch divides by n - 1 in both deviations, which cancels
    np.testing.assert_allclose(guidance.rescale(out, cond, 0.7), theirs, rtol=1e-5, atol=1e-6, err_msg=str(samples))


def test_dynamic_threshold_equals_diffusers():
    diffusers, torch = pytest.importorskip('diffusers'), pytest.importorskip('torch')
    x0 = jnp.concatenate([COND * 3.0, UNCOND * 0.1])[:, 0]
    for largest in (1.0, 2.0, 100.0):
        scheduler = diffusers.DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=largest)
        theirs = scheduler._threshold_sample(torch.tensor(np.asarray(x0))).numpy()
        np.testing.assert_allclose(guidance.dynamic_threshold(x0, 0.9, largest), theirs, atol=1e-6)
    assert np.abs(guidance.dynamic_threshold(x0, 0.9, 100.0)).max() <= 1.0


def test_projection_follows_the_schedule():
    x0 = COND * 3.0
    table = schedules.linear()
    assert guidance.projection(table)(x0) is x0
    np.testing.assert_array_equal(guidance.projection(table.replace(clip=0.5))(x0), jnp.clip(x0, -0.5, 0.5))
    both = guidance.projection(table.replace(clip=0.5, threshold=(0.9, 2.0)))(x0)
    np.testing.assert_array_equal(both, guidance.dynamic_threshold(x0, 0.9, 2.0))


def test_guided_makes_one_call_with_objects_doubled():
    calls = []

    def predict(x, t, condition):
        calls.append((x.shape, t.shape, condition['text'].shape))
        text = condition['text'].mean((1, 2)).reshape((-1,) + (1,) * (x.ndim - 1))
        return x * text + t.reshape((-1,) + (1,) * (x.ndim - 1)) + condition['camera'][..., None, None, None]

    cond = {'text': jax.random.normal(KEYS[0], (2, 6, 8)), 'camera': jnp.arange(8.0).reshape(2, 4)}
    uncond = {'text': jnp.zeros((2, 6, 8)), 'camera': cond['camera']}
    for t in (jnp.int32(5), jnp.array([5, 9])):
        calls.clear()
        out = guidance.guided(predict, cond, uncond, 4.0)(COND, t)
        assert calls == [((4, 4, 5, 5, 3), (4,) if t.ndim else (), (4, 6, 8))]
        expected = guidance.cfg(predict(COND, t, uncond), predict(COND, t, cond), 4.0)
        np.testing.assert_allclose(out, expected, atol=1e-5)
    rescaled = guidance.guided(predict, cond, uncond, 4.0, phi=0.7)(COND, t)
    np.testing.assert_allclose(rescaled, guidance.rescale(expected, predict(COND, t, cond), 0.7), atol=1e-4)
    late = guidance.guided(predict, cond, uncond, lambda t: jnp.where(t > 6, 4.0, 1.0))(COND, t)
    np.testing.assert_allclose(late[0], predict(COND, t, cond)[0], atol=1e-5)
    np.testing.assert_allclose(late[1], expected[1], atol=1e-5)
