"""The places of a compiled step: names by hand, and sums that are the whole program's."""

import jax
import jax.numpy as jnp
import pytest

from t3d.plan import hlo_cost, places

LAYERS, WIDTH, ROWS = 5, 32, 16


@pytest.fixture(scope='module')
def text():
    """A step with a scanned layer, its gradient, a branch and a function of a name."""

    @jax.jit
    def attend(x, w):
        return jnp.tanh(x @ w)

    def loss(ws, x):
        y, _ = jax.lax.scan(lambda y, w: (attend(y, w), None), x, ws)
        y = jax.lax.cond(jnp.sum(y) > 0, lambda y: y @ ws[0], lambda y: y, y)
        return jnp.sum(jnp.square(y))

    shapes = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32), jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
    return jax.jit(jax.grad(loss)).lower(*shapes).compile().as_text()


def test_places_add_up_to_the_program(text):
    found, whole = places.of(hlo_cost.read(text, 1)), hlo_cost.of(text, 1)
    assert sum(one.memory_bytes for one in found) == whole.bytes > 0
    assert sum(one.flops for one in found) == whole.flops > 0
    assert sum(one.links_bytes for one in found) == 0.0


def test_products_of_a_loop_count_as_often_as_it_runs(text):
    found = {one.name: one for one in places.of(hlo_cost.read(text, 1))}
    forward = [one for name, one in found.items() if name.startswith('attend/dot_general') and 'backward' not in name]
    backward = [one for name, one in found.items() if name.startswith('attend/') and name.endswith('dot_general backward')]
    assert sum(one.count for one in forward) == LAYERS
    assert sum(one.count for one in backward) in (LAYERS, 2 * LAYERS)  # the compiler may take the weights' one out of the loop


@pytest.mark.parametrize(
    ('name', 'wanted'),
    [
        (
            'jit(train_step)/transpose(jvp(UNet))/UNet.denoise/up_blocks_1/attentions_12/attn1/to_v/dot_general',
            'UNet.denoise/up_blocks/attentions/attn1/to_v/dot_general backward',
        ),
        ('jit(train_step)/jvp(Tower)/while/body/closed_call/layers/norm_1/rsqrt', 'Tower/layers/norm/rsqrt'),
        ('jit(step)/vmap(jit(render))/gather;jit(step)/other', 'render/gather'),
        (
            'jit(s)/(transpose(jvp(UNet))/UNet.denoise/conv_in/reduce_sum:jvp(UNet)/UNet.denoise/conv_out/reduce_sum)',
            'UNet.denoise/conv_in/reduce_sum backward',
        ),
        (
            'jit(s)/jvp(UNet)/UNet.denoise/up_blocks_1/checkpoint/UNet.denoise/up_blocks_1/norm/mul',
            'UNet.denoise/up_blocks/norm/mul',
        ),
        ("state.params['unet']['kernel']", 'without a name: fusion'),
        ('broadcast.467', 'without a name: fusion'),
    ],
)
def test_names_of_places(name, wanted):
    assert places.name_of(f', metadata={{op_name="{name}" source_file="x.py"}}', 'fusion') == wanted


def test_an_instruction_without_metadata_is_told_by_its_kind():
    assert places.name_of(', calls=%fused', 'copy-start') == 'without a name: copy-start'


def test_the_heaviest_of_each_kind():
    some = [places.Place('a', 1, 2.0, 5.0, 0.0), places.Place('b', 2, 0.0, 3.0, 7.0), places.Place('c', 3, 1.0, 0.0, 9.0)]
    assert places.heaviest(some, 2) == {
        'compute': [{'place': 'a', 'count': 1, 'flops': 2.0}, {'place': 'c', 'count': 3, 'flops': 1.0}],
        'memory': [{'place': 'a', 'count': 1, 'bytes': 5.0}, {'place': 'b', 'count': 2, 'bytes': 3.0}],
        'links': [{'place': 'c', 'count': 3, 'bytes': 9.0}, {'place': 'b', 'count': 2, 'bytes': 7.0}],
    }
