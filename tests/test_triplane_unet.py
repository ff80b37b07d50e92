"""Triplane denoisers: layouts, counts of parameters, pooled axes under permutations of the world, and what may see what."""

import functools
import itertools

import cheap_keys
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_weights

from t3d.core import tree
from t3d.core.errors import UsageError
from t3d.geom.triplanes import PLANE_AXES
from t3d.nets import patched_unet, triplane_unet, unet_blocks
from t3d.nets.unet_blocks import Options

AXES = PLANE_AXES['orthogonal']
SMALL = {
    'block_out_channels': (8, 16),
    'layers_per_block': 1,
    'attention_head_dim': 2,
    'cross_attention_dim': 12,
    'norm_num_groups': 4,
    'attention_levels': (False, True),
}
SD = {
    'block_out_channels': (320, 640, 1280, 1280),
    'layers_per_block': 2,
    'attention_head_dim': 8,
    'cross_attention_dim': 768,
    'norm_num_groups': 32,
    'attention_levels': (True, True, True, False),
}
KINDS = [('stack', False), ('rollout', False), ('rollout_axis', False), ('rollout_axis', True)]


@functools.cache
def network(layout, cross_plane):
    """(denoiser of 8 x 8 planes with 2 channels, random parameters, compiled call)."""
    net = triplane_unet.TriplaneDenoiser(
        SMALL, layout=layout, patch=2, resolution=8, channels=2, axes=AXES, cross_plane=cross_plane
    )
    abstract = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 5, 12)))
    return net, random_weights.drawn(abstract), jax.jit(net)


def inputs(seed=1):
    rng = np.random.default_rng(seed)
    planes, text = rng.standard_normal((3, 3, 8, 8, 2)), rng.standard_normal((3, 5, 12))
    mask = np.arange(5) < np.array([[2], [5], [3]])
    return planes.astype(np.float32), np.array([3.0, 500.0, 999.0], np.float32), text.astype(np.float32), mask


# ------------------------------------------------------------------------------------------------------------ parameters


def count(section, inputs, outputs=None):
    net = patched_unet.from_section(section, inputs, outputs or inputs)
    args = jnp.zeros((1, 8, 8, inputs)), jnp.zeros(1), jnp.zeros((1, 4, section['cross_attention_dim']))
    return tree.count(jax.eval_shape(net.init, jax.random.key(0), *args))


@pytest.mark.parametrize(
    'changes, channels, parameters',
    [
        ({}, 4, 859_520_964),  # Stable Diffusion 1.x itself
        ({}, 3 * 32 * 16, 868_346_816),
        ({'block_out_channels': (192, 384, 768, 768), 'attention_levels': (False, True, True, False)}, 1536, 314_255_232),
        ({'block_out_channels': (128, 256, 512, 512), 'attention_levels': (False, True, True, False)}, 384, 140_477_056),
    ],
)
def test_the_counts_of_the_table(changes, channels, parameters):
    assert count({**SD, **changes}, channels) == parameters


def test_the_count_of_the_tiny_denoiser():
    section = {**SMALL, 'block_out_channels': (32, 64, 128), 'attention_head_dim': 4, 'cross_attention_dim': 64}
    section.update(norm_num_groups=16, attention_levels=(False, True, True))
    net = triplane_unet.TriplaneDenoiser(section, layout='stack', patch=2, resolution=32, channels=8, axes=AXES)
    abstract = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 4, 64)))
    assert tree.count(abstract) == 4_185_920


@pytest.mark.parametrize('kind', KINDS)
def test_a_new_network_says_zero(kind):
    net, _, call = network(*kind)
    planes, t, text, mask = inputs()
    params = jax.jit(net.init)(cheap_keys.key(0), text)
    assert not np.any(call(params, planes, t, text, mask))
    assert sum(not np.any(leaf) for name, leaf in tree.flatten(params).items() if name.endswith('kernel')) == 1


# ------------------------------------------------------------------------------------------------------- what sees what


@pytest.mark.parametrize('kind', KINDS)
def test_examples_do_not_see_each_other_and_masked_text_is_not_read(kind):
    _, params, call = network(*kind)
    planes, t, text, mask = inputs()
    out = np.asarray(call(params, planes, t, text, mask))
    assert out.shape == planes.shape and np.isfinite(out).all() and out.std() > 0.1
    other = call(params, planes.copy(), t, np.where(mask[..., None], text, 7.0 * text + 1.0).astype(np.float32), mask)
    np.testing.assert_array_equal(out, other)
    read = text.copy()
    read[0, 1] += 1.0
    seen = np.abs(np.asarray(call(params, planes, t, read, mask)) - out).max(axis=(1, 2, 3, 4))
    assert seen[0] > 1e-3 and not seen[1:].any()
    changed, times = planes.copy(), t.copy()
    changed[2, 1, 3, 4, 0] += 1.0
    times[2] -= 400.0
    for moved in (call(params, changed, t, text, mask), call(params, planes, times, text, mask)):
        apart = np.abs(np.asarray(moved) - out).max(axis=(2, 3, 4))
        assert not apart[:2].any() and np.all(apart[2] > 1e-4)  # all three planes of that example learn of it


def test_a_mask_equals_the_text_without_its_tokens():
    _, params, call = network('stack', False)
    planes, t, text, _ = inputs()
    masked = call(params, planes, t, text, np.tile(np.arange(5) < 2, (3, 1)))
    np.testing.assert_allclose(masked, call(params, planes, t, text[:, :2]), atol=2e-5)


def test_a_mask_holds_in_chunks_of_queries_too(monkeypatch):
    rng = np.random.default_rng(6)
    query, key, value = (rng.standard_normal((2, count, 2, 4)).astype(np.float32) for count in (6, 5, 5))
    mask = np.arange(5) < np.array([[2], [4]])
    whole = unet_blocks.dot_product_attention(query, key, value, mask=mask)
    short = unet_blocks.dot_product_attention(query[:1], key[:1, :2], value[:1, :2])
    np.testing.assert_allclose(whole[:1], short, atol=1e-6)
    monkeypatch.setattr(unet_blocks, 'LOGITS', 50)
    np.testing.assert_allclose(unet_blocks.dot_product_attention(query, key, value, mask=mask), whole, atol=1e-6)


@pytest.mark.parametrize('layout', triplane_unet.LAYOUTS)
def test_arranged_planes_come_back(layout):
    net, params, _ = network(layout, False)
    planes, *_ = inputs()
    params = {**params, 'planes': np.zeros((3, 8), np.float32)}
    np.testing.assert_array_equal(net.planes_of(net.arrange(params, planes)), planes)


def test_stack_and_rollout_lie_as_documented():
    planes, *_ = inputs()
    stacked = np.asarray(network('stack', False)[0].arrange({}, planes))
    patch = stacked[1, 2, 3].reshape(2, 2, 3, 2)
    np.testing.assert_array_equal(patch, planes[1, :, 4:6, 6:8].transpose(1, 2, 0, 3))
    vectors = {'planes': np.arange(24, dtype=np.float32).reshape(3, 8)}
    rolled = np.asarray(network('rollout', False)[0].arrange(vectors, planes))
    assert rolled.shape == (3, 4, 12, 8)
    np.testing.assert_allclose(rolled[1, 2, 4 + 3] - vectors['planes'][1], planes[1, 1, 4:6, 6:8].reshape(8), atol=1e-6)


def test_seams_of_the_rollout_are_crossed_by_convolutions_and_those_of_rollout_axis_are_not():
    """One 3x3 convolution of each layout: what a change of plane 1's first column touches."""
    x = inputs()[0]
    changed = x.copy()
    changed[:, 1, :, 0] += 1.0
    kernel = np.random.default_rng(0).standard_normal((3, 3, 2, 2)).astype(np.float32)
    conv = lambda x: unet_blocks.conv3(2, jnp.float32, 'conv').apply({'params': {'kernel': kernel, 'bias': np.zeros(2)}}, x)
    wide = lambda x: np.asarray(conv(triplane_unet._side_by_side(jnp.asarray(x))))
    touched = np.flatnonzero(np.abs(wide(changed) - wide(x)).max(axis=(0, 1, 3)))
    np.testing.assert_array_equal(touched, [7, 8, 9])  # 7 is the last column of plane 0
    apart = lambda x: np.asarray(triplane_unet.folded(conv, jnp.asarray(x)))
    touched = np.argwhere(np.abs(apart(changed) - apart(x)).max(axis=(0, 2, 4)))
    np.testing.assert_array_equal(touched, [[1, 0], [1, 1]])


# ------------------------------------------------------------------------------------------------------------ rollout axis


def naive_pooled(x, plane, axes=AXES):
    """([H, W, C] of the plane that shares the width axis, the same for the height), as Rodin broadcasts them."""
    pooled = []
    for own, axis in enumerate(axes[plane]):
        other = next(q for q in range(3) if q != plane and axis in axes[q])
        line = np.stack([x[other].take(k, axis=1 if axes[other][0] == axis else 0).mean(0) for k in range(x.shape[1])])
        spread = np.broadcast_to(line[None] if own == 0 else line[:, None], x[plane].shape)
        pooled.append(spread)
    return pooled


def test_axis_convolution_against_a_naive_loop_over_planes():
    x, params = np.random.default_rng(2).standard_normal((2, 3, 6, 6, 4)).astype(np.float32), None
    module = triplane_unet.AxisConv(5, AXES, jnp.float32)
    params = random_weights.drawn(jax.eval_shape(module.init, jax.random.key(0), x)['params'])
    assert {name: leaf.shape for name, leaf in tree.flatten(params).items()} == {
        'plane/kernel': (3, 3, 4, 5),
        'plane/bias': (5,),
        'width/kernel': (3, 4, 5),
        'height/kernel': (3, 4, 5),
    }
    got = np.asarray(jax.jit(module.apply)({'params': params}, x))
    for b, plane in itertools.product(range(2), range(3)):
        along_width, along_height = naive_pooled(x[b], plane)
        for i, j in itertools.product(range(6), range(6)):
            expected = params['plane']['bias'].astype(np.float64)
            for di, dj in itertools.product((-1, 0, 1), (-1, 0, 1)):
                if 0 <= i + di < 6 and 0 <= j + dj < 6:
                    expected = expected + x[b, plane, i + di, j + dj] @ params['plane']['kernel'][di + 1, dj + 1]
            for d in (-1, 0, 1):
                if 0 <= j + d < 6:
                    expected = expected + along_width[i, j + d] @ params['width']['kernel'][d + 1]
                if 0 <= i + d < 6:
                    expected = expected + along_height[i + d, j] @ params['height']['kernel'][d + 1]
            np.testing.assert_allclose(got[b, plane, i, j], expected, atol=3e-6)


def moved(x, order):
    """Planes of the volume whose world axis k is the old axis order[k]: planes change places, some are transposed."""
    out = []
    for width, height in AXES:
        old = (order[width], order[height])
        if old in AXES:
            out.append(x[AXES.index(old)])
        else:
            out.append(np.swapaxes(x[AXES.index(old[::-1])], 0, 1))
    return np.stack(out)


@pytest.mark.parametrize('order', list(itertools.permutations(range(3)))[1:])
def test_pooling_follows_the_axes_of_the_world(order):
    """Pooled features of a permuted world are the permuted pooled features of the old one."""
    x = np.random.default_rng(3).standard_normal((3, 6, 6, 2)).astype(np.float32)
    of = lambda x: [np.asarray(part[0]) for part in triplane_unet.axis_pooled(jnp.asarray(x[None]), AXES)]
    (width, height), (new_width, new_height) = of(x), of(moved(x, order))
    for k, axes in enumerate(AXES):
        old = tuple(order[axis] for axis in axes)
        if old in AXES:
            np.testing.assert_allclose(new_width[k], width[AXES.index(old)], atol=1e-6)
            np.testing.assert_allclose(new_height[k], height[AXES.index(old)], atol=1e-6)
        else:  # the same plane, transposed
            np.testing.assert_allclose(new_width[k], height[AXES.index(old[::-1])], atol=1e-6)
            np.testing.assert_allclose(new_height[k], width[AXES.index(old[::-1])], atol=1e-6)


def test_pooled_features_of_a_world_that_varies_along_one_axis():
    """A feature that is x itself: planes with x hand it on along x, and the (z, y) plane has the mean of x only."""
    ramp = np.arange(4.0, dtype=np.float32)
    planes = np.zeros((1, 3, 4, 4, 1), np.float32)
    planes[0, 0, ..., 0] = planes[0, 1, ..., 0] = ramp[None, :]  # width of (x, y) and (x, z)
    width, height = triplane_unet.axis_pooled(jnp.asarray(planes), AXES)
    np.testing.assert_allclose(width[0, :2, :, 0], [ramp, ramp])
    np.testing.assert_allclose(width[0, 2, :, 0], 1.5)  # along z, of (x, z)
    np.testing.assert_allclose(height[0, 2, :, 0], 1.5)  # along y, of (x, y)
    np.testing.assert_allclose(height[0, :2], 0.0)  # along y and z, of (z, y), which knows nothing


def test_cross_plane_attention_against_a_naive_loop():
    rng = np.random.default_rng(4)
    x, text = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 2, 3, 8), (2, 3, 12)))
    options = Options(groups=4, epsilon=1e-5, linear=True)
    module = triplane_unet.PlaneTransformer(2, True, options)
    params = random_weights.drawn(jax.eval_shape(module.init, jax.random.key(0), x, text)['params'])
    got = jax.jit(module.apply)({'params': params}, x, text)

    def attend(p, query, context):
        q, k, v = (a @ p[name]['kernel'] for a, name in ((query, 'to_q'), (context, 'to_k'), (context, 'to_v')))
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            logits = q[:, head] @ k[:, head].T / 2.0
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, head])
        return np.concatenate(heads, -1) @ p['to_out_0']['kernel'] + p['to_out_0']['bias']

    def norm(p, value):
        value = (value - value.mean(-1, keepdims=True)) / np.sqrt(value.var(-1, keepdims=True) + 1e-5)
        return value * p['scale'] + p['bias']

    dense = lambda p, value: value @ p['kernel'] + p['bias']
    for b in range(2):
        groups = x[b].astype(np.float64).reshape(3 * 6, 4, 2)
        mean, variance = groups.mean(axis=(0, 2), keepdims=True), groups.var(axis=(0, 2), keepdims=True)
        h = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(3, 6, 8) * params['norm']['scale'] + params['norm']['bias']
        h = dense(params['proj_in'], h)
        h = np.stack([own + attend(params['attn1'], *[norm(params['norm1'], own)] * 2) for own in h])
        tokens = norm(params['norm_planes'], h)
        both = [np.concatenate([tokens[q] for q in range(3) if q != k]) for k in range(3)]
        h = np.stack([h[k] + attend(params['attn_planes'], tokens[k], both[k]) for k in range(3)])
        h = np.stack([own + attend(params['attn2'], norm(params['norm2'], own), text[b]) for own in h])
        gated = dense(params['ff']['net_0']['proj'], norm(params['norm3'], h))
        value, gate = np.split(gated, 2, axis=-1)
        h = h + dense(params['ff']['net_2'], value * np.asarray(nn.gelu(jnp.asarray(gate), approximate=False)))
        np.testing.assert_allclose(got[b], x[b] + dense(params['proj_out'], h).reshape(3, 2, 3, 8), atol=2e-5)


def test_without_cross_plane_attention_planes_meet_in_pooled_axes_and_norms_alone():
    """A change that no norm and no mean sees stays in its plane without cross-plane attention, and leaves it with it."""
    x = np.random.default_rng(5).standard_normal((1, 3, 2, 2, 8)).astype(np.float32)
    swapped = x.copy()
    swapped[0, 1] = x[0, 1, ::-1, ::-1]  # the same values in other places
    text = np.ones((1, 2, 12), np.float32)
    for cross_plane in (False, True):
        module = triplane_unet.PlaneTransformer(2, cross_plane, Options(groups=4, epsilon=1e-5, linear=True))
        params = random_weights.drawn(jax.eval_shape(module.init, jax.random.key(0), x, text)['params'])
        a, b = (np.asarray(module.apply({'params': params}, value, text)) for value in (x, swapped))
        np.testing.assert_allclose(a[0, 1, ::-1, ::-1], b[0, 1], atol=1e-5)  # attention knows no places
        np.testing.assert_allclose(a[0, [0, 2]], b[0, [0, 2]], atol=1e-5)
        swapped[0, 1, 0, 0, 0] += 0.5
        c = np.asarray(module.apply({'params': params}, swapped, text))
        assert (np.abs(c[0, 0] - b[0, 0]).max() > 1e-4) or not cross_plane
        swapped[0, 1, 0, 0, 0] -= 0.5


# -------------------------------------------------------------------------------------------------------------- bad input


def test_what_does_not_fit_is_refused():
    make = functools.partial(triplane_unet.TriplaneDenoiser, SMALL, patch=2, resolution=8, channels=2, axes=AXES)
    with pytest.raises(UsageError, match="unknown layout 'stacked': choose one of stack, rollout, rollout_axis"):
        make(layout='stacked')
    with pytest.raises(UsageError, match="needs layout 'rollout_axis'"):
        make(layout='stack', cross_plane=True)
    with pytest.raises(UsageError, match="plane_axes='orthogonal'"):
        make(layout='rollout_axis', axes=PLANE_AXES['legacy'])
    with pytest.raises(UsageError, match="planes of 10 texels with patch=2 in layout 'rollout': wanted 8"):
        make(layout='rollout', resolution=10)
