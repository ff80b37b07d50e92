"""Costs read in compiled programs: against texts written by hand, and programs whose work is known by arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from t3d.parallel import devices
from t3d.plan import hlo, hlo_cost

# As XLA:TPU writes them (layouts, memory spaces, three notations of groups), made shorter.
TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=8

%all-reduce-scatter.1 (input.2: f32[64,32]) -> f32[64,8] {
  %input.2 = f32[64,32]{1,0:T(8,128)} parameter(0)
  %all-reduce.6 = f32[64,32]{1,0:T(8,128)} all-reduce(%input.2), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %dynamic-slice.21 = f32[64,8]{1,0:T(8,128)S(1)} dynamic-slice(%all-reduce.6, %c, %i), dynamic_slice_sizes={64,8}
}

%sliced (stack: bf16[12,64,8], i: s32[]) -> bf16[64,8] {
  %stack = bf16[12,64,8]{2,1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  %slice = bf16[1,64,8]{2,1,0:T(8,128)(2,1)} dynamic-slice(%stack, %i, %z, %z), dynamic_slice_sizes={1,64,8}
  ROOT %bitcast = bf16[64,8]{1,0:T(8,128)(2,1)S(1)} bitcast(%slice)
}

%body (arg: (s32[], bf16[12,64,8])) -> (s32[], bf16[12,64,8]) {
  %arg = (s32[]{:T(128)}, bf16[12,64,8]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %weights = bf16[12,64,8]{2,1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %one = bf16[64,8]{1,0:T(8,128)(2,1)S(1)} fusion(%weights, %count), kind=kLoop, calls=%sliced
  %gathered = bf16[64,32]{1,0:T(8,128)(2,1)S(1)} all-gather(%one), replica_groups=mesh['a'=2,'b'=4] {'b'}
  ROOT %tuple = (s32[]{:T(128)}, bf16[12,64,8]{2,1,0}) tuple(%count, %weights)
}

%condition (arg.1: (s32[], bf16[12,64,8])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, bf16[12,64,8]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %twelve = s32[]{:T(128)} constant(12)
  %count.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%count.1, %twelve), direction=LT, metadata={op_name="while/cond/lt"}
}

ENTRY %main.1 (p: bf16[12,64,8], x: f32[64,32]) -> f32[64,8] {
  %p = bf16[12,64,8]{2,1,0:T(8,128)(2,1)} parameter(0)
  %x = f32[64,32]{1,0:T(8,128)} parameter(1)
  %start = (s32[]{:T(128)}, bf16[12,64,8]{2,1,0}) tuple(%zero, %p)
  %while.26 = (s32[]{:T(128)}, bf16[12,64,8]{2,1,0:T(8,128)(2,1)}) while(%start), condition=%condition, body=%body
  %moved = f32[64,32]{1,0:T(8,128)} collective-permute(%x), channel_id=2, source_target_pairs={{0,1},{1,0}}
  %mixed = f32[64,32]{1,0:T(8,128)} all-to-all(%moved), channel_id=3, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  ROOT %fusion.39 = f32[64,8]{1,0:T(8,128)S(1)} fusion(%mixed), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


@pytest.fixture(scope='module')
def cost():
    return hlo_cost.of(TEXT, 8)


def test_collectives_of_a_text_count_as_often_as_their_loop_runs(cost):
    rows = {(one.kind, one.bytes, len(one.groups[0])): count for one, count in cost.collectives.items()}
    assert rows == {
        ('all-gather', 64 * 32 * 2, 4): 12,
        ('collective-permute', 64 * 32 * 4, 2): 1,
        ('all-to-all', 64 * 32 * 4, 2): 1,
        ('reduce-scatter', 64 * 32 * 4, 4): 1,  # in a fusion, as an all-reduce of which a part is kept
    }
    assert cost.unknown == 0


def test_bytes_of_a_text_are_slices_of_stacks_and_nothing_of_fast_memory(cost):
    loop = 12 * (64 * 8 * 2 + 4 + 1)  # a slice of the stack, the counter, the condition's result
    loop += 12 * 8  # the counter and its bound, read by the condition
    permute, mixed, reduced = 2 * 64 * 32 * 4, 2 * 64 * 32 * 4, 64 * 32 * 4
    assert cost.bytes == loop + permute + mixed + reduced


@pytest.mark.parametrize(
    'rest, wanted',
    [
        ('replica_groups={{0,1,2,3},{4,5,6,7}}, x=1', [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ('replica_groups=[2,4]<=[8], x=1', [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ('replica_groups=[4,2]<=[2,4]T(1,0), x=1', [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, x=1", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}, x=1", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, x=1", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ('replica_groups={}, x=1', [list(range(8))]),
    ],
)
def test_groups_of_devices_in_each_notation(rest, wanted):
    assert hlo.groups(rest, 8).tolist() == wanted


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile()


def test_flops_of_products_and_convolutions_by_arithmetic():
    x, w = jnp.zeros((3, 16, 32)), jnp.zeros((3, 32, 8))
    products = compiled(lambda x, w: jnp.einsum('bij,bjk->bik', x, w), x, w).as_text()
    assert hlo_cost.of(products, 1).flops == 2 * 3 * 16 * 32 * 8
    shapes = [(2, 9, 9, 4)], [(3, 3, 4, 6)]
    image, kernel = (hlo.Shape('f32', shape[0], 0, False) for shape in shapes)
    text = 'window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f'
    out = hlo.Shape('f32', (2, 9, 9, 6), 0, False)
    inside = (3 * 9 - 2) ** 2  # pairs of a place and a tap that meet the image, along both axes
    assert hlo_cost.convolution(text, image, kernel, out) == 2 * inside * 2 * 4 * 6
    # a batch of 5 products [7, 3] x [3, 2] as XLA:TPU writes it: one tap of each window meets a number
    left, right, made = (hlo.Shape('f32', sizes, 0, False) for sizes in ((5, 7, 3), (5, 2, 3), (5, 7, 2)))
    text = 'window={size=5 stride=4 pad=0_0 lhs_dilate=5}, dim_labels=0bf_0oi->0bf'
    assert hlo_cost.convolution(text, left, right, made) == 2 * 5 * 7 * 3 * 2


def test_a_loop_counts_in_full_where_the_compilers_own_count_does_not():
    def scanned(x, stack):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, stack)[0]

    program = compiled(scanned, jnp.zeros((16, 64)), jnp.zeros((10, 64, 64)))
    ours, theirs = hlo_cost.of(program.as_text(), 1), program.cost_analysis()
    assert ours.flops == 10 * 2 * 16 * 64 * 64 and theirs['flops'] < ours.flops / 5
    assert 10 * 64 * 64 * 4 <= ours.bytes < 6 * 10 * 64 * 64 * 4  # each layer's weights, not the stack at each of them


def test_bytes_of_a_program_without_loops_are_about_the_compilers():
    program = compiled(lambda x, w: jnp.tanh(x @ w) @ w.T, jnp.zeros((256, 128)), jnp.zeros((128, 512)))
    assert hlo_cost.of(program.as_text(), 1).bytes == pytest.approx(program.cost_analysis()['bytes accessed'], rel=0.2)


def test_collectives_of_a_program_on_eight_devices():
    """Rows over 'data', the weights over 'fsdp' along their outputs: gathered for the product, their gradient summed."""
    mesh = devices.make({'data': 2, 'fsdp': 4})
    place = lambda *spec: NamedSharding(mesh, P(*spec))
    x = jax.ShapeDtypeStruct((64, 256), np.float32, sharding=place('data'))
    w = jax.ShapeDtypeStruct((256, 128), np.float32, sharding=place(None, 'fsdp'))
    gather = compiled(lambda w: jax.lax.with_sharding_constraint(2.0 * w, place()), w)
    cost = hlo_cost.of(gather.as_text(), 8)
    (one,) = cost.collectives
    assert (one.kind, one.bytes, sorted(map(sorted, one.groups))) == ('all-gather', 256 * 128 * 4, [[0, 1, 2, 3], [4, 5, 6, 7]])
    total = compiled(lambda x: jax.lax.with_sharding_constraint(jnp.sum(x, 0), place()), x)
    (one,) = hlo_cost.of(total.as_text(), 8).collectives
    assert (one.kind, one.bytes) == ('all-reduce', 256 * 4)
    assert sorted(map(sorted, one.groups)) == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match='no ENTRY'):
        hlo.parse('HloModule nothing')
