"""What a step does once in N steps: when it runs, and that FLOPs, bytes, collectives and places count it by its share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_gan
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from t3d import systems
from t3d.bench import gan as gan_bench
from t3d.core import cadence
from t3d.metrics import flops
from t3d.parallel import devices
from t3d.plan import chips, hlo_cost, places, planner, programs, report

ROWS, WIDTH = 32, 16
PRODUCT = 2 * ROWS * WIDTH * WIDTH  # FLOPs of x @ w
X, W = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32), jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)
STEP = jax.ShapeDtypeStruct((), jnp.int32)


def lazily(x, w, step):
    """A product at each step; at every 4th three more where one stands else; at every 6th, inside a loop of 5, one more."""
    x = jnp.tanh(x @ w)
    thrice = lambda x: jnp.tanh(jnp.tanh(jnp.tanh(x @ w) @ w) @ w)
    x = cadence.once_in(4, step, thrice, lambda x: jnp.cos(x @ w), x)
    once = lambda x: jnp.sin(x @ w)
    return jax.lax.scan(lambda x, _: (cadence.once_in(6, step, once, jnp.cos, x), None), x, None, length=5)[0]


BY_HAND = 1 + (3 / 4 + 1 * 3 / 4) + 5 / 6  # products of a step, on average


def test_work_runs_at_the_steps_that_its_cadence_divides():
    step = jax.jit(lambda x, step: cadence.once_in(3, step, lambda x: x + 1, lambda x: x - 1, x))
    assert [int(step(10, k)) - 10 for k in range(7)] == [1, -1, -1, 1, -1, -1, 1]
    assert cadence.cycle((4, 6)) == 12 and cadence.cycle(()) == 1


@pytest.mark.parametrize(
    ('scopes', 'wanted'),
    [
        ('every_4', 4),
        ('step/transpose(jvp(every_16))', 16),
        ('every_4/body', None),
        ('very_every_4', None),
        ('jvp(every_1)', None),  # each step has it
        ('', None),
    ],
)
def test_the_name_of_a_cadence_is_the_last_of_its_scopes(scopes, wanted):
    assert cadence.of(scopes) == wanted


def test_model_flops_are_the_mean_over_a_cycle():
    work = flops.work(lazily, X, W, STEP)
    assert work == (round(BY_HAND * PRODUCT), (4, 6))
    by_step = [1 + (3 if k % 4 == 0 else 1) + 5 * (k % 6 == 0) for k in range(12)]
    assert work.flops * 12 == pytest.approx(sum(by_step) * PRODUCT, abs=12)


def test_conditionals_without_a_cadence_count_their_dearest_branch():
    def rungs(x, w, step):
        def inner(x):  # not due by the name of what is around it
            return jax.lax.cond(jnp.sum(x) > 0, lambda x: jnp.tanh(x @ w), lambda x: x, x)

        x = jax.lax.switch(step % 2, [lambda x: x, lambda x: jnp.tanh(x @ w)], x)
        return cadence.once_in(4, step, inner, lambda x: x, x)

    assert flops.work(rungs, X, W, STEP) == (PRODUCT + PRODUCT // 4, (4,))
    reader = hlo_cost.read(jax.jit(rungs).lower(X, W, STEP).compile().as_text(), 1)
    assert reader.computation(None).flops == PRODUCT + PRODUCT / 4


def test_the_name_arrives_in_the_compiled_program_and_weighs_its_branches():
    text = jax.jit(lazily).lower(X, W, STEP).compile().as_text()
    reader = hlo_cost.read(text, 1)
    cost = reader.computation(None)
    assert reader.cadences() == {4, 6} and cost.flops == pytest.approx(BY_HAND * PRODUCT)
    found = places.of(reader)
    assert sum(one.flops for one in found) == pytest.approx(cost.flops)
    assert sum(one.memory_bytes for one in found) == pytest.approx(cost.bytes)
    unnamed = hlo_cost.read(text.replace('every_', 'each_'), 1)  # as if it ran at each step
    assert unnamed.computation(None).flops == (1 + 3 + 5) * PRODUCT and unnamed.cadences() == set()
    assert unnamed.computation(None).bytes > cost.bytes


def test_a_gradient_keeps_the_cadence_of_both_passes():
    def loss(w, x, step):
        return jnp.sum(cadence.once_in(4, step, lambda w: jnp.tanh(x @ w), lambda w: x, w))

    grad = jax.grad(loss)
    assert flops.work(grad, W, X, STEP) == (2 * PRODUCT // 4, (4,))  # forward, and the gradient of w
    assert hlo_cost.of(jax.jit(grad).lower(W, X, STEP).compile().as_text(), 1).flops == 2 * PRODUCT / 4


def test_a_sum_of_all_devices_at_every_8th_step_is_an_8th_of_one():
    mesh = devices.make({'data': 8})
    x = jax.ShapeDtypeStruct((64, 128), np.float32, sharding=NamedSharding(mesh, P('data')))

    def step(x, step):
        total = lambda x: jax.lax.with_sharding_constraint(jnp.sum(x, 0), NamedSharding(mesh, P()))
        return cadence.once_in(8, step, total, lambda x: jnp.zeros(x.shape[1:]), x)

    cost = hlo_cost.of(jax.jit(step).lower(x, STEP).compile().as_text(), 8)
    rows = programs.collectives(cost)
    assert rows == [{'kind': 'all-reduce', 'group': 8, 'count': 1 / 8, 'bytes': 128 * 4 / 8}]


def test_how_often_is_told_as_a_short_number():
    assert [report._often(count) for count in (12, 100, 2.25, 1 / 16, 3.0)] == ['12', '100', '2.25', '0.06', '3']


OWN = """
import dummy_system
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from t3d.core import cadence


def get_config():
    return ConfigDict(dummy_system.config(system='lazy_plan')).lock()


def make(config, given):
    plain = dummy_system.make(config.batch)

    def train_step(state, batch, key, given=None):
        state, metrics = plain.train_step(state, batch, key, given)
        more = lambda x: jnp.sum(x.T @ x)
        return state, {**metrics, 'more': cadence.once_in(5, state.step, more, lambda x: 0.0, batch['x'])}

    return plain._replace(train_step=train_step)
"""


def test_a_plan_says_what_is_due_once_in_some_steps_and_what_the_compiler_did_not_name(tmp_path, monkeypatch):
    from t3d.core import config as configs

    monkeypatch.chdir(tmp_path)
    (tmp_path / 'lazy_plan.py').write_text(OWN)
    made = lambda: planner.make(
        configs.load('lazy_plan.py'), chips.topology('cpu:2'), {'data': 2, 'fsdp': 1, 'tensor': 1}, log=lambda line: None
    )
    plan = made()
    one = plan['programs']['train_step']
    assert one['cadences'] == [5] and one['unnamed_cadences'] == []
    text = report.text(plan)
    assert 'what runs once in 5 steps counts by its share' in text and 'does not name' not in text
    monkeypatch.setattr(hlo_cost, '_cadence', lambda one: None)
    lost = made()
    assert lost['programs']['train_step']['unnamed_cadences'] == [5]
    more = lost['programs']['train_step']['device_flops'] - one['device_flops']
    assert more == pytest.approx(0.8 * 2 * 8 * 8 * 16 / 2)  # of 16 rows each of two devices has 8
    assert 'the compiled program does not name what runs once in 5 steps: below it counts at each' in report.text(lost)


@pytest.mark.slow  # a plan of a system of one's own, above
def test_the_phases_of_a_gan_count_as_often_as_they_run():
    overrides = ('density.every=4', 'r1.every=16')
    model, made, key = small_gan.model(*overrides), small_gan.batch(), jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(systems.make(small_gan.config(*overrides)).init, key, made)
    phases = gan_bench.phases(model, model.ladder[0][1])
    count = {name: flops.count(phase, state.params, state.opt_state, made, key) for name, phase in phases.items()}
    by_hand = count['generator'] + count['discriminator'] + count['density'] // 4 + count['r1'] // 16
    assert flops.work(model.train_step, state, made, key) == (by_hand, (4, 16))
