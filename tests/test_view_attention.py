"""Views of an object spread over devices: the same numbers and gradients as on one, and less memory on each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_weights
import test_mv_unet
from test_mv_unet import FORMS, SIDE, rig

from t3d.core.errors import UsageError
from t3d.fields import view_inputs
from t3d.geom import epipolar
from t3d.metrics import flops
from t3d.nets import epipolar_block, mv_unet, unet, unet_blocks, view_attention
from t3d.parallel import devices, sharding

VIEWS, PLACES, OPTIONS = 16, 36, unet_blocks.Options(groups=4, epsilon=1e-5)


def compiled(function, *arguments, placed=None, **sizes):
    """(value and gradients of the sum of sin(function), temporary bytes of a device) on a mesh of these sizes."""

    def loss(*arguments):
        out = function(*arguments)
        return jnp.sum(jnp.sin(out)), out

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    with jax.set_mesh(devices.make({'data': 1, **sizes})):
        arguments = arguments if placed is None else placed(arguments)
        made = step.lower(*arguments).compile()
        return jax.device_get(made(*arguments)), made.memory_analysis().temp_size_in_bytes


def close(one, many):
    """To 1e-5 of the largest number of each array."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(b, a, rtol=0.0, atol=1e-5 * max(np.abs(a).max(), 1.0))


@pytest.mark.parametrize('cached', [2**40, 2**16], ids=['whole', 'blocks'])
@pytest.mark.parametrize('masked', [False, True], ids=['all', 'masked'])
def test_spread_over_eight_devices_it_is_dense_attention_with_an_eighth_of_the_logits_on_each(masked, cached, monkeypatch):
    monkeypatch.setattr(view_attention, 'CACHED', cached)
    random = np.random.default_rng(0)
    x = random.standard_normal((2, VIEWS * PLACES, 8)).astype(np.float32)
    mask = np.eye(VIEWS * PLACES, dtype=bool) | (random.random((2, VIEWS * PLACES, VIEWS * PLACES)) < 0.3) if masked else None
    layer = lambda axis: view_attention.JointAttention(2, OPTIONS, axis)
    params = random_weights.fan_in(jax.eval_shape(layer('').init, jax.random.key(0), x)['params'])
    run = lambda axis, **sizes: compiled(lambda x, params: layer(axis).apply({'params': params}, x, mask), x, params, **sizes)
    one, whole = run('')
    many, part = run('tensor', tensor=8)
    close(one, many)
    close(one, run('fsdp', data=2, fsdp=4)[0])
    logits = 4 * 2 * 2 * (VIEWS * PLACES) ** 2  # bytes, of both heads and objects
    assert (whole > logits and part < whole / 5) if cached > logits else part < whole < logits, (whole, part)
    if not masked:
        plain = unet_blocks.Attention(2, OPTIONS)
        close(one, compiled(lambda x, params: plain.apply({'params': params}, x), x, params)[0])


def test_the_backward_pass_gathers_keys_and_values_again_and_does_not_attend_again(monkeypatch):
    """No device keeps what others have, and the blocks of queries run once forward and once backward."""
    monkeypatch.setattr(view_attention, 'CACHED', 2**10)
    x = np.random.default_rng(0).standard_normal((2, VIEWS * 4, 8)).astype(np.float32)
    layer = view_attention.JointAttention(2, OPTIONS, 'tensor')
    params = random_weights.fan_in(jax.eval_shape(layer.init, jax.random.key(0), x)['params'])
    with jax.set_mesh(devices.make({'data': 1, 'tensor': 8})):
        pull = jax.jit(lambda x, params: jax.vjp(lambda *args: layer.apply({'params': args[1]}, args[0]), x, params)[1])
        kept = jax.tree.leaves(jax.eval_shape(pull, x, params))
        program = str(jax.make_jaxpr(lambda x, params, slope: pull(x, params)(slope))(x, params, x))
    assert max(leaf.size for leaf in kept) == x.size, [leaf.shape for leaf in kept]
    assert program.count('all_gather[') == 4 and program.count('scan[') == 2, program


@pytest.mark.parametrize('cached', [2**40, 2**10], ids=['whole', 'blocks'])
def test_model_flops_are_those_of_one_device_that_attends_at_once(cached, monkeypatch):
    """Four layers and two products, each three times with their gradients."""
    monkeypatch.setattr(view_attention, 'CACHED', cached)
    count, x = VIEWS * 4, jnp.zeros((2, VIEWS * 4, 8))
    expected = 3 * 2 * 2 * (4 * count * 8 * 8 + 2 * count * count * 8)
    for axis, sizes in (('', {}), ('tensor', {'tensor': 8}), ('tensor', {'data': 4, 'tensor': 2})):
        layer = view_attention.JointAttention(2, OPTIONS, axis)
        params = jax.eval_shape(layer.init, jax.random.key(0), x)
        with jax.set_mesh(devices.make({'data': 1, **sizes})):
            step = jax.grad(lambda layer, params, x: jnp.sum(layer.apply(params, x) ** 2), (1, 2))
            assert flops.count(functools.partial(step, layer), params, x) == expected, sizes


def test_spread_rays_look_into_the_maps_of_all_views():
    rays = epipolar.ray_points(rig(8), 4, 4, 3, 2.0, 4.4)
    x = np.random.default_rng(0).standard_normal((2 * 8, 4, 4, 8)).astype(np.float32)
    block = lambda axis: epipolar_block.EpipolarBlock(2, axis=axis)
    params = random_weights.fan_in(jax.eval_shape(block('').init, jax.random.key(1), x, rays)['params'])
    run = lambda axis, **sizes: compiled(lambda x, params: block(axis).apply({'params': params}, x, rays), x, params, **sizes)
    close(run('')[0], run('tensor', data=2, tensor=4)[0])


@pytest.mark.slow
@pytest.mark.parametrize('form', FORMS)
def test_a_network_whose_views_are_spread_is_the_one_on_a_single_device(form):
    """Forward and backward, parameters sharded by the rules of the network, on three meshes of eight devices."""
    small, cameras = test_mv_unet.small(form), rig(VIEWS)
    x = np.random.default_rng(0).standard_normal((2, VIEWS, SIDE, SIDE, 4)).astype(np.float32)
    views = view_inputs.make(small.net, cameras, SIDE, SIDE, test_mv_unet.options(form))

    def run(axis, **sizes):
        net = small.net.clone(view_axis=axis)
        apply = lambda params, x: net.apply({'params': params}, x, jnp.full(2, 7.0), small.text, views)

        def placed(arguments):
            mesh = devices.make({'data': 1, **sizes})
            rules = (*mv_unet.SHARDING, *unet.SHARDING)
            return jax.device_put(arguments[0], sharding.shardings(arguments[0], rules, mesh, 0)), arguments[1]

        return compiled(apply, small.params, x, placed=placed, **sizes)

    one, whole = run('')
    for axis, sizes in (('tensor', {'tensor': 8}), ('tensor', {'data': 2, 'tensor': 4}), ('fsdp', {'data': 2, 'fsdp': 4})):
        many, part = run(axis, **sizes)
        close(one, many)
        assert part < whole / 3, (sizes, whole, part)


def test_pictures_are_not_spread_and_views_that_do_not_divide_are_refused():
    net, text = test_mv_unet.small('dense').net.clone(view_axis='tensor'), np.zeros((1, 5, 24), np.float32)
    with pytest.raises(UsageError, match="view_axis='data'"):
        net.clone(view_axis='data').check()
    init = lambda views: jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, views, SIDE, SIDE, 4)), jnp.zeros(1), text)
    init(3)  # no mesh
    with jax.set_mesh(devices.make({'data': 1, 'tensor': 8})):
        init(1)
        with pytest.raises(UsageError, match=r'3 views do not divide over the 8 devices .* wanted mesh.tensor of \[1, 3\]'):
            init(3)
