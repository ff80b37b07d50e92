"""The flash kernel for TPUs, interpreted on the CPU: against softmax attention in float64, in whole networks, over devices."""

import contextlib
import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_weights
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from t3d.core import platforms, spread
from t3d.core.errors import UsageError
from t3d.metrics import flops
from t3d.nets import flash_attention, mv_unet, patched_unet, triplane_unet, unet_blocks, view_attention
from t3d.parallel import devices
from t3d.plan import chips, hlo_cost

ROOT = pathlib.Path(__file__).parent.parent
PLANNER = ROOT / '.venv-plan/bin/python'  # of `make setup-plan`
SECTION = dict(  # a UNet of one level with four transformers
    block_out_channels=(16,),
    layers_per_block=1,
    attention_head_dim=2,
    cross_attention_dim=12,
    norm_num_groups=4,
    use_linear_projection=True,
    attention_levels=(True,),
)


@contextlib.contextmanager
def as_on_a_tpu():
    """Inside, code is traced for a TPU, and its kernels run on the CPU by XLA."""
    with platforms.planned('tpu'), pltpu.force_tpu_interpret_mode(True):
        yield


@pytest.fixture
def few_keys(monkeypatch):
    """The kernel for every attention over more than a text."""
    monkeypatch.setattr(flash_attention, 'LEAST_KEYS', 20)


def drawn(count, keys, width, rows=2, heads=2, dtype=np.float32):
    """query, key, value and a slope of the result; logits of deviation 2, so that the softmax is far from flat."""
    random = np.random.default_rng(0)
    query, key, value, slope = (random.standard_normal((rows, n, heads, width)) for n in (count, keys, keys, count))
    return tuple(jnp.asarray(x, dtype) for x in (2.0 * query, key, value, slope))


def naive(query, key, value, slope, mask=None):
    """Result and gradients of sum(slope * result) by the definition, one row, head and query at a time, in float64."""
    query, key, value, slope = (np.asarray(x, np.float64) for x in (query, key, value, slope))
    rows, count, heads, width = query.shape
    out, to_query, to_key, to_value = (np.zeros_like(x) for x in (query, query, key, value))
    for b in range(rows):
        seen = np.arange(key.shape[1]) if mask is None else np.flatnonzero(mask[b])
        for h in range(heads):
            keys, values = key[b, seen, h], value[b, seen, h]
            for n in range(count):
                weights = np.exp(keys @ query[b, n, h] / np.sqrt(width))
                weights /= weights.sum()
                out[b, n, h] = weights @ values
                to_weights = values @ slope[b, n, h]
                to_logits = weights * (to_weights - weights @ to_weights) / np.sqrt(width)
                to_query[b, n, h] = to_logits @ keys
                to_key[b, seen, h] += to_logits[:, None] * query[b, n, h]
                to_value[b, seen, h] += weights[:, None] * slope[b, n, h]
    return out, to_query, to_key, to_value


def both(attend, query, key, value, slope):
    """As `naive`, by automatic differentiation."""
    out, pull = jax.vjp(attend, query, key, value)
    return (out, *pull(slope))


def close(got, expected, tolerance):
    """Each array to `tolerance` of its largest number."""
    for name, a, b in zip(('out', 'to_query', 'to_key', 'to_value'), got, expected, strict=True):
        error = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max() / np.abs(np.asarray(b, np.float64)).max()
        assert error < tolerance, (name, error)


SHAPES = {  # queries, keys, width of a head, masked
    'blocks of both': (256, 384, 40, False),
    'odd lengths': (150, 201, 40, False),
    'odd lengths and key mask': (129, 130, 16, True),
    'two registers a head': (130, 70, 160, False),
}


@pytest.mark.parametrize('count, keys, width, masked', SHAPES.values(), ids=SHAPES)
def test_the_kernel_is_softmax_attention_in_both_directions(count, keys, width, masked):
    inputs = drawn(count, keys, width)
    mask = np.random.default_rng(1).random((2, keys)) < 0.5 if masked else None
    with as_on_a_tpu():
        got = jax.jit(lambda *x: both(lambda *q: flash_attention.attend(*q, mask), *x))(*inputs)
    close(got, naive(*inputs, mask), 2e-6)
    heads_first = [x.swapaxes(1, 2) for x in inputs]
    allowed = None if mask is None else mask[:, None, None]
    plain = jax.jit(lambda *x: both(lambda *q: unet_blocks.plain_attention(*q, allowed), *x))(*heads_first)
    close(got, [x.swapaxes(1, 2) for x in plain], 2e-6)


def test_bfloat16_rounds_as_xla_does_and_upcast_does_not(few_keys):
    """Against the definition on the same rounded inputs: as near as plain products, and nearer with float32 copies."""
    inputs, errors = drawn(200, 150, 64, dtype=jnp.bfloat16), {}
    expected = naive(*inputs)
    for kernel in flash_attention.KERNELS:
        for upcast in (False, True):
            attend = functools.partial(unet_blocks.dot_product_attention, upcast=upcast, kernel=kernel)
            with as_on_a_tpu():
                got = jax.jit(functools.partial(both, attend))(*inputs)
            assert all(x.dtype == jnp.bfloat16 for x in got)
            far = [np.abs(np.asarray(a, np.float64) - b).mean() / np.abs(b).mean() for a, b in zip(got, expected, strict=True)]
            errors[kernel, upcast] = np.asarray(far)
    assert np.all(errors['flash', False] < 2.0 * errors['xla', False]), errors  # it rounds the gradient of logits too
    np.testing.assert_allclose(errors['flash', True], errors['xla', True], rtol=1e-2)
    assert np.all(errors['flash', True] < errors['flash', False]) and np.all(errors['flash', True] < 3e-3), errors


def test_it_is_taken_where_it_was_asked_for_on_a_tpu_for_many_keys(few_keys):
    def taken(count, keys, dtype=jnp.float32, attend=unet_blocks.dot_product_attention, **options):
        query, key = jnp.zeros((1, count, 2, 8), dtype), jnp.zeros((1, keys, 2, 8), dtype)
        return 'pallas_call' in str(jax.make_jaxpr(lambda *x: attend(*x, **options))(query, key, key))

    flash = dict(kernel='flash')
    assert not taken(128, 128, **flash)  # a CPU
    with platforms.planned('gpu'):
        assert not taken(128, 128, **flash)
    with platforms.planned('tpu'):
        assert taken(128, 128, **flash) and taken(5, 20, jnp.bfloat16, **flash)
        assert taken(128, 128, mask=np.ones((1, 128), bool), **flash)
        assert not taken(128, 128) and not taken(128, 19, **flash) and not taken(128, 128, jnp.float16, **flash)
        joint = view_attention.joint_attention
        assert taken(128, 128, attend=joint, **flash) and not taken(128, 128, attend=joint)
        assert not taken(128, 128, attend=joint, mask=np.ones((1, 128, 128), bool), **flash)


def test_an_unknown_kernel_is_named():
    with pytest.raises(UsageError, match="attention='splash': wanted 'xla', 'flash' for"):
        patched_unet.from_section({**SECTION, 'attention': 'splash'}, 4, 4)


def network(kind, **section):
    """(module for a kernel, its arguments but for the parameters) of SECTION with changes."""
    section = {**SECTION, **section}
    random = np.random.default_rng(2)
    normal = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)
    text, t = normal(2, 7, 12), jnp.asarray([3.0, 700.0])
    if kind == 'planes':
        del section['use_linear_projection']
        axes = ((0, 1), (0, 2), (2, 1))
        make = lambda kernel: triplane_unet.PlaneUNet(**section, channels=4, axes=axes, attention=kernel)
        return make, (normal(2, 3, 8, 8, 4), t, text)
    classes = {'flat': patched_unet.UNet, 'views': mv_unet.MultiViewUNet}
    make = lambda kernel: patched_unet.from_section({**section, 'attention': kernel}, 4, 4, kind=classes[kind])
    return make, (normal(2, 2, 8, 4, 4) if kind == 'views' else normal(2, 8, 8, 4), t, text)


def kernels_in(jaxpr) -> int:
    """How many kernels a jaxpr calls."""
    inner = (getattr(leaf, 'jaxpr', leaf) for one in jaxpr.eqns for leaf in jax.tree.leaves(list(one.params.values())))
    calls = sum(one.primitive.name == 'pallas_call' for one in jaxpr.eqns)
    return calls + sum(kernels_in(each) for each in inner if hasattr(each, 'eqns'))


@pytest.mark.parametrize('kind', ['flat', 'views', 'planes'])
def test_every_self_attention_of_a_network_is_the_kernel_and_none_of_a_text(kind, few_keys):
    """Four transformers; the kernel has one call forward and two backward."""
    make, inputs = network(kind)
    params = jax.eval_shape(make('xla').init, jax.random.key(0), *inputs)['params']
    for kernel, calls in (('xla', 0), ('flash', 12)):
        step = jax.grad(lambda params, inputs, net: jnp.sum(net.apply({'params': params}, *inputs)))
        with platforms.planned('tpu'):
            assert kernels_in(jax.make_jaxpr(step, static_argnums=2)(params, inputs, make(kernel)).jaxpr) == calls


def test_a_whole_network_is_the_same_by_the_kernel(few_keys):
    """Output, gradients of all parameters and of the input; attention in its middle alone."""
    make, inputs = network('flat', attention_levels=(False,))
    params = random_weights.fan_in(jax.eval_shape(make('xla').init, jax.random.key(0), *inputs)['params'])

    def run(kernel):
        def loss(params, *inputs):
            out = make(kernel).apply({'params': params}, *inputs)
            return jnp.sum(jnp.sin(out)), out

        with as_on_a_tpu():
            return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, *inputs)

    for a, b in zip(jax.tree.leaves(run('flash')), jax.tree.leaves(run('xla')), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.0, atol=1e-5 * max(np.abs(b).max(), 1.0))


def test_eight_devices_attend_to_their_own_rows_and_heads():
    """The result of one device, and a program in which no device sends another anything; without shard_map they gather."""
    inputs = drawn(96, 140, 24, rows=8)
    mask = np.arange(140)[None] < np.arange(60, 140, 10)[:, None]
    step = lambda *x: both(lambda *q: flash_attention.attend(*q, x[4]), *x[:4])
    with as_on_a_tpu():
        one = jax.jit(step)(*inputs, mask)
        mesh = devices.make({'data': 2, 'fsdp': 2, 'tensor': 2})
        place = lambda x: NamedSharding(mesh, P(spread.BATCH, None, 'tensor') if x.ndim == 4 else P(spread.BATCH))
        placed = [jax.device_put(x, place(x)) for x in (*inputs, mask)]
        with jax.set_mesh(mesh):
            made = jax.jit(step).lower(*placed).compile()
            many = made(*placed)
            bare = jax.jit(flash_attention._padded).lower(*placed[:3]).compile()
    assert hlo_cost.of(made.as_text(), 8).collectives == {}
    assert {each.kind for each in hlo_cost.of(bare.as_text(), 8).collectives} >= {'all-gather'}
    assert all(x.sharding.is_equivalent_to(placed[0].sharding, 4) for x in many)
    close(many, one, 1e-6)


def test_rows_that_do_not_divide_are_computed_by_all(few_keys):
    inputs = drawn(24, 24, 8, rows=3)
    with as_on_a_tpu(), jax.set_mesh(devices.make({'data': 8})):
        many = jax.jit(lambda *x: both(flash_attention.attend, *x))(*inputs)
    close(many, naive(*inputs), 2e-6)


def test_views_spread_over_devices_attend_by_the_kernel(few_keys):
    """Each device has the queries of its views; inside of `spread.over` nothing is spread again."""
    x = np.random.default_rng(3).standard_normal((2, 8 * 9, 16)).astype(np.float32)
    options = unet_blocks.Options(groups=4, epsilon=1e-5)
    layer = lambda kernel, axis: view_attention.JointAttention(2, options._replace(attention=kernel), axis)
    params = random_weights.fan_in(jax.eval_shape(layer('xla', '').init, jax.random.key(0), x)['params'])

    def run(kernel, axis, **sizes):
        loss = lambda x, params: jnp.sum(jnp.sin(layer(kernel, axis).apply({'params': params}, x)))
        with as_on_a_tpu(), jax.set_mesh(devices.make({'data': 1, **sizes})):
            made = jax.jit(jax.value_and_grad(loss, (0, 1)))
            return jax.device_get(made(x, params)), 'pallas_call' in str(jax.make_jaxpr(made)(x, params))

    expected, plain = run('xla', '')
    assert not plain
    got, kernel = run('flash', 'tensor', data=2, tensor=4)
    assert kernel
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.0, atol=1e-5 * max(np.abs(b).max(), 1.0))


def test_model_flops_are_those_of_plain_products():
    """Two products forward, four backward, on all devices; what the kernel computes again is none."""
    x = jnp.zeros((8, 256, 2, 64))
    expected = 6 * 2 * 8 * 2 * 256 * 256 * 64
    step = lambda attend: jax.grad(lambda *x: jnp.sum(attend(*x) ** 2), (0, 1, 2))
    assert flops.count(step(unet_blocks.dot_product_attention), x, x, x) == expected
    for sizes in ({}, {'data': 4, 'tensor': 2}):
        with jax.set_mesh(devices.make({'data': 1, **sizes})):
            assert flops.count(step(flash_attention.attend), x, x, x) == expected
            assert flops.count(step(jax.checkpoint(flash_attention.attend)), x, x, x) == expected


WIDTHS = (40, 64, 80, 128, 160)  # of heads in Stable Diffusion 1.5 and 2.1


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_it_lowers_for_a_tpu_at_full_size(dtype):
    """Kernels are translated to what the TPU's compiler reads, which needs none; 4097 is no multiple of anything."""
    for count, width in [(4096, width) for width in WIDTHS] + [(4097, 64)]:
        x = jax.ShapeDtypeStruct((1, count, 5, width), dtype)
        step = jax.grad(lambda *x: jnp.sum(flash_attention.attend(*x).astype(jnp.float32)), (0, 1, 2))
        text = jax.export.export(jax.jit(step), platforms=['tpu'])(x, x, x).mlir_module()
        assert text.count('@tpu_custom_call') == 3


COMPILED = """
import sys
from t3d.plan import chips
one = chips.topology('v5e:2x2')
chips.prepare(one)
import jax, jax.numpy as jnp
from t3d.core import platforms
from t3d.nets import unet_blocks
place = jax.sharding.SingleDeviceSharding(chips.devices(one)[0])
x = jax.ShapeDtypeStruct((4, 4096, 10, 64), jnp.bfloat16, sharding=place)
whole = lambda *x: jax.nn.dot_product_attention(*x)
kernels = [lambda *x, name=name: unet_blocks.dot_product_attention(*x, kernel=name) for name in ('xla', 'flash')]
with platforms.planned('tpu'):
    for attend in (whole, *kernels):
        step = lambda *x: jax.vjp(attend, *x[:3])[1](x[3])
        print(jax.jit(step).lower(x, x, x, x).compile().memory_analysis().temp_size_in_bytes)
"""


@pytest.mark.skipif(not (chips.has_compiler() or PLANNER.exists()), reason='libtpu is not installed: make setup-plan')
def test_the_compiler_for_tpus_gives_it_less_memory():
    """The gradient at 4,096 positions and 10 heads of 64, 4 rows: logits whole, in chunks, and never in main memory."""
    python = sys.executable if chips.has_compiler() else str(PLANNER)
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'T3D_TYPECHECK': '0'}
    done = subprocess.run([python, '-c', COMPILED], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    whole, chunks, flash = (int(line) / 2**30 for line in done.stdout.split())
    assert whole > 3.0 and flash < 0.45 and flash < chunks < 1.0, (whole, chunks, flash)


# As XLA:TPU writes the three passes over 2 rows of 3 heads, 256 queries and 384 keys (types, layouts and bodies made shorter).
PASSES = """HloModule jit_step, is_scheduled=true

ENTRY %main (q: bf16[2,3,256,64], k: bf16[2,3,384,64]) -> bf16[2,3,256,64] {
  %q = bf16[2,3,256,64]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[2,3,384,64]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %other = bf16[2,3,256,64]{3,2,1,0} custom-call(%q, %k), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/other/pallas_call"}
  %fw.1 = (bf16[2,3,256,64]{3,2,1,0}, f32[2,3,256,128]{3,2,1,0}) custom-call(%q, %k, %k), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/jvp(jit(flash_attention))/pallas_call"}
  %kv.1 = bf16[2,3,384,64]{3,2,1,0} custom-call(%q, %k, %k), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/transpose(jvp(jit(flash_attention)))/flash_mha_bwd_dkv_block_q_major=256/pallas_call"}
  ROOT %q.1 = bf16[2,3,256,64]{3,2,1,0} custom-call(%q, %k, %k), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/transpose(jvp(jit(flash_attention)))/flash_mha_bwd_dq_block_q_major=256/pallas_call"}
}
"""  # noqa: E501


def test_a_plan_counts_its_products():
    assert hlo_cost.of(PASSES, 1).flops == (2 + 4 + 3) * 2 * 2 * 3 * 256 * 384 * 64
