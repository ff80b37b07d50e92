"""The fused kernel that renders triplanes on TPUs, interpreted on the CPU: against XLA's path, in a step, over devices."""

import contextlib
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from small_fused import SIGMOID, both, by_kernel, by_xla, drawn, lump
from test_instant3d import a_batch, small

from t3d.core import numerics, platforms, spread
from t3d.core.errors import UsageError
from t3d.fields import fused_render, text_field, triplane_field
from t3d.geom.rays import ray_box
from t3d.metrics import flops
from t3d.parallel import devices
from t3d.plan import chips, hlo_cost

ROOT = pathlib.Path(__file__).parent.parent
PLANNER = ROOT / '.venv-plan/bin/python'  # of `make setup-plan`


@contextlib.contextmanager
def as_on_a_tpu():
    """Inside, code is traced for a TPU, and its kernels run on the CPU by XLA."""
    with platforms.planned('tpu'), pltpu.force_tpu_interpret_mode(True):
        yield


def close(got, expected, tolerance=1e-5):
    """Each array to `tolerance` of its largest number."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True)
    for (path, a), b in pairs:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max(), (jax.tree_util.keystr(path), np.abs(a - b).max())


CASES = {
    'whole blocks': (dict(size=16, channels=16, rays=128), SIGMOID, None),
    'odd sizes, a second pass': (
        dict(size=13, channels=12, rays=150, scenes=2, hidden=20, fine=4),
        SIGMOID._replace(plane_axes='legacy', bound=1.2, equalised=False),
        lump,
    ),
    'many channels and outputs': (
        dict(size=18, channels=32, rays=130, outputs=9),
        fused_render.Options(
            lambda features, level: triplane_field.colour(features), lambda raw: 9.0 * triplane_field.eg3d_density(raw)
        ),
        lump,
    ),
}


@pytest.mark.parametrize('sizes, options, added', CASES.values(), ids=CASES)
def test_the_kernel_sees_what_xla_sees_and_its_gradients_are_xlas(sizes, options, added):
    inputs = drawn(**sizes)
    expected = jax.jit(lambda *x: both(by_xla, *x, options, added))(*inputs)
    with as_on_a_tpu():
        got = jax.jit(lambda *x: both(by_kernel, *x, options, added))(*inputs)
    assert np.ptp(expected[0].opacity) > 0.9  # both what misses and what is solid
    close(got, expected)
    near, far = ray_box(inputs[1], 3.0)
    missed = np.asarray(~(near <= far) | (far <= 0.0))
    assert missed.any() and np.all(np.asarray(got[0].opacity)[missed] == 0.0)


def test_who_wants_a_gradient_of_rays_is_told():
    scene, rays, draws = drawn(8, 8, 5)
    move = lambda shift, rays: rays.replace(origins=rays.origins + shift)
    loss = lambda shift: jnp.sum(by_kernel(scene, move(shift, rays), draws, SIGMOID, None).opacity)
    with as_on_a_tpu(), pytest.raises(UsageError, match='no gradient for rays, depths or the level .*set render.kernel=xla'):
        jax.jit(jax.grad(loss))(0.1)


def test_an_unknown_kernel_is_named():
    config, _ = small()
    with config.copy_and_resolve_references().unlocked() as changed:
        changed.render.kernel = 'triton'
    with pytest.raises(UsageError, match="render.kernel='triton': wanted 'xla', or 'fused'"):
        text_field.TextField(changed)


def test_it_is_taken_where_it_was_asked_for_on_a_tpu_for_small_planes():
    config = {kernel: small(f'render.kernel={kernel}')[0] for kernel in fused_render.KERNELS}

    def taken(size, kernel='fused', dtype=jnp.float32, field=None):
        model = text_field.TextField(config[kernel])
        (planes, decoder), rays, draws = jax.eval_shape(lambda: drawn(size, 32, 9))
        scene = {'planes': jax.ShapeDtypeStruct(planes.shape, dtype), 'field': {**decoder, 'alpha': 0.5}}
        return 'pallas_call' in str(jax.make_jaxpr(lambda *x: model.render_drawn(*x, field))(scene, rays, draws))

    assert not taken(8)  # a CPU
    with platforms.planned('gpu'):
        assert not taken(8)
    with platforms.planned('tpu'):
        assert taken(8) and taken(128) and not taken(129) and not taken(8, 'xla') and not taken(8, dtype=jnp.bfloat16)
        assert not taken(8, field=lambda points, directions: (points[..., 0], points))


def test_a_text_field_is_rendered_the_same():
    """With its blob, bias, albedo and scaled density, and a second pass."""
    config, _ = small('field.blob=2.0', 'field.alpha=0.6', 'render.plane_axes=legacy')
    scene, rays, draws = drawn(9, 16, 33, fine=4)
    scene = {'planes': scene[0], 'field': {**scene[1], 'alpha': jnp.float32(0.6)}}

    def seen(kernel):
        model = text_field.TextField(config)
        model.kernel = kernel
        with as_on_a_tpu():
            return jax.jit(lambda *x: model.render_drawn(*x).replace(weights=None))(scene, rays, draws)

    expected = seen('xla')
    assert np.ptp(expected.opacity) > 0.9 and expected.features.max() > 1.0
    close(seen('fused'), expected)


@pytest.mark.slow  # the test before this one, and that of gradients
def test_a_train_step_is_the_same_by_the_kernel():
    """Loss, norm and every gradient, the last as Adam's first moments of a first step."""

    def stepped(kernel):
        config, system = small(f'render.kernel={kernel}', 'render.importance=4', 'field.blob=2.0')
        batch = a_batch(config)
        state = jax.jit(system.init)(jax.random.key(0), batch)
        with as_on_a_tpu():
            traced = jax.jit(system.train_step).trace(state, batch, jax.random.key(1))
            made = traced.lower().compile()
        return made(state, batch, jax.random.key(1)), 'pallas_call' in str(traced.jaxpr)

    (expected, metrics), plain = stepped('xla')
    (got, others), fused = stepped('fused')
    assert fused and not plain
    for name in metrics:
        np.testing.assert_allclose(others[name], metrics[name], rtol=1e-5, err_msg=name)
    moments = lambda state: [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert len(moments(got)) > 20
    largest = max(np.abs(leaf).max() for leaf in moments(expected))
    for a, b in zip(moments(got), moments(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.0, atol=2e-5 * max(np.abs(b).max(), 1e-3 * largest))


def test_eight_devices_render_their_own_scenes():
    """The result of one device; of all that is sent, the sum of the decoder's gradients alone."""
    scene, rays, draws = drawn(8, 8, 20, scenes=8, hidden=8, samples=4, fine=3)
    step = lambda *x: both(by_kernel, *x, SIGMOID)
    with as_on_a_tpu():
        one = jax.jit(step)(scene, rays, draws)
        mesh = devices.make({'data': 2, 'fsdp': 2, 'tensor': 2})
        rows, whole = NamedSharding(mesh, P(spread.BATCH)), NamedSharding(mesh, P())
        placed = jax.device_put((scene, rays, draws), ((rows, whole), rows, rows))
        with jax.set_mesh(mesh):
            made = jax.jit(step).lower(*placed).compile()
            many = made(*placed)
    close(many, one)
    sent = hlo_cost.of(made.as_text(), 8).collectives
    assert {each.kind for each in sent} == {'all-reduce'}
    assert sum(each.bytes * count for each, count in sent.items()) < 4 * 2 * sum(x.size for x in jax.tree.leaves(scene[1]))
    assert many[1][0].sharding.is_equivalent_to(rows, 5)


def test_model_flops_are_those_of_the_point_mlp():
    """Of plain products: not the look-up, nor what is looked up or decoded again. XLA sums colours by products too."""
    inputs = jax.eval_shape(lambda: drawn(16, 16, 256, scenes=8, hidden=16, samples=6, fine=4))
    step = lambda render: lambda *x: both(render, *x, SIGMOID)
    samples = 8 * 256 * (6 + 4)
    expected = 3 * 2 * samples * (16 * 16 + 16 * 4)
    with platforms.planned('tpu'):
        assert flops.count(step(by_xla), *inputs) == expected + 3 * 2 * samples * 3
        assert flops.count(step(by_kernel), *inputs) == expected
        with jax.set_mesh(devices.make({'data': 8})):
            assert flops.count(step(by_kernel), *inputs) == expected


@pytest.mark.parametrize('size, channels', [(64, 16), (128, 32), (100, 20)])
def test_it_lowers_for_a_tpu_at_full_size(size, channels):
    """Kernels are translated to what the TPU's compiler reads, which needs none."""
    inputs = jax.eval_shape(lambda: drawn(size, channels, 4096, hidden=64, samples=64, fine=32))
    for name, activation in text_field.ALBEDOS.items() if size == 100 else [('', numerics.scaled_sigmoid)]:
        step = lambda *x, activation=activation: both(by_kernel, *x, SIGMOID._replace(activation=activation), lump)
        text = jax.export.export(jax.jit(step), platforms=['tpu'])(*inputs).mlir_module()
        assert text.count('@tpu_custom_call') == 3, name


COMPILED = """
import sys
sys.path.insert(0, 'tests')
from t3d.plan import chips
one = chips.topology('v5e:2x2')
chips.prepare(one)
import jax
import small_fused
from t3d.core import platforms
from t3d.plan import hlo_cost
place = jax.sharding.SingleDeviceSharding(chips.devices(one)[0])
inputs = jax.eval_shape(lambda: small_fused.drawn(64, 16, 4096, hidden=64, samples=96))
inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), inputs)
with platforms.planned('tpu'):
    for render in (small_fused.by_xla, small_fused.by_kernel):
        made = jax.jit(lambda *x: render(*x, small_fused.SIGMOID, None)).lower(*inputs).compile()
        print(made.memory_analysis().temp_size_in_bytes, *hlo_cost.of(made.as_text(), 1)[:2])
"""


@pytest.mark.slow
@pytest.mark.skipif(not (chips.has_compiler() or PLANNER.exists()), reason='libtpu is not installed: make setup-plan')
def test_the_compiler_for_tpus_takes_it_and_moves_less():
    """One scene of 64 x 64 x 16, 64 x 64 rays of 96 samples, forward: temporaries, FLOPs, bytes moved."""
    python = sys.executable if chips.has_compiler() else str(PLANNER)
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'T3D_TYPECHECK': '0'}
    done = subprocess.run([python, '-c', COMPILED], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    xla, fused = (list(map(float, line.split())) for line in done.stdout.split('\n') if line)
    points, mlp = 4096 * 96, 64 * 16 + 64 * 4
    assert fused[0] < 2**20 < 400 * 2**20 < xla[0], (xla, fused)
    assert fused[1] == 2 * points * (3 * 3 * 64 * 64 * 16 + mlp)
    assert fused[2] < 8 * 2**20 < 2**30 < xla[2], (xla, fused)


# As XLA:TPU writes the two kernels for 2 scenes of 8 x 8 x 16, 3 samples on 128 rays, 24 hidden channels (types made shorter).
CALLS = """HloModule jit_step, is_scheduled=true

ENTRY %main (l: f32[1], o: f32[2,3,128], d: f32[2,3,128], t: f32[2,3,128], a: f32[2,3,128], p: bf16[2,3,128,24], k: f32[24,16], b: f32[24,1], q: f32[4,24], c: f32[4,1]) -> f32[2,3,128,8] {
  %l = f32[1]{0} parameter(0)
  %o = f32[2,3,128]{2,1,0} parameter(1)
  %d = f32[2,3,128]{2,1,0} parameter(2)
  %t = f32[2,3,128]{2,1,0} parameter(3)
  %a = f32[2,3,128]{2,1,0} parameter(4)
  %p = bf16[2,3,128,24]{3,2,1,0} parameter(5)
  %k = f32[24,16]{1,0} parameter(6)
  %b = f32[24,1]{1,0} parameter(7)
  %q = f32[4,24]{1,0} parameter(8)
  %c = f32[4,1]{1,0} parameter(9)
  %fw = (f32[2,5,128]{2,1,0}, f32[2,3,16,128]{3,2,1,0}, f32[2,3,4,128]{3,2,1,0}) custom-call(%l, %o, %d, %t, %a, /*index=5*/%p, %k, %b, %q, %c), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/jvp(fused_render_forward)/pallas_call"}
  %s = f32[2,3,16,128]{3,2,1,0} get-tuple-element(%fw), index=1
  %v = f32[2,3,4,128]{3,2,1,0} get-tuple-element(%fw), index=2
  %bw = (f32[2,3,128,8]{3,2,1,0}, f32[2,24,16]{2,1,0}, f32[2,24,1]{2,1,0}, f32[2,4,24]{2,1,0}, f32[2,4,1]{2,1,0}) custom-call(%l, %o, %d, %t, %k, /*index=5*/%b, %q, %c, %s, %v), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/transpose(jvp(fused_render_backward))/pallas_call"}
  ROOT %r = f32[2,3,128,8]{3,2,1,0} get-tuple-element(%bw), index=0
}
"""  # noqa: E501


def test_a_plan_counts_its_products():
    points, table, mlp = 2 * 3 * 128, 3 * 8 * 8 * 16, 24 * 16 + 4 * 24
    assert hlo_cost.of(CALLS, 1).flops == 2 * points * (3 * table + mlp + 3 * table + 3 * mlp)
