"""The multi-view UNet: published sizes, diffusers with an all-view processor, the 2D UNet inside it, views that matter."""

import functools

import cheap_keys
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_weights
import test_unet

from t3d.core import tree
from t3d.core.errors import UsageError
from t3d.fields import view_inputs
from t3d.fields.view_inputs import ViewOptions
from t3d.geom import cameras, epipolar
from t3d.nets import epipolar_block, mv_unet, view_attention
from t3d.nets.mv_unet import NO_VIEWS, MultiViewUNet, ViewInputs
from t3d.nets.unet import UNet

FORMS = {
    'dense': dict(form='dense'),
    'masked': dict(form='masked', camera=8, camera_zero=True, plucker=True),
    'epipolar': dict(form='epipolar', block_levels=(0,)),
}
OPTIONS = ViewOptions('mvdream', 'geometric', 1.5, 4, 1.2)
B, V, SIDE = 2, 3, 8


def rig(count: int = V, objects: int = B) -> cameras.Cameras:
    views = cameras.orbit(np.arange(count) * 2.0 + 0.3, np.linspace(0.1, 0.5, count), 3.2, 0.7)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (objects, *leaf.shape)), views)


def test_points_of_rays_lie_about_the_object_from_any_distance():
    """The middle ray passes the origin: its points are as far before it as behind, whatever the radius."""
    net = MultiViewUNet.from_config(
        {**test_unet.SMALL, **test_unet.STYLES['1.5'], 'attention_head_dim': 4}, **FORMS['epipolar']
    )
    for radius in (1.5, 3.2, 7.0):
        views = cameras.orbit(np.array([0.3, 2.0]), np.array([0.1, 0.4]), radius, 0.7)
        views = jax.tree.map(lambda leaf: leaf[None], views)
        (points,) = view_inputs.make(net, views, 5, 5, OPTIONS).rays.values()
        middle = np.asarray(points.points)[0, :, 2, 2]  # [V, M, 3]
        np.testing.assert_allclose(np.linalg.norm(middle, axis=-1), np.tile([0.9, 0.3, 0.3, 0.9], (2, 1)), atol=1e-5)
        np.testing.assert_allclose(
            np.asarray(points.depths)[0, :, 2, 2], radius + np.tile([-0.9, -0.3, 0.3, 0.9], (2, 1)), rtol=1e-5
        )


def options(form: str) -> ViewOptions:
    return OPTIONS._replace(vector='spad') if form == 'masked' else OPTIONS


class Small:
    """A network of a form with random weights throughout, and the plain UNet whose weights it holds."""

    def __init__(self, form: str):
        config = {**test_unet.SMALL, **test_unet.STYLES['1.5'], 'attention_head_dim': 4}
        self.form, self.net = form, MultiViewUNet.from_config(config, **FORMS[form])
        self.plain = UNet.from_config(config)
        random = np.random.default_rng(0)
        self.x = random.standard_normal((B, V, SIDE, SIDE, 4)).astype(np.float32)
        self.text = random.standard_normal((B, 5, 24)).astype(np.float32)
        self.views = jax.jit(lambda views: view_inputs.make(self.net, views, SIDE, SIDE, options(form)))(rig())
        shapes = jax.eval_shape(self.net.init, jax.random.key(0), self.x, jnp.zeros(B), self.text, self.views)['params']
        self.params = random_weights.fan_in(shapes)
        self.apply = jax.jit(lambda params, x, t, text, views: self.net.apply({'params': params}, x, t, text, views))

    def __call__(self, x=None, views=None, params=None, t=7.0):
        x = self.x if x is None else x
        views = self.views if views is None else views
        return np.asarray(self.apply(self.params if params is None else params, x, jnp.full(len(x), t), self.text, views))


@functools.cache
def small(form: str) -> Small:
    return Small(form)


@pytest.mark.parametrize(
    'base, ours, numbers, count',
    [
        (test_unet.SD21, {}, 16, 867_572_164),
        (test_unet.SD15, {}, 16, 861_182_404),
        (test_unet.SD15, dict(form='masked', plucker=True), 4, 861_241_924),
        (test_unet.SD15, dict(form='masked', plucker=True), 8, 861_247_044),
    ],
)
def test_published_sizes_have_their_parameters(base, ours, numbers, count):
    net = MultiViewUNet.from_config(base, camera=numbers, **ours)
    context = jax.ShapeDtypeStruct((1, 77, base['cross_attention_dim']), jnp.float32)
    x = jax.ShapeDtypeStruct((1, 2, 8, 8, 4), jnp.float32)
    views = ViewInputs(camera=jax.ShapeDtypeStruct((1, 2, numbers), jnp.float32))
    abstract = jax.eval_shape(net.init, jax.random.key(0), x, jax.ShapeDtypeStruct((), jnp.float32), context, views)
    assert tree.count(abstract) == count


@pytest.mark.parametrize('form', FORMS)
def test_one_view_without_a_camera_is_the_plain_network(form):
    one = small(form)
    plain = {name: leaf for name, leaf in tree.flatten(one.params).items() if 'camera' not in name and 'epipolar' not in name}
    if form == 'masked':
        plain = {name: leaf[..., :-6, :] if name.endswith('proj_in/kernel') else leaf for name, leaf in plain.items()}
    plain = tree.unflatten(plain)
    grafted = mv_unet.graft(one.params, plain)
    expected = jax.jit(one.plain.apply)({'params': plain}, one.x[:, 0], jnp.full(B, 7.0), one.text)
    np.testing.assert_allclose(one(one.x[:, :1], NO_VIEWS, grafted)[:, 0], expected, atol=2e-5)


def test_the_dense_form_is_diffusers_with_all_views_as_one_sequence():
    torch = pytest.importorskip('torch')
    pair = test_unet.Pair({**test_unet.SMALL, **test_unet.STYLES['1.5'], 'attention_head_dim': 4})
    from diffusers.models.attention_processor import AttnProcessor

    class AllViews(AttnProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **rest):
            if encoder_hidden_states is not None:
                return super().__call__(attn, hidden_states, encoder_hidden_states, **rest)
            count, length, width = hidden_states.shape
            joined = hidden_states.reshape(count // V, V * length, width)
            return super().__call__(attn, joined, **rest).reshape(count, length, width)

    pair.theirs.set_attn_processor(AllViews())
    one = small('dense')
    camera = {name: leaf for name, leaf in one.params.items() if name == 'camera_embedding'}
    hidden = np.asarray(one.views.camera).reshape(B * V, -1) @ camera['camera_embedding']['linear_1']['kernel']
    hidden = hidden + camera['camera_embedding']['linear_1']['bias']
    hidden = hidden / (1.0 + np.exp(-hidden))
    embedding = hidden @ camera['camera_embedding']['linear_2']['kernel'] + camera['camera_embedding']['linear_2']['bias']
    hook = pair.theirs.time_embedding.register_forward_hook(lambda module, inputs, out: out + torch.from_numpy(embedding))
    flat = torch.from_numpy(one.x.reshape(B * V, SIDE, SIDE, 4).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        text = torch.from_numpy(one.text).repeat_interleave(V, 0)
        expected = pair.theirs(flat, torch.full((B * V,), 7.0), text).sample.numpy().transpose(0, 2, 3, 1)
    hook.remove()
    got = one(params={**pair.params, **camera})
    np.testing.assert_allclose(got.reshape(expected.shape), expected, atol=2e-5)


@pytest.mark.parametrize('form', FORMS)
def test_views_see_each_other_and_their_order_is_theirs(form):
    one, order = small(form), np.array([2, 0, 1])
    out = one()
    turned = jax.jit(lambda views: view_inputs.make(one.net, views, SIDE, SIDE, options(form)))(
        jax.tree.map(lambda leaf: leaf[:, order], rig())
    )
    np.testing.assert_allclose(one(one.x[:, order], turned), out[:, order], atol=2e-5)
    changed = one.x.copy()
    changed[:, 2] += np.random.default_rng(5).standard_normal(changed[:, 2].shape)
    moved = np.abs(one(changed) - out)
    assert moved[:, 0].max() > 1e-2 and np.abs(one(np.roll(one.x, 1, 0)) - np.roll(out, 1, 0)).max() > 1e-2
    other = jax.jit(lambda views: view_inputs.make(one.net, views, SIDE, SIDE, options(form)))(
        cameras.Cameras(rig().world_from_cam[:, ::-1], rig().intrinsics)
    )
    assert np.abs(one(views=other) - out).max() > 1e-3  # cameras matter


def test_identical_views_are_one_view():
    one = small('dense')
    same = np.repeat(one.x[:, :1], V, axis=1)
    together, alone = one(same, NO_VIEWS), one(one.x[:, :1], NO_VIEWS)
    np.testing.assert_allclose(together, np.repeat(alone, V, axis=1), atol=1e-5)


def test_a_masked_network_that_is_new_and_sees_all_is_the_dense_one():
    dense, masked = small('dense'), small('masked')
    plain = {name: leaf for name, leaf in dense.params.items() if name != 'camera_embedding'}
    shapes = jax.eval_shape(masked.net.init, jax.random.key(0), masked.x, jnp.zeros(B), masked.text, masked.views)['params']
    new = mv_unet.graft(
        jax.jit(masked.net.init)(cheap_keys.key(0), masked.x, jnp.zeros(B), masked.text, masked.views)['params'], plain
    )
    assert jax.tree.structure(new) == jax.tree.structure(shapes)
    assert not np.asarray(new['camera_embedding']['linear_2']['kernel']).any()
    everything = masked.views._replace(masks=jax.tree.map(jnp.ones_like, masked.views.masks))
    np.testing.assert_allclose(masked(views=everything, params=new), dense(views=NO_VIEWS, params=plain), atol=1e-5)
    assert np.abs(masked(params=new) - masked(views=everything, params=new)).max() > 1e-3


class TestEpipolarBlock:
    """The block alone: an identity when new, its own features for one view, points that no camera sees or behind one."""

    def made(self, count: int = V, seed: int = 0):
        views = rig(count)
        rays = epipolar.ray_points(views, 4, 5, 3, 2.0, 4.4)
        block = epipolar_block.EpipolarBlock(2)
        x = np.random.default_rng(seed).standard_normal((B * count, 4, 5, 8)).astype(np.float32)
        params = jax.jit(block.init)(cheap_keys.key(1), x, rays)['params']
        return block, params, x, rays, views

    def test_new_it_changes_nothing(self):
        block, params, x, rays, _ = self.made()
        np.testing.assert_array_equal(block.apply({'params': params}, x, rays), x)

    @pytest.mark.parametrize(('block', 'count'), [(100, V), (10_000, V), (10_000, 1)])
    def test_it_is_the_naive_loop(self, block, count, monkeypatch):
        """Every position, point, view and head by itself, in NumPy; ours in many blocks and in one, and of one view."""
        monkeypatch.setattr(epipolar_block, 'BLOCK', block)
        block, params, x, rays, _ = self.made(count)
        p = jax.tree.map(np.float64, random_weights.shaken(params, 0.3))
        got = np.asarray(block.apply({'params': jax.tree.map(np.float32, p)}, x, rays))
        rays = jax.tree.map(np.float64, rays)
        linear = lambda name, value: value @ p[name]['kernel'] + p[name]['bias']

        def norm(name, value):
            centred = value - value.mean(-1, keepdims=True)
            return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p[name]['scale'] + p[name]['bias']

        def attend(query, keys, values):
            out = np.zeros_like(query)
            for head in range(2):
                part = slice(head * 4, head * 4 + 4)
                logits = keys[:, part] @ query[part] / 2.0
                weights = np.exp(logits - logits.max())
                out[part] = (weights / weights.sum()) @ values[:, part]
            return out

        def bilinear(image, uv):
            at = np.clip(uv * [5, 4] - 0.5, 0, [4, 3])
            low = np.minimum(np.floor(at).astype(int), [3, 2])
            fx, fy = at - low
            rows = image[low[1] : low[1] + 2, low[0] : low[0] + 2]
            return (1 - fy) * ((1 - fx) * rows[0, 0] + fx * rows[0, 1]) + fy * ((1 - fx) * rows[1, 0] + fx * rows[1, 1])

        from scipy.special import erf

        gelu = lambda value: 0.5 * value * (1.0 + erf(value / np.sqrt(2.0)))
        code = np.asarray(epipolar_block.encoding(rays))
        h = norm('norm', x.astype(np.float64)).reshape(B, count, 4, 5, 8)
        expected = x.astype(np.float64).reshape(B, count, 4, 5, 8).copy()
        for b, v, i, j in np.ndindex(B, count, 4, 5):
            tokens = []
            for m in range(3):
                place = linear('place', code[b, v, i, j, m])
                seen = [s for s in range(count) if rays.valid[b, v, s, i, j, m] > 0]
                looked = [bilinear(h[b, s], rays.uv[b, v, s, i, j, m]) if s != v else h[b, v, i, j] for s in seen]
                keys, values = linear('to_k', np.stack(looked)), linear('to_v', np.stack(looked))
                mixed = attend(linear('to_q', h[b, v, i, j]) + place, keys, values)
                token = linear('to_v', h[b, v, i, j]) + place + linear('to_out_views', mixed)
                token = token + linear('mlp_out', gelu(linear('mlp_in', norm('norm_mlp', token))))
                tokens.append(norm('norm_ray', token))
            tokens = np.stack(tokens)
            out = attend(linear('to_q_ray', h[b, v, i, j]), linear('to_k_ray', tokens), linear('to_v_ray', tokens))
            expected[b, v, i, j] += linear('to_out', out)
        np.testing.assert_allclose(got, expected.reshape(got.shape), atol=3e-5)

    def test_views_that_do_not_see_a_point_say_nothing(self):
        block, params, x, rays, views = self.made()
        params = random_weights.shaken(params, 0.3)
        blind = rays.replace(valid=rays.valid & jnp.eye(V, dtype=bool)[:, :, None, None, None])
        apply = jax.jit(lambda x, rays: block.apply({'params': params}, x, rays))
        changed = x.reshape(B, V, 4, 5, 8).copy()
        changed[:, 1:] += np.arange(8.0)  # not 1, which the norm takes away
        kept = np.asarray(apply(x, blind)).reshape(changed.shape)[:, 0]
        np.testing.assert_array_equal(np.asarray(apply(changed.reshape(x.shape), blind)).reshape(changed.shape)[:, 0], kept)

    def test_one_view_takes_its_own_features_place_by_place(self):
        """A place hears itself alone; views that see only themselves are each such a view."""
        block, params, x, rays, _ = self.made(1)
        params = random_weights.shaken(params, 0.3)
        apply = jax.jit(lambda x, rays: block.apply({'params': params}, x, rays))
        changed = x.copy()
        changed[:, 2, 3] += np.arange(8.0)  # another direction: the norm takes away what is the same in all channels
        moved = np.abs(np.asarray(apply(changed, rays)) - np.asarray(apply(x, rays))).max((0, -1))
        assert moved[2, 3] > 1e-2 and np.count_nonzero(moved) == 1
        _, _, many, all_rays, _ = self.made()
        blind = all_rays.replace(valid=all_rays.valid & jnp.eye(V, dtype=bool)[:, :, None, None, None])
        together = np.asarray(apply(many, blind)).reshape(B, V, 4, 5, 8)
        for v in range(V):
            own = jax.tree.map(lambda leaf, v=v: leaf[:, v : v + 1], all_rays)
            own = own.replace(uv=own.uv[:, :, v : v + 1], valid=own.valid[:, :, v : v + 1])
            alone = np.asarray(apply(many.reshape(B, V, 4, 5, 8)[:, v], own))
            np.testing.assert_allclose(together[:, v], alone, atol=1e-5)

    def in_line(self, near: float, far: float):
        """(block, its parameters, x, cameras) of one object: 0 far out, 1 nearer on the same axis, 2 at the side."""
        azimuth, radius, fov = np.array([[0.0, 0.0, 1.2]]), np.array([[3.2, 1.0, 3.0]]), np.array([[0.7, 0.7, 1.4]])
        views = cameras.orbit(azimuth, 0.0, radius, fov)
        block, x = epipolar_block.EpipolarBlock(2), np.random.default_rng(3).standard_normal((3, 5, 5, 8)).astype(np.float32)
        points = lambda views: epipolar.ray_points(views, 5, 5, 5, near, far)
        params = random_weights.fan_in(jax.eval_shape(block.init, jax.random.key(0), x, points(views))['params'])
        return jax.jit(lambda x, views: block.apply({'params': params}, x, points(views))), x, views, points(views)

    def test_points_behind_a_camera_say_nothing(self):
        """All points of view 0 lie behind camera 1, where a projection without its sign falls into the picture."""
        apply, x, views, rays = self.in_line(0.4, 2.0)
        flat = np.asarray(rays.points[0, 0], np.float64).reshape(-1, 3)
        pose, lens = np.asarray(views.world_from_cam[0, 1], np.float64), np.asarray(views.intrinsics[0, 1], np.float64)
        local = (flat - pose[:3, 3]) @ pose[:3, :3]
        mirrored = (local @ lens.T)[:, :2] / local[:, 2:]
        assert (local[:, 2] < -0.1).all() and ((mirrored > 0) & (mirrored < 1)).all(-1).mean() > 0.3
        assert not np.asarray(rays.valid[0, 0, 1]).any() and np.asarray(rays.valid[0, 0, 2]).any()
        changed = x.copy()
        changed[1] += np.random.default_rng(4).standard_normal(x[1].shape)
        out = np.asarray(apply(x, views))
        np.testing.assert_array_equal(np.asarray(apply(changed, views))[0], out[0])
        pair = jax.tree.map(lambda leaf: leaf[:, ::2], views)  # as if camera 1 were not there
        np.testing.assert_allclose(apply(x[::2], pair)[0], out[0], atol=1e-5)
        slopes = jax.jit(jax.grad(lambda x: jnp.sum(apply(x, views)[0] ** 2)))(x)
        assert [np.abs(np.asarray(slope)).max() > 1e-2 for slope in slopes] == [True, False, True] and not slopes[1].any()
        changed = x.copy()
        changed[2] += np.random.default_rng(4).standard_normal(x[2].shape)
        assert np.abs(np.asarray(apply(changed, views))[0] - out[0]).max() > 1e-2  # what stands before a camera is heard

    def test_gradients_are_finite_with_points_behind_beside_and_at_the_centre_of_a_camera(self):
        apply, x, views, rays = self.in_line(0.2, 4.2)
        centre = np.asarray(rays.points[0, 0, 2, 2, 2] - views.world_from_cam[0, 1, :3, 3])
        assert np.abs(centre).max() < 1e-5  # 2.2 from camera 0, where camera 1 stands
        depth = np.asarray((rays.points[0, 0] - views.world_from_cam[0, 1, :3, 3]) @ views.world_from_cam[0, 1, :3, 2])
        assert (depth < -1e-3).any() and (depth > 1e-3).any() and (np.abs(depth) < 1e-5).any()
        total = lambda x, pose, lens: jnp.sum(apply(x, cameras.Cameras(pose, lens)) ** 2)
        slopes = jax.jit(jax.grad(total, (0, 1, 2)))(x, views.world_from_cam, views.intrinsics)
        for slope in slopes:
            assert np.isfinite(np.asarray(slope)).all() and np.asarray(slope).any()


@pytest.mark.parametrize('masked', [False, True])
def test_attention_in_blocks_is_attention(masked, monkeypatch):
    """Values and gradients, with a batch, heads and a mask whose rows differ."""
    rng = np.random.default_rng(0)
    query, key, value, slope = rng.standard_normal((4, 2, 24, 3, 4)).astype(np.float32)
    mask = jnp.asarray((rng.random((2, 24, 24)) < 0.5) | np.eye(24, dtype=bool)) if masked else None
    attend = lambda *args: view_attention.joint_attention(*args, mask)
    expected, pull = jax.vjp(attend, query, key, value)
    assert 'scan' not in str(jax.make_jaxpr(attend)(query, key, value))
    monkeypatch.setattr(view_attention, 'CACHED', 2 * 3 * 24 * 7)  # 4 blocks of 6 queries
    attend = lambda *args: view_attention.joint_attention(*args, mask)  # a function that JAX has not traced yet
    got, own_pull = jax.vjp(attend, query, key, value)
    assert 'scan' in str(jax.make_jaxpr(attend)(query, key, value))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), own_pull(slope), pull(jnp.asarray(slope)))


def test_networks_and_inputs_that_do_not_fit_are_refused():
    config = {**test_unet.SMALL, **test_unet.STYLES['1.5']}
    with pytest.raises(UsageError, match="form='spad': wanted one of dense, masked, epipolar"):
        MultiViewUNet.from_config(config, form='spad')
    with pytest.raises(UsageError, match='no view would see another'):
        MultiViewUNet.from_config(config, form='epipolar')
    with pytest.raises(UsageError, match='wanted levels from 0 to 1'):
        MultiViewUNet.from_config(config, form='epipolar', block_levels=(2,))
    one = small('dense')
    with pytest.raises(UsageError, match=r'wanted \[B, V, H, W, 4\]'):
        one.net.check_views(one.x[:, 0], one.text)  # what a run says; in tests the signature is faster
    with pytest.raises(UsageError, match='camera vector'):
        view_inputs.vectors(rig(), 'blender')
    with pytest.raises(UsageError, match='has no place in this one'):
        mv_unet.graft({'a': np.zeros(2)}, {'b': np.zeros(2)})
    with pytest.raises(UsageError, match=r'has shape \(3,\) in the text-to-image UNet and \(2,\) here'):
        mv_unet.graft({'a': np.zeros(2)}, {'a': np.zeros(3)})


def test_vectors_of_cameras_by_closed_form():
    views = cameras.orbit(np.array([[0.0, 0.5 * np.pi]]), np.array([[0.25, 0.5]]), np.array([[3.5, 3.0]]), 0.7027699)
    spad = np.asarray(view_inputs.vectors(views, 'spad'))[0]
    np.testing.assert_allclose(spad[0, 4:], [2.7278, 2.7278, 0.0, 0.0], atol=1e-4)
    np.testing.assert_allclose(spad[:, 0], np.pi / 2 - np.array([0.25, 0.5]), atol=1e-5)  # from the pole
    np.testing.assert_allclose(spad[:, 1:3], [[-1.0, 0.0], [0.0, 1.0]], atol=1e-5)  # azimuth from +x; ours from the front, -y
    relative = np.asarray(view_inputs.vectors(views, 'spad_relative'))[0]
    np.testing.assert_allclose(relative[1], [0.25, np.sin(-np.pi / 2), np.cos(-np.pi / 2), 0.5], atol=1e-5)
    mvdream = np.asarray(view_inputs.vectors(views, 'mvdream')).reshape(2, 4, 4)
    np.testing.assert_allclose(mvdream[1, :3, 3], [np.cos(0.5), 0.0, np.sin(0.5)], atol=1e-5)  # 90 degrees is +x
    np.testing.assert_allclose(np.linalg.norm(mvdream[:, :3, 3], axis=-1), 1.0, rtol=1e-6)
