import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.geom import triplanes


@pytest.mark.parametrize('plane_axes', ['legacy', 'orthogonal'])
def test_sampling_matches_the_reference(golden, plane_axes):
    data = golden('plane_sample')
    padded = triplanes.pad(jnp.moveaxis(data['planes'], 2, -1))
    bound = 0.5 * float(data['box_warp'])
    sample = functools.partial(triplanes.sample, bound=bound, plane_axes=plane_axes)
    sample = jax.jit(sample, compiler_options={'xla_backend_optimization_level': 3})  # as users run it: one rounding less
    np.testing.assert_allclose(sample(padded, jnp.asarray(data['pts'])), data[plane_axes], atol=1e-6)
    mean = triplanes.aggregate(padded, jnp.asarray(data['pts']), bound, plane_axes)
    np.testing.assert_allclose(mean, data[plane_axes].mean(1), atol=2e-6)


@pytest.mark.parametrize('plane_axes', ['legacy', 'orthogonal'])
def test_values_and_gradient_match_grid_sample(plane_axes):
    torch = pytest.importorskip('torch')
    peer = pytest.importorskip('peers.torch_renderer')
    generator = np.random.default_rng(0)
    planes = generator.normal(size=(2, 3, 4, 10, 10)).astype(np.float32)
    points = generator.uniform(-1.0, 1.0, (2, 80, 3)).astype(np.float32)
    scale = generator.normal(size=(2, 80, 4)).astype(np.float32)
    theirs, where = torch.tensor(planes, requires_grad=True), torch.tensor(points, requires_grad=True)
    value = peer.sample_planes(theirs, where, 0.8, plane_axes)
    (value * torch.tensor(scale)).sum().backward()

    def ours(planes, points):
        value = triplanes.aggregate(triplanes.pad(planes), points, 0.8, plane_axes)
        return jnp.sum(value * scale), value

    (_, got), (to_planes, to_points) = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(
        jnp.moveaxis(planes, 2, -1), jnp.asarray(points)
    )
    np.testing.assert_allclose(got, value.detach(), atol=1e-6)
    np.testing.assert_allclose(jnp.moveaxis(to_planes, -1, 2), theirs.grad, atol=1e-5)
    inside = np.abs(points).max(-1) < 0.8 * 0.9 - 1e-3  # torch differentiates the zero border too; so do we, to its last texel
    np.testing.assert_allclose(to_points[inside], where.grad.numpy()[inside], atol=1e-4)


@pytest.mark.parametrize('plane_axes, third', [('orthogonal', 'zy'), ('legacy', 'zx')])
def test_one_lit_plane_shows_its_axes(plane_axes, third):
    for plane, (wide, high) in enumerate(['xy', 'xz', third]):
        ramp = np.zeros((3, 8, 8, 2), np.float32)
        ramp[plane, :, :, 0], ramp[plane, :, :, 1] = np.arange(8)[None, :], np.arange(8)[:, None]
        point = jnp.array([[0.1, -0.35, 0.55]])
        value = triplanes.sample_sum(triplanes.pad(jnp.asarray(ramp)), point, 1.0, plane_axes)[0]
        at = dict(zip('xyz', 4.0 * (np.asarray(point[0]) + 1.0) - 0.5))
        np.testing.assert_allclose(value, [at[wide], at[high]], atol=1e-5)


def test_outside_the_box_is_exactly_zero():
    padded = triplanes.pad(jnp.ones((3, 6, 6, 2)))
    points = jnp.array([[1.5, 1.5, 1.5], [-9.0, 7.0, -3.0], [0.0, 0.0, 0.0]])
    value = triplanes.sample_sum(padded, points, 1.0)
    np.testing.assert_array_equal(value[:2], 0.0)
    np.testing.assert_allclose(value[2], 3.0, atol=1e-6)


def test_pack_and_unpack_are_planes_major():
    image = jnp.arange(2 * 4 * 4 * 6, dtype=jnp.float32).reshape(2, 4, 4, 6)
    planes = triplanes.unpack(image)
    assert planes.shape == (2, 3, 4, 4, 2)
    np.testing.assert_array_equal(planes[1, 2, 3, 1], image[1, 3, 1, 4:6])
    np.testing.assert_array_equal(triplanes.pack(planes), image)
    with pytest.raises(ValueError, match='7 channels.*3 planes'):
        triplanes.unpack(jnp.zeros((4, 4, 7)))


@pytest.mark.parametrize('lead', [(), (2,), (2, 3)])
def test_leading_axes_are_free(lead):
    planes = jax.random.normal(jax.random.key(0), (*lead, 3, 5, 5, 2))
    points = jax.random.uniform(jax.random.key(1), (*lead, 7, 3), minval=-1.0)
    padded = triplanes.pad(planes)
    per_plane = triplanes.sample(padded, points, 1.0)
    assert per_plane.shape == (*lead, 3, 7, 2)
    total = triplanes.sample_sum(padded, points, 1.0)
    np.testing.assert_allclose(total, per_plane.sum(-3), atol=1e-6)
    mapped = triplanes.map_sum(lambda scale, rows: scale * rows, jnp.float32(2.0), padded, points, 1.0, block=4)
    np.testing.assert_allclose(mapped, 2.0 * total, atol=1e-5)


def test_the_gradient_of_a_gradient_is_finite():
    planes = jax.random.normal(jax.random.key(0), (3, 5, 5, 2))
    points = jax.random.uniform(jax.random.key(1), (9, 3), minval=-0.9, maxval=0.9)
    value = lambda planes, points: jnp.sum(jnp.sin(triplanes.sample_sum(triplanes.pad(planes), points, 1.0)))
    slope = lambda planes: jnp.sum(jax.grad(value, 1)(planes, points) ** 2)
    second = jax.jit(jax.grad(slope))(planes)
    assert jnp.isfinite(second).all() and jnp.abs(second).max() > 0


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match="'eg3d': choose one of .*legacy.*orthogonal"):
        triplanes.project(jnp.zeros((1, 3)), 1.0, 'eg3d')
