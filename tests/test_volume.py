import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.fields import triplane_field
from t3d.geom import cameras, triplanes, volume
from t3d.geom.rays import Rays, ray_box


def view(size, radius=3.0, fov=0.8, azimuth=0.4, elevation=0.3):
    rays = cameras.rays(cameras.orbit(azimuth, elevation, radius, fov), size, size)
    return jax.tree.map(lambda leaf: leaf.reshape(1, -1, 3), rays)


def solid(inside, density, colour=(0.2, 0.6, 0.9)):
    def field(points, directions):
        return jnp.where(inside(points), density, 0.0), jnp.broadcast_to(jnp.array(colour), points.shape)

    return field


def render(field, rays, key=None, **options):
    return jax.jit(lambda rays: volume.render(field, rays, key, **options))(rays)


def random_case(key, batch=2, size=12, channels=8, outputs=5, rays=40):
    keys = jax.random.split(key, 3)
    params = triplane_field.init(keys[0], channels, hidden=16, outputs=outputs, equalised=False)
    planes = 2.0 * jax.random.normal(keys[1], (batch, 3, size, size, channels))
    bundle = jax.tree.map(lambda leaf: jnp.tile(leaf[:, :rays], (batch, 1, 1)), view(8, radius=2.7, fov=0.4))
    return params, planes, bundle


def test_matches_the_reference(golden):
    data = {name: jnp.asarray(value) for name, value in golden('render_fixed').items()}
    params = {
        'hidden': {'kernel': data['param/net.0.weight'].T, 'bias': data['param/net.0.bias']},
        'out': {'kernel': data['param/net.2.weight'].T, 'bias': data['param/net.2.bias']},
    }
    field = triplane_field.make(params, jnp.moveaxis(data['planes'], 2, -1), bound=0.6, plane_axes='legacy')
    u_coarse = jnp.swapaxes(data['u_strat'][..., 0], 1, 2)
    u_fine = jnp.sort(jnp.swapaxes(data['u_imp'].reshape(2, 36, 9), 1, 2), 1)  # a set of samples has no order
    out = jax.jit(
        lambda rays: volume.render_at(
            field, rays, u_coarse, u_fine, near=2.0, far=3.4, density_activation=triplane_field.eg3d_density
        )
    )(Rays(data['origins'], data['dirs']))
    np.testing.assert_allclose(2.0 * out.features - 1.0, data['feat'], atol=1e-5)
    np.testing.assert_allclose(out.depth, data['depth'][..., 0], atol=1e-5)
    np.testing.assert_allclose(out.opacity, data['weights'][..., 0], atol=1e-5)


@pytest.mark.parametrize('fine, plane_axes', [(0, 'orthogonal'), (7, 'orthogonal'), (7, 'legacy')])
def test_values_and_gradients_match_the_torch_peer(fine, plane_axes):
    torch = pytest.importorskip('torch')
    peer = pytest.importorskip('peers.torch_renderer')
    params, planes, rays = random_case(jax.random.key(0))
    u_coarse, u_fine = volume.draws(jax.random.key(1), (2, 40), 9, fine)
    scale = jax.random.normal(jax.random.key(2), (2, 40, 5))

    def ours(params, planes):
        field = triplane_field.make(params, planes, bound=0.6, plane_axes=plane_axes, equalised=False)
        out = volume.render_at(field, rays, u_coarse, u_fine, near=2.0, far=3.4, density_activation=triplane_field.eg3d_density)
        return jnp.sum(scale * out.features) + jnp.sum(out.opacity) + jnp.sum(out.depth), out

    gradients, out = jax.jit(jax.grad(ours, (0, 1), has_aux=True))(params, planes)
    tensor = lambda value: torch.tensor(np.asarray(value))
    weights = {
        'hidden_kernel': tensor(params['hidden']['kernel']),
        'hidden_bias': tensor(params['hidden']['bias']),
        'out_kernel': tensor(params['out']['kernel']),
        'out_bias': tensor(params['out']['bias']),
    }
    leaves = [leaf.requires_grad_(True) for leaf in (*weights.values(), tensor(jnp.moveaxis(planes, -1, 2)))]
    feature, depth, peer_weights = peer.render(
        weights,
        leaves[-1],
        tensor(rays.origins),
        tensor(rays.directions),
        tensor(jnp.swapaxes(u_coarse, 1, 2)),
        tensor(jnp.swapaxes(u_fine, 1, 2)),
        near=2.0,
        far=3.4,
        bound=0.6,
        plane_axes=plane_axes,
    )
    np.testing.assert_allclose(out.features, feature.detach(), atol=1e-5)
    np.testing.assert_allclose(out.depth, depth.detach(), atol=1e-5)
    np.testing.assert_allclose(out.weights, peer_weights.detach(), atol=1e-5)
    ((tensor(scale) * feature).sum() + peer_weights.sum() + depth.sum()).backward()
    own = [*gradients[0]['hidden'].values(), *gradients[0]['out'].values(), jnp.moveaxis(gradients[1], -1, 2)]
    theirs = [leaf.grad.numpy() for leaf in leaves]
    order = [name for group in ('hidden', 'out') for name in (f'{group}_{key}' for key in gradients[0][group])]
    theirs = [dict(zip(weights, theirs))[name] for name in order] + theirs[-1:]
    for got, want in zip(own, theirs):
        np.testing.assert_allclose(got, want, atol=1e-4 * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize('fine', [0, 16])
def test_a_cube_of_constant_density_absorbs_exponentially(fine):
    rays = view(9)
    near, far = ray_box(rays, 1.0)
    out = render(
        solid(lambda p: jnp.ones(p.shape[:-1], bool), 1.7), rays, None, near=near, far=far, num_samples=16, num_importance=fine
    )
    length = jnp.where(near <= far, far - near, 0.0)
    np.testing.assert_allclose(out.opacity, 1.0 - jnp.exp(-1.7 * length), atol=1e-6)
    np.testing.assert_allclose(out.features, out.opacity[..., None] * jnp.array([0.2, 0.6, 0.9]), atol=1e-6)


def test_rays_that_miss_are_exactly_the_background():
    rays = view(32, fov=1.4)
    near, far = ray_box(rays, 1.0)
    hit = near <= far
    assert 0.05 < hit.mean() < 0.5
    for key in (None, jax.random.key(0)):
        out = render(
            solid(lambda p: jnp.ones(p.shape[:-1], bool), 5.0), rays, key, near=near, far=far, num_samples=8, num_importance=8
        )
        np.testing.assert_array_equal(out.opacity[~hit], 0.0)
        background = np.float32([0.3, 0.5, 0.7])
        seen = volume.over(out, background)[~hit]
        np.testing.assert_array_equal(seen, np.broadcast_to(background, seen.shape))
        assert (out.opacity[hit & (far - near > 0.1)] > 0).all()
        assert jnp.isfinite(out.depth).all()


def test_the_silhouette_of_a_sphere_has_its_radius():
    size, radius, fov, sphere = 48, 3.0, 0.8, 0.5
    rays = view(size, radius, fov)
    near, far = ray_box(rays, 2.0)
    out = render(
        solid(lambda p: jnp.sum(p * p, -1) < sphere**2, 200.0),
        rays,
        None,
        near=near,
        far=far,
        num_samples=64,
        num_importance=64,
    )
    apparent = np.tan(np.arcsin(sphere / radius)) / (2.0 * np.tan(0.5 * fov)) * size  # pixels
    measured = np.sqrt(float(out.opacity.sum()) / np.pi)
    assert abs(measured - apparent) < 0.25
    middle = out.depth.reshape(size, size)[size // 2, size // 2]
    assert abs(float(middle) - (radius - sphere)) < 0.03


def test_the_depth_of_a_shell():
    rays = Rays(jnp.array([[[0.0, 0.0, 3.0]]]), jnp.array([[[0.0, 0.0, -1.0]]]))
    shell = solid(lambda p: jnp.abs(jnp.linalg.norm(p, axis=-1) - 0.7) < 0.02, 1000.0)
    out = render(shell, rays, None, near=1.5, far=4.5, num_samples=128, num_importance=128)
    assert abs(float(out.depth[0, 0]) - 2.3) < 0.025
    empty = render(solid(lambda p: p[..., 0] > 99.0, 1.0), rays, None, near=1.5, far=4.5, num_samples=8)
    assert float(empty.opacity[0, 0]) == 0.0 and float(empty.depth[0, 0]) == 4.5


def test_weights_and_transmittance_sum_to_one():
    density = 3.0 * jax.random.uniform(jax.random.key(0), (4, 20, 6))
    lengths = jax.random.uniform(jax.random.key(1), (4, 20, 6))
    weights = volume.interval_weights(density, lengths)
    np.testing.assert_allclose(weights.sum(1) + jnp.exp(-(density * lengths).sum(1)), 1.0, atol=1e-6)
    through = 1.0
    for i in range(20):  # the textbook loop
        alpha = 1.0 - jnp.exp(-density[:, i] * lengths[:, i])
        np.testing.assert_allclose(weights[:, i], through * alpha, atol=1e-6)
        through = through * (1.0 - alpha)


def test_composite_over_intervals():
    edges = jnp.array([[1.0, 1.5, 2.5]])
    out = volume.composite(jnp.array([[0.4, 2.0]]), jnp.array([[[1.0], [0.0]]]), edges)
    first, second = 1.0 - np.exp(-0.2), np.exp(-0.2) * (1.0 - np.exp(-2.0))
    np.testing.assert_allclose(out.features[0, 0], first, atol=1e-6)
    np.testing.assert_allclose(out.weights[0], [first, second], atol=1e-6)
    np.testing.assert_allclose(out.depth[0], (1.25 * first + 2.0 * second) / (first + second), atol=1e-6)


@pytest.mark.parametrize('chunk', [16, 40, 64])  # a rest, all, more than all
def test_chunked_equals_unchunked(chunk):
    params, planes, rays = random_case(jax.random.key(0))
    near, far = ray_box(rays, 1.2)

    def loss(render):
        def of(params, planes):
            field = triplane_field.make(params, planes, bound=0.6, equalised=False)
            out = render(
                field,
                rays,
                jax.random.key(3),
                near=near,
                far=far,
                num_samples=6,
                num_importance=5,
                density_activation=triplane_field.eg3d_density,
            )
            return jnp.sum(out.features**2) + jnp.sum(out.opacity), (out.features, out.opacity, out.depth)

        return jax.jit(jax.value_and_grad(of, (0, 1), has_aux=True))(params, planes)

    whole = loss(volume.render)
    pieces = loss(lambda *args, **kwargs: volume.render_chunked(*args, chunk=chunk, **kwargs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), pieces, whole)


def test_one_trace_and_the_same_bits_for_the_same_key():
    params, planes, rays = random_case(jax.random.key(0))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def image(planes, key, near):
        field = triplane_field.make(params, planes, bound=0.6, equalised=False)
        return volume.render(
            field,
            rays,
            key,
            near=near,
            far=3.4,
            num_samples=6,
            num_importance=6,
            density_activation=triplane_field.eg3d_density,
        ).features

    chex.clear_trace_counter()
    first = image(planes, jax.random.key(0), 2.0)
    np.testing.assert_array_equal(first, image(planes, jax.random.key(0), 2.0))
    assert not np.array_equal(first, image(planes, jax.random.key(1), 2.1))


def test_gradients_are_finite_at_the_extremes():
    _, _, rays = random_case(jax.random.key(0), batch=1)

    def loss(raw):
        field = lambda points, directions: (jnp.broadcast_to(raw, points.shape[:-1]), jnp.ones(points.shape))
        out = volume.render(
            field,
            rays,
            None,
            near=2.0,
            far=3.4,
            num_samples=6,
            num_importance=6,
            density_activation=triplane_field.eg3d_density,
        )
        return jnp.sum(out.features) + jnp.sum(out.depth * out.opacity)

    slope = jax.jit(jax.grad(loss))
    for raw in (-300.0, -30.0, 0.0, 300.0, 1e6):
        assert jnp.isfinite(slope(raw))


def test_padding_is_shared_by_both_passes():
    """The renderer asks the field twice; the planes are padded once, when the field is made."""
    params, planes, rays = random_case(jax.random.key(0), batch=1)
    jaxpr = jax.make_jaxpr(
        lambda planes: (
            volume.render(
                triplane_field.make(params, planes, bound=0.6), rays, None, near=2.0, far=3.4, num_samples=4, num_importance=4
            ).features
        )
    )(planes)
    padded = triplanes.pad(planes).shape
    assert sum(eqn.primitive.name == 'pad' and eqn.outvars[0].aval.shape == padded for eqn in jaxpr.eqns) <= 1


def test_a_batch_over_devices_exchanges_parameter_gradients_only():
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    params, planes, rays = random_case(jax.random.key(0), batch=8, size=6, channels=4, outputs=3, rays=16)

    def loss(params, planes, rays):
        field = triplane_field.make(params, planes, bound=0.6, equalised=False, block=256)
        out = volume.render(
            field,
            rays,
            jax.random.key(1),
            near=2.0,
            far=3.4,
            num_samples=8,
            num_importance=8,
            density_activation=triplane_field.eg3d_density,
        )
        return jnp.mean(out.features**2) + jnp.mean(out.opacity)

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    alone = step(params, planes, rays)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    same = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    arguments = (jax.device_put(params, same), jax.device_put(planes, split), jax.device_put(rays, split))
    program = step.lower(*arguments).compile()
    text = program.as_text()
    assert 'all-reduce' in text and not any(word in text for word in ('all-gather', 'all-to-all', 'collective-permute'))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), program(*arguments), alone)
